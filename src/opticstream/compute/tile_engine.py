"""The streaming reconstruction: B-lines in, in order; volumes by blocks and maps out, in bounded memory.

Complex profiles live in a ring of B-lines that is just long enough for the surface filter to look ahead. Threads
work on whole B-lines and never add up each other's numbers, so results do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import tile_kernels as kernels
from opticstream.compute.birefringence import UNWRAP_HALO_PX, birefringence_unwrapped
from opticstream.compute.enface import depth_window
from opticstream.compute.lane_fft import radices_of, twiddles_of
from opticstream.compute.robust_surface import CELL_PX, LOOKAHEAD_LINES, NEAR_PX, SurfaceSheet
from opticstream.compute.simd import LANES
from opticstream.compute.spectral import SpectralPlan
from opticstream.compute.stokes import BLOCK_PX, LEAST_SIGNAL, rate_tables, rates_of
from opticstream.compute.surface import THRESHOLD_SAMPLES, edge_taps, median_3x3

Floats = NDArray[np.float32]
Sink = Callable[[int, dict[str, Floats]], None]
"""Gets (first B-line, blocks of shape (z, b, x) by product); the blocks are re-used once it returns."""

Transform = Callable[[NDArray[np.complex64]], NDArray[np.complexfloating[Any, Any]]]
"""Fourier transform along the last axis, shape (n, length); from any library."""

POLARIZATION_MAPS = ("ret", "ori", "biref")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileOptions:
    """What is made of the profiles of a tile."""

    surface: Literal["gradient", "gradient_threshold", "robust"] | Floats = "gradient"
    """Method, or a surface of shape (x, y)."""
    surface_threshold_db: float = 55.0
    offset: int = 0
    depth: int = 80
    maps: tuple[str, ...] = ("aip", "mip", "ret", "ori", "biref")
    volumes: tuple[str, ...] = ()
    """Of dBI, R3D, O3D and complex."""
    orientation_method: Literal["stokes", "mean", "histogram"] = "stokes"
    birefringence_method: Literal["stokes", "slope", "unwrap"] = "stokes"
    retardance_method: Literal["stokes", "mean"] = "stokes"
    flip_z: bool = True
    flip_phase: bool = False
    phase_offset_deg: float = 100.0
    depth_step_um: float = 2.5
    wavelength_um: float = 1.3


class InlineExecutor(Executor):
    """Runs everything at once in the caller's thread: one thread means one thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@dataclass(slots=True)
class _Scratch:
    """Memory of one thread."""

    strips: Floats
    residual: Floats
    work: Floats
    other: Floats
    intensity: Floats
    padded: Floats


@dataclass(slots=True)
class _Spectral:
    """A spectral plan in the form the kernels take."""

    index: list[NDArray[np.int64]]
    fraction: list[Floats]
    reference: list[Floats]
    phasor_re: list[Floats]
    phasor_im: list[Floats]
    radices: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    twiddles: Floats = field(default_factory=lambda: np.empty(0, np.float32))


_NOTHING = np.empty(0, np.float32)


def supports(transform_length: int, /) -> bool:
    """Return whether the compiled engine can transform spectra of this length."""
    return radices_of(transform_length) is not None


def memory_per_b_line(
    *, samples: int, zero_padding: int, a_lines: int, channels: int, volumes: int, bytes_per_sample: int = 2
) -> int:
    """Return the bytes that one more B-line in a block costs: raw counts, profiles and volumes, each held twice."""
    padded = -(-a_lines // LANES) * LANES
    profiles = channels * padded * samples * zero_padding * 4  # half as many bins, two floats each
    return 2 * (
        a_lines * channels * samples * bytes_per_sample + profiles + volumes * padded * samples * zero_padding * 2
    )


class TileEngine:
    """Takes the B-lines of one tile in order and makes its products.

    Parameters
    ----------
    options : TileOptions
        What is made.
    a_lines, b_lines : int
        Size of the tile.
    channels : int
        1 or 2; with 1 there are no polarization products.
    depth, cut : int
        Depth samples that are kept, and those dropped before them.
    plan : SpectralPlan, optional
        Needed for `add_spectra`.
    block : int
        Largest number of B-lines per call.
    executor, threads
        Where the work is done, and on how many threads at once.
    fft : callable, optional
        Another library's transform. By default our own, which works on LANES A-lines at once; lengths with prime
        factors above 5 go to NumPy.
    sink : callable, optional
        Gets the volumes.

    Notes
    -----
    Call `add_spectra` (or `add_complex`) for every block, then `finish` for the maps.
    """

    def __init__(
        self,
        options: TileOptions,
        /,
        *,
        a_lines: int,
        b_lines: int,
        channels: int,
        depth: int,
        cut: int = 0,
        plan: SpectralPlan | None = None,
        block: int = 16,
        executor: Executor | None = None,
        threads: int = 1,
        fft: Transform | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.options = options
        self.shape = (a_lines, b_lines, depth)
        self.channels = channels
        self.cut = cut
        self._plan = plan
        self._executor = executor or InlineExecutor()
        self._sink = sink
        self._fft = fft
        if fft is None and plan is not None and not supports(plan.transform_length):
            self._fft = np.fft.fft
        self._n_strips = -(-a_lines // LANES)
        self._width = self._n_strips * LANES
        self._halo = UNWRAP_HALO_PX if "biref" in options.maps and options.birefringence_method == "unwrap" else 0
        self._sheet: SurfaceSheet | None = None
        ahead = 1  # the median filter
        if isinstance(options.surface, str) and options.surface == "robust":
            self._sheet = SurfaceSheet(a_lines=a_lines, b_lines=b_lines, compiled=True)
            ahead = LOOKAHEAD_LINES + CELL_PX
        self._lag = self._halo + ahead
        bins = cut + depth if plan is None else plan.transform_length // 2
        self._capacity = 2 * block + self._lag + self._halo + 1
        self._ring = np.zeros((self._capacity, self._n_strips, channels, bins * 2 * LANES), np.float32)
        self._raw_surface = np.zeros((b_lines, self._width), np.float32)
        self._surface = np.zeros((b_lines, self._width), np.float32)
        if not isinstance(options.surface, str):
            self._raw_surface[:, :a_lines] = self._surface[:, :a_lines] = options.surface.T
        self._confidence = np.ones((b_lines, self._width), np.float32)
        self._n_cells = -(-a_lines // CELL_PX)
        kept = CELL_PX + 2 * block if self._sheet is not None else 0
        self._cells = np.zeros((kept, -(-self._width // CELL_PX), depth), np.float32)
        self._in_sheet = 0
        self.section_x = np.zeros((a_lines, depth), np.float32)
        """Intensity (dB) of the middle B-line, shape (x, z)."""
        self.section_y = np.zeros((b_lines, depth), np.float32)
        """Intensity (dB) of the middle A-line of every B-line, shape (y, z)."""
        self._floor = np.zeros((b_lines, self._width), np.float32)
        self.maps = {name: np.zeros((b_lines, self._width), np.float32) for name in options.maps if name != "surf"}
        self._received = self._emitted = 0
        self._profiling: list[Future[Any]] = []
        self._mapping: list[Future[Any]] = []
        self._sinking: list[Future[Any]] = []
        self._filled: tuple[int, dict[str, Floats]] | None = None
        self._blocks = [self._empty_blocks(block) for _ in range(2)] if options.volumes else []
        self._taps = edge_taps().astype(np.float32)
        self._spectral = None if plan is None else _spectral_arrays(plan)
        self._scratch: SimpleQueue[_Scratch] = SimpleQueue()
        for _ in range(max(1, threads)):
            self._scratch.put(self._new_scratch(bins))
        window = min(options.depth, depth - 1)
        self._rates = rates_of(depth=window, depth_step_um=options.depth_step_um, wavelength_um=options.wavelength_um)
        self._cosine, self._sine = rate_tables(self._rates, depth=window, offset=options.offset)
        sign = -1.0 if options.flip_phase else 1.0
        offset = float(np.remainder(np.float64(options.phase_offset_deg) + 90, 180) - 90)
        self._sign, self._offset_deg = np.float32(sign), np.float32(offset)

    def _empty_blocks(self, n: int) -> dict[str, Floats]:
        a_lines, _, depth = self.shape
        widths = {name: a_lines * (2 * self.channels if name == "complex" else 1) for name in self.options.volumes}
        return {name: np.empty((depth, n, width), np.float32) for name, width in widths.items()}

    def _new_scratch(self, bins: int) -> _Scratch:
        depth = self.shape[2]
        samples, length = (0, 0) if self._plan is None else (self._plan.samples, self._plan.transform_length)
        return _Scratch(
            strips=np.empty((self._n_strips, samples * LANES), np.float32),
            residual=np.empty(samples, np.float32),
            work=np.empty(length * 2 * LANES, np.float32),
            other=np.empty(length * 2 * LANES, np.float32),
            intensity=np.empty(depth * LANES, np.float32),
            padded=np.empty((depth + 2 * self._taps.size) * LANES, np.float32),
        )

    # -- in

    def add_spectra(self, counts: NDArray[Any], /) -> None:
        """Take the next B-lines, counts of shape (b, channels, A-lines, samples).

        The array must not change until the next call.
        """
        if counts.dtype not in (np.uint16, np.float32) or not counts.dtype.isnative:
            counts = counts.astype(np.uint16 if counts.dtype.kind == "u" and counts.dtype.itemsize <= 2 else np.float32)
        self._add(len(counts), lambda row, y, scratch: self._profiles_from_spectra(counts[row], y, scratch))

    def add_complex(self, tile: Floats, /) -> None:
        """Take the next B-lines of a complex tile, shape (2 * channels * A-lines, b, z), depth reversed."""
        self._add(tile.shape[1], lambda row, y, _scratch: self._profiles_from_complex(tile[:, row], y))

    def _add(self, n: int, profile: Callable[[int, int, _Scratch], None]) -> None:
        _wait(self._profiling)
        _wait(self._mapping)
        _wait(self._sinking)
        filled, complete = self._filled, self._received
        first = self._received
        blocks: dict[str, Floats] = {}
        if self._blocks:
            self._blocks.reverse()
            blocks = {name: block[:, :n] for name, block in self._blocks[0].items()}
        self._received += n
        self._filled = (first, blocks) if blocks else None

        def work(row: int) -> None:
            scratch = self._scratch.get()
            try:
                profile(row, first + row, scratch)
                self._analyse(first + row, row, blocks, scratch)
            finally:
                self._scratch.put(scratch)

        self._profiling = [self._executor.submit(work, row) for row in range(n)]
        self._go_on(filled, complete)  # with the block before, while this one is worked on

    def _go_on(self, filled: tuple[int, dict[str, Floats]] | None, complete: int) -> None:
        """Pass on the volumes of a block that is done, and start the maps that `complete` B-lines make possible."""
        self._mapping = []
        self._sinking = []
        if filled is not None and self._sink is not None:
            first, blocks = filled
            self._sinking = [self._executor.submit(self._sink, first, {name: block}) for name, block in blocks.items()]
        b_lines = self.shape[1]
        if self._sheet is not None:
            self._extend_sheet(self._sheet, complete)
            ready = min(self._sheet.lines_known(), complete) - self._halo
        else:
            ready = complete - self._lag
        ready = b_lines if complete == b_lines else max(self._emitted, ready)
        rows = range(self._emitted, ready)
        if not rows:
            return
        self._filter_surface(min(b_lines, ready + self._halo))
        self._mapping = [self._executor.submit(self._make_maps, y) for y in rows]
        if self._halo:
            _wait(self._mapping)
            self._unwrap(rows)
        self._emitted = ready

    # -- one B-line

    def _slot(self, y: int) -> Floats:
        ring: Floats = self._ring[y % self._capacity]
        return ring

    def _profiles_from_spectra(self, counts: NDArray[Any], y: int, scratch: _Scratch) -> None:
        plan, arrays = self._plan, self._spectral
        assert plan is not None
        assert arrays is not None
        slot = self._slot(y)
        for c in range(self.channels):
            kernels.spectra_to_strips(
                counts[c],
                c in plan.reversed_channels,
                plan.subtract_mean,
                arrays.reference[c],
                arrays.index[c],
                arrays.fraction[c],
                scratch.strips,
            )
            residual = _NOTHING
            if plan.residual_background:
                residual = scratch.residual
                kernels.residual_of_strips(scratch.strips, self.shape[0], residual)
            for strip in range(self._n_strips):
                if self._fft is not None:
                    self._transform_by_library(self._fft, scratch.strips[strip], residual, c, slot[strip, c])
                    continue
                kernels.profiles_of_strip(
                    scratch.strips[strip],
                    residual,
                    arrays.phasor_re[c],
                    arrays.phasor_im[c],
                    scratch.work,
                    scratch.other,
                    arrays.radices,
                    arrays.twiddles,
                    slot[strip, c],
                )

    def _transform_by_library(self, fft: Transform, strip: Floats, residual: Floats, c: int, out: Floats) -> None:
        plan, arrays = self._plan, self._spectral
        assert plan is not None
        assert arrays is not None
        spectra = np.where(np.isinf(strip), np.float32(0), strip).reshape(-1, LANES).T
        if residual.size:
            spectra = spectra - residual
        work = np.zeros((LANES, plan.transform_length), np.complex64)
        work[:, : plan.samples] = spectra
        if plan.phasor is not None:
            work[:, : plan.samples] *= plan.phasor[c]
        profiles = fft(work)[:, : plan.transform_length // 2]
        rows = out.reshape(-1, 2, LANES)
        rows[:, 0], rows[:, 1] = profiles.real.T, -profiles.imag.T

    def _profiles_from_complex(self, tile: Floats, y: int) -> None:
        a_lines, _, depth = self.shape
        slot = self._slot(y).reshape(self._n_strips, self.channels, -1, 2, LANES)
        parts = tile.reshape(self.channels, 2, a_lines, depth)[..., ::-1]
        lanes = np.zeros((self.channels, 2, self._width, depth), np.float32)
        lanes[:, :, :a_lines] = parts
        lanes = lanes.reshape(self.channels, 2, self._n_strips, LANES, depth)
        slot[:, :, self.cut : self.cut + depth] = lanes.transpose(2, 0, 4, 1, 3)

    def _analyse(self, y: int, row: int, blocks: dict[str, Floats], scratch: _Scratch) -> None:
        """Intensity, surface and volumes of one B-line whose profiles are in the ring."""
        options = self.options
        a_lines, _, depth = self.shape
        slot = self._slot(y)
        searched = isinstance(options.surface, str)
        at_once = searched and options.surface == "gradient_threshold"
        level = np.float32(options.surface_threshold_db if at_once else np.inf)
        spare = np.empty(LANES, np.float32)
        for strip in range(self._n_strips):
            first, second = self._channels_of(slot, strip)
            lanes = slice(strip * LANES, (strip + 1) * LANES)
            kernels.intensity_of_strip(first, second, self.cut, depth, not options.flip_z, scratch.intensity)
            kernels.edges_of_strip(
                scratch.intensity,
                self._taps,
                level,
                THRESHOLD_SAMPLES,
                scratch.padded,
                self._raw_surface[y, lanes] if searched else spare,
                self._floor[y, lanes],
            )
            here = min(LANES, a_lines - strip * LANES)
            middle_lane = a_lines // 2 - strip * LANES
            if y == self.shape[1] // 2:
                profiles = scratch.intensity.reshape(depth, LANES)
                self.section_x[strip * LANES : strip * LANES + here] = profiles[:, :here].T
            if 0 <= middle_lane < LANES:
                self.section_y[y] = scratch.intensity[middle_lane::LANES]
            if self._sheet is not None:
                per_strip = LANES // CELL_PX
                kernels.cells_of_strip(
                    scratch.intensity,
                    min(LANES, a_lines - strip * LANES),
                    CELL_PX,
                    self._cells[y % len(self._cells), strip * per_strip : (strip + 1) * per_strip],
                )
            if blocks:
                example = next(iter(blocks.values()))
                step = example.base.shape[1] * a_lines if example.base is not None else example.shape[1] * a_lines
                flat = {name: self._flat(blocks, name) for name in ("dBI", "R3D", "O3D")}
                kernels.volumes_of_strip(
                    first,
                    second,
                    scratch.intensity,
                    self.cut,
                    not options.flip_z,
                    self._sign,
                    self._offset_deg,
                    row * a_lines + strip * LANES,
                    step,
                    min(LANES, a_lines - strip * LANES),
                    flat["dBI"],
                    flat["R3D"],
                    flat["O3D"],
                )
        if "complex" in blocks:
            profiles = slot.reshape(self._n_strips, self.channels, -1, 2, LANES)[:, :, self.cut : self.cut + depth]
            parts = profiles.transpose(2, 1, 3, 0, 4).reshape(depth, 2 * self.channels, self._width)[::-1, :, :a_lines]
            blocks["complex"][:, row] = parts.reshape(depth, -1)

    @staticmethod
    def _flat(blocks: dict[str, Floats], name: str) -> Floats:
        if name not in blocks:
            return _NOTHING
        whole = blocks[name].base if blocks[name].base is not None else blocks[name]
        return np.asarray(whole).reshape(-1)

    def _channels_of(self, slot: Floats, strip: int) -> tuple[Floats, Floats]:
        return slot[strip, 0], slot[strip, 1] if self.channels == 2 else _NOTHING

    # -- maps

    def _extend_sheet(self, sheet: SurfaceSheet, complete: int) -> None:
        """Hand the sheet all rows of cells that have become complete."""
        a_lines, b_lines, _ = self.shape
        sizes = np.minimum(CELL_PX, a_lines - CELL_PX * np.arange(self._n_cells)).astype(np.float32)
        rows = []
        while self._in_sheet < b_lines:
            last = min(b_lines, self._in_sheet + CELL_PX)
            if last > complete:
                break
            lines = [self._cells[y % len(self._cells)] for y in range(self._in_sheet, last)]
            total = np.sum(lines, axis=0)[: self._n_cells]
            rows.append(total / (len(lines) * sizes[:, np.newaxis]))
            self._in_sheet = last
        if rows:
            sheet.add(np.stack(rows).astype(np.float32))

    def _filter_surface(self, stop: int) -> None:
        """Bring the filtered surface up to B-line `stop`."""
        if not isinstance(self.options.surface, str):
            return
        a_lines, b_lines, _ = self.shape
        if self._sheet is not None:
            surface, confidence = self._sheet.lines(self._emitted, stop)
            self._surface[self._emitted : stop, :a_lines] = surface.T
            self._confidence[self._emitted : stop, :a_lines] = confidence.T
            return
        first = max(0, self._emitted - 1)
        last = min(b_lines, stop + 1)
        filtered = median_3x3(self._raw_surface[first:last, :a_lines])
        begin = self._emitted - first
        self._surface[self._emitted : stop, :a_lines] = filtered[begin : begin + stop - self._emitted]

    def _window(self, y: int) -> tuple[Floats, Floats]:
        depth = self.shape[2]
        start = np.clip(np.rint(self._surface[y]) + np.float32(self.options.offset), 0, depth - 1).astype(np.float32)
        return start, np.minimum(start + np.float32(self.options.depth), np.float32(depth - 1))

    def _make_maps(self, y: int) -> None:
        options = self.options
        depth = self.shape[2]
        slot = self._slot(y)
        start, stop = self._window(y)
        slope_scale = np.float32(options.wavelength_um / 360 / options.depth_step_um)
        if self._sheet is not None:
            self._find_edges_near(y)
        spare = np.empty(self._width, np.float32)
        out = {name: self.maps[name][y] if name in self.maps else spare for name in ("aip", "mip", *POLARIZATION_MAPS)}
        states = np.empty((self._cosine.shape[1], 3 * LANES), np.float32)
        sums = np.empty((len(self._rates), 6 * LANES), np.float32)
        by_circle = {
            "ori": self.maps["ori"][y] if "ori" in self.maps and options.orientation_method == "stokes" else _NOTHING,
            "biref": (
                self.maps["biref"][y] if "biref" in self.maps and options.birefringence_method == "stokes" else _NOTHING
            ),
        }
        circle_scale = np.float32(float(self._rates[1]) * options.wavelength_um / (4 * np.pi * options.depth_step_um))
        for strip in range(self._n_strips):
            first, second = self._channels_of(slot, strip)
            lanes = slice(strip * LANES, (strip + 1) * LANES)
            place = (first, second, self.cut, depth, not options.flip_z, start[lanes], stop[lanes])
            kernels.maps_of_strip(
                *place,
                self._sign,
                self._offset_deg,
                slope_scale,
                strip * LANES,
                out["aip"],
                out["mip"],
                out["ret"],
                out["ori"],
                out["biref"],
            )
            if "ori" in self.maps and options.orientation_method == "histogram":
                kernels.axis_modes_of_strip(
                    *place, self._sign, self._offset_deg, strip * LANES, LANES, self.maps["ori"][y]
                )
            if by_circle["ori"].size or by_circle["biref"].size:
                kernels.circles_of_strip(
                    *place,
                    self._cosine,
                    self._sine,
                    self._sign,
                    self._offset_deg,
                    self._rates[1],
                    circle_scale,
                    states,
                    sums,
                    strip * LANES,
                    by_circle["ori"],
                    by_circle["biref"],
                )
            if "ret" in self.maps and options.retardance_method == "stokes":
                kernels.clean_retardance_of_strip(*place, BLOCK_PX, LEAST_SIGNAL, strip * LANES, self.maps["ret"][y])
            if "mus" in self.maps:
                kernels.attenuation_of_strip(
                    *place, np.float32(options.depth_step_um / 1000), strip * LANES, self.maps["mus"][y]
                )

    def _find_edges_near(self, y: int) -> None:
        """Keep, as the unfiltered surface, what every A-line by itself shows near the sheet."""
        depth = self.shape[2]
        centre = np.clip(np.rint(self._surface[y]), 0, depth - 1).astype(np.float32)
        scratch = self._scratch.get()
        try:
            for strip in range(self._n_strips):
                lanes = slice(strip * LANES, (strip + 1) * LANES)
                kernels.edges_near(
                    *self._channels_of(self._slot(y), strip),
                    self.cut,
                    depth,
                    not self.options.flip_z,
                    self._taps,
                    centre[lanes],
                    NEAR_PX,
                    scratch.padded,
                    self._raw_surface[y, lanes],
                )
        finally:
            self._scratch.put(scratch)

    def _unwrap(self, rows: Sequence[int]) -> None:
        """Replace the birefringence of some B-lines by that of retardance unwrapped in 3-D, slab by slab."""
        options = self.options
        a_lines, b_lines, depth = self.shape
        first, last = max(0, rows[0] - self._halo), min(b_lines, rows[-1] + 1 + self._halo)
        slab = {name: np.empty((depth, last - first, a_lines), np.float32) for name in ("R3D", "O3D")}
        nothing = np.empty(depth * LANES, np.float32)
        for y in range(first, last):
            for strip in range(self._n_strips):
                kernels.volumes_of_strip(
                    *self._channels_of(self._slot(y), strip),
                    nothing,
                    self.cut,
                    not options.flip_z,
                    self._sign,
                    self._offset_deg,
                    (y - first) * a_lines + strip * LANES,
                    (last - first) * a_lines,
                    min(LANES, a_lines - strip * LANES),
                    _NOTHING,
                    slab["R3D"].reshape(-1),
                    slab["O3D"].reshape(-1),
                )
        window = depth_window(
            self._surface[first:last, :a_lines].T, depth_samples=depth, offset=options.offset, depth=options.depth
        )
        values = birefringence_unwrapped(
            slab["R3D"].transpose(2, 1, 0),
            slab["O3D"].transpose(2, 1, 0),
            window,
            depth_step_um=options.depth_step_um,
            wavelength_um=options.wavelength_um,
        )
        begin = rows[0] - first
        self.maps["biref"][rows[0] : rows[-1] + 1, :a_lines] = values.T[begin : begin + len(rows)]

    # -- out

    def finish(self) -> dict[str, Floats]:
        """Return the maps, shape (x, y), with `surf` and `surfraw` among them.

        Raises
        ------
        ValueError
            B-lines are missing.
        """
        b_lines = self.shape[1]
        if self._received != b_lines:
            raise ValueError(f"{self._received} B-lines of {b_lines} have come")
        _wait(self._profiling)
        _wait(self._mapping)
        _wait(self._sinking)
        self._go_on(self._filled, b_lines)
        _wait(self._mapping)
        _wait(self._sinking)
        a_lines = self.shape[0]
        maps = {**self.maps, "surf": self._surface, "surfraw": self._raw_surface}
        return {name: image[:, :a_lines].T for name, image in maps.items()}

    @property
    def confidence(self) -> Floats:
        """Confidence of the surface, 0..1, shape (x, y); 1 everywhere for methods that give none."""
        return self._confidence[:, : self.shape[0]].T

    @property
    def noise_db(self) -> float:
        """Median over the A-lines of the mean intensity of the deepest twentieth."""
        return float(np.median(self._floor[:, : self.shape[0]]))


def _wait(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        future.result()


def _spectral_arrays(plan: SpectralPlan) -> _Spectral:
    radices = radices_of(plan.transform_length) or ()
    index, fraction = [], []
    for c in range(plan.channels):
        if plan.positions is None:
            index.append(np.empty(0, np.int64))
            fraction.append(_NOTHING)
            continue
        left = np.clip(np.floor(plan.positions[c]), 0, plan.samples - 2).astype(np.int64)
        index.append(left)
        fraction.append((plan.positions[c] - left).astype(np.float32))
    reference = np.zeros((plan.channels, plan.samples), np.float32) if plan.reference is None else plan.reference
    phasor = [_NOTHING] * plan.channels if plan.phasor is None else plan.phasor
    return _Spectral(
        index=index,
        fraction=fraction,
        reference=[np.ascontiguousarray(row) for row in reference],
        phasor_re=[np.ascontiguousarray(row.real) for row in phasor],
        phasor_im=[np.ascontiguousarray(row.imag) if plan.phasor is not None else _NOTHING for row in phasor],
        radices=np.array(radices, np.int64),
        twiddles=twiddles_of(radices) if radices else _NOTHING,
    )

"""The streaming reconstruction: B-lines in, in order; volumes by blocks and maps out, in bounded memory.

Complex profiles are kept in a ring of B-lines that is just long enough for the surface filter to look ahead. Threads
process whole B-lines and never add each other's numbers, so results do not depend on their number.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.lanes import LANES, radices_of, split_of, split_rows, split_twiddles_of, twiddles_of
from opticstream.compute.reconstruction import (
    BLOCK_PX,
    CELL_PX,
    LEAST_SIGNAL,
    LOOKAHEAD_LINES,
    NEAR_PX,
    THRESHOLD_SAMPLES,
    UNWRAP_REACH_PX,
    DepthWindow,
    MapSource,
    Sink,
    SpectralPlan,
    SurfaceSheet,
    TileOptions,
    TileProfiles,
    Transform,
    birefringence_unwrapped,
    counts_to_work_on,
    depth_window,
    edge_taps,
    median_3x3,
    rate_tables,
    rates_of,
)
from opticstream.compute.tile_engine._arguments import (
    Circles,
    Depths,
    EdgeFilter,
    LineMaps,
    LineResults,
    LineVolumes,
    MapConstants,
    MapScratch,
    Orientation,
    ProfileScratch,
    RiseNear,
    SpectralTransform,
    Strip,
    Windows,
)
from opticstream.compute.tile_engine._map_kernels import maps_of_line
from opticstream.compute.tile_engine._profile_kernels import profiles_of_line, volumes_of_strip
from opticstream.compute.tile_engine._spectrum_kernels import groups_needed, mean_of_lines, spectra_to_strips
from opticstream.model.modalities import SURFACE

Floats = NDArray[np.float32]


class InlineExecutor(Executor):
    """Runs everything at once in the caller's thread, if only one thread is allowed."""

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
    recorded: Floats
    background: Floats
    profiles: ProfileScratch
    maps: MapScratch


@dataclass(slots=True)
class _Spectral:
    """A spectral plan in the form the kernels take."""

    index: list[NDArray[np.int64]]
    fraction: list[Floats]
    groups: int
    reference: Floats
    transform: SpectralTransform


@dataclass(slots=True)
class _Block:
    """B-lines that are being worked on."""

    first: int
    stop: int
    volumes: dict[str, Floats]
    work: list[Future[Any]]


_IN_FLIGHT = 3
"""Blocks whose memory is in use at a time: one is worked on, one waits for maps and disk, one is on its way out."""
_NOTHING = np.empty(0, np.float32)
_NO_TABLE = np.empty((0, 0), np.float32)
_NO_STRIPS = np.empty((0, 0, 0), np.float32)
_NO_TRANSFORM = SpectralTransform(_NO_TABLE, _NO_TABLE, np.empty(0, np.int64), _NOTHING)


def _aligned(*shape: int) -> Floats:
    """Return memory that begins on a cache line, as vectors that straddle two cost twice; it holds anything."""
    size = math.prod(shape)
    memory = np.empty(size + LANES, np.float32)
    start = -(memory.ctypes.data // memory.itemsize) % LANES
    return memory[start : start + size].reshape(shape)


def supports(transform_length: int, /) -> bool:
    """Return whether the compiled engine can transform spectra of this length."""
    return radices_of(transform_length) is not None


def memory_per_b_line(
    *, samples: int, zero_padding: int, a_lines: int, channels: int, volumes: int, bytes_per_sample: int = 2
) -> int:
    """Return the bytes that one more B-line in a block costs: raw counts, profiles and volumes of blocks in flight."""
    padded = -(-a_lines // LANES) * LANES
    raw = a_lines * channels * samples * bytes_per_sample
    profiles = channels * padded * samples * zero_padding * 4  # half as many bins, two floats each
    return 2 * raw + _IN_FLIGHT * (profiles + volumes * padded * samples * zero_padding * 2)


def memory_per_function_line(a_lines: int, channels: int, depth: int, /) -> int:
    """Return the bytes that maps without a kernel take while they are made of one B-line."""
    return (
        a_lines * depth * (8 * channels + 4 * 12)
    )  # profiles; volumes and samples of the window as floats and doubles


class TileEngine:
    """Reconstructs the products of one tile from its B-lines, in order.

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
        Needed for `add_spectra`. Where it brings no transform (`plan.fft`) ours is taken, which works on LANES A-lines
        at once; lengths with prime factors above 5 go to NumPy.
    block : int
        Largest number of B-lines per call.
    executor, threads
        Where the work is done, and on how many threads at once.
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
        sink: Sink | None = None,
    ) -> None:
        self.options = options
        self.shape = (a_lines, b_lines, depth)
        self.channels = channels
        self.cut = cut
        self._plan = plan
        self._executor = executor or InlineExecutor()
        self._sink = sink
        self._fft = None if plan is None else plan.fft
        if self._fft is None and plan is not None and not supports(plan.transform_length):
            self._fft = np.fft.fft
        self._n_strips = -(-a_lines // LANES)
        self._width = self._n_strips * LANES
        self._halo = options.halo_lines
        self._sheet: SurfaceSheet | None = None
        ahead = 1  # the median filter
        if options.finds_sheet:
            self._sheet = SurfaceSheet(a_lines=a_lines, b_lines=b_lines, compiled=True)
            ahead = LOOKAHEAD_LINES + CELL_PX
        self._lag = self._halo + ahead
        bins = cut + depth if plan is None else plan.transform_length // 2
        self._capacity = _IN_FLIGHT * block + self._lag + self._halo + 1
        self._ring = _aligned(self._capacity, self._n_strips, channels, bins * 2 * LANES)
        self._raw_surface = np.zeros((b_lines, self._width), np.float32)
        self._surface = np.zeros((b_lines, self._width), np.float32)
        if not isinstance(options.surface, str):
            given = min(options.surface, depth - 1) if isinstance(options.surface, int) else options.surface.T
            self._raw_surface[:, :a_lines] = self._surface[:, :a_lines] = given
        self._confidence = np.ones((b_lines, self._width), np.float32)
        self._n_cells = -(-a_lines // CELL_PX)
        kept = CELL_PX + 2 * block if self._sheet is not None else 0
        self._cells = _aligned(kept, self._width // CELL_PX, depth + -depth % 4)
        self._in_sheet = 0
        self.section_x = np.zeros((a_lines, depth), np.float32)
        """Intensity (dB) of the middle B-line, shape (x, z)."""
        self.section_y = np.zeros((b_lines, depth), np.float32)
        """Intensity (dB) of the middle A-line of every B-line, shape (y, z)."""
        self._floor = np.zeros((b_lines, self._width), np.float32)
        self.maps = {name: np.zeros((b_lines, self._width), np.float32) for name in options.maps if name != SURFACE}
        self._received = self._emitted = 0
        self._block: _Block | None = None
        self._mapping: deque[list[Future[Any]]] = deque()
        self._sinking: deque[list[Future[Any]]] = deque()
        self._volumes = deque(self._empty_volumes(block) for _ in range(_IN_FLIGHT)) if options.volumes else deque()
        self._taps = edge_taps().astype(np.float32)
        window = min(options.depth, depth - 1)
        step_um, wavelength_um = options.depth_step_um, options.wavelength_um
        rates = rates_of(depth=window, depth_step_um=step_um, wavelength_um=wavelength_um)
        scale = float(rates[1]) * wavelength_um / (4 * np.pi * step_um)
        tables = rate_tables(rates, depth=window, offset=options.offset)
        self._circles = Circles(*tables, step=rates[1], scale=np.float32(scale))
        self._constants = MapConstants(
            slope_scale=np.float32(wavelength_um / 360 / step_um),
            block=BLOCK_PX,
            least_signal=LEAST_SIGNAL,
            step_mm=np.float32(step_um / 1000),
        )
        self._depths = Depths(cut, depth, not options.flip_z)
        sign = -1.0 if options.flip_phase else 1.0
        offset = axial.offset_within_half_turn(options.phase_offset_deg)
        self._orientation = Orientation(np.float32(sign), np.float32(offset))
        self._spectral = None if plan is None else _spectral_arrays(plan)
        self._scratch: SimpleQueue[_Scratch] = SimpleQueue()
        for _ in range(max(1, threads)):
            self._scratch.put(self._new_scratch())

    def _empty_volumes(self, n: int) -> dict[str, Floats]:
        """Return room for `n` B-lines by product, shape (b, z, x): what one thread writes lies close together."""
        a_lines, _, depth = self.shape
        widths = {name: a_lines * (2 * self.channels if name == "complex" else 1) for name in self.options.volumes}
        return {name: np.empty((n, depth, width), np.float32) for name, width in widths.items()}

    def _new_scratch(self) -> _Scratch:
        depth = self.shape[2]
        samples, rows, recorded = 0, 0, 0
        if self._plan is not None and self._spectral is not None:
            samples, length = self._plan.samples, self._plan.transform_length
            rows = split_rows(length) if split_of(length) else length
            recorded = self._spectral.groups * 2 * LANES * self._width
        n_rates, longest = self._circles.cosine.shape
        padded = _aligned((depth + 2 * self._taps.size) * LANES)
        return _Scratch(
            # one more row per strip, so that strips do not fall into the same places of the cache
            strips=_aligned(self.channels, self._n_strips, (samples + 1) * LANES) if samples else _NO_STRIPS,
            recorded=_aligned(recorded),
            background=_aligned(samples),
            profiles=ProfileScratch(
                work=_aligned(rows * 2 * LANES),
                other=_aligned(rows * 2 * LANES),
                intensity=_aligned((depth + 3) * LANES),
                padded=padded,
            ),
            maps=MapScratch(
                padded=padded,
                window=_aligned(longest * 4 * LANES),
                states=_aligned(longest * 3 * LANES),
                sums=_aligned((n_rates + 3) * 6 * LANES),
            ),
        )

    # -- in

    def add_spectra(self, counts: NDArray[Any], /) -> None:
        """Take the next B-lines, counts of shape (b, channels, A-lines, samples).

        The array must not change until the next call has returned.
        """
        counts = counts_to_work_on(counts)
        self._add(len(counts), lambda row, y, scratch: self._spectra_to_strips(counts[row], y, scratch))

    def add_complex(self, tile: Floats, /) -> None:
        """Take the next B-lines of a complex tile, shape (2 * channels * A-lines, b, z), depth reversed.

        The array must not change until the next call has returned.
        """
        self._add(tile.shape[1], lambda row, y, _scratch: self._profiles_from_complex(tile[:, row], y))

    def _add(self, n: int, prepare: Callable[[int, int, _Scratch], Floats]) -> None:
        """Start the work on `n` B-lines, and while that is under way go on with those before."""
        for under_way in (self._mapping, self._sinking):  # their memory is needed now
            while len(under_way) > 1:
                _wait(under_way.popleft())
        first = self._received
        volumes: dict[str, Floats] = {}
        if self._volumes:
            self._volumes.rotate(1)
            volumes = {name: volume[:n] for name, volume in self._volumes[0].items()}

        def work(row: int) -> None:
            scratch = self._scratch.get()
            try:
                strips = prepare(row, first + row, scratch)
                self._analyse(strips, first + row, {name: volume[row] for name, volume in volumes.items()}, scratch)
            finally:
                self._scratch.put(scratch)

        before = self._block
        self._received += n
        self._block = _Block(first, self._received, volumes, [self._executor.submit(work, row) for row in range(n)])
        if before is not None:
            self._go_on(before)

    def _go_on(self, block: _Block) -> None:
        """Pass on the volumes of a block when it is done, and start the maps that it makes possible."""
        _wait(block.work)
        if block.volumes and self._sink is not None:
            sink = self._sink
            planes = {name: volume.transpose(1, 0, 2) for name, volume in block.volumes.items()}
            self._sinking.append(
                [self._executor.submit(sink, block.first, {name: volume}) for name, volume in planes.items()]
            )
        b_lines = self.shape[1]
        if self._sheet is not None:
            self._extend_sheet(self._sheet, block.stop)
            ready = min(self._sheet.lines_known(), block.stop) - self._halo
        else:
            ready = block.stop - self._lag
        ready = b_lines if block.stop == b_lines else max(self._emitted, ready)
        rows = range(self._emitted, ready)
        if not rows:
            return
        if not self.maps and self._sheet is None and not isinstance(self.options.surface, str):
            self._emitted = ready  # nothing is made from the profiles below a given surface
            return
        self._filter_surface(min(b_lines, ready + self._halo))
        self._mapping.append([self._executor.submit(self._make_maps, y) for y in rows])
        if self._halo:
            _wait(self._mapping[-1])
            self._unwrap(rows)
        self._emitted = ready

    # -- one B-line

    def _slot(self, y: int) -> Floats:
        ring: Floats = self._ring[y % self._capacity]
        return ring

    def _spectra_to_strips(self, counts: NDArray[Any], y: int, scratch: _Scratch) -> Floats:
        plan, arrays = self._plan, self._spectral
        assert plan is not None
        assert arrays is not None
        for c in range(self.channels):
            background = arrays.reference[c]
            if plan.subtract_mean:
                background = scratch.background
                mean_of_lines(counts[c], background)
            spectra_to_strips(
                counts[c],
                c in plan.reversed_channels,
                background,
                arrays.index[c],
                arrays.fraction[c],
                plan.residual_background,
                scratch.recorded,
                scratch.strips[c],
            )
        if self._fft is None:
            return scratch.strips
        for c in range(self.channels):
            self._transform_by_library(self._fft, scratch.strips[c], c, self._slot(y)[:, c])
        return _NO_STRIPS

    def _transform_by_library(self, fft: Transform, strips: Floats, c: int, out: Floats) -> None:
        plan = self._plan
        assert plan is not None
        work = np.zeros((LANES, plan.transform_length), np.complex64)
        for strip, profiles in zip(strips, out, strict=True):
            work[:, : plan.samples] = strip[: plan.samples * LANES].reshape(-1, LANES).T
            if plan.phasor is not None:
                work[:, : plan.samples] *= plan.phasor[c]
            bins = fft(work)[:, : plan.transform_length // 2]
            rows = profiles.reshape(-1, 2, LANES)
            rows[:, 0], rows[:, 1] = bins.real.T, -bins.imag.T

    def _profiles_from_complex(self, tile: Floats, y: int) -> Floats:
        a_lines, _, depth = self.shape
        slot = self._slot(y).reshape(self._n_strips, self.channels, -1, 2, LANES)
        parts = tile.reshape(self.channels, 2, a_lines, depth)[..., ::-1]
        lanes = np.zeros((self.channels, 2, self._width, depth), np.float32)
        lanes[:, :, :a_lines] = parts
        lanes = lanes.reshape(self.channels, 2, self._n_strips, LANES, depth)
        slot[:, :, self.cut : self.cut + depth] = lanes.transpose(2, 0, 4, 1, 3)
        return _NO_STRIPS

    def _analyse(self, strips: Floats, y: int, volumes: dict[str, Floats], scratch: _Scratch) -> None:
        """Profiles, intensity, edges and volumes of one B-line; without `strips` its profiles are there already."""
        options = self.options
        a_lines, b_lines, depth = self.shape
        slot = self._slot(y)
        at_once = isinstance(options.surface, str) and options.surface == "gradient_threshold"
        edges = EdgeFilter(
            wanted=isinstance(options.surface, str) and self._sheet is None,
            taps=self._taps,
            threshold_db=np.float32(options.surface_threshold_db if at_once else np.inf),
            first_samples=THRESHOLD_SAMPLES,
        )
        results = LineResults(
            cells=self._cells[y % len(self._cells)] if self._sheet is not None else _NO_TABLE,
            surface=self._raw_surface[y],
            floor_db=self._floor[y],
            section_x=self.section_x if y == b_lines // 2 else _NO_TABLE,
            section_y=self.section_y[y],
        )
        flat = (volumes[name].reshape(-1) if name in volumes else _NOTHING for name in ("dBI", "R3D", "O3D"))
        profiles_of_line(
            strips,
            _NO_TRANSFORM if self._spectral is None else self._spectral.transform,
            slot,
            a_lines,
            self._depths,
            edges,
            self._orientation,
            scratch.profiles,
            results,
            LineVolumes(*flat),
        )
        if "complex" in volumes:
            profiles = slot.reshape(self._n_strips, self.channels, -1, 2, LANES)[:, :, self.cut : self.cut + depth]
            parts = profiles.transpose(2, 1, 3, 0, 4).reshape(depth, 2 * self.channels, self._width)[::-1, :, :a_lines]
            volumes["complex"][:] = parts.reshape(depth, -1)

    # -- maps

    def _extend_sheet(self, sheet: SurfaceSheet, complete: int) -> None:
        """Pass all complete rows of cells to the sheet."""
        a_lines, b_lines, depth = self.shape
        sizes = np.minimum(CELL_PX, a_lines - CELL_PX * np.arange(self._n_cells)).astype(np.float32)
        rows = []
        while self._in_sheet < b_lines:
            last = min(b_lines, self._in_sheet + CELL_PX)
            if last > complete:
                break
            lines = [self._cells[y % len(self._cells), : self._n_cells, :depth] for y in range(self._in_sheet, last)]
            total = functools.reduce(np.add, lines)
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

    def _window(self, y: int) -> Windows:
        depth = self.shape[2]
        start = np.clip(np.rint(self._surface[y]) + np.float32(self.options.offset), 0, depth - 1).astype(np.float32)
        return Windows(start, np.minimum(start + np.float32(self.options.depth), np.float32(depth - 1)))

    def _make_maps(self, y: int) -> None:
        options = self.options
        depth = self.shape[2]

        def wanted(name: str, method: str) -> Floats:
            chosen = {
                "ret": options.retardance_method,
                "ori": options.orientation_method,
                "biref": options.birefringence_method,
            }
            return self.maps[name][y] if name in self.maps and chosen[name] == method else _NOTHING

        aip, mip = _NOTHING, _NOTHING
        if "aip" in self.maps or "mip" in self.maps:
            spare = np.empty(self._width, np.float32)
            aip, mip = (self.maps[name][y] if name in self.maps else spare for name in ("aip", "mip"))
        maps = LineMaps(
            surface=self._raw_surface[y] if self._sheet is not None else _NOTHING,
            aip=aip,
            mip=mip,
            mean_ret=wanted("ret", "mean"),
            mean_ori=wanted("ori", "mean"),
            slope=wanted("biref", "slope"),
            mode_ori=wanted("ori", "histogram"),
            circle_ori=wanted("ori", "stokes"),
            circle_biref=wanted("biref", "stokes"),
            clean_ret=wanted("ret", "stokes"),
            mus=self.maps["mus"][y] if "mus" in self.maps else _NOTHING,
        )
        near_surface = RiseNear(np.clip(np.rint(self._surface[y]), 0, depth - 1), self._taps, NEAR_PX)
        scratch = self._scratch.get()
        try:
            maps_of_line(
                self._slot(y),
                self._depths,
                self._window(y),
                near_surface,
                self._circles,
                self._orientation,
                self._constants,
                scratch.maps,
                maps,
            )
        finally:
            self._scratch.put(scratch)

        if options.functions:
            source = self._source(y)
            for name, function in options.functions.items():
                self.maps[name][y, : self.shape[0]] = function(source)[:, 0]

    def _source(self, y: int) -> MapSource:
        """Return one B-line as maps in NumPy take it."""
        options = self.options
        a_lines, _, depth = self.shape
        slot = self._slot(y).reshape(self._n_strips, self.channels, -1, 2, LANES)[:, :, self.cut : self.cut + depth]
        real, imaginary = slot.transpose(3, 1, 0, 4, 2).reshape(2, self.channels, 1, self._width, depth)[
            ..., :a_lines, :
        ]
        jones = np.empty((self.channels, a_lines, 1, depth), np.complex64)
        jones.real, jones.imag = real.swapaxes(1, 2), imaginary.swapaxes(1, 2)
        profiles = TileProfiles(
            jones=jones if options.flip_z else jones[..., ::-1],
            depth_step_um=options.depth_step_um,
            wavelength_um=options.wavelength_um,
            phase_offset_deg=options.phase_offset_deg,
            flip_phase=options.flip_phase,
        )
        window = depth_window(
            self._surface[y, :a_lines, np.newaxis], depth_samples=depth, offset=options.offset, depth=options.depth
        )
        return MapSource(profiles, window, options.offset)

    def _unwrap(self, rows: Sequence[int]) -> None:
        """Replace the birefringence of some B-lines by that of retardance unwrapped in 3-D, slab by slab."""
        options = self.options
        a_lines, b_lines, depth = self.shape
        first, last = max(0, rows[0] - self._halo), min(b_lines, rows[-1] + 1 + self._halo)
        window = depth_window(
            self._surface[first:last, :a_lines].T, depth_samples=depth, offset=options.offset, depth=options.depth
        )
        top = max(0, int(window.index.min()) - UNWRAP_REACH_PX)
        bottom = min(depth, int(window.index.max()) + 1 + UNWRAP_REACH_PX)
        slab = {name: np.empty((bottom - top, last - first, a_lines), np.float32) for name in ("R3D", "O3D")}
        volumes = LineVolumes(_NOTHING, slab["R3D"].reshape(-1), slab["O3D"].reshape(-1))
        skipped = top if options.flip_z else depth - bottom
        depths = Depths(self.cut + skipped, bottom - top, not options.flip_z)
        nothing = np.empty((bottom - top) * LANES, np.float32)
        for y in range(first, last):
            for strip in range(self._n_strips):
                slot = self._slot(y)
                pitch = slot.shape[2]
                volumes_of_strip(
                    Strip(slot.reshape(-1), strip * self.channels * pitch, pitch, self.channels),
                    nothing,
                    depths,
                    self._orientation,
                    (y - first) * a_lines + strip * LANES,
                    (last - first) * a_lines,
                    min(LANES, a_lines - strip * LANES),
                    volumes,
                )
        values = birefringence_unwrapped(
            slab["R3D"].transpose(2, 1, 0),
            slab["O3D"].transpose(2, 1, 0),
            DepthWindow(window.index - top, window.valid),
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
        if self._block is not None:
            self._go_on(self._block)
        for futures in (*self._mapping, *self._sinking):
            _wait(futures)
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
    index, fraction = [], []
    for c in range(plan.channels):
        positions = np.arange(plan.samples, dtype=np.float64) if plan.positions is None else plan.positions[c]
        left = np.clip(np.floor(positions), 0, plan.samples - 2).astype(np.int64)
        index.append(left)
        fraction.append((positions - left).astype(np.float32))
    shape = (plan.channels, plan.samples)
    reference = np.zeros(shape, np.float32) if plan.reference is None else plan.reference
    phasor = np.ones(shape, np.complex64) if plan.phasor is None else plan.phasor
    split = split_of(plan.transform_length) is not None
    radices = () if split else radices_of(plan.transform_length) or ()
    return _Spectral(
        index=index,
        fraction=fraction,
        groups=max(groups_needed(left) for left in index),
        reference=np.ascontiguousarray(reference),
        transform=SpectralTransform(
            phasor_re=np.ascontiguousarray(phasor.real),
            phasor_im=np.ascontiguousarray(phasor.imag),
            radices=np.array(radices, np.int64),
            twiddles=split_twiddles_of(plan.transform_length)
            if split
            else twiddles_of(radices)
            if radices
            else _NOTHING,
        ),
    )

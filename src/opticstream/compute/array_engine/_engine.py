"""The reconstruction of one tile by array formulas: B-lines in, in order; volumes by blocks and maps out.

Blocks of B-lines are copied to the device, and everything that needs no other B-line is made of them at once. Profiles
stay on the device until the surface filter has looked far enough ahead, and are dropped when their maps are made. While
the device works on one block, the host takes the results of the one before.

On the host remain the filter of the surface (the 3 x 3 median, and the sheet of the method `robust`, which goes from
cell to cell and would keep few of a card's cores busy), and maps that are functions of NumPy arrays.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.array_engine._device import ArrayDevice, Pending
from opticstream.compute.reconstruction import (
    CELL_PX,
    LOOKAHEAD_LINES,
    MapSource,
    Sink,
    SpectralPlan,
    SurfaceSheet,
    TileOptions,
    TileProfiles,
    complex_tile_from_jones,
    counts_to_work_on,
    depth_window,
    edge_response,
    jones_from_complex_tile,
    median_3x3,
    profiles_from_spectra,
    spectral_tables,
    strongest_rise_near,
    unfiltered_surface_from_gradient,
    unfiltered_surface_from_threshold,
)
from opticstream.model.modalities import SURFACE

Floats = NDArray[np.float32]

_SINKS_UNDER_WAY = 2


@dataclass(slots=True)
class _Block:
    """B-lines whose results are on their way to the host."""

    first: int
    stop: int
    figures: dict[str, Pending]
    volumes: dict[str, Pending]


@dataclass(slots=True)
class _Kept:
    """Profiles on the device, shape (channels, x, y, z), depth downwards."""

    first: int
    stop: int
    jones: Any


def _lines_ahead(options: TileOptions) -> int:
    """Return how many B-lines must have come after one before its maps can be made."""
    return (LOOKAHEAD_LINES + CELL_PX if options.finds_sheet else 1) + options.halo_lines


def device_bytes(
    options: TileOptions,
    /,
    *,
    block: int,
    samples: int,
    zero_padding: int,
    a_lines: int,
    channels: int,
    bytes_per_sample: int = 2,
) -> int:
    """Return about how much memory of the device a tile takes in blocks of `block` B-lines.

    Counted are two blocks of counts, the spectra of one channel with the copies that formulas make of them, profiles of
    two blocks and of those that wait for the surface, the intensity with its edge response, and volumes of two blocks.
    """
    spectra = a_lines * samples * 4
    bins = a_lines * samples * zero_padding // 2
    counts = 2 * channels * a_lines * samples * bytes_per_sample
    of_channel = 3 * spectra + 2 * bins * 16  # complex spectra, padded, and their transform
    profiles = channels * bins * 8
    of_depths = 8 * bins * 4 * (4 if options.halo_lines else 1)
    volumes = 2 * sum(options.volume_widths(channels).values()) * bins * 4
    per_line = counts + of_channel + 2 * profiles + of_depths + volumes
    return block * per_line + (_lines_ahead(options) + 1) * profiles


def host_bytes_per_b_line(*, samples: int, zero_padding: int, a_lines: int, channels: int, volumes: int) -> int:
    """Return the bytes of the host that one more B-line in a block costs: counts, and volumes on their way out."""
    raw = a_lines * channels * samples * 2
    return 3 * raw + (2 + _SINKS_UNDER_WAY) * volumes * a_lines * samples * zero_padding * 2


class ArrayEngine:
    """Reconstructs the products of one tile from its B-lines, in order.

    Parameters
    ----------
    options : TileOptions
        What is made. `functions` has a function for each map.
    a_lines, b_lines : int
        Size of the tile.
    channels : int
        1 or 2; with 1 there are no polarization products.
    depth, cut : int
        Depth samples that are kept, and those dropped before them.
    plan : SpectralPlan, optional
        Needed for `add_spectra`; the transform is that of the array library.
    device : ArrayDevice
        Where the work is done.
    executor : Executor, optional
        Where the sink is called, and the smooth sheet of the surface is found; default: in the caller's thread.
    sink : callable, optional
        Gets the volumes.

    Notes
    -----
    Call `add_spectra` (or `add_complex`) for every block, then `finish` for the maps. Blocks may have any size.
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
        device: ArrayDevice,
        executor: Executor | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.options = options
        self.shape = (a_lines, b_lines, depth)
        self.channels = channels
        self.cut = cut
        self._device = device
        self._executor, self._sink = executor, sink
        self._plan = None if plan is None else dataclasses.replace(plan, fft=None)
        self._tables: list[Any] = []
        self._halo = options.halo_lines
        self._sheet: SurfaceSheet | None = None
        if options.finds_sheet:
            self._sheet = SurfaceSheet(a_lines=a_lines, b_lines=b_lines, compiled=True, executor=executor)
        self._cells: Any = None
        """Sums over cells along x, of the B-lines that do not fill a row of cells yet; shape (y, cells, z)."""
        self._raw_surface = np.zeros((a_lines, b_lines), np.float32)
        self._surface = np.zeros((a_lines, b_lines), np.float32)
        if not isinstance(options.surface, str):
            given = min(options.surface, depth - 1) if isinstance(options.surface, int) else options.surface
            self._raw_surface[:], self._surface[:] = given, given
        self._confidence = np.ones((a_lines, b_lines), np.float32)
        self._floor = np.zeros((a_lines, b_lines), np.float32)
        self.section_x = np.zeros((a_lines, depth), np.float32)
        """Intensity (dB) of the middle B-line, shape (x, z)."""
        self.section_y = np.zeros((b_lines, depth), np.float32)
        """Intensity (dB) of the middle A-line of every B-line, shape (y, z)."""
        self.maps = {name: np.zeros((a_lines, b_lines), np.float32) for name in options.maps if name != SURFACE}
        self._received = self._emitted = 0
        self._kept: deque[_Kept] = deque()
        self._block: _Block | None = None
        self._mapping: deque[tuple[int, int, dict[str, Pending]]] = deque()
        self._sinking: deque[Future[None]] = deque()

    def add_spectra(self, counts: NDArray[Any], /) -> None:
        """Take the next B-lines, counts of shape (b, channels, A-lines, samples).

        The array must not change until the next call has returned.
        """
        plan = self._plan
        assert plan is not None
        with self._device.at_work(), self._device.copied(counts_to_work_on(counts)) as copy:
            xp = self._device.library
            if not self._tables:
                self._tables = [spectral_tables(plan, c, xp=xp) for c in range(self.channels)]
            lines, _, a_lines, _ = copy.shape
            jones = xp.empty((self.channels, lines, a_lines, plan.depth), dtype=xp.complex64)
            for c, tables in enumerate(self._tables):
                jones[c, ...] = profiles_from_spectra(copy[:, c, ...], plan, tables)
            block = self._analysed(xp.permute_dims(jones, (0, 2, 1, 3)))
        self._go_on_after(block)

    def add_complex(self, tile: Floats, /) -> None:
        """Take the next B-lines of a complex tile, shape (2 * channels * A-lines, b, z), depth reversed."""
        profiles = jones_from_complex_tile(tile, channels=self.channels)
        with self._device.at_work(), self._device.copied(profiles) as copy:
            xp = self._device.library
            block = self._analysed(xp.asarray(copy, copy=True))
        self._go_on_after(block)

    def _analysed(self, jones: Any) -> _Block:
        """Ask for everything of a block that needs no other B-line; depth is as the spectrum gives it."""
        options, device, xp = self.options, self._device, self._device.library
        a_lines, b_lines, depth = self.shape
        first = self._received
        stop = self._received = first + jones.shape[2]
        downwards = jones if options.flip_z else jones[..., ::-1]
        self._kept.append(_Kept(first, stop, downwards))
        profiles = self._profiles(downwards)
        intensity = profiles.intensity_db
        figures = {
            "floor": xp.mean(intensity[..., -max(1, depth // 20) :], axis=-1),
            "section_y": intensity[a_lines // 2, ...],
        }
        middle = b_lines // 2
        if first <= middle < stop:
            figures["section_x"] = intensity[:, middle - first, :]
        if self._sheet is not None:
            figures |= self._rows_of_cells(intensity, last=stop == b_lines)
        elif isinstance(options.surface, str):
            figures["surface"] = (
                unfiltered_surface_from_threshold(intensity, threshold_db=options.surface_threshold_db)
                if options.surface == "gradient_threshold"
                else unfiltered_surface_from_gradient(intensity)
            )
        volumes = {}
        for name in options.volumes:
            values = complex_tile_from_jones(jones) if name == "complex" else profiles.volume(name)
            volumes[name] = device.fetched(xp.permute_dims(values, (2, 1, 0)))
        return _Block(first, stop, {name: device.fetched(values) for name, values in figures.items()}, volumes)

    def _profiles(self, downwards: Any) -> TileProfiles:
        options = self.options
        return TileProfiles(
            jones=downwards,
            depth_step_um=options.depth_step_um,
            wavelength_um=options.wavelength_um,
            phase_offset_deg=options.phase_offset_deg,
            flip_phase=options.flip_phase,
        )

    def _rows_of_cells(self, intensity: Any, *, last: bool) -> dict[str, Any]:
        """Return the mean intensity of the rows of cells that are complete, shape (rows, cells, z), if any are."""
        xp = self._device.library
        a_lines, lines, depth = intensity.shape
        cells = -(-a_lines // CELL_PX)
        padded = xp.zeros((lines, cells * CELL_PX, depth), dtype=xp.float32)
        padded[:, :a_lines, :] = xp.permute_dims(intensity, (1, 0, 2))
        sums = xp.sum(xp.reshape(padded, (lines, cells, CELL_PX, depth)), axis=2)
        if self._cells is not None:
            sums = xp.concat([self._cells, sums], axis=0)
        full = sums.shape[0] // CELL_PX
        whole, rest = sums[: full * CELL_PX, ...], sums[full * CELL_PX :, ...]
        rows = [xp.sum(xp.reshape(whole, (full, CELL_PX, cells, depth)), axis=1) / CELL_PX] if full else []
        self._cells = rest if rest.shape[0] and not last else None
        if last and rest.shape[0]:
            rows.append(xp.sum(rest, axis=0, keepdims=True) / rest.shape[0])
        if not rows:
            return {}
        widths = np.minimum(CELL_PX, a_lines - CELL_PX * np.arange(cells)).astype(np.float32)
        return {"cells": xp.concat(rows, axis=0) / xp.asarray(widths)[:, None]}

    def _go_on_after(self, block: _Block) -> None:
        before, self._block = self._block, block
        if before is not None:
            self._go_on(before)

    def _go_on(self, block: _Block) -> None:
        """Take the results of a block, pass its volumes on, and ask for the maps that it makes possible."""
        b_lines = self.shape[1]
        here = slice(block.first, block.stop)
        figures = {name: arrived() for name, arrived in block.figures.items()}
        self._floor[:, here] = figures["floor"]
        self.section_y[here] = figures["section_y"]
        if "section_x" in figures:
            self.section_x[:] = figures["section_x"]
        if "surface" in figures:
            self._raw_surface[:, here] = figures["surface"]
        self._pass_on(block)
        ready = block.stop - 1 - self._halo
        if self._sheet is not None:
            if "cells" in figures:
                self._sheet.add(figures["cells"])
            ready = min(self._sheet.lines_known(), block.stop) - self._halo
        ready = b_lines if block.stop == b_lines else max(self._emitted, ready)
        if ready == self._emitted:
            return
        self._filter_surface(min(b_lines, ready + self._halo))
        with self._device.at_work():
            for kept in list(self._kept):
                begin, end = max(self._emitted, kept.first), min(ready, kept.stop)
                if begin < end:
                    self._mapping.append((begin, end, self._maps_of(begin, end)))
            while self._kept and self._kept[0].stop <= ready - self._halo:
                self._kept.popleft()
        self._emitted = ready
        while len(self._mapping) > 2:
            self._take_maps()

    def _pass_on(self, block: _Block) -> None:
        sink = self._sink
        if sink is None or not block.volumes:
            return
        volumes = {name: arrived() for name, arrived in block.volumes.items()}
        if self._executor is None:
            sink(block.first, volumes)
            return
        while len(self._sinking) >= _SINKS_UNDER_WAY:
            self._sinking.popleft().result()
        self._sinking.append(self._executor.submit(sink, block.first, volumes))

    def _filter_surface(self, stop: int) -> None:
        """Bring the filtered surface up to B-line `stop`."""
        if not isinstance(self.options.surface, str):
            return
        b_lines = self.shape[1]
        here = slice(self._emitted, stop)
        if self._sheet is not None:
            self._surface[:, here], self._confidence[:, here] = self._sheet.lines(self._emitted, stop)
            return
        first, last = max(0, self._emitted - 1), min(b_lines, stop + 1)
        filtered = median_3x3(self._raw_surface[:, first:last])
        self._surface[:, here] = filtered[:, self._emitted - first : stop - first]

    def _maps_of(self, begin: int, end: int) -> dict[str, Pending]:
        """Ask for the maps of some B-lines."""
        options, device, xp = self.options, self._device, self._device.library
        depth = self.shape[2]
        first, last = max(0, begin - self._halo), min(self.shape[1], end + self._halo)
        parts = [
            kept.jones[:, :, max(first, kept.first) - kept.first : min(last, kept.stop) - kept.first, :]
            for kept in self._kept
            if kept.first < last and kept.stop > first
        ]
        profiles = self._profiles(parts[0] if len(parts) == 1 else xp.concat(parts, axis=2))
        surface = xp.asarray(np.ascontiguousarray(self._surface[:, first:last]))
        window = depth_window(surface, depth_samples=depth, offset=options.offset, depth=options.depth)
        source = MapSource(profiles, window, options.offset)
        made = {name: options.functions[name](source) for name in self.maps}
        if self._sheet is not None:
            made["surfraw"] = strongest_rise_near(edge_response(profiles.intensity_db), surface)
        return {
            name: device.fetched(xp.asarray(values)[:, begin - first : end - first]) for name, values in made.items()
        }

    def _take_maps(self) -> None:
        begin, end, made = self._mapping.popleft()
        whole = {**self.maps, "surfraw": self._raw_surface}
        for name, arrived in made.items():
            whole[name][:, begin:end] = arrived()

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
            self._block = None
        while self._mapping:
            self._take_maps()
        while self._sinking:
            self._sinking.popleft().result()
        self._kept.clear()
        return {**self.maps, "surf": self._surface, "surfraw": self._raw_surface}

    @property
    def confidence(self) -> Floats:
        """Confidence of the surface, 0..1, shape (x, y); 1 everywhere for methods that give none."""
        return self._confidence

    @property
    def noise_db(self) -> float:
        """Median over the A-lines of the mean intensity of the deepest twentieth."""
        return float(np.median(self._floor))

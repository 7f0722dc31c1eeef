"""The surface as the smooth sheet of strongest rise, so that speckle, bubbles and vessels do not punch holes in it.

A-lines are averaged in cells of 4 x 4, which all but removes speckle; the edge response of the cells is summed along
paths from four sides, each step between cells costing in proportion to the change of depth (semi-global matching,
Hirschmueller 2008), and every cell takes the depth of the highest sum. A bubble is wider than a cell and as bright as
tissue, so a second look replaces cells far from the trend of their surroundings, a robust quadratic surface over
13 x 13 cells. Both look a fixed number of cells ahead in y, so that a tile can stream through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.arrays import library_of
from opticstream.compute.reconstruction._surface import EDGE_HALF_WIDTH_PX, edge_response, edge_taps

CELL_PX = 4
DEPTH_STEP_PX = 2
LOOKAHEAD_CELLS = 5
TREND_CELLS = 6
"""Cells on either side that make the trend; bubbles must cover less than half of them."""
FROM_TREND_PX = 4
_TREND_SCALES_PX = (40.0, 16.0, 8.0, 5.0, 5.0)
LEAST_RISE_DB = 2.0
"""Smallest rise of a cell that is used for the trend."""
COST_DB_PER_PX = 0.25
"""Rise in dB that a change of depth by one sample between neighbouring cells must be worth."""
LOOKAHEAD_LINES = (LOOKAHEAD_CELLS + TREND_CELLS + 2) * CELL_PX
"""B-lines that must have come after one before its surface is known."""
RIVAL_DISTANCE_PX = 16
NEAR_PX = 12
"""How far from the sheet the surface of a single A-line is sought."""

Floats = NDArray[np.float32]


def cell_means(image: Floats, /) -> Floats:
    """Return means over cells of 4 along the first axis; the last cell may be smaller.

    Examples
    --------
    >>> cell_means(np.array([1, 3, 5, 7, 100], np.float32)).tolist()
    [4.0, 100.0]
    """
    n = image.shape[0]
    starts = np.arange(0, n, CELL_PX)
    sizes = np.minimum(CELL_PX, n - starts).astype(np.float32)
    sums = np.add.reduceat(image, starts, axis=0)
    return np.asarray(sums / sizes.reshape(-1, *(1,) * (image.ndim - 1)), dtype=np.float32)


def _spread(total: Floats) -> Floats:
    """Return the best of all depths (last axis) less the cost of the way, by steps of 1, 2, 4, ... samples."""
    best = total - total.max(axis=-1, keepdims=True)  # only differences matter; sums must not grow without end
    step = 1
    while step < total.shape[-1]:
        cost = np.float32(COST_DB_PER_PX * step * DEPTH_STEP_PX)
        moved = best.copy()
        np.maximum(moved[..., step:], best[..., :-step] - cost, out=moved[..., step:])
        np.maximum(moved[..., :-step], best[..., step:] - cost, out=moved[..., :-step])
        best, step = moved, 2 * step
    return np.asarray(best)


def _edges(intensity_db: Floats) -> Floats:
    return np.maximum(edge_response(intensity_db), np.float32(-100))


def _add_paths_along_x(response: Floats, sums: Floats) -> None:
    n_cells = response.shape[1]
    for order in (range(n_cells), range(n_cells - 1, -1, -1)):
        carried = np.zeros_like(response[:, 0])
        for i in order:
            sums[:, i] += carried
            carried = _spread(response[:, i] + carried)


class SurfaceSheet:
    """Finds the sheet of strongest rise; takes rows of cells in order and returns them some rows later.

    Parameters
    ----------
    a_lines, b_lines : int
        Size of the tile.
    compiled : bool
        Use compiled loops: the same numbers, sooner for large tiles, later for small ones.
    executor : Executor, optional
        Looks at several rows of cells at once, where several are added together: the same numbers.
    """

    def __init__(self, *, a_lines: int, b_lines: int, compiled: bool = False, executor: Executor | None = None) -> None:
        self._each: Callable[..., Iterable[Any]] = map if executor is None else executor.map
        self._spread = _spread
        self._add_paths_along_x = _add_paths_along_x
        self._edges = _edges
        self._trend_and_count = _trend_and_count
        self._rivals = _rivals
        if compiled:
            from opticstream.compute.reconstruction import _sheet_kernels as sheet_kernels

            cost = np.float32(COST_DB_PER_PX * DEPTH_STEP_PX)
            taps = edge_taps().astype(np.float32)

            def edges(intensity_db: Floats) -> Floats:
                out = np.empty_like(intensity_db)
                rows = intensity_db.reshape(-1, intensity_db.shape[-1])
                sheet_kernels.edges_of_cells(rows, taps, EDGE_HALF_WIDTH_PX, out.reshape(rows.shape))
                return out

            def trend_and_count(around: Floats) -> tuple[Floats, NDArray[np.intp]]:
                trend, count = np.empty(around.shape[1], np.float32), np.empty(around.shape[1], np.intp)
                sheet_kernels.trend_of_cells(around, _DESIGN, _RIDGE, np.array(_TREND_SCALES_PX), trend, count)
                return trend, count

            def rivals(response: Floats, surface: NDArray[np.intp]) -> Floats:
                rival = np.empty(len(response), np.float32)
                sheet_kernels.largest_rivals(response, surface, RIVAL_DISTANCE_PX, rival)
                return rival

            self._edges = edges
            self._trend_and_count = trend_and_count
            self._rivals = rivals
            self._spread = lambda total: sheet_kernels.spread(total, cost)
            self._add_paths_along_x = lambda response, sums: sheet_kernels.add_paths_along_x(response, cost, sums)
        self._a_lines, self._b_lines = a_lines, b_lines
        self._rows = -(-b_lines // CELL_PX)
        self._forward: Floats | None = None
        self._waiting: deque[tuple[Floats, Floats, Floats]] = deque()  # full response, response, sums but from below
        self._guesses: deque[Floats] = deque()
        self._dropped = 0
        self._seen: deque[tuple[Floats, Floats]] = deque()
        self._taken = 0
        self._surface: list[Floats] = []
        self._confidence: list[Floats] = []

    def add(self, intensity_db: Floats, /) -> None:
        """Take the next rows of cells: mean intensity in dB, shape (rows, cells in x, z)."""
        for full, response, sums in self._each(self._row_by_itself, intensity_db[:, np.newaxis]):
            if self._forward is not None:
                sums += self._forward
            previous = np.float32(0) if self._forward is None else self._forward
            self._forward = self._spread(response + previous)
            self._waiting.append((full, response, sums))
        self._taken += len(intensity_db)
        complete = self._taken == self._rows
        self._decide(len(self._waiting) - (0 if complete else LOOKAHEAD_CELLS))
        self._refine(len(self._seen) - (0 if complete else TREND_CELLS))

    def _row_by_itself(self, intensity_db: Floats) -> tuple[Floats, Floats, Floats]:
        """Return response, response at fewer depths, and the sums along x, of one row of cells, shape (1, cells, z)."""
        full = self._edges(intensity_db)
        full[np.count_nonzero(intensity_db > 0, axis=-1) < 2 * EDGE_HALF_WIDTH_PX] = 0
        response = np.ascontiguousarray(full[..., ::DEPTH_STEP_PX])
        sums = response.copy()
        self._add_paths_along_x(response, sums)
        return full[0], response[0], sums[0]

    def _decide(self, n: int) -> None:
        """First look at the next `n` rows of cells."""
        if n <= 0:
            return
        waiting = [*self._waiting]
        windows = [waiting[row : row + LOOKAHEAD_CELLS + 1] for row in range(n)]
        for guess, total in self._each(self._first_look, windows):
            full, _, _ = self._waiting.popleft()
            self._guesses.append(guess)
            self._seen.append((full, total))

    def _first_look(self, rows: list[tuple[Floats, Floats, Floats]]) -> tuple[Floats, Floats]:
        """Return the depth of the highest sum, NaN where nothing rises, and the sums, for the first of some rows."""
        from_below: Floats | None = None
        for _, response, _ in reversed(rows[1:]):
            from_below = self._spread(response if from_below is None else response + from_below)
        _, response, sums = rows[0]
        total = sums if from_below is None else sums + from_below
        best = total.argmax(axis=-1)
        rise = np.take_along_axis(response, best[:, np.newaxis], axis=-1)[:, 0]
        return np.where(rise >= LEAST_RISE_DB, DEPTH_STEP_PX * best, np.nan).astype(np.float32), total

    def _refine(self, n: int) -> None:
        """Second look at the next `n` rows: near the trend of the cells around them."""
        if n <= 0:
            return
        first = len(self._surface)
        nothing = np.full(len(self._guesses[0]), np.nan, np.float32)
        known = range(self._dropped, self._dropped + len(self._guesses))
        around = [
            np.stack(
                [
                    self._guesses[other - self._dropped] if other in known else nothing
                    for other in range(row - TREND_CELLS, row + TREND_CELLS + 1)
                ]
            )
            for row in range(first, first + n)
        ]
        seen = [self._seen.popleft() for _ in range(n)]
        for surface, confidence in self._each(self._second_look, around, seen):
            self._surface.append(surface)
            self._confidence.append(confidence)
        while self._dropped < len(self._surface) - TREND_CELLS:  # no later row looks back so far
            self._guesses.popleft()
            self._dropped += 1

    def _second_look(self, around: Floats, seen: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        """Return surface and confidence of the cells of one row."""
        full, total = seen
        trend, known_cells = self._trend_and_count(around)
        depth_index = _peak(total, total.argmax(axis=-1))
        # a bubble, a hole, or nothing to see: go with the others, the less surely the fewer they are
        allowed = FROM_TREND_PX * np.sqrt((2 * TREND_CELLS + 1) ** 2 / np.maximum(known_cells, 1))
        stray = np.abs(depth_index - trend) > allowed
        depth_index = np.where(stray, np.clip(trend, 0, full.shape[-1] - 1), depth_index).astype(np.float32)
        return depth_index, _confidence(full, np.rint(depth_index).astype(np.intp), self._rivals)

    def lines_known(self) -> int:
        """Return the number of B-lines, from the first on, whose surface can be given."""
        if len(self._surface) == self._rows:
            return self._b_lines
        return max(0, (len(self._surface) - 2) * CELL_PX)

    def lines(self, first: int, last: int, /) -> tuple[Floats, Floats]:
        """Return surface (depth index, with fractions) and confidence (0..1) of B-lines first..last-1, shape (x, y)."""
        y = np.arange(first, last)
        x = np.arange(self._a_lines)
        low = max(0, first // CELL_PX - 2)  # rows further up are not used
        rows = np.stack(self._surface[low:])
        surface = _interpolated(rows, self._b_lines, y, offset=low)
        surface = _interpolated(surface.T, self._a_lines, x)
        confidence = np.stack(self._confidence)[y // CELL_PX][:, x // CELL_PX].T
        return surface.astype(np.float32), confidence


def _windows(around: Floats) -> Floats:
    """Return the surroundings of every cell of the middle row, shape (cells, rows, 2 * TREND_CELLS + 1)."""
    padded = np.full((around.shape[0], around.shape[1] + 2 * TREND_CELLS), np.nan, np.float32)
    padded[:, TREND_CELLS:-TREND_CELLS] = around
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * TREND_CELLS + 1, axis=1).swapaxes(0, 1)


def _basis() -> NDArray[np.float64]:
    """Return the values of 1, x, y, xy, xx, yy at the cells of a window, shape (6, cells), x and y within -1..1."""
    offsets = np.arange(-TREND_CELLS, TREND_CELLS + 1) / TREND_CELLS
    y, x = (grid.ravel() for grid in np.meshgrid(offsets, offsets, indexing="ij"))
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y])


_DESIGN = _basis()
_RIDGE = np.array([1e-9, 0.1, 0.1, 0.3, 0.3, 0.3])
"""Shrinks slopes, and curvature even more, where few cells are known."""


def _trend_and_count(around: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Return the trend at the middle row of guesses of shape (rows, cells), and the number of cells it is based on.

    A quadratic surface per cell, fitted by iteratively re-weighted least squares (Tukey's biweight) from the median on;
    NaN if no cell in the neighbourhood is known.
    """
    cells = around.shape[1]
    values = _windows(around).reshape(cells, -1).astype(np.float64)
    known = ~np.isnan(values)
    ordered = np.sort(values, axis=1)  # NaN comes last
    n = known.sum(axis=1)
    middle = np.where(n > 0, ordered[np.arange(cells), np.maximum(n - 1, 0) // 2], 0.0)
    values = np.where(known, values - middle[:, np.newaxis], 0)  # so that the ridge does not pull the level
    products = (_DESIGN[:, np.newaxis] * _DESIGN).reshape(-1, _DESIGN.shape[1])
    fitted: NDArray[np.float64] = np.zeros_like(values)
    coefficients: NDArray[np.float64] = np.zeros((cells, 6))
    for scale_px in _TREND_SCALES_PX:
        weight = known * np.clip(1 - ((values - fitted) / scale_px) ** 2, 0, None) ** 2
        normal = (weight @ products.T).reshape(cells, 6, 6) + np.diag(_RIDGE)
        right = (weight * values) @ _DESIGN.T
        coefficients = np.asarray(np.linalg.solve(normal, right[..., np.newaxis])[..., 0], dtype=np.float64)
        fitted = np.asarray(coefficients @ _DESIGN, dtype=np.float64)
    trend = np.where(n > 0, coefficients[:, 0] + middle, np.nan).astype(np.float32)
    return trend, np.asarray(n, dtype=np.intp)


def _peak(total: Floats, best: NDArray[np.intp]) -> Floats:
    """Return the depth of the highest sum, between samples by a parabola."""
    cells = np.arange(len(best))
    inner = np.clip(best, 1, total.shape[-1] - 2)
    left, middle, right = (total[cells, inner + d].astype(np.float64) for d in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where((bend < 0) & (inner == best), 0.5 * (left - right) / np.where(bend < 0, bend, -1), 0)
    return np.asarray(DEPTH_STEP_PX * (best + np.clip(shift, -0.5, 0.5)), dtype=np.float32)


def _centres(n: int) -> NDArray[np.float64]:
    starts = np.arange(0, n, CELL_PX)
    return starts + (np.minimum(CELL_PX, n - starts) - 1) / 2


def _interpolated(values: Floats, n: int, wanted: NDArray[np.intp], *, offset: int = 0) -> Floats:
    """Interpolate linearly between the centres of cells along the first axis, and beyond the outer ones."""
    centres = _centres(n)[offset : offset + len(values)]
    if len(centres) == 1:
        return np.repeat(values, len(wanted), axis=0)
    left = np.clip(np.searchsorted(centres, wanted, side="right") - 1, 0, len(centres) - 2)
    part = (wanted - centres[left]) / (centres[left + 1] - centres[left])
    return np.asarray(values[left] + (part[:, np.newaxis] * (values[left + 1] - values[left])), dtype=np.float32)


def _rivals(response: Floats, surface: NDArray[np.intp]) -> Floats:
    """Return the largest response of every cell that is not near the surface, at least 0."""
    z = np.arange(response.shape[-1])
    far = np.abs(z - surface[:, np.newaxis]) > RIVAL_DISTANCE_PX
    return np.asarray(np.where(far, response, 0).max(axis=-1, initial=0))


def _confidence(
    response: Floats, surface: NDArray[np.intp], rivals: Callable[[Floats, NDArray[np.intp]], Floats]
) -> Floats:
    """Return how far the rise at the surface exceeds its strongest rival elsewhere: 1 none, 0.5 equal, 0 no rise."""
    cells = np.arange(len(surface))
    own = np.maximum(response[cells, np.clip(surface, 0, response.shape[-1] - 1)], 0)
    rival = rivals(response, surface)
    return np.asarray(own / np.maximum(own + rival, np.float32(1e-6)), dtype=np.float32)


def surface_sheet(intensity_db: Floats, /) -> tuple[Floats, Floats]:
    """Return the surface of a whole tile as a smooth sheet, and its confidence.

    Parameters
    ----------
    intensity_db : ndarray, shape (x, y, z)
        Intensity in dB.

    Returns
    -------
    surface : ndarray, shape (x, y)
        Depth index, with fractions.
    confidence : ndarray, shape (x, y)
        0..1: rise at the surface over that plus the strongest rise elsewhere in the cell of 4 x 4 A-lines.

    Examples
    --------
    A bright bubble above the surface and a dark vessel below it leave the sheet as it is:

    >>> tile = np.full((24, 24, 120), 40, np.float32)
    >>> tile[:, :, 60:] = 60
    >>> tile[8:12, 8:12, 20:25] = 80
    >>> tile[16:20, 4:8, 60:90] = 40
    >>> surface, confidence = surface_sheet(tile)
    >>> bool(abs(surface - 60).max() <= 1), bool(confidence[9, 9] < confidence[0, 0])
    (True, True)
    """
    sheet = SurfaceSheet(a_lines=intensity_db.shape[0], b_lines=intensity_db.shape[1])
    sheet.add(cell_means(np.ascontiguousarray(cell_means(intensity_db).swapaxes(0, 1))))
    return sheet.lines(0, intensity_db.shape[1])


def strongest_rise_near(response: Floats, surface: Floats, /, *, reach_px: int = NEAR_PX) -> Floats:
    """Return the depth of the strongest rise within `reach_px` of a surface, A-line by A-line, unsmoothed.

    `response` has shape (x, y, z), as from `edge_response`; `surface` (x, y). Both may belong to any array library.
    """
    xp = library_of(response)
    centre = xp.astype(xp.round(surface), xp.int64)[..., None]
    near = xp.clip(centre + xp.arange(-reach_px, reach_px + 1), 0, response.shape[-1] - 1)
    best = xp.argmax(xp.take_along_axis(response, near, axis=-1), axis=-1)
    return xp.astype(xp.take_along_axis(near, best[..., None], axis=-1)[..., 0], xp.float32)

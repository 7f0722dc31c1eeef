"""The depth shift of every A-line, cut into stretches along which the inner loops are plain and contiguous."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class Runs(NamedTuple):
    """Stretches of equal shift along x, over all rows of a tile.

    Attributes
    ----------
    row_start : ndarray of int, shape (rows + 1,)
        First run of every row.
    start, stop, shift : ndarray of int, shape (runs,)
        Pixels [start, stop) of the row are read from depth ``z + shift``.
    """

    row_start: IntArray
    start: IntArray
    stop: IntArray
    shift: IntArray

    @property
    def deepest(self) -> int:
        """Largest shift."""
        return int(self.shift.max(initial=0))

    @property
    def shallowest(self) -> int:
        """Smallest shift."""
        return int(self.shift.min(initial=0))


def runs_from_shift(shift: NDArray[np.integer], /) -> Runs:
    """Return the runs of a shift map indexed (y, x).

    Examples
    --------
    >>> runs = runs_from_shift(np.array([[0, 0, 1], [2, 2, 2]]))
    >>> runs.row_start.tolist(), runs.start.tolist(), runs.stop.tolist(), runs.shift.tolist()
    ([0, 2, 3], [0, 2, 0], [2, 3, 3], [0, 1, 2])
    """
    width = shift.shape[1]
    row_start, start, stop, value = [0], [], [], []
    for row in shift:
        edges = np.flatnonzero(np.diff(row)) + 1
        bounds = [0, *edges.tolist(), width]
        start += bounds[:-1]
        stop += bounds[1:]
        value += [int(row[b]) for b in bounds[:-1]]
        row_start.append(len(start))
    return Runs(*(np.array(a, np.int64) for a in (row_start, start, stop, value)))


def shift_from_focus(focus_px: NDArray[np.floating], /) -> NDArray[np.int64]:
    """Return how many samples deeper each A-line is read, ``round(f) - round(min f)``; same shape.

    Examples
    --------
    >>> shift_from_focus(np.array([[3.6, 5.2]])).tolist()
    [[0, 1]]
    """
    if not np.isfinite(focus_px).all():
        raise ValueError("the focus map must be finite everywhere")
    rounded = np.floor(np.asarray(focus_px, np.float64) + 0.5).astype(np.int64)
    return rounded - int(rounded.min())

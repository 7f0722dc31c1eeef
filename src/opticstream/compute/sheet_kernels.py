# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Compiled inner loops of `opticstream.compute.robust_surface`, for tiles that stream."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def _spread_line(total, step_cost, out):
    top = total[0]
    for z in range(1, total.size):
        top = max(top, total[z])
    best = total[0] - top
    out[0] = best
    for z in range(1, total.size):
        best = max(total[z] - top, best - step_cost)
        out[z] = best
    for z in range(total.size - 2, -1, -1):
        best = max(out[z], best - step_cost)
        out[z] = best


@njit(nogil=True, cache=True)
def spread(total, step_cost):
    """Return the best of all depths less the cost of the way, for rows of shape (n, z)."""
    out = np.empty_like(total)
    for i in range(total.shape[0]):
        _spread_line(total[i], step_cost, out[i])
    return out


@njit(nogil=True, cache=True)
def add_paths_along_x(response, step_cost, sums):
    """Add the best sums of paths from both sides in x to `sums`; both of shape (rows, cells, z)."""
    rows, cells, depth = response.shape
    carried = np.empty(depth, np.float32)
    total = np.empty(depth, np.float32)
    for row in range(rows):
        for direction in range(2):
            carried[:] = np.float32(0)
            for k in range(cells):
                i = k if direction == 0 else cells - 1 - k
                for z in range(depth):
                    sums[row, i, z] += carried[z]
                    total[z] = response[row, i, z] + carried[z]
                _spread_line(total, step_cost, carried)


@njit(nogil=True, cache=True)
def edges_of_cells(intensity, taps, half, out):
    """Put the edge response of every cell into `out`; both of shape (n, z). -100 where the filter does not fit."""
    depth, reach = intensity.shape[1], taps.size
    padded = np.empty(depth + 2 * reach, np.float32)
    for i in range(intensity.shape[0]):
        out[i] = np.float32(-100)
        if depth < 2 * half:
            continue
        padded[:reach] = intensity[i, 0]
        padded[reach : reach + depth] = intensity[i]
        padded[reach + depth :] = intensity[i, depth - 1]
        out[i, half : depth - half + 1] = np.float32(0)
        for k in range(reach):
            tap = taps[k]
            for z in range(half, depth - half + 1):
                out[i, z] += tap * (padded[reach + z + k] - padded[reach + z - 1 - k])

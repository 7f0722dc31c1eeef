# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Compiled inner loops of `opticstream.compute.reconstruction._robust_surface`, for tiles that stream."""

from __future__ import annotations

import math

import numpy as np

from opticstream.compute.lanes import LANES, lanes_maximum, load, splat, spread_out, store, where_less
from opticstream.system.compiled import njit

_F = np.float32
_INF = _F(np.inf)


@njit(inline="always")
def _larger(a, b):
    return where_less(a, b, b, a)


@njit(nogil=True, cache=True)
def _spread_line(total, step_cost, out, spare, other):
    """Put the best of all depths less the cost of the way into `out`, by steps of 1, 2, 4, ... samples.

    `spare` and `other` are scratch with -inf in the outer thirds, which are at least as long as `total`.
    """
    n = total.size
    room = spare.size // 3
    whole = n - n % LANES
    best = splat(-_INF)
    for z in range(0, whole, LANES):
        best = _larger(best, load(total, z))
    top = lanes_maximum(best)
    for z in range(whole, n):
        top = max(top, total[z])
    away = splat(top)
    for z in range(0, whole, LANES):
        store(spare, room + z, load(total, z) - away)
    for z in range(whole, n):
        spare[room + z] = total[z] - top
    step = 1
    while step < n:
        cost = splat(step_cost * _F(step))
        for z in range(room, room + n, LANES):
            moved = _larger(load(spare, z), load(spare, z - step) - cost)
            store(other, z, _larger(moved, load(spare, z + step) - cost))
        for z in range(room + n, room + n + LANES):  # what the last vector wrote beyond the end
            other[z] = -_INF
        spare, other = other, spare
        step *= 2
    for z in range(0, whole, LANES):
        store(out, z, load(spare, room + z))
    for z in range(whole, n):
        out[z] = spare[room + z]


@njit(inline="always")
def _scratch(n):
    return np.full(3 * (n + LANES), -_INF, np.float32)


@njit(nogil=True, cache=True)
def spread(total, step_cost):
    """Return the best of all depths less the cost of the way, for rows of shape (n, z)."""
    out = np.empty_like(total)
    spare, other = _scratch(total.shape[1]), _scratch(total.shape[1])
    for i in range(total.shape[0]):
        _spread_line(total[i], step_cost, out[i], spare, other)
    return out


@njit(nogil=True, cache=True)
def add_paths_along_x(response, step_cost, sums):
    """Add the best sums of paths from both sides in x to `sums`; both of shape (rows, cells, z)."""
    rows, cells, depth = response.shape
    carried = np.empty(depth, np.float32)
    total = np.empty(depth, np.float32)
    spare, other = _scratch(depth), _scratch(depth)
    for row in range(rows):
        for direction in range(2):
            carried[:] = _F(0)
            for k in range(cells):
                i = k if direction == 0 else cells - 1 - k
                for z in range(depth):
                    sums[row, i, z] += carried[z]
                    total[z] = response[row, i, z] + carried[z]
                _spread_line(total, step_cost, carried, spare, other)


@njit(nogil=True, cache=True)
def edges_of_cells(intensity, taps, half, out):
    """Put the edge response of every cell into `out`; both of shape (n, z). -100 where the filter does not fit."""
    depth, reach = intensity.shape[1], taps.size
    first, last = half, depth - half + 1
    padded = np.empty(depth + 2 * reach + LANES, np.float32)
    line = np.empty(depth + LANES, np.float32)
    for i in range(intensity.shape[0]):
        out[i] = _F(-100)
        if last <= first:
            continue
        padded[:reach] = intensity[i, 0]
        padded[reach : reach + depth] = intensity[i]
        padded[reach + depth :] = intensity[i, depth - 1]
        for z in range(first, last, LANES):
            rise = splat(_F(0))
            for k in range(reach):
                step = load(padded, reach + z + k) - load(padded, reach + z - 1 - k)
                rise = rise + spread_out(taps, k) * step
            store(line, z, rise)
        out[i, first:last] = line[first:last]


@njit(nogil=True, cache=True)
def trend_of_cells(around, design, ridge, scales_px, trend, count):
    """Fit a quadratic surface around every cell of the middle row (see `_robust_surface`).

    Parameters
    ----------
    around : array of float32, shape (rows, cells)
        Depth of the cells; NaN where it is not known.
    design : array of float64, shape (6, rows * width)
        Values of the basis functions at the cells of a window, the constant first.
    ridge : array of float64, shape (6,)
        Added to the diagonal of the normal equations.
    scales_px : array of float64
        Scale of Tukey's biweight, by pass.
    trend, count : arrays, shape (cells,), output
        Depth by the trend, NaN for none, and the number of known cells it is based on.
    """
    rows, cells = around.shape
    width = design.shape[1] // rows
    reach = width // 2
    basis = np.empty(design.shape, np.float64)
    values, fitted = np.empty(design.shape[1], np.float64), np.empty(design.shape[1], np.float64)
    weight = np.empty(design.shape[1], np.float64)
    normal, right = np.empty((6, 6), np.float64), np.empty(6, np.float64)
    for cell in range(cells):
        n = 0
        for row in range(rows):
            for i in range(max(0, cell - reach), min(cells, cell + reach + 1)):
                if not math.isnan(around[row, i]):
                    values[n] = around[row, i]
                    at = row * width + i - cell + reach
                    for f in range(6):
                        basis[f, n] = design[f, at]
                    n += 1
        count[cell] = n
        if n == 0:
            trend[cell] = _F(np.nan)
            continue
        middle = np.sort(values[:n])[max(n - 1, 0) // 2]
        for i in range(n):
            values[i] -= middle
            fitted[i] = 0.0
        for scale in scales_px:
            for i in range(n):
                share = (values[i] - fitted[i]) / scale
                share = max(1.0 - share * share, 0.0)
                weight[i] = share * share
            for f in range(6):
                for g in range(f + 1):
                    normal[f, g] = _weighted(weight, basis[f], basis[g], n)
                normal[f, f] += ridge[f]
                right[f] = _weighted(weight, basis[f], values, n)
            _solve(normal, right)
            for i in range(n):
                fitted[i] = 0.0
            for f in range(6):
                for i in range(n):
                    fitted[i] += right[f] * basis[f, i]
        trend[cell] = _F(right[0] + middle)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _weighted(weight, a, b, n):
    total = 0.0
    for i in range(n):
        total += weight[i] * a[i] * b[i]
    return total


@njit(inline="always")
def _solve(normal, right):
    """Solve a symmetric positive system, whose lower triangle is given, in place (Cholesky)."""
    n = right.size
    for i in range(n):
        for j in range(i + 1):
            total = normal[i, j]
            for k in range(j):
                total -= normal[i, k] * normal[j, k]
            normal[i, j] = math.sqrt(total) if i == j else total / normal[j, j]
    for i in range(n):
        for k in range(i):
            right[i] -= normal[i, k] * right[k]
        right[i] /= normal[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            right[i] -= normal[k, i] * right[k]
        right[i] /= normal[i, i]


@njit(nogil=True, cache=True)
def largest_rivals(response, surface, distance_px, rival):
    """Put the largest response of every cell, shape (n, z), farther than `distance_px` from `surface` into `rival`."""
    depth = response.shape[1]
    for i in range(response.shape[0]):
        best = _F(0)
        for z in range(max(0, surface[i] - distance_px)):
            best = response[i, z] if response[i, z] > best else best
        for z in range(max(0, surface[i] + distance_px + 1), depth):
            best = response[i, z] if response[i, z] > best else best
        rival[i] = best

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, operator, arg-type"
"""Compiled kernel from raw counts to spectra that are linear in wavenumber, free of background, and interleaved.

A-lines are taken in strips of `LANES`: spectra of a strip lie as (sample, lane), so that every later step is a plain
formula along the spectrum, or down the depth axis, with one A-line per lane.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.lanes import LANES, SPARE, lanes_sum, load, median_of, splat, spread_out, store, turn_counts
from opticstream.system.compiled import njit

_F = np.float32
_ROWS = 32
"""Samples that are worked on at a time; those of all A-lines of a B-line stay in the cache."""
_GROUP = 2 * LANES
"""Samples that are turned at a time."""


def groups_needed(index: NDArray[np.int64], /) -> int:
    """Return how many groups of recorded samples must be at hand at a time, a power of two.

    `index` says between which recorded sample and the next each sample lies.
    """
    parts = [index[first : first + _ROWS] for first in range(0, index.size, _ROWS)]
    span = max(int((part.max() + 1) // _GROUP - part.min() // _GROUP) + 1 for part in parts)
    return 1 << (span - 1).bit_length()


@njit(nogil=True, cache=True)
def mean_of_lines(counts, mean):
    """Put the mean over the A-lines of counts of shape (A, S) into `mean`, shape (S,)."""
    n_lines, samples = counts.shape
    total = np.zeros(samples, np.float64)
    part = np.zeros(samples, np.float32)
    for first in range(0, n_lines, 16):  # float32 represents the sum of 16 counts of 16 bits exactly
        part[:] = _F(0)
        for a in range(first, min(first + 16, n_lines)):
            for p in range(samples):
                part[p] += _F(counts[a, p])
        for p in range(samples):
            total[p] += part[p]
    for p in range(samples):
        mean[p] = _F(total[p] / n_lines)


@njit(inline="always")
def _turn_group(counts, group, reverse, background, recorded, row, width):
    """Put the samples of a group, less the background, into rows of `recorded` from `row` on; A-lines lie along it.

    Lanes beyond the last A-line repeat it.
    """
    n_lines, samples = counts.shape
    flat = counts.reshape(-1)
    first = group * _GROUP
    whole = first + _GROUP <= samples
    for strip in range(width // LANES):
        lane_0 = strip * LANES
        last = n_lines - 1 - lane_0
        to = row * width + lane_0
        if whole:
            begin, step = (samples - first - _GROUP, -width) if reverse else (first, width)
            top = to + (_GROUP - 1) * width if reverse else to
            at = lane_0 * samples + begin
            turn_counts(flat, at, samples, last, background, begin, recorded, top, step)
            if counts.itemsize == 4:  # these come half as many at a time
                turn_counts(
                    flat, at + LANES, samples, last, background, begin + LANES, recorded, top + LANES * step, step
                )
        else:
            for lane in range(LANES):
                line = counts[lane_0 + min(lane, last)]
                for i in range(first, samples):
                    p = samples - 1 - i if reverse else i
                    recorded[to + (i - first) * width + lane] = _F(line[p]) - background[p]


@njit(nogil=True, cache=True)
def spectra_to_strips(counts, reverse, background, index, fraction, residual, recorded, strips):
    """Subtract the background, put samples linear in wavenumber, subtract what all A-lines have in common.

    Parameters
    ----------
    counts : array, shape (A, S)
        One channel of one B-line; uint16 or float32.
    reverse : bool
        The channel is read out backwards.
    background : array, shape (S,)
        Subtracted first, in the order of the read-out.
    index, fraction : arrays, shape (S,)
        Where to sample: between `index` and the next pixel.
    residual : bool
        Subtract the median over the A-lines of every sample.
    recorded : array, shape (n * 2 * LANES * width,)
        Scratch, n from `groups_needed` and `width` the A-lines rounded up to whole strips.
    strips : array, shape (n_strips, S * LANES or more), output
        Lanes beyond A hold no useful numbers.
    """
    n_lines, samples = counts.shape
    n_strips = strips.shape[0]
    flat, pitch = strips.reshape(-1), strips.shape[1]
    width = n_strips * LANES
    n_groups = recorded.size // (_GROUP * width)
    at_hand = n_groups * _GROUP - 1
    first_group, end_group = 0, 0
    values = np.empty(width + LANES, np.float32)
    near = np.empty(SPARE, np.float32)
    zero = splat(_F(0))
    scale = _F(1) / _F(n_strips * LANES)
    for begin in range(0, samples, _ROWS):
        end = min(begin + _ROWS, samples)
        low, high = index[begin], index[begin]
        for p in range(begin + 1, end):
            low, high = min(low, index[p]), max(high, index[p])
        wanted_first, wanted_end = low // _GROUP, (high + 1) // _GROUP + 1
        if wanted_first < first_group or wanted_first > end_group:
            first_group = end_group = wanted_first
        while end_group < wanted_end:
            _turn_group(counts, end_group, reverse, background, recorded, (end_group & (n_groups - 1)) * _GROUP, width)
            end_group += 1
        first_group = max(first_group, end_group - n_groups)
        for p in range(begin, end):
            left, right = (index[p] & at_hand) * width, ((index[p] + 1) & at_hand) * width
            share = spread_out(fraction, p)
            total, squares = zero, zero
            for i in range(0, width, LANES):
                before = load(recorded, left + i)
                x = before + share * (load(recorded, right + i) - before)
                store(values, i, x)
                total = total + x
                squares = squares + x * x
            common = _F(0)
            if residual:
                mean = lanes_sum(total) * scale
                spread = lanes_sum(squares) * scale - mean * mean
                for i in range(n_lines, width):
                    values[i] = _F(np.inf)
                common = median_of(values, n_lines, mean, _F(math.sqrt(max(spread, _F(0)))), near)
                for i in range(n_lines, width):
                    values[i] = common
            away = splat(common)
            for strip in range(n_strips):
                store(flat, strip * pitch + p * LANES, load(values, strip * LANES) - away)

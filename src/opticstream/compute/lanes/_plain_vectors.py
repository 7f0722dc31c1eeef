# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The functions of `opticstream.compute.lanes._vectors` on plain arrays, for kernels that run without a compiler."""

from __future__ import annotations

from typing import Any

import numpy as np

LANES = 8


def load(array, index):
    """Load `LANES` consecutive elements from `index` on."""
    return array[index : index + LANES].copy()


def store(array, index, value):
    """Store a vector at `index`."""
    array[index : index + LANES] = value


def splat(scalar):
    """Return a vector whose lanes are all `scalar`."""
    return np.full(LANES, scalar, np.float32)


def spread_out(array, index):
    """Return a vector whose lanes are all element `index` of a flat array."""
    return splat(array[index])


def lane_numbers():
    """Return 0, 1, 2, ... as floats."""
    return np.arange(LANES, dtype=np.float32)


def square_root(a):
    """Return the square roots."""
    return np.sqrt(a)


def absolute(a):
    """Return the absolute values."""
    return np.abs(a)


def floor(a):
    """Return the largest whole numbers that are not larger."""
    return np.floor(a)


def where_less(a, b, x, y):
    """Return x where a < b, y elsewhere."""
    return np.where(a < b, x, y)


def where_less_equal(a, b, x, y):
    """Return x where a <= b, y elsewhere."""
    return np.where(a <= b, x, y)


def where_equal(a, b, x, y):
    """Return x where a == b, y elsewhere."""
    return np.where(a == b, x, y)


def mantissa_and_exponent(a):
    """Split positive normal numbers into a mantissa in [sqrt(1/2), sqrt(2)) and the power of two, both as floats."""
    bits = a.view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    return (bits - (exponent << np.int32(23))).view(np.float32), exponent.astype(np.float32)


def lanes_sum(a):
    """Return the sum of the lanes."""
    return np.float32(a.sum(dtype=np.float32))


def lanes_minimum(a):
    """Return the least of the lanes."""
    return np.float32(np.fmin.reduce(a))


def lanes_maximum(a):
    """Return the largest of the lanes."""
    return np.float32(np.fmax.reduce(a))


def turn_counts(counts, at, stride, last, zero, zero_at, out, to, step):
    """Lay `LANES` A-lines side by side: one vector per sample, less the background; see `_vectors.turn_counts`."""
    samples = 2 * LANES if counts.dtype == np.uint16 else LANES
    rows = [at + min(r, last) * stride for r in range(LANES)]
    for i in range(samples):
        column = np.array([counts[row + i] for row in rows], np.float32)
        out[to + i * step : to + i * step + LANES] = column - zero[zero_at + i]


def sums_of_quarters(a, b, c, d):
    """Return, in every quarter, the sums over that quarter (four lanes) of a, b, c and d."""
    return np.stack([v.reshape(-1, 4).sum(1, dtype=np.float32) for v in (a, b, c, d)], axis=1).reshape(-1)


def store_quarters(array, index, step, value):
    """Store quarter q of a vector (four lanes) at `index + q * step`."""
    for q in range(LANES // 4):
        array[index + q * step : index + q * step + 4] = value[4 * q : 4 * q + 4]


def keep_between(array, index, value, low, high):
    """Store the lanes within low..high one after the other from `index` on; return how many they are."""
    kept: Any = value[(low <= value) & (value <= high)]
    array[index : index + kept.size] = kept
    return kept.size

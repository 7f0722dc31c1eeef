# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Compiled inner loop of resampling."""

from __future__ import annotations

import math

import numpy as np

from opticstream.system.compiled import njit


@njit(cache=True, nogil=True, error_model="numpy")
def interpolate_planes(planes, valid, where, out):
    """Fill `out` (n, x, y) with linear interpolations of `planes` at the places `where` (2, x, y).

    Pixels that are not valid, and what lies outside, take no part; NaN where they have more than half of the weight.
    """
    count = planes.shape[0]
    width, height = valid.shape
    total = np.empty(count)
    for x in range(out.shape[1]):
        for y in range(out.shape[2]):
            left, low = math.floor(where[0, x, y]), math.floor(where[1, x, y])
            u, v = where[0, x, y] - left, where[1, x, y] - low
            share = 0.0
            total[:] = 0
            for a in range(2):
                i = left + a
                if i < 0 or i >= width:
                    continue
                for b in range(2):
                    j = low + b
                    if j < 0 or j >= height or not valid[i, j]:
                        continue
                    weight = (u if a else 1 - u) * (v if b else 1 - v)
                    share += weight
                    for k in range(count):
                        total[k] += weight * planes[k, i, j]
            for k in range(count):
                out[k, x, y] = total[k] / share if share >= 0.5 else np.nan

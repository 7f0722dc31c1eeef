# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Numbers as multiples of a step, and back, in one pass over memory: for volumes, which are large."""

from __future__ import annotations

import numpy as np

from opticstream.system.compiled import njit


@njit(cache=True, nogil=True)
def steps_of_planes(lines, first, middle, per_step, largest, out):
    """Put planes of a block into `out`, as whole steps from `middle`, at most `largest`.

    Parameters
    ----------
    lines : array of float32, shape (b, z, x)
        Without NaN.
    first : int
        Plane that comes first in `out`.
    middle, per_step, largest : float32
        Value at 0, steps per unit, most steps to either side.
    out : array of int16, shape (planes, b, x)
        Filled.
    """
    for plane in range(out.shape[0]):
        for line in range(out.shape[1]):
            values, row = lines[line, first + plane], out[plane, line]
            for x in range(row.size):
                row[x] = np.int16(min(max(np.rint((values[x] - middle) * per_step), -largest), largest))


@njit(cache=True, nogil=True)
def values_of_steps(integers, slope, intercept, out):
    """Put ``slope * integer + intercept`` into `out`, both of shape (y, x)."""
    for y in range(out.shape[0]):
        row, values = integers[y], out[y]
        for x in range(row.size):
            values[x] = np.float32(row[x]) * slope + intercept

"""Measured numbers as 16-bit integers, whole steps from a middle: ``value = slope * integer + intercept``, and back.

Large arrays are done by compiled code in one pass over memory; to load it takes longer than many small arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = 32767
"""Steps to either side of the intercept."""
_COMPILED_FROM = 1 << 16


def steps_from_planes(
    lines: NDArray[np.float32], first: int, count: int, /, *, slope: float, intercept: float
) -> NDArray[np.int16]:
    """Return the integers of some depth planes of a block of B-lines.

    Values are rounded to the nearest step; those beyond the range become its end.

    Parameters
    ----------
    lines : ndarray, shape (b, z, x), float32
        B-lines, depth and A-lines; without NaN, for which there is no integer.
    first, count : int
        The planes: `count` from depth `first` on, or fewer where the block ends.
    slope, intercept : float
        Size of a step, and the value of the integer 0.

    Returns
    -------
    ndarray, shape (planes, b, x), int16, C-contiguous

    Examples
    --------
    >>> lines = np.float32([[[90.0, 90.0051], [-200.0, 1.0]]])
    >>> steps_from_planes(lines, 0, 1, slope=0.005, intercept=90.0).tolist()
    [[[0, 1]]]
    >>> steps_from_planes(lines, 1, 9, slope=0.005, intercept=90.0).tolist()
    [[[-32767, -17800]]]
    """
    middle, per_step, largest = np.float32(intercept), np.float32(1 / slope), np.float32(LARGEST)
    planes = lines[:, first : first + count]
    if planes.size >= _COMPILED_FROM and lines.flags.c_contiguous and lines.dtype == np.float32:
        from opticstream.io._step_kernels import steps_of_planes

        out = np.empty((planes.shape[1], planes.shape[0], planes.shape[2]), np.int16)
        steps_of_planes(lines, first, middle, per_step, largest, out)
        return out
    scaled = np.subtract(planes.transpose(1, 0, 2), middle, dtype=np.float32)
    np.multiply(scaled, per_step, out=scaled)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -largest, largest, out=scaled)
    return scaled.astype(np.int16, order="C")


def values_from_steps(
    integers: NDArray[np.int16], /, *, slope: np.float32, intercept: np.float32, out: NDArray[np.float32]
) -> None:
    """Put the values of integers of shape (y, x) into `out`.

    Examples
    --------
    >>> out = np.empty((1, 2), np.float32)
    >>> values_from_steps(np.int16([[0, -2]]), slope=np.float32(0.5), intercept=np.float32(45), out=out)
    >>> out.tolist()
    [[45.0, 44.0]]
    """
    if integers.size >= _COMPILED_FROM and integers.flags.c_contiguous and integers.dtype.isnative:
        from opticstream.io._step_kernels import values_of_steps

        values_of_steps(integers, slope, intercept, out)
        return
    np.multiply(integers, slope, out=out, casting="unsafe")
    np.add(out, intercept, out=out)

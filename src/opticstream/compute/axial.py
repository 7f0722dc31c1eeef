"""Angles of axes, which have no sign: 0 and 180 degrees are the same axis.

Such angles are not additive, but the unit vectors of twice the angles are: to average or interpolate axes, use
`components` and convert the result back with `angle_from_components`. Arrays may belong to any library (see
`opticstream.compute.arrays`). Compiled kernels use `_axial_kernels`, and `opticstream.compute.lanes.wrapped` for
vectors of A-lines.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.arrays import library_of

__all__ = ["angle_from_components", "components", "mean", "offset_within_half_turn", "without_sign", "wrap"]


def wrap(angle_deg: ArrayLike, /) -> NDArray[Any]:
    """Return angles of axes brought to (-90, 90] degrees, in their own precision; NaN stays NaN.

    Examples
    --------
    >>> wrap([-90.0, 135.0])
    array([ 90., -45.])
    """
    xp = library_of(angle_deg)
    angle = xp.asarray(angle_deg)
    return xp.asarray(angle - 180 * xp.ceil((angle - 90) / 180))


def offset_within_half_turn(offset_deg: float, /) -> float:
    """Return an offset of axes brought to [-90, 90) degrees, so that sums in single precision stay exact.

    Examples
    --------
    >>> offset_within_half_turn(100.0), offset_within_half_turn(90.0)
    (-80.0, -90.0)
    """
    return float(np.remainder(np.float64(offset_deg) + 90, 180) - 90)


def components(angle_deg: ArrayLike, /) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return ``cos 2t`` and ``sin 2t`` of angles in degrees, in the precision they come in; NaN stays NaN.

    Examples
    --------
    An axis turned by 90 degrees has the opposite components, and one turned by 180 the same:

    >>> [np.round(part, 9).tolist() for part in components([30.0, 120.0, 210.0])]
    [[0.5, -0.5, 0.5], [0.866025404, -0.866025404, 0.866025404]]
    """
    xp = library_of(angle_deg)
    doubled = xp.asarray(angle_deg) * (math.pi / 90)
    return xp.cos(doubled), xp.sin(doubled)


def angle_from_components(cosine: ArrayLike, sine: ArrayLike, /) -> NDArray[Any]:
    """Return the angle in degrees of doubled-angle components of any length, within -90..90; 0 where both are 0.

    Rounded components can give -90: use `wrap` for the range (-90, 90].

    Examples
    --------
    The length says nothing of the angle:

    >>> angle_from_components([0.1, 5.0], [0.1, 5.0]).tolist()
    [22.5, 22.5]
    """
    xp = library_of(cosine, sine)
    return xp.asarray(xp.atan2(xp.asarray(sine), xp.asarray(cosine)) * (90 / math.pi))


def mean(angle_deg: ArrayLike, /, *, where: ArrayLike = True, axis: int = -1) -> NDArray[np.float64]:
    """Return the mean axis along an array axis.

    Parameters
    ----------
    angle_deg : array_like, shape (..., n)
        Angles in degrees; any multiple of 180 may be added.
    where : array_like of bool, shape (..., n)
        Angles that count; the others may be NaN.
    axis : int
        Array axis that is averaged over.

    Returns
    -------
    ndarray, shape of `angle_deg` without `axis`
        In (-90, 90]; 0 where no angle counts.

    Examples
    --------
    >>> float(mean([170.0, 20.0]).round(6))
    5.0

    The mean of 89 and -89 degrees is 90, not 0; angles that do not count may be NaN:

    >>> float(mean([89.0, -89.0]).round(6)), float(mean([30.0, np.nan], where=[True, False]).round(6))
    (90.0, 30.0)
    """
    xp = library_of(angle_deg)
    counts = xp.asarray(where)
    cosine, sine = components(angle_deg)
    y = xp.sum(xp.where(counts, sine, 0), axis=axis, dtype=xp.float64)
    x = xp.sum(xp.where(counts, cosine, 0), axis=axis, dtype=xp.float64)
    angle = angle_from_components(x, y)
    return xp.where(angle <= -90, angle + 180, angle)


def without_sign(axis: ArrayLike, /) -> NDArray[Any]:
    """Return axes in space, (..., 3), turned so that x >= 0, and y >= 0 where x = 0, and z >= 0 where both are.

    Examples
    --------
    >>> without_sign([[-1.0, 0.0, 2.0], [0.0, -1.0, 1.0]])
    array([[ 1.,  0., -2.],
           [ 0.,  1., -1.]])
    """
    vectors = np.asarray(axis)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    down = (x < 0) | ((x == 0) & ((y < 0) | ((y == 0) & (z < 0))))
    return np.where(down[..., None], -vectors, vectors) + 0.0

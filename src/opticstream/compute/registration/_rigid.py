"""Rigid motions of a slice, and what they do to axes in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from opticstream.compute import axial
from opticstream.compute.registration._planar_transform import PlanarTransform


def rigid_map(angle_deg: float, shift_px: ArrayLike, centre_px: ArrayLike, /) -> PlanarTransform:
    """Return the mapping that turns by an angle about a centre and then shifts.

    Examples
    --------
    >>> rigid_map(90.0, [0.0, 0.0], [1.0, 1.0]).points([2.0, 1.0]).round(6)
    array([1., 2.])
    """
    t = np.radians(angle_deg)
    matrix = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    centre = np.asarray(centre_px, float)
    return PlanarTransform(matrix, centre + np.asarray(shift_px, float) - matrix @ centre)


def turned_axis(axis: ArrayLike, angle_deg: ArrayLike, /) -> np.ndarray:
    """Return axis vectors (..., 3) turned back by an in-plane angle, or by one for each, without sign.

    Examples
    --------
    >>> turned_axis([0.0, 1.0, 0.0], 90.0).round(6)
    array([1., 0., 0.])
    """
    vectors = np.asarray(axis, float)
    t = np.radians(angle_deg)
    x = vectors[..., 0] * np.cos(t) + vectors[..., 1] * np.sin(t)
    y = -vectors[..., 0] * np.sin(t) + vectors[..., 1] * np.cos(t)
    return axial.without_sign(np.stack([x, y, vectors[..., 2]], axis=-1))

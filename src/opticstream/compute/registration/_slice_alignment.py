"""Align consecutive block faces: a chain of rigid steps with a pullback against drift.

Each step has an error; over a hundred slices they add up to a drift although every single one looks right. The stage
brings the block back to the same place, so poses are pulled a little towards "not moved" at every step, which bounds
the walk and leaves single jumps, which are real, almost untouched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from opticstream.compute import axial
from opticstream.compute.registration._planar_transform import Freedom, PlanarTransform
from opticstream.compute.registration._registration import register_images


@dataclass(frozen=True)
class SlicePose:
    """Place of a slice in the sample."""

    mapping: PlanarTransform
    """From pixels of the sample to pixels of the slice."""
    residual_px: float = 0.0
    """Leftover shift against the neighbour."""
    confidence: float = 1.0
    """Confidence of the step from the neighbour."""
    failure: str = ""
    """Why the step was rejected; the neighbour's pose is used then."""


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


def next_pose(
    neighbour: ArrayLike,
    image: ArrayLike,
    neighbour_pose: SlicePose,
    /,
    *,
    freedom: Freedom = "rigid",
    pullback: float = 0.05,
    sigma_px: float = 2.0,
    steps: int = 1,
) -> SlicePose:
    """Return the pose of a slice from its neighbour's.

    Parameters
    ----------
    neighbour, image : array_like, shape (x, y)
        The same map (e.g. intensity) of the neighbouring slice, whose pose is known, and of this one; NaN marks missing
        values.
    neighbour_pose : SlicePose
        Pose of the neighbour.
    freedom : {"translation", "rigid"}
        Freedom of a step.
    pullback : float
        Share of the pose that is taken back at each step; 0 lets it drift.
    sigma_px : float
        Smoothing before the comparison.
    steps : int
        Slices between the two, for the pullback.

    Returns
    -------
    SlicePose
        The neighbour's pose, with the reason, where the images cannot be compared.
    """
    try:
        step = register_images(
            neighbour,
            image,
            freedom=freedom,
            sigma_px=sigma_px,
            min_confidence=0.4,
            max_residual_px=6.0,
            start=PlanarTransform.identity(),
        )
        if not step.good:
            step = register_images(
                neighbour, image, freedom=freedom, sigma_px=sigma_px, min_confidence=0.4, max_residual_px=6.0
            )
    except ValueError as error:
        return SlicePose(neighbour_pose.mapping, float("nan"), 0.0, str(error))
    if not step.good:
        return SlicePose(neighbour_pose.mapping, step.residual_px, step.confidence, "; ".join(step.failures))
    before = neighbour_pose.mapping
    matrix = step.mapping.matrix @ before.matrix
    offset = step.mapping.matrix @ before.offset + step.mapping.offset
    centre = (np.array(np.asarray(image).shape) - 1) / 2
    chained = PlanarTransform(matrix, offset)
    keep = (1.0 - pullback) ** steps
    pose = rigid_map(chained.rotation_deg * keep, (chained.points(centre) - centre) * keep, centre)
    return SlicePose(pose, step.residual_px, step.confidence)


def turned_axis(axis: ArrayLike, angle_deg: float, /) -> np.ndarray:
    """Return axis vectors (..., 3) turned back by an in-plane angle, without sign.

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

"""What a mapping does to the axes of fibres: they turn with the picture, and follow the tissue where it is deformed.

A fibre is a line of the tissue. Where the point of the moving picture is ``p = matrix @ (q + u(q)) + offset``, a short
piece ``dq`` of a fibre lies in it along ``R (1 + grad u) dq``, R being the rotation of the matrix; depth is as it was.
The matrix counts by its rotation alone: what else it has is the foreshortening of a tilted beam or the size of pixels,
and what polarization tells of an axis does not follow that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute import axial
from opticstream.compute.registration._planar_transform import PlanarTransform
from opticstream.compute.registration._rigid import turned_axis


def fixed_orientation(orientation_deg: ArrayLike, mapping: PlanarTransform, /) -> NDArray[np.float32]:
    """Return orientations of the moving image in the axes of the fixed one.

    Parameters
    ----------
    orientation_deg : array_like, shape (x, y)
        Orientation in degrees in the axes of the moving image, at the pixels of the fixed image.
    mapping : PlanarTransform
        From fixed to moving pixel coordinates.

    Returns
    -------
    ndarray of float32, shape (x, y)
        Orientation in degrees, in (-90, 90]; NaN where the displacement folds the image.

    Raises
    ------
    ValueError
        The matrix mirrors or flattens the image.

    Examples
    --------
    The moving tissue is stretched to twice its length along x, so its axis at 45 degrees was steeper:

    >>> stretch = np.stack(np.meshgrid(np.arange(3.0), np.zeros(3), indexing="ij"))
    >>> mapping = PlanarTransform(np.eye(2), np.zeros(2), stretch)
    >>> fixed_orientation(np.full((3, 3), 45.0), mapping)[1, 1].round(2)
    np.float32(63.43)
    """
    turned = np.asarray(orientation_deg, float) - mapping.rotation_deg
    if mapping.displacement is not None:
        t = np.radians(turned)
        x, y = _undeformed(np.cos(t), np.sin(t), mapping.displacement)
        turned = np.degrees(np.arctan2(y, x))
    return np.asarray(axial.wrap(turned), np.float32)


def fixed_axes(axis: ArrayLike, mapping: PlanarTransform, /) -> NDArray[np.float32]:
    """Return axis vectors of the moving image in the axes of the fixed one, as long as they were.

    Parameters
    ----------
    axis : array_like, shape (x, y, 3)
        Axes of the moving image, at the pixels of the fixed image.
    mapping : PlanarTransform
        From fixed to moving pixel coordinates.

    Returns
    -------
    ndarray of float32, shape (x, y, 3)
        Axes without sign; NaN where the displacement folds the image.

    Raises
    ------
    ValueError
        The matrix mirrors or flattens the image.

    Examples
    --------
    Tissue that is shorter than before has steeper fibres:

    >>> squeeze = np.stack(np.meshgrid(-0.5 * np.arange(3.0), np.zeros(3), indexing="ij"))
    >>> mapping = PlanarTransform(np.eye(2), np.zeros(2), squeeze)
    >>> np.round(fixed_axes(np.full((3, 3, 3), [0.6, 0.0, 0.8]), mapping)[1, 1].astype(float), 3).tolist()
    [0.832, 0.0, 0.555]
    """
    turned = turned_axis(axis, mapping.rotation_deg)
    if mapping.displacement is not None:
        length = np.linalg.norm(turned, axis=-1)
        turned[..., 0], turned[..., 1] = _undeformed(turned[..., 0], turned[..., 1], mapping.displacement)
        now = np.linalg.norm(turned, axis=-1)
        turned *= np.divide(length, now, out=np.zeros_like(now), where=now != 0)[..., None]  # NaN stays
        turned = axial.without_sign(turned)
    return turned.astype(np.float32)


def _undeformed(
    x: NDArray[np.float64], y: NDArray[np.float64], displacement: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the deformation makes (x, y); NaN where it folds the tissue."""
    (a, b), (c, d) = (np.gradient(part.astype(float)) for part in displacement)
    area = (1 + a) * (1 + d) - b * c
    area = np.where(area > 0, area, np.nan)
    return ((1 + d) * x - b * y) / area, ((1 + a) * y - c * x) / area

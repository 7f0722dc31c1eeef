"""Images under a change of coordinates; an orientation is resampled as a vector and follows the image.

Pixels without a value (NaN, or outside the moving image) take no part in the interpolation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute import axial
from opticstream.compute.registration._axes_follow import fixed_orientation
from opticstream.compute.registration._planar_transform import PlanarTransform

_ROWS = 512


def resample_image(
    image: ArrayLike, mapping: PlanarTransform, /, *, shape: tuple[int, int], nearest: bool = False
) -> NDArray[np.float32]:
    """Return `image` (moving) on the pixel grid of the fixed image.

    Parameters
    ----------
    image : array_like, shape (x, y)
        Moving image; NaN marks missing values.
    mapping : PlanarTransform
        From fixed to moving pixel coordinates.
    shape : (int, int)
        Shape of the fixed image.
    nearest : bool
        Take the nearest pixel (masks and labels) instead of the linear interpolation.

    Returns
    -------
    ndarray of float32, shape `shape`
        NaN where less than half of the interpolation's weight falls on pixels with a value.

    Examples
    --------
    A pixel without a value takes no part while the others have at least half of the weight:

    >>> quarter = PlanarTransform(np.eye(2), np.array([0.0, 0.25]))
    >>> resample_image([[1.0, np.nan, 3.0, 5.0]], quarter, shape=(1, 3)).tolist()
    [[1.0, nan, 3.5]]
    """
    return _resample_planes(np.asarray(image, np.float32)[None], mapping, shape, nearest)[0]


def resample_orientation(
    orientation_deg: ArrayLike,
    mapping: PlanarTransform,
    /,
    *,
    shape: tuple[int, int],
    weight: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """Return an orientation image (moving) on the pixel grid, and in the axes, of the fixed image.

    Axes are interpolated as (cos 2O, sin 2O) and brought back by `fixed_orientation`.

    Parameters
    ----------
    orientation_deg : array_like, shape (x, y)
        Orientation in degrees in the axes of the moving image; NaN marks missing values.
    mapping : PlanarTransform
        From fixed to moving pixel coordinates.
    shape : (int, int)
        Shape of the fixed image.
    weight : array_like, shape (x, y), optional
        Weight of each pixel in the interpolation, e.g. its birefringence; 0 marks missing values.

    Returns
    -------
    ndarray of float32, shape `shape`
        Orientation in degrees, in (-90, 90], in the axes of the fixed image; NaN without a value.

    Examples
    --------
    The moving image is the fixed one turned by 90 degrees, so its x axis is the fixed y axis:

    >>> turned = PlanarTransform(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([2.0, 0.0]))
    >>> resample_orientation(np.full((3, 3), 60.0), turned, shape=(3, 3))[1, 1].round(3)
    np.float32(-30.0)
    """
    planes = np.stack(axial.components(np.asarray(orientation_deg, np.float32)))
    if weight is not None:
        scale = np.asarray(weight, np.float32)
        planes *= np.where(scale > 0, scale, np.nan)
    cosine, sine = _resample_planes(planes, mapping, shape, False)
    return fixed_orientation(axial.angle_from_components(cosine, sine), mapping)


def smooth_orientation(
    orientation_deg: ArrayLike, weight: ArrayLike, /, *, sigma_px: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return an orientation image and its weight, both averaged by a Gaussian, axes as (cos 2O, sin 2O).

    Parameters
    ----------
    orientation_deg, weight : array_like, shape (x, y)
        Orientation in degrees and the weight of each pixel, e.g. its birefringence. NaN in either marks missing values.
    sigma_px : float
        Standard deviation of the Gaussian; 0 changes nothing.

    Returns
    -------
    orientation_deg, weight : ndarray of float32
        Orientation in (-90, 90] and mean weight; NaN stays where it was.

    Examples
    --------
    Axes on both sides of the wrap meet between them, and the one of more weight counts for more:

    >>> angle, weight = smooth_orientation([[70.0, -80.0]], [[1.0, 1.0]], sigma_px=50.0)
    >>> angle.round(1).tolist(), weight.round(2).tolist()
    ([[85.0, 85.0]], [[1.0, 1.0]])
    >>> smooth_orientation([[0.0, 40.0]], [[1.0, 0.0]], sigma_px=50.0)[0].round(1).tolist()
    [[0.0, 0.0]]
    """
    from scipy import ndimage

    angle = np.asarray(orientation_deg, np.float32)
    scale = np.asarray(weight, np.float32)
    if sigma_px == 0:
        return axial.wrap(angle.astype(float)).astype(np.float32), scale
    valid = np.isfinite(angle) & np.isfinite(scale)
    cosine, sine = axial.components(np.where(valid, angle, 0))
    amount = np.where(valid, np.maximum(scale, 0), 0)

    def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
        blurred: NDArray[np.float32] = ndimage.gaussian_filter(values, sigma_px, mode="constant")
        return blurred

    norm = np.maximum(blur(valid.astype(np.float32)), 1e-6)
    mean = blur(np.where(valid, scale, 0)) / norm
    axis = axial.angle_from_components(blur(amount * cosine), blur(amount * sine))
    return (
        np.where(valid, axial.wrap(axis.astype(float)), np.nan).astype(np.float32),
        np.where(valid, mean, np.nan).astype(np.float32),
    )


def _resample_planes(
    planes: NDArray[np.float32], mapping: PlanarTransform, shape: tuple[int, int], nearest: bool
) -> NDArray[np.float32]:
    """Resample planes (n, x, y) that share their pixels without value; blocks of rows bound the memory."""
    from scipy.ndimage import map_coordinates as _map

    from opticstream.compute.registration._kernels import interpolate_planes

    map_coordinates: Any = _map  # its types do not know this mode
    valid = np.asarray(np.isfinite(planes).all(0))
    out = np.full((len(planes), *shape), np.nan, np.float32)
    if mapping.is_whole_pixel_shift:
        # Nothing lies between pixels: the same values without an interpolation.
        offset = mapping.offset.astype(int)
        low = np.maximum(-offset, 0)
        high = np.maximum(np.minimum(shape, np.array(valid.shape) - offset), low)
        to = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        source = tuple(slice(a + o, b + o) for a, b, o in zip(low, high, offset, strict=True))
        out[:, *to] = np.where(valid[source], planes[:, *source], np.nan)
        return out
    for first in range(0, shape[0], _ROWS):
        rows = slice(first, min(first + _ROWS, shape[0]))
        where = mapping.coordinates(shape, rows)
        if not nearest:
            interpolate_planes(planes, valid, where, out[:, rows])
            continue
        seen = map_coordinates(valid.astype(np.float32), where, order=0, mode="grid-constant", prefilter=False) > 0
        for source, target in zip(planes, out, strict=True):
            value = map_coordinates(source, where, order=0, mode="grid-constant", prefilter=False)
            target[rows] = np.where(seen, value, np.nan)
    return out

"""Images of axes under a change of coordinates: an orientation is resampled as a vector and turned with the image.

A mapping takes pixel coordinates of the fixed image to those of the moving one (pull-back): ``p_moving = matrix @
p_fixed + offset``, with an optional displacement added to ``p_fixed`` first. Pixels without a value (NaN, or outside
the moving image) take no part in the interpolation.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROWS = 512


@dataclass(frozen=True)
class PlaneMap:
    """A mapping of the plane from fixed to moving pixel coordinates, ``matrix @ (p + displacement(p)) + offset``."""

    matrix: NDArray[np.float64]
    """Linear part, shape (2, 2)."""
    offset: NDArray[np.float64]
    """Translation in px, shape (2,)."""
    displacement: NDArray[np.float32] | None = field(default=None, repr=False)
    """Displacement in fixed px, shape (2, x, y) of the fixed image; None: none."""

    @staticmethod
    def identity() -> PlaneMap:
        return PlaneMap(np.eye(2), np.zeros(2))

    def points(self, points: ArrayLike, /) -> NDArray[np.float64]:
        """Return the moving coordinates of fixed points, shape (..., 2); the displacement is left out."""
        mapped: NDArray[np.float64] = np.asarray(points, float) @ self.matrix.T + self.offset
        return mapped

    def inverse(self) -> PlaneMap:
        """Return the mapping from moving to fixed coordinates; only without a displacement."""
        if self.displacement is not None:
            raise ValueError("a mapping with a displacement has no inverse in closed form")
        inverse = np.linalg.inv(self.matrix)
        return PlaneMap(inverse, -inverse @ self.offset)

    @property
    def rotation_deg(self) -> float:
        """Angle by which the mapping turns a direction, see `rotation_from_matrix`."""
        return rotation_from_matrix(self.matrix)

    def coordinates(self, shape: tuple[int, int], rows: slice = slice(None), /) -> NDArray[np.float64]:
        """Return moving coordinates of the pixels of a fixed image, shape (2, rows, y)."""
        x = np.arange(shape[0], dtype=float)[rows, None]
        y = np.arange(shape[1], dtype=float)[None, :]
        if self.displacement is not None:
            if self.displacement.shape != (2, *shape):
                raise ValueError(f"the displacement has the shape {self.displacement.shape}, expected {(2, *shape)}")
            x, y = x + self.displacement[0, rows], y + self.displacement[1, rows]
        m = self.matrix
        return np.stack(
            [m[0, 0] * x + m[0, 1] * y + self.offset[0], m[1, 0] * x + m[1, 1] * y + self.offset[1]],
        )

    def local_rotation_deg(self, shape: tuple[int, int], /) -> NDArray[np.float32] | float:
        """Return the angle by which the mapping turns directions at each pixel, or one number where it is the same."""
        if self.displacement is None:
            return self.rotation_deg
        jacobian = np.empty((*shape, 2, 2))
        for i in range(2):
            for j in range(2):
                jacobian[..., i, j] = np.gradient(self.displacement[i], axis=j) + (i == j)
        full = np.einsum("ij,...jk->...ik", self.matrix, jacobian)
        turned = np.degrees(np.arctan2(full[..., 1, 0] - full[..., 0, 1], full[..., 0, 0] + full[..., 1, 1]))
        return turned.astype(np.float32)


def rotation_from_matrix(matrix: ArrayLike, /) -> float:
    """Return the angle in degrees of the rotation nearest to a 2 x 2 matrix (the rotation of its polar decomposition).

    Raises
    ------
    ValueError
        The matrix mirrors or flattens the plane.

    Examples
    --------
    A shear turns axes by half of what it turns the y axis, a stretch not at all:

    >>> rotation_from_matrix([[1.0, 0.0], [0.0, 0.8]])
    0.0
    >>> round(rotation_from_matrix([[1.0, -0.1], [0.0, 1.0]]), 2)
    2.86
    """
    m = np.asarray(matrix, float)
    if m.shape != (2, 2):
        raise ValueError(f"expected a 2 x 2 matrix, got the shape {m.shape}")
    if not np.linalg.det(m) > 0:
        raise ValueError(f"the mapping mirrors or flattens the image: matrix {m.tolist()}")
    return float(np.degrees(np.arctan2(m[1, 0] - m[0, 1], m[0, 0] + m[1, 1])))


def wrap_orientation(angle_deg: ArrayLike, /) -> NDArray[np.float64]:
    """Return angles of axes brought to (-90, 90] degrees.

    Examples
    --------
    >>> wrap_orientation([-90.0, 135.0])
    array([ 90., -45.])
    """
    angle = np.asarray(angle_deg, float)
    return np.asarray(angle - 180.0 * np.ceil((angle - 90.0) / 180.0))


def resample_image(
    image: ArrayLike, mapping: PlaneMap, /, *, shape: tuple[int, int], nearest: bool = False
) -> NDArray[np.float32]:
    """Return `image` (moving) on the pixel grid of the fixed image.

    Parameters
    ----------
    image : array_like, shape (x, y)
        Moving image; NaN is no value.
    mapping : PlaneMap
        From fixed to moving pixel coordinates.
    shape : (int, int)
        Shape of the fixed image.
    nearest : bool
        Take the nearest pixel (masks and labels) instead of the linear interpolation.

    Returns
    -------
    ndarray of float32, shape `shape`
        NaN where less than half of the interpolation's weight falls on pixels with a value.
    """
    return _resample_planes(np.asarray(image, np.float32)[None], mapping, shape, nearest)[0]


def resample_orientation(
    orientation_deg: ArrayLike,
    mapping: PlaneMap,
    /,
    *,
    shape: tuple[int, int],
    weight: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """Return an orientation image (moving) on the pixel grid, and in the axes, of the fixed image.

    Axes are interpolated as (cos 2O, sin 2O) and turned back by the rotation of the mapping.

    Parameters
    ----------
    orientation_deg : array_like, shape (x, y)
        Orientation in degrees in the axes of the moving image; NaN is no value.
    mapping : PlaneMap
        From fixed to moving pixel coordinates.
    shape : (int, int)
        Shape of the fixed image.
    weight : array_like, shape (x, y), optional
        Weight of each pixel in the interpolation, e.g. its birefringence; 0 is no value.

    Returns
    -------
    ndarray of float32, shape `shape`
        Orientation in degrees, in (-90, 90], in the axes of the fixed image; NaN without a value.

    Examples
    --------
    The moving image is the fixed one turned by 90 degrees, so its x axis is the fixed y axis:

    >>> turned = PlaneMap(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([2.0, 0.0]))
    >>> resample_orientation(np.full((3, 3), 60.0), turned, shape=(3, 3))[1, 1]
    np.float32(-30.0)
    """
    angle = np.radians(2 * np.asarray(orientation_deg, np.float32))
    planes = np.stack([np.cos(angle), np.sin(angle)])
    if weight is not None:
        scale = np.asarray(weight, np.float32)
        planes *= np.where(scale > 0, scale, np.nan)
    cosine, sine = _resample_planes(planes, mapping, shape, False)
    turned = 0.5 * np.degrees(np.arctan2(sine, cosine)) - mapping.local_rotation_deg(shape)
    out: NDArray[np.float32] = wrap_orientation(turned).astype(np.float32)
    return out


def smooth_orientation(
    orientation_deg: ArrayLike, weight: ArrayLike, /, *, sigma_px: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return an orientation image and its weight, both averaged by a Gaussian, axes as (cos 2O, sin 2O).

    Parameters
    ----------
    orientation_deg, weight : array_like, shape (x, y)
        Orientation in degrees and the weight of each pixel, e.g. its birefringence. NaN in either is no value.
    sigma_px : float
        Standard deviation of the Gaussian; 0 changes nothing.

    Returns
    -------
    orientation_deg, weight : ndarray of float32
        Orientation in (-90, 90] and mean weight; NaN stays where it was.
    """
    from scipy import ndimage

    angle = np.asarray(orientation_deg, np.float32)
    scale = np.asarray(weight, np.float32)
    if sigma_px == 0:
        return wrap_orientation(angle).astype(np.float32), scale
    valid = np.isfinite(angle) & np.isfinite(scale)
    turned = np.radians(2 * np.where(valid, angle, 0))
    amount = np.where(valid, np.maximum(scale, 0), 0)

    def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
        blurred: NDArray[np.float32] = ndimage.gaussian_filter(values, sigma_px, mode="constant")
        return blurred

    norm = np.maximum(blur(valid.astype(np.float32)), 1e-6)
    mean = blur(np.where(valid, scale, 0)) / norm
    axis = 0.5 * np.degrees(np.arctan2(blur(amount * np.sin(turned)), blur(amount * np.cos(turned))))
    return (
        np.where(valid, wrap_orientation(axis), np.nan).astype(np.float32),
        np.where(valid, mean, np.nan).astype(np.float32),
    )


def _resample_planes(
    planes: NDArray[np.float32], mapping: PlaneMap, shape: tuple[int, int], nearest: bool
) -> NDArray[np.float32]:
    """Resample planes (n, x, y) that share their pixels without value; blocks of rows bound the memory."""
    from scipy import ndimage

    valid = np.isfinite(planes).all(0)
    filled = np.where(valid, planes, 0)
    out = np.full((len(planes), *shape), np.nan, np.float32)
    order = 0 if nearest else 1
    for first in range(0, shape[0], _ROWS):
        rows = slice(first, min(first + _ROWS, shape[0]))
        where = mapping.coordinates(shape, rows)
        share = ndimage.map_coordinates(
            valid.astype(np.float32), where, order=order, mode="grid-constant", prefilter=False
        )
        good = share >= 0.5
        for source, target in zip(filled, out, strict=True):
            value = ndimage.map_coordinates(source, where, order=order, mode="grid-constant", prefilter=False)
            target[rows] = np.where(good, value / np.where(good, share, 1), np.nan)
    return out

"""Maps of any kind on the pixels of another mosaic or slice, each kind in its own way."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration._axes_follow import fixed_axes
from opticstream.compute.registration._planar_transform import PlanarTransform
from opticstream.compute.registration._resampling import resample_image, resample_orientation
from opticstream.model.modalities import Resampling


def resampled(
    image: ArrayLike,
    mapping: PlanarTransform,
    /,
    *,
    how: Resampling,
    shape: tuple[int, int],
    weight: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """Return a moving map on the fixed pixels.

    Parameters
    ----------
    image : array_like, shape (x, y), or (x, y, 3) for vectors
        Moving map; NaN marks missing values.
    mapping : PlanarTransform
        From fixed to moving pixel coordinates.
    how : Resampling
        From the table of modalities.
    shape : (int, int)
        Shape of the fixed map.
    weight : array_like, shape (x, y), optional
        For axes: weight of each pixel, see `resample_orientation`.

    Returns
    -------
    ndarray of float32, shape `shape` (vectors: with 3 components)
        NaN without a value.

    Examples
    --------
    Two axes 20 degrees apart across the wrap of an axis meet at 90 degrees, two numbers in the middle, at 0:

    >>> halfway = PlanarTransform(np.eye(2), np.array([0.5, 0.0]))
    >>> pair = np.array([[80.0], [-80.0]])
    >>> [float(resampled(pair, halfway, how=how, shape=(1, 1))[0, 0].round(3)) for how in ("axes", "linear")]
    [90.0, 0.0]
    """
    if how == "axes":
        return resample_orientation(image, mapping, shape=shape, weight=weight)
    if how == "vectors":
        return _resampled_vectors(image, mapping, shape)
    return resample_image(image, mapping, shape=shape, nearest=how == "nearest")


def _resampled_vectors(image: ArrayLike, mapping: PlanarTransform, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return axis vectors between pixels: the main axis of the mean of ``n n^T``, for which signs mean nothing."""
    n = np.moveaxis(np.asarray(image, np.float32), -1, 0)
    rows, columns = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)
    valid = np.isfinite(n).all(0)
    products = [np.where(valid, n[i] * n[j], np.nan) for i, j in zip(rows, columns, strict=True)]
    mean = np.empty((*shape, 3, 3), np.float32)
    for i, j, product in zip(rows, columns, products, strict=True):
        mean[..., i, j] = mean[..., j, i] = resample_image(product, mapping, shape=shape)
    # Squared over and over, a matrix keeps its main axis alone.
    for _ in range(4):
        mean = mean @ mean
        trace = np.trace(mean, axis1=-2, axis2=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean /= trace[..., None, None]
    at = np.diagonal(mean, axis1=-2, axis2=-1).copy()
    column = np.argmax(np.where(np.isfinite(at), at, -1), axis=-1)
    axis = np.take_along_axis(mean, column[..., None, None], axis=-1)[..., 0]
    length = resample_image(np.where(valid, np.linalg.norm(n, axis=0), np.nan), mapping, shape=shape)
    with np.errstate(invalid="ignore"):
        axis *= (length / np.linalg.norm(axis, axis=-1))[..., None]
    axis[length == 0] = 0
    return fixed_axes(axis, mapping)

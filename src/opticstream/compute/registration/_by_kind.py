"""Maps of any kind on the pixels of another mosaic or slice, each kind in its own way."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration._planar_transform import PlanarTransform
from opticstream.compute.registration._resampling import resample_image, resample_orientation
from opticstream.compute.registration._slice_alignment import turned_axis
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
    if how == "nearest vectors":
        parts = np.moveaxis(np.asarray(image), -1, 0)
        moved = np.stack([resample_image(part, mapping, shape=shape, nearest=True) for part in parts], axis=-1)
        return turned_axis(moved, mapping.rotation_deg).astype(np.float32)
    return resample_image(image, mapping, shape=shape, nearest=how == "nearest")

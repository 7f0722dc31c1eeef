"""Halve blocks of an image for the coarser levels of a pyramid, each kind of value by its own mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute import axial
from opticstream.model.modalities import ValueKind

__all__ = ["halved"]


def halved(block: ArrayLike, factors: tuple[int, int, int], /, *, kind: ValueKind = "scalar") -> NDArray[Any]:
    """Return a block whose voxels are means over boxes of `factors` voxels.

    Parameters
    ----------
    block : array_like, shape (x, y, z) or, for vectors, (x, y, z, 3)
        Values; NaN takes no part. Sizes that `factors` do not divide are filled up with NaN (labels: with 0).
    factors : (int, int, int)
        Box, along x, y, z.
    kind : ValueKind
        How values are averaged: plain mean; mean of (cos 2O, sin 2O); main direction of the mean of v v'; the box's
        first voxel.

    Returns
    -------
    ndarray, shape (ceil(x / fx), ceil(y / fy), ceil(z / fz)[, 3])
        NaN where a box holds no value.

    Examples
    --------
    >>> halved([[[80.0]], [[-80.0]]], (2, 1, 1), kind="axial").ravel()
    array([90.])

    NaN takes no part, and axes in space have no sign:

    >>> halved([[[1.0, np.nan, 3.0]]], (1, 1, 2)).ravel()
    array([1., 3.])
    >>> halved([[[[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]]], (1, 1, 2), kind="vector").ravel().round(6)
    array([0., 0., 1.])
    """
    values = np.asarray(block)
    if kind == "label":
        return values[:: factors[0], :: factors[1], :: factors[2]]
    grown = [-size % factor for size, factor in zip(values.shape, factors, strict=False)]
    if any(grown):
        pad = [(0, extra) for extra in grown] + [(0, 0)] * (values.ndim - 3)
        values = np.pad(values, pad, constant_values=np.nan)
    shape = [n for size, factor in zip(values.shape[:3], factors, strict=True) for n in (size // factor, factor)]
    boxes = values.reshape(*shape, *values.shape[3:])
    if kind == "vector":
        return _main_direction(boxes)
    if kind == "axial":
        cosine, sine = axial.components(boxes)
        return np.asarray(axial.angle_from_components(_mean(cosine), _mean(sine)), values.dtype)
    return np.asarray(_mean(boxes), values.dtype)


def _mean(boxes: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over array axes 1, 3, 5 without NaN."""
    total = np.zeros(boxes.shape[0::2][:3] + boxes.shape[6:], np.float64 if boxes.dtype == np.float64 else np.float32)
    count = np.zeros(total.shape, np.float32)
    # Adding the voxels of the box one by one uses long rows of memory, unlike a reduction over three axes at once.
    for i, j, k in np.ndindex(boxes.shape[1], boxes.shape[3], boxes.shape[5]):
        part = boxes[:, i, :, j, :, k]
        valid = np.isfinite(part)
        total += np.where(valid, part, 0)
        count += valid
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _main_direction(boxes: NDArray[Any]) -> NDArray[Any]:
    """Return the axis nearest to all axes of a box: the first one, turned to the mean, iterated on the dyadic mean."""
    dyads = np.empty((*boxes.shape[:-1][0::2], 3, 3))
    for i in range(3):
        for j in range(3):
            dyads[..., i, j] = _mean(boxes[..., i] * boxes[..., j])
    known = np.isfinite(dyads).all((-2, -1))
    direction = np.full((*known.shape, 3), np.nan)
    if known.any():
        direction[known] = axial.without_sign(np.linalg.eigh(dyads[known])[1][..., -1])
    return direction.astype(boxes.dtype)

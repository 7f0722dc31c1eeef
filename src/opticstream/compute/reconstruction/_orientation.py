"""Orientation of the optic axis, which has no sign: 0 and 180 degrees are one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.arrays import library_of


def axis_window_mean(orientation_deg: NDArray[Any], valid: NDArray[np.bool_], /) -> NDArray[np.float32]:
    """Return the axial (180-degree periodic) mean over the valid samples along the last axis, in (-90, 90].

    Examples
    --------
    >>> orientation = np.array([80.0, -80.0, 12.0])
    >>> float(axis_window_mean(orientation, np.abs(orientation) > 50).round(3))
    90.0
    """
    xp = library_of(orientation_deg)
    return xp.astype(axial.mean(orientation_deg, where=valid), xp.float32)


def axis_window_mode(orientation_deg: NDArray[Any], valid: NDArray[np.bool_], /) -> NDArray[np.float32]:
    """Return the centre of the fullest 1-degree bin over the valid samples along the last axis, in (-90, 90).

    Bins run from -90 up; of equally full bins the first is taken.

    Examples
    --------
    >>> o = np.array([10.2, 10.7, 33.0])
    >>> float(axis_window_mode(o, o > 0))
    10.5
    """
    xp = library_of(orientation_deg)
    bins = xp.clip(xp.astype(xp.floor(orientation_deg + 90), xp.int16), 0, 179)
    bins = xp.where(valid, bins, -1)
    counts = xp.zeros(bins.shape, dtype=xp.int16)
    for k in range(bins.shape[-1]):  # how many share the bin of each sample; no library has histograms of many rows
        counts += xp.astype(bins == bins[..., k : k + 1], xp.int16)
    score = 180 * xp.astype(counts, xp.int32) + xp.astype(179 - bins, xp.int32)
    first_of_fullest = xp.max(xp.where(valid, score, -1), axis=-1)
    return xp.astype(179 - first_of_fullest % 180, xp.float32) - 89.5

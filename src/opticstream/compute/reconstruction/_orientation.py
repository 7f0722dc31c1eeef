"""Orientation of the optic axis, which has no sign: 0 and 180 degrees are one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial


def axis_window_mean(orientation_deg: NDArray[Any], valid: NDArray[np.bool_], /) -> NDArray[np.float32]:
    """Return the axial (180-degree periodic) mean over the valid samples along the last axis, in (-90, 90].

    Examples
    --------
    >>> orientation = np.array([80.0, -80.0, 12.0])
    >>> float(axis_window_mean(orientation, np.abs(orientation) > 50).round(3))
    90.0
    """
    return axial.mean(orientation_deg, where=valid).astype(np.float32)


def axis_window_mode(orientation_deg: NDArray[Any], valid: NDArray[np.bool_], /) -> NDArray[np.float32]:
    """Return the centre of the fullest 1-degree bin over the valid samples along the last axis, in (-90, 90).

    Bins run from -90 up; of equally full bins the first is taken.

    Examples
    --------
    >>> o = np.array([10.2, 10.7, 33.0])
    >>> axis_window_mode(o, o > 0)
    array(10.5, dtype=float32)
    """
    bins = np.clip(np.floor(orientation_deg + 90).astype(np.intp), 0, 179)
    flat_bins, flat_valid = bins.reshape(-1, bins.shape[-1]), valid.reshape(-1, bins.shape[-1])
    rows = np.repeat(np.arange(flat_bins.shape[0]), flat_bins.shape[1])[flat_valid.ravel()]
    counts = np.bincount(rows * 180 + flat_bins.ravel()[flat_valid.ravel()], minlength=flat_bins.shape[0] * 180)
    fullest = counts.reshape(-1, 180).argmax(axis=1)
    return np.asarray((fullest - 89.5).reshape(bins.shape[:-1]), dtype=np.float32)

"""Where the tissue is: a threshold on a lightly smoothed mosaic, without crumbs and without holes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def tissue_mask(
    mosaic: NDArray[np.floating], /, *, threshold: float, sigma_px: float = 2.0, min_fraction: float = 0.01
) -> NDArray[np.bool_]:
    """Return the tissue mask of a mosaic, shape (x, y).

    Parameters
    ----------
    mosaic : ndarray, shape (x, y)
        Level, usually in dB. NaN counts as no tissue and is left out of the smoothing.
    threshold : float
        Smoothed levels of at least this count as tissue.
    sigma_px : float
        Gaussian smoothing; 0 for none.
    min_fraction : float
        Connected parts smaller than this fraction of the largest are dropped.

    Examples
    --------
    >>> image = np.zeros((9, 9)); image[2:7, 2:7] = 10; image[4, 4] = 0
    >>> int(tissue_mask(image, threshold=5, sigma_px=0).sum())   # the hole is filled
    25
    """
    from scipy import ndimage

    if not np.isfinite(threshold):
        raise ValueError(f"the mask threshold must be a finite number, got {threshold}")
    valid = np.isfinite(mosaic)
    level: NDArray[np.floating] = np.where(valid, mosaic, 0).astype(np.float32)
    if sigma_px > 0:
        known = ndimage.gaussian_filter(valid.astype(np.float32), sigma_px, mode="nearest", truncate=3.0)
        level = ndimage.gaussian_filter(level, sigma_px, mode="nearest", truncate=3.0) / np.maximum(known, 1e-6)
    mask = valid & (level >= threshold)
    if not mask.any():
        return np.asarray(mask)
    parts, count = ndimage.label(mask)
    size = np.bincount(parts.ravel(), minlength=count + 1)
    size[0] = 0
    kept = size >= max(min_fraction * size.max(), 1)
    kept[0] = False
    return np.asarray(ndimage.binary_fill_holes(kept[parts]), bool)

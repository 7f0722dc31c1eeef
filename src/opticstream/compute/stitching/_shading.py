"""The shading that all tiles share, as seen through the tissue in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._tilefilter import cosine_blur_basis

FloatArray = NDArray[np.float32]


def common_shading(
    tiles: Sequence[NDArray[np.floating]],
    /,
    *,
    multiplicative: bool,
    signal_above: float | None = None,
    sigma_fraction: float = 0.1,
) -> FloatArray:
    """Return the smooth pattern common to all tiles that hold signal.

    Parameters
    ----------
    tiles : sequence of ndarray, shape (x, y)
        Images of equal shape; NaN is skipped.
    multiplicative : bool
        True for linear intensities: the pattern is a factor with mean 1. False for levels in dB: it is a term with
        mean 0.
    signal_above : float, optional
        Pixels at or below this level have no tissue and are ignored.
    sigma_fraction : float
        Smoothing, as a fraction of the tile's size.

    Returns
    -------
    ndarray, shape (x, y), float32
        Divide (or subtract) it. The neutral pattern where fewer than 3 tiles hold signal in most of their pixels.

    Examples
    --------
    >>> fall = np.linspace(1.2, 0.8, 50)[:, None] * np.ones(40)
    >>> shading = common_shading([fall, 3 * fall, 7 * fall], multiplicative=True)
    >>> bool(abs(shading - fall).max() < 0.05), float(shading.mean().round(3))
    (True, 1.0)
    """
    shape = tiles[0].shape
    neutral = np.full(shape, 1.0 if multiplicative else 0.0, np.float32)
    chosen = []
    for tile in tiles:
        image = np.asarray(tile, np.float32)
        signal = np.isfinite(image)
        if signal_above is not None:
            signal &= image > signal_above
        if signal.mean() < 0.6:
            continue
        middle = float(np.median(image[signal]))
        if multiplicative and middle <= 0:
            continue
        chosen.append(np.where(signal, image / middle if multiplicative else image - middle, np.nan))
    if len(chosen) < 3:
        return neutral
    pattern = np.nanmedian(np.stack(chosen), axis=0)
    pattern = np.where(np.isfinite(pattern), pattern, neutral).astype(np.float32)
    basis_x = cosine_blur_basis(shape[0], max(sigma_fraction * shape[0], 1.0))
    basis_y = cosine_blur_basis(shape[1], max(sigma_fraction * shape[1], 1.0))
    smooth = basis_x.T @ ((basis_x @ pattern) @ basis_y.T) @ basis_y
    result = smooth / smooth.mean() if multiplicative else smooth - smooth.mean()
    return np.asarray(result, np.float32)

"""How well neighbouring tiles agree where they overlap: one number per seam, and pictures that show the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Seam:
    """Agreement of two tiles in their overlap.

    Attributes
    ----------
    pair : tuple of int
        The two tiles.
    ncc : float
        Correlation coefficient of the shared pixels, -1 to 1; NaN where one of them is constant or nothing is shared.
    offset : float
        Median difference, second minus first, in the map's unit.
    pixels : int
        Number of shared pixels.
    """

    pair: tuple[int, int]
    ncc: float
    offset: float
    pixels: int


def shared_slices(step: NDArray[np.intp], shape: tuple[int, int], /) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the slices of the overlap in the first tile and in the second, which lies `step` pixels further.

    Examples
    --------
    >>> shared_slices(np.array([6, -2]), (10, 10))
    ((slice(6, 10, None), slice(0, 8, None)), (slice(0, 4, None), slice(2, 10, None)))
    """
    low = np.maximum(step, 0)
    high = np.minimum(np.asarray(shape) + step, shape)
    high = np.maximum(high, low)
    first = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    second = (
        slice(int(low[0] - step[0]), int(high[0] - step[0])),
        slice(int(low[1] - step[1]), int(high[1] - step[1])),
    )
    return first, second


def seams_from_tiles(
    tiles: Sequence[NDArray[np.floating]],
    offset: NDArray[np.intp],
    pairs: NDArray[np.intp],
    /,
    *,
    sigma_px: float = 1.0,
) -> list[Seam]:
    """Return the agreement of neighbouring tiles.

    Parameters
    ----------
    tiles : sequence of ndarray, shape (x, y)
        One map of every tile; NaN is left out.
    offset : ndarray of int, shape (tiles, 2)
        Pixel position of every tile.
    pairs : ndarray of int, shape (links, 2)
        Neighbours.
    sigma_px : float
        Speckle is smoothed by a Gaussian of this width before tiles are compared; 0 for none.

    Examples
    --------
    A tile of twice the brightness agrees all the same; the offset tells:

    >>> tile = np.arange(100.0).reshape(10, 10)
    >>> (seam,) = seams_from_tiles([tile, 2 * tile], np.array([[0, 0], [0, 0]]), np.array([[0, 1]]), sigma_px=0)
    >>> round(seam.ncc, 6), seam.offset, seam.pixels
    (1.0, 49.5, 100)
    """
    from scipy import ndimage

    result = []
    for a, b in pairs:
        first, second = shared_slices(offset[b] - offset[a], tiles[a].shape)
        one, other = np.asarray(tiles[a][first], np.float32), np.asarray(tiles[b][second], np.float32)
        good = np.isfinite(one) & np.isfinite(other)
        if good.sum() < 16:
            result.append(Seam((int(a), int(b)), float("nan"), float("nan"), int(good.sum())))
            continue
        if sigma_px > 0:
            middle = np.float32(np.median(one[good]))
            one = ndimage.gaussian_filter(np.where(good, one, middle), sigma_px, mode="nearest")
            other = ndimage.gaussian_filter(np.where(good, other, middle), sigma_px, mode="nearest")
        x, y = one[good].astype(np.float64), other[good].astype(np.float64)
        x0, y0 = x - x.mean(), y - y.mean()
        scale = np.sqrt((x0 @ x0) * (y0 @ y0))
        # If all values are equal up to rounding, there is nothing to compare.
        flat = scale <= 1e-10 * len(x) * (np.abs(x).max() + np.abs(y).max() + 1e-30) ** 2
        ncc = float("nan") if flat else float(x0 @ y0 / scale)
        result.append(Seam((int(a), int(b)), ncc, float(np.median(y - x)), int(good.sum())))
    return result


def parity_colours(cells: NDArray[np.intp], /) -> NDArray[np.intp]:
    """Return 0 or 1 for every tile like a checkerboard, so that neighbours differ; shape (tiles,).

    Examples
    --------
    >>> parity_colours(np.array([[0, 0], [1, 0], [1, 1]])).tolist()
    [0, 1, 0]
    """
    return np.asarray(np.asarray(cells).sum(axis=1) % 2)

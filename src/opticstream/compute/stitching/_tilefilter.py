"""Filter a tile before it is compared with its neighbours: a logarithm with a soft floor, minus its blur.

Speckle is multiplicative and shading is smooth: in the logarithm both are additive, and a high pass removes the
shading. The floor keeps the noise of empty regions smaller than tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.stitching._instrument import instrument_gain
from opticstream.system.cores import one_blas_thread

FloatArray = NDArray[np.float32]

LEAST_SIGMA_PX, MOST_SIGMA_PX = 8.0, 16.0
PATCH_SIGMA_PX = 8.0
"""Within an overlap that is aligned: smoother structure has little information on the exact position."""
SOFT_FLOOR = 0.3
NOTHING = 1e-5
"""Rounding leaves a constant tile at about 1e-6, which a normalised correlation would amplify to full size."""


@dataclass(frozen=True)
class FilteredTiles:
    """Tiles without their blur, and the blur that was removed.

    Attributes
    ----------
    values : ndarray, shape (tiles, x, y), float32
        Tiles minus their blur; 0 where a tile is blank or a pixel unknown.
    blur : ndarray, shape (tiles, cosines along x, along y), float32
        The blur's coefficients in the rows of `cosine_blur_basis`.
    sigma_px : float
        Width of the blur.
    """

    values: FloatArray
    blur: FloatArray
    sigma_px: float

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Size of a tile along x and y."""
        return self.values.shape[1], self.values.shape[2]

    def patch(self, tile: int, corner: Sequence[int], size: Sequence[int], /) -> FloatArray:
        """Return a rectangle of one tile, filtered as if it were the whole tile.

        Near its edge a tile's blur lacks the values beyond. Two tiles that overlap end at different places, so
        their filtered values differ there, always in the same sense. Filtered within the rectangle that they share
        both are treated alike.

        Parameters
        ----------
        tile : int
            Which tile.
        corner, size : sequence of int
            First pixel and number of pixels along x and y.
        """
        x, y = (slice(first, first + count) for first, count in zip(corner, size, strict=True))
        values = self.values[tile, x, y]
        along_x, along_y = (_basis(n, self.sigma_px) for n in self.tile_shape)
        level = values + along_x[:, x].T @ self.blur[tile] @ along_y[:, y]
        own_x, own_y = (_basis(n, PATCH_SIGMA_PX) for n in values.shape)
        level -= _blurred(level, own_x, own_y)
        level[(values == 0) | (np.abs(level) < NOTHING)] = 0
        return np.asarray(level, np.float32)


def amplitude_from_db(level_db: ArrayLike, /) -> FloatArray:
    """Return the linear amplitude ``10 ** (level / 20)`` of levels in decibels, relative to 0 dB.

    Examples
    --------
    >>> amplitude_from_db([0.0, 20.0]).round(3).tolist()
    [1.0, 10.0]
    """
    level = np.asarray(level_db, np.float32)
    return np.asarray(np.exp(level * np.float32(np.log(10) / 20)), np.float32)


def speckle_looks(tiles: Sequence[NDArray[np.floating]], /) -> float:
    """Return the equivalent number of looks of the tiles' speckle: 1 for single speckle, more for smoother tiles.

    Two neighbouring samples ``a, b`` of gamma-distributed speckle with ``L`` looks have
    ``mean(((a - b) / (a + b))^2) = 1 / (2 L + 1)``; speckle that is correlated between pixels counts as smoother.

    Parameters
    ----------
    tiles : sequence of ndarray, shape (x, y)
        Linear, non-negative images; NaN is skipped. A sparse sample of every tile is looked at.

    Returns
    -------
    float
        Between 0.5 and 1000; the median over the tiles.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> round(speckle_looks([rng.gamma(4, size=(200, 200))]))
    4
    """
    shares = []
    for tile in tiles:
        here, there = tile[::5, :-1], tile[::5, 1:]
        both = here + there
        good = both > 0
        if good.any():
            shares.append(float(np.mean(((here - there)[good] / both[good]) ** 2)))
    share = float(np.median(shares)) if shares else 0.0
    return float(np.clip((1 / max(share, 1e-6) - 1) / 2, 0.5, 1000.0))


def soft_floor_of_tiles(tiles: Sequence[NDArray[np.floating]], /, level: float | None = None) -> float:
    """Return the level below which tiles count as empty, as a share of the 80th percentile of their medians.

    The share is 0.3 for smooth tiles. The fewer looks their speckle has, the higher it is: the logarithm makes the dark
    grains of single speckle louder than any tissue, while the plain intensity is the best that can be done with it.

    Parameters
    ----------
    tiles : sequence of ndarray, shape (x, y)
        Linear, non-negative images; NaN is skipped. A sparse sample of every tile is looked at.
    level : float, optional
        Their `tissue_level`, where it is known already.

    Returns
    -------
    float
        The floor in units of the tiles; a tiny positive number where all tiles are zero.
    """
    share = SOFT_FLOOR * (1 + 30 / speckle_looks(tiles) ** 3)
    return max(share * (tissue_level(tiles) if level is None else level), 1e-6)


def tissue_level(tiles: Sequence[NDArray[np.floating]], /) -> float:
    """Return the usual level of tissue: the 80th percentile of the tiles' medians, 0 if it is unknown.

    Examples
    --------
    >>> tissue_level([np.full((5, 5), level) for level in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)])
    5.0
    """
    medians = []
    for tile in tiles:
        sample = tile[::5, ::5]
        sample = sample[np.isfinite(sample)]
        if sample.size:
            medians.append(float(np.median(sample)))
    return float(np.percentile(medians, 80)) if medians else 0.0


def high_pass_for_overlap(overlap_px: float, /) -> float:
    """Return the width of the blur to take away from tiles that overlap by `overlap_px` pixels.

    Wide, it leaves more of a faint texture. But a blur lacks the values beyond a tile's edge: it should not be
    wider than a quarter of the overlap.

    Examples
    --------
    >>> [high_pass_for_overlap(overlap) for overlap in (10, 48, 200)]
    [8.0, 12.0, 16.0]
    """
    return float(np.clip(overlap_px / 4, LEAST_SIGMA_PX, MOST_SIGMA_PX))


def cosine_blur_basis(length: int, sigma_px: float, /) -> FloatArray:
    """Return the rows ``B`` with ``B.T @ B @ v`` = `v` blurred by a Gaussian, edges mirrored.

    A wide Gaussian passes only the lowest cosines, so the blur of a tile is two thin matrix products instead of two
    long convolutions.

    Parameters
    ----------
    length : int
        Number of samples.
    sigma_px : float
        Standard deviation of the Gaussian.

    Returns
    -------
    ndarray, shape (cosines, length), float32

    Examples
    --------
    >>> basis = cosine_blur_basis(40, 5.0)
    >>> bool(np.allclose(basis.T @ (basis @ np.ones(40, np.float32)), 1, atol=1e-5))   # a constant stays
    True
    """
    highest = min(length, int(np.ceil(length / np.pi * 3.8 / sigma_px)) + 1)
    k = np.arange(highest)[:, None]
    x = np.arange(length)[None, :] + 0.5
    basis = np.cos(np.pi * k * x / length) * np.sqrt(2.0 / length)
    basis[0] /= np.sqrt(2.0)
    attenuation = np.exp(-0.5 * (sigma_px * np.pi * k / length) ** 2)
    return np.asarray(basis * np.sqrt(attenuation), np.float32)


_basis = lru_cache(maxsize=512)(cosine_blur_basis)


def filtered_tiles(
    tiles: Sequence[NDArray[np.floating]],
    /,
    *,
    logarithm: bool = True,
    sigma_px: float = LEAST_SIGMA_PX,
    workers: int = 2,
) -> FilteredTiles:
    """Return the tiles ready for correlation: without the instrument's shading and pattern, as a logarithm with a soft
    floor, minus a Gaussian blur.

    Parameters
    ----------
    tiles : sequence of ndarray, shape (x, y)
        Images of equal shape. NaN and infinite pixels become 0 in the result, i.e. they are ignored.
    logarithm : bool
        Take ``log(tile + floor)`` first; for linear, non-negative intensities. Negative values count as 0.
    sigma_px : float
        Width of the blur that is taken away, e.g. of `high_pass_for_overlap`.
    workers : int
        Threads.

    Returns
    -------
    FilteredTiles
        A blank (constant) tile gives zeros.
    """
    level = tissue_level(tiles) if logarithm else 0.0
    floor = np.float32(soft_floor_of_tiles(tiles, level)) if logarithm else np.float32(0)
    gain = instrument_gain(tiles, level, float(floor)) if logarithm else None
    nx, ny = tiles[0].shape
    basis_x, basis_y = _basis(nx, sigma_px), _basis(ny, sigma_px)
    result = np.empty((len(tiles), nx, ny), np.float32)
    blur = np.empty((len(tiles), len(basis_x), len(basis_y)), np.float32)

    def work(index: int) -> None:
        tile, out = tiles[index], result[index]
        # Any NaN makes the sum NaN: one cheap check instead of a mask per tile.
        holes = None if np.isfinite(tile.sum(dtype=np.float64)) else ~np.isfinite(tile)
        out[...] = tile
        if holes is not None:
            out[holes] = 0
        if logarithm:
            np.maximum(out, 0, out=out)
            if gain is not None:
                out *= gain
            out += floor
            np.log(out, out=out)
        if holes is not None:
            _fill_with_blur(out, holes, basis_x, basis_y)
        blur[index] = (basis_x @ out) @ basis_y.T
        out -= basis_x.T @ blur[index] @ basis_y
        if holes is not None:
            out[holes] = 0
        out[np.abs(out) < NOTHING] = 0

    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(len(tiles))))
    return FilteredTiles(result, blur, sigma_px)


def _blurred(image: FloatArray, basis_x: FloatArray, basis_y: FloatArray) -> FloatArray:
    return np.asarray(basis_x.T @ ((basis_x @ image) @ basis_y.T) @ basis_y)


def _fill_with_blur(tile: FloatArray, holes: NDArray[np.bool_], basis_x: FloatArray, basis_y: FloatArray) -> None:
    tile[holes] = 0
    known = np.maximum(_blurred((~holes).astype(np.float32), basis_x, basis_y), 1e-3)
    tile[holes] = (_blurred(tile, basis_x, basis_y) / known)[holes]

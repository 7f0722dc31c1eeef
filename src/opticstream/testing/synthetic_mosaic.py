"""Tiles of a made-up fibrous tissue under a stage with errors: for tests and benchmarks of stitching.

Texture of crossing fibre bundles and vessels, speckle that is independent in every tile, shading, an affine stage error
with jitter, and blank tiles in the background, all with known truth. It uses nothing from stitching.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SyntheticMosaic:
    """Tiles and the truth about them.

    Attributes
    ----------
    tiles : ndarray, shape (tiles, x, y), float32
        Linear intensities.
    cells : ndarray of int, shape (tiles, 2)
        Column and row.
    nominal_px, true_px, lattice_px : ndarray, shape (tiles, 2)
        Where the stage was sent, where it was, and where it would have been without jitter.
    blank : ndarray of bool, shape (tiles,)
        Tiles without tissue.
    clean : ndarray, shape (tiles, x, y), float32
        The tiles without speckle and shading.
    """

    tiles: NDArray[np.float32]
    cells: NDArray[np.intp]
    nominal_px: NDArray[np.float64]
    true_px: NDArray[np.float64]
    lattice_px: NDArray[np.float64]
    blank: NDArray[np.bool_]
    clean: NDArray[np.float32]


def fibrous_texture(shape: tuple[int, int], /, *, seed: int = 0) -> NDArray[np.float32]:
    """Return a random texture of fibre bundles, mean 0 and standard deviation 1, shape (x, y)."""
    from scipy import fft, ndimage

    rng = np.random.default_rng(seed)
    size = tuple(fft.next_fast_len(n + 64, real=True) for n in shape)
    fx = np.fft.fftfreq(size[0]).astype(np.float32)[:, None]
    fy = np.fft.rfftfreq(size[1]).astype(np.float32)[None, :]
    noise = fft.rfft2(rng.standard_normal(size, dtype=np.float32), workers=2)
    coarse = (max(size[0] // 60, 4), max(size[1] // 60, 4))
    field = ndimage.gaussian_filter(rng.standard_normal(coarse), 1.0)
    direction = ndimage.zoom(field / field.std(), (size[0] / coarse[0], size[1] / coarse[1]), order=1)
    direction = np.mod(direction[: size[0], : size[1]], np.pi).astype(np.float32)
    texture = np.zeros(size, np.float32)
    norm = np.zeros(size, np.float32)
    bundles = 6
    for k in range(bundles):
        angle = np.pi * k / bundles
        along = fx * np.cos(angle) + fy * np.sin(angle)
        across = -fx * np.sin(angle) + fy * np.cos(angle)
        response = np.exp(-2 * np.pi**2 * ((12 * along) ** 2 + (1.8 * across) ** 2)).astype(np.float32)
        layer = fft.irfft2(noise * response, size, workers=2)
        layer /= layer.std()
        share = np.cos(direction - np.float32(angle)) ** 8
        texture += share * layer
        norm += share**2
    texture /= np.sqrt(norm)
    texture = texture[: shape[0], : shape[1]]
    for _ in range(max(2, shape[0] * shape[1] // 60_000)):  # vessels: dark tubes
        x0, y0 = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        angle, width, length = rng.uniform(0, np.pi), rng.uniform(2, 6), rng.uniform(40, 160)
        reach = int(length + 4 * width)
        xs = slice(max(0, int(x0) - reach), min(shape[0], int(x0) + reach))
        ys = slice(max(0, int(y0) - reach), min(shape[1], int(y0) + reach))
        x = np.arange(xs.start, xs.stop, dtype=np.float32)[:, None] - np.float32(x0)
        y = np.arange(ys.start, ys.stop, dtype=np.float32)[None, :] - np.float32(y0)
        along = np.abs(x * np.cos(angle) + y * np.sin(angle))
        across = -x * np.sin(angle) + y * np.cos(angle)
        beyond = np.maximum(along - length / 2, 0)
        texture[xs, ys] -= 3 * np.exp(-(across**2 + beyond**2) / (2 * width**2)).astype(np.float32)
    return np.asarray((texture - texture.mean()) / texture.std(), np.float32)


def synthetic_mosaic(
    *,
    columns: int = 4,
    rows: int = 3,
    tile_shape: tuple[int, int] = (96, 96),
    overlap: float = 0.2,
    contrast: float = 0.35,
    speckle: float = 0.5,
    step_error_px: float = 3.0,
    jitter_px: float = 2.0,
    backlash_px: tuple[float, float] = (0.0, 0.0),
    blank_fraction: float = 0.2,
    background: float = 0.02,
    seed: int = 0,
) -> SyntheticMosaic:
    """Return a mosaic of speckled tiles with its truth.

    Parameters
    ----------
    columns, rows : int
        Grid.
    tile_shape : tuple of int
        Size of a tile, (x, y).
    overlap : float
        Nominal overlap as a fraction of the tile.
    contrast : float
        Standard deviation of the logarithm of the tissue's reflectivity.
    speckle : float
        Standard deviation of the multiplicative speckle, independent in every tile and pixel.
    step_error_px : float
        Each of the four entries of the affine stage error is uniform in plus/minus this, in px per step.
    jitter_px : float
        Standard deviation of every tile's own error, along x and y; cut at three times that.
    backlash_px : tuple of float
        Extra offset (x, y) of every second column.
    blank_fraction : float
        Share of tiles that see only background; they lie together in corners, as around a specimen.
    background : float
        Mean level of the background relative to tissue.
    seed : int
        Random seed.
    """
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    size = np.array(tile_shape)
    step = size * (1 - overlap)
    cells = np.array([(c, r) for c in range(columns) for r in range(rows)], np.intp)
    nominal = cells * step
    error = rng.uniform(-step_error_px, step_error_px, (2, 2))
    lattice = nominal + cells @ error
    lattice[cells[:, 0] % 2 == 1] += np.asarray(backlash_px)
    jitter = np.clip(rng.normal(0, 1, (len(cells), 2)), -3, 3) * jitter_px
    true = lattice + jitter
    origin = np.floor(true.min(axis=0)) - 8
    canvas_shape = tuple(int(n) for n in np.ceil(true.max(axis=0) - origin + size + 8))
    texture = fibrous_texture((canvas_shape[0], canvas_shape[1]), seed=seed + 1)
    centre = (np.array([columns, rows]) - 1) / 2
    distance = np.hypot(*((cells - centre) / np.maximum(centre, 0.5)).T) + rng.uniform(0, 0.3, len(cells))
    blank = np.zeros(len(cells), bool)
    blank[np.argsort(-distance, kind="stable")[: round(blank_fraction * len(cells))]] = True
    x = np.linspace(-1, 1, tile_shape[0], dtype=np.float32)[:, None]
    y = np.linspace(-1, 1, tile_shape[1], dtype=np.float32)[None, :]
    vignette = 1 - 0.25 * (x**2 + y**2) / 2 + 0.1 * x
    tiles = np.empty((len(cells), *tile_shape), np.float32)
    clean = np.empty_like(tiles)
    shape_parameter = 1 / max(speckle, 1e-6) ** 2
    for i, position in enumerate(true - origin):
        whole = np.floor(position).astype(int)
        part = position - whole
        window = texture[whole[0] - 4 : whole[0] + size[0] + 5, whole[1] - 4 : whole[1] + size[1] + 5]
        moved = ndimage.shift(window, -part, order=3, mode="nearest")[4 : 4 + size[0], 4 : 4 + size[1]]
        tissue = np.exp(np.float32(contrast) * moved) if not blank[i] else np.full(tile_shape, background, np.float32)
        clean[i] = tissue
        gain = vignette * (1 + rng.uniform(-0.15, 0.15) * x + rng.uniform(-0.15, 0.15) * y) * rng.uniform(0.9, 1.1)
        noise = rng.standard_gamma(shape_parameter, tile_shape).astype(np.float32) / np.float32(shape_parameter)
        tiles[i] = tissue * gain * noise
    return SyntheticMosaic(tiles, cells, nominal, true, lattice, blank, clean)


def position_errors(
    estimated_px: NDArray[np.float64], true_px: NDArray[np.float64], over: NDArray[np.bool_], /
) -> NDArray[np.float64]:
    """Return the distance of every tile from its true position, after the mean over the tiles `over` is removed."""
    difference = estimated_px - true_px
    return np.asarray(np.hypot(*(difference - difference[over].mean(axis=0)).T))

"""Mosaics of several kinds of made-up tissue under everything that a real recording does to them, with their truth.

The second source of tiles for tests and benchmarks of stitching, beside `synthetic_mosaic`: six textures, tissue whose
soft edge crosses tiles, speckle with and without correlation, contrast and gain of each tile, shading, a pattern of the
instrument that is the same in all tiles, an additive noise floor, uneven focus, a turned scan, a distorted field of
view. It uses nothing from stitching.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Array = NDArray[np.float64]

BORDER_PX = 48
FINE_PX = 8.0
"""Contrast is that of what is finer than this."""


@dataclass(frozen=True)
class TissueMosaic:
    """Tiles and the truth about them.

    Attributes
    ----------
    tiles : ndarray, shape (tiles, x, y), float32
        Linear intensities; full tissue has a level of about 1.
    second : ndarray, shape (tiles, x, y), float32, or None
        Another map of the same tissue with another contrast and speckle of its own, where it was asked for.
    cells : ndarray of int, shape (tiles, 2)
        Column and row.
    nominal_px, true_px, lattice_px : ndarray, shape (tiles, 2)
        Where the stage was sent, where the tiles lie in the frame of their own pixels, and where they would lie
        without jitter.
    tissue_fraction : ndarray, shape (tiles,)
        Share of tissue in each tile.
    links : ndarray of int, shape (links, 2)
        Neighbours in the grid; the second at the larger coordinate.
    link_tissue_fraction : ndarray, shape (links,)
        Share of tissue in the true overlap.
    """

    tiles: FloatArray
    second: FloatArray | None
    cells: NDArray[np.intp]
    nominal_px: Array
    true_px: Array
    lattice_px: Array
    tissue_fraction: Array
    links: NDArray[np.intp]
    link_tissue_fraction: Array

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Tiles of the largest group that is connected by links with at least 0.3 tissue; shape (tiles,)."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        holding = self.links[self.link_tissue_fraction >= 0.3]
        n = len(self.cells)
        graph = coo_matrix((np.ones(len(holding)), (holding[:, 0], holding[:, 1])), shape=(n, n))
        group = connected_components(graph, directed=False)[1]
        return np.asarray(group == np.bincount(group).argmax())


# --- textures: logarithm of the reflectivity, to any scale --------------------------------------------------------


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma_px: float) -> FloatArray:
    """Return smooth random values of mean 0 and standard deviation 1."""
    from scipy import ndimage

    step = max(1, int(sigma_px / 4))
    coarse = tuple(n // step + 8 for n in shape)
    field = ndimage.gaussian_filter(rng.standard_normal(coarse, dtype=np.float32), sigma_px / step, mode="wrap")
    if step > 1:
        field = ndimage.zoom(field, [(n + 1) / (c - 1) for n, c in zip(shape, coarse, strict=True)], order=1)
    field = field[: shape[0], : shape[1]]
    return np.asarray((field - field.mean()) / field.std(), np.float32)


def _oriented(
    rng: np.random.Generator, shape: tuple[int, int], angle: FloatArray, scales: tuple[tuple[float, float, float], ...]
) -> FloatArray:
    """Return lines along `angle` (radians, per pixel), a sum over scales of (width px, length px, strength)."""
    from scipy import fft

    size = tuple(int(fft.next_fast_len(n, real=True)) for n in shape)
    fx = np.fft.fftfreq(size[0]).astype(np.float32)[:, None]
    fy = np.fft.rfftfreq(size[1]).astype(np.float32)[None, :]
    spectra = [fft.rfft2(rng.standard_normal(size, dtype=np.float32), workers=2) for _ in scales]
    directions = 8
    total, norm = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for k in range(directions):
        direction = np.pi * k / directions
        along = fx * np.cos(direction) + fy * np.sin(direction)
        across = -fx * np.sin(direction) + fy * np.cos(direction)
        layer_spectrum = np.zeros_like(spectra[0])
        for spectrum, (width, length, strength) in zip(spectra, scales, strict=True):
            pass_band = np.exp(-2 * np.pi**2 * ((length * along) ** 2 + (width * across) ** 2)).astype(np.float32)
            energy = 4 * np.pi * width * length  # makes every scale's standard deviation its strength
            layer_spectrum += spectrum * (pass_band * np.float32(strength * np.sqrt(energy)))
        layer = fft.irfft2(layer_spectrum, size, workers=2)[: shape[0], : shape[1]]
        share = np.cos(angle - np.float32(direction)) ** 12
        total += share * layer
        norm += share**2
    total /= np.sqrt(norm)
    return np.asarray(total / total.std(), np.float32)


def _angles(rng: np.random.Generator, shape: tuple[int, int], sigma_px: float, spread: float = 1.2) -> FloatArray:
    return np.asarray(spread * _noise(rng, shape, sigma_px) + rng.uniform(0, np.pi), np.float32)


def _tubes(
    rng: np.random.Generator, shape: tuple[int, int], per_megapixel: float, sigmas_px: tuple[float, ...]
) -> FloatArray:
    """Return winding tubes of height 1 and the given radii."""
    from scipy import ndimage

    total = np.zeros(shape, np.float32)
    for sigma in sigmas_px:
        line = np.zeros(shape, np.float32)
        count = max(1, round(per_megapixel * shape[0] * shape[1] / 1e6 / len(sigmas_px)))
        steps = 500
        turn = ndimage.gaussian_filter1d(rng.standard_normal((count, steps)), 12, axis=1) * 0.25
        heading = rng.uniform(0, 2 * np.pi, (count, 1)) + np.cumsum(turn, axis=1)
        x = rng.uniform(0, shape[0], (count, 1)) + np.cumsum(np.cos(heading), axis=1)
        y = rng.uniform(0, shape[1], (count, 1)) + np.cumsum(np.sin(heading), axis=1)
        length = rng.integers(80, steps, (count, 1))
        inside = (x >= 0) & (x < shape[0]) & (y >= 0) & (y < shape[1]) & (np.arange(steps)[None, :] < length)
        line[x[inside].astype(int), y[inside].astype(int)] = 1
        total += ndimage.gaussian_filter(line, sigma, truncate=3) * np.float32(sigma * np.sqrt(2 * np.pi))
    return np.minimum(total, 1)


def _cells(
    rng: np.random.Generator, shape: tuple[int, int], per_megapixel: float, sigmas_px: tuple[float, ...]
) -> FloatArray:
    """Return round spots, of heights 0 to 1 in either sense, and the given radii."""
    from scipy import ndimage

    total = np.zeros(shape, np.float32)
    for sigma in sigmas_px:
        spots = np.zeros(shape, np.float32)
        count = round(per_megapixel * shape[0] * shape[1] / 1e6 / len(sigmas_px))
        spots[rng.integers(0, shape[0], count), rng.integers(0, shape[1], count)] = rng.uniform(-1, 1, count)
        total += ndimage.gaussian_filter(spots, sigma, truncate=3.5) * np.float32(2 * np.pi * sigma**2)
    return total


def _fibres(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    lines = _oriented(rng, shape, _angles(rng, shape, 170), ((0.7, 5, 0.8), (1.3, 9, 0.9), (2.6, 16, 0.7)))
    return np.asarray(lines - 2 * _tubes(rng, shape, 6, (1.5, 2.5)) + 0.6 * _noise(rng, shape, 60), np.float32)


def _cortex(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    depth = _noise(rng, shape, 350) * 9
    layers = np.sin(depth) + 0.6 * np.sin(2.7 * depth + 1)
    gx, gy = np.gradient(depth)
    radial = _oriented(rng, shape, np.arctan2(gy, gx).astype(np.float32), ((1.5, 14, 1.0),))
    cells = _cells(rng, shape, 2500, (1.5, 2.2, 3.0))
    return np.asarray(
        0.5 * layers
        + 0.4 * radial
        + 1.8 * cells
        - 2 * _tubes(rng, shape, 12, (1.5, 3.0))
        + 0.4 * _noise(rng, shape, 6),
        np.float32,
    )


def _bundles(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    inside = 1 / (1 + np.exp(-8 * (_noise(rng, shape, 22) - 0.5)))
    lines = _oriented(rng, shape, _angles(rng, shape, 60, 2.5), ((1.8, 20, 1.0), (4, 30, 0.7)))
    return np.asarray(1.6 * inside * (1 + 0.6 * lines) + 0.3 * _noise(rng, shape, 3), np.float32)


def _vessels(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return np.asarray(
        -3 * _tubes(rng, shape, 60, (1.2, 2.0, 3.5, 6.0)) + 0.35 * _noise(rng, shape, 5) + 0.4 * _noise(rng, shape, 40),
        np.float32,
    )


def _sparse(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    return np.asarray(4 * _cells(rng, shape, 1200, (1.6, 2.4, 4.0)) + 0.4 * _noise(rng, shape, 30), np.float32)


def _grey(rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
    clouds = sum((_noise(rng, shape, sigma) * weight for sigma, weight in ((3, 0.35), (7, 0.5), (18, 0.6))), start=0.0)
    return np.asarray(0.7 * clouds + 1.0 * _cells(rng, shape, 300, (2.0, 3.0)), np.float32)


TEXTURES: dict[str, Callable[[np.random.Generator, tuple[int, int]], FloatArray]] = {
    "fibres": _fibres,
    "cortex": _cortex,
    "bundles": _bundles,
    "vessels": _vessels,
    "sparse cells": _sparse,
    "grey matter": _grey,
}
"""Kinds of tissue by name."""


# --- recording ----------------------------------------------------------------------------------------------------


def tissue_mosaic(
    tissue: str = "fibres",
    *,
    columns: int = 10,
    rows: int = 10,
    tile_shape: tuple[int, int] = (350, 350),
    overlap: float = 0.2,
    contrast: float = 0.13,
    coverage: float = 0.6,
    edge_px: float = 5.0,
    speckle: float = 0.25,
    speckle_px: float = 0.6,
    tile_contrast: float = 0.75,
    tile_gain: float = 0.08,
    column_pattern: float = 0.015,
    pixel_pattern: float = 0.008,
    background: float = 0.06,
    floor_noise: float = 0.015,
    step_error_px: float = 3.0,
    jitter_px: float = 2.0,
    defocus_px: float = 0.0,
    turn_deg: float = 0.0,
    barrel_px: float = 0.0,
    with_second: bool = False,
    seed: int = 0,
) -> TissueMosaic:
    """Return a mosaic of one kind of tissue with its truth.

    Parameters
    ----------
    tissue : str
        One of `TEXTURES`.
    columns, rows, tile_shape, overlap
        The grid; `overlap` is a share of the tile.
    contrast : float
        Standard deviation of the logarithm of the reflectivity, of what is finer than `FINE_PX`.
    coverage : float
        Share of the mosaic that is tissue; 1: all of it.
    edge_px : float
        Width of the tissue's soft edge.
    speckle, speckle_px : float
        Standard deviation of the multiplicative speckle, independent in every tile, and over how many pixels it is
        smoothed (standard deviation of a Gaussian).
    tile_contrast : float
        The contrast of every tile is multiplied by a number between this and 1.
    tile_gain : float
        Relative standard deviation of every tile's gain.
    column_pattern, pixel_pattern : float
        Relative standard deviation of the instrument's pattern: the same in all tiles, per index along x and per pixel.
    background, floor_noise : float
        Level where there is no tissue, and standard deviation of the additive noise.
    step_error_px, jitter_px : float
        Entries of the affine stage error are uniform in plus/minus `step_error_px` per step; every tile has an error of
        its own.
    defocus_px : float
        Parts of the tiles are blurred by up to this.
    turn_deg : float
        By how much the scan is turned against the stage.
    barrel_px : float
        By how much the corners of the field of view are drawn out.
    with_second : bool
        Also make a second map.
    seed : int
        Random seed.

    Raises
    ------
    KeyError
        `tissue` is not in `TEXTURES`.
    """
    from scipy import ndimage

    rng = np.random.default_rng([seed, 4711])
    size = np.array(tile_shape)
    cells = np.array([(c, r) for c in range(columns) for r in range(rows)], np.intp)
    nominal = cells * size * (1 - overlap)
    lattice = nominal + cells @ rng.uniform(-step_error_px, step_error_px, (2, 2))
    placed = lattice + np.clip(rng.standard_normal((len(cells), 2)), -3, 3) * jitter_px
    turn = np.deg2rad(turn_deg)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])  # from tile to stage
    origin = np.floor(placed.min(axis=0)) - BORDER_PX
    shape = tuple(int(np.ceil(n)) for n in placed.max(axis=0) - origin + size + BORDER_PX)
    canvas_shape = (shape[0], shape[1])
    texture = TEXTURES[tissue](rng, canvas_shape)
    fine = texture - ndimage.gaussian_filter(texture, FINE_PX)
    texture = np.float32(contrast / fine.std()) * (texture - texture.mean())
    mask = _mask(rng, canvas_shape, coverage, edge_px, float(size.mean()))
    scenes = [np.log(mask * np.exp(texture) + np.float32(background) * (1 - mask))]
    if defocus_px > 0:
        scenes.append(ndimage.gaussian_filter(scenes[0], defocus_px))
    if with_second:
        scenes.append(np.log(mask * np.exp(np.float32(-0.8) * texture) + np.float32(background) * (1 - mask)))
    coefficients = [ndimage.spline_filter(scene, order=3, output=np.float32) for scene in scenes]
    u = np.linspace(-1, 1, tile_shape[0], dtype=np.float32)[:, None]
    v = np.linspace(-1, 1, tile_shape[1], dtype=np.float32)[None, :]
    columns_pattern = 1 + column_pattern * rng.standard_normal((tile_shape[0], 1), dtype=np.float32)
    pattern = columns_pattern * (1 + pixel_pattern * rng.standard_normal(tile_shape, dtype=np.float32))
    shading = (1.1 - 0.17 * u**2 - 0.13 * v**2 + 0.08 * u - 0.06 * v) * pattern

    def seen(scene: FloatArray, at: Array) -> FloatArray:
        return _sampled(scene, at, tile_shape, turned, barrel_px)

    tiles = np.empty((len(cells), *tile_shape), np.float32)
    second = np.empty_like(tiles) if with_second else None
    fraction = np.empty(len(cells))
    tile_mask = np.empty((len(cells), *tile_shape), np.float32)
    for i, at in enumerate(placed - origin):
        level = seen(coefficients[0], at)
        if defocus_px > 0:
            share = 0.5 + 0.5 * np.sin(2 * u + rng.uniform(0, 6)) * np.sin(2 * v + rng.uniform(0, 6))
            level += (seen(coefficients[1], at) - level) * share.astype(np.float32)
        own = rng.uniform(tile_contrast, 1.0)
        gain = 1 + tile_gain * float(np.clip(rng.standard_normal(), -2.5, 2.5))
        tiles[i] = np.exp(np.float32(own) * level) * (np.float32(gain) * shading)
        tiles[i] *= _speckle(rng, tile_shape, speckle, speckle_px)
        tiles[i] += np.float32(floor_noise) * rng.standard_normal(tile_shape, dtype=np.float32)
        if second is not None:
            second[i] = np.exp(np.float32(own) * seen(coefficients[-1], at)) * shading
            second[i] *= _speckle(rng, tile_shape, speckle, speckle_px)
        tile_mask[i] = _sampled(mask, at, tile_shape, turned, barrel_px, order=1)
        fraction[i] = tile_mask[i].mean()
    np.maximum(tiles, 0, out=tiles)
    true = placed @ turned  # the inverse turn: positions in the frame of the tiles' own pixels
    links, shared = _shared_tissue(cells, true, tile_mask)
    return TissueMosaic(tiles, second, cells, nominal, true, lattice @ turned, fraction, links, shared)


def _mask(
    rng: np.random.Generator, shape: tuple[int, int], coverage: float, edge_px: float, tile_px: float
) -> FloatArray:
    """Return where there is tissue, 0 to 1: blobs about as large as tiles, with a soft edge."""
    from scipy import ndimage

    if coverage >= 1:
        return np.ones(shape, np.float32)
    field = _noise(rng, shape, 0.8 * tile_px) + 0.35 * _noise(rng, shape, 0.15 * tile_px)
    inside = (field > np.quantile(field[::7, ::7], 1 - coverage)).astype(np.float32)
    return np.asarray(np.clip(ndimage.gaussian_filter(inside, edge_px), 0, 1), np.float32)


def _sampled(
    scene: FloatArray, at: Array, tile_shape: tuple[int, int], turned: Array, barrel_px: float, /, *, order: int = 3
) -> FloatArray:
    """Return a scene (its spline coefficients) at the pixels of a tile whose first pixel lies at `at`."""
    from scipy import ndimage

    if barrel_px == 0:
        whole = np.floor(at).astype(int) - BORDER_PX // 2
        reach = np.array(tile_shape) + BORDER_PX
        window = scene[max(whole[0], 0) : whole[0] + reach[0], max(whole[1], 0) : whole[1] + reach[1]]
        return np.asarray(
            ndimage.affine_transform(
                window, turned, at - np.maximum(whole, 0), tile_shape, order=order, prefilter=False, mode="nearest"
            ),
            np.float32,
        )
    pixel = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in tile_shape), indexing="ij"))
    half = (np.array(tile_shape) - 1)[:, None, None] / 2
    off = (pixel - half) / np.hypot(*half.ravel())
    pixel += barrel_px * off * (off**2).sum(axis=0)
    place = np.einsum("ij,jxy->ixy", turned, pixel) + at[:, None, None]
    return np.asarray(ndimage.map_coordinates(scene, place, order=order, prefilter=False, mode="nearest"), np.float32)


def _speckle(rng: np.random.Generator, shape: tuple[int, int], contrast: float, smooth_px: float) -> FloatArray:
    from scipy import ndimage

    looks = 4.0
    grain = (rng.standard_gamma(looks, shape) / looks - 1).astype(np.float32)
    if smooth_px > 0:
        grain = ndimage.gaussian_filter(grain, smooth_px, truncate=4, mode="wrap")
    grain *= np.float32(contrast) / grain.std()
    return np.maximum(1 + grain, np.float32(0.02))


def _shared_tissue(cells: NDArray[np.intp], true: Array, mask: FloatArray) -> tuple[NDArray[np.intp], Array]:
    number = {(int(c), int(r)): k for k, (c, r) in enumerate(cells)}
    links, shared = [], []
    size = np.array(mask.shape[1:])
    for (c, r), k in number.items():
        for neighbour in ((c + 1, r), (c, r + 1)):
            other = number.get(neighbour)
            if other is None:
                continue
            step = np.rint(true[other] - true[k]).astype(int)
            low, high = np.maximum(step, 0), np.minimum(size, size + step)
            links.append((k, other))
            shared.append(float(mask[k, low[0] : high[0], low[1] : high[1]].mean()) if (high > low).all() else 0.0)
    return np.array(links, np.intp).reshape(-1, 2), np.array(shared)


def placement_errors(estimated_px: Array, mosaic: TissueMosaic, /, *, over: NDArray[Any] | None = None) -> Array:
    """Return the distance of every scored tile from its true position after the median shift is removed.

    Parameters
    ----------
    estimated_px : ndarray, shape (tiles, 2)
        Positions.
    mosaic : TissueMosaic
        The truth.
    over : ndarray of bool, shape (tiles,), optional
        Tiles to look at instead of `mosaic.scored`.
    """
    off = estimated_px - mosaic.true_px
    off = off - np.median(off[mosaic.scored], axis=0)
    return np.asarray(np.hypot(*off[mosaic.scored if over is None else over].T))

"""The pattern of the instrument in every tile: smooth shading, and a pattern of columns and rows.

Both stay where they are in the tile while the tissue moves. Shading changes the height of a tissue's edge across the
tile, so an edge looks stronger in one neighbour than in the other and the pair comes out too close together. A pattern
along x correlates between neighbours in y at exactly no shift, whatever the stage did. Both are estimated over all
tiles, shrunk by how well the tiles agree about them, and divided out before anything is compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Array = NDArray[np.float64]

BLOCK_PX = 16
DEGREE, LOW_DEGREE = 4, 2
"""Of the polynomial of shading; the lower one where parts of the field were never seen with tissue."""
LEAST_SEEN = 4
"""Tiles that must show tissue in a part of the field."""
TISSUE_SHARE = 0.4
"""A block is tissue where its mean exceeds this share of the usual level of tissue."""
MOST_TILES = 40
"""A pattern is known well enough from so many tiles."""
MOST_GAIN = 3.0
"""Largest difference of an instrument's gain over the field that is believed (natural logarithm): a factor of 20."""
FINE_PX = 6.0
"""A pattern changes over less than this length; slower changes are shading."""


def instrument_gain(tiles: Sequence[NDArray[np.floating]], level: float, floor: float, /) -> FloatArray:
    """Return the factor for every pixel of the tiles that makes tissue look the same over the whole field.

    Parameters
    ----------
    tiles : sequence of ndarray, shape (x, y)
        Linear, non-negative intensities. NaN is skipped.
    level : float
        Usual level of tissue.
    floor : float
        Level below which pixels count as empty.

    Returns
    -------
    ndarray, shape (x, y), float32
        About 1. All 1 if the tiles are too few, or too different, to distinguish instrument from tissue.
    """
    shape = tiles[0].shape
    if len(tiles) < 4 or min(shape) < 3 * BLOCK_PX or not level > 0:
        return np.ones(shape, np.float32)
    blocks = np.stack([_block_means(tile) for tile in tiles])
    tissue = _interior(np.isfinite(blocks) & (blocks > TISSUE_SHARE * level))
    logarithm = np.log(np.where(tissue, blocks, 1.0))
    gain = -_shading(logarithm, tissue, shape)
    whole = np.flatnonzero(tissue.mean(axis=(1, 2)) > 0.5)
    if len(whole) >= 8:
        chosen = whole[np.unique(np.linspace(0, len(whole) - 1, MOST_TILES).astype(int))]
        columns, rows = _pattern([tiles[k] for k in chosen], tissue[chosen], floor)
        gain -= columns[:, None] + rows[None, :]
    if not np.ptp(gain) < MOST_GAIN:  # no instrument is like that: the tiles do not agree
        return np.ones(shape, np.float32)
    return np.exp(gain - gain.mean()).astype(np.float32)


def _block_means(tile: NDArray[np.floating]) -> Array:
    nx, ny = (n // BLOCK_PX * BLOCK_PX for n in tile.shape)
    # Every fourth row is enough for the mean of a block.
    part = np.asarray(tile[:nx:4, :ny], np.float32)
    return np.asarray(
        part.reshape(nx // BLOCK_PX, BLOCK_PX // 4, ny // BLOCK_PX, BLOCK_PX).mean(axis=(1, 3)), np.float64
    )


def _interior(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the blocks whose four neighbours are tissue as well: an edge is not shading."""
    padded = np.pad(tissue, ((0, 0), (1, 1), (1, 1)), mode="edge")
    return np.asarray(
        tissue & padded[:, 2:, 1:-1] & padded[:, :-2, 1:-1] & padded[:, 1:-1, 2:] & padded[:, 1:-1, :-2], bool
    )


def _shading(level: Array, tissue: NDArray[np.bool_], shape: tuple[int, int]) -> Array:
    """Return the logarithm of the common shading: a polynomial over the field, shrunk by its variance."""
    across, along = (
        (np.arange(n) + 0.5) * BLOCK_PX / (0.5 * size) - 1 for n, size in zip(level.shape[1:], shape, strict=True)
    )
    degree = DEGREE if tissue.sum(axis=0).min() >= LEAST_SEEN else LOW_DEGREE
    design = _polynomials(across, along, degree).reshape(-1, tissue[0].size).T
    design, turn = np.linalg.qr(design - design.mean(axis=0))
    terms = design.shape[1]
    use = tissue.reshape(len(level), -1).astype(np.float64)
    values = level.reshape(len(level), -1)
    enough = use.sum(axis=1) >= 2 * terms
    if enough.sum() < 4:
        return np.zeros(shape)
    use, values = use[enough], values[enough]
    fitted = np.zeros(terms)
    scatter = np.eye(terms)
    weight = use.copy()
    for _ in range(4):
        total = weight.sum(axis=1, keepdims=True)
        mean = weight @ design / total
        gram = design.T @ (design * weight.sum(axis=0)[:, None]) - (mean * total).T @ mean
        own = (weight * values).sum(axis=1, keepdims=True) / total
        right = (weight * (values - own)) @ design
        inverse = np.linalg.inv(gram + 1e-6 * np.trace(gram) / terms * np.eye(terms))
        fitted = inverse @ right.sum(axis=0)
        residual = values - own - (design @ fitted)[None, :] + (mean @ fitted)[:, None]
        spread = 1.4826 * np.median(np.abs(residual[weight > 0]))
        # What each tile alone would add to the normal equations: tiles are independent, blocks of a tile are not.
        force = (weight * residual) @ design - (weight * residual).sum(axis=1, keepdims=True) * mean
        scatter = inverse @ (force.T @ force) @ inverse
        weight = use / np.maximum(np.abs(residual) / max(2 * spread, 1e-6), 1)
    variance = np.diag(scatter) * len(use) / max(len(use) - 1, 1)
    # A few tiles also give a poor estimate of their scatter.
    variance = 2 * (1 + 20 / len(use)) * variance
    fitted = fitted * np.maximum(1 - variance / np.maximum(fitted**2, 1e-12), 0)
    fitted = np.linalg.solve(turn, fitted)
    fine = _polynomials(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), degree)
    return np.asarray(np.einsum("k,kxy->xy", fitted, fine), np.float64)


def _polynomials(x: Array, y: Array, degree: int) -> Array:
    return np.stack(
        [x[:, None] ** i * y[None, :] ** j for i in range(degree + 1) for j in range(degree + 1 - i) if i + j > 0]
    )


def _pattern(tiles: Sequence[NDArray[np.floating]], tissue: NDArray[np.bool_], floor: float) -> tuple[Array, Array]:
    """Return the logarithm of the instrument's columns and rows, each shrunk by how much the tiles disagree."""
    from scipy import ndimage

    profiles: tuple[list[Array], list[Array]] = ([], [])
    for tile, blocks in zip(tiles, tissue, strict=True):
        share = float(blocks.mean())
        for axis, sample in ((0, tile[:, ::8]), (1, tile[::8, :])):
            level = np.log(np.maximum(sample, 0) + np.float32(floor))
            profile = np.nan_to_num(np.asarray(np.nanmean(level, axis=1 - axis), np.float64))
            profile -= ndimage.gaussian_filter1d(profile, FINE_PX, mode="nearest")
            profiles[axis].append(profile / share)
    result = []
    for profile_of_tiles in profiles:
        stack = np.stack(profile_of_tiles)
        middle = np.median(stack, axis=0)
        n = len(stack)
        noise = (1.4826 * np.median(np.abs(stack - middle), axis=0)) ** 2 * (np.pi / 2) / n
        signal = float((middle**2).mean() - noise.mean() * (1 + 3 * np.sqrt(2 / stack.shape[1])))
        share = max(signal, 0.0) / max(float((middle**2).mean()), 1e-30)
        # The logarithm with its floor shows only a part of a relative change.
        result.append(share * middle * (1 + SHOWN))
    return result[0], result[1]


SHOWN = 0.3
"""Floor over level of tissue: by this the logarithm of level + floor changes less than that of the level."""

"""The flat field of the tiles, from their overlaps: the same tissue, seen at two places of the field.

For a pixel p of one tile and the pixel q of its neighbour that shows the same tissue,
``log I_a(p) - log I_b(q) = log v(p) - log v(q) + g_a - g_b``: the tissue drops out, so that it cannot be taken for the
instrument, however little of it there is. Overlaps show the rim of the field alone; what lies between follows from how
smooth log v is there, a random function of the same smoothness at all places and in all directions. The gains g of
tiles are about 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._seams import shared_slices

FloatArray = NDArray[np.float32]
Array = NDArray[np.float64]

BLOCK_PX = 8
"""Side of the blocks that are compared; smaller where an overlap does not hold four of them side by side."""
DEGREE = 6
"""Of the polynomial."""
FEWEST_PAIRS = 6
"""Pairs of tiles with tissue in common, along each axis, below which nothing is said."""

_POWERS = [(i, j) for i in range(DEGREE + 1) for j in range(DEGREE + 1 - i) if i + j]
_SMALLEST_PX = 3
_TISSUE_SHARE = 0.3
_FEWEST_BLOCKS = 12
_GAIN_PRIOR = 0.05
_AMPLITUDES = (0.25, 0.5, 1.0, 2.0, 4.0)
_LENGTHS = (1.4, 2.0, 2.8, 4.0)
"""Of log v as a random function, and over how many half widths of the tile it changes: the likeliest are taken."""
_HUBER = 1.5
_MOST = 1.6


def flat_field_from_overlaps(
    tiles: Sequence[NDArray[np.floating]], offset: NDArray[np.intp], pairs: NDArray[np.intp], /, *, in_db: bool = False
) -> FloatArray | None:
    """Return the brightness of the field that all tiles share; None where too few overlaps hold tissue.

    Parameters
    ----------
    tiles : sequence of ndarray, shape (x, y)
        Linear intensities or, with `in_db`, levels in dB. NaN is skipped. Tiles of several mosaics may come together.
    offset : ndarray of int, shape (tiles, 2)
        Pixel position of every tile.
    pairs : ndarray of int, shape (links, 2)
        Neighbours (`neighbour_pairs`).
    in_db : bool
        Whether values are levels in dB.

    Returns
    -------
    ndarray, shape (x, y), float32, or None
        A factor of mean 1 (divide by it), in dB a term of mean 0 (subtract it).

    Notes
    -----
    Blocks are used where the geometric mean of the two is tissue, so that the choice prefers neither tile. Huber
    weights leave out what has moved or is displaced.
    """
    shape = next((tile.shape for tile in tiles if min(tile.shape) > BLOCK_PX), None)
    if shape is None:
        return None
    found = _differences(tiles, offset, pairs, (shape[0], shape[1]), in_db)
    if found is None:
        return None
    value, one, two, first, second = found
    terms = _terms(one, (shape[0], shape[1])) - _terms(two, (shape[0], shape[1]))
    fitted = _fit(terms, value, first, second, len(tiles))
    x, y = (np.arange(n, dtype=float) for n in shape)
    at = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    logarithm = (_terms(at, (shape[0], shape[1])) @ fitted).reshape(shape)
    if not np.ptp(logarithm) < _MOST:  # no instrument is like that: the tiles do not agree
        return None
    if in_db:
        level = logarithm * (10 / np.log(10))
        return np.asarray(level - level.mean(), np.float32)
    factor = np.exp(logarithm)
    return np.asarray(factor / factor.mean(), np.float32)


def _differences(
    tiles: Sequence[NDArray[np.floating]],
    offset: NDArray[np.intp],
    pairs: NDArray[np.intp],
    shape: tuple[int, int],
    in_db: bool,
) -> tuple[Array, Array, Array, NDArray[np.intp], NDArray[np.intp]] | None:
    """Return the differences of logarithms, the two places of the field, and the two tiles of each."""
    rows = []
    side = _block_side(offset, pairs, shape)
    for a, b in pairs.tolist():
        if tiles[a].shape != shape or tiles[b].shape != shape:
            continue
        regions = shared_slices(offset[b] - offset[a], shape)
        shared = [np.asarray(tiles[n][region], np.float32) for n, region in zip((a, b), regions, strict=True)]
        means = [_block_means(part, side, in_db) for part in shared]
        if not means[0].size:
            continue
        where = np.stack(np.meshgrid(*(np.arange(n) for n in means[0].shape), indexing="ij"), axis=-1)
        middle = where.reshape(-1, 2) * float(side) + (side - 1) / 2
        starts = [np.array([s.start or 0 for s in region], float) for region in regions]
        rows.append((a, b, means[0].ravel(), means[1].ravel(), middle + starts[0], middle + starts[1]))
    if not rows:
        return None
    levels = [np.sqrt(np.maximum(one, 0) * np.maximum(two, 0)) for _, _, one, two, _, _ in rows]
    everything = np.concatenate(levels)
    everything = everything[np.isfinite(everything)]
    if not everything.size or not np.percentile(everything, 95) > 0:
        return None
    least = _TISSUE_SHARE * float(np.percentile(everything, 95))
    value, one_at, two_at, first, second = [], [], [], [], []
    along = [0, 0]
    for (a, b, one, two, p, q), level in zip(rows, levels, strict=True):
        use = level > least  # NaN is not
        if use.sum() < _FEWEST_BLOCKS:
            continue
        step = np.abs(offset[b] - offset[a])
        along[int(step[1] > step[0])] += 1
        value.append(np.log(one[use] / two[use]))
        one_at.append(p[use])
        two_at.append(q[use])
        first.append(np.full(int(use.sum()), a, np.intp))
        second.append(np.full(int(use.sum()), b, np.intp))
    if min(along) < FEWEST_PAIRS:
        return None
    parts = (value, one_at, two_at)
    joined = [np.concatenate(part).astype(np.float64) for part in parts]
    return joined[0], joined[1], joined[2], np.concatenate(first), np.concatenate(second)


def _block_side(offset: NDArray[np.intp], pairs: NDArray[np.intp], shape: tuple[int, int]) -> int:
    """Return the side of blocks of which four fit side by side into the usual overlap."""
    if not len(pairs):
        return BLOCK_PX
    common = np.array(shape) - np.abs(offset[pairs[:, 1]] - offset[pairs[:, 0]])
    return int(np.clip(np.median(common.min(axis=1)) // 4, _SMALLEST_PX, BLOCK_PX))


def _block_means(region: FloatArray, side: int, in_db: bool) -> Array:
    """Return the mean linear intensity of whole blocks; NaN where a pixel has no value."""
    nx, ny = (n // side for n in region.shape)
    part = region[: nx * side, : ny * side].astype(np.float64)
    if in_db:
        part = 10 ** (part / 10)
    return np.asarray(part.reshape(nx, side, ny, side).mean(axis=(1, 3)))


def _terms(at: Array, shape: tuple[int, int]) -> Array:
    """Return products of powers at places of the field, without the constant, (places, terms)."""
    u = 2 * at / (np.array(shape) - 1.0) - 1
    return np.stack([u[:, 0] ** i * u[:, 1] ** j for i, j in _POWERS], axis=1)


@cache
def _smooth_fields() -> list[Array]:
    """Return terms combined into independent fields of variance 1, (terms, fields), for each amplitude and length.

    Fields are those of a Gaussian process with the covariance ``amplitude^2 exp(-|p - q|^2 / (2 length^2))`` between
    the places p and q from -1 to 1, as far as the polynomial can follow.
    """
    side = np.linspace(-1, 1, 2 * DEGREE + 1)
    at = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    powers = np.stack([at[:, 0] ** i * at[:, 1] ** j for i, j in [(0, 0), *_POWERS]], axis=1)
    coefficients = np.linalg.pinv(powers)[1:]
    apart = ((at[:, None] - at[None]) ** 2).sum(-1)
    fields = []
    for length in _LENGTHS:
        covariance = coefficients @ np.exp(-apart / (2 * length**2)) @ coefficients.T
        variance, direction = np.linalg.eigh(covariance)
        half = direction * np.sqrt(np.maximum(variance, 0))
        fields += [amplitude * half for amplitude in _AMPLITUDES]
    return fields


def _likeliest(normal: Array, pull: Array) -> Array:
    """Return the coefficients under the amplitude and length that make the differences likeliest."""
    best, found = -np.inf, np.zeros(len(pull))
    for fields in _smooth_fields():
        matrix, right = np.eye(len(pull)) + fields.T @ normal @ fields, fields.T @ pull
        share = np.linalg.solve(matrix, right)
        likelihood = 0.5 * float(right @ share) - 0.5 * float(np.linalg.slogdet(matrix)[1])
        if likelihood > best:
            best, found = likelihood, fields @ share
    return found


def _fit(terms: Array, value: Array, first: NDArray[np.intp], second: NDArray[np.intp], tiles: int) -> Array:
    """Return the coefficients; tiles differ in gain, which is eliminated with its prior."""
    from scipy import sparse
    from scipy.sparse import linalg

    rows = np.arange(len(value))
    gains = sparse.csr_matrix(
        (np.repeat([1.0, -1.0], len(value)), (np.tile(rows, 2), np.concatenate([first, second]))),
        shape=(len(value), tiles),
    )
    fitted, own = np.zeros(terms.shape[1]), np.zeros(tiles)
    spread = max(1.4826 * float(np.median(np.abs(value - np.median(value)))), 1e-3)
    weight = np.ones(len(value))
    for _ in range(6):
        scaled = weight / spread**2
        cross = np.asarray(gains.T @ (terms * scaled[:, None]))
        inner = (gains.T @ gains.multiply(scaled[:, None])).tocsc() + sparse.identity(tiles, format="csc") * (
            1 / _GAIN_PRIOR**2
        )
        solve = linalg.splu(inner)
        pull = np.asarray(gains.T @ (scaled * value))
        normal = terms.T @ (terms * scaled[:, None]) - cross.T @ solve.solve(cross)
        fitted = _likeliest(normal, terms.T @ (scaled * value) - cross.T @ solve.solve(pull))
        own = solve.solve(pull - cross @ fitted)
        off = np.abs(value - terms @ fitted - gains @ own)
        spread = max(1.4826 * float(np.median(off)), 1e-3)
        weight = 1 / np.maximum(off / (_HUBER * spread), 1)
    return np.asarray(fitted, np.float64)

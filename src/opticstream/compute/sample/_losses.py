"""What sections take away at each place: measured where two slices saw the same tissue, else told by its brightness.

Brighter tissue takes away more light (or less). How much, the sample itself says: where pairs of slices show what a
section takes away more at one place than at another, the brightness there is known, too. The curve that follows is
free of the gains, which shift all places alike. It says where within a section the light is lost, what sections lose
that no pair crosses, and how the mean losses of sections differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.sample._levels import PairLevels, SliceLevels

Array = NDArray[np.float64]
Single = NDArray[np.float32]

LAYERS = 4
"""Layers of a section, in each of which the loss is the same at all depths."""

_SMOOTH_BLOCKS = 3.0
"""Smoothing of the brightness: what is finer tells less of what is taken away than it disturbs."""
_PARTS = 4
"""Parts of the tissue along x and along y."""
_KNOTS = 6
_STEP_PRIOR_DB = 2.0
_LEAST_DB = 0.1
_MOST_LIKE = 0.95
_ITERATIONS = 60
_AT_ONCE = 2_000_000
"""Losses, of blocks and sections, that are found at once; with what is needed on the way 0.15 GB."""


def layer_planes(layer: int, section_planes: float, /) -> tuple[int, int]:
    """Return the first plane of a layer below the face of a slice, and the one after its last.

    Examples
    --------
    >>> [layer_planes(k, 10) for k in range(4)]
    [(0, 2), (2, 5), (5, 8), (8, 10)]
    """
    first = round(layer * section_planes / LAYERS)
    return first, max(first + 1, round((layer + 1) * section_planes / LAYERS))


def layer_levels(levels: SliceLevels, section_planes: float, /) -> Single:
    """Return the smoothed level of each whole layer of a slice in dB, shape (x, y, layers); NaN outside the tissue."""
    from scipy import ndimage

    inside = levels.tissue.astype(np.float32)
    floor = np.float32(max(0.5 * levels.noise, 1e-30))
    around = np.maximum(ndimage.gaussian_filter(inside, _SMOOTH_BLOCKS), 1e-3)
    layers: list[Single] = []
    while (planes := layer_planes(len(layers), section_planes))[1] <= levels.power.shape[2]:
        power = levels.power[:, :, slice(*planes)]
        level = 10 * np.log10(np.maximum(np.where(np.isfinite(power), power, floor), floor)).mean(2)
        smooth = ndimage.gaussian_filter(level * inside, _SMOOTH_BLOCKS) / around
        layers.append(np.where(levels.tissue, smooth, np.nan).astype(np.float32))
    return np.stack(layers, 2).astype(np.float32) if layers else np.zeros((*inside.shape, 0), np.float32)


@dataclass(frozen=True)
class LossCurve:
    """What a section takes away, by the brightness of its tissue."""

    level_db: Array
    """Brightness at the knots."""
    loss_db: Array
    """Loss of a whole section of that brightness."""
    error_db: float
    """Standard deviation of one place about the curve."""
    mean_error_db: float
    """Standard deviation of the mean over a section about the curve."""
    likeness: float
    """Correlation of what the curve leaves, from a section to the next, 0..1."""

    def losses(self, level_db: Single, /) -> Single:
        """Return the loss of each layer, shape (x, y, layers); 0 outside the tissue."""
        known = np.isfinite(level_db)
        found = np.interp(np.where(known, level_db, 0), self.level_db, self.loss_db) / LAYERS
        return np.where(known, found, 0).astype(np.float32)

    def mean_loss(self, level_db: Single, /) -> float:
        """Return the mean loss of a section."""
        return LAYERS * float(self.losses(level_db)[np.isfinite(level_db)].mean())

    def slope(self, level_db: Single, /) -> float:
        """Return by how much the mean loss of a section grows with its brightness."""
        return self.mean_loss(level_db + np.float32(0.5)) - self.mean_loss(level_db - np.float32(0.5))


NO_CURVE = LossCurve(np.array([0.0, 1.0]), np.zeros(2), 2.0, 1.0, 0.7)
"""Before anything is known: losses may differ by some dB, and sections are much like their neighbours."""


def loss_curve(tissue: Mapping[int, Single], pairs: Sequence[PairLevels], /) -> LossCurve | None:
    """Return how the loss of a section follows from its brightness; None where no pair tells.

    Parameters
    ----------
    tissue : mapping of int to ndarray, shape (x, y, layers)
        Brightness of the layers of each section.
    pairs : sequence of PairLevels
        What slices say of each other.

    Notes
    -----
    Least squares over places, each against the mean over its section, with a piecewise linear curve; steps between
    its knots are 0 but for what the data say. Places beside each other are not independent: parts of the tissue are.
    """
    told = [p for p in pairs if all(s in tissue for s in range(p.first, p.second)) and (p.weight > 0).any()]
    if not told:
        return None
    levels = np.concatenate([level[np.isfinite(level)] for level in tissue.values()])
    knots = np.unique(np.quantile(levels, np.linspace(0.02, 0.98, _KNOTS)))
    if len(knots) < 2:
        return None
    normal, right = np.zeros((len(knots), len(knots))), np.zeros(len(knots))
    rows = []
    for pair in told:
        crossed = range(pair.first, pair.second)
        known = (pair.weight > 0) & np.all([np.isfinite(tissue[s]).all(2) for s in crossed], axis=0)
        if not known.any():
            continue
        weight = pair.weight[known].astype(float)
        weight /= weight.sum()
        shares = np.sum([_shares(tissue[s][known], knots) for s in crossed], axis=0)
        shares = shares - weight @ shares
        loss = -pair.local_db[known].astype(float)
        loss -= weight @ loss
        counts = weight / len(crossed)
        normal += shares.T @ (shares * counts[:, None])
        right += shares.T @ (counts * loss)
        rows.append((pair, known, weight, shares, loss, len(crossed)))
    if not rows:
        return None
    steps = np.diff(np.eye(len(knots)), axis=0)
    spread = float(np.mean([weight @ loss**2 / sections for *_, weight, _, loss, sections in rows]))
    independent = sum(1 / sections for *_, sections in rows) * _PARTS**2
    prior = steps.T @ steps * (sum(1 / s for *_, s in rows) * spread / (independent * _STEP_PRIOR_DB**2))
    curve = np.linalg.solve(normal + prior + 1e-9 * np.eye(len(knots)), right)
    left = [loss - shares @ curve for *_, shares, loss, _ in rows]
    error = np.mean([weight @ off**2 / sections for off, (_, _, weight, *_, sections) in zip(left, rows, strict=True)])
    maps: dict[int, Single] = {}
    for off, (pair, known, *_) in zip(left, rows, strict=True):
        if pair.second == pair.first + 1:
            maps[pair.first] = _smoothed(known, off)
    parts = [_part_means(known, off) / sections for off, (_, known, *_, sections) in zip(left, rows, strict=True)]
    return LossCurve(
        knots,
        np.asarray(curve, np.float64),
        float(np.hypot(_LEAST_DB, np.sqrt(error))),
        _of_mean(parts),
        _likeness(maps),
    )


def _smoothed(known: NDArray[np.bool_], value: Array) -> Single:
    """Return a map of what is known, smoothed; NaN elsewhere."""
    from scipy import ndimage

    filled = np.zeros(known.shape, np.float32)
    filled[known] = value
    around = np.maximum(ndimage.gaussian_filter(known.astype(np.float32), _SMOOTH_BLOCKS), 1e-3)
    return np.where(known, ndimage.gaussian_filter(filled, _SMOOTH_BLOCKS) / around, np.nan).astype(np.float32)


def _likeness(maps: Mapping[int, Single]) -> float:
    """Return the correlation between the maps of sections one below the other; 0 where there are none."""
    both, one, two = 0.0, 0.0, 0.0
    for section, upper in maps.items():
        if section + 1 in maps:
            known = np.isfinite(upper) & np.isfinite(maps[section + 1])
            a, b = upper[known].astype(float), maps[section + 1][known].astype(float)
            both, one, two = both + float(a @ b), one + float(a @ a), two + float(b @ b)
    return float(np.clip(both / np.sqrt(one * two), 0, _MOST_LIKE)) if one * two > 0 else 0.0


def brightness_spread(tissue: Mapping[int, Single], /) -> float:
    """Return by how much the mean brightness of sections may differ, from how their parts do; 1 dB if nothing tells."""
    parts = []
    for level in tissue.values():
        known = np.asarray(np.isfinite(level).all(2))
        if known.any():
            mean = level[known].mean(1)
            parts.append(_part_means(known, mean - mean.mean()))
    return _of_mean(parts) if parts else 1.0


def _of_mean(parts: Sequence[Array]) -> float:
    """Return the standard deviation of a mean over parts that are nearly independent of each other."""
    count = float(np.mean([len(part) for part in parts]))
    variance = float(np.mean(np.concatenate(parts) ** 2))
    return float(np.hypot(_LEAST_DB, np.sqrt(variance / max(count - 1, 1))))


def _part_means(known: NDArray[np.bool_], value: Array) -> Array:
    """Return the means of a map over the parts of the tissue that are not too small."""
    at = np.zeros(len(value), int)
    for places in np.nonzero(known):
        low, high = places.min(), places.max() + 1
        at = at * _PARTS + (places - low) * _PARTS // (high - low)
    count = np.bincount(at, minlength=_PARTS**2)
    large = 4 * _PARTS**2 * count >= len(value)
    return np.asarray((np.bincount(at, value, minlength=_PARTS**2) / np.maximum(count, 1))[large])


def _shares(level_db: Single, knots: Array) -> Array:
    """Return how much each knot of the curve counts for the loss of places, from levels of shape (places, layers)."""
    units = np.eye(len(knots))
    return np.stack([np.interp(level_db, knots, unit).mean(1) for unit in units], axis=1)


def local_losses(
    pairs: Sequence[PairLevels],
    sections: Sequence[int],
    /,
    *,
    curve: LossCurve,
    tissue: Mapping[int, Single],
    smooth_blocks: float = 1.5,
) -> dict[int, Single]:
    """Return by how many dB more than on average the layers of each section take away at each block.

    Each pair sees the sum over the sections between its slices.

    Parameters
    ----------
    pairs : sequence of PairLevels
        What slices say of each other.
    sections : sequence of int
        All sections, one after the other.
    curve : LossCurve
        Loss by brightness. What it leaves is alike in neighbouring sections, as far as it says.
    tissue : mapping of int to ndarray, shape (x, y, layers)
        Brightness of the layers of sections.
    smooth_blocks : float
        Standard deviation of the smoothing of what pairs say, in blocks.

    Returns
    -------
    dict of int to ndarray, shape (x, y, layers)
        What pairs say beyond the curve is spread over all layers alike.
    """
    from scipy import ndimage

    if not pairs:
        return {}
    at = {s: k for k, s in enumerate(sections)}
    shape = pairs[0].local_db.shape
    before: dict[int, Single] = {}
    for s, level in tissue.items():
        loss = curve.losses(level)
        inside = np.asarray(np.isfinite(level).all(2))
        mean = float(loss[inside].sum(1).mean()) / LAYERS if inside.any() else 0.0
        before[s] = np.where(inside[:, :, None], loss - np.float32(mean), np.float32(0))
    smooth = []
    for pair in pairs:
        weight = pair.weight  # float32: of many pairs this is most of the memory
        crossed = [before[s].sum(2) for s in range(pair.first, pair.second) if s in before]
        value = (pair.local_db + np.sum(crossed, axis=0)) * weight if crossed else pair.local_db * weight
        if smooth_blocks > 0:
            weight = ndimage.gaussian_filter(weight, smooth_blocks)
            value = ndimage.gaussian_filter(value, smooth_blocks)
        smooth.append((at[pair.first], at[pair.second], value, weight))

    found = np.zeros((len(sections), *shape), np.float32)
    rows = max(1, _AT_ONCE // (len(sections) * shape[1]))
    for first in range(0, shape[0], rows):
        part = slice(first, first + rows)
        sums = [(i, j, value[part], weight[part]) for i, j, value, weight in smooth]
        found[:, part] = _beyond_curve(sums, len(sections), curve)
    nothing = np.zeros((*shape, LAYERS), np.float32)
    return {s: (before.get(s, nothing) + (found[k] / LAYERS)[:, :, None]).astype(np.float32) for s, k in at.items()}


def _beyond_curve(sums: Sequence[tuple[int, int, Single, Single]], sections: int, curve: LossCurve) -> Array:
    """Return what sections take away beyond the curve at some blocks, shape (sections, x, y).

    Parameters
    ----------
    sums : sequence of (int, int, ndarray, ndarray)
        What pairs say: first section and the one after the last; minus the sum of their losses times its weight, and
        the weight, both (x, y).
    sections : int
        Number of sections.
    curve : LossCurve
        How large and how much alike losses beyond it are.
    """
    like = curve.likeness
    variance = curve.error_db**2 * (1 - like**2)

    def normal(maps: Array) -> Array:
        # The inverse of the covariance of an autoregressive chain of sections.
        out = maps * (1 - like) ** 2
        out[[0, -1]] += like * (1 - like) * maps[[0, -1]]
        step = like * np.diff(maps, axis=0)
        out[:-1] -= step
        out[1:] += step
        out /= variance
        for first, second, _, weight in sums:
            out[first:second] += weight * maps[first:second].sum(0)
        return out

    right = np.zeros((sections, *sums[0][2].shape))
    for first, second, value, _ in sums:
        right[first:second] -= value
    # Conjugate gradients, for all blocks at once: each block is a small system of its own.
    found = np.zeros_like(right)
    rest = right.copy()
    direction = rest.copy()
    size = (rest**2).sum(0)
    for _ in range(min(4 * sections, _ITERATIONS)):
        if float(size.max(initial=0)) < 1e-10:
            break
        turned = normal(direction)
        step = np.where(size > 0, size / np.maximum((direction * turned).sum(0), 1e-30), 0)
        found += step * direction
        rest -= step * turned
        old, size = size, (rest**2).sum(0)
        direction = rest + np.where(old > 0, size / np.maximum(old, 1e-30), 0) * direction
    return found

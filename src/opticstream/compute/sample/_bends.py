"""The rigid motion nearest to that of a slice that bends against another one, and how well it is known.

A rigid comparison of two slices that are bent against each other settles where some part of them agrees. The shifts
that blocks are left with show the rest: what of them is alike in neighbouring blocks is the bend, the remainder noise.
A random field with the covariance that explains them best (restricted maximum likelihood) tells the bend where there
is tissue, and how uncertain it is there (universal kriging, e.g. Chilès & Delfiner 2012, "Geostatistics").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration import BlockShifts, PlanarTransform, shifts_of_blocks

Array = NDArray[np.float64]

_FEWEST = 9
"""Blocks from which a bend can be told from noise."""
_SCALES = (0.15, 0.25, 0.4, 0.7)
"""Lengths over which bends are alike, in sizes of the field."""
_RATIOS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Variances of bends, in variances of the noise."""
_EVIDENCE = 12.0
"""Twice the logarithm of the likelihood by which a bend must explain the shifts better than noise does."""
_ROUNDS = 3
_OUTLIER = 2.5
"""Distance, in standard deviations, from which the shift of a block counts for less."""
_MEASURED = 8
"""Most rounds in which a bend is measured."""
_STILL_FALLS = 0.8
"""Share of what was left in the round before from which another round is of no use."""
_BLOCKS = 7
"""Blocks along each side by which it is measured; they overlap by half."""
_NEAR_PX = 3.0
"""Distance within which a place follows the bend of the others."""
_POINTS = 80
"""Points of the tissue at which the bend is told, or a few more."""


class NearestRigid(NamedTuple):
    """What a rigid mapping lacks of the one nearest to a bent slice."""

    shift_px: tuple[float, float]
    """Displacement of the middle of the tissue, in fixed pixels."""
    turn_rad: float
    """Angle about that middle."""
    middle_px: tuple[float, float]
    sigma_px: float
    """Standard deviation of each component of the shift, and of the turn times the lever of the tissue."""
    residual_px: float
    """Median distance of the shifts of blocks from what motion and bend of the other blocks tell."""
    agreeing: float
    """Share of the blocks that follow motion and bend."""


class EdgeBend(NamedTuple):
    """How two slices are bent against each other: the rigid motion from the first to the second lacks these."""

    at_px: Array
    """Places in the first slice, (places, 2)."""
    moved_px: Array
    """Displacement there, before the rigid motion, in px of the first slice, (places, 2)."""
    sigma_px: Array
    """Standard deviation of each of its components, (places,)."""
    length_px: float
    """Length over which it is alike."""
    size_px: float
    """Standard deviation of each component of such bends, about a rigid motion."""

    likeness: Array
    """Likeness of both slices at these places."""

    @property
    def blocks(self) -> BlockShifts:
        """What blocks would be shifted by without it."""
        return BlockShifts(self.at_px, -self.moved_px, self.likeness, _NEAR_PX)

    def scaled(self, factor: float, /) -> EdgeBend:
        """Return the same in pixels that are `factor` times smaller."""
        shift = (factor - 1) / 2
        return EdgeBend(
            self.at_px * factor + shift,
            self.moved_px * factor,
            self.sigma_px * factor,
            self.length_px * factor,
            self.size_px * factor,
            self.likeness,
        )


class _Field(NamedTuple):
    """A fit to the shifts of blocks: motion and random field."""

    minus_twice_log: float
    covariance: Array
    """Of the shifts, in variances of the noise."""
    noise: float
    """Variance of the noise of a clear block, px^2."""
    motion: Array
    """Shift x, shift y, turn times lever."""
    uncertain: Array
    """Covariance of the motion, in variances of the noise."""


class _Explained(NamedTuple):
    """What explains the shifts of blocks best."""

    field: _Field
    still: _Field
    """The same without a bend."""
    at: Array
    """Middles of the blocks, from the middle of the tissue, in levers."""
    doubt: Array
    """Factor on the variance of each block, 1 where it agrees with the others."""
    scale: float
    """Length over which the bend is alike, in levers."""
    ratio: float
    """Variance of the bend in variances of the noise."""
    left: Array
    """Distance of each shift from what all others tell, px."""

    @property
    def bent(self) -> bool:
        """Whether a bend explains the shifts clearly better than noise."""
        return self.still.minus_twice_log - self.field.minus_twice_log >= _EVIDENCE


def nearest_rigid(blocks: BlockShifts, tissue: NDArray[np.bool_], /) -> NearestRigid | None:
    """Return the motion nearest to the shifts of blocks over the tissue; None where no bend is seen.

    Parameters
    ----------
    blocks : BlockShifts
        Shifts that blocks are left with, of which some may be wrong.
    tissue : ndarray of bool, shape (x, y)
        Where the motion is to be the nearest one.
    """
    inside = np.argwhere(tissue).astype(float)
    if len(blocks.shift) < _FEWEST or not len(inside):
        return None
    middle, lever = _middle_and_lever(inside)
    step = max(1, int(np.sqrt(len(inside) / _POINTS)))
    some = inside[(inside % step == step // 2).all(1)] if step > 1 else inside
    there = (some - middle) / lever
    explained = _explained(blocks, middle, lever)
    if len(there) < 4 or not explained.bent:
        return None
    field, at, ratio, scale = explained.field, explained.at, explained.ratio, explained.scale
    towards = ratio * _alike(there, at, scale)
    nearest = np.linalg.pinv(motions(there))
    motion = nearest @ _told(field, there, at, blocks.shift, towards).T.ravel()
    weights: Any = np.linalg.solve(field.covariance, towards.T).T
    bend = ratio * _alike(there, there, scale) - weights @ towards.T
    open_motion = motions(there) - _twice(weights) @ motions(at)
    spread = nearest @ (_twice(bend) + open_motion @ field.uncertain @ open_motion.T) @ nearest.T * field.noise
    return NearestRigid(
        (float(motion[0]), float(motion[1])),
        float(motion[2] / lever),
        (float(middle[0]), float(middle[1])),
        float(np.sqrt(max(np.trace(spread) / 3, 0.0))),
        float(np.median(explained.left)),
        float((explained.left < blocks.near_px).mean()),
    )


def bend_between(
    details: Sequence[tuple[ArrayLike, ArrayLike]],
    mapping: PlanarTransform,
    /,
    *,
    fixed_mask: NDArray[np.bool_],
    moving_mask: NDArray[np.bool_],
) -> EdgeBend | None:
    """Return how slices are bent against each other beyond a rigid motion; None where no bend is seen.

    Each round brings the second slice onto the first one with the bend that is known by then, and looks at what is
    left, on blocks that overlap.

    Parameters
    ----------
    details : sequence of (fixed, moving)
        Maps of both slices, as for `sharpened_by_details`.
    mapping : PlanarTransform
        Rigid, from the first to the second slice.
    fixed_mask, moving_mask : ndarray of bool, shape (x, y)
        Where there is tissue.
    """
    from scipy import ndimage

    inside = np.argwhere(fixed_mask).astype(float)
    if not len(inside):
        return None
    middle, lever = _middle_and_lever(inside)
    shape = (fixed_mask.shape[0], fixed_mask.shape[1])
    bend = np.zeros((2, *shape), np.float32)
    known: EdgeBend | None = None
    last = np.inf
    for _ in range(_MEASURED):
        bent = PlanarTransform(mapping.matrix, mapping.offset, bend)
        left = shifts_of_blocks(
            details, bent, fixed_mask=fixed_mask, moving_mask=moving_mask, blocks=_BLOCKS, overlapping=True
        )
        if len(left.shift) < _FEWEST:
            return None
        # What a block shows lies half its shift beside it, in either picture.
        there = np.clip(left.middle - left.shift / 2, 0, np.array(shape) - 1)
        moved = np.stack([ndimage.map_coordinates(part, there.T, order=1) for part in bend], axis=1) - left.shift
        blocks = BlockShifts(left.middle + left.shift / 2, moved, left.likeness, left.near_px)
        found = _explained(blocks, middle, lever)
        if not found.bent:
            return known
        field = found.field
        known = EdgeBend(
            blocks.middle,
            moved,
            np.sqrt(field.noise * found.doubt * _unlikeness(left.likeness)),
            found.scale * lever,
            float(np.sqrt(found.ratio * field.noise)),
            left.likeness,
        )
        now = float(np.median(np.linalg.norm(left.shift, axis=1)))
        if now > _STILL_FALLS * last:
            break
        last = now
        bend = _bend_on(shape, found, blocks, middle, lever)
    return known


def _bend_on(
    shape: tuple[int, int], found: _Explained, blocks: BlockShifts, middle: Array, lever: float
) -> NDArray[np.float32]:
    """Return the expected displacement at the pixels of a picture, (2, x, y), from a coarse grid."""
    from scipy import ndimage

    step = max(1.0, found.scale * lever / 4)
    nodes = [np.arange(0, n - 1 + 2 * step, step) for n in shape]
    coarse = np.stack(np.meshgrid(*nodes, indexing="ij"), -1).reshape(-1, 2)
    there = (coarse - middle) / lever
    told = _told(found.field, there, found.at, blocks.shift, found.ratio * _alike(there, found.at, found.scale))
    grid = told.T.reshape(2, len(nodes[0]), len(nodes[1]))
    where = np.meshgrid(*(np.arange(n) / step for n in shape), indexing="ij")
    return np.stack([ndimage.map_coordinates(part, where, order=3, mode="nearest") for part in grid]).astype(np.float32)


def _middle_and_lever(inside: Array) -> tuple[Array, float]:
    middle = inside.mean(0)
    return middle, max(float(np.sqrt(((inside - middle) ** 2).sum(1).mean())), 1.0)


def _explained(blocks: BlockShifts, middle: Array, lever: float) -> _Explained:
    """Return the motion and bend that explain shifts best; those that contradict the others count for less."""
    at = (blocks.middle - middle) / lever
    size = float(np.ptp(at, axis=0).max())
    doubt = np.ones(len(at))
    for _ in range(_ROUNDS):
        noise = doubt * _unlikeness(blocks.likeness)
        still = _fitted(at, blocks.shift, np.zeros((len(at), len(at))), noise)
        fits = {
            (scale, ratio): _fitted(at, blocks.shift, ratio * _alike(at, at, scale * size), noise)
            for scale, ratio in product(_SCALES, _RATIOS)
        }
        scale, ratio = min(fits, key=lambda pair: fits[pair].minus_twice_log)
        field = fits[scale, ratio]
        left, expected = _left_without_itself(field, at, blocks.shift)
        doubt = doubt * np.maximum(1.0, left / (_OUTLIER * expected)) ** 2
    return _Explained(field, still, at, doubt, scale * size, ratio, left)


def _unlikeness(likeness: Array) -> Array:
    """Return the variance of the noise of blocks, in that of a clear one."""
    clipped = np.clip(likeness, 0.05, 0.95)
    return np.asarray((1 - clipped**2) / clipped**2)


def motions(at: Array) -> Array:
    """Return the displacements by a shift along x, one along y and a turn, (2 points, 3): all x, then all y."""
    one, zero = np.ones(len(at)), np.zeros(len(at))
    return np.concatenate([np.stack([one, zero, -at[:, 1]], 1), np.stack([zero, one, at[:, 0]], 1)])


def _alike(one: Array, two: Array, scale: float) -> Array:
    """Return the correlation of bends at points, (points, points)."""
    return np.asarray(np.exp(-((one[:, None] - two[None]) ** 2).sum(2) / (2 * scale**2)))


def _twice(square: Array) -> Array:
    """Return the same matrix for x and for y, which know nothing of each other."""
    return np.asarray(np.kron(np.eye(2), square))


def _fitted(at: Array, shift: Array, alike: Array, noise: Array) -> _Field:
    """Return the motion that fits shifts best, and how likely they are, by restricted maximum likelihood."""
    covariance = alike + np.diag(noise)
    lower = np.linalg.cholesky(covariance)
    design, values = motions(at), shift.T.ravel()
    white: Any = np.linalg.inv(lower)
    design = (white @ design.reshape(2, len(at), 3)).reshape(-1, 3)  # x and y know nothing of each other
    values = (white @ values.reshape(2, len(at), 1)).ravel()
    normal = design.T @ design
    uncertain: Any = np.linalg.inv(normal)
    motion: Any = uncertain @ design.T @ values
    free = len(values) - 3
    squared = max(float(((values - design @ motion) ** 2).sum()), 1e-12)
    cost = 4 * np.log(np.diag(lower)).sum() + np.linalg.slogdet(normal)[1] + free * np.log(squared / free)
    return _Field(float(cost), covariance, squared / free, motion, uncertain)


def _by_motion(field: _Field, at: Array) -> Array:
    """Return what the motion of a fit makes of points, (points, 2)."""
    return np.asarray((motions(at) @ field.motion).reshape(2, -1).T)


def _told(field: _Field, there: Array, at: Array, shift: Array, alike: Array) -> Array:
    """Return the expected displacements at points, (points, 2)."""
    left = shift - _by_motion(field, at)
    return np.asarray(_by_motion(field, there) + alike @ np.linalg.solve(field.covariance, left))


def _left_without_itself(field: _Field, at: Array, shift: Array) -> tuple[Array, Array]:
    """Return how far each shift is from what all others tell, and the standard deviation of that, px."""
    left = shift - _by_motion(field, at)
    precision = np.linalg.inv(field.covariance)
    own = np.diag(precision)
    return np.linalg.norm(precision @ left, axis=1) / own, np.sqrt(2 * field.noise / own)

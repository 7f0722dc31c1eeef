"""The rigid motion nearest to that of a slice that bends against another one, and how well it is known.

A rigid comparison of two slices that are bent against each other settles where some part of them agrees. The shifts
that blocks are left with show the rest: what of them is alike in neighbouring blocks is the bend, the remainder noise.
A random field with the covariance that explains them best (restricted maximum likelihood) tells the bend where there
is tissue, and how uncertain it is there (universal kriging, e.g. Chilès & Delfiner 2012, "Geostatistics").
"""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import BlockShifts

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
    middle = inside.mean(0)
    lever = max(float(np.sqrt(((inside - middle) ** 2).sum(1).mean())), 1.0)
    step = max(1, int(np.sqrt(len(inside) / _POINTS)))
    some = inside[(inside % step == step // 2).all(1)] if step > 1 else inside
    at, there = (blocks.middle - middle) / lever, (some - middle) / lever
    size = float(np.ptp(at, axis=0).max())
    doubt = np.ones(len(at))
    likeness = np.clip(blocks.likeness, 0.05, 0.95)
    for _ in range(_ROUNDS):
        noise = doubt * (1 - likeness**2) / likeness**2
        still = _fitted(at, blocks.shift, np.zeros((len(at), len(at))), noise)
        fits = {
            (scale, ratio): _fitted(at, blocks.shift, ratio * _alike(at, at, scale * size), noise)
            for scale, ratio in product(_SCALES, _RATIOS)
        }
        scale, ratio = min(fits, key=lambda pair: fits[pair].minus_twice_log)
        field = fits[scale, ratio]
        left, expected = _left_without_itself(field, at, blocks.shift)
        doubt *= np.maximum(1.0, left / (_OUTLIER * expected)) ** 2
    if len(there) < 4 or still.minus_twice_log - field.minus_twice_log < _EVIDENCE:
        return None
    towards = ratio * _alike(there, at, scale * size)
    nearest = np.linalg.pinv(_motions(there))
    motion = nearest @ _told(field, there, at, blocks.shift, towards).T.ravel()
    weights: Any = np.linalg.solve(field.covariance, towards.T).T
    bend = ratio * _alike(there, there, scale * size) - weights @ towards.T
    open_motion = _motions(there) - _twice(weights) @ _motions(at)
    spread = nearest @ (_twice(bend) + open_motion @ field.uncertain @ open_motion.T) @ nearest.T * field.noise
    return NearestRigid(
        (float(motion[0]), float(motion[1])),
        float(motion[2] / lever),
        (float(middle[0]), float(middle[1])),
        float(np.sqrt(max(np.trace(spread) / 3, 0.0))),
        float(np.median(left)),
        float((left < blocks.near_px).mean()),
    )


def _motions(at: Array) -> Array:
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
    design, values = _motions(at), shift.T.ravel()
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


def _told(field: _Field, there: Array, at: Array, shift: Array, alike: Array) -> Array:
    """Return the expected displacements at points, (points, 2)."""
    left = shift - (_motions(at) @ field.motion).reshape(2, -1).T
    return np.asarray(
        (_motions(there) @ field.motion).reshape(2, -1).T + alike @ np.linalg.solve(field.covariance, left)
    )


def _left_without_itself(field: _Field, at: Array, shift: Array) -> tuple[Array, Array]:
    """Return how far each shift is from what all others tell, and the standard deviation of that, px."""
    left = shift - (_motions(at) @ field.motion).reshape(2, -1).T
    precision = np.linalg.inv(field.covariance)
    own = np.diag(precision)
    return np.linalg.norm(precision @ left, axis=1) / own, np.sqrt(2 * field.noise / own)

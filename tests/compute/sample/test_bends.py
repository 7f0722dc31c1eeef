"""The motion nearest to a bent slice, from the shifts of its blocks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from opticstream.compute.registration import BlockShifts
from opticstream.compute.sample._bends import nearest_rigid
from opticstream.sim.fields import Grid, SmoothField

SHAPE = (300, 260)
MIDDLE = np.stack(np.meshgrid(np.arange(25, 300, 50.0), np.arange(22, 260, 44.0), indexing="ij"), -1).reshape(-1, 2)
TISSUE = np.hypot(*np.ogrid[-1.1:1.1:300j, -1.1:1.1:260j]) < 1  # type: ignore[misc]


def bend(points: NDArray[np.float64], seed: int, length: float) -> NDArray[np.float64]:
    fields = [SmoothField(np.random.default_rng([seed, axis]), 220.0, modes=12) for axis in (0, 1)]
    grid = Grid((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), SHAPE)
    x, y = points.astype(int).T
    return length * np.stack([field.on(grid)[x, y] for field in fields], axis=1)


def blocks(seed: int, *, length: float = 0.0, noise: float = 0.2, wrong: int = 0) -> BlockShifts:
    rng = np.random.default_rng(seed)
    shift = bend(MIDDLE, seed, length) + rng.normal(0, noise, MIDDLE.shape)
    likeness = np.full(len(MIDDLE), 0.6)
    unlike = rng.permutation(len(shift))[:wrong]
    shift[unlike], likeness[unlike] = rng.uniform(-12, 12, (wrong, 2)), 0.2
    return BlockShifts(MIDDLE, shift, likeness, 3.0)


def nearest(seed: int, length: float) -> NDArray[np.float64]:
    """Return the least squares shift of the tissue's middle and its turn, from the bend itself."""
    inside = np.argwhere(TISSUE)[::7].astype(float)
    arm = inside - np.argwhere(TISSUE).mean(0)
    one, zero = np.ones(len(arm)), np.zeros(len(arm))
    design = np.concatenate([np.stack([one, zero, -arm[:, 1]], 1), np.stack([zero, one, arm[:, 0]], 1)])
    return np.asarray(np.linalg.lstsq(design, bend(inside, seed, length).T.ravel(), rcond=None)[0])


@pytest.mark.parametrize("wrong", [0, 5])
def test_the_motion_nearest_to_a_bend_is_found_within_what_is_stated(wrong: int) -> None:
    squared, before = [], []
    for seed in range(8):
        found = nearest_rigid(blocks(seed, length=3.0, wrong=wrong), TISSUE)
        assert found is not None
        true = nearest(seed, 3.0)
        off = np.array([*found.shift_px, found.turn_rad * 85.0]) - true * [1, 1, 85.0]
        squared.append(float((off**2).mean()) / found.sigma_px**2)
        before.append(float((off**2).mean()) / float(((true * [1, 1, 85.0]) ** 2).mean()))
    assert 0.5 < np.sqrt(np.mean(squared)) < 2
    assert np.median(before) < 0.1


def test_noise_is_no_bend() -> None:
    assert sum(nearest_rigid(blocks(seed), TISSUE) is not None for seed in range(12)) == 0
    assert nearest_rigid(blocks(1, noise=6.0), TISSUE) is None
    few = blocks(1, length=3.0)
    assert nearest_rigid(BlockShifts(few.middle[:8], few.shift[:8], few.likeness[:8], 3.0), TISSUE) is None

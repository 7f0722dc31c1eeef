"""Volumes resampled block by block are those resampled as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.registration import (
    PlanarTransform,
    Slant,
    resample_image,
    resample_orientation,
    resampled_blocks,
)

SIZE = (60, 50, 4)
SHAPE = (48, 56)


def _volume():
    return np.random.default_rng(0).uniform(-89, 89, SIZE).astype(np.float32)


def _mapping(*, bent: bool) -> PlanarTransform:
    turn = np.radians(7.0)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    bend = None
    if bent:
        x, y = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
        bend = np.stack([1.5 * np.sin(x / 9), 2.0 * np.cos(y / 11)]).astype(np.float32)
    return PlanarTransform(matrix, np.array([3.5, -2.25]), bend)


def _joined(read, step):
    out = np.full((*SHAPE, SIZE[2]), np.nan, np.float32)
    for x in range(0, SHAPE[0], step):
        for y in range(0, SHAPE[1], step):
            xs, ys = slice(x, min(x + step, SHAPE[0])), slice(y, min(y + step, SHAPE[1]))
            out[xs, ys] = read(xs, ys)
    return out


@pytest.mark.parametrize("step", [8, 25, 100])
@pytest.mark.parametrize("bent", [False, True])
def test_however_blocks_are_cut_they_make_the_whole(step, bent):
    volume, mapping = _volume(), _mapping(bent=bent)
    read = resampled_blocks(lambda xs, ys: volume[xs, ys], mapping, size=SIZE, resample=resample_image)
    whole = np.stack([resample_image(volume[:, :, z], mapping, shape=SHAPE) for z in range(SIZE[2])], axis=2)
    np.testing.assert_allclose(_joined(read, step), whole, atol=2e-3)


@pytest.mark.parametrize("step", [1, 8, 25])
def test_axes_of_bent_tissue_do_not_depend_on_blocks(step):
    volume, mapping = np.full(SIZE, 30.0, np.float32), _mapping(bent=True)
    read = resampled_blocks(lambda xs, ys: volume[xs, ys], mapping, size=SIZE, resample=resample_orientation)
    whole = np.stack([resample_orientation(volume[:, :, z], mapping, shape=SHAPE) for z in range(SIZE[2])], axis=2)
    np.testing.assert_allclose(_joined(read, step), whole, atol=1e-3)


def test_axes_turn_with_the_picture():
    volume, mapping = np.full(SIZE, 30.0, np.float32), _mapping(bent=False)
    read = resampled_blocks(lambda xs, ys: volume[xs, ys], mapping, size=SIZE, resample=resample_orientation)
    block = read(slice(20, 30), slice(20, 30))
    np.testing.assert_allclose(block, 30.0 - mapping.rotation_deg, atol=1e-3)


def test_a_slant_takes_other_planes_from_beside():
    volume = np.arange(np.prod(SIZE), dtype=np.float32).reshape(SIZE)
    slant = Slant(np.array([0.0, 1.4, 2.8, 4.2]), np.outer(np.arange(4.0), [2.0, -1.0]))
    read = resampled_blocks(
        lambda xs, ys: volume[xs, ys], PlanarTransform.identity(), size=SIZE, resample=resample_image, slant=slant
    )
    block = read(slice(10, 20), slice(10, 20))
    for plane, index in enumerate((0, 1, 3)):
        x, y = 10 + 2 * plane, 10 - plane
        np.testing.assert_array_equal(block[:, :, plane], volume[x : x + 10, y : y + 10, index])
    assert np.isnan(block[:, :, 3]).all()  # below the last plane


def test_blocks_read_no_more_than_they_need_and_nothing_beside_the_volume():
    volume, asked = _volume(), []

    def read(xs, ys):
        asked.append((xs, ys))
        return volume[xs, ys]

    moved = resampled_blocks(read, PlanarTransform(np.eye(2), np.array([5.0, 0.0])), size=SIZE, resample=resample_image)
    moved(slice(10, 20), slice(10, 20))
    assert asked == [(slice(14, 26), slice(9, 21))]
    assert np.isnan(moved(slice(100, 110), slice(0, 10))).all()
    assert len(asked) == 1

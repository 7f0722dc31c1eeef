"""Chained alignment of block faces does not walk away."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.pyramid import halved
from opticstream.compute.registration import PlanarTransform, SlicePose, next_pose, rigid_map, turned_axis
from opticstream.testing.slice_phantom import make_slice

STILL = SlicePose(PlanarTransform.identity())
FACE = make_slice(seed=40).beams[0].intensity


def test_a_step_is_found_and_chained() -> None:
    shifted = np.roll(FACE, (3, -5), (0, 1))
    first = next_pose(FACE, shifted, STILL, pullback=0.0)
    np.testing.assert_allclose(first.mapping.offset, [3, -5], atol=0.3)
    second = next_pose(shifted, np.roll(shifted, (2, 1), (0, 1)), first, pullback=0.0)
    np.testing.assert_allclose(second.mapping.offset, [5, -4], atol=0.6)


def test_the_leash_bounds_what_small_errors_add_up_to() -> None:
    free = leashed = np.zeros(2)
    rng = np.random.default_rng(0)
    walks = []
    for _ in range(300):
        step = np.array([0.2, 0.1]) + 0.1 * rng.normal(size=2)  # every step is biased
        free = free + step
        leashed = (leashed + step) * 0.95
        walks.append(np.linalg.norm(leashed))
    assert np.linalg.norm(free) > 50
    assert max(walks) < 6
    # The stage's own rule is the same: one step of it.
    pose = next_pose(FACE, np.roll(FACE, (10, 0), (0, 1)), STILL, pullback=0.05)
    np.testing.assert_allclose(
        pose.mapping.points((np.array(FACE.shape) - 1) / 2) - (np.array(FACE.shape) - 1) / 2, [9.5, 0], atol=0.3
    )


def test_a_face_that_cannot_be_compared_keeps_its_neighbours_pose() -> None:
    before = SlicePose(rigid_map(2.0, (4.0, -1.0), (50.0, 50.0)))
    for image in (np.full_like(FACE, np.nan), np.random.default_rng(1).random(FACE.shape)):
        pose = next_pose(FACE, image, before)
        assert pose.failure
        np.testing.assert_array_equal(pose.mapping.matrix, before.mapping.matrix)


def test_turning_an_axis_there_and_back_changes_nothing() -> None:
    axes = make_slice(seed=41).axis[::20, ::20].reshape(-1, 3)
    back = turned_axis(turned_axis(axes, 37.0), -37.0)
    np.testing.assert_allclose(np.abs((back * axes).sum(-1)), 1, atol=1e-9)


@pytest.mark.parametrize("kind", ["scalar", "axial", "vector"])
def test_boxes_of_one_value_keep_it(kind: str) -> None:
    block = np.full((6, 4, 2, 3) if kind == "vector" else (6, 4, 2), np.sqrt(1 / 3) if kind == "vector" else 77.0)
    out = halved(block, (2, 2, 2), kind=kind)  # type: ignore[arg-type]
    np.testing.assert_allclose(out, block[:3, :2, :1], atol=1e-9)


def test_means_leave_out_what_is_not_there() -> None:
    block = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan]).reshape(6, 1, 1)
    np.testing.assert_array_equal(halved(block, (2, 1, 1)).ravel(), [1.0, 3.0, np.nan])
    np.testing.assert_array_equal(halved(np.arange(5).reshape(5, 1, 1), (2, 1, 1), kind="label").ravel(), [0, 2, 4])


def test_opposite_vectors_are_one_axis() -> None:
    block = np.array([[0.6, 0.8, 0.0], [-0.6, -0.8, 0.0]]).reshape(2, 1, 1, 3)
    np.testing.assert_allclose(halved(block, (2, 1, 1), kind="vector").ravel(), [0.6, 0.8, 0.0], atol=1e-9)

"""Axes turn with the slice; coarser levels average what is there."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.pyramid import halved
from opticstream.compute.registration import PlanarTransform, resampled, turned_axis
from opticstream.testing.slice_phantom import make_slice


def test_turning_an_axis_there_and_back_changes_nothing() -> None:
    axes = make_slice(seed=41).axis[::20, ::20].reshape(-1, 3)
    back = turned_axis(turned_axis(axes, 37.0), -37.0)
    np.testing.assert_allclose(np.abs((back * axes).sum(-1)), 1, atol=1e-9)


@pytest.mark.parametrize("how", ["axes", "vectors"])
def test_axes_turn_with_the_place_where_a_slice_is_bent(how: str) -> None:
    # The bend shears the far half of the picture: angles turn there by half of the shear, and nowhere else.
    shape = (40, 40)
    bend = np.zeros((2, *shape), np.float32)
    bend[0] = -0.1 * np.maximum(np.arange(40) - 20, 0)
    mapping = PlanarTransform(np.eye(2), np.zeros(2), bend)
    angle = np.full(shape, 30.0, np.float32)
    vectors = np.stack([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0 * angle], axis=-1)
    out = resampled(vectors if how == "vectors" else angle, mapping, how=how, shape=shape)  # type: ignore[arg-type]
    found = np.degrees(np.arctan2(out[..., 1], out[..., 0])) if how == "vectors" else out
    turned = np.degrees(np.arctan2(0.1, 2.0))
    np.testing.assert_allclose(found[10:30, 3:18], 30.0, atol=0.01)
    np.testing.assert_allclose(found[10:30, 24:36], 30.0 - turned, atol=0.01)


def test_axes_between_pixels_are_the_axes_between() -> None:
    # Two neighbours 20 degrees apart, one of them written with the other sign, and one that is not there.
    axes = np.array([[[np.cos(t), np.sin(t), 0.0]] for t in np.radians([10.0, 30.0])], np.float32)
    axes[1] *= -1
    axes = np.concatenate([axes, np.full((1, 1, 3), np.nan, np.float32)])
    out = resampled(axes, PlanarTransform(np.eye(2), np.array([0.25, 0.0])), how="vectors", shape=(3, 1))
    np.testing.assert_allclose(np.degrees(np.arctan2(out[0, 0, 1], out[0, 0, 0])), 14.84, atol=0.05)
    np.testing.assert_allclose(np.degrees(np.arctan2(out[1, 0, 1], out[1, 0, 0])), 30.0, atol=1e-3)
    assert np.isnan(out[2]).all()
    np.testing.assert_allclose(np.linalg.norm(out[:2], axis=-1), 1, atol=1e-6)


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

"""Orientation images under a change of coordinates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.compute import axial
from opticstream.compute.registration import PlanarTransform, resample_image, resample_orientation, smooth_orientation
from opticstream.compute.registration._planar_transform import rotation_from_matrix
from opticstream.testing.slice_phantom import Picture, make_slice


def apart_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(axial.wrap(np.asarray(a, float) - np.asarray(b, float)))


def turned_map(angle_deg: float, shape: tuple[int, int]) -> PlanarTransform:
    t = np.radians(angle_deg)
    matrix = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    centre = (np.array(shape) - 1) / 2
    return PlanarTransform(matrix, centre - matrix @ centre)


@settings(max_examples=30, deadline=None)
@given(angle=st.floats(-180, 180), value=st.floats(-90, 90))
def test_turning_the_picture_turns_the_axes(angle: float, value: float) -> None:
    shape = (15, 15)
    out = resample_orientation(np.full(shape, value), turned_map(angle, shape), shape=shape)
    assert apart_deg(out[7, 7], value - angle) < 1e-3


def test_axes_on_both_sides_of_the_seam_do_not_average_to_the_opposite() -> None:
    image = np.array([[89.0, 89.0], [-89.0, -89.0]])
    half = PlanarTransform(np.eye(2), np.array([0.5, 0.0]))
    assert apart_deg(resample_orientation(image, half, shape=(1, 2)), 90.0).max() < 1e-3


def test_birefringence_weighs_the_axes() -> None:
    image = np.array([[0.0], [60.0]])
    half = PlanarTransform(np.eye(2), np.array([0.5, 0.0]))
    weighted = resample_orientation(image, half, shape=(1, 1), weight=np.array([[1e-3], [1e-6]]))
    assert apart_deg(weighted, 0.0).max() < 0.1


@pytest.mark.parametrize("shear", [0.0, 0.15])
def test_a_rotated_and_sheared_phantom_comes_back_onto_itself(shear: float) -> None:
    picture = Picture(shape=(220, 190), rotation_deg=25.0, shift_px=(6, -4), shear=shear, scale=(0.95, 1.04))
    phantom = make_slice((Picture(), picture), noise=0.0)
    fixed, moving = phantom.beams
    mapping = PlanarTransform(moving.matrix, moving.offset)
    out = resample_orientation(moving.orientation_deg, mapping, shape=(200, 160), weight=moving.birefringence)
    error = apart_deg(out, fixed.orientation_deg)[np.isfinite(out) & (fixed.birefringence > 3e-4)]
    assert error.size > 5000
    assert np.median(error) < 0.5
    assert np.quantile(error, 0.95) < 3
    # Without turning the axes back they are wrong by the rotation.
    naive = apart_deg(resample_image(moving.orientation_deg, mapping, shape=(200, 160)), fixed.orientation_deg)
    assert np.nanmedian(naive) > 15


def test_there_and_back_again_changes_nothing() -> None:
    phantom = make_slice(noise=0.0)
    angle = phantom.beams[0].orientation_deg
    mapping = PlanarTransform(np.array([[0.97, -0.2], [0.25, 1.02]]), np.array([3.0, -2.0]))
    there = resample_orientation(angle, mapping.inverse(), shape=(260, 220))
    back = resample_orientation(there, mapping, shape=angle.shape)
    error = apart_deg(back, angle)[20:-20, 20:-20]
    assert np.nanmedian(error) < 0.5


def test_pixels_without_a_value_stay_out_of_their_neighbours() -> None:
    image = np.ones((6, 6))
    image[3, 3] = np.nan
    half = PlanarTransform(np.eye(2), np.array([0.25, 0.25]))
    out = resample_image(image, half, shape=(6, 6))
    assert np.isnan(out[3, 3])
    np.testing.assert_array_equal(out[2, 2], 1.0)  # 15/16 of the weight has a value
    assert np.nanmin(out) == np.nanmax(out) == 1.0


def test_outside_the_moving_picture_there_is_nothing() -> None:
    out = resample_image(np.ones((4, 4)), PlanarTransform(np.eye(2), np.array([2.0, 0.0])), shape=(4, 4))
    assert np.isfinite(out[:2]).all()
    assert np.isnan(out[2:]).all()


def test_masks_are_never_interpolated() -> None:
    mask = (np.indices((9, 9)).sum(0) % 2).astype(np.uint8)
    out = resample_image(mask, PlanarTransform(np.eye(2), np.array([0.3, 0.3])), shape=(9, 9), nearest=True)
    assert set(np.unique(out[np.isfinite(out)])) <= {0.0, 1.0}


def test_a_bent_mapping_turns_axes_where_it_bends() -> None:
    shape = (40, 40)
    t = np.radians(10.0)
    x, y = np.meshgrid(np.arange(40) - 19.5, np.arange(40) - 19.5, indexing="ij")
    swirl = np.stack([(np.cos(t) - 1) * x - np.sin(t) * y, np.sin(t) * x + (np.cos(t) - 1) * y]).astype(np.float32)
    bent = PlanarTransform(np.eye(2), np.zeros(2), swirl)
    out = resample_orientation(np.full(shape, 30.0), bent, shape=shape)
    assert apart_deg(out[15:25, 15:25], 20.0).max() < 1e-3


def test_scaled_mappings_agree_at_pixel_centres() -> None:
    mapping = PlanarTransform(np.array([[0.98, -0.1], [0.12, 1.01]]), np.array([5.0, -3.0]))
    half = mapping.scaled(0.5)
    # The centre of a 2 x 2 block at (10.5, 20.5) is pixel (5, 10) of the halved image.
    moved = (mapping.points([10.5, 20.5]) - 0.5) / 2
    np.testing.assert_allclose(half.points([5.0, 10.0]), moved, atol=1e-12)
    np.testing.assert_allclose(half.scaled(2.0).offset, mapping.offset, atol=1e-12)


def test_mirrors_are_refused() -> None:
    with pytest.raises(ValueError, match="mirrors or flattens"):
        rotation_from_matrix([[1, 0], [0, -1]])


def test_smoothing_averages_axes_not_numbers() -> None:
    rng = np.random.default_rng(0)
    angle = axial.wrap(88 + 10 * rng.normal(size=(60, 60)))
    smoothed, weight = smooth_orientation(angle, np.ones((60, 60)), sigma_px=3)
    assert np.median(apart_deg(smoothed, 88)) < 2
    np.testing.assert_allclose(weight, 1, atol=1e-5)
    untouched, _ = smooth_orientation(angle, np.ones((60, 60)), sigma_px=0)
    np.testing.assert_allclose(untouched, angle, atol=1e-4)

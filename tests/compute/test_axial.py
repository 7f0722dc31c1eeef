"""Angles of axes: known answers, and that compiled kernels and NumPy say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.compute import _axial_kernels as kernels
from opticstream.compute import axial
from opticstream.system.compiled import njit

ANGLES = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None)
@given(ANGLES)
def test_a_wrapped_angle_is_the_same_axis_in_its_own_precision(angle):
    for kind in (np.float32, np.float64):
        wrapped = axial.wrap(kind(angle))
        assert wrapped.dtype == kind
        assert -90 - 1e-3 < wrapped <= 90
        assert abs(np.sin(np.radians(float(wrapped) - angle))) < 1e-4


def test_both_ends_of_the_range_are_one_axis():
    assert axial.wrap([-270.0, -90.0, 90.0, 270.0]).tolist() == [90.0] * 4
    assert np.isnan(axial.wrap(np.nan))


@settings(deadline=None)
@given(ANGLES, st.integers(-3, 3))
def test_half_turns_change_nothing_in_the_components_and_these_give_the_axis_back(angle, turns):
    cosine, sine = axial.components(float(angle))
    again = axial.components(float(angle) + 180.0 * turns)
    np.testing.assert_allclose(again, (cosine, sine), atol=1e-9)
    found = axial.angle_from_components(3 * cosine, 3 * sine)
    assert abs(axial.wrap(found - angle)) < 1e-6 or abs(abs(axial.wrap(found - angle)) - 180) < 1e-6


def test_the_mean_goes_round_the_short_way_and_leaves_out_what_does_not_count():
    angles = np.array([[80.0, -80.0, np.nan], [10.0, 20.0, 75.0]])
    assert axial.mean(angles, where=np.isfinite(angles)).round(6)[0] == 90.0
    assert axial.mean(angles, where=[[True, True, False]] * 2).round(6)[1] == 15.0
    assert axial.mean(angles[1], where=False) == 0.0


def test_an_axis_without_sign_is_the_same_for_both_of_its_vectors():
    axes = np.random.default_rng(0).normal(size=(50, 3))
    axes[:10, 0] = 0
    axes[:3, 1] = 0
    one, other = axial.without_sign(axes), axial.without_sign(-axes)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(np.abs(one), np.abs(axes))
    assert (one[:, 0] >= 0).all()
    assert (one[:10, 1] >= 0).all()
    assert (one[:3, 2] >= 0).all()
    assert np.isnan(axial.without_sign([np.nan] * 3)).all()


@pytest.mark.parametrize("offset", [-1000.0, -90.0, 0.0, 37.25, 90.0, 100.0, 1e5])
def test_an_offset_within_half_a_turn_turns_axes_alike(offset):
    small = axial.offset_within_half_turn(offset)
    assert -90 <= small < 90
    assert abs(axial.wrap(small - offset)) < 1e-9


@njit
def _by_kernels(angle_deg, out):  # type: ignore[no-untyped-def]
    for i in range(angle_deg.size):
        cosine, sine = kernels.components(angle_deg[i])
        out[i] = kernels.wrapped(angle_deg[i]), cosine, sine, kernels.half_angle(cosine, sine)


def test_compiled_kernels_say_the_same():
    angles = np.linspace(-400, 400, 4001).astype(np.float32)
    out = np.empty((angles.size, 4))
    _by_kernels(angles, out)
    cosine, sine = axial.components(angles)
    np.testing.assert_allclose(out[:, 0], axial.wrap(angles), atol=1e-4)
    np.testing.assert_allclose(out[:, 1], cosine, atol=2e-6)
    np.testing.assert_allclose(out[:, 2], sine, atol=2e-6)
    np.testing.assert_allclose(axial.wrap(out[:, 3] - angles + 45) - 45, 0, atol=1e-3)
    assert out[:, 3].min() > -90


@njit
def _half_angles(cosine, sine, out):  # type: ignore[no-untyped-def]
    for i in range(cosine.size):
        out[i] = kernels.half_angle(cosine[i], sine[i])


def test_the_compiled_angle_is_right_in_all_directions_and_lengths():
    angle = np.linspace(-180, 180, 7201)
    for length in (1e-30, 1e-3, 1.0, 1e12):
        cosine = (length * np.cos(np.deg2rad(angle))).astype(np.float32)
        sine = (length * np.sin(np.deg2rad(angle))).astype(np.float32)
        out = np.empty(angle.size, np.float32)
        _half_angles(cosine, sine, out)
        assert ((out > -90) & (out <= 90)).all()
        expected = np.rad2deg(np.arctan2(sine.astype(float), cosine.astype(float))) / 2
        assert np.abs(axial.wrap(out - expected)).max() < 2e-5
    special = np.array([[0, 0], [-1, -0.0], [np.nan, 1], [1, np.nan]], np.float32)
    out = np.empty(4, np.float32)
    _half_angles(special[:, 0].copy(), special[:, 1].copy(), out)
    np.testing.assert_array_equal(out, np.array([0, 90, np.nan, np.nan], np.float32))

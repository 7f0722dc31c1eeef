"""Mathematics of the fibre axis: known answers, the global optimum, the branch rule, uncertainty, flags."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.compute.axis import AxisField, AxisFlag, axis_from_projections, beam_frames, projections_from_axis
from opticstream.testing.axis_search import (
    beam_directions,
    best_of_searches,
    cost_of_axis,
    measured_vectors,
    nelder_mead,
)
from opticstream.testing.slice_phantom import axial_error_deg

TILTS = [0.0, -15.0]


def random_axes(n: int, seed: int = 0) -> np.ndarray:
    axes = np.random.default_rng(seed).normal(size=(n, 3))
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def noisy(axes: np.ndarray, sigma: float, seed: int = 1, **beams: object) -> tuple[np.ndarray, np.ndarray]:
    """Return orientation and birefringence of axes of length 1 with noise on each component."""
    rng = np.random.default_rng(seed)
    angle, seen = projections_from_axis(axes, np.ones(axes.shape[:-1]), **beams)
    vector = seen * np.exp(1j * np.radians(angle))
    vector = vector + sigma * (rng.normal(size=vector.shape) + 1j * rng.normal(size=vector.shape))
    return np.degrees(np.angle(vector)), np.abs(vector)


def test_the_beam_of_the_design_runs_along_sin_g_0_cos_g() -> None:
    g = np.radians(-15.0)
    frame = beam_frames(-15.0)
    np.testing.assert_allclose(frame[2], [np.sin(g), 0, np.cos(g)], atol=1e-15)
    np.testing.assert_allclose(frame[0], [np.cos(g), 0, -np.sin(g)], atol=1e-15)
    np.testing.assert_allclose(frame[1], [0, 1, 0], atol=1e-15)


def test_the_forward_model_is_the_formula_of_the_design() -> None:
    axes = random_axes(50)
    angle, seen = projections_from_axis(axes, np.full(50, 2.0), tilt_deg=TILTS)
    beams, images = beam_directions(TILTS)
    measured = measured_vectors(angle, seen, images)
    assert cost_of_axis(2.0 * axes, measured, beams).max() < 1e-24


@pytest.mark.parametrize(
    ("tilt_deg", "tilt_axis_deg"),
    [
        ([0, -15], 90),
        ([0, 40], 90),
        ([-10, 25], 90),
        ([0, 15], 0),
        ([0, 20, 20], [90, 90, 0]),
        ([0, 10, 10, 10], [0, 0, 120, 240]),
    ],
)
def test_axes_come_back_from_noise_free_projections(tilt_deg: list[float], tilt_axis_deg: object) -> None:
    axes = random_axes(3000, seed=3)
    beams = {"tilt_deg": np.array(tilt_deg, float), "tilt_axis_deg": tilt_axis_deg}
    field = axis_from_projections(*projections_from_axis(axes, np.full(3000, 7e-4), **beams), **beams, noise=0.0)
    error = axial_error_deg(field.axis, axes)
    clear = (field.flags & AxisFlag.AMBIGUOUS) == 0
    assert clear.mean() > 0.98
    assert np.quantile(error[clear], 0.99) < 0.1
    np.testing.assert_allclose(np.median(field.birefringence), 7e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["consistent", "noisy", "unrelated", "uneven"])
@pytest.mark.parametrize("n", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_search_from_many_starts_finds_a_lower_cost(kind: str, n: int) -> None:
    rng = np.random.default_rng(5)
    if kind in ("consistent", "noisy"):
        angle, seen = noisy(random_axes(n, 6), 0.0 if kind == "consistent" else 0.03, tilt_deg=TILTS)
    else:
        angle, seen = rng.uniform(-90, 90, (2, n)), rng.uniform(0, 1, (2, n))
        if kind == "uneven":
            seen = np.exp(2 * rng.normal(size=(2, n)))
    field = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.0)
    beams, images = beam_directions(TILTS)
    measured = measured_vectors(angle, seen, images)
    energy = (measured**2).sum((1, 2))
    _, reference = best_of_searches(measured, beams)
    # The result is given in 32 bits; its cost is computed anew from it, by the formula.
    r = field.axis.astype(float) * field.birefringence[:, None].astype(float)
    own = cost_of_axis(np.where(np.isfinite(r), r, 0), measured, beams)
    assert np.max((own - reference) / energy) < 1.1e-6


def test_nelder_mead_never_does_better() -> None:
    rng = np.random.default_rng(8)
    angle, seen = rng.uniform(-90, 90, (2, 12)), rng.uniform(0.1, 1, (2, 12))
    field = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.0)
    beams, images = beam_directions(TILTS)
    measured = measured_vectors(angle, seen, images)
    for pixel in range(12):
        own = field.residual[pixel] ** 2
        best = min(
            nelder_mead(measured[pixel], beams, s)[1] for s in ([1, 0, 0.3], [0, 1, 0.3], [1, 1, -3], [0.3, -1, 2])
        )
        assert own <= best + 1e-6 * (measured[pixel] ** 2).sum()


def test_three_and_four_beams_reach_the_optimum_too() -> None:
    rng = np.random.default_rng(9)
    tilts, axes = [0.0, 12.0, -20.0, 15.0], [90.0, 0.0, 90.0, 45.0]
    angle, seen = rng.uniform(-90, 90, (4, 300)), rng.uniform(0, 1, (4, 300))
    field = axis_from_projections(angle, seen, tilt_deg=tilts, tilt_axis_deg=axes, noise=0.0)
    beams, images = beam_directions(tilts, axes)
    measured = measured_vectors(angle, seen, images)
    _, reference = best_of_searches(measured, beams)
    excess = (field.residual.astype(float) ** 2 * 5 - reference) / (measured**2).sum((1, 2))
    assert excess.max() < 2e-6


def test_the_two_branches_of_the_design_are_both_found_and_the_shorter_taken() -> None:
    # In the tilt plane: 20 degrees inclined at length 1, or -83 degrees at length 55, look the same.
    axis = np.array([[np.cos(np.radians(20)), 0, np.sin(np.radians(20))]])
    field = axis_from_projections(*projections_from_axis(axis, [1.0], tilt_deg=TILTS), tilt_deg=TILTS, noise=1e-3)
    assert field.flags[0] & AxisFlag.AMBIGUOUS
    assert axial_error_deg(field.axis, axis)[0] < 0.1
    assert abs(field.thruplane_deg[0]) == pytest.approx(20, abs=0.1)
    other = np.degrees(np.arcsin(abs(field.alternative[0, 2])))
    assert other == pytest.approx(83, abs=1)


@pytest.mark.parametrize("from_plane_deg", [0.0, 2.0, 5.0])
def test_axes_in_and_near_the_tilt_plane_survive_noise(from_plane_deg: float) -> None:
    n = 4000
    rng = np.random.default_rng(11)
    steep = np.radians(rng.uniform(-60, 60, n))
    side = np.radians(from_plane_deg) * rng.choice([-1.0, 1.0], n)
    axes = np.stack([np.cos(steep) * np.cos(side), np.sin(side), np.sin(steep) * np.cos(side)], axis=1)
    angle, seen = noisy(axes, 0.01, tilt_deg=TILTS)
    ruled = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.01)
    lowest = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.01, branch_sigma=0.0)
    bad = np.nanmean(axial_error_deg(ruled.axis, axes) > 30)
    assert bad < 0.05
    if from_plane_deg == 0.0:
        # Without the rule noise alone decides between the branches.
        assert np.nanmean(axial_error_deg(lowest.axis, axes) > 30) > 0.2
        assert ((ruled.flags & AxisFlag.AMBIGUOUS) > 0).mean() > 0.9


def test_outside_the_wedge_the_shorter_branch_is_that_of_vectors_less_than_a_right_angle_apart() -> None:
    n = 2000
    rng = np.random.default_rng(12)
    axes = random_axes(n, 12)
    beams, _ = beam_directions(TILTS)
    # The wedge: axes whose projections onto the two image planes point apart.
    along = axes @ beams.T
    across = axes[:, None] - along[..., None] * beams
    outside = (across[:, 0] * across[:, 1]).sum(1) > 0
    angle, seen = noisy(axes, 0.003, tilt_deg=TILTS, seed=int(rng.integers(100)))
    field = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.003)
    swapped = (field.flags & AxisFlag.AMBIGUOUS) > 0
    good = np.isfinite(field.axis[:, 0]) & swapped & outside
    found = field.axis[good] @ beams.T
    seen_across = field.axis[good][:, None] - found[..., None] * beams
    assert good.sum() > 5
    assert ((seen_across[:, 0] * seen_across[:, 1]).sum(1) > 0).mean() > 0.9


@pytest.mark.parametrize("sigma", [0.005, 0.02])
def test_the_stated_uncertainty_is_the_error(sigma: float) -> None:
    axes = random_axes(120 * 120, seed=13).reshape(120, 120, 3)
    angle, seen = noisy(axes, sigma, tilt_deg=TILTS)
    field = axis_from_projections(angle, seen, tilt_deg=TILTS)
    np.testing.assert_allclose(np.nanmedian(field.noise), sigma, rtol=0.1)
    clear = field.flags == 0
    ratio = axial_error_deg(field.axis, axes)[clear] / field.uncertainty_deg[clear]
    # Root of a sum of two squared normals of unequal size: the median lies between 0.67 and 0.83 of the root variance.
    assert 0.6 < np.median(ratio) < 0.9
    assert np.quantile(ratio, 0.95) < 2.6


def test_a_third_beam_makes_axes_more_certain() -> None:
    axes = random_axes(4000, seed=14)
    two = axis_from_projections(*noisy(axes, 0.02, tilt_deg=TILTS), tilt_deg=TILTS, noise=0.02)
    beams = {"tilt_deg": [0.0, -15.0, 15.0], "tilt_axis_deg": [90.0, 90.0, 0.0]}
    three = axis_from_projections(*noisy(axes, 0.02, **beams), **beams, noise=0.02)
    assert np.nanmedian(three.uncertainty_deg) < 0.8 * np.nanmedian(two.uncertainty_deg)
    assert np.nanmedian(axial_error_deg(three.axis, axes)) < 0.8 * np.nanmedian(axial_error_deg(two.axis, axes))


def test_a_pixel_that_one_of_three_beams_misses_is_solved_from_the_other_two() -> None:
    axes = random_axes(6, seed=15)
    beams = {"tilt_deg": [0.0, -15.0, 20.0], "tilt_axis_deg": [90.0, 90.0, 0.0]}
    angle, seen = projections_from_axis(axes, np.ones(6), **beams)
    seen[0, 0] = seen[1, 1] = angle[2, 2] = np.nan
    seen[:2, 3] = np.nan
    field = axis_from_projections(angle, seen, **beams, noise=0.0)
    assert axial_error_deg(field.axis, axes)[[0, 1, 2, 4, 5]].max() < 0.1
    assert field.flags[3] == AxisFlag.NO_DATA
    assert np.isnan(field.axis[3]).all()


def test_doubtful_pixels_are_flagged_and_those_without_birefringence_left_out() -> None:
    vertical = [[0.05, 0.02, 1.0]]
    field = axis_from_projections(*projections_from_axis(vertical, [1.0], tilt_deg=TILTS), tilt_deg=TILTS, noise=1e-4)
    assert field.flags[0] & AxisFlag.NEAR_VERTICAL
    rng = np.random.default_rng(16)
    seen = np.abs(rng.normal(scale=1e-5, size=(2, 500)))
    nothing = axis_from_projections(rng.uniform(-90, 90, (2, 500)), seen, tilt_deg=TILTS, noise=1e-5)
    assert ((nothing.flags & AxisFlag.LOW_BIREFRINGENCE) > 0).mean() > 0.9
    assert np.isnan(nothing.axis[(nothing.flags & AxisFlag.LOW_BIREFRINGENCE) > 0]).all()
    assert np.isfinite(nothing.birefringence).all()
    zero = axis_from_projections([[0.0], [0.0]], [[0.0], [0.0]], tilt_deg=TILTS)
    assert zero.flags[0] == AxisFlag.LOW_BIREFRINGENCE
    assert zero.birefringence[0] == 0


def test_angles_and_vectors_say_the_same() -> None:
    axes = random_axes(500, seed=17)
    field = axis_from_projections(*noisy(axes, 0.01, tilt_deg=TILTS), tilt_deg=TILTS, noise=0.01)
    known = np.isfinite(field.thruplane_deg)
    a, p = np.radians(field.thruplane_deg[known]), np.radians(field.inplane_deg[known])
    rebuilt = np.stack([np.cos(a) * np.cos(p), np.cos(a) * np.sin(p), np.sin(a)], axis=1)
    np.testing.assert_allclose(rebuilt, field.axis[known], atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(field.axis[known], axis=1), 1, atol=1e-6)
    assert (field.axis[known, 0] >= 0).all()


@settings(max_examples=25, deadline=None)
@given(turn=st.floats(-180, 180), seed=st.integers(0, 1000))
def test_turning_sample_and_beams_turns_the_axis(turn: float, seed: int) -> None:
    axes = random_axes(40, seed)
    t = np.radians(turn)
    rotation = np.array([[np.cos(t), -np.sin(t), 0], [np.sin(t), np.cos(t), 0], [0, 0, 1]])
    straight = axis_from_projections(
        *projections_from_axis(axes, np.ones(40), tilt_deg=TILTS), tilt_deg=TILTS, noise=0.02
    )
    beams = {"tilt_deg": TILTS, "tilt_axis_deg": 90.0 + turn}
    turned = axis_from_projections(*projections_from_axis(axes @ rotation.T, np.ones(40), **beams), **beams, noise=0.02)
    both = np.isfinite(straight.axis[:, 0]) & np.isfinite(turned.axis[:, 0])
    both &= (straight.flags & AxisFlag.AMBIGUOUS) == 0
    both &= (turned.flags & AxisFlag.AMBIGUOUS) == 0
    assert np.nanmax(axial_error_deg(turned.axis[both], straight.axis[both] @ rotation.T), initial=0) < 0.1


def test_multiples_of_180_degrees_and_the_order_of_beams_change_nothing() -> None:
    axes = random_axes(400, seed=18)
    angle, seen = noisy(axes, 0.01, tilt_deg=TILTS)
    one = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.01)
    other = axis_from_projections(angle + np.array([[180.0], [-540.0]]), seen, tilt_deg=TILTS, noise=0.01)
    flipped = axis_from_projections(angle[::-1], seen[::-1], tilt_deg=TILTS[::-1], noise=0.01)
    np.testing.assert_allclose(other.axis, one.axis, atol=1e-4)
    known = np.isfinite(one.axis[:, 0]) & np.isfinite(flipped.axis[:, 0])
    assert np.quantile(axial_error_deg(flipped.axis[known], one.axis[known]), 0.99) < 0.1


def test_scaling_the_birefringence_scales_the_result_only() -> None:
    axes = random_axes(300, seed=19)
    angle, seen = noisy(axes, 0.01, tilt_deg=TILTS)
    one = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.01)
    small = axis_from_projections(angle, 1e-6 * seen, tilt_deg=TILTS, noise=1e-8)
    np.testing.assert_allclose(small.axis, one.axis, atol=1e-4)
    np.testing.assert_allclose(small.birefringence, 1e-6 * one.birefringence, rtol=1e-4)


def test_threads_and_neighbours_do_not_change_a_pixel() -> None:
    axes = random_axes(40_000, seed=20)
    angle, seen = noisy(axes, 0.01, tilt_deg=TILTS)
    one = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.01, threads=1)
    three = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=0.01, threads=3)
    part = axis_from_projections(angle[:, 100:107], seen[:, 100:107], tilt_deg=TILTS, noise=0.01)
    for name in ("axis", "birefringence", "uncertainty_deg", "flags"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name))
        np.testing.assert_array_equal(getattr(one, name)[100:107], getattr(part, name))


def test_inputs_stay_as_they_were() -> None:
    angle, seen = noisy(random_axes(10), 0.0, tilt_deg=TILTS)
    before = angle.copy(), seen.copy()
    axis_from_projections(angle, seen, tilt_deg=TILTS)
    np.testing.assert_array_equal(angle, before[0])
    np.testing.assert_array_equal(seen, before[1])


def test_bad_beams_and_empty_images_are_refused() -> None:
    angle, seen = noisy(random_axes(10), 0.0, tilt_deg=TILTS)
    with pytest.raises(ValueError, match="at least two beams"):
        axis_from_projections(angle[:1], seen[:1], tilt_deg=[0.0])
    with pytest.raises(ValueError, match=r"differ by more than 0.5 degrees, got tilt_deg = \[0.0, 0.2\]"):
        axis_from_projections(angle, seen, tilt_deg=[0.0, 0.2])
    with pytest.raises(ValueError, match=r"for 3 beams"):
        axis_from_projections(angle, seen, tilt_deg=[0.0, 10.0, 20.0])
    with pytest.raises(ValueError, match="they must agree"):
        axis_from_projections(angle, seen[:, :5], tilt_deg=TILTS)
    with pytest.raises(ValueError, match="no pixel"):
        axis_from_projections(np.full((2, 5), np.nan), np.ones((2, 5)), tilt_deg=TILTS)


SEEN = projections_from_axis([0.6, 0.48, 0.64], 1e-3, tilt_deg=TILTS)
"""One fibre: inclined by 39.79 degrees, 38.66 degrees in the image plane."""


def one_fibre(**limits: object) -> AxisField:
    """Return what two beams tell of one fibre."""
    return axis_from_projections(SEEN[0][:, None], SEEN[1][:, None], tilt_deg=TILTS, **{"noise": 1e-6} | limits)


def test_the_angles_of_one_fibre_are_those_of_its_vector() -> None:
    field = one_fibre()
    assert field.inplane_deg[0] == pytest.approx(np.degrees(np.arctan2(0.48, 0.6)), abs=1e-2)
    assert field.thruplane_deg[0] == pytest.approx(np.degrees(np.arcsin(0.64)), abs=1e-2)
    assert field.birefringence[0] == pytest.approx(1e-3, rel=1e-4)
    assert field.flags[0] == 0
    assert np.linalg.norm(field.alternative[0]) == pytest.approx(1, abs=1e-6)
    assert axial_error_deg(field.alternative, field.axis)[0] > 3


@pytest.mark.parametrize("beams", [2, 4])
def test_uncertainty_grows_with_the_noise_and_the_residual_is_the_misfit_by_its_freedom(beams: int) -> None:
    one, three = one_fibre(noise=1e-6), one_fibre(noise=3e-6)
    assert three.uncertainty_deg[0] == pytest.approx(3 * one.uncertainty_deg[0], rel=1e-4)
    assert three.birefringence_uncertainty[0] == pytest.approx(3 * one.birefringence_uncertainty[0], rel=1e-4)
    assert 0 < one.uncertainty_deg[0] < 5
    tilts, axes = [0.0, -15.0, 20.0, 25.0][:beams], [90.0, 90.0, 0.0, 45.0][:beams]
    angle, seen = np.random.default_rng(4).uniform(0.2, 1, (2, beams, 3)) * [[[90]], [[1]]]
    field = axis_from_projections(angle, seen, tilt_deg=tilts, tilt_axis_deg=axes, noise=1.0, min_significance=0.0)
    directions, images = beam_directions(tilts, axes)
    r = field.axis * field.birefringence[:, None]
    cost = [
        float(cost_of_axis(v, m, directions)) for v, m in zip(r, measured_vectors(angle, seen, images), strict=True)
    ]
    np.testing.assert_allclose(field.residual**2 * (2 * beams - 3), cost, rtol=1e-3, atol=1e-6)
    assert (field.noise == 1).all()


def test_each_limit_draws_its_line_where_it_says() -> None:
    field = one_fibre()
    steep, length, spread = 39.79, 1e-3, float(field.uncertainty_deg[0])
    certain = length / float(field.birefringence_uncertainty[0])
    for below, above, flag in (
        ({"vertical_deg": steep + 0.1}, {"vertical_deg": steep - 0.1}, AxisFlag.NEAR_VERTICAL),
        ({"max_uncertainty_deg": 1.01 * spread}, {"max_uncertainty_deg": 0.99 * spread}, AxisFlag.UNCERTAIN),
        ({"min_birefringence": 0.99 * length}, {"min_birefringence": 1.01 * length}, AxisFlag.LOW_BIREFRINGENCE),
        ({"min_significance": 0.99 * certain}, {"min_significance": 1.01 * certain}, AxisFlag.LOW_BIREFRINGENCE),
    ):
        assert one_fibre(**below).flags[0] == 0
        over = one_fibre(**above)
        assert over.flags[0] == flag
        assert np.isnan(over.thruplane_deg[0]) == (flag == AxisFlag.LOW_BIREFRINGENCE)
        assert over.birefringence[0] == pytest.approx(length, rel=1e-4)


def test_branches_are_equal_up_to_the_stated_number_of_standard_deviations() -> None:
    angle, seen = np.array([[10.0], [35.0]]), np.array([[1.0], [0.7]])
    apart = axis_from_projections(angle, seen, tilt_deg=TILTS, noise=1e-5, min_significance=0.0)
    assert not apart.flags[0] & AxisFlag.AMBIGUOUS
    directions, images = beam_directions(TILTS)
    measured = measured_vectors(angle, seen, images)[0]
    first = float(cost_of_axis(apart.axis[0] * apart.birefringence[0], measured, directions))
    lengths = np.linspace(0.01, 60, 60_000)[:, None]
    second = float(cost_of_axis(lengths * apart.alternative[0], measured, directions).min())
    sigma = np.sqrt(second - first)
    wide, narrow = (
        axis_from_projections(angle, seen, tilt_deg=TILTS, noise=sigma, branch_sigma=b, min_significance=0.0)
        for b in (1.02, 0.98)
    )
    assert wide.flags[0] & AxisFlag.AMBIGUOUS
    assert not narrow.flags[0] & AxisFlag.AMBIGUOUS
    # Of two equally good axes that of lower birefringence is given, the other one beside it.
    assert wide.birefringence[0] <= narrow.birefringence[0] * 1.0001
    both = {tuple(np.round(a, 3)) for a in (wide.axis[0], wide.alternative[0])}
    assert both == {tuple(np.round(a, 3)) for a in (narrow.axis[0], narrow.alternative[0])}


def test_of_two_equally_good_axes_the_one_of_lower_birefringence_is_taken() -> None:
    rng = np.random.default_rng(21)
    angle, seen = rng.uniform(-90, 90, (2, 60)), rng.uniform(0.5, 1, (2, 60))
    best, shorter = (
        axis_from_projections(angle, seen, tilt_deg=TILTS, noise=1.0, branch_sigma=b, min_significance=0.0)
        for b in (0.0, 1e6)
    )
    both = np.isfinite(best.alternative[:, 0])
    assert (shorter.birefringence <= best.birefringence * (1 + 1e-6)).all()
    swapped = np.abs((shorter.axis * best.axis).sum(1)) < 0.999
    assert swapped[both].sum() > 3
    np.testing.assert_allclose(shorter.axis[swapped], best.alternative[swapped], atol=1e-6)
    np.testing.assert_allclose(shorter.alternative[swapped], best.axis[swapped], atol=1e-6)
    assert ((shorter.flags & AxisFlag.AMBIGUOUS) > 0).tolist() == both.tolist()
    # Turned round, each would be taken where it is the shorter one.
    lengths = np.linspace(0.05, 40, 4000)[:, None]
    directions, images = beam_directions(TILTS)
    measured = measured_vectors(angle, seen, images)
    for pixel in np.flatnonzero(both & ~swapped)[:5]:
        costs = cost_of_axis(lengths * shorter.alternative[pixel], measured[pixel], directions)
        assert lengths[costs.argmin(), 0] > 0.98 * shorter.birefringence[pixel]


def test_noise_is_pooled_half_from_the_surroundings_half_from_the_image() -> None:
    from opticstream.compute.axis._axis import _noise_from_cost

    chi_squared = np.random.default_rng(2).normal(size=(60, 60)).astype(np.float32) ** 2
    everywhere = np.ones((60, 60), bool)
    one = np.ones((60, 60), np.float32)
    np.testing.assert_allclose(np.mean(_noise_from_cost(4 * chi_squared, one, everywhere)), 2, rtol=0.05)
    np.testing.assert_allclose(_noise_from_cost(8 * chi_squared, 2 * one, everywhere), _noise_from_cost(
        4 * chi_squared, one, everywhere), rtol=1e-6)  # fmt: skip
    # A quarter with 100 times the variance is told from the rest; the median of the image stays.
    rough = chi_squared.copy()
    rough[:30, :30] *= 100
    overall = np.median(rough) / 0.455
    found = _noise_from_cost(rough, one, everywhere)
    assert found[50, 50] == pytest.approx(np.sqrt(0.5 * rough[43:58, 43:58].mean() + 0.5 * overall), rel=1e-4)
    capped = np.minimum(rough, 50 * overall)
    assert found[12, 12] == pytest.approx(np.sqrt(0.5 * capped[5:20, 5:20].mean() + 0.5 * overall), rel=1e-4)
    # Pixels without a cost take no part: beside them the mean is over those that have one.
    half = everywhere.copy()
    half[:, 30:] = False
    cost = np.where(half, chi_squared, np.nan).astype(np.float32)
    found = _noise_from_cost(cost, one, half)
    overall = np.median(chi_squared[:, :30]) / 0.455
    expected = np.sqrt(0.5 * chi_squared[23:38, 22:30].mean() + 0.5 * overall)
    assert found[30, 29] == pytest.approx(expected, rel=1e-4)
    # Of a list of pixels there are no surroundings.
    line = _noise_from_cost(chi_squared[0], one[0], everywhere[0])
    np.testing.assert_allclose(line, np.sqrt(np.median(chi_squared[0]) / 0.455), rtol=1e-5)


def test_birefringence_below_zero_counts_as_none() -> None:
    seen = SEEN[1][:, None].copy()
    seen[1] = -5.0
    given, zero = (
        axis_from_projections(SEEN[0][:, None], np.maximum(seen, lowest), tilt_deg=TILTS, noise=1e-6)
        for lowest in (-np.inf, 0.0)
    )
    np.testing.assert_array_equal(given.birefringence, zero.birefringence)
    np.testing.assert_array_equal(given.flags, zero.flags)


def test_a_pixel_seen_only_by_beams_of_nearly_one_direction_has_no_data() -> None:
    beams = {"tilt_deg": [10.0, 10.4, -20.0]}
    axes = np.array([[0.6, 0.48, 0.64]] * 3)
    angle, seen = projections_from_axis(axes, np.ones(3), **beams)
    seen[2, 1] = np.nan
    field = axis_from_projections(angle, seen, **beams)
    assert field.flags.tolist() == [0, AxisFlag.NO_DATA, 0]
    assert np.isnan([field.axis[1, 0], field.birefringence[1], field.residual[1], field.noise[1]]).all()
    assert axial_error_deg(field.axis, axes)[[0, 2]].max() < 0.5
    with pytest.raises(ValueError, match="no pixel has values from two beams that differ"):
        axis_from_projections(angle[:, 1:2], seen[:, 1:2], **beams)
    opposite = {"tilt_deg": [10.0, -170.0]}  # one line, seen from both ends
    with pytest.raises(ValueError, match=r"differ by more than 0\.5 degrees, got"):
        axis_from_projections(*projections_from_axis(axes, np.ones(3), **opposite), **opposite)


def test_sixteen_beams_are_solved_and_seventeen_refused() -> None:
    def beams(n: int) -> dict[str, list[float]]:
        return {"tilt_deg": [5.0 + 2 * k for k in range(n)], "tilt_axis_deg": [20.0 * k for k in range(n)]}

    axis = [[0.6, 0.48, 0.64]]
    field = axis_from_projections(*projections_from_axis(axis, [1.0], **beams(16)), **beams(16), noise=1e-4)
    assert axial_error_deg(field.axis, np.array(axis))[0] < 0.1
    with pytest.raises(ValueError, match="at most 16 beams"):
        axis_from_projections(*projections_from_axis(axis, [1.0], **beams(17)), **beams(17))

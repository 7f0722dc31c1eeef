"""Formulas of the compiled inner loops of the fibre axis, each against its definition; quick without compiler, too."""

from __future__ import annotations

import math

import numpy as np
import pytest

from opticstream.compute.axis import _kernels as kernels
from opticstream.compute.axis import beam_frames
from opticstream.compute.axis._axis import _DISTINCT_COS, _MERGE_COS, _TOLERANCE, _half_sphere, _table
from opticstream.testing.axis_search import cost_of_axis

FRAMES = np.ascontiguousarray(beam_frames([0.0, -25.0, 30.0], tilt_axis_deg=[90.0, 90.0, 20.0]))
DIRECTIONS = np.array([[0.6, 0.48, 0.64], [-0.8, 0.36, -0.48], [0.1, -0.7, 0.5], [0.0, 0.0, 1.0], [0.2, 0.3, -0.9]])
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def vectors(seed: int = 0, beams: int = len(FRAMES)) -> np.ndarray:
    """Return measured vectors (beams, 3) that no axis explains exactly, of energy 1."""
    flat = np.random.default_rng(seed).normal(size=(beams, 2))
    flat /= np.sqrt((flat**2).sum())
    return np.einsum("ni,nij->nj", flat, FRAMES[:beams, :2])


def turned_towards(m: np.ndarray, u: np.ndarray) -> np.ndarray:
    return m * np.where(m @ u < 0, -1.0, 1.0)[:, None]


def seen_by(frames: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Return P(r; k) of the module's docstring for every beam, as vectors in space."""
    k = frames[:, 2]
    along = k @ r
    return (r - along[:, None] * k) * np.sqrt(1 - along**2 / (r @ r))[:, None]


def misfit(m: np.ndarray, frames: np.ndarray, r: np.ndarray) -> float:
    return float(((m - seen_by(frames, r)) ** 2).sum())


def hessian(function, at: np.ndarray, step: float = 1e-4) -> np.ndarray:
    n = len(at)
    steps = step * np.eye(n)
    return np.array(
        [
            [
                (
                    function(at + steps[i] + steps[j])
                    - function(at + steps[i] - steps[j])
                    - function(at - steps[i] + steps[j])
                    + function(at - steps[i] - steps[j])
                )
                / (4 * step * step)
                for j in range(n)
            ]
            for i in range(n)
        ]
    )


@pytest.mark.parametrize("u", [*DIRECTIONS, np.array([0.0, 0.0, -1.0])])
def test_two_directions_across_a_third_make_a_right_handed_frame(u: np.ndarray) -> None:
    e, f = np.array(kernels._across(*u)).reshape(2, 3)
    np.testing.assert_allclose(np.array([e, f, u]) @ np.array([e, f, u]).T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.cross(e, f), u, atol=1e-12)


def test_a_step_ends_on_the_unit_sphere_along_the_sum() -> None:
    np.testing.assert_allclose(kernels._stepped(1.0, 2.0, 2.0, 1.0, 1.0, -1.0), np.array([2, 3, 1]) / math.sqrt(14))


def test_measured_vectors_are_turned_towards_the_axis_and_stay_as_they_are_across_it() -> None:
    m = np.array([[1.0, 2.0, -3.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # the last is none of three
    kernels._turn_towards(m, 3, 1.0, 0.0, 0.5)
    np.testing.assert_array_equal(m, [[-1, -2, 3], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    across = np.array([[0.0, -1.0, 0.0]])
    kernels._turn_towards(across, 1, 1.0, 0.0, 0.0)
    np.testing.assert_array_equal(across, [[0, -1, 0]])


@pytest.mark.parametrize("u", [DIRECTIONS[0], DIRECTIONS[1], DIRECTIONS[2], DIRECTIONS[4]])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_misfit_of_a_direction_is_that_of_its_best_length(u: np.ndarray, seed: int) -> None:
    m = turned_towards(vectors(seed), u)
    share, length, *_, nearest = kernels._misfit_of_direction(m, FRAMES, 3, *u)
    v = np.sqrt(1 - (FRAMES[:, 2] @ u) ** 2)
    assert nearest == pytest.approx(v.min())
    assert length == pytest.approx((m @ u @ v) / (v**4).sum())
    assert 1 + share == pytest.approx(misfit(m, FRAMES, length * u))
    assert 1 + share == pytest.approx(float(cost_of_axis(length * u, m, FRAMES[:, 2])))
    for other in (0.9 * length, 1.1 * length):
        assert misfit(m, FRAMES, other * u) > 1 + share


@pytest.mark.parametrize("u", [DIRECTIONS[0], DIRECTIONS[1], DIRECTIONS[2], DIRECTIONS[4]])
@pytest.mark.parametrize("seed", [0, 1])
def test_gradient_and_hessian_of_the_misfit_are_its_derivatives(u: np.ndarray, seed: int) -> None:
    m = turned_towards(vectors(seed), u)
    across = np.array(kernels._across(*u)).reshape(2, 3)

    def share(angles: np.ndarray) -> float:
        size = np.linalg.norm(angles)
        towards = angles @ across / size if size > 0 else across[0]
        return kernels._misfit_of_direction(m, FRAMES, 3, *(np.cos(size) * u + np.sin(size) * towards))[0]

    _, _, g_e, g_f, h_ee, h_ef, h_ff, _ = kernels._misfit_of_direction(m, FRAMES, 3, *u)
    slope = [(share(1e-5 * d) - share(-1e-5 * d)) / 2e-5 for d in np.eye(2)]
    np.testing.assert_allclose([g_e, g_f], slope, atol=1e-7)
    np.testing.assert_allclose([[h_ee, h_ef], [h_ef, h_ff]], hessian(share, np.zeros(2)), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("r", [1.3 * DIRECTIONS[0], 0.4 * DIRECTIONS[1], 2.0 * DIRECTIONS[2]])
def test_the_curvature_is_half_the_hessian_of_the_squared_misfit(r: np.ndarray) -> None:
    m = turned_towards(vectors(2), r)
    h = np.empty(6)
    kernels._curvature(m, FRAMES, 3, *r, h)
    whole = 0.5 * hessian(lambda at: misfit(m, FRAMES, at), r)
    np.testing.assert_allclose(h, whole[np.triu_indices(3)], atol=2e-6, rtol=1e-5)


def test_variances_of_direction_and_length_come_from_the_inverse_of_the_curvature() -> None:
    whole = np.array([[2.0, 0.3, -0.4], [0.3, 1.5, 0.2], [-0.4, 0.2, 0.7]])
    r = np.array([0.5, -1.0, 1.5])
    covariance = np.linalg.inv(whole)
    unit = r / np.linalg.norm(r)
    along = unit @ covariance @ unit
    across = (np.trace(covariance) - along) / (r @ r)
    np.testing.assert_allclose(kernels._spread(whole[np.triu_indices(3)], r), [across, along])


@pytest.mark.parametrize(
    ("h", "r"),
    [
        ([1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0]),  # a direction in which nothing holds the axis
        ([1.0, 0.0, 0.0, -1.0, 0.0, -1.0], [0.0, 1.0, 0.0]),  # no minimum
        ([1.0, 0.0, 0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0]),
    ],
    ids=["flat", "saddle", "no axis"],
)
def test_without_a_minimum_the_variances_are_infinite(h: list[float], r: list[float]) -> None:
    assert kernels._spread(np.array(h), np.array(r)) == (np.inf, np.inf)


def test_starts_from_pairs_fit_one_beams_angle_and_the_ratio_to_another() -> None:
    axis = 0.7 * DIRECTIONS[0]
    flat = np.einsum("nij,nj->ni", FRAMES[:, :2], seen_by(FRAMES, axis))
    found = np.full((kernels.MAX_STARTS, 3), np.nan)
    count = kernels._pair_starts(flat, FRAMES, 3, found)
    assert 6 <= count <= 12
    starts = found[:count]
    assert np.isnan(found[count:]).all()
    np.testing.assert_allclose(np.linalg.norm(starts, axis=1), 1)
    # Every pair of beams leads, with one of its two roots, to the axis that was seen.
    close = np.abs(starts @ DIRECTIONS[0]) > 1 - 1e-9
    assert close.sum() == 6
    # Every start has the angle that its beam has seen, so that it lies in the plane of that beam and its vector.
    normals = np.cross(FRAMES[:, 2], np.einsum("ni,nij->nj", flat, FRAMES[:, :2]))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    assert np.abs(starts @ normals.T).min(axis=1).max() < 1e-9
    # ... and the ratio of birefringence that two beams have seen.
    amount = np.linalg.norm(flat, axis=1)
    across2 = 1 - (starts @ FRAMES[:, 2].T) ** 2
    ratios = [abs(s[i] / s[j] - amount[i] / amount[j]) for s in across2 for i, j in [(0, 1), (0, 2), (1, 2)]]
    assert np.reshape(ratios, (count, 3)).min(axis=1).max() < 1e-9


def test_a_ratio_that_no_axis_has_gives_the_nearest_one() -> None:
    frames = np.ascontiguousarray(FRAMES[:2])
    flat = np.array([[1.0, 0.0], [0.0, 1e4]])  # the second beam sees far more than it can
    found = np.empty((kernels.MAX_STARTS, 3))
    count = kernels._pair_starts(flat, frames, 2, found)
    assert count == 3  # two roots the other way round
    cot = np.linspace(-50, 50, 400_001)[:, None]
    plane = cot * frames[0, 2] + frames[0, 0]
    plane /= np.linalg.norm(plane, axis=1, keepdims=True)
    ratio = (1 - (plane @ frames[1, 2]) ** 2) / (1 - (plane @ frames[0, 2]) ** 2)
    nearest = plane[ratio.argmax()] if ratio.max() < 1e4 else plane[np.abs(ratio - 1e4).argmin()]
    assert np.abs(found[:count] @ nearest).max() > 1 - 1e-3


def test_a_beam_that_saw_nothing_and_parallel_beams_give_no_starts() -> None:
    found = np.empty((kernels.MAX_STARTS, 3))
    flat = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert kernels._pair_starts(flat, np.ascontiguousarray(FRAMES[:2]), 2, found) in (1, 2)
    same = np.ascontiguousarray(FRAMES[[0, 0]])
    assert kernels._pair_starts(np.ones((2, 2)), same, 2, found) == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_walk_ends_where_the_slope_is_zero_and_no_higher(seed: int) -> None:
    m = vectors(seed)
    found, reached = np.array([DIRECTIONS[seed % 3]]), np.empty(1)
    before = kernels._misfit_of_direction(turned_towards(m, found[0]), FRAMES, 3, *found[0])[0]
    kernels._descend(m, FRAMES, 3, found, reached, 0, 1e-10)
    there = kernels._misfit_of_direction(m, FRAMES, 3, *found[0])  # with the signs of the start
    assert reached[0] <= before
    assert reached[0] == pytest.approx(there[0], abs=1e-9)
    assert np.hypot(there[2], there[3]) < 1e-4
    assert min(there[4], there[6]) > 0  # a minimum
    assert there[4] * there[6] > there[5] ** 2
    assert np.linalg.norm(found[0]) == pytest.approx(1)


@pytest.mark.parametrize(("away", "ends"), [(0.03, True), (0.06, False)])
def test_a_walk_that_promises_nothing_lower_than_a_known_minimum_close_by_ends(away: float, ends: bool) -> None:
    m = vectors(1)
    found, reached = np.empty((2, 3)), np.empty(2)
    found[0] = DIRECTIONS[0]
    kernels._descend(m, FRAMES, 3, found, reached, 0, 1e-10)
    known = found[0].copy()
    reached[0] -= 1  # as of a minimum far below
    found[1] = known + away * np.array(kernels._across(*known))[:3]
    found[1] /= np.linalg.norm(found[1])
    start = found[1].copy()
    kernels._descend(m, FRAMES, 3, found, reached, 1, 1e-8)
    if ends:
        np.testing.assert_array_equal(found[1], start)
        assert reached[1] == pytest.approx(kernels._misfit_of_direction(m, FRAMES, 3, *start)[0])
    else:
        assert found[1] @ known > start @ known


def solved(measured: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = len(measured)
    block = np.full((n, 2, 3), 7.0), np.full((n, 2), 7.0), np.full((n, 2, 2), 7.0)
    table = _table(frames.tobytes())
    kernels.solve_pixels(measured, frames, *table, _TOLERANCE, _DISTINCT_COS, _MERGE_COS, *block)
    return block


def test_a_pixel_yields_its_axis_its_misfit_and_the_spread_of_both() -> None:
    frames = np.ascontiguousarray(FRAMES)
    axes = np.array([2e-3, 1e-3, 3e-3])[:, None] * DIRECTIONS[[0, 1, 2]]
    flat = np.stack([np.einsum("nij,nj->ni", frames[:, :2], seen_by(frames, r)) for r in axes])
    solutions, costs, spread = solved(flat, frames)
    for r, best, cost, (direction, length) in zip(axes, solutions[:, 0], costs[:, 0], spread[:, 0], strict=True):
        assert abs(best @ r) == pytest.approx(r @ r, rel=1e-6)
        assert np.linalg.norm(best) == pytest.approx(np.linalg.norm(r), rel=1e-6)
        assert cost < 1e-12 * (r @ r)
        # Noise of unit variance on each component: the covariance is the inverse of half the Hessian of the misfit.
        m = seen_by(frames, r)
        scale = np.linalg.norm(r)
        inverse = np.linalg.inv(0.5 * hessian(lambda at, m=m, s=scale: misfit(m / s, frames, at), r / scale))
        unit = r / scale
        along = unit @ inverse @ unit
        assert length == pytest.approx(along, rel=1e-3)
        assert direction == pytest.approx((np.trace(inverse) - along) / scale**2, rel=1e-3)
    assert (costs[:, 1] > costs[:, 0]).all()


def test_the_best_solution_has_its_misfit_and_the_second_is_distinct_and_no_better() -> None:
    frames = np.ascontiguousarray(FRAMES[:2])
    flat = np.random.default_rng(3).normal(size=(6, 2, 2))
    solutions, costs, _ = solved(flat, frames)
    space = np.einsum("pni,nij->pnj", flat, frames[:, :2])
    own = [float(cost_of_axis(r, m, frames[:, 2])) for r, m in zip(solutions[:, 0], space, strict=True)]
    np.testing.assert_allclose(own, costs[:, 0], rtol=1e-6, atol=1e-9)
    both = np.isfinite(costs[:, 1])
    assert both.sum() >= 3
    unit = solutions / np.linalg.norm(solutions, axis=-1, keepdims=True)
    cosine = np.abs((unit[both, 0] * unit[both, 1]).sum(-1))
    assert (cosine < _DISTINCT_COS).all()
    assert (costs[:, 0] <= costs[:, 1]).all()
    assert np.isnan(solutions[~both, 1]).all()


def test_a_pixel_without_any_signal_is_zero_and_the_next_one_is_solved() -> None:
    frames = np.ascontiguousarray(FRAMES[:2])
    flat = np.zeros((2, 2, 2))
    r = 1e-3 * DIRECTIONS[0]
    flat[1] = np.einsum("nij,nj->ni", frames[:, :2], seen_by(frames, r))
    solutions, costs, spread = solved(flat, frames)
    np.testing.assert_array_equal(solutions[0], [[0, 0, 0], [np.nan] * 3])
    np.testing.assert_array_equal(costs[0], [0, np.inf])
    assert np.isinf(spread[0]).all()
    assert costs[1, 0] < 1e-12 * (r @ r)


@pytest.mark.parametrize("tilts", [[0.0, -15.0], [0.0, 40.0], [10.0, -20.0, 30.0]])
def test_trial_directions_cover_the_half_sphere_and_know_their_neighbours(tilts: list[float]) -> None:
    frames = np.ascontiguousarray(beam_frames(tilts))
    directions, projections, strength, neighbours = _table(frames.tobytes())
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert np.degrees(np.arccos(np.abs(_half_sphere(500) @ directions.T).max(1))).max() < 16
    # Between the beams they lie a third of the beams' angle apart, at most.
    between = frames[0, 2] + frames[1, 2]
    between /= np.linalg.norm(between)
    gap = np.degrees(
        np.arccos(np.clip(abs(frames[:, 2] @ frames[:, 2].T)[~np.eye(len(tilts), dtype=bool)].min(), 0, 1))
    )
    assert np.degrees(np.arccos(np.abs(directions @ between).max())) < max(gap, 3) / 3
    for t in (0, 7, len(directions) - 1):
        seen = seen_by(frames, directions[t])
        np.testing.assert_allclose(projections[:, :, t], np.einsum("nij,nj->ni", frames[:, :2], seen), atol=1e-12)
        assert strength[t] == pytest.approx((seen**2).sum())
        near = np.argsort(-np.abs(directions @ directions[t]))
        assert set(near[1:5]) <= set(neighbours[t]) | {t}
        assert t not in neighbours[t]


@pytest.mark.parametrize("count", [1, 10, 400])
def test_points_are_spread_evenly_over_the_half_sphere(count: int) -> None:
    points = _half_sphere(count)
    assert points.shape == (count, 3)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)
    np.testing.assert_allclose(points[:, 2], 1 - (np.arange(count) + 0.5) / count)
    if count == 400:
        np.testing.assert_allclose(points.mean(0), [0, 0, 0.5], atol=0.02)
        apart = np.sort(points @ points.T, axis=1)[:, -2]
        assert np.degrees(np.arccos(apart)).min() > 0.5 * np.degrees(math.sqrt(2 * math.pi / count))

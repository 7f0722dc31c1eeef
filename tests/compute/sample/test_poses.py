"""Poses from edges: exact where edges agree, unmoved by wrong ones, honest about what they do not know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform, rigid_map
from opticstream.compute.sample import REACH, Edge, Pose, pose_after, pose_before, pulled_back, solve_poses

CENTRE, ABOUT, LEVER = np.array([100.0, 80.0]), (110.0, 70.0), 60.0
POINTS = np.stack(np.meshgrid(np.arange(40, 180, 20.0), np.arange(20, 140, 20.0), indexing="ij"), -1).reshape(-1, 2)


def truth(count: int, *, seed: int = 0, jump_px: float = 42.0) -> dict[int, PlanarTransform]:
    rng = np.random.default_rng(seed)
    turns, shifts = rng.normal(0, 0.8, count), rng.uniform(-9, 9, (count, 2))
    shifts[count // 2 :, 0] += jump_px
    turns[0], shifts[0] = 0, 0
    return {n + 1: rigid_map(turns[n], shifts[n], CENTRE) for n in range(count)}


def edges_of(
    true: Mapping[int, PlanarTransform], *, noise: float = 0.0, wrong: float = 0.0, sigma: float = 0.12, seed: int = 0
) -> list[Edge]:
    """Return edges to the next three sections, with an error of `noise` px, some of them wrong altogether."""
    rng = np.random.default_rng(seed)
    made = []
    for i in true:
        for j in [n for n in true if 0 < n - i <= REACH]:
            step = _step(true, Edge(i, j, 0.0, (0.0, 0.0), sigma, ABOUT, LEVER))
            off = rng.normal(0, 20.0 if rng.random() < wrong else noise, 3)
            shift = step.points(ABOUT) - ABOUT + off[1:]
            turn = step.rotation_deg + float(np.degrees(off[0] / LEVER))
            made.append(Edge(i, j, turn, (float(shift[0]), float(shift[1])), sigma, ABOUT, LEVER))
    return made


def _step(true: Mapping[int, PlanarTransform], edge: Edge) -> PlanarTransform:
    back = true[edge.first].inverse()
    return PlanarTransform(true[edge.second].matrix @ back.matrix, true[edge.second].points(back.offset))


def errors_px(poses: Mapping[int, Pose], true: Mapping[int, PlanarTransform]) -> dict[int, float]:
    """Return the RMS error of each slice over some points, up to one rigid motion of all."""
    off = np.array([poses[n].mapping(CENTRE).inverse().points(true[n].points(POINTS)) - POINTS for n in true])
    arm = POINTS - CENTRE
    zero, one = np.zeros(len(arm)), np.ones(len(arm))
    design = np.stack([np.stack([one, zero, -arm[:, 1]], 1), np.stack([zero, one, arm[:, 0]], 1)], 1).reshape(-1, 3)
    motion = np.linalg.lstsq(np.tile(design, (len(true), 1)), off.ravel(), rcond=None)[0]
    left = off - (design @ motion).reshape(1, -1, 2)
    return dict(zip(true, np.sqrt((left**2).sum(2).mean(1)), strict=True))


def test_edges_that_agree_give_the_poses_they_came_from() -> None:
    true = truth(12)
    found = solve_poses(list(true), edges_of(true), centre_px=CENTRE)
    for n, mapping in true.items():
        np.testing.assert_allclose(found.poses[n].mapping(CENTRE).matrix, mapping.matrix, atol=5e-5)
        np.testing.assert_allclose(found.poses[n].mapping(CENTRE).offset, mapping.offset, atol=0.01)
    assert min(found.weights) > 0.99


def test_gaps_count_as_sections() -> None:
    true = truth(12)
    del true[6], true[7]
    found = solve_poses(list(true), edges_of(true, noise=0.04), centre_px=CENTRE)
    assert set(found.poses) == set(true)
    assert max(errors_px(found.poses, true).values()) < 0.4


@pytest.mark.parametrize("seed", range(6))
def test_wrong_edges_drop_out(seed: int) -> None:
    true = truth(20, seed=seed)
    edges = edges_of(true, noise=0.04, wrong=0.15, seed=seed)
    right = [np.hypot(*(_step(true, e).points(ABOUT) - ABOUT - e.shift_px)) < 0.5 for e in edges]
    found = solve_poses(list(true), edges, centre_px=CENTRE)
    # A slice at the end of which two of three edges are wrong cannot be told; the others can.
    told = [n for n in true if sum(ok for ok, e in zip(right, edges, strict=True) if n in (e.first, e.second)) >= 2]
    assert len(told) >= 18
    place = errors_px({n: found.poses[n] for n in told}, {n: true[n] for n in told})
    assert np.sqrt(np.mean(np.square(list(place.values())))) < 0.15


@pytest.mark.parametrize(
    ("missing", "wrong"),
    [
        pytest.param((), (1, 2), id="first slice"),
        pytest.param((), (19, 20), id="last slice"),
        pytest.param((18,), (19, 20), id="end beside a missing slice"),
        pytest.param((11,), (10, 12), id="jump at a missing slice"),
        pytest.param((4,), (3, 5), id="all before a missing slice"),
        pytest.param((9, 12), (10, 11), id="two slices between missing ones"),
    ],
)
def test_one_wrong_edge_that_is_surer_than_the_right_ones_takes_no_slices_along(
    missing: tuple[int, ...], wrong: tuple[int, int]
) -> None:
    true = {n: mapping for n, mapping in truth(20, seed=5).items() if n not in missing}
    edges = []
    for edge in edges_of(true, noise=0.04):
        sure = replace(edge, sigma_px=0.13 * (edge.second - edge.first))
        if (edge.first, edge.second) == wrong:
            sure = replace(sure, shift_px=(edge.shift_px[0] - 31.0, edge.shift_px[1] + 23.0))
        edges.append(sure)
    found = solve_poses(list(true), edges, centre_px=CENTRE)
    assert max(errors_px(found.poses, true).values()) < 0.3
    assert [e for e, w in zip(edges, found.weights, strict=True) if w < 0.5] == [
        e for e in edges if (e.first, e.second) == wrong
    ]


def test_a_slice_without_a_good_edge_lies_between_its_neighbours_and_hands_on_nothing() -> None:
    true = truth(9, jump_px=0.0)
    edges = [e for e in edges_of(true, noise=0.03) if 5 not in (e.first, e.second)]
    rng = np.random.default_rng(1)
    for other in (2, 3, 4, 6, 7, 8):  # what a comparison without likeness gives
        x, y, turn = rng.uniform(-150, 150), rng.uniform(-150, 150), rng.uniform(-6, 6)
        edges.append(Edge(min(5, other), max(5, other), turn, (x, y), 60.0, ABOUT, LEVER))
    found = solve_poses(list(true), edges, centre_px=CENTRE)
    place = errors_px({n: p for n, p in found.poses.items() if n != 5}, {n: m for n, m in true.items() if n != 5})
    assert max(place.values()) < 0.2
    assert found.poses[5].sigma_px > 10
    assert max(pose.sigma_px for n, pose in found.poses.items() if n != 5) < 0.5
    middle = (np.array(found.poses[4].shift_px) + found.poses[6].shift_px) / 2
    assert np.hypot(*(np.array(found.poses[5].shift_px) - middle)) < 30


def test_old_slices_stay_where_they_are_when_a_new_one_comes() -> None:
    true = truth(12)
    edges = edges_of(true, noise=0.04)
    before: Mapping[int, Pose] = {}
    for last in range(1, 13):
        known = list(range(1, last + 1))
        now = solve_poses(known, edges, centre_px=CENTRE, previous=before).poses
        for n in before:
            corners = [[0, 0], [200, 160]]
            moved = now[n].mapping(CENTRE).points(corners) - before[n].mapping(CENTRE).points(corners)
            assert np.abs(moved).max() < (0.5 if n >= last - REACH else 0.15), (n, last)
        before = now
    assert max(errors_px(before, true).values()) < 0.2


def test_a_slice_that_is_placed_anew_does_not_turn_the_whole_sample() -> None:
    first = [Edge(1, 2, 0.8, (3.0, -2.0), 0.2, ABOUT, LEVER)]
    before = solve_poses([1, 2], first, centre_px=CENTRE).poses
    better = [Edge(1, 2, 0.0, (0.0, 0.0), 0.1, ABOUT, LEVER)]
    now = solve_poses([1, 2], better, centre_px=CENTRE, previous=before).poses
    assert now[1].turn_deg == pytest.approx(before[1].turn_deg, abs=0.01)
    np.testing.assert_allclose(now[1].shift_px, before[1].shift_px, atol=0.02)
    # The first slice counts as one among many: placed by hand elsewhere, it moves, and no other does.
    true = truth(8, jump_px=0.0)
    before = solve_poses(list(true), edges_of(true), centre_px=CENTRE).poses
    moved = {**true, 1: rigid_map(5.0, (30.0, 0.0), CENTRE)}
    now = solve_poses(list(true), edges_of(moved), centre_px=CENTRE, previous=before).poses
    for n in range(2, 9):
        np.testing.assert_allclose(now[n].shift_px, before[n].shift_px, atol=0.02)
    assert np.hypot(*(np.array(now[1].shift_px) - before[1].shift_px)) > 20


def test_an_edge_between_the_ends_of_a_sample_closes_it() -> None:
    true = truth(40, jump_px=0.0)
    far = _step(true, Edge(1, 40, 0.0, (0.0, 0.0), 0.1, ABOUT, LEVER))
    shift = far.points(ABOUT) - ABOUT
    edges = [*edges_of(true, noise=0.3, sigma=0.3), Edge(1, 40, far.rotation_deg, tuple(shift), 0.02, ABOUT, LEVER)]
    found = solve_poses(list(true), edges, centre_px=CENTRE).poses
    apart = PlanarTransform(
        found[40].mapping(CENTRE).matrix @ found[1].mapping(CENTRE).inverse().matrix,
        found[40].mapping(CENTRE).points(found[1].mapping(CENTRE).inverse().offset),
    )
    np.testing.assert_allclose(apart.points(ABOUT), far.points(ABOUT), atol=0.05)


def test_the_uncertainty_is_honest_to_a_factor_of_two() -> None:
    ratios = []
    for seed in range(8):
        true = truth(30, seed=seed)
        edges = edges_of(true, noise=0.05, wrong=0.05, seed=seed)
        found = solve_poses(list(true), edges, centre_px=CENTRE)
        stated = np.sqrt(np.mean([pose.sigma_px**2 for pose in found.poses.values()]))
        ratios.append(np.sqrt(np.mean(np.square(list(errors_px(found.poses, true).values())))) / stated)
    assert 0.5 < np.median(ratios) < 2
    assert max(ratios) < 2.5


def test_a_long_sample_with_a_jump_does_not_drift() -> None:
    true = truth(200, seed=3)
    found = solve_poses(list(true), edges_of(true, noise=0.05, wrong=0.05, seed=3), centre_px=CENTRE)
    assert max(errors_px(found.poses, true).values()) < 0.8


def test_the_order_of_slices_and_edges_does_not_matter() -> None:
    true = truth(10)
    edges = edges_of(true, noise=0.05, wrong=0.1)
    one = solve_poses(list(true), edges, centre_px=CENTRE).poses
    other = solve_poses(list(true)[::-1], edges[::-1], centre_px=CENTRE).poses
    for n in true:
        np.testing.assert_allclose(one[n].shift_px, other[n].shift_px, atol=1e-3)


def test_the_stage_places_what_no_picture_places_and_its_glitches_drop_out() -> None:
    true = truth(9, jump_px=40.0)
    edges = [e for e in edges_of(true, noise=0.03) if not (e.first <= 4 < e.second)]  # two parts without any link
    stage = {n: (40.0 if n >= 5 else 0.0, 0.0) for n in true}
    stage[7] = (240.0, -100.0)
    apart = solve_poses(list(true), edges, centre_px=CENTRE)
    placed = solve_poses(list(true), edges, centre_px=CENTRE, stage_px=stage)
    assert placed.stage_weights[7] < 0.05 < 0.5 < placed.stage_weights[3]
    worst = [max(errors_px(found.poses, true).values()) for found in (apart, placed)]
    assert worst[0] > 12 > worst[1]


def test_where_no_comparison_holds_the_slices_on_both_sides_tell_where_the_stage_had_them() -> None:
    worst, stated = [], []
    for seed in range(12):
        true = truth(12, seed=seed, jump_px=0.0)
        if seed % 2:  # a jump within what the cut is judged by, which counts for nothing
            true |= {
                n: rigid_map(true[n].rotation_deg, np.add(_shift(true[n]), (42.0, 0.0)), CENTRE) for n in (10, 11, 12)
            }
        edges = [e for e in edges_of(true, noise=0.04) if not e.first <= 6 < e.second]
        found = solve_poses(list(true), edges, centre_px=CENTRE)
        worst.append(max(errors_px(found.poses, true).values()))
        stated.append(max(pose.sigma_px for pose in found.poses.values()))
    # Steps are 7 px along each axis; from the last slice to the next alone, errors are 5.2 px in the median.
    assert np.median(worst) < 3.5
    assert 0.5 < np.sqrt(np.mean(np.square(worst)) / np.mean(np.square(stated))) < 2


@pytest.mark.parametrize("jump_px", [0.0, 60.0])
def test_contradicting_comparisons_over_a_gap_are_told(jump_px: float) -> None:
    place, stated = [], []
    for seed in range(10):
        true = truth(14, seed=seed, jump_px=jump_px)
        del true[7]  # the stage jumps at slice 8, if it does
        rng = np.random.default_rng(seed)
        over = [(i, j) for i in true for j in true if 0 < j - i <= REACH and i < 7 < j]
        wrong = {over[k] for k in rng.permutation(3)[:2]}
        edges = [
            replace(e, shift_px=tuple(np.add(e.shift_px, rng.normal(0, 25, 2)))) if (e.first, e.second) in wrong else e
            for e in edges_of(true, noise=0.04, seed=seed)
        ]
        found = solve_poses(list(true), edges, centre_px=CENTRE)
        place.append(np.sqrt(np.mean(np.square(list(errors_px(found.poses, true).values())))))
        stated.append(np.sqrt(np.mean([pose.sigma_px**2 for pose in found.poses.values()])))
    if not jump_px:
        assert np.median(place) < 0.3  # the usual steps tell which one is right
    assert all(error < 2 * sigma for error, sigma in zip(place, stated, strict=True) if error > 1), (place, stated)
    if jump_px:
        assert 0.4 < np.sqrt(np.mean(np.square(place)) / np.mean(np.square(stated))) < 2


def test_a_single_wrong_comparison_leaves_no_doubt() -> None:
    true = truth(14)
    edges = edges_of(true, noise=0.04)
    without = solve_poses(list(true), edges, centre_px=CENTRE)
    edges[7] = replace(edges[7], shift_px=(edges[7].shift_px[0] + 30.0, edges[7].shift_px[1]))
    found = solve_poses(list(true), edges, centre_px=CENTRE)
    for n in true:
        assert found.poses[n].sigma_px < 1.5 * without.poses[n].sigma_px


def _shift(mapping: PlanarTransform) -> NDArray[np.float64]:
    return np.asarray(mapping.points(CENTRE) - CENTRE)


def test_an_edge_tells_the_pose_of_either_end() -> None:
    true = truth(2)
    edge = edges_of(true)[0]
    after = pose_after(edge, Pose(), centre_px=CENTRE)
    np.testing.assert_allclose(after.mapping(CENTRE).points(POINTS), true[2].points(POINTS), atol=1e-6)
    np.testing.assert_allclose(pose_before(edge, after, centre_px=CENTRE).shift_px, 0, atol=1e-9)


def test_nothing_is_pulled_back_unless_it_is_asked_for() -> None:
    poses = {1: Pose(), 2: Pose(1.0, (10.0, 0.0)), 4: Pose(1.0, (10.0, 0.0))}
    assert pulled_back(poses, 0.0) == poses
    back = pulled_back(poses, 0.1)
    np.testing.assert_allclose([back[n].shift_px[0] for n in (1, 2, 4)], [0, 9.0, 9.0 * 0.81])


def test_what_is_no_edge_is_named() -> None:
    with pytest.raises(ValueError, match="edge from slice 1 to 2: expected finite numbers"):
        solve_poses([1, 2], [Edge(1, 2, np.nan, (0.0, 0.0), 0.1, ABOUT, LEVER)], centre_px=CENTRE)
    with pytest.raises(ValueError, match="slices are named twice"):
        solve_poses([1, 1], [], centre_px=CENTRE)
    with pytest.raises(ValueError, match="stage positions must be finite"):
        solve_poses([1], [], centre_px=CENTRE, stage_px={1: (np.inf, 0.0)})
    assert solve_poses([], [], centre_px=CENTRE).poses == {}

"""One displacement for each slice, from pairs whose bends are known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from opticstream.compute.registration import rigid_map
from opticstream.compute.sample import Edge, EdgeBend, Pose, SliceBend, solve_bends

Array = NDArray[np.float64]
Bend = Callable[[Array], Array]
CENTRE = np.array([150.0, 130.0])
ABOUT = (150.0, 130.0)


def wavy(seed: int, size_px: float) -> Bend:
    """Return a smooth displacement of points."""
    rng = np.random.default_rng([seed, 7])
    number = 2 * np.pi / rng.uniform(180, 320, (2, 4)) * rng.choice([-1, 1], (2, 4))
    turn, phase = rng.uniform(0, np.pi, (2, 4)), rng.uniform(0, 2 * np.pi, (2, 4))

    def bend(q: Array) -> Array:
        wave = number * (np.cos(turn) * q[:, None, None, 0] + np.sin(turn) * q[:, None, None, 1]) + phase
        return np.asarray(size_px * np.sqrt(0.5) * np.sin(wave).sum(2))

    return bend


def still(q: Array) -> Array:
    return np.zeros_like(q)


def sample_of(
    bends: Mapping[int, Bend], noise_px: float = 0.1, wrong: Collection[tuple[int, int]] = ()
) -> tuple[list[Edge], dict[tuple[int, int], EdgeBend], dict[int, Pose]]:
    """Return what pairs of slices with these bends say, up to two sections apart."""
    rng = np.random.default_rng(5)
    poses = {n: Pose(0.5 * n, (3.0 * n, -2.0 * n)) for n in bends}
    q = np.stack(np.meshgrid(np.arange(20.0, 290, 22), np.arange(20.0, 250, 22), indexing="ij"), -1).reshape(-1, 2)
    edges, found = [], {}
    for i in bends:
        for j in (n for n in bends if i < n <= i + 2):
            one, two = (poses[n].mapping(CENTRE) for n in (i, j))
            turn = poses[j].turn_deg - poses[i].turn_deg
            shift = two.points(one.inverse().points(ABOUT)) - ABOUT
            edge = Edge(i, j, turn, (float(shift[0]), float(shift[1])), 0.1, ABOUT, 90.0)
            edges.append(edge)
            if bends[i] is still and bends[j] is still:
                continue
            at, to = one.points(q + bends[i](q)), two.points(q + bends[j](q))
            moved = rigid_map(edge.turn_deg, edge.shift_px, ABOUT).inverse().points(to) - at
            moved += rng.normal(0, noise_px, moved.shape)
            if (i, j) in wrong:
                moved[::6] += 9.0
            sigma, like = np.full(len(q), noise_px), np.full(len(q), 0.8)
            found[i, j] = EdgeBend(at, moved, sigma, 60.0, 4.0, like)
    return edges, found, poses


INSIDE = np.stack(np.meshgrid(np.arange(60.0, 240, 9), np.arange(60.0, 200, 9), indexing="ij"), -1).reshape(-1, 2)


def off_px(bend: SliceBend | None, true: Bend) -> float:
    """Return the root mean square error of a bend inside the tissue."""
    found = np.zeros_like(INSIDE) if bend is None else bend.at(INSIDE)
    return float(np.sqrt(((found - true(INSIDE)) ** 2).sum(1).mean()))


def test_bends_are_found_against_the_first_slice() -> None:
    bends = {n: still if n == 1 else wavy(n, 3.0) for n in range(1, 6)}
    found = solve_bends(*sample_of(bends), centre_px=CENTRE)
    assert sorted(found) == [2, 3, 4, 5], "the sample has the shape of its first slice"
    for n, bend in found.items():
        assert off_px(None, bends[n]) > 2.5
        assert off_px(bend, bends[n]) < 0.12
        assert 0.3 * off_px(bend, bends[n]) < bend.sigma_px < 2 * off_px(bend, bends[n])
        rms, largest = bend.size_px
        assert 2.0 < rms < 6.0 < largest < 15.0


def test_slopes_of_bends_are_found_to_a_fraction_of_a_degree() -> None:
    bends = {n: still if n == 1 else wavy(n, 2.0) for n in range(1, 6)}
    found = solve_bends(*sample_of(bends), centre_px=CENTRE)
    step = np.array([1.0, 0.0])
    for n in found:
        slope = found[n].at(INSIDE + step) - found[n].at(INSIDE)
        true = bends[n](INSIDE + step) - bends[n](INSIDE)
        assert np.sqrt((true**2).mean()) > 0.03
        assert np.sqrt(((slope - true) ** 2).mean()) < 0.0035, "0.2 degrees"


def test_one_bent_slice_leaves_all_others_straight() -> None:
    for bent in (1, 3):
        bends = {n: wavy(n, 3.0) if n == bent else still for n in range(1, 6)}
        found = solve_bends(*sample_of(bends), centre_px=CENTRE)
        assert list(found) == [bent]
        assert off_px(found[bent], bends[bent]) < 0.1


def test_slices_without_bends_get_none() -> None:
    assert solve_bends(*sample_of(dict.fromkeys(range(1, 5), still)), centre_px=CENTRE) == {}


def test_places_that_contradict_all_others_count_for_little() -> None:
    bends = {n: still if n == 1 else wavy(n, 3.0) for n in range(1, 5)}
    found = solve_bends(*sample_of(bends, wrong=[(1, 2), (2, 3)]), centre_px=CENTRE)
    assert max(off_px(found[n], bends[n]) for n in found) < 0.25


def test_a_new_slice_leaves_the_others_where_they_are() -> None:
    bends = {n: still if n == 1 else wavy(n, 3.0) for n in range(1, 7)}
    before = solve_bends(*sample_of({n: bends[n] for n in range(1, 6)}), centre_px=CENTRE)
    after = solve_bends(*sample_of(bends), centre_px=CENTRE)
    moved = [float(np.abs(after[n].at(INSIDE) - before[n].at(INSIDE)).max()) for n in (2, 3)]
    assert max(moved) < 0.25


def test_a_bend_on_pixels_is_that_at_their_places() -> None:
    bends = {1: still, 2: wavy(2, 3.0)}
    bend = solve_bends(*sample_of(bends), centre_px=CENTRE)[2]
    on = bend.on(slice(-3, 40), slice(10, 30))
    assert on.shape == (2, 43, 20)
    assert on[:, 13, 5] == pytest.approx(bend.at([[10.0, 15.0]])[0], abs=1e-4)


def test_a_bend_is_told_at_points_pixels_and_blocks_alike_and_can_be_undone() -> None:
    bend = SliceBend((-40.0, -40.0), 60.0, np.random.default_rng(1).normal(0, 2, (2, 7, 6)))
    pixels = np.stack(np.meshgrid(np.arange(5, 9), np.arange(2, 8), indexing="ij"), -1).reshape(-1, 2)
    at_points = bend.at(pixels).T.reshape(2, 4, 6)
    assert bend.on(slice(5, 9), slice(2, 8)) == pytest.approx(at_points, abs=1e-5)
    assert bend.of_blocks((4, 6), 1, first=(5, 2)) == pytest.approx(at_points)
    middles = np.stack(np.meshgrid([14.5, 24.5], [-5.5, 4.5, 14.5], indexing="ij"), -1).reshape(-1, 2)
    assert bend.of_blocks((2, 3), 10, first=(1, -1)) == pytest.approx(bend.at(middles).T.reshape(2, 2, 3))
    straight = bend.straightened(pixels)
    assert straight + bend.at(straight) == pytest.approx(pixels.astype(float), abs=1e-3)

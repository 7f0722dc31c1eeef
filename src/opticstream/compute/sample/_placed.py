"""Poses where a person has placed slices: what they gave holds, and comparisons that contradict it are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from opticstream.compute.registration import rigid_map
from opticstream.compute.sample._poses import Edge, Pose, PoseSolution, solve_poses

_HELD = 0.02
"""Share of their standard deviation with which edges of a person enter the first solve, which holds to them."""
_DOUBTED = 3.0
"""How much less comparisons of a placed slice count there: a person places a slice because they are wrong."""
_CONTRADICTS = 3.4
"""Residual, in standard deviations of both, from which a comparison contradicts what a person gave."""


class PlacedSolution(NamedTuple):
    """A solution, and what became of the edges that a person gave."""

    solution: PoseSolution
    """Of all slices; weights and residuals are those of the comparisons, 0 for those that were left out."""
    off_px: tuple[float, ...]
    """For each edge of a person: distance, over the tissue, between what they gave and the poses."""


def moved_edge(
    first: int,
    second: int,
    poses: Mapping[int, Pose],
    /,
    *,
    shift_px: tuple[float, float],
    turn_deg: float,
    sigma_px: float,
    centre_px: ArrayLike,
    lever_px: float,
) -> Edge:
    """Return the edge from one slice to another after the tissue of the second was moved in the sample.

    Parameters
    ----------
    first, second : int
        Slices; the second one is moved.
    poses : mapping of int to Pose
        Where the slices lie now.
    shift_px : (float, float)
        By how much the tissue is moved along x and y in pictures of the sample.
    turn_deg : float
        By how much it is turned before, about `centre_px`, from x towards y.
    sigma_px : float
        Standard deviation of the edge.
    centre_px : array_like, shape (2,)
        The fixed point of the poses.
    lever_px : float
        Of the edge.

    Examples
    --------
    What lay at x = 10 lies at x = 13 afterwards, where the first slice shows the same:

    >>> poses = {1: Pose(), 2: Pose()}
    >>> edge = moved_edge(1, 2, poses, shift_px=(3.0, 0.0), turn_deg=0.0, sigma_px=0.1, centre_px=(5, 5), lever_px=9.0)
    >>> edge.shift_px
    (-3.0, 0.0)
    """
    centre = np.asarray(centre_px, float)
    moved = rigid_map(turn_deg, shift_px, centre)
    back = poses[first].mapping(centre).inverse()
    to_second = poses[second].mapping(centre)
    about = poses[first].mapping(centre).points(centre)
    shift = to_second.points(moved.inverse().points(back.points(about))) - about
    turn = poses[second].turn_deg - poses[first].turn_deg - turn_deg
    return Edge(
        first,
        second,
        float(turn),
        (float(round(shift[0], 9)) + 0.0, float(round(shift[1], 9)) + 0.0),
        sigma_px,
        (float(about[0]), float(about[1])),
        lever_px,
    )


def solve_placed_poses(
    slices: Sequence[int],
    edges: Sequence[Edge],
    placed: Sequence[Edge],
    /,
    *,
    centre_px: ArrayLike,
    stage_px: Mapping[int, ArrayLike] | None = None,
    previous: Mapping[int, Pose] | None = None,
    excluded: frozenset[int] | set[int] = frozenset(),
) -> PlacedSolution:
    """Return the poses of all slices, with edges that a person gave and without the comparisons of excluded slices.

    Parameters
    ----------
    slices, edges, centre_px, stage_px, previous
        As for `solve_poses`.
    placed : sequence of Edge
        What a person gave: `second` is the slice that was placed. Comparisons that contradict it are left out;
        those that agree within both uncertainties make it more precise.
    excluded : set of int
        Slices that hand nothing on: they come to lie between their neighbours.

    Raises
    ------
    ValueError
        As `solve_poses`.

    Examples
    --------
    Three comparisons agree that slice 3 lies at 9; a person says that it lies at 2:

    >>> def edge(a, b, x, sigma=0.1):
    ...     return Edge(a, b, 0.0, (x, 0.0), sigma, (50.0, 50.0), 40.0)
    >>> found = [edge(1, 2, 1.0), edge(2, 3, 8.0), edge(1, 3, 9.0), edge(3, 4, -5.0), edge(2, 4, 3.0), edge(1, 4, 4.0)]
    >>> poses = solve_placed_poses([1, 2, 3, 4], found, [edge(2, 3, 1.0)], centre_px=(50.0, 50.0)).solution.poses
    >>> [round(poses[n].shift_px[0], 1) for n in (1, 2, 3, 4)]
    [0.0, 1.0, 2.0, 4.0]
    """
    there = set(slices) - excluded
    given = [e for e in placed if e.first in there and e.second in there]
    used = [k for k, e in enumerate(edges) if e.first in there and e.second in there]
    stage = {n: p for n, p in (stage_px or {}).items() if n not in excluded}
    chosen = [edges[k] for k in used]

    def solved(some: Sequence[Edge], certain: Sequence[Edge] = ()) -> PoseSolution:
        return solve_poses(slices, some, centre_px=centre_px, stage_px=stage, previous=previous, certain=certain)

    if given:
        by_hand = {e.second for e in given}
        doubted = [replace(e, sigma_px=e.sigma_px * _DOUBTED) if {e.first, e.second} & by_hand else e for e in chosen]
        held = solved(doubted, [replace(e, sigma_px=e.sigma_px * _HELD) for e in given])
        loosest = max(e.sigma_px for e in given)
        used = [
            k
            for k, e, off in zip(used, chosen, held.residuals_px, strict=False)
            if off <= _CONTRADICTS * np.hypot(e.sigma_px, loosest)
        ]
    solution = solved([*(edges[k] for k in used), *given])
    weights, residuals = np.zeros(len(edges)), np.full(len(edges), np.nan)
    weights[used], residuals[used] = solution.weights[: len(used)], solution.residuals_px[: len(used)]
    off = {id(e): r for e, r in zip(given, solution.residuals_px[len(used) :], strict=True)}
    return PlacedSolution(
        replace(solution, weights=tuple(weights.tolist()), residuals_px=tuple(residuals.tolist())),
        tuple(off.get(id(e), float("nan")) for e in placed),
    )

"""Poses of all slices of a sample from pairwise edges, by one robust solve.

A pose is a rigid motion ``p = R(turn) (q - c) + c + shift`` from the sample's pixel q to the slice's pixel p; c is one
fixed point of the sample. An edge is a measured motion between two slices. All edges together are more than are needed,
so that a wrong one contradicts the others and drops out: Geman-McClure's kernel, widened at first and narrowed step by
step (graduated non-convexity), finds the poses from any start. Where few edges hold some slices, it may yet give up on
the right ones; so each edge that was given up is followed, and what costs less is kept. A slice without any good edge
comes to lie between its neighbours, with an uncertainty that tells so; no slice takes over the pose of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration import PlanarTransform, rigid_map
from opticstream.compute.sample._given_up import PlacedEdges, better_motions, chances

Array = NDArray[np.float64]

KERNEL_SQUARED = 11.3
"""Square of the residual, in standard deviations, at which an edge counts a quarter."""

_NARROWING = 2.0
_WORTH = 0.5
"""By how much the cost must fall, in squares of standard deviations, for slices to be moved elsewhere."""
_TRIED = 3
"""Motions that are tried before nothing better is taken to be there."""
_SAME_PLANES = 0.5
"""Correlation of the errors of edges to one slice: they share its first planes, which make half of their errors."""

_LOOSE = 5.0
"""How much less precisely than the middle one a cut is held where it is loose and the usual steps are asked, too."""
_OF_A_STEP = 0.1
"""Share of the sample's usual step from which a cut may be loose: what is held better gains nothing from these."""
_LEVEL = 5
"""Slices on either side of a loose cut that tell where the stage had them."""
_FEWEST_STEPS = 4
"""Steps below which a sample does not tell how large its steps are."""
_BELIEVED = 0.5
"""Weight from which a position of the stage is believed."""
_FIELD = 2.0
"""Distance within which wrong edges lie along each axis, in levers of the tissue; half the field or so."""
_FIELD_RAD = 0.1
"""Angle (radians) within which wrong edges lie."""
_JUMP = 3.0
"""Step, in standard deviations, from which the stage has jumped."""

_STEP_SIGMA_PX = 25.0
_STEP_TURN_DEG = 2.0
_PRIOR_FREEDOM = 6.0
_SAME_PLACE_PX = 0.15
"""Displacement from which a slice does not count as left where it was."""


@dataclass(frozen=True)
class Edge:
    """A measured motion from one slice to a later one: ``p2 = R(turn) (p1 - about) + about + shift``."""

    first: int
    """Slice of p1."""
    second: int
    """Slice of p2."""
    turn_deg: float
    """Angle of the rotation."""
    shift_px: tuple[float, float]
    """Displacement of the pixel `about_px`."""
    sigma_px: float
    """Standard deviation of each component of the shift, and of the turn (in radians) times the lever."""
    about_px: tuple[float, float]
    """Middle of the tissue that was compared, in the first slice."""
    lever_px: float
    """Root mean square distance of that tissue from its middle."""


@dataclass(frozen=True)
class Pose:
    """The pose of one slice in the sample."""

    turn_deg: float = 0.0
    """Angle by which the slice's picture is turned against the sample."""
    shift_px: tuple[float, float] = (0.0, 0.0)
    """Displacement of the sample's fixed point."""
    sigma_px: float = 0.0
    """Expected root mean square error of the place of the tissue, up to one rigid motion of the whole sample."""
    sigma_deg: float = 0.0
    """Standard deviation of the angle, likewise."""

    def mapping(self, centre_px: ArrayLike, /) -> PlanarTransform:
        """Return the mapping from pixels of the sample to pixels of the slice.

        Examples
        --------
        >>> Pose(90.0, (5.0, 0.0)).mapping([1.0, 1.0]).points([2.0, 1.0]).round(6)
        array([6., 2.])
        """
        return rigid_map(self.turn_deg, self.shift_px, centre_px)


def pose_after(edge: Edge, pose: Pose, /, *, centre_px: ArrayLike) -> Pose:
    """Return the pose of an edge's second slice, as the edge and the pose of its first slice tell it.

    Examples
    --------
    >>> edge = Edge(1, 2, 90.0, (0.0, 0.0), 0.1, (10.0, 0.0), 40.0)
    >>> pose_after(edge, Pose(), centre_px=(0.0, 0.0)).mapping([0.0, 0.0]).points([10.0, 0.0]).round(6)
    array([10.,  0.])
    """
    return _after(edge, pose, np.asarray(centre_px, float), forward=True)


def pose_before(edge: Edge, pose: Pose, /, *, centre_px: ArrayLike) -> Pose:
    """Return the pose of an edge's first slice, as the edge and the pose of its second slice tell it.

    Examples
    --------
    >>> edge = Edge(1, 2, 30.0, (5.0, -2.0), 0.1, (10.0, 0.0), 40.0)
    >>> pose = pose_before(edge, pose_after(edge, Pose(), centre_px=(1.0, 1.0)), centre_px=(1.0, 1.0))
    >>> round(pose.turn_deg, 6) + 0, [round(s, 6) + 0 for s in pose.shift_px]
    (0.0, [0.0, 0.0])
    """
    return _after(edge, pose, np.asarray(centre_px, float), forward=False)


def _after(edge: Edge, pose: Pose, centre: Array, *, forward: bool) -> Pose:
    step = rigid_map(edge.turn_deg, edge.shift_px, edge.about_px)
    step = step if forward else step.inverse()
    turn = edge.turn_deg if forward else -edge.turn_deg
    shift = step.points(centre + pose.shift_px) - centre
    return Pose(pose.turn_deg + turn, (float(shift[0]), float(shift[1])))


@dataclass(frozen=True)
class PoseSolution:
    """Poses of all slices, and what became of the edges."""

    poses: Mapping[int, Pose]
    """By slice."""
    weights: tuple[float, ...]
    """For each edge, in the order given: 1 where it agrees with the others, near 0 where it was left out."""
    residuals_px: tuple[float, ...]
    """For each edge: root mean square distance, over the tissue, between what it measured and the poses."""
    scale: float
    """Size of the residuals against the stated uncertainties of the edges."""
    stage_weights: Mapping[int, float]
    """For each slice with a stage position: 1 where it agrees with the poses, near 0 where it was left out."""


def solve_poses(
    slices: Sequence[int],
    edges: Sequence[Edge],
    /,
    *,
    centre_px: ArrayLike,
    stage_px: Mapping[int, ArrayLike] | None = None,
    stage_sigma_px: float = 10.0,
    previous: Mapping[int, Pose] | None = None,
    certain: Sequence[Edge] = (),
) -> PoseSolution:
    """Return the poses of slices that agree best with the edges between them.

    Parameters
    ----------
    slices : sequence of int
        Numbers of the slices.
    edges : sequence of Edge
        Measured motions; edges to other slices are not used.
    centre_px : array_like, shape (2,)
        The sample's fixed point.
    stage_px : mapping, optional
        Shift of a slice that the stage's log tells, (x, y) in px, up to one shift of all.
    stage_sigma_px : float
        Standard deviation of these.
    previous : mapping, optional
        Poses of an earlier solve: the new ones are moved, all together, to where these lie. Without it the first
        slice keeps its place.
    certain : sequence of Edge
        Further edges, between these slices, that are never given up, however many others contradict them.

    Returns
    -------
    PoseSolution

    Raises
    ------
    ValueError
        A slice is named twice, or an edge or a stage position is not finite or has no positive uncertainty.

    Examples
    --------
    The second of three edges contradicts the others, and is left out:

    >>> far = [Edge(1, n, 0.0, (x, 0.0), 0.1, (50.0, 50.0), 40.0) for n, x in ((2, 3.0), (3, 99.0))]
    >>> steps = (2, 3, 4.0), (3, 4, 1.0), (2, 4, 5.0)
    >>> near = [Edge(a, b, 0.0, (x, 0.0), 0.1, (50.0, 50.0), 40.0) for a, b, x in steps]
    >>> far.append(Edge(1, 4, 0.0, (8.0, 0.0), 0.1, (50.0, 50.0), 40.0))
    >>> found = solve_poses([1, 2, 3, 4], far + near, centre_px=(50.0, 50.0))
    >>> [round(found.poses[n].shift_px[0], 2) for n in (1, 2, 3, 4)], round(found.weights[1], 3)
    ([0.0, 3.0, 7.0, 8.0], 0.0)
    """
    numbers = sorted(slices)
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"slices are named twice: {numbers}")
    at = {n: k for k, n in enumerate(numbers)}
    used = [k for k, e in enumerate(edges) if e.first in at and e.second in at]
    for edge in (*(edges[k] for k in used), *certain):
        _check_edge(edge)
    stage = {n: np.asarray(p, float) for n, p in (stage_px or {}).items() if n in at}
    if not all(np.isfinite(p).all() for p in stage.values()) or not stage_sigma_px > 0:
        raise ValueError(f"stage positions must be finite, with a positive uncertainty (got {stage}, {stage_sigma_px})")
    if not numbers:
        return PoseSolution({}, (0.0,) * len(edges), (float("nan"),) * len(edges), 1.0, {})
    real, centre = [edges[k] for k in used], np.asarray(centre_px, float)
    system = _System(numbers, real, centre, stage, stage_sigma_px, certain)
    state = system.solved()
    usual = system.usual_steps(state, numbers)
    if usual:
        system = _System(numbers, real, centre, stage, stage_sigma_px, certain, usual)
        state = system.mended(state)
    edge_weight, stage_weight = system.weights(state)
    sigma_px, sigma_deg, scale = system.uncertainty(state)
    poses = {
        n: Pose(float(np.degrees(s[0])), (float(s[1]), float(s[2])), float(sigma_px[k]), float(sigma_deg[k]))
        for k, (n, s) in enumerate(zip(numbers, state, strict=True))
    }
    weights, residuals = np.zeros(len(edges)), np.full(len(edges), np.nan)
    weights[used] = edge_weight[: len(used)]
    residuals[used] = np.sqrt((system.residuals(state) ** 2).sum(1))
    return PoseSolution(
        poses=_moved_back(poses, previous or {}, system.lever),
        weights=tuple(weights.tolist()),
        residuals_px=tuple(residuals.tolist()),
        scale=scale,
        stage_weights=dict(zip(stage, stage_weight.tolist(), strict=True)),
    )


def _check_edge(edge: Edge) -> None:
    numbers = [edge.turn_deg, *edge.shift_px, edge.sigma_px, *edge.about_px, edge.lever_px]
    if not np.isfinite(numbers).all() or edge.sigma_px <= 0 or edge.lever_px <= 0 or edge.first == edge.second:
        raise ValueError(
            f"edge from slice {edge.first} to {edge.second}: expected finite numbers, a positive sigma_px and "
            f"lever_px, and two slices, got {edge}"
        )


class _System:
    """The least squares problem; a state has one row (turn in radians, shift x, shift y) for each slice.

    Edges reach a few sections, so the normal equations are a narrow band where slices are in the right order.
    """

    def __init__(
        self,
        numbers: list[int],
        edges: list[Edge],
        centre: Array,
        stage: Mapping[int, Array],
        stage_sigma: float,
        certain: Sequence[Edge],
        usual: Sequence[Edge] = (),
    ) -> None:
        at = {n: k for k, n in enumerate(numbers)}
        self.size = len(numbers)
        self.count = len(edges)
        middle = np.mean([e.about_px for e in edges], axis=0) if edges else centre
        self.lever = float(np.median([e.lever_px for e in edges])) if edges else 100.0
        # Weak steps hold what no edge holds; they bend nothing, being hundreds of times weaker than any edge.
        weak = [
            Edge(
                a,
                b,
                0.0,
                (0.0, 0.0),
                _STEP_SIGMA_PX * float(np.sqrt(b - a)),
                (float(middle[0]), float(middle[1])),
                _STEP_SIGMA_PX / float(np.radians(_STEP_TURN_DEG)),
            )
            for a, b in pairwise(numbers)
        ]
        every = [*edges, *usual, *certain, *weak]
        self.i = np.array([at[e.first] for e in every], int)
        self.j = np.array([at[e.second] for e in every], int)
        self.turn = np.radians([e.turn_deg for e in every])
        self.shift = np.array([e.shift_px for e in every], float).reshape(-1, 2)
        self.from_centre = np.array([e.about_px for e in every], float).reshape(-1, 2) - centre
        self.levers = np.array([e.lever_px for e in every], float)
        self.sigma = np.array([e.sigma_px for e in every], float)
        self.wide = np.array([KERNEL_SQUARED] * len([*edges, *usual]) + [np.inf] * len([*certain, *weak]))
        """Square of the kernel of each edge, in its standard deviations; infinite where it never gives up."""
        self._centre = centre
        self.middle = np.asarray(middle - centre, float)
        """Middle of the tissue, from the sample's fixed point."""
        self.stage_at = np.array([at[n] for n in stage], int)
        self.stage = np.array([stage[n] for n in stage], float).reshape(-1, 2)
        self.stage_sigma = stage_sigma
        self._band = _Band(self.i, self.j, self.size)

    def _steps(self, state: Array) -> tuple[Array, Array]:
        """Return residuals (edges, 3) and their derivatives by the two poses (edges, 3, 6), divided by no sigma."""
        angle = state[self.j, 0] - state[self.i, 0]
        c, s = np.cos(angle), np.sin(angle)
        arm = self.from_centre - state[self.i, 1:]
        moved = np.stack([c * arm[:, 0] - s * arm[:, 1], s * arm[:, 0] + c * arm[:, 1]], axis=1)
        off = moved + state[self.j, 1:] - self.from_centre - self.shift
        turn = np.angle(np.exp(1j * (angle - self.turn))) * self.levers
        slope = np.zeros((len(angle), 3, 6))
        slope[:, 0, 3], slope[:, 0, 0] = self.levers, -self.levers
        slope[:, 1, 3], slope[:, 2, 3] = -moved[:, 1], moved[:, 0]
        slope[:, 1:, 0] = -slope[:, 1:, 3]
        slope[:, 1, 4] = slope[:, 2, 5] = 1.0
        slope[:, 1, 1], slope[:, 1, 2], slope[:, 2, 1], slope[:, 2, 2] = -c, s, -s, -c
        return np.column_stack([turn, off]), slope

    def residuals(self, state: Array) -> Array:
        """Return the residuals of the real edges in px, shape (edges, 3): turn times lever, shift."""
        return self._steps(state)[0][: self.count]

    def weights(self, state: Array, widening: float = 1.0) -> tuple[Array, Array]:
        """Return the weights of all edges and of the stage positions, by a kernel that is wider than in the end."""
        squared, stage_squared = self._squared(state)
        return (
            1 / (1 + squared / (widening * self.wide)) ** 2,
            1 / (1 + stage_squared / (widening * KERNEL_SQUARED)) ** 2,
        )

    def solved(self) -> Array:
        """Return the state that costs least."""
        return self.mended(self._narrowed())

    def mended(self, state: Array) -> Array:
        """Return the minimum of the cost near a state, or a lower one to which edges that were given up lead."""
        state = self._settled(state)
        for _ in range(self.size):  # each round mends one place, so this many are more than enough
            better = self._elsewhere(state)
            if better is None:
                break
            state = better
        return state

    def _narrowed(self) -> Array:
        """Return the state that the kernel leads to while it narrows, from least squares on."""
        state = np.zeros((self.size, 3))
        if len(self.stage):
            state[self.stage_at, 1:] = self.stage
        for _ in range(10):
            state, moved = self._step(state, *self.weights(state, np.inf))
            if moved <= 1e-3:
                break
        squared, stage_squared = self._squared(state)
        largest = max(squared[: self.count].max(initial=0.0), stage_squared.max(initial=0.0))
        widening = max(1.0, 2 * largest / KERNEL_SQUARED)
        while widening > 1.0:
            state, _ = self._step(state, *self.weights(state, widening))
            widening = max(1.0, widening / _NARROWING)
        return state

    def _settled(self, state: Array) -> Array:
        """Return the nearest minimum of the cost."""
        for _ in range(40):
            state, moved = self._step(state, *self.weights(state))
            if moved < 1e-4:
                break
        return state

    def _elsewhere(self, state: Array) -> Array | None:
        """Return a minimum that costs less, with some slices where an edge that was given up has them; None if none."""
        cost = self._cost(state)
        for motion in better_motions(self._placed(state), self.wide, self.size)[:_TRIED]:
            tried = self._settled(motion.applied(state))
            if self._cost(tried) < cost - _WORTH:
                return tried
        return None

    def _placed(self, state: Array) -> PlacedEdges:
        return PlacedEdges.of(state, (self.i, self.j), self.turn, self.shift, self.from_centre, self.levers, self.sigma)

    def _doubts(self, state: Array) -> list[tuple[slice, Array]]:
        """Return pieces of the sample that may lie elsewhere, and the variance of each, (turn times lever, x, y), px^2.

        Where comparisons contradict each other and none is in the majority, each of them may be right.
        """
        wrong = np.where(np.arange(len(self.wide)) < self.count, self._when_wrong(state), self.wide)
        middle = complex(*self.middle)
        doubts = []
        for motion, chance in chances(self._placed(state), self.wide, wrong, self.size):
            moved = motion.at(middle) - middle
            angle = self.lever * float(np.angle(np.exp(1j * motion.turn)))
            doubts.append((motion.slices, chance * np.square([angle, moved.real, moved.imag])))
        return doubts

    def _when_wrong(self, state: Array) -> Array:
        """Return the square of the residual, in standard deviations, from which each edge is rather wrong, (edges,).

        As many are wrong as the solve gave up, and a wrong one is anywhere within the field; the more precise an edge,
        the less likely it agrees with others by chance.
        """
        weight = self.weights(state)[0]
        given_up = float((1 - weight[: self.count]).sum())
        share = (1 + given_up) / (2 + self.count)
        anywhere = (2 * _FIELD * self.lever) ** 2 * 2 * _FIELD_RAD * self.lever
        within = (2 * np.pi) ** 1.5 * self.sigma**3
        return np.maximum(2 * np.log((1 - share) / share * anywhere / within), 0.0)

    def _cost(self, state: Array) -> float:
        """Return the sum that is minimised: squares, of which the kernel lets none exceed its own."""
        squared, stage_squared = self._squared(state)
        stage = stage_squared / (1 + stage_squared / KERNEL_SQUARED)
        return float((squared / (1 + squared / self.wide)).sum() + stage.sum())

    def _squared(self, state: Array) -> tuple[Array, Array]:
        """Return the squares of all residuals, of edges and of stage positions, in standard deviations."""
        squared = ((self._steps(state)[0] / self.sigma[:, None]) ** 2).sum(1)
        off = (state[self.stage_at, 1:] - self.stage) / self.stage_sigma
        return squared, (off**2).sum(1)

    def _step(self, state: Array, edge: Array, stage: Array) -> tuple[Array, float]:
        """Return the state after one Gauss-Newton step, and how far it moved, in px."""
        residual, slope = self._steps(state)
        weight = edge / self.sigma**2
        weighted = slope * weight[:, None, None]
        pull = -self._band.vector(np.einsum("erk,er->ek", weighted, residual))
        diagonal = np.zeros((self.size, 3))
        strength = stage / self.stage_sigma**2
        diagonal[self.stage_at, 1:] = strength[:, None]
        pull[self.stage_at, 1:] -= strength[:, None] * (state[self.stage_at, 1:] - self.stage)
        change = self._band.solved(np.einsum("erk,erl->ekl", weighted, slope), diagonal, pull.reshape(-1, 1))
        change = change.reshape(-1, 3)
        return state + change, float(np.abs(change * [self.lever, 1, 1]).max())

    def _cuts(self, state: Array, doubts: Sequence[tuple[slice, Array]]) -> tuple[Array, float]:
        """Return how precisely comparisons hold each cut between two slices, in px, and from where that is loose."""
        weight = self.weights(state)[0][: self.count] / self.sigma[: self.count] ** 2
        low, high = np.sort([self.i[: self.count], self.j[: self.count]], axis=0)
        change = np.bincount(low, weight, self.size) - np.bincount(high, weight, self.size)
        held = np.maximum(np.cumsum(change)[: self.size - 1], 0.0)
        with np.errstate(divide="ignore"):
            variance = 1 / held
        for piece, doubt in doubts:
            ends = [k - 1 for k in (piece.start, piece.stop) if 0 < k < self.size]
            variance[ends] += doubt.sum() / 3
        sigma = np.sqrt(variance)
        if not len(sigma):
            return sigma, np.inf
        every = np.arange(self.size - 1)
        step = 1.4826 * float(np.median(np.abs(self._pictures_moved(state, every, every + 1))))
        return sigma, max(_LOOSE * float(np.median(sigma)), _OF_A_STEP * step)

    def usual_steps(self, state: Array, numbers: Sequence[int]) -> list[Edge]:
        """Return what the sample's own steps say about cuts that comparisons hold loosely, one edge for each.

        The stage returns to where it was, each time with an error of its own. So slices on either side of a cut lie,
        in the mean, in the same place, or where its log has them, up to where the stage has jumped. Whether it jumped
        at the cut itself is one question, however many slices are asked.
        """
        sigma, limit = self._cuts(state, self._doubts(state))
        loose = sigma > limit
        told = self._told_by_stage(state)
        every = np.arange(self.size - 1)
        known = every[~loose & np.isfinite(told[1:] - told[:-1]).all(1)]
        if not loose.any() or len(known) < _FEWEST_STEPS:
            return []
        steps = self._pictures_moved(state, known, known + 1) - (told[known + 1] - told[known])
        # a step is the difference of two slices' own errors
        own_px = max(1.4826 * float(np.median(np.abs(steps))), limit) / np.sqrt(2)
        turns = state[known + 1, 0] - state[known, 0]
        own_rad = max(1.4826 * float(np.median(np.abs(turns))), limit / self.lever) / np.sqrt(2)
        held = np.concatenate([[0], np.cumsum(loose)])
        usual = []
        for cut in np.flatnonzero(loose).tolist():  # the slice before it
            sides = [
                self._level(state, told, end, np.flatnonzero(held == held[end]), _JUMP * np.sqrt(2) * own_px)
                for end in (cut, cut + 1)
            ]
            if all(count for _, count in sides):
                sigma_px = own_px * float(np.sqrt(sum(1 / count for _, count in sides)))
                turn, *shift = sides[0][0] - sides[1][0]
                about = self.middle + self._centre
                usual.append(
                    Edge(
                        numbers[cut],
                        numbers[cut + 1],
                        float(np.degrees(turn)),
                        (float(shift[0]), float(shift[1])),
                        sigma_px,
                        (float(about[0]), float(about[1])),
                        own_px / own_rad,
                    )
                )
        return usual

    def _level(self, state: Array, told: Array, end: int, side: NDArray[np.int_], far_px: float) -> tuple[Array, int]:
        """Return where slices on one side of a cut lie on average, from its last one, and how many tell.

        Turn in radians and shift of the tissue's middle, beyond what the stage's log tells.
        """
        near = side[np.abs(side - end) < _LEVEL]
        from_end = self._pictures_moved(state, np.full(len(near), end), near) - told[near]
        level = np.isfinite(from_end).all(1) & (np.linalg.norm(from_end + told[end], axis=1) < far_px)
        if not level.any():
            return np.zeros(3), 0
        turns = state[near, 0] - state[end, 0]
        return np.column_stack([turns, from_end])[level].mean(0), int(level.sum())

    def _told_by_stage(self, state: Array) -> Array:
        """Return where the stage's log has each slice, (slices, 2): NaN where it is a glitch, 0 without any log."""
        if not len(self.stage):
            return np.zeros((self.size, 2))
        told = np.full((self.size, 2), np.nan)
        good = self.weights(state)[1] > _BELIEVED
        told[self.stage_at[good]] = self.stage[good]
        return told

    def _pictures_moved(self, state: Array, first: NDArray[np.int_], second: NDArray[np.int_]) -> Array:
        """Return by how much the middle of the tissue lies elsewhere in the second slice's picture, (pairs, 2)."""
        angle = state[second, 0] - state[first, 0]
        c, s = np.cos(angle), np.sin(angle)
        arm = self.middle - state[first, 1:]
        turned = np.stack([c * arm[:, 0] - s * arm[:, 1], s * arm[:, 0] + c * arm[:, 1]], axis=1)
        return np.asarray(turned + state[second, 1:] - self.middle)

    def uncertainty(self, state: Array) -> tuple[Array, Array, float]:
        """Return sigma of place (px) and of angle (degrees) of each slice, and the scale of the residuals."""
        n = self.size
        if not self.count:
            return np.full(n, _STEP_SIGMA_PX), np.full(n, _STEP_TURN_DEG), 1.0
        from scipy import sparse

        residual, slope = self._steps(state)
        edges = len(residual)
        slope = slope / self.sigma[:, None, None]
        slope[:, :, [0, 3]] /= self.lever  # angles as px at the lever: one metric for all
        weight = self.weights(state)[0]
        weighted = slope * weight[:, None, None]
        rows = np.repeat(np.arange(3 * edges), 6)
        columns = np.repeat(self._band.columns, 3, axis=0).ravel()
        jacobian, half = (
            sparse.csr_matrix((part.ravel(), (rows, columns)), shape=(3 * edges, 3 * n)) for part in (slope, weighted)
        )
        inverse = self._band.solved(np.einsum("erk,erl->ekl", weighted, slope), np.zeros((n, 3)), np.eye(3 * n))
        doubts = self._doubts(state)
        # The residuals tell by how much sure edges are better or worse than they say; a few edges tell it only roughly.
        sure = (np.arange(edges) < self.count) & (self.sigma <= self._cuts(state, doubts)[1])
        share = weight * sure
        squared = float((share[:, None] * (residual / self.sigma[:, None]) ** 2).sum())
        theirs = half.multiply(np.repeat(sure, 3)[:, None]).T @ jacobian
        expected = 3 * float(share.sum()) - float(theirs.multiply(inverse).sum())
        scale = float(np.sqrt((_PRIOR_FREEDOM + squared) / (_PRIOR_FREEDOM + max(expected, 0.0))))
        # Errors of edges to one slice are partly common: one part of them is independent, the rest sums over the edges.
        group = np.where(np.arange(edges) < self.count, self.j, n + np.arange(edges))
        sums = sparse.csr_matrix(
            (np.ones(3 * edges), (np.arange(3 * edges), (3 * group[:, None] + np.arange(3)).ravel()))
        )
        pulls = half.multiply(np.repeat(np.where(sure, scale, 1.0), 3)[:, None]).tocsr()
        summed = pulls.T @ sums
        spread = ((1 - _SAME_PLANES) * pulls.T @ pulls + _SAME_PLANES * summed @ summed.T).tocsr()
        gauge = np.zeros((n, 3, 3))
        gauge[:, 0, 0] = 1.0
        c, s = np.cos(state[:, 0]), np.sin(state[:, 0])
        gauge[:, 1, 1], gauge[:, 1, 2], gauge[:, 2, 1], gauge[:, 2, 2] = c, -s, s, c
        common = gauge.reshape(3 * n, 3) / np.sqrt(n)
        # What is common to all is told by the slices that are known well: one that is not must not blur the others.
        free = inverse - common @ (common.T @ inverse)
        roughly = np.diag(free) - ((free @ common) * common).sum(1)
        known = np.repeat(1 / np.maximum(roughly.reshape(n, 3).sum(1), 1e-12), 3)[:, None] * common
        free = inverse - common @ np.linalg.solve(common.T @ known, known.T @ inverse)
        variance = np.maximum(((spread @ free.T).T * free).sum(1).reshape(n, 3), 0)
        trust = known.reshape(n, 3, 3)[:, 0, 0]
        for piece, doubt in doubts:
            common_to_all = float(trust[piece].sum() / trust.sum())
            moved = np.full((n, 1), common_to_all**2)
            moved[piece] = (1 - common_to_all) ** 2
            variance += moved * doubt
        return np.sqrt(variance.sum(1)), np.degrees(np.sqrt(variance[:, 0]) / self.lever), scale


class _Band:
    """Normal equations whose blocks join the two ends of each edge, in an order in which they form a narrow band."""

    def __init__(self, i: NDArray[np.int_], j: NDArray[np.int_], size: int) -> None:
        from scipy import sparse
        from scipy.sparse.csgraph import reverse_cuthill_mckee

        graph = sparse.csr_matrix((np.ones(2 * len(i)), (np.r_[i, j], np.r_[j, i])), shape=(size, size))
        place = np.argsort(reverse_cuthill_mckee(graph, symmetric_mode=True))
        three = np.arange(3)
        self.size = size
        self.columns = np.concatenate([3 * i[:, None] + three, 3 * j[:, None] + three], axis=1)
        """Unknowns of each edge, shape (edges, 6)."""
        self.order = (3 * place[:, None] + three).ravel()
        """Place in the band of each unknown."""
        in_band = self.order[self.columns]
        row, column = in_band[:, :, None], in_band[:, None, :]
        self._lower = np.broadcast_to(row >= column, (len(i), 6, 6))
        self._at = ((row - column) * 3 * size + column)[self._lower]
        self._width = int((row - column).max(initial=0)) + 1 if len(i) else 1

    def vector(self, parts: Array) -> Array:
        """Return the sums of what edges add to the unknowns of their ends, (edges, 6) to (slices, 3)."""
        total = np.bincount(self.columns.ravel(), weights=parts.ravel(), minlength=3 * self.size)
        return np.asarray(total, float).reshape(-1, 3)

    def solved(self, blocks: Array, diagonal: Array, right: Array) -> Array:
        """Return the solution for each column of `right`; the first slice rests, which nothing else would say."""
        from scipy.linalg import solveh_banded

        n = 3 * self.size
        parts = np.bincount(self._at, weights=blocks[self._lower], minlength=self._width * n)
        band = parts.astype(float).reshape(self._width, n)  # counts, where there is no edge
        band[0, self.order] += diagonal.ravel()
        first = self.order[:3]
        band[0, first] += 1e-3 * band[0, first] + 1e-9
        moved = np.empty_like(right)
        moved[self.order] = right
        return np.asarray(solveh_banded(band, moved, lower=True, overwrite_ab=True, overwrite_b=True)[self.order])


def _moved_back(poses: Mapping[int, Pose], previous: Mapping[int, Pose], lever_px: float) -> dict[int, Pose]:
    """Return the poses after the one rigid motion of the whole sample that leaves most slices where they were before.

    Where as many slices speak for one motion as for another, the earliest slice decides: a slice that is placed better
    than before must not turn the whole sample, and with it all its angles.
    """
    known = [n for n in sorted(poses) if n in previous] or [min(poses)]
    before = [previous.get(n, Pose()) for n in known]
    turns = np.array([poses[n].turn_deg for n in known])
    angles = np.array([p.turn_deg for p in before]) - turns
    shifts = np.array([p.shift_px for p in before]) - np.array([poses[n].shift_px for n in known])
    # pose after motion g: p = R(turn) (g(q) - c) + c + t, with g(q) = R(angle) (q - c) + c + shift
    back = np.stack([_rotated(d, -t) for d, t in zip(shifts, turns, strict=True)])
    motions = np.column_stack([np.radians(angles) * lever_px, back]) / _SAME_PLACE_PX
    disagreements = np.array([(1 - 1 / (1 + ((motions - one) ** 2).sum(1))).sum() for one in motions])
    best = motions[int(np.argmax(disagreements <= disagreements.min() + 1e-6))]
    for _ in range(20):
        weight = 1 / (1 + ((motions - best) ** 2).sum(1)) ** 2
        best = np.average(motions, axis=0, weights=weight)
    angle, shift = float(np.degrees(best[0] * _SAME_PLACE_PX / lever_px)), best[1:] * _SAME_PLACE_PX
    return {
        n: replace(
            pose,
            turn_deg=pose.turn_deg + angle,
            shift_px=tuple((np.array(pose.shift_px) + _rotated(shift, pose.turn_deg)).tolist()),
        )
        for n, pose in poses.items()
    }


def pulled_back(poses: Mapping[int, Pose], share: float, /) -> dict[int, Pose]:
    """Return poses of which a share is taken back at every slice, so that they do not leave "not moved" for long.

    Parameters
    ----------
    poses : mapping of int to Pose
        By slice.
    share : float
        0 changes nothing; with 0.2 a step has 0.8 of its size at its own slice, 0.64 at the next, and so on.

    Examples
    --------
    >>> poses = {n: Pose(0.0, (3.0 * (n - 1), 0.0)) for n in (1, 2, 3)}
    >>> [round(pose.shift_px[0], 2) for pose in pulled_back(poses, 0.2).values()]
    [0.0, 2.4, 4.32]
    """
    if share == 0:
        return dict(poses)
    out: dict[int, Pose] = {}
    before = old = None
    for n in sorted(poses):
        pose = poses[n]
        if before is not None and old is not None:
            keep = (1 - share) ** (n - before)
            turn = (out[before].turn_deg + pose.turn_deg - old.turn_deg) * keep
            step = np.array(pose.shift_px) - old.shift_px
            shift = (np.array(out[before].shift_px) + step) * keep
            out[n] = replace(pose, turn_deg=turn, shift_px=(float(shift[0]), float(shift[1])))
        else:
            out[n] = pose
        before, old = n, pose
    return out


def _rotated(vector: Array, turn_deg: float) -> Array:
    c, s = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    return np.array([c * vector[0] - s * vector[1], s * vector[0] + c * vector[1]])

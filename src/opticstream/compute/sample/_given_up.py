"""Where slices would lie if edges that a robust solve gave up were right after all, and whether all edges agree better.

An edge that contradicts is given up; where few edges hold some slices (those at an end, those beside a missing one, or
all on one side of it), these may be the right ones, since one wrong edge that says that it is sure draws the slices its
way while the kernel is wide. The cost tells: it is lower where more edges agree. So slices are moved, as one piece, to
where a given-up edge has them, and the costs of all edges between them and the others are compared. Where no place is
clearly better, each has its chance, and poses are as uncertain as the places are far apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Points = NDArray[np.complex128]

_GIVEN_UP = 0.5
"""Share of its square that the kernel leaves an edge that counts as given up."""
_LONGEST_PIECE = 3
"""Slices that are moved on their own; longer pieces are moved with all that follows."""
_NO_CHANCE = 1e-6
"""Odds below which a place is not considered."""
_SAME_PLACE = 4.0
"""Standard deviations of an edge within which two places are the same one."""
_MOST = 50.0
"""Largest logarithm of odds."""


@dataclass(frozen=True)
class PlacedEdges:
    """Edges as their two slices lie now: in the sample, x + iy from its fixed point."""

    i: NDArray[np.int_]
    """Place of the first slice in the order of the slices."""
    j: NDArray[np.int_]
    """Place of the second slice."""
    by_first: Points
    """Where the tissue that the edge compares lies, as the pose of the first slice tells it."""
    by_second: Points
    """Where it lies as the pose of the second slice and the edge tell it."""
    turn: Array
    """Angle (radians) by which the second slice's tissue had to be turned to agree."""
    lever: Array
    """Weight of angles, px."""
    sigma: Array
    """Standard deviation, px."""

    @classmethod
    def of(
        cls,
        state: Array,
        ends: tuple[NDArray[np.int_], NDArray[np.int_]],
        turn: Array,
        shift: Array,
        about: Array,
        lever: Array,
        sigma: Array,
    ) -> PlacedEdges:
        """Return the edges for poses (turn in radians, shift x, shift y) by slice."""
        i, j = ends
        poses, turned = _complex(state[:, 1:]), np.exp(1j * state[:, 0])
        first = (_complex(about) - poses[i]) / turned[i]
        second = (_complex(about + shift) - poses[j]) / turned[j]
        return cls(i, j, first, second, np.angle(np.exp(1j * (turn - state[j, 0] + state[i, 0]))), lever, sigma)

    def squared(self) -> Array:
        """Return the squares of the residuals, in standard deviations."""
        return (np.abs(self.by_first - self.by_second) ** 2 + (self.lever * self.turn) ** 2) / self.sigma**2


@dataclass(frozen=True)
class Motion:
    """A rigid motion of the tissue of some slices: `point -> exp(i turn) (point - start) + end`."""

    slices: slice
    """Places of the slices in their order."""
    turn: float
    """Angle in radians."""
    start: complex
    """A point before."""
    end: complex
    """The same point after."""

    def at(self, point: complex, /) -> complex:
        """Return where a point comes to lie."""
        return complex(np.exp(1j * self.turn) * (point - self.start) + self.end)

    def distance(self, other: Motion, lever: float, /) -> float:
        """Return how far apart two motions bring the tissue about this one's start, px; infinite for other slices."""
        if self.slices != other.slices:
            return float("inf")
        turn = lever * np.angle(np.exp(1j * (self.turn - other.turn)))
        return float(np.hypot(abs(self.end - other.at(self.start)), turn))

    def applied(self, state: Array, /) -> Array:
        """Return the poses after the motion.

        Examples
        --------
        >>> Motion(slice(1, 2), 0.0, 0j, 3 - 1j).applied(np.zeros((2, 3))).tolist()
        [[0.0, 0.0, 0.0], [0.0, -3.0, 1.0]]
        """
        moved = state.copy()
        mine = moved[self.slices]
        # The tissue at q comes to lie at m(q); the pose that showed q must show it at m(q): pose after the way back.
        back = np.exp(-1j * self.turn)
        shift = np.exp(1j * mine[:, 0]) * (self.start - back * self.end)
        mine[:, 0] -= self.turn
        mine[:, 1] += shift.real
        mine[:, 2] += shift.imag
        return moved


def better_motions(edges: PlacedEdges, wide: Array, size: int, /) -> list[Motion]:
    """Return the motions of pieces of the sample that lower the cost, the one that lowers it most first.

    Parameters
    ----------
    edges : PlacedEdges
        As they lie.
    wide : ndarray, shape (edges,)
        Square of the kernel of each, in standard deviations; infinite where the edge is never given up.
    size : int
        Number of slices.
    """
    trials = _trials(edges, wide, size, lambda squared, which: _robust(squared, wide[which]))
    return [trials.motion(k) for k in trials.best_first() if trials.gain[k] > 0]


def chances(edges: PlacedEdges, wide: Array, wrong: Array, size: int, /) -> list[tuple[Motion, float]]:
    """Return other places of pieces of the sample, each with its chance of being the right one.

    Parameters
    ----------
    edges, wide, size
        As in `better_motions`.
    wrong : ndarray, shape (edges,)
        Square of the residual, in standard deviations, from which each edge is rather wrong than badly measured.

    Notes
    -----
    An edge is either right within its standard deviation, or wrong and then anywhere; a residual of square s is worth
    ``-2 log(exp(-s / 2) + exp(-wrong / 2))``. Half of the difference of these sums is the logarithm of the odds.
    """
    trials = _trials(edges, wide, size, lambda squared, which: -2 * np.logaddexp(-squared / 2, -wrong[which] / 2))
    chosen: list[tuple[Motion, float]] = []
    for k in trials.best_first():
        odds = float(np.exp(min(trials.gain[k] / 2, _MOST)))
        if odds < _NO_CHANCE:
            break
        motion, leads = trials.motion(k), trials.edge[k]
        within, lever = _SAME_PLACE * float(edges.sigma[leads]), float(edges.lever[leads])
        if not any(motion.distance(other, lever) < within for other, _ in chosen):
            chosen.append((motion, odds))
    total = 1 + sum(odds for _, odds in chosen)
    return [(motion, odds / total) for motion, odds in chosen]


@dataclass(frozen=True)
class _Trials:
    """Motions of pieces of the sample to where edges that were given up have them."""

    edge: NDArray[np.int_]
    """The edge of each."""
    gain: Array
    """By how much each lowers the cost."""
    low: NDArray[np.int_]
    high: NDArray[np.int_]
    turn: Array
    start: Points
    end: Points

    def best_first(self) -> NDArray[np.int_]:
        return np.argsort(-self.gain, kind="stable")

    def motion(self, k: int, /) -> Motion:
        piece = slice(int(self.low[k]), int(self.high[k]))
        return Motion(piece, float(self.turn[k]), complex(self.start[k]), complex(self.end[k]))


def _trials(edges: PlacedEdges, wide: Array, size: int, cost: Callable[[Array, NDArray[np.int_]], Array]) -> _Trials:
    """Return the motions of all pieces by all given-up edges, with a cost of squared residuals of the given edges."""
    squared = edges.squared()
    given_up = np.flatnonzero(_robust(squared, wide) < _GIVEN_UP * squared)
    low, high = _pieces(size)
    first, second = (((low[:, None] <= k) & (k < high[:, None])) for k in (edges.i, edges.j))
    crossing = first != second
    piece, edge = np.nonzero(crossing)
    start = np.searchsorted(piece, np.arange(len(low) + 1))
    of_piece, asked = np.nonzero(crossing[:, given_up])
    asked = given_up[asked]
    # every pair of a given-up edge and an edge that leads out of the same piece
    count = start[of_piece + 1] - start[of_piece]
    trial = np.repeat(np.arange(len(asked)), count)
    others = edge[np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + start[of_piece][trial]]
    turn, begin, end = _leading(edges, asked, second[of_piece, asked])
    other_turn, other_begin, other_end = _leading(edges, others, second[of_piece[trial], others])
    off = np.exp(1j * turn[trial]) * (other_begin - begin[trial]) + end[trial] - other_end
    angle = edges.lever[others] * np.angle(np.exp(1j * (turn[trial] - other_turn)))
    moved = (np.abs(off) ** 2 + angle**2) / edges.sigma[others] ** 2
    change = cost(moved, others) - cost(squared[others], others)
    gain: Any = -np.bincount(trial, weights=change, minlength=len(asked))
    return _Trials(asked, gain, low[of_piece], high[of_piece], turn, begin, end)


def _pieces(size: int) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Return the first places of the pieces that may be moved, and the places after their last."""
    every = np.arange(size)
    low = [every[: max(size - length, 0) + 1] for length in range(1, _LONGEST_PIECE + 1)]
    high = [part + length for length, part in enumerate(low, 1)]
    low, high = [*low, every[1:]], [*high, np.full(max(size - 1, 0), size)]
    return np.concatenate(low), np.minimum(np.concatenate(high), size)


def _leading(edges: PlacedEdges, which: NDArray[np.int_], second: NDArray[np.bool_]) -> tuple[Array, Points, Points]:
    """Return the motions that edges ask of the piece that holds their second (or else first) slice."""
    one, two = edges.by_first[which], edges.by_second[which]
    turn = edges.turn[which]
    return np.where(second, -turn, turn), np.where(second, two, one), np.where(second, one, two)


def _robust(squared: Array, wide: Array) -> Array:
    """Return the cost of squared residuals: Geman-McClure's, which never exceeds `wide`."""
    return np.asarray(squared / (1 + squared / wide))


def _complex(points: Array) -> Points:
    return np.asarray(points[:, 0] + 1j * points[:, 1])

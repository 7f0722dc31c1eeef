"""Where slices would lie if edges that a robust solve gave up were right after all, and whether all edges agree better.

An edge that contradicts is given up; where few edges hold some slices (those at an end, those beside a missing one, or
all on one side of it), these may be the right ones, since one wrong edge that says that it is sure draws the slices its
way while the kernel is wide. The cost tells: it is lower where more edges agree. So slices are moved, as one piece, to
where a given-up edge has them, and the costs of all edges between them and the others are compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Points = NDArray[np.complex128]

_GIVEN_UP = 0.5
"""Share of its square that the kernel leaves an edge that counts as given up."""
_LONGEST_PIECE = 3
"""Slices that are moved on their own; longer pieces are moved with all that follows."""


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
    squared = edges.squared()
    given_up = np.flatnonzero(_robust(squared, wide) < _GIVEN_UP * squared)
    if not len(given_up):
        return []
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
    change = _robust(moved, wide[others]) - _robust(squared[others], wide[others])
    gain = -np.bincount(trial, weights=change, minlength=len(asked))
    best = [k for k in np.argsort(-gain, kind="stable") if gain[k] > 0]
    return [
        Motion(slice(int(low[of_piece[k]]), int(high[of_piece[k]])), float(turn[k]), complex(begin[k]), complex(end[k]))
        for k in best
    ]


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

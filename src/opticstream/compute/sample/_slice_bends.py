"""One smooth displacement for each slice, from how pairs of slices are bent against each other.

The tissue at the sample's pixel q lies at ``pose(q + u(q))`` in a slice, u being its bend. A pair tells the difference
of two bends at places; one solve over all pairs finds the bends, each a random field with the amplitude and the length
that the pairs show. A bend that all slices have in common shows in no pair, so the sample has the shape of its first
slice; where most slices are not bent against each other these are straight, since bends of slices have nothing to do
with each other. Only tissue that both slices saw may speak: what merely faces each other runs on obliquely.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration import rigid_map
from opticstream.compute.sample._bends import EdgeBend, motions
from opticstream.compute.sample._poses import Edge, Pose

Array = NDArray[np.float64]
Pair = tuple[int, int]

_NODES_PER_LENGTH = 0.8
"""Distance of nodes, in lengths over which bends are alike."""
_RIM = 2
"""Nodes beyond the tissue on each side, which a spline of degree 3 needs."""
_SMOOTH = 1e-3
"""Share of the variance of nodes that is theirs alone; it keeps the equations solvable."""
_LINEAR = 2.0
"""Amplitude of what is linear in the place, in that of bends: pairs tell motions of slices better than poses do."""
_ROUNDS = 4
_INVERTED = 10
"""Rounds in which a bend is inverted; each leaves the slope of the bend, a tenth or so, of the error before."""
_OUTLIER = 2.5
"""Distance, in standard deviations, from which a place counts for less."""
_SHARED = np.sqrt(2)
"""How much less places say together than if each had its own noise: the blocks that they come from overlap by half."""
_PROBES = 12
"""Random vectors by which uncertainties are told, to a few percent."""


@dataclass(frozen=True)
class SliceBend:
    """Where the tissue of a slice lies beside its pose: a cubic B-spline on a coarse grid of the sample."""

    first_px: tuple[float, float]
    """The first node along x and y, in pixels of the sample."""
    spacing_px: float
    """Distance between nodes."""
    nodes_px: Array = field(repr=False)
    """Coefficients, shape (2, x, y), in pixels of the sample."""
    sigma_px: float = 0.0
    """Expected root mean square error of each component over the tissue, beside what all slices have in common."""
    size_px: tuple[float, float] = (0.0, 0.0)
    """Root mean square and largest length over the tissue, of what no motion of the slice explains."""

    def at(self, points_px: ArrayLike, /) -> Array:
        """Return the displacement at points of the sample, shape (points, 2)."""
        x, y = (self._basis(part, axis) for axis, part in enumerate(np.asarray(points_px, float).T))
        return np.asarray(np.einsum("pi,cij,pj->pc", x, self.nodes_px, y, optimize=True))

    def on(self, xs: slice, ys: slice, /) -> NDArray[np.float32]:
        """Return the displacement at pixels of the sample, shape (2, x, y).

        Examples
        --------
        Coefficients that are all the same make a shift:

        >>> SliceBend((0.0, 0.0), 50.0, np.full((2, 8, 8), 3.0)).on(slice(-1, 1), slice(0, 1)).ravel().tolist()
        [3.0, 3.0, 3.0, 3.0]
        """
        x, y = (self._basis(np.arange(p.start, p.stop), axis) for axis, p in enumerate((xs, ys)))
        return np.asarray(x @ self.nodes_px @ y.T, np.float32)

    def of_blocks(self, shape: tuple[int, int], side: float, /, *, first: tuple[int, int] = (0, 0)) -> Array:
        """Return the displacement at the middles of blocks of the sample, shape (2, x, y), in pixels of the sample.

        Parameters
        ----------
        shape : (int, int)
            Blocks along x and y.
        side : float
            Side of a block in pixels.
        first : (int, int)
            Number of the first block.
        """
        x, y = (
            self._basis((np.arange(n) + k + 0.5) * side - 0.5, axis)
            for axis, (n, k) in enumerate(zip(shape, first, strict=True))
        )
        return np.asarray(x @ self.nodes_px @ y.T)

    def straightened(self, points_px: ArrayLike, /) -> Array:
        """Return the points of the sample that the bend takes to these points, shape (points, 2)."""
        bent = np.asarray(points_px, float)
        straight = bent
        for _ in range(_INVERTED):
            straight = bent - self.at(straight)
        return straight

    def _basis(self, at_px: ArrayLike, axis: int) -> Array:
        return _spline(at_px, self.first_px[axis], self.spacing_px, self.nodes_px.shape[1 + axis])


def _spline(at_px: ArrayLike, first_px: float, spacing_px: float, count: int) -> Array:
    """Return the values of cubic B-splines at places along one axis, (places, nodes); constant beyond the nodes."""
    t = np.clip((np.asarray(at_px, float) - first_px) / spacing_px, 1, count - 2)
    far = np.abs(t[:, None] - np.arange(count))
    near = 2 / 3 - far**2 + far**3 / 2
    return np.asarray(np.where(far < 1, near, np.where(far < 2, (2 - far) ** 3 / 6, 0.0)))


def solve_bends(
    edges: Sequence[Edge],
    bends: Mapping[Pair, EdgeBend],
    poses: Mapping[int, Pose],
    /,
    *,
    centre_px: ArrayLike,
) -> dict[int, SliceBend]:
    """Return the bends of the slices that are bent; nothing for the others.

    Parameters
    ----------
    edges : sequence of Edge
        Motions between slices that saw the same tissue and are clearly alike; those without a bend say that there is
        none.
    bends : mapping of (int, int) to EdgeBend
        What some of them lack, by first and second slice.
    poses : mapping of int to Pose
        Of the slices.
    centre_px : array_like, shape (2,)
        Fixed point of the poses.
    """
    known = [e for e in edges if e.first in poses and e.second in poses]
    found: dict[int, SliceBend] = {}
    for group in _connected([(e.first, e.second) for e in known]):
        mine = [e for e in known if e.first in group and (e.first, e.second) in bends]
        if mine:
            straight = [(e.first, e.second) for e in known if e.first in group and (e.first, e.second) not in bends]
            largest = max(_connected(straight), key=len, default=frozenset())
            at_rest = largest if 2 * len(largest) > len(group) else frozenset()
            found |= _Group(mine, bends, poses, np.asarray(centre_px, float), at_rest).solved()
    return found


def _connected(pairs: Collection[Pair]) -> list[frozenset[int]]:
    """Return the groups of slices that pairs join, the one with the earliest slice first.

    Examples
    --------
    >>> [sorted(group) for group in _connected([(1, 2), (4, 6), (2, 3)])]
    [[1, 2, 3], [4, 6]]
    """
    groups: list[frozenset[int]] = []
    for pair in pairs:
        joined = [g for g in groups if g & set(pair)]
        groups = [g for g in groups if g not in joined] + [frozenset(pair).union(*joined)]
    return sorted(groups, key=min)


class _Group:
    """The least squares problem of slices that pairs join; x and y know nothing of each other."""

    def __init__(
        self,
        edges: Sequence[Edge],
        bends: Mapping[Pair, EdgeBend],
        poses: Mapping[int, Pose],
        centre: Array,
        at_rest: frozenset[int],
    ) -> None:
        self.free = sorted({n for e in edges for n in (e.first, e.second)} - at_rest)
        self.has_reference = bool(at_rest)
        column = {n: k for k, n in enumerate(self.free)}
        mine = [bends[e.first, e.second] for e in edges]
        counts = [len(b.at_px) for b in mine]
        self.i, self.j = (
            np.repeat([column.get(n, -1) for n in ends], counts)
            for ends in ([e.first for e in edges], [e.second for e in edges])
        )
        back = {n: p.mapping(centre).inverse() for n, p in poses.items()}
        self.first = np.concatenate([back[e.first].points(b.at_px) for e, b in zip(edges, mine, strict=True)])
        second = [back[e.second].points(_after(e, b.at_px + b.moved_px)) for e, b in zip(edges, mine, strict=True)]
        self.told = np.concatenate(second) - self.first
        self.sigma = np.concatenate([b.sigma_px for b in mine])
        self.length = float(np.median([b.length_px for b in mine]))
        self.size = float(np.median([b.size_px for b in mine])) / np.sqrt(2)
        low, high = self.first.min(0), self.first.max(0)
        self.spacing = _NODES_PER_LENGTH * self.length
        self.shape = tuple(int(np.ceil(w / self.spacing)) + 1 + 2 * _RIM for w in high - low)
        self.low = low - _RIM * self.spacing
        self.count = int(np.prod(self.shape))

    def solved(self) -> dict[int, SliceBend]:
        """Return the bends of all slices that are not at rest, or of all but the first."""
        coefficients = np.zeros((len(self.free) * self.count, 2))
        doubt = np.ones(len(self.sigma))
        for _ in range(_ROUNDS):
            # a place of the first slice belongs to the pixel of the sample that its bend takes there
            there = self.first - self._bend_of(coefficients, self.i, self.first)
            there = self.first - self._bend_of(coefficients, self.i, there)
            design = self._design(there)
            weight = 1 / (doubt * self.sigma**2)
            solve = self._solver(design, weight)
            coefficients = solve(design.T @ (weight[:, None] * self.told))
            left = np.linalg.norm(self.told - design @ coefficients, axis=1)
            doubt = np.maximum(1.0, left / (_OUTLIER * np.sqrt(2) * self.sigma)) ** 2
        scale = float(np.sqrt(np.average((left / self.sigma) ** 2 / 2, weights=1 / doubt)))
        probes = np.random.default_rng(0).choice([-1.0, 1.0], (len(self.sigma), _PROBES))
        inside = [self._rows(there, np.full(len(there), k)) for k in range(len(self.free))]
        if not self.has_reference:
            inside = [inside[0], *(rows - inside[0] for rows in inside[1:])]
        bends = {}
        for k, n in enumerate(self.free):
            spread = (inside[k] @ solve(inside[k].T @ probes)) * probes
            sigma = _SHARED * scale * float(np.sqrt(max(float(spread.mean()), 0.0)))
            nodes = coefficients[k * self.count : (k + 1) * self.count].T.reshape(2, *self.shape)
            bends[n] = SliceBend((float(self.low[0]), float(self.low[1])), self.spacing, nodes, sigma)
        if not self.has_reference:
            bends = self._against(bends[self.free[0]], {n: bends[n] for n in self.free[1:]})
        return {n: replace(bend, size_px=_size_px(bend, there)) for n, bend in bends.items()}

    def _against(self, reference: SliceBend, bends: Mapping[int, SliceBend]) -> dict[int, SliceBend]:
        """Return bends in a sample that has the shape of one of its slices."""
        grid = [self.low[a] + self.spacing * np.arange(self.shape[a]) for a in (0, 1)]
        new = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, 2)
        old = reference.straightened(new)
        out = {}
        for n, bend in bends.items():
            values = (bend.at(old) + old - new).T.reshape(2, *self.shape)
            out[n] = replace(bend, nodes_px=_through(values))
        return out

    def _rows(self, there: Array, of: NDArray[np.int_]) -> Any:
        """Return the matrix from all coefficients to the bend of slices (column `of`, -1: at rest) at places."""
        from scipy import sparse

        x, y = (_spline(there[:, a], self.low[a], self.spacing, self.shape[a]) for a in (0, 1))
        basis = sparse.csr_matrix((x[:, :, None] * y[:, None, :]).reshape(len(there), -1)).tocoo()
        used = of[basis.row] >= 0
        return sparse.csr_matrix(
            (basis.data[used], (basis.row[used], of[basis.row[used]] * self.count + basis.col[used])),
            shape=(len(there), len(self.free) * self.count),
        )

    def _design(self, there: Array) -> Any:
        return (self._rows(there, self.j) - self._rows(there, self.i)).tocsr()

    def _bend_of(self, coefficients: Array, of: NDArray[np.int_], there: Array) -> Array:
        return np.asarray(self._rows(there, of) @ coefficients)

    def _solver(self, design: Any, weight: Array) -> Callable[[Array], Array]:
        """Return what solves the normal equations; they are a band, since pairs reach a few slices."""
        from scipy.linalg import cho_solve_banded, cholesky_banded

        data = (design.T @ design.multiply(weight[:, None])).tocoo()
        prior = np.linalg.inv(self._covariance())
        reach = int(np.max(np.abs(self.i - self.j)[(self.i >= 0) & (self.j >= 0)], initial=0))
        size, width = len(self.free) * self.count, (reach + 1) * self.count
        band = np.zeros((width, size))
        lower = data.row >= data.col
        band[data.row[lower] - data.col[lower], data.col[lower]] += data.data[lower]
        row, col = np.tril_indices(self.count)
        for k in range(len(self.free)):
            band[row - col, col + k * self.count] += prior[row, col]
        factor = cholesky_banded(band, overwrite_ab=True, lower=True)
        return lambda right: np.asarray(cho_solve_banded((factor, True), right))

    def _covariance(self) -> Array:
        """Return the covariance of the nodes of one bend: a smooth field, and a linear change of any direction."""
        x, y = (self.spacing * (np.arange(n) - (n - 1) / 2) for n in self.shape)
        at = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
        squared = ((at[:, None] - at[None]) ** 2).sum(2)
        smooth = np.exp(-squared / (2 * self.length**2)) + _SMOOTH * np.eye(self.count)
        lever = max(float(np.sqrt((at**2).sum(1).mean())), 1.0)
        linear = 1 + at @ at.T / lever**2
        return np.asarray(self.size**2 * (smooth + _LINEAR**2 * linear))


def _after(edge: Edge, points: Array) -> Array:
    """Return where points of an edge's first slice lie in its second one, without the bend."""
    return rigid_map(edge.turn_deg, edge.shift_px, edge.about_px).points(points)


def _through(values: Array) -> Array:
    """Return the coefficients of the splines that take these values at the nodes, (2, x, y)."""
    x, y = (_nodes_from_values(n) for n in values.shape[1:])
    return np.asarray(x @ values @ y.T)


def _nodes_from_values(count: int) -> Array:
    basis = _spline(np.arange(count), 0.0, 1.0, count)
    basis[[0, -1]] = 0.0
    basis[[0, -1], [0, -1]] = 1.0  # beyond the rim, splines are constant, and these values never asked for
    return np.asarray(np.linalg.inv(basis), np.float64)


def _size_px(bend: SliceBend, there: Array) -> tuple[float, float]:
    """Return the root mean square and the largest length at places, of what no motion explains."""
    design, told = motions(there - there.mean(0)), bend.at(there).T.ravel()
    left = (told - design @ np.linalg.lstsq(design, told, rcond=None)[0]).reshape(2, -1)
    length = np.hypot(*left)
    return float(np.sqrt((length**2).mean())), float(length.max())

"""Least squares over a mosaic: tile deviations tied by links, by their own prior, and by the parameters of the stage.

Tiles are grouped into lines along the longer side of the mosaic; a link never skips a line, so the normal equations are
block tridiagonal. That makes the solution, and the uncertainty of every tile, cost only as much as the tiles times the
square of the shorter side, for any layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Lines:
    """Grouping of tiles into consecutive lines such that every link stays within a line or joins two in a row.

    Attributes
    ----------
    order : ndarray of int, shape (tiles,)
        Tiles sorted by line.
    start : ndarray of int, shape (lines + 1,)
        First position in `order` of every line.
    """

    order: NDArray[np.intp]
    start: NDArray[np.intp]


def lines_from_positions(positions_px: Array, pairs: NDArray[np.intp], tile_shape: tuple[int, int], /) -> Lines:
    """Return lines across the longer side of a layout, each about one tile wide."""
    if len(positions_px) == 0:
        raise ValueError("a mosaic needs at least one tile")
    extent = np.ptp(positions_px, axis=0) / np.asarray(tile_shape)
    axis = int(np.argmax(extent))
    reach = np.abs(np.diff(positions_px[pairs, axis], axis=1)).max(initial=1.0)
    line = np.floor((positions_px[:, axis] - positions_px[:, axis].min()) / (reach * (1 + 1e-9))).astype(np.intp)
    order = np.argsort(line, kind="stable")
    _, start = np.unique(line[order], return_index=True)
    return Lines(order, np.append(start, len(line)))


@dataclass(frozen=True)
class Solution:
    """Result of `LinkSystem.solve`.

    Attributes
    ----------
    deviation_px : ndarray, shape (tiles, 2)
        Deviation of every tile from its nominal position.
    stage : ndarray, shape (features, 2)
        Parameters of the stage model.
    covariance_px2 : ndarray, shape (tiles, 2, 2)
        Covariance of every tile's deviation.
    link_covariance_px2 : ndarray, shape (links, 2, 2)
        Covariance of the difference of the two tiles of every link.
    """

    deviation_px: Array
    stage: Array
    covariance_px2: Array
    link_covariance_px2: Array


class LinkSystem:
    """The normal equations of one mosaic; solved again and again as the weights of links and prior change.

    Parameters
    ----------
    pairs : ndarray of int, shape (links, 2)
        First and second tile of every link.
    features : ndarray, shape (tiles, features)
        What the stage's deviation may depend on. Without features the prior pulls to nominal.
    lines : Lines
        Order of elimination.
    """

    def __init__(self, pairs: NDArray[np.intp], features: Array, lines: Lines, /) -> None:
        self.pairs, self.features, self.lines = pairs, features, lines
        n = len(features)
        rank = np.empty(n, np.intp)
        rank[lines.order] = np.arange(n)
        line = np.searchsorted(lines.start, rank, side="right") - 1
        row = 2 * (rank - lines.start[line])
        width = 2 * np.diff(lines.start)
        self._width = width
        self._diagonal_start = np.concatenate([[0], np.cumsum(width**2)])
        self._coupling_start = np.concatenate([[0], np.cumsum(width[:-1] * width[1:])])
        first, second = pairs[:, 0], pairs[:, 1]
        self._tile_entry = self._entries(self._diagonal_start[line], width[line], row, row)
        same = line[first] == line[second]
        self._same = np.flatnonzero(same)
        self._apart = np.flatnonzero(~same)
        self._swap = line[first] > line[second]
        low = np.where(self._swap, second, first)
        high = np.where(self._swap, first, second)
        self._same_entry = self._entries(
            self._diagonal_start[line[first]], width[line[first]], row[first], row[second]
        )[self._same]
        if len(self._apart):
            start = self._coupling_start[line[low[self._apart]]]
            columns = width[line[high[self._apart]]]
            self._apart_entry = self._entries(start, columns, row[low[self._apart]], row[high[self._apart]])
        else:
            self._apart_entry = np.empty((0, 2, 2), np.intp)

    @staticmethod
    def _entries(
        start: NDArray[np.intp], columns: NDArray[np.intp], row: NDArray[np.intp], column: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        rows = row[:, None, None] + np.array([[0, 0], [1, 1]])
        cols = column[:, None, None] + np.array([[0, 1], [0, 1]])
        return np.asarray(start[:, None, None] + rows * columns[:, None, None] + cols)

    def solve(
        self, shift_px: Array, information: Array, prior_information: Array, /, *, with_covariance: bool = False
    ) -> Solution:
        """Return the tile deviations that satisfy links and stage model best.

        Minimises ``sum_links |d_j - d_i - shift|^2_information + sum_tiles |d_i - features_i @ stage|^2_prior`` over
        the deviations `d` and the stage parameters.

        Parameters
        ----------
        shift_px : ndarray, shape (links, 2)
            Measured deviation of the second tile against the first.
        information : ndarray, shape (links, 2, 2)
            Inverse covariance of the shifts; zero drops a link.
        prior_information : ndarray, shape (tiles, 2)
            Inverse variance of a tile's deviation from the stage model, along x and y; positive.
        with_covariance : bool
            Also compute the covariances (else they are empty).
        """
        features, lines = self.features, self.lines
        n, k = features.shape
        first, second = self.pairs[:, 0], self.pairs[:, 1]
        own = np.zeros((n, 2, 2))
        own[:, 0, 0], own[:, 1, 1] = prior_information[:, 0], prior_information[:, 1]
        np.add.at(own, first, information)
        np.add.at(own, second, information)
        diagonal = _summed(self._tile_entry, own, self._diagonal_start[-1])
        if len(self._same):
            # Only one triangle of a pair within a line is stored; the other follows by symmetry below.
            diagonal -= _summed(self._same_entry, information[self._same], self._diagonal_start[-1])
        coupling = -_summed(self._apart_entry, information[self._apart], self._coupling_start[-1])
        right = np.zeros((n, 2, 1 + 2 * k))
        force = np.einsum("lij,lj->li", information, shift_px)
        np.subtract.at(right[:, :, 0], first, force)
        np.add.at(right[:, :, 0], second, force)
        for c in (0, 1):
            right[:, c, 1 + c * k : 1 + (c + 1) * k] = prior_information[:, c, None] * features
        blocks: list[Array] = []
        couplings: list[Array] = []
        for i, m in enumerate(self._width):
            block = diagonal[self._diagonal_start[i] : self._diagonal_start[i + 1]].reshape(m, m)
            blocks.append(self._mirrored(block))
            if i + 1 < len(self._width):
                part = coupling[self._coupling_start[i] : self._coupling_start[i + 1]]
                couplings.append(part.reshape(m, self._width[i + 1]))
        sorted_right = right[lines.order].reshape(2 * n, 1 + 2 * k)
        rights = [sorted_right[2 * a : 2 * b] for a, b in zip(lines.start[:-1], lines.start[1:], strict=True)]
        solved, inverse, inverse_coupling = _block_tridiagonal(blocks, couplings, rights, with_covariance)
        unsorted = np.empty((n, 2, 1 + 2 * k))
        unsorted[lines.order] = np.concatenate(solved).reshape(n, 2, 1 + 2 * k)
        free, response = unsorted[:, :, 0], unsorted[:, :, 1:]  # response: of the tiles to the stage parameters
        stage, stage_covariance = self._stage(free, response, prior_information)
        deviation = free + response @ stage
        covariance, link_covariance = np.empty((0, 2, 2)), np.empty((0, 2, 2))
        if with_covariance:
            flat = np.concatenate([block.ravel() for block in inverse])
            flat_coupling = np.concatenate([block.ravel() for block in inverse_coupling]) if inverse_coupling else flat
            covariance = flat[self._tile_entry]
            cross = np.zeros((len(self.pairs), 2, 2))
            cross[self._same] = flat[self._same_entry]
            cross[self._apart] = flat_coupling[self._apart_entry]
            cross[self._swap] = cross[self._swap].transpose(0, 2, 1)
            link_covariance = covariance[first] + covariance[second] - cross - cross.transpose(0, 2, 1)
            covariance = covariance + response @ stage_covariance @ response.transpose(0, 2, 1)
            relative = response[second] - response[first]
            link_covariance = link_covariance + relative @ stage_covariance @ relative.transpose(0, 2, 1)
        return Solution(deviation, stage.reshape(2, k).T, covariance, link_covariance)

    @staticmethod
    def _mirrored(block: Array) -> Array:
        """Return a block whose off-diagonal tile pairs were stored once, in either triangle, made symmetric."""
        m = len(block)
        result = block + block.T
        tile = np.arange(m) // 2
        on_diagonal = tile[:, None] == tile[None, :]
        result[on_diagonal] *= 0.5
        return result

    def _stage(self, free: Array, response: Array, prior_information: Array) -> tuple[Array, Array]:
        """Return the stage parameters and their covariance: the Schur complement of the tiles."""
        k = self.features.shape[1]
        schur, force = np.zeros((2 * k, 2 * k)), np.zeros(2 * k)
        if not k:
            return force, schur
        for c in (0, 1):
            weighted = prior_information[:, c, None] * self.features
            own = slice(c * k, (c + 1) * k)
            schur[own, own] += self.features.T @ weighted
            schur[own] -= weighted.T @ response[:, c]
            force[own] += weighted.T @ free[:, c]
        # The tiny ridge matters only for parameters without data, e.g. the row step of a single row.
        scale = 1e-9 * np.trace(schur) / len(schur) + 1e-12
        covariance = np.linalg.inv(0.5 * (schur + schur.T) + scale * np.eye(2 * k))
        return covariance @ force, covariance


def _summed(entry: NDArray[np.intp], value: Array, size: int) -> Array:
    """Return a flat array with `value` added at `entry`."""
    return np.asarray(np.bincount(entry.ravel(), value.ravel(), minlength=int(size)), np.float64)


def _block_tridiagonal(
    diagonal: list[Array], coupling: list[Array], right: list[Array], with_inverse: bool
) -> tuple[list[Array], list[Array], list[Array]]:
    """Solve a symmetric block tridiagonal system; optionally return the same blocks of its inverse."""
    count = len(diagonal)
    pivots: list[Array] = []
    forward: list[Array] = []
    for i in range(count):
        block, value = diagonal[i], right[i]
        if i:
            gain = coupling[i - 1].T @ pivots[-1]
            block = block - gain @ coupling[i - 1]
            value = value - gain @ forward[-1]
        pivot = np.linalg.inv(0.5 * (block + block.T))
        pivots.append(0.5 * (pivot + pivot.T))
        forward.append(value)
    solved = [np.empty(0)] * count
    inverse_diagonal = [np.empty(0)] * count
    inverse_coupling = [np.empty(0)] * max(count - 1, 0)
    for i in range(count - 1, -1, -1):
        value = forward[i]
        if i < count - 1:
            value = value - coupling[i] @ solved[i + 1]
        solved[i] = pivots[i] @ value
        if with_inverse:
            inverse_diagonal[i] = pivots[i]
            if i < count - 1:
                gain = pivots[i] @ coupling[i]
                inverse_coupling[i] = -gain @ inverse_diagonal[i + 1]
                inverse_diagonal[i] = pivots[i] - inverse_coupling[i] @ gain.T
    return solved, inverse_diagonal, inverse_coupling

"""Where the stage should have put the tiles, and which tiles are neighbours."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Direction = Literal[0, 1]
"""Axis along which two neighbours follow each other: 0 = x, 1 = y."""


def nominal_positions(
    cells: ArrayLike, /, *, tile_shape: tuple[int, int], overlap_px: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the nominal position of every tile's first pixel.

    Parameters
    ----------
    cells : array_like of int, shape (tiles, 2)
        Column and row of every tile, column along +x and row along +y.
    tile_shape : tuple of int
        Size of a tile in pixels, (x, y).
    overlap_px : tuple of float
        Nominal overlap of neighbours along x and along y.

    Returns
    -------
    ndarray, shape (tiles, 2)
        Positions (x, y) in pixels, cell (0, 0) at the origin.

    Examples
    --------
    >>> nominal_positions([(0, 0), (1, 0), (1, 2)], tile_shape=(100, 50), overlap_px=(20, 10)).tolist()
    [[0.0, 0.0], [80.0, 0.0], [80.0, 80.0]]
    """
    step = np.asarray(tile_shape, float) - np.asarray(overlap_px, float)
    if np.any(step <= 0):
        raise ValueError(f"an overlap of {overlap_px} px leaves no step between tiles of {tile_shape} px")
    return np.asarray(np.asarray(cells, float).reshape(-1, 2) * step)


def neighbour_pairs(
    positions_px: ArrayLike, /, *, tile_shape: tuple[int, int], min_overlap_px: float = 2.0
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the pairs of tiles that share an edge, and the axis along which each pair follows.

    Two tiles share an edge where their rectangles overlap by at least half a tile along one axis and by at least
    `min_overlap_px` along the other. It works for any layout, with holes, and for non-integer positions.

    Parameters
    ----------
    positions_px : array_like, shape (tiles, 2)
        Positions of the tiles' first pixels.
    tile_shape : tuple of int
        Size of a tile, (x, y).
    min_overlap_px : float
        Smaller overlaps are no links.

    Returns
    -------
    pairs : ndarray of int, shape (links, 2)
        The second tile lies at the larger coordinate; sorted.
    axis : ndarray of int, shape (links,)
        0 where the second tile follows along x, 1 along y.

    Examples
    --------
    >>> pairs, axis = neighbour_pairs([(0, 0), (80, 1), (80, 81), (0, 80)], tile_shape=(100, 100))
    >>> pairs.tolist(), axis.tolist()
    ([[0, 1], [0, 3], [1, 2], [3, 2]], [0, 1, 1, 0])
    """
    positions = np.asarray(positions_px, float).reshape(-1, 2)
    shape = np.asarray(tile_shape, float)
    order = np.argsort(positions[:, 0], kind="stable")
    sorted_x = positions[order, 0]
    pairs: list[tuple[int, int]] = []
    axes: list[int] = []
    for rank, a in enumerate(order):
        last = np.searchsorted(sorted_x, sorted_x[rank] + shape[0], side="right")
        others = order[rank + 1 : last]
        offset = positions[others] - positions[a]
        overlap = shape - np.abs(offset)
        for b, step, shared in zip(others, offset, overlap, strict=True):
            along = int(np.argmin(shared / shape))
            if shared[along] < min_overlap_px or shared[1 - along] < 0.5 * shape[1 - along]:
                continue
            if shared[along] > 0.9 * shape[along]:
                continue  # the same place twice, not a neighbour
            pairs.append((int(a), int(b)) if step[along] > 0 else (int(b), int(a)))
            axes.append(along)
    found = sorted(zip(pairs, axes, strict=True))
    return (
        np.array([p for p, _ in found], np.intp).reshape(-1, 2),
        np.array([a for _, a in found], np.intp),
    )


def usual_overlap_px(positions_px: ArrayLike, /, *, tile_shape: tuple[int, int]) -> float:
    """Return by how many pixels neighbours overlap across the edge that they share (the median; a lone tile: its size).

    Examples
    --------
    >>> usual_overlap_px([(0, 0), (80, 1), (160, 0)], tile_shape=(100, 50))
    20.0
    """
    positions = np.asarray(positions_px, float).reshape(-1, 2)
    pairs, axis = neighbour_pairs(positions, tile_shape=tile_shape)
    if len(pairs) == 0:
        return float(min(tile_shape))
    apart = (positions[pairs[:, 1]] - positions[pairs[:, 0]])[np.arange(len(pairs)), axis]
    return float(np.median(np.asarray(tile_shape)[axis] - apart))

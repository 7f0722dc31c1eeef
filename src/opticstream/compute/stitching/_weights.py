"""The weight of each tile at each pixel: a separable ramp over the overlaps that the tile really has.

The weight is 1 in the middle and falls linearly over an overlap, but never to zero: a pixel that only one tile covers
keeps that tile's value. Two tiles that meet in an overlap have ramps that add up to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Canvas:
    """Pixel grid of a mosaic and where the tiles lie on it.

    Attributes
    ----------
    shape : tuple of int
        Size (x, y) in pixels.
    origin_px : tuple of int
        Position of canvas pixel (0, 0) in the frame of the tile positions.
    offset : ndarray of int, shape (tiles, 2)
        Canvas pixel of each tile's first pixel.
    fraction : ndarray, shape (tiles, 2)
        What is left of the position, in [0, 1) for linear interpolation, 0 for nearest.
    tile_shape : tuple of int
        Size (x, y) of a tile.
    """

    shape: tuple[int, int]
    origin_px: tuple[int, int]
    offset: NDArray[np.intp]
    fraction: NDArray[np.float64]
    tile_shape: tuple[int, int]


def canvas_from_positions(positions_px: ArrayLike, /, *, tile_shape: tuple[int, int], subpixel: bool = False) -> Canvas:
    """Return the smallest canvas that holds all tiles; it does not depend on how they are placed.

    Maps and volumes of the same positions therefore have the same pixels, whichever of them are interpolated. (With
    `subpixel` the last row or column may stay bare: there is nothing to interpolate beyond a tile's last sample.)

    Parameters
    ----------
    positions_px : array_like, shape (tiles, 2)
        Position (x, y) of every tile's first pixel.
    tile_shape : tuple of int
        Size of a tile, (x, y).
    subpixel : bool
        Keep the fractions of the positions for linear interpolation; else tiles go to the nearest pixel.

    Examples
    --------
    >>> canvas = canvas_from_positions([(0.4, -1.6), (8.6, 0)], tile_shape=(10, 10))
    >>> canvas.shape, canvas.origin_px, canvas.offset.tolist()
    ((19, 12), (0, -2), [[0, 0], [9, 2]])
    >>> canvas_from_positions([(0.4, -1.6), (8.6, 0)], tile_shape=(10, 10), subpixel=True).shape
    (19, 12)
    """
    positions = np.asarray(positions_px, np.float64).reshape(-1, 2)
    if len(positions) == 0:
        raise ValueError("a mosaic needs at least one tile")
    if not np.isfinite(positions).all():
        raise ValueError(f"positions must be finite numbers, got {positions[~np.isfinite(positions).all(axis=1)][0]}")
    # Round positions within a thousandth of a pixel: interpolation would only lose an edge.
    positions = np.where(np.abs(positions - np.rint(positions)) < 1e-3, np.rint(positions), positions)
    below, nearest = np.floor(positions), np.floor(positions + 0.5)
    whole = below if subpixel else nearest
    fraction = positions - whole if subpixel else np.zeros_like(positions)
    origin = below.min(axis=0).astype(np.intp)
    offset = whole.astype(np.intp) - origin
    extent = nearest.max(axis=0).astype(np.intp) - origin + np.asarray(tile_shape)
    return Canvas(
        (int(extent[0]), int(extent[1])),
        (int(origin[0]), int(origin[1])),
        offset,
        fraction,
        (tile_shape[0], tile_shape[1]),
    )


def overlap_widths(positions_px: ArrayLike, /, *, tile_shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return how far each tile is overlapped on its four sides.

    Parameters
    ----------
    positions_px : array_like, shape (tiles, 2)
        Position of every tile's first pixel.
    tile_shape : tuple of int
        Size of a tile, (x, y).

    Returns
    -------
    ndarray, shape (tiles, 2, 2)
        Overlap in pixels, indexed (tile, axis, side) with side 0 towards smaller coordinates. 0 where there is no
        neighbour. Tiles that meet only at a corner are no neighbours.

    Examples
    --------
    >>> overlap_widths([(0, 0), (80, 0)], tile_shape=(100, 100))[:, 0].tolist()
    [[0.0, 20.0], [20.0, 0.0]]
    """
    positions = np.asarray(positions_px, np.float64).reshape(-1, 2)
    shape = np.asarray(tile_shape, np.float64)
    result = np.zeros((len(positions), 2, 2))
    order = np.argsort(positions[:, 0], kind="stable")
    sorted_x = positions[order, 0]
    for rank, a in enumerate(order):
        last = np.searchsorted(sorted_x, sorted_x[rank] + shape[0], side="left")
        others = order[rank + 1 : last]
        offset = positions[others] - positions[a]
        shared = shape - np.abs(offset)
        for b, step, width in zip(others, offset, shared, strict=True):
            if width.min() <= 0:
                continue
            along = int(np.argmin(width / shape))
            if width[1 - along] < 0.5 * shape[1 - along]:
                continue
            first, second = (a, b) if step[along] > 0 else (b, a)
            result[first, along, 1] = max(result[first, along, 1], width[along])
            result[second, along, 0] = max(result[second, along, 0], width[along])
    return result


def ramp(length: int, /, *, before: float, after: float) -> FloatArray:
    """Return a weight that rises over `before` pixels, stays 1, and falls over the last `after` pixels.

    Examples
    --------
    >>> ramp(6, before=2, after=0).tolist()
    [0.25, 0.75, 1.0, 1.0, 1.0, 1.0]
    """
    middle = np.arange(length) + 0.5
    weight = np.ones(length)
    if before > 0.5:
        weight = np.minimum(weight, middle / before)
    if after > 0.5:
        weight = np.minimum(weight, (length - middle) / after)
    return weight.astype(np.float32)


def tile_weight(tile_shape: tuple[int, int], overlap_px: ArrayLike, /) -> FloatArray:
    """Return the weight of a tile, shape (x, y), for its overlaps indexed (axis, side).

    Examples
    --------
    The weights of two tiles add up to one where they overlap, here by four pixels:

    >>> left, right = tile_weight((6, 1), [[0, 4], [0, 0]]), tile_weight((6, 1), [[4, 0], [0, 0]])
    >>> (left[2:] + right[:4]).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    (left, right), (low, high) = np.asarray(overlap_px, np.float64)
    along_x = ramp(tile_shape[0], before=left, after=right)
    along_y = ramp(tile_shape[1], before=low, after=high)
    return np.asarray(along_x[:, None] * along_y[None, :])

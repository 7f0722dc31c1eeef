"""Many tiles to one image: weighted sums of what is additive, divided by the sum of the weights.

An angle of an axis is not additive, its doubled unit vector is: axial data is blended as ``(cos 2t, sin 2t)``, with the
weight in both sums. The length of the mean vector says how well the tiles agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.stitching._weights import Canvas

FloatArray = NDArray[np.float32]
Kind = Literal["scalar", "axial"]


def is_blank(tile: NDArray[np.floating], /) -> bool:
    """Return whether a tile holds nothing: no finite value, or the same value everywhere (as masked tiles do).

    Examples
    --------
    >>> is_blank(np.zeros((4, 4))), is_blank(np.full((4, 4), np.nan)), is_blank(np.eye(4))
    (True, True, False)
    """
    first = tile.flat[0]
    if np.isfinite(first) and (tile == first).all():
        return True
    return not np.isfinite(tile).any()


def axis_from_components(cosine: NDArray[np.floating], sine: NDArray[np.floating], /) -> FloatArray:
    """Return the axis angle in degrees, in (-90, 90], of doubled-angle components; NaN where both are 0.

    In single precision throughout, as volumes are blended.

    Examples
    --------
    Components that cancel have no axis; rounding never gives -90:

    >>> axis_from_components(np.float32([-1, 0]), np.float32([-0.0, 0])).tolist()
    [90.0, nan]
    """
    angle = np.asarray(np.arctan2(sine, cosine), np.float32) * np.float32(90 / np.pi)
    angle = np.where(angle <= -90, np.float32(90), angle)
    return np.where((cosine == 0) & (sine == 0), np.float32(np.nan), angle)


def placed_between_pixels(image: FloatArray, fraction: NDArray[np.float64], /) -> FloatArray:
    """Return an image moved by a fraction of a pixel towards larger coordinates, linearly interpolated.

    The first sample along a moved axis lies outside the image and becomes NaN, as does what touches a NaN.

    Examples
    --------
    >>> placed_between_pixels(np.array([[0.0], [4.0], [8.0]], np.float32), np.array([0.25, 0.0])).ravel().tolist()
    [nan, 3.0, 7.0]
    """
    result = image
    for axis in (0, 1):
        part = np.float32(fraction[axis])
        if part == 0:
            continue
        before = np.roll(result, 1, axis=axis)
        before[(slice(None),) * axis + (slice(0, 1),)] = np.nan
        result = part * before + (1 - part) * result
    return result


@dataclass
class MosaicSum:
    """Weighted sums of one modality over a canvas; tiles are added one by one, in any order.

    Parameters
    ----------
    canvas : Canvas
        Where tiles lie.
    kind : {"scalar", "axial"}
        How values blend.
    """

    canvas: Canvas
    kind: Kind = "scalar"

    def __post_init__(self) -> None:
        parts = 2 if self.kind == "axial" else 1
        self._sums = [np.zeros(self.canvas.shape, np.float32) for _ in range(parts)]
        self._weight = np.zeros(self.canvas.shape, np.float32)

    def add(self, index: int, tile: NDArray[np.floating], weight: FloatArray, /) -> None:
        """Add the tile of place `index`.

        Parameters
        ----------
        index : int
            Row of the canvas' table of offsets.
        tile : ndarray, shape (x, y)
            Values, degrees for axial data. NaN carries no weight; a blank tile carries none at all.
        weight : ndarray, shape (x, y)
            Positive weight.
        """
        if tile.shape != self.canvas.tile_shape:
            raise ValueError(f"tile {index} has shape {tile.shape}, expected {self.canvas.tile_shape}")
        if is_blank(tile):
            return
        values: Sequence[FloatArray]
        values = (
            axial.components(np.asarray(tile, np.float32)) if self.kind == "axial" else (np.asarray(tile, np.float32),)
        )
        fraction = self.canvas.fraction[index]
        if fraction.any():
            values = [placed_between_pixels(v, fraction) for v in values]
        finite = np.isfinite(values[0])
        if not finite.all():
            weight = np.where(finite, weight, np.float32(0))
            values = [np.where(finite, v, np.float32(0)) for v in values]
        x, y = self.canvas.offset[index]
        place = (slice(x, x + tile.shape[0]), slice(y, y + tile.shape[1]))
        for total, value in zip(self._sums, values, strict=True):
            total[place] += weight * value
        self._weight[place] += weight

    def image(self, /, *, fill: float = float("nan")) -> FloatArray:
        """Return the mosaic, shape (x, y); `fill` where nothing covers a pixel. Angles lie in (-90, 90]."""
        covered = self._weight > 0
        if self.kind == "axial":
            result = axis_from_components(self._sums[0], self._sums[1])
        else:
            result = np.asarray(self._sums[0] / np.where(covered, self._weight, np.float32(1)), np.float32)
        return np.asarray(np.where(covered, result, np.float32(fill)), np.float32)

    def agreement(self) -> FloatArray:
        """Return how well overlapping axes agree, 0 (cancel out) to 1 (equal); NaN where nothing covers a pixel.

        Examples
        --------
        >>> from opticstream.compute.stitching import canvas_from_positions
        >>> total = MosaicSum(canvas_from_positions([(0, 0), (0, 0)], tile_shape=(3, 1)), "axial")
        >>> for tile, angles in enumerate(([[0.0], [0.0], [10.0]], [[180.0], [45.0], [100.0]])):
        ...     total.add(tile, np.array(angles), np.ones((3, 1), np.float32))
        >>> [round(float(share), 3) for share in total.agreement().ravel()]
        [1.0, 0.707, 0.0]
        """
        if self.kind != "axial":
            raise ValueError("agreement is defined for axial data only")
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.hypot(self._sums[0], self._sums[1]) / self._weight, np.float32)

    @property
    def covered(self) -> NDArray[np.bool_]:
        """True where at least one valid pixel lies."""
        return self._weight > 0


def fuse_tiles(
    tiles: Iterable[NDArray[np.floating]],
    canvas: Canvas,
    weights: Sequence[FloatArray],
    /,
    *,
    kind: Kind = "scalar",
    fill: float = float("nan"),
) -> FloatArray:
    """Return the mosaic of tiles.

    Parameters
    ----------
    tiles : iterable of ndarray, shape (x, y)
        In the order of the canvas' offsets.
    canvas : Canvas
        From `canvas_from_positions`.
    weights : sequence of ndarray, shape (x, y)
        From `tile_weight`.
    kind : {"scalar", "axial"}
        Axial for angles of an axis in degrees.
    fill : float
        Value where nothing lies.

    Examples
    --------
    Two axes 20 degrees apart across the wrap of an axis meet in the middle, not at 0:

    >>> from opticstream.compute.stitching._weights import canvas_from_positions
    >>> canvas = canvas_from_positions([(0, 0), (0, 0)], tile_shape=(2, 1))
    >>> tiles = np.array([[[80.0], [81.0]], [[-80.0], [-79.0]]])
    >>> fuse_tiles(tiles, canvas, [np.ones((2, 1), np.float32)] * 2, kind="axial").round(3).ravel().tolist()
    [90.0, -89.0]
    """
    total = MosaicSum(canvas, kind)
    for index, (tile, weight) in enumerate(zip(tiles, weights, strict=True)):
        total.add(index, tile, weight)
    return total.image(fill=fill)

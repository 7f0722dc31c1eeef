"""Tiles as they would be without the distortion of their field of view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._distortion import Distortion
from opticstream.compute.stitching.volume import _kernels as kernels

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Undistortion:
    """Where every pixel of an undistorted tile lies in the tile that was recorded; made by `undistortion`.

    Attributes
    ----------
    below_y, below_x : ndarray of int, shape (y, x)
        Row and column next below.
    part_y, part_x : ndarray, shape (y, x), float32
        How far beyond, in pixels; 0 to 1.
    """

    below_y: IntArray
    below_x: IntArray
    part_y: FloatArray
    part_x: FloatArray

    def rows_needed(self, first: int, last: int, /) -> tuple[int, int]:
        """Return the first recorded row that rows `first` to `last` (not included) need, and the one after the last."""
        below = self.below_y[first:last]
        return int(below.min()), int(below.max()) + 2

    def resample(self, source: FloatArray, first_source_row: int, out: FloatArray, first_row: int, axial: bool) -> None:
        """Fill rows of an undistorted volume.

        Parameters
        ----------
        source : ndarray, shape (z, y, x), float32
            Recorded rows from `first_source_row` on, all that `rows_needed` asks for.
        first_source_row, first_row : int
            Row of the tile that is first in `source`, and in `out`.
        out : ndarray, shape (z, y, x), float32
            Overwritten. Values next to NaN are NaN.
        axial : bool
            Values are angles of axes in degrees.
        """
        kernels.resample_planes(
            source, first_source_row, out, first_row, axial, self.below_y, self.below_x, self.part_y, self.part_x
        )

    def image(self, recorded: FloatArray, /, *, axial: bool) -> FloatArray:
        """Return the undistorted map of a recorded one, both of shape (x, y)."""
        out = np.empty((1, *recorded.T.shape), np.float32)
        self.resample(np.ascontiguousarray(recorded.T)[None], 0, out, 0, axial)
        return np.ascontiguousarray(out[0].T)


def undistortion(distortion: Distortion, tile_shape: tuple[int, int], /) -> Undistortion:
    """Return how tiles of a size (x, y) are freed of a distortion.

    Where an undistorted tile reaches beyond what was recorded, its outermost pixels are repeated.

    Examples
    --------
    >>> none = undistortion(Distortion((0.0, 0.0, 0.0)), (3, 2))
    >>> none.image(np.float32([[1, 2], [3, 4], [5, 6]]), axial=False).tolist()
    [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]

    Raises
    ------
    ValueError
        The tile has one row or column only: nothing lies between its pixels.
    """
    if min(tile_shape) < 2:
        raise ValueError(f"a tile of {tile_shape[0]} x {tile_shape[1]} px cannot be resampled")
    pixel = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in tile_shape), indexing="ij"), axis=-1)
    # A pixel u of the recorded tile shows what lies at u + f(u). The place v is therefore seen at v - f(v - f(v)), up
    # to the square of f's slope.
    about = pixel - distortion.displacement_at(pixel, tile_shape)
    place = pixel - distortion.displacement_at(about, tile_shape)
    last = np.array(tile_shape) - 1
    place = np.clip(place, 0, last)
    below = np.minimum(np.floor(place), np.maximum(last - 1, 0))
    part = (place - below).astype(np.float32)

    return Undistortion(
        np.ascontiguousarray(below[..., 1].T.astype(np.int64)),
        np.ascontiguousarray(below[..., 0].T.astype(np.int64)),
        np.ascontiguousarray(part[..., 1].T),
        np.ascontiguousarray(part[..., 0].T),
    )

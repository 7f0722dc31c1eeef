"""Blocks of many tiles blended plane by plane.

Weights are two-dimensional and already divided by their sum, so a voxel costs one multiply-add. Every A-line is shifted
by the focus map, which is the same for all tiles: a row is put together from several planes first, so that the loop
along it is plain and contiguous. Axial data is blended as doubled-angle components. Where a voxel is missing (NaN, or
shifted in from outside the depth range) the plane is done again by a kernel that keeps a sum of weights.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching.volume import _kernels as kernels
from opticstream.compute.stitching.volume._halving import over_planes

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


class BlockTiles(NamedTuple):
    """The parts of tiles that touch one block of the output.

    Attributes
    ----------
    data : ndarray, shape (parts, depth, rows, x), float32
        Samples; rows beyond a part's own number are not looked at.
    depth0 : int
        Depth index of the first sample of `data`.
    place : ndarray of int, shape (parts, 3)
        Row and column of the part's first pixel in the block (may be negative for columns), and its first tile row.
    rows : ndarray of int, shape (parts,)
        Number of rows of each part.
    weight : ndarray, shape (parts, rows, x), float32
        Weights of each part, divided by the sum over all tiles; outside of the block they are not looked at.
    """

    data: FloatArray
    depth0: int
    place: IntArray
    rows: IntArray
    weight: FloatArray


def blend_scalar(
    out: FloatArray,
    tiles: BlockTiles,
    shift: IntArray,
    out_z0: int,
    covered: NDArray[np.bool_],
    /,
    *,
    pool: ThreadPoolExecutor | None = None,
) -> None:
    """Blend a block of scalar data in place.

    Parameters
    ----------
    out : ndarray, shape (z, y, x), float32
        The block; overwritten.
    tiles : BlockTiles
        What touches it.
    shift : ndarray of int, shape (tile rows, x)
        How many samples deeper each A-line of a tile is read, from 0 on (`shift_from_focus`).
    out_z0 : int
        Depth of the block's first plane, before the shift.
    covered : ndarray of bool, shape (y, x)
        Pixels that any tile covers and the mask keeps; the others become NaN, as do voxels that all tiles lack.
    pool : ThreadPoolExecutor, optional
        Threads; each plane is done by one of them, so their number changes nothing in the result.
    """
    _blend(out, None, tiles, shift, out_z0, pool)
    if not covered.all():
        over_planes(lambda a, b: kernels.blank_planes(out, covered, a, b), len(out), pool)


def blend_axial(
    cosine: FloatArray,
    sine: FloatArray,
    tiles: BlockTiles,
    shift: IntArray,
    out_z0: int,
    covered: NDArray[np.bool_],
    /,
    *,
    pool: ThreadPoolExecutor | None = None,
) -> None:
    """Blend a block of axis angles (degrees) into doubled-angle components, in place; NaN where nothing lies."""
    _blend(cosine, sine, tiles, shift, out_z0, pool)
    if not covered.all():
        over_planes(lambda a, b: kernels.blank_planes(cosine, covered, a, b), len(cosine), pool)
        over_planes(lambda a, b: kernels.blank_planes(sine, covered, a, b), len(sine), pool)


def _blend(
    out: FloatArray,
    sine: FloatArray | None,
    tiles: BlockTiles,
    shift: IntArray,
    out_z0: int,
    pool: ThreadPoolExecutor | None,
) -> None:
    """Blend all planes; those that lack voxels once more, with a sum of weights."""
    missing = np.zeros(len(out), np.int64)
    over_planes(lambda a, b: kernels.blend_planes(out, sine, tiles, shift, out_z0, a, b, missing), len(out), pool)
    if not missing.any():
        return

    def again(a: int, b: int) -> None:
        total, lost = np.empty(out.shape[1:], np.float32), np.empty(out.shape[1:], np.bool_)
        kernels.blend_planes_partial(out, sine, tiles, shift, out_z0, a, b, missing, total, lost)

    over_planes(again, len(out), pool)

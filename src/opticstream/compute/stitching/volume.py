"""The inner loop of volume stitching: blocks of many tiles blended plane by plane, with the first pyramid levels.

Weights are two-dimensional and already divided by their sum, so a voxel costs one multiply-add. Every A-line is shifted
by the focus map, which is the same for all tiles: it is cut into runs of equal shift once, and the loop along a run is
plain and contiguous. Axial data is blended as doubled-angle components. Where a voxel is missing (NaN, or shifted in
from outside the depth range) the block is done again by a kernel that keeps a sum of weights.

Volumes are arrays (z, y, x) in C order here: that is the order of the bytes on disk, in tiles and in stores.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opticstream.system.compiled import njit

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_HALF_TURN = np.float32(90 / math.pi)


@dataclass(frozen=True)
class Runs:
    """Stretches of equal shift along x, over all rows of a tile.

    Attributes
    ----------
    row_start : ndarray of int, shape (rows + 1,)
        First run of every row.
    start, stop, shift : ndarray of int, shape (runs,)
        Pixels [start, stop) of the row are read from depth ``z + shift``.
    """

    row_start: IntArray
    start: IntArray
    stop: IntArray
    shift: IntArray

    @property
    def deepest(self) -> int:
        """Largest shift."""
        return int(self.shift.max(initial=0))

    @property
    def shallowest(self) -> int:
        """Smallest shift."""
        return int(self.shift.min(initial=0))


def runs_from_shift(shift: NDArray[np.integer], /) -> Runs:
    """Return the runs of a shift map indexed (y, x).

    Examples
    --------
    >>> runs = runs_from_shift(np.array([[0, 0, 1], [2, 2, 2]]))
    >>> runs.row_start.tolist(), runs.start.tolist(), runs.stop.tolist(), runs.shift.tolist()
    ([0, 2, 3], [0, 2, 0], [2, 3, 3], [0, 1, 2])
    """
    width = shift.shape[1]
    row_start, start, stop, value = [0], [], [], []
    for row in shift:
        edges = np.flatnonzero(np.diff(row)) + 1
        bounds = [0, *edges.tolist(), width]
        start += bounds[:-1]
        stop += bounds[1:]
        value += [int(row[b]) for b in bounds[:-1]]
        row_start.append(len(start))
    return Runs(*(np.array(a, np.int64) for a in (row_start, start, stop, value)))


def shift_from_focus(focus_px: NDArray[np.floating], /) -> NDArray[np.int64]:
    """Return how many samples deeper each A-line is read, ``round(f) - round(min f)``; same shape.

    Examples
    --------
    >>> shift_from_focus(np.array([[3.6, 5.2]])).tolist()
    [[0, 1]]
    """
    if not np.isfinite(focus_px).all():
        raise ValueError("the focus map must be finite everywhere")
    rounded = np.floor(np.asarray(focus_px, np.float64) + 0.5).astype(np.int64)
    return rounded - int(rounded.min())


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _cos_sin(angle_deg):  # type: ignore[no-untyped-def]
    """Return cos and sin of twice an angle in degrees; error below 3e-7."""
    u = angle_deg * np.float32(1 / 90)
    u = u - np.float32(2) * np.floor(u * np.float32(0.5) + np.float32(0.5))  # period 180 degrees: u in [-1, 1)
    h = u * np.float32(1.5707963267948966)  # half of the doubled angle
    q = h * h
    s = h * (
        np.float32(1)
        + q
        * (
            np.float32(-1.6666667e-1)
            + q
            * (
                np.float32(8.3333310e-3)
                + q * (np.float32(-1.9840874e-4) + q * (np.float32(2.7525562e-6) + q * np.float32(-2.3889859e-8)))
            )
        )
    )
    c = np.float32(1) + q * (
        np.float32(-0.5)
        + q
        * (
            np.float32(4.1666638e-2)
            + q * (np.float32(-1.3888378e-3) + q * (np.float32(2.4760495e-5) + q * np.float32(-2.6051615e-7)))
        )
    )
    return np.float32(1) - np.float32(2) * s * s, np.float32(2) * s * c


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _angle(c, s):  # type: ignore[no-untyped-def]
    """Return half of atan2(s, c) in degrees, in (-90, 90]."""
    angle = np.float32(math.atan2(s, c)) * np.float32(28.64788975654116)
    return np.float32(90) if angle <= np.float32(-90) else angle


@njit(cache=True, nogil=True, error_model="numpy")
def _planes(  # type: ignore[no-untyped-def]
    out, sine, inputs, depth0, z0, z1, out_z0, place, rows, weight, row_start, start, stop, shift
):
    """Blend planes z0..z1 of a block; returns how many voxels were missing, at least whether any was.

    Scalar data where `sine` is None; else axis angles into components, `out` takes the cosine. The choice is made when
    this is compiled: each kind has a loop of its own.
    """
    missing = 0
    height, width = out.shape[1], out.shape[2]
    for z in range(z0, z1):
        plane = out[z]
        plane[:, :] = np.float32(0)
        if sine is None:
            other = plane
        else:
            other = sine[z]
            other[:, :] = np.float32(0)
        for k in range(inputs.shape[0]):
            data = inputs[k]
            y0, x0, first = place[k, 0], place[k, 1], place[k, 2]
            for y in range(rows[k]):
                ty = first + y
                for r in range(row_start[ty], row_start[ty + 1]):
                    depth = out_z0 + z + shift[r] - depth0
                    a = max(start[r], -x0)
                    b = min(stop[r], width - x0)
                    if a >= b:
                        continue
                    if depth < 0 or depth >= data.shape[0]:
                        missing += b - a
                        continue
                    # Pieces that begin at 0: the loops below are then compiled to vector instructions.
                    source = data[depth, y, a:b]
                    w = weight[k, y, a:b]
                    target = plane[y0 + y, x0 + a : x0 + b]
                    if sine is None:
                        for x in range(b - a):
                            target[x] += w[x] * source[x]
                    else:
                        target_s = other[y0 + y, x0 + a : x0 + b]
                        for x in range(b - a):
                            c, s = _cos_sin(source[x])
                            target[x] += w[x] * c
                            target_s[x] += w[x] * s
        for y in range(height):
            row = plane[y]
            odd = 0
            for x in range(width):
                odd |= row[x] * np.float32(0) != np.float32(0)  # NaN or infinity
            missing += odd
    return missing


@njit(cache=True, nogil=True, error_model="numpy")
def _planes_partial(  # type: ignore[no-untyped-def]
    out, sine, inputs, depth0, z0, z1, out_z0, place, rows, weight, row_start, start, stop, shift, total, lost
):
    """Blend planes where voxels may be missing; where one is, divide by the weights that are there.

    A voxel that lacks nothing gets the very value of `_planes`: results do not depend on how blocks are cut.
    """
    height, width = out.shape[1], out.shape[2]
    for z in range(z0, z1):
        plane = out[z]
        plane[:, :] = np.float32(0)
        if sine is None:
            other = plane
        else:
            other = sine[z]
            other[:, :] = np.float32(0)
        total[:, :] = np.float32(0)
        lost[:, :] = False
        for k in range(inputs.shape[0]):
            data = inputs[k]
            y0, x0, first = place[k, 0], place[k, 1], place[k, 2]
            for y in range(rows[k]):
                ty = first + y
                for r in range(row_start[ty], row_start[ty + 1]):
                    depth = out_z0 + z + shift[r] - depth0
                    a = max(start[r], -x0)
                    b = min(stop[r], width - x0)
                    if depth < 0 or depth >= data.shape[0]:
                        for x in range(a, b):
                            lost[y0 + y, x0 + x] = True
                        continue
                    for x in range(a, b):
                        value = data[depth, y, x]
                        if not np.isfinite(value):
                            lost[y0 + y, x0 + x] = True
                            continue
                        w = weight[k, y, x]
                        total[y0 + y, x0 + x] += w
                        if sine is None:
                            plane[y0 + y, x0 + x] += w * value
                        else:
                            c, s = _cos_sin(value)
                            plane[y0 + y, x0 + x] += w * c
                            other[y0 + y, x0 + x] += w * s
        for y in range(height):
            for x in range(width):
                if not lost[y, x]:
                    continue
                weights = total[y, x] if total[y, x] > np.float32(0) else np.float32(np.nan)
                plane[y, x] /= weights
                if sine is not None:
                    other[y, x] /= weights


@njit(cache=True, nogil=True, error_model="numpy")
def _blank_planes(out, covered, z0, z1):  # type: ignore[no-untyped-def]
    for z in range(z0, z1):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                if not covered[y, x]:
                    out[z, y, x] = np.float32(np.nan)


@njit(cache=True, nogil=True, error_model="numpy")
def _to_angle(cosine, sine, z0, z1):  # type: ignore[no-untyped-def]
    """Replace components by the angle, in the array of the cosine; NaN where both are 0."""
    for z in range(z0, z1):
        for y in range(cosine.shape[1]):
            for x in range(cosine.shape[2]):
                c, s = cosine[z, y, x], sine[z, y, x]
                cosine[z, y, x] = np.float32(np.nan) if c == 0 and s == 0 else _angle(c, s)


@njit(cache=True, nogil=True, error_model="numpy")
def _halved(volume, result, z0, z1):  # type: ignore[no-untyped-def]
    """Write means over 2 x 2 x 2 voxels, NaN left out, to planes z0..z1 of `result`."""
    depth, height, width = volume.shape
    for z in range(z0, z1):
        for y in range(result.shape[1]):
            inside = 2 * z + 1 < depth and 2 * y + 1 < height
            whole = width // 2 if inside else 0
            if inside:
                a, b = volume[2 * z, 2 * y], volume[2 * z, 2 * y + 1]
                c, d = volume[2 * z + 1, 2 * y], volume[2 * z + 1, 2 * y + 1]
                row = result[z, y]
                for x in range(whole):
                    i = 2 * x
                    row[x] = (
                        (a[i] + a[i + 1]) + (b[i] + b[i + 1]) + (c[i] + c[i + 1]) + (d[i] + d[i + 1])
                    ) * np.float32(0.125)
            for x in range(result.shape[2]):
                if x < whole and result[z, y, x] == result[z, y, x]:
                    continue
                total, count = np.float32(0), np.float32(0)
                for i in range(2 * z, min(2 * z + 2, depth)):
                    for j in range(2 * y, min(2 * y + 2, height)):
                        for m in range(2 * x, min(2 * x + 2, width)):
                            value = volume[i, j, m]
                            if value == value:
                                total += value
                                count += np.float32(1)
                result[z, y, x] = total / count if count > 0 else np.float32(np.nan)


def halved(
    volume: FloatArray, /, *, out: FloatArray | None = None, pool: ThreadPoolExecutor | None = None
) -> FloatArray:
    """Return a volume at half the resolution: means over 2 x 2 x 2 voxels, NaN left out; odd sizes are rounded up.

    Examples
    --------
    >>> halved(np.array([[[1.0, 3.0, np.nan]]], np.float32)).tolist()
    [[[2.0, nan]]]
    """
    shape = tuple(-(-n // 2) for n in volume.shape)
    result = np.empty(shape, np.float32) if out is None else out
    _over_planes(lambda a, b: _halved(volume, result, a, b), shape[0], pool)
    return result


def halved_axis(angle_deg: FloatArray, /, *, pool: ThreadPoolExecutor | None = None) -> FloatArray:
    """Return axis angles (degrees) at half the resolution: axial means over 2 x 2 x 2 voxels, NaN left out."""
    doubled = np.deg2rad(angle_deg) * 2
    cosine = halved(np.cos(doubled).astype(np.float32), pool=pool)
    sine = halved(np.sin(doubled).astype(np.float32), pool=pool)
    return angle_from_components(cosine, sine, pool=pool)


def angle_from_components(
    cosine: FloatArray, sine: FloatArray, /, *, pool: ThreadPoolExecutor | None = None
) -> FloatArray:
    """Return the axis angle in degrees of doubled-angle components; overwrites and returns `cosine`."""
    _over_planes(lambda a, b: _to_angle(cosine, sine, a, b), cosine.shape[0], pool)
    return cosine


def _over_planes(work, planes: int, pool: ThreadPoolExecutor | None) -> list[int]:  # type: ignore[no-untyped-def]
    """Do ``work(first, last)`` over all planes, in as many pieces as there are threads; each plane by one thread."""
    if pool is None:
        return [work(0, planes)]
    pieces = min(pool._max_workers, planes)
    bounds = [planes * k // pieces for k in range(pieces + 1)] if pieces else [0]
    return list(pool.map(lambda k: work(bounds[k], bounds[k + 1]), range(pieces)))


@dataclass(frozen=True)
class BlockTiles:
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
    runs: Runs,
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
    runs : Runs
        Depth shift of the A-lines.
    out_z0 : int
        Depth of the block's first plane, before the shift.
    covered : ndarray of bool, shape (y, x)
        Pixels that any tile covers and the mask keeps; the others become NaN, as do voxels that all tiles lack.
    pool : ThreadPoolExecutor, optional
        Threads; each plane is done by one of them, so their number changes nothing in the result.
    """
    _blend(out, None, tiles, runs, out_z0, pool)
    if not covered.all():
        _over_planes(lambda a, b: _blank_planes(out, covered, a, b), len(out), pool)


def blend_axial(
    cosine: FloatArray,
    sine: FloatArray,
    tiles: BlockTiles,
    runs: Runs,
    out_z0: int,
    covered: NDArray[np.bool_],
    /,
    *,
    pool: ThreadPoolExecutor | None = None,
) -> None:
    """Blend a block of axis angles (degrees) into doubled-angle components, in place; NaN where nothing lies."""
    _blend(cosine, sine, tiles, runs, out_z0, pool)
    if not covered.all():
        _over_planes(lambda a, b: _blank_planes(cosine, covered, a, b), len(cosine), pool)
        _over_planes(lambda a, b: _blank_planes(sine, covered, a, b), len(sine), pool)


def _blend(
    out: FloatArray,
    sine: FloatArray | None,
    tiles: BlockTiles,
    runs: Runs,
    out_z0: int,
    pool: ThreadPoolExecutor | None,
) -> None:
    """Blend all planes; those of a block that lacks voxels once more, with a sum of weights."""
    source = (out, sine, tiles.data, tiles.depth0)
    geometry = (tiles.place, tiles.rows, tiles.weight, runs.row_start, runs.start, runs.stop, runs.shift)
    if not sum(_over_planes(lambda a, b: _planes(*source, a, b, out_z0, *geometry), len(out), pool)):
        return

    def again(a: int, b: int) -> None:
        total, lost = np.empty(out.shape[1:], np.float32), np.empty(out.shape[1:], np.bool_)
        _planes_partial(*source, a, b, out_z0, *geometry, total, lost)

    _over_planes(again, len(out), pool)

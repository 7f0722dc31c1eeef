"""What two slices say about brightness where both saw the same tissue.

Speckle and misalignment of a fraction of a pixel average out over blocks of A-lines, so everything here works on the
mean power of blocks, without the noise floor, in dB. Of each pair only two things remain: a difference for each depth,
and a map of what differs from place to place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration import PlanarTransform, resample_image
from opticstream.compute.sample._edges import tissue_mask

Single = NDArray[np.float32]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

BLOCK_PX = 6
"""Side of the blocks of A-lines."""
FEWEST_BLOCKS = 30
"""Blocks of common tissue below which a pair says nothing."""

_DB = 10 / np.log(10)
_BLOCK_ERROR_DB = 0.4
"""Error of a block's level from speckle, where there is no noise."""
_OTHER_ERROR_DB = 0.3
_FACE_PLANES = 12
_HUBER = 1.5


def block_power(volume_db: ArrayLike, /, *, side: int = BLOCK_PX) -> Single:
    """Return the mean linear power of blocks of A-lines, plane by plane.

    Parameters
    ----------
    volume_db : array_like, shape (x, y, planes)
        Intensity in dB; NaN marks missing values.
    side : int
        Side of the blocks in pixels; what is left over at the far ends is dropped.

    Returns
    -------
    ndarray of float32, shape (x // side, y // side, planes)
        NaN where less than half of a block has a value.

    Examples
    --------
    >>> block_power([[[10.0], [0.0]], [[np.nan], [10.0]]], side=2).round(3).tolist()
    [[[7.0]]]
    """
    planes = np.asarray(volume_db, np.float32).T
    nx, ny = planes.shape[2] // side, planes.shape[1] // side
    mean = np.empty((len(planes), ny, nx), np.float32)
    for z, plane in enumerate(planes[:, : ny * side, : nx * side]):  # one that stays in the cache
        known = np.isfinite(plane)
        power = np.exp(np.where(known, plane, np.float32(-np.inf)) * np.float32(1 / _DB))
        count = _sum_of_blocks(known.view(np.uint8), side)
        mean[z] = np.where(2 * count >= side**2, _sum_of_blocks(power, side) / np.maximum(count, 1), np.nan)
    return mean.T


def _sum_of_blocks(plane: NDArray[Any], side: int) -> Single:
    rows = plane.reshape(plane.shape[0] // side, side, plane.shape[1]).sum(1, dtype=np.float32)
    sums: Single = rows.reshape(len(rows), plane.shape[1] // side, side).sum(2)
    return sums


def tissue_of_blocks(power: ArrayLike, /) -> Mask:
    """Return which blocks hold tissue, by the first planes below the face, shape (x, y)."""
    first = np.asarray(power, np.float32)[:, :, :_FACE_PLANES]
    with np.errstate(divide="ignore", invalid="ignore"):
        return tissue_mask(np.where(first > 0, 10 * np.log10(first), np.nan))


def noise_power(power: ArrayLike, /) -> float:
    """Return the noise floor: the lowest mean over depth of the power beside the tissue; 0 where tissue is everywhere.

    Parameters
    ----------
    power : array_like, shape (x, y, planes)
        Power of blocks (`block_power`).
    """
    from scipy import ndimage

    blocks = np.asarray(power, np.float32)
    tissue = tissue_of_blocks(blocks)
    empty = ~ndimage.binary_dilation(tissue, iterations=2) & np.isfinite(blocks).any(2)
    if empty.sum() < FEWEST_BLOCKS:
        return 0.0
    # The median: some blocks beside the tissue hold debris.
    beside = np.nanmedian(blocks[empty], axis=0)
    return float(np.nanmin(ndimage.uniform_filter1d(beside, min(5, beside.size), mode="nearest")))


class SliceLevels(NamedTuple):
    """One slice on the blocks of the sample."""

    power: Single
    """Power without the noise floor, shape (x, y, planes); NaN where there is none."""
    noise: float
    """The noise floor."""
    tissue: Mask
    """Blocks with tissue, shape (x, y)."""

    @property
    def profile_db(self) -> Array:
        """Median level over the tissue at each depth, shape (planes,); NaN without tissue, or in the noise."""
        inside = self.power[self.tissue]
        if not inside.size:
            return np.full(self.power.shape[2], np.nan)
        known = np.isfinite(inside).any(0)
        middle = np.full(self.power.shape[2], np.nan)
        middle[known] = np.nanmedian(inside[:, known], axis=0)
        clear = known & (middle > max(self.noise, 1e-30))
        return np.asarray(np.where(clear, 10 * np.log10(np.where(clear, middle, 1)), np.nan), float)


def levels_in_sample(
    power: ArrayLike,
    mapping: PlanarTransform,
    /,
    *,
    shape: tuple[int, int],
    side: int = BLOCK_PX,
    bend_px: Array | None = None,
) -> SliceLevels:
    """Return a slice's blocks on the blocks of the sample, without the noise floor.

    Parameters
    ----------
    power : array_like, shape (x, y, planes)
        Power of the slice's blocks, in its own pixels.
    mapping : PlanarTransform
        From pixels of the sample to pixels of the slice.
    shape : (int, int)
        Blocks of the sample.
    side : int
        Side of a block in pixels.
    bend_px : ndarray, shape (2, x, y), optional
        Displacement at the middle of each block, in pixels of the sample.
    """
    blocks = np.asarray(power, np.float32)
    noise = noise_power(blocks)
    small = mapping.scaled(1 / side, shape=shape)
    if bend_px is not None:
        small = PlanarTransform(small.matrix, small.offset, np.asarray(bend_px / side, np.float32))
    moved = np.stack([resample_image(blocks[:, :, z], small, shape=shape) for z in range(blocks.shape[2])], axis=2)
    inside = resample_image(tissue_of_blocks(blocks).astype(np.float32), small, shape=shape) > 0.99
    return SliceLevels(moved - np.float32(noise), noise, inside)


@dataclass(frozen=True)
class PairLevels:
    """How much brighter the earlier of two slices shows the tissue that both saw."""

    first: int
    """The earlier slice."""
    second: int
    """The later slice."""
    apart_planes: int
    """Depth of the later slice's face in the earlier slice, in planes."""
    difference_db: Array
    """At each depth below the later face, over the whole tissue, shape (planes,); NaN where it is unknown."""
    error_db: Array
    """Its uncertainty, shape (planes,)."""
    local_db: Single
    """What is added at each block, of mean 0, shape (x, y)."""
    weight: Single
    """One over the variance of `local_db`; 0 where nothing is known."""
    likeness: float
    """Correlation of fine structure, -1..1."""

    @property
    def planes(self) -> int:
        """Depths at which the pair has a difference."""
        return int(np.isfinite(self.difference_db).sum())


def pair_levels(
    first: int, second: int, earlier: SliceLevels, later: SliceLevels, apart_planes: int, /
) -> PairLevels | None:
    """Return what two slices say about each other's brightness; None where they have too little tissue in common.

    Parameters
    ----------
    first, second : int
        Numbers of the slices.
    earlier, later : SliceLevels
        Their levels, on the same blocks.
    apart_planes : int
        Depth of the later slice's face in the earlier slice.
    """
    depth = min(earlier.power.shape[2] - apart_planes, later.power.shape[2])
    if depth < 1:
        return None
    inside = earlier.tissue & later.tissue
    a = earlier.power[:, :, apart_planes : apart_planes + depth][inside].astype(np.float64)
    b = later.power[:, :, :depth][inside].astype(np.float64)
    known = np.isfinite(a) & np.isfinite(b) & (a > 0.5 * earlier.noise) & (b > 0.5 * later.noise) & (a > 0) & (b > 0)
    used = known.sum(0) >= FEWEST_BLOCKS
    if not used.any():
        return None
    a, b = (np.where(known, part, 1.0) for part in (a, b))
    off = 10 * np.log10(a / b)
    variance = _BLOCK_ERROR_DB**2 * ((1 + earlier.noise / a) ** 2 + (1 + later.noise / b) ** 2) + _OTHER_ERROR_DB**2
    sure = np.where(known, 1 / variance, 0)
    weight = sure.copy()
    place, by_depth = np.zeros(len(off)), np.zeros(depth)
    for _ in range(8):
        by_depth = (weight * (off - place[:, None])).sum(0) / np.maximum(weight.sum(0), 1e-9)
        place = (weight * (off - by_depth)).sum(1) / (weight.sum(1) + 1.0)
        residual = np.abs(off - by_depth - place[:, None]) * np.sqrt(sure)
        scale = max(1.0, 1.4826 * float(np.median(residual[known])))
        weight = sure / np.maximum(residual / (_HUBER * scale), 1)
    # Blocks of a plane share their speckle in part, and all planes share what the model leaves out.
    error = np.where(used, np.hypot(0.03, 2 * scale / np.sqrt(np.maximum(sure.sum(0), 1e-9))), np.nan)
    total = weight.sum(1)
    middle = float((total * place).sum() / max(total.sum(), 1e-9))
    local, how_sure = np.zeros(inside.shape, np.float32), np.zeros(inside.shape, np.float32)
    local[inside] = place - middle
    how_sure[inside] = total / (1 + 0.2 * total) / scale**2  # depths share an error of place, too
    return PairLevels(
        first,
        second,
        apart_planes,
        np.where(used, by_depth + middle, np.nan),
        error,
        local,
        how_sure,
        _likeness(a, b, known, inside),
    )


def facing_levels(first: int, second: int, earlier: SliceLevels, later: SliceLevels, /) -> tuple[float, int] | None:
    """Return by how many dB, in the median, the deepest clear plane of a slice exceeds the face of a later one.

    Returns
    -------
    difference_db : float
        Of the deepest plane of the earlier slice that stands well above the noise, and of the later face.
    depth : int
        That plane. None where one of the two has no tissue.
    """
    above, face = earlier.profile_db, later.profile_db
    floor = 10 * np.log10(max(earlier.noise, 1e-30))
    clear = np.flatnonzero(np.isfinite(above) & (above > floor + 3))  # NaN counts as unclear
    if not clear.size or not np.isfinite(face[0]):
        return None
    depth = int(clear[-1])
    return float(above[depth] - face[0]), depth


def _likeness(a: Array, b: Array, known: Mask, inside: Mask) -> float:
    """Return the correlation of two slices over blocks, without what is smooth over some blocks."""
    from scipy import ndimage

    count = np.maximum(known.sum(1), 1)
    details = []
    valid = np.zeros(inside.shape, np.float32)
    valid[inside] = known.any(1)
    around = np.maximum(ndimage.gaussian_filter(valid, 4.0), 1e-3)
    for part in (a, b):
        level = np.zeros(inside.shape, np.float32)
        level[inside] = (np.where(known, 10 * np.log10(part), 0)).sum(1) / count
        details.append((level - ndimage.gaussian_filter(level * valid, 4.0) / around)[valid > 0])
    x, y = (d - d.mean() for d in details)
    return float((x @ y) / np.sqrt(max(float(x @ x) * float(y @ y), 1e-20)))

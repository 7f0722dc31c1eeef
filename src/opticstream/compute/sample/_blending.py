"""Planes of the sample from planes of its slices: what is taken from where, corrected and blended in linear power."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.sample._intensity import Intensity
from opticstream.compute.sample._levels import BLOCK_PX

Single = NDArray[np.float32]

FADE_PLANES = 6
"""Planes over which a slice fades out into the next one."""

_LEAST_SHARE = 0.25
"""Of the power that remains where the noise floor is subtracted: speckle may be darker than the floor."""


class Source(NamedTuple):
    """One of the planes from which a plane of the sample is made."""

    slice_id: int
    """Slice."""
    depth: int
    """Plane of the slice."""
    weight: float
    """Share in the mean; 0 where it only fills what the others leave without a value."""


def plane_sources(
    plane: int,
    slices: Mapping[int, int],
    /,
    *,
    section_planes: float,
    fade_planes: int = FADE_PLANES,
    fill: bool = True,
) -> list[Source]:
    """Return from which slices a plane of the sample is made: the one whose section it is, and those that fade out.

    Parameters
    ----------
    plane : int
        Plane of the sample; 0 is the face of slice 1.
    slices : mapping of int to int
        Planes of each slice that is there and not left out, by its number.
    section_planes : float
        Planes of a section.
    fade_planes : int
        Planes over which a slice fades out below the next face; 0 for none.
    fill : bool
        Also use deeper planes of earlier slices, where the section's own slice is not there.

    Returns
    -------
    list of Source
        The first of them is the one that is used where it has a value; empty where nothing saw the plane.

    Examples
    --------
    Slice 2 is missing, so its section is seen through slice 1, and slice 3 takes over at its face:

    >>> plane_sources(25, {1: 60, 3: 60}, section_planes=20)
    [Source(slice_id=1, depth=25, weight=1.0)]
    >>> [(s.slice_id, s.depth, round(s.weight, 2)) for s in plane_sources(41, {1: 60, 3: 60}, section_planes=20)]
    [(3, 1, 1.0), (1, 41, 0.85)]
    """
    faces = {n: round((n - 1) * section_planes) for n in slices}
    above = sorted((n for n in slices if faces[n] <= plane), reverse=True)
    if not above:
        return []
    if not fill and plane >= round(above[0] * section_planes):
        return []
    found: list[Source] = []
    for rank, n in enumerate(above):
        depth = plane - faces[n]
        if depth >= slices[n]:
            continue
        weight = 0.0
        if not found:
            weight = 1.0
        elif rank == 1 and fade_planes > 0:
            # it fades out below the face of the next slice
            below = plane - faces[above[0]]
            weight = 0.5 + 0.5 * float(np.cos(np.pi * (below + 0.5) / fade_planes)) if below < fade_planes else 0.0
        if weight > 0 or fill:
            found.append(Source(n, depth, weight))
    return found


def blended_power(parts: Sequence[tuple[ArrayLike, float]], /) -> Single:
    """Return the weighted mean of planes in linear power; a weight of 0 only fills what the others leave without value.

    Parameters
    ----------
    parts : sequence of (array_like of shape (x, y), float)
        Linear power (NaN marks missing values) and weight, the most wanted first.

    Examples
    --------
    >>> blended_power([([[1.0, np.nan, np.nan]], 1.0), ([[3.0, 3.0, np.nan]], 1.0), ([[9.0, 9.0, 9.0]], 0.0)]).tolist()
    [[2.0, 3.0, 9.0]]
    """
    planes = [(np.asarray(part, np.float32), weight) for part, weight in parts]
    total = np.zeros(planes[0][0].shape, np.float32)
    share = np.zeros(total.shape, np.float32)
    for plane, weight in planes:
        if weight > 0:
            known = np.isfinite(plane)
            total += np.where(known, np.float32(weight) * plane, 0)
            share += np.where(known, np.float32(weight), 0)
    out = np.where(share > 0, total / np.maximum(share, np.float32(1e-9)), np.nan).astype(np.float32)
    for plane, weight in planes:
        if weight <= 0:
            out = np.where(np.isfinite(out), out, plane)
    return out


def corrected_power(plane_db: ArrayLike, correction_db: ArrayLike | float, /, *, noise: float = 0.0) -> Single:
    """Return a plane in linear power without the noise floor, brighter by what is to be corrected.

    Parameters
    ----------
    plane_db : array_like, shape (x, y)
        Intensity in dB; NaN stays.
    correction_db : array_like, shape (x, y), or float
        By how much the plane is too bright. Where it is 0, nothing is changed and the noise floor stays.
    noise : float
        Noise floor, linear power.

    Examples
    --------
    >>> corrected_power([[10.0, 0.0, np.nan]], [[-3.0103, 0.0, 0.0]]).round(3).tolist()
    [[20.0, 1.0, nan]]
    """
    power = np.exp(np.asarray(plane_db, np.float32) * np.float32(np.log(10) / 10))
    off = np.asarray(correction_db, np.float32)
    # Faded in with the correction, so that what lies beside the tissue stays as it is.
    floor = np.float32(noise) * np.minimum(np.abs(off), 1)
    clean = np.maximum(power - floor, np.float32(_LEAST_SHARE) * power)
    return np.asarray(clean * np.exp(off * np.float32(-np.log(10) / 10)), np.float32)


def share_of_correction(tissue: ArrayLike, /) -> Single:
    """Return which share of the correction applies at each block: all on tissue and around it, nothing far from it.

    What lies beside the tissue is noise and embedding; a correction would brighten the noise with depth.
    """
    from scipy import ndimage

    around = ndimage.binary_dilation(np.asarray(tissue, bool), iterations=3)
    return np.asarray(ndimage.gaussian_filter(around.astype(np.float32), 0.7), np.float32)


def correction_map(
    intensity: Intensity, slice_id: int, depth: int, /, *, xs: slice, ys: slice, tissue: Single, side: int = BLOCK_PX
) -> Single:
    """Return by how many dB a plane of a slice is too bright, at pixels of the sample.

    Parameters
    ----------
    intensity : Intensity
        The corrections.
    slice_id, depth : int
        Slice and its depth plane.
    xs, ys : slice
        Pixels of the sample.
    tissue : ndarray of float32, shape (blocks along x, blocks along y)
        Share of the correction that is applied at each block, 0..1.
    side : int
        Side of a block in pixels.

    Returns
    -------
    ndarray of float32, shape (xs, ys)
    """
    level = np.full(tissue.shape, intensity.level_db(slice_id, depth), np.float32)
    for section, share in intensity.sections_above(slice_id, depth):
        if section in intensity.local_db:
            layers = intensity.local_db[section]
            level -= layers @ np.clip(share * layers.shape[2] - np.arange(layers.shape[2], dtype=np.float32), 0, 1)
    return pixels_from_blocks(level * tissue, xs, ys, side=side)


def pixels_from_blocks(blocks: ArrayLike, xs: slice, ys: slice, /, *, side: int = BLOCK_PX) -> Single:
    """Return a map of blocks at pixels, linear between the middles of blocks, shape (xs, ys).

    Examples
    --------
    >>> pixels_from_blocks([[0.0, 4.0]], slice(0, 1), slice(0, 8), side=4)[0].tolist()
    [0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.0]
    """
    out = np.asarray(blocks, np.float32)
    for axis, where in enumerate((xs, ys)):
        at = np.clip((np.arange(where.start, where.stop) - (side - 1) / 2) / side, 0, out.shape[axis] - 1)
        low = np.minimum(np.floor(at).astype(int), max(out.shape[axis] - 2, 0))
        share = (at - low).astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))
        high = np.minimum(low + 1, out.shape[axis] - 1)
        out = np.asarray(out.take(low, axis) * (1 - share) + out.take(high, axis) * share, np.float32)
    return out

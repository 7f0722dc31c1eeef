"""Volumes at half the resolution, and work on the planes of a volume by several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.stitching.volume import _kernels as kernels

FloatArray = NDArray[np.float32]


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
    over_planes(lambda a, b: kernels.halve_planes(volume, result, a, b), shape[0], pool)
    return result


def halved_axis(angle_deg: FloatArray, /, *, pool: ThreadPoolExecutor | None = None) -> FloatArray:
    """Return axis angles (degrees) at half the resolution: axial means over 2 x 2 x 2 voxels, NaN left out.

    Examples
    --------
    >>> halved_axis(np.array([[[80.0, -80.0]]], np.float32)).ravel().round(3).tolist()
    [90.0]
    """
    cosine, sine = (halved(part.astype(np.float32), pool=pool) for part in axial.components(angle_deg))
    return angle_from_components(cosine, sine, pool=pool)


def angle_from_components(
    cosine: FloatArray, sine: FloatArray, /, *, pool: ThreadPoolExecutor | None = None
) -> FloatArray:
    """Return the axis angle in degrees of doubled-angle components; overwrites and returns `cosine`."""
    over_planes(lambda a, b: kernels.angles_of_planes(cosine, sine, a, b), cosine.shape[0], pool)
    return cosine


def over_planes(work: Callable[[int, int], Any], planes: int, pool: ThreadPoolExecutor | None) -> list[Any]:
    """Do ``work(first, last)`` over all planes, in as many pieces as there are threads; each plane by one thread."""
    if pool is None:
        return [work(0, planes)]
    pieces = min(pool._max_workers, planes)
    bounds = [planes * k // pieces for k in range(pieces + 1)] if pieces else [0]
    return list(pool.map(lambda k: work(bounds[k], bounds[k + 1]), range(pieces)))

"""Apparent birefringence: how fast retardance grows with depth.

Arrays may belong to any library (see `opticstream.compute.arrays`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.arrays import library_of
from opticstream.compute.reconstruction._enface import DepthWindow

UNWRAP_SIGMA_PX = (1.0, 1.0, 3.0)
UNWRAP_HALO_PX = 3
"""B-lines on either side that an unwrapped A-line needs."""
UNWRAP_REACH_PX = 9
"""Depth samples on either side of its window that it needs."""


def birefringence_slope(
    retardance_deg: NDArray[np.float32], valid: NDArray[np.bool_], /, *, depth_step_um: float, wavelength_um: float
) -> NDArray[np.float32]:
    """Return the least-squares slope of `retardance / 360 * wavelength` over depth: the birefringence, dimensionless.

    An exact zero in the retardance ends the window; fewer than three samples give 0. Retardance that has folded at 90
    degrees within the window pulls the slope down.

    Parameters
    ----------
    retardance_deg : ndarray, shape (..., n)
        Retardance at consecutive depths.
    valid : ndarray of bool, shape (..., n)
        Samples inside the window.
    depth_step_um, wavelength_um : float
        Distance of two depth samples and the centre wavelength.

    Examples
    --------
    >>> r = 360 * 0.001 * np.arange(20, dtype=np.float32) * 2.5 / 1.3 + 5
    >>> round(float(birefringence_slope(r, r > 0, depth_step_um=2.5, wavelength_um=1.3)), 7)
    0.001
    """
    xp = library_of(retardance_deg)
    zeros_before = xp.cumulative_sum(xp.astype(retardance_deg == 0, xp.int32), axis=-1)
    used = valid & (zeros_before == 0)
    weight = xp.astype(used, xp.float64)
    n = xp.sum(weight, axis=-1)
    z = xp.arange(retardance_deg.shape[-1], dtype=xp.float64) * depth_step_um
    path = xp.astype(xp.where(used, retardance_deg, 0), xp.float64) * (wavelength_um / 360)
    sum_z, sum_zz = weight @ z, weight @ (z * z)
    sum_p, sum_zp = xp.sum(path, axis=-1), path @ z
    determinant = n * sum_zz - sum_z**2
    solvable = (n >= 3) & (determinant > 0)
    slope = (n * sum_zp - sum_z * sum_p) / xp.where(solvable, determinant, 1)
    return xp.astype(xp.where(solvable, slope, 0), xp.float32)


def stokes_from_retardance(
    retardance_deg: NDArray[np.float32], orientation_deg: NDArray[np.float32], /
) -> NDArray[np.float32]:
    """Return the polarization state on the unit sphere, shape (3, ...), of retardance and orientation in degrees.

    The components are `sin 2R cos 2O`, `sin 2R sin 2O`, `cos 2R`; unlike the angles they can be averaged.
    """
    cosine, sine = axial.components(orientation_deg)
    down, ring = axial.components(retardance_deg)  # doubled as well: these angles are those of a circle on the sphere
    xp = library_of(down)
    return xp.astype(xp.stack([ring * cosine, ring * sine, down]), xp.float32, copy=False)


def gaussian_smoothed(
    volume: NDArray[np.float32], /, *, sigma_px: tuple[float, float, float], truncate: float = 3.0
) -> NDArray[np.float32]:
    """Return an (..., x, y, z) array smoothed along its last three axes, edges replicated."""
    xp = library_of(volume)
    for axis, sigma in zip((-3, -2, -1), sigma_px, strict=True):
        if sigma == 0 or volume.shape[axis] == 1:
            continue
        radius = int(np.ceil(truncate * sigma))
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        kernel /= kernel.sum()
        moved = xp.moveaxis(volume, axis, 0)
        first, last = moved[:1, ...], moved[-1:, ...]
        padded = xp.concat([first] * radius + [moved] + [last] * radius)
        smooth = xp.zeros_like(moved)
        for tap, weight in enumerate(kernel.tolist()):
            smooth += weight * padded[tap : tap + moved.shape[0], ...]
        volume = xp.moveaxis(smooth, 0, axis)
    return volume


def unwrapped_retardance(
    retardance_deg: NDArray[np.float32],
    orientation_deg: NDArray[np.float32],
    /,
    *,
    sigma_px: tuple[float, float, float] = UNWRAP_SIGMA_PX,
) -> NDArray[np.float32]:
    """Return retardance that keeps growing with depth past the fold at 90 degrees, shape (x, y, z).

    Polarization states are smoothed in 3-D; the retardance is the sum of the absolute changes of the smoothed one.

    Examples
    --------
    The measured retardance folds back at 90 degrees, and the axis jumps by 90 there; 150 degrees look like 30:

    >>> true = np.arange(120) * np.float32(1.5)
    >>> measured, axis = np.where(true > 90, 180 - true, true), np.where(true > 90, -60, 30).astype(np.float32)
    >>> volumes = [np.broadcast_to(one, (9, 9, 120)).copy() for one in (measured, axis)]
    >>> float(measured[100]), round(float(unwrapped_retardance(*volumes)[4, 4, 100]))
    (30.0, 150)
    """
    return _growing(_smoothed_retardance(retardance_deg, orientation_deg, sigma_px))


def _smoothed_retardance(
    retardance_deg: NDArray[np.float32], orientation_deg: NDArray[np.float32], sigma_px: tuple[float, float, float]
) -> NDArray[np.float32]:
    state = gaussian_smoothed(stokes_from_retardance(retardance_deg, orientation_deg), sigma_px=sigma_px)
    xp = library_of(state)
    s1, s2, s3 = (state[number, ...] for number in range(3))
    return xp.atan2(xp.hypot(s1, s2), s3) * (90 / math.pi)


def _growing(folded: NDArray[np.float32]) -> NDArray[np.float32]:
    xp = library_of(folded)
    change = xp.abs(folded[..., 1:] - folded[..., :-1])
    first = folded[..., :1]
    return xp.concat([first, first + xp.cumulative_sum(change, axis=-1)], axis=-1)


def birefringence_unwrapped(
    retardance_deg: NDArray[np.float32],
    orientation_deg: NDArray[np.float32],
    window: DepthWindow,
    /,
    *,
    depth_step_um: float,
    wavelength_um: float,
) -> NDArray[np.float32]:
    """Return the birefringence of unwrapped retardance over a window, shape (x, y).

    Volumes have shape (x, y, z). See `unwrapped_retardance`, which begins with the window here, and
    `birefringence_slope`.
    """
    growing = _growing(window.take(_smoothed_retardance(retardance_deg, orientation_deg, UNWRAP_SIGMA_PX)))
    path = library_of(growing).maximum(growing, float(np.finfo(np.float32).tiny))  # an exact zero would end the window
    return birefringence_slope(path, window.valid, depth_step_um=depth_step_um, wavelength_um=wavelength_um)

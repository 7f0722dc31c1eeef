"""En face maps of every A-line, from a window below the surface.

Arrays may belong to any library (see `opticstream.compute.arrays`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.arrays import library_of


@dataclass(frozen=True, slots=True, eq=False)
class DepthWindow:
    """Depth indices of a window per A-line, gathered once and used by every map.

    `index` (x, y, n) holds depth indices, `valid` (x, y, n) tells which of them lie in the window (both ends included).
    """

    index: NDArray[np.intp]
    valid: NDArray[np.bool_]

    def take(self, volume: NDArray[Any], /) -> NDArray[Any]:
        """Return the samples of an (x, y, z) volume, shape (x, y, n)."""
        return library_of(volume).take_along_axis(volume, self.index, axis=2)


def depth_window(surface: ArrayLike, /, *, depth_samples: int, offset: int = 0, depth: int = 80) -> DepthWindow:
    """Return the window `z1 .. z2` with `z1 = clip(surface + offset, 0, Z-1)` and `z2 = min(z1 + depth, Z-1)`.

    Parameters
    ----------
    surface : array_like, shape (x, y)
        Depth index of the surface; rounded to whole samples.
    depth_samples : int
        Number of depth samples Z of the volume.
    offset, depth : int
        Start of the window below the surface and its length, in samples; both ends are included.

    Examples
    --------
    >>> window = depth_window([[2, 9]], depth_samples=10, depth=2)
    >>> window.index[0, 0].tolist(), window.valid[0, 1].tolist()
    ([2, 3, 4], [True, False, False])
    """
    xp = library_of(surface)
    nearest = xp.astype(xp.round(xp.asarray(surface)), xp.int64)
    start = xp.clip(nearest + offset, 0, depth_samples - 1)
    index = start[..., None] + xp.arange(min(depth, depth_samples - 1) + 1)
    return DepthWindow(xp.minimum(index, depth_samples - 1), index <= depth_samples - 1)


def window_mean(samples: NDArray[np.float32], valid: NDArray[np.bool_], /) -> NDArray[np.float32]:
    """Return the mean over the valid samples along the last axis.

    Examples
    --------
    >>> float(window_mean(np.float32([1, 3, 100]), np.array([True, True, False])))
    2.0
    """
    xp = library_of(samples)
    total = xp.sum(xp.where(valid, samples, 0), axis=-1, dtype=xp.float64)
    return xp.astype(total / xp.astype(xp.count_nonzero(valid, axis=-1), xp.float64), xp.float32)


def window_maximum(samples: NDArray[np.float32], valid: NDArray[np.bool_], /) -> NDArray[np.float32]:
    """Return the maximum over the valid samples along the last axis."""
    xp = library_of(samples)
    return xp.astype(xp.max(xp.where(valid, samples, -np.inf), axis=-1), xp.float32, copy=False)


def attenuation_from_intensity(
    intensity_db: NDArray[np.float32], window: DepthWindow, /, *, depth_step_mm: float
) -> NDArray[np.float32]:
    """Return the mean attenuation coefficient over the window, in 1/mm (round trip already divided out).

    Depth-resolved estimate `mu(z) = log(1 + I(z) / sum_{z' > z} I(z')) / (2 dz)` on linear intensity with the noise
    floor taken off (Vermeer 2014, Liu 2019); what lies below the last sample is left out, so the window should end well
    above it.

    Parameters
    ----------
    intensity_db : ndarray, shape (x, y, z)
        Intensity in dB.
    window : DepthWindow
        Where to average.
    depth_step_mm : float
        Distance of two depth samples.

    Returns
    -------
    ndarray, shape (x, y)
        Attenuation in 1/mm, not less than 0.

    Examples
    --------
    Light that is attenuated by 4 per millimetre falls by 8 in a depth of one, because it goes both ways:

    >>> depth_mm = np.arange(600) * 0.0025
    >>> intensity_db = (10 * np.log10(np.exp(-8 * depth_mm) + 1e-9))[None, None].astype(np.float32)
    >>> window = depth_window([[50]], depth_samples=600, depth=80)
    >>> attenuation_from_intensity(intensity_db, window, depth_step_mm=0.0025).round(1).tolist()
    [[4.0]]
    """
    xp = library_of(intensity_db)
    linear = 10.0 ** (xp.astype(intensity_db, xp.float64) / 10)
    floor = xp.mean(linear[..., -max(1, linear.shape[-1] // 20) :], axis=-1, keepdims=True)
    signal = xp.maximum(linear - floor, 0)
    below = xp.flip(xp.cumulative_sum(xp.flip(signal, axis=-1), axis=-1), axis=-1) - signal
    share = xp.where(below > 0, signal / xp.where(below > 0, below, 1), 0)
    mu = xp.log1p(share) / (2 * depth_step_mm)
    return window_mean(window.take(xp.astype(mu, xp.float32)), window.valid)

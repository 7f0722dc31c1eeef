"""The tissue surface of a tile: the depth index at which every A-line enters the sample.

Arrays of intensity may belong to any library (see `opticstream.compute.arrays`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.arrays import library_of

SMOOTHING_SIGMA_PX = 5.0
SMOOTHING_RADIUS_PX = 20
EDGE_HALF_WIDTH_PX = 5
THRESHOLD_SAMPLES = 20


def smoothing_kernel() -> NDArray[np.float64]:
    """Return the Gaussian (sigma 5 px, cut at 4 sigma, sum 1) that smooths A-lines before the edge is sought.

    Examples
    --------
    >>> kernel = smoothing_kernel()
    >>> kernel.size, round(float(kernel.sum()), 12), bool((kernel == kernel[::-1]).all())
    (41, 1.0, True)
    """
    offsets = np.arange(-SMOOTHING_RADIUS_PX, SMOOTHING_RADIUS_PX + 1)
    kernel = np.exp(-0.5 * (offsets / SMOOTHING_SIGMA_PX) ** 2)
    return np.asarray(kernel / kernel.sum())


def edge_taps() -> NDArray[np.float64]:
    """Return the edge filter as weights of pairs: tap k weighs sample z + k against sample z - 1 - k."""
    half = EDGE_HALF_WIDTH_PX
    # the previous 5 samples, then this one and the next 4
    step = np.concatenate([np.full(half, -1.0 / half), np.full(half, 1.0 / half)])
    combined = np.convolve(smoothing_kernel(), step)  # for samples z - radius - half .. z + radius + half - 1
    return np.asarray(combined[combined.size // 2 :])


@lru_cache(maxsize=8)
def _edge_matrix(n_in: int, n_out: int) -> NDArray[np.float32]:
    """Columns are the edge filter, each one sample further down than the one before."""
    taps = edge_taps()
    combined = np.concatenate([-taps[::-1], taps])
    matrix = np.zeros((n_in, n_out))
    for column in range(n_out):
        matrix[column : column + combined.size, column] = combined
    narrow = matrix.astype(np.float32)
    narrow.flags.writeable = False
    return narrow


def edge_response(intensity_db: NDArray[np.float32], /) -> NDArray[np.float32]:
    """Return how much brighter each A-line is just below a depth than just above it, in dB.

    A-lines are smoothed along z (Gaussian, sigma 5 px, edges replicated); the response at z is the mean of samples
    z .. z+4 minus that of z-5 .. z-1, and -inf where one of them lies outside.

    Parameters
    ----------
    intensity_db : ndarray, shape (..., z)
        Intensity in dB.

    Examples
    --------
    The answer is largest where the brighter medium begins, and smaller than the step of 30 dB, which is smoothed:

    >>> intensity_db = np.full((1, 40), 10, np.float32)
    >>> intensity_db[:, 20:] = 40
    >>> response = edge_response(intensity_db)
    >>> int(response.argmax()), round(float(response.max()))
    (20, 11)
    """
    xp = library_of(intensity_db)
    half, radius = EDGE_HALF_WIDTH_PX, SMOOTHING_RADIUS_PX
    depth = intensity_db.shape[-1]
    response = xp.full(intensity_db.shape, -np.inf, dtype=xp.float32)
    if depth < 2 * half:
        return response
    padded = xp.concat(
        [
            xp.repeat(intensity_db[..., :1], radius, axis=-1),
            intensity_db,
            xp.repeat(intensity_db[..., -1:], radius, axis=-1),
        ],
        axis=-1,
    )
    reach = 2 * (half + radius) - 1  # inputs per output, less one
    block = 128
    for first in range(half, depth - half + 1, block):  # overlapping blocks: one small matrix product each
        n_out = min(block, depth - half + 1 - first)
        start = first - half  # in `padded`, whose index 0 is depth -radius
        part = padded[..., start : start + n_out + reach]
        response[..., first : first + n_out] = part @ xp.asarray(_edge_matrix(n_out + reach, n_out))
    return response


def unfiltered_surface_from_gradient(intensity_db: NDArray[np.float32], /) -> NDArray[np.float32]:
    """Return the depth index of the strongest rise of every A-line, before any median filter.

    A-lines with fewer than ten samples above 0 dB hold no signal and get 0; so do all where z is shorter than 10.

    Parameters
    ----------
    intensity_db : ndarray, shape (..., z)
        Intensity in dB.
    """
    xp = library_of(intensity_db)
    if intensity_db.shape[-1] < 2 * EDGE_HALF_WIDTH_PX:
        return xp.zeros(intensity_db.shape[:-1], dtype=xp.float32)
    strongest = xp.astype(xp.argmax(edge_response(intensity_db), axis=-1), xp.float32)
    positive = xp.count_nonzero(intensity_db > 0, axis=-1)
    return xp.where(positive < 2 * EDGE_HALF_WIDTH_PX, 0, strongest)


def unfiltered_surface_from_threshold(
    intensity_db: NDArray[np.float32], /, *, threshold_db: float = 55.0
) -> NDArray[np.float32]:
    """Return the first sample at or above the threshold where tissue begins at once, else the strongest rise.

    Tissue begins at once where the mean of the first 20 samples is at or above `threshold_db`.

    Examples
    --------
    The first A-line is tissue at once, the second after 30 samples:

    >>> intensity_db = np.full((2, 60), 60, np.float32)
    >>> intensity_db[0, :3], intensity_db[1, :30] = 50, 40
    >>> unfiltered_surface_from_threshold(intensity_db).tolist()
    [3.0, 30.0]
    """
    xp = library_of(intensity_db)
    at_once = xp.mean(intensity_db[..., :THRESHOLD_SAMPLES], axis=-1) >= threshold_db
    first = xp.argmax(xp.astype(intensity_db >= threshold_db, xp.int8), axis=-1)
    return xp.where(at_once, xp.astype(first, xp.float32), unfiltered_surface_from_gradient(intensity_db))


def median_3x3(image: NDArray[Any], /) -> NDArray[np.float32]:
    """Return the 3 x 3 median of an (x, y) image, mirrored at its edges (the edge pixel itself is repeated).

    Examples
    --------
    >>> median_3x3(np.array([[0, 0, 0], [0, 9, 0], [0, 0, 0]])).max()
    np.float32(0.0)
    """
    padded = np.pad(np.asarray(image, np.float32), 1, mode="symmetric")
    x, y = image.shape
    neighbours = np.stack([padded[i : i + x, j : j + y] for i in range(3) for j in range(3)])
    return np.asarray(np.sort(neighbours, axis=0)[4])

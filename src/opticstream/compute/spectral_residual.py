"""Counts of a B-line as small numbers that compress well, and back, exactly.

The mean spectrum of the A-lines is subtracted, and, where that makes the numbers smaller, the spectral sample before.
What is left is small and of either sign; `0, -1, 1, -2, ...` are stored as `0, 1, 2, 3, ...`, so that the upper bits
are zero. All arithmetic wraps around at 16 bits, which loses nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.uint16]

_COMPILED_FROM = 1 << 16
"""Numbers from which compiled code is used; to load it takes longer than many small B-lines."""
_LOOKED_AT = 8
"""A-lines from which it is decided whether differences are taken."""


def residual_from_counts(counts: Counts, /) -> tuple[Counts, int, Counts]:
    """Return mean spectrum, number of differences taken along the spectrum (0 or 1), and residual.

    Parameters
    ----------
    counts : ndarray of uint16, shape (A-lines, samples)
        Spectra of one B-line and channel, at least one.

    Returns
    -------
    mean : ndarray of uint16, shape (samples,)
    differences : int
    residual : ndarray of uint16, shape (A-lines, samples)

    Examples
    --------
    >>> mean, differences, residual = residual_from_counts(np.array([[7, 9], [8, 8]], np.uint16))
    >>> mean.tolist(), differences, residual.tolist()
    ([8, 9], 0, [[1, 0], [0, 1]])
    """
    a_lines = len(counts)
    mean = ((np.add.reduce(counts, axis=0, dtype=np.uint32) + a_lines // 2) // a_lines).astype(np.uint16)
    some = (counts[:: -(-a_lines // _LOOKED_AT)] - mean).view(np.int16).astype(np.int32)
    differences = int(np.abs(np.diff(some, axis=1)).sum() < np.abs(some[:, 1:]).sum())
    if counts.size >= _COMPILED_FROM:
        from opticstream.compute._residual_kernels import residual_kernel

        residual = np.empty(counts.shape, np.uint16)
        residual_kernel(counts, mean, differences, residual)
        return mean, differences, residual
    deviation = (counts - mean).view(np.int16)
    if differences:
        deviation[:, 1:] -= deviation[:, :-1].copy()
    return mean, differences, ((deviation << 1) ^ (deviation >> 15)).view(np.uint16)


def counts_from_residual(residual: Counts, mean: Counts, differences: int, /, *, out: Counts | None = None) -> Counts:
    """Return the counts; the inverse of `residual_from_counts`.

    Parameters
    ----------
    residual : ndarray of uint16, shape (A-lines, samples)
        Small numbers of either sign, stored as above.
    mean : ndarray of uint16, shape (samples,)
        Mean spectrum.
    differences : int
        How many times differences were taken, 0 or 1.
    out : ndarray of uint16, shape (A-lines, samples), optional
        Where the counts go.

    Returns
    -------
    ndarray of uint16, shape (A-lines, samples)

    Examples
    --------
    Any counts come back as they were, the extremes too:

    >>> counts = np.array([[0, 65535, 3], [65535, 0, 32768]], np.uint16)
    >>> mean, differences, residual = residual_from_counts(counts)
    >>> bool((counts_from_residual(residual, mean, differences) == counts).all())
    True
    """
    if residual.size >= _COMPILED_FROM:
        from opticstream.compute._residual_kernels import counts_kernel

        counts = np.empty(residual.shape, np.uint16) if out is None else out
        counts_kernel(residual, mean, differences, counts)
        return counts
    deviation: Counts = (residual >> 1) ^ np.negative(residual & 1)
    if differences:
        deviation = np.cumsum(deviation, axis=1, dtype=np.uint16)
    return np.add(deviation, mean, dtype=np.uint16, out=out)

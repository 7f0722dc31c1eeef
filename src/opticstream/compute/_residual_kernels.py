# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The arithmetic of `opticstream.compute.spectral_residual` in compiled code, for B-lines of many A-lines."""

from __future__ import annotations

import numpy as np

from opticstream.system.compiled import njit


@njit(cache=True, nogil=True)
def residual_kernel(counts, mean, differences, residual):
    samples = counts.shape[1]
    deviation = np.empty(samples, np.uint16)
    zero = np.zeros(samples, np.uint16)
    for a in range(counts.shape[0]):
        row, out = counts[a], residual[a]
        for s in range(samples):
            deviation[s] = np.uint16(row[s] - mean[s])
        if differences:  # shifted views, because an index of s - 1 would keep the loop from being vectorised
            _sign_last(deviation[:1], zero, out)
            _sign_last(deviation[1:], deviation, out[1:])
        else:
            _sign_last(deviation, zero, out)


@njit(cache=True, nogil=True)
def _sign_last(values, before, out):
    """Store values less those before, of either sign, as numbers from 0: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    for s in range(values.size):
        step = np.int16(values[s] - before[s])
        out[s] = np.uint16((step << 1) ^ (step >> 15))


@njit(cache=True, nogil=True)
def counts_kernel(residual, mean, differences, counts):
    samples = residual.shape[1]
    for a in range(residual.shape[0]):
        row, out = residual[a], counts[a]
        if differences:
            total = np.int32(0)
            for s in range(samples):
                z = np.int32(row[s])
                total += (z >> 1) ^ -(z & 1)
                out[s] = np.uint16(total + np.int32(mean[s]))
        else:
            for s in range(samples):
                z = np.int32(row[s])
                out[s] = np.uint16(((z >> 1) ^ -(z & 1)) + np.int32(mean[s]))

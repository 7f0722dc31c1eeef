# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The arithmetic of `opticstream.compute.spectral_residual` in compiled code, for B-lines of many A-lines."""

from __future__ import annotations

import numpy as np

from opticstream.system.compiled import njit


@njit(cache=True, nogil=True)
def residual_kernel(counts, mean, differences, residual):
    a_lines, samples = counts.shape
    for a in range(a_lines):
        row, out = counts[a], residual[a]
        if differences:
            value = np.int16(np.int32(row[0]) - np.int32(mean[0]))
            out[0] = np.uint16((np.int32(value) << 1) ^ (np.int32(value) >> 15))
            for s in range(1, samples):
                step = np.int32(row[s]) - np.int32(mean[s]) - np.int32(row[s - 1]) + np.int32(mean[s - 1])
                value = np.int16(step)
                out[s] = np.uint16((np.int32(value) << 1) ^ (np.int32(value) >> 15))
        else:
            for s in range(samples):
                value = np.int16(np.int32(row[s]) - np.int32(mean[s]))
                out[s] = np.uint16((np.int32(value) << 1) ^ (np.int32(value) >> 15))


@njit(cache=True, nogil=True)
def counts_kernel(residual, mean, differences, counts):
    a_lines, samples = residual.shape
    for a in range(a_lines):
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

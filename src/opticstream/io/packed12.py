"""Spectra of 12 bits a sample, packed: three bytes hold two samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def samples_from_packed12(packed: NDArray[np.uint8], /) -> NDArray[np.uint16]:
    """Return the 12-bit samples of packed bytes: three bytes hold two samples.

    The first byte holds the low 8 bits of sample 1; the second the high 4 bits of sample 1 in its low nibble and the
    low 4 bits of sample 2 in its high nibble; the third the high 8 bits of sample 2.

    Examples
    --------
    >>> samples_from_packed12(np.array([0xBC, 0x3A, 0x12], np.uint8)).tolist() == [0xABC, 0x123]
    True
    """
    triples = packed.reshape(-1, 3)
    samples = np.empty((triples.shape[0], 2), np.uint16)
    middle = triples[:, 1].astype(np.uint16)
    samples[:, 0] = triples[:, 0] | ((middle & 0x0F) << 8)
    samples[:, 1] = (middle >> 4) | (triples[:, 2].astype(np.uint16) << 4)
    return samples.reshape(-1)


def packed12_from_samples(samples: NDArray[Any], /) -> NDArray[np.uint8]:
    """Return the packed bytes of an even number of samples below 4096; the inverse of `samples_from_packed12`.

    Examples
    --------
    The nibbles in the middle byte are not in the order of the samples:

    >>> packed12_from_samples(np.array([0xABC, 0x123])).tobytes().hex(" ")
    'bc 3a 12'
    """
    pairs = np.asarray(samples, np.uint16).reshape(-1, 2)
    packed = np.empty((pairs.shape[0], 3), np.uint8)
    packed[:, 0] = pairs[:, 0] & 0xFF
    packed[:, 1] = (pairs[:, 0] >> 8) | ((pairs[:, 1] & 0x0F) << 4)
    packed[:, 2] = pairs[:, 1] >> 4
    return packed.reshape(-1)

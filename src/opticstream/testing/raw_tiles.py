"""Small raw tiles for tests: written by hand, byte by byte, so that they vouch for the readers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def nifti_header(
    dims: tuple[int, ...],
    /,
    *,
    datatype: int = 512,
    byte_order: str = "<",
    vox_offset: int = 352,
) -> bytes:
    """Return a NIfTI-1 header with the given lengths, first axis fastest, padded to `vox_offset` bytes."""
    header = bytearray(max(vox_offset, 352))
    bits = {2: 8, 4: 16, 16: 32, 512: 16}[datatype]
    struct.pack_into(byte_order + "i", header, 0, 348)
    struct.pack_into(byte_order + "8h", header, 40, len(dims), *dims, *(1,) * (7 - len(dims)))
    struct.pack_into(byte_order + "hh", header, 70, datatype, bits)
    struct.pack_into(byte_order + "f", header, 108, vox_offset)
    header[344:348] = b"n+1\0"
    return bytes(header)


def write_spectral_nifti(
    path: Path,
    counts: NDArray[Any],
    /,
    *,
    dims: tuple[int, ...] | None = None,
    byte_order: str = "<",
    vox_offset: int = 352,
) -> Path:
    """Write counts of shape (B-lines, channels, A-lines, samples) as a uint16 NIfTI file, as a rig does."""
    b_lines, channels, a_lines, samples = counts.shape
    header = nifti_header(dims or (samples, a_lines, channels, b_lines), byte_order=byte_order, vox_offset=vox_offset)
    path.write_bytes(header + counts.astype(byte_order + "u2").tobytes())
    return path


def fringe_counts(
    *,
    samples: int = 256,
    a_lines: int = 12,
    b_lines: int = 10,
    channels: int = 2,
    seed: int = 0,
    surface_bin: int = 50,
) -> NDArray[np.uint16]:
    """Return raw counts of a birefringent, scattering half space with noise, 12 bit.

    The shape is (B-lines, channels, A-lines, samples). With two channels the axis and the birefringence differ from one
    A-line to the next, and the second channel is read out backwards.
    """
    rng = np.random.default_rng(seed)
    bins = np.arange(surface_bin, samples // 2 - 4)
    strength = 60 * np.exp(-(bins - surface_bin) / (samples / 8))
    speckle = rng.normal(size=(b_lines, 1, a_lines, bins.size, 2)) @ np.array([1, 1j])
    if channels == 2:
        retardance = rng.uniform(0.01, 0.06, (b_lines, a_lines, 1)) * (bins - surface_bin + 0.5)
        axis = rng.uniform(0, np.pi, (b_lines, a_lines, 1))
        state = np.stack([np.sin(retardance) * np.exp(-2j * axis), np.cos(retardance) + 0j], axis=1)
        speckle = speckle * state
    wave = np.exp(2j * np.pi * np.outer(bins, np.arange(samples)) / samples)
    fringe = ((speckle * strength) @ wave).real
    if channels == 2:
        fringe[:, 1] = fringe[:, 1, :, ::-1]
    source = 2000 * np.exp(-(((np.arange(samples) - samples / 2) / (samples / 2.5)) ** 2))
    noise = rng.normal(scale=8, size=fringe.shape)
    return np.asarray(np.clip(np.rint(source * (1 + 0.001 * fringe) + noise + 100), 0, 4095), dtype=np.uint16)

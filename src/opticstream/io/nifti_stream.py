"""NIfTI-1 files written piece by piece: the header is known before the data, and B-lines arrive in blocks.

On disk x varies fastest and depth slowest, so a block of B-lines is one short run per depth; the file is sized at once
and the runs are put in place.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.atomic import atomic_path
from opticstream.system.disk import reserve, write_at

HEADER_BYTES = 352


def nifti1_header(
    shape: tuple[int, ...], /, *, voxel_size_mm: tuple[float, float, float], description: str = ""
) -> bytes:
    """Return the 352 bytes before the data of a little-endian float32 NIfTI-1 file.

    The affine is diagonal, with voxel (0, 0, 0) at the origin; units are mm. `description` takes 79 characters.

    Examples
    --------
    >>> len(nifti1_header((4, 5, 6), voxel_size_mm=(0.01, 0.01, 0.0025)))
    352
    """
    if not 1 <= len(shape) <= 3 or any(not 1 <= n <= 32767 for n in shape):
        raise ValueError(f"NIfTI-1 holds up to three axes of 1 to 32767 samples here, got {shape}")
    header = bytearray(HEADER_BYTES)
    put = struct.pack_into
    put("<i", header, 0, 348)
    header[38:39] = b"r"
    put("<8h", header, 40, len(shape), *shape, *(1,) * (7 - len(shape)))
    put("<hh", header, 70, 16, 32)  # float32
    put("<8f", header, 76, 1.0, *voxel_size_mm, 1.0, 1.0, 1.0, 1.0)
    put("<f", header, 108, HEADER_BYTES)
    put("<ff", header, 112, 1.0, 0.0)
    header[123] = 2  # mm
    text = description.encode()[:79]
    header[148 : 148 + len(text)] = text
    put("<hh", header, 252, 1, 1)  # qform and sform: scanner
    for row, size in enumerate(voxel_size_mm):
        put("<f", header, 280 + 16 * row + 4 * row, size)
    header[344:348] = b"n+1\0"
    return bytes(header)


def write_map(
    path: Path, data: ArrayLike, /, *, voxel_size_mm: tuple[float, float, float], description: str = ""
) -> bytes:
    """Write an (x, y[, z]) array as float32 NIfTI, atomically; return the bytes of the file."""
    array = np.asarray(data, dtype="<f4")
    header = nifti1_header(array.shape, voxel_size_mm=voxel_size_mm, description=description)
    content = header + array.tobytes(order="F")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return content


class VolumeFile:
    """The data of a volume under construction; B-lines may come in any order and from any thread."""

    def __init__(self, handle: int, shape: tuple[int, int, int]) -> None:
        self._handle = handle
        self.shape = shape
        self.bytes = HEADER_BYTES + 4 * shape[0] * shape[1] * shape[2]

    def write(self, first: int, block: NDArray[np.float32], /) -> None:
        """Put B-lines from `first` on in place; `block` has shape (z, b, x).

        One run of b B-lines per depth: short writes into the page cache, which is what the depth-slowest layout of
        NIfTI costs, and cheaper than the page faults of a memory map.
        """
        x, y, depth = self.shape
        if block.shape[0] != depth or block.shape[2] != x or first + block.shape[1] > y:
            raise ValueError(f"a block of shape {block.shape} does not fit at B-line {first} of a volume {self.shape}")
        for z in range(depth):
            run = np.ascontiguousarray(block[z], dtype="<f4")
            offset = HEADER_BYTES + 4 * x * (y * z + first)
            done = 0
            view = run.data.cast("B")
            while done < len(view):
                done += write_at(self._handle, view[done:], offset + done)


@contextlib.contextmanager
def open_volume(
    path: Path,
    shape: tuple[int, int, int],
    /,
    *,
    voxel_size_mm: tuple[float, float, float],
    description: str = "",
) -> Iterator[VolumeFile]:
    """Yield a new float32 volume of shape (x, y, z), to be filled in any order.

    The file takes its name when the block ends without an error.
    """
    header = nifti1_header(shape, voxel_size_mm=voxel_size_mm, description=description)
    with atomic_path(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            os.write(handle, header)
            volume = VolumeFile(handle, shape)
            reserve(handle, volume.bytes)
            yield volume
        finally:
            os.close(handle)

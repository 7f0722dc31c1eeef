"""NIfTI-1 files written piece by piece: the header is known before the data, and B-lines arrive in blocks.

On disk x varies fastest and depth slowest, so a block of B-lines is one short run per depth; the file is sized at once
and the runs are put in place, in memory that the page cache owns.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.atomic import atomic_path

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


@contextlib.contextmanager
def open_volume(
    path: Path,
    shape: tuple[int, int, int],
    /,
    *,
    voxel_size_mm: tuple[float, float, float],
    description: str = "",
) -> Iterator[NDArray[Any]]:
    """Yield the float32 data of a new volume, shape (z, y, x) in C order, to be filled in any order.

    The file takes its name when the block ends without an error.
    """
    header = nifti1_header(shape, voxel_size_mm=voxel_size_mm, description=description)
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            file.write(header)
            file.truncate(HEADER_BYTES + 4 * int(np.prod(shape, dtype=np.int64)))
        data = np.memmap(temporary, "<f4", "r+", HEADER_BYTES, shape=shape[::-1])
        try:
            yield data
            data.flush()
        finally:
            del data

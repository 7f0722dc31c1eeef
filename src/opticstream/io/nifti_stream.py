"""Write NIfTI files piece by piece: the header is known before the data, and B-lines arrive in blocks.

On disk x varies fastest and depth slowest, so a block of B-lines is one short run per depth; the file gets its full
size at once and the runs are written in place.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.atomic import atomic_path, write_bytes
from opticstream.io.nifti_header import LONGEST_AXIS_NIFTI1
from opticstream.io.steps import steps_from_planes
from opticstream.system.disk import reserve, write_at


@dataclass(frozen=True, slots=True)
class Steps:
    """How values are stored as 16-bit integers: ``value = slope * integer + intercept``.

    Values are rounded to the nearest step. Those beyond the range, of 32767 steps on both sides of the intercept,
    become its end. There is no integer for NaN.
    """

    slope: float
    intercept: float

    def integers(self, values: NDArray[Any], /) -> NDArray[np.int16]:
        """Return the integers of values that are not NaN.

        Examples
        --------
        >>> Steps(0.005, 90.0).integers(np.array([90.0, 90.0051, -200.0])).tolist()
        [0, 1, -32767]
        """
        given = np.asarray(values, np.float32)
        rows = given.reshape(1, 1, -1) if given.ndim < 3 else given.transpose(1, 0, 2)
        integers = self.of_planes(rows, 0, rows.shape[1])
        return integers.reshape(given.shape)

    def of_planes(self, lines: NDArray[np.float32], first: int, count: int, /) -> NDArray[np.int16]:
        """Return the integers of `count` planes from `first` on, shape (z, b, x), of a block of B-lines (b, z, x)."""
        planes = steps_from_planes(lines, first, count, slope=self.slope, intercept=self.intercept)
        return planes.astype("<i2", copy=False)


_PLANES = 8
"""Planes of a block that are turned into integers at a time: they stay in the cache."""


def nifti_header(
    shape: tuple[int, ...],
    /,
    *,
    voxel_size_mm: tuple[float, float, float],
    description: str = "",
    steps: Steps | None = None,
) -> bytes:
    """Return the bytes before the data of a little-endian NIfTI file: 352, or 544 (NIfTI-2) for long axes.

    The numbers are float32, or 16-bit integers if `steps` are given. The affine is diagonal, with voxel (0, 0, 0) at
    the origin; units are mm. `description` takes 79 characters.

    Raises
    ------
    ValueError
        There are more than three axes, or one without samples.

    Examples
    --------
    >>> len(nifti_header((4, 5, 6), voxel_size_mm=(0.01, 0.01, 0.0025)))
    352
    >>> len(nifti_header((40000, 5, 6), voxel_size_mm=(0.01, 0.01, 0.0025)))
    544
    """
    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise ValueError(f"expected up to three axes of at least one sample each, got {shape}")
    layout = _NIFTI1 if max(shape) <= LONGEST_AXIS_NIFTI1 else _NIFTI2
    header = bytearray(layout.size)
    put = struct.pack_into
    integer, real = layout.integer, layout.real
    put("<i", header, 0, layout.size - 4)
    header[layout.magic_at : layout.magic_at + len(layout.magic)] = layout.magic
    put("<8" + integer, header, layout.dim_at, len(shape), *shape, *(1,) * (7 - len(shape)))
    put("<hh", header, layout.type_at, *((16, 32) if steps is None else (4, 16)))  # float32 or int16
    put("<8" + real, header, layout.sizes_at, 1.0, *voxel_size_mm, 1.0, 1.0, 1.0, 1.0)
    put("<" + layout.offset, header, layout.offset_at, layout.size)
    put("<2" + real, header, layout.slope_at, *((1.0, 0.0) if steps is None else (steps.slope, steps.intercept)))
    put("<" + layout.code, header, layout.units_at, 2)  # mm
    text = description.encode()[:79]
    header[layout.text_at : layout.text_at + len(text)] = text
    put("<2" + layout.form, header, layout.forms_at, 1, 1)  # qform and sform: scanner
    row_bytes = 4 * struct.calcsize(real)
    for row, size in enumerate(voxel_size_mm):
        put("<" + real, header, layout.sform_at + row_bytes * row + row_bytes // 4 * row, size)
    return bytes(header)


@dataclass(frozen=True)
class _Layout:
    """Where the fields of a header are, and of which type."""

    size: int
    magic: bytes
    magic_at: int
    dim_at: int
    type_at: int
    sizes_at: int
    offset_at: int
    slope_at: int
    units_at: int
    text_at: int
    forms_at: int
    sform_at: int
    integer: str = "h"
    real: str = "f"
    offset: str = "f"
    code: str = "B"
    form: str = "h"


_NIFTI1 = _Layout(352, b"n+1\0", 344, 40, 70, 76, 108, 112, 123, 148, 252, 280)
_NIFTI2 = _Layout(544, b"n+2\0\r\n\x1a\n", 4, 16, 12, 104, 168, 176, 500, 240, 344, 400, "q", "d", "q", "i", "i")


def map_bytes(
    data: ArrayLike,
    /,
    *,
    voxel_size_mm: tuple[float, float, float],
    description: str = "",
    steps: Steps | None = None,
) -> bytes:
    """Return the bytes of an (x, y[, z]) array as a NIfTI file, float32 or in `steps`."""
    array = np.asarray(data, dtype="<f4") if steps is None else steps.integers(np.asarray(data))
    header = nifti_header(array.shape, voxel_size_mm=voxel_size_mm, description=description, steps=steps)
    return header + array.tobytes(order="F")


def write_map(
    path: Path,
    data: ArrayLike,
    /,
    *,
    voxel_size_mm: tuple[float, float, float],
    description: str = "",
    steps: Steps | None = None,
) -> bytes:
    """Write an (x, y[, z]) array as NIfTI (float32, or in `steps`), atomically; return the bytes of the file."""
    content = map_bytes(data, voxel_size_mm=voxel_size_mm, description=description, steps=steps)
    write_bytes(path, content)
    return content


class VolumeFile:
    """The data of an unfinished volume; B-lines may be written in any order and from any thread."""

    def __init__(self, handle: int, shape: tuple[int, int, int], header_bytes: int, steps: Steps | None = None) -> None:
        self._handle = handle
        self._first = header_bytes
        self._steps = steps
        self._item_bytes = 4 if steps is None else 2
        self.shape = shape
        self.bytes = header_bytes + self._item_bytes * shape[0] * shape[1] * shape[2]

    def write(self, first: int, block: NDArray[np.float32], /) -> None:
        """Write B-lines from `first` on; `block` has shape (z, b, x).

        One run of b B-lines per depth: short writes into the page cache, which is what the depth-slowest layout of
        NIfTI costs, and cheaper than the page faults of a memory map.
        """
        x, y, depth = self.shape
        if block.shape[0] != depth or block.shape[2] != x or first + block.shape[1] > y:
            raise ValueError(f"a block of shape {block.shape} does not fit at B-line {first} of a volume {self.shape}")
        lines = block.transpose(1, 0, 2)
        integers: NDArray[Any] = block
        for z in range(depth):
            if self._steps is None:
                run = np.ascontiguousarray(block[z], "<f4")
            else:
                if z % _PLANES == 0:
                    integers = self._steps.of_planes(lines, z, _PLANES)
                run = integers[z % _PLANES]
            offset = self._first + self._item_bytes * x * (y * z + first)
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
    steps: Steps | None = None,
) -> Iterator[VolumeFile]:
    """Yield a new volume of shape (x, y, z), float32 or in `steps`, to be filled in any order.

    The file takes its name when the block ends without an error.
    """
    header = nifti_header(shape, voxel_size_mm=voxel_size_mm, description=description, steps=steps)
    with atomic_path(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            os.write(handle, header)
            volume = VolumeFile(handle, shape, len(header), steps)
            reserve(handle, volume.bytes)
            yield volume
        finally:
            os.close(handle)

"""A NIfTI stack that grows: slice N is written into its own place, and slices 1..N-1 are not touched.

The file is uncompressed, so that every slice lies at a known offset. Data goes to the disk first and the header's slice
count last: a reader never counts a slice that is not there. Slices that are missing are NaN (0 for whole numbers).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.atomic import atomic_path
from opticstream.model.errors import FileFormatError
from opticstream.system.disk import sync_handle

_HEADER_BYTES = 352
_COUNT_OFFSET = 46  # dim[3] in the NIfTI-1 header


def put_slice(
    path: Path,
    image: ArrayLike,
    slice_index: int,
    /,
    *,
    pixel_size_mm: tuple[float, float],
    thickness_mm: float,
    description: str = "",
) -> None:
    """Write one slice of a stack, making or growing the stack where needed.

    Parameters
    ----------
    path : Path
        Stack, `.nii`.
    image : array_like, shape (x, y)
        Values; float32 and uint8 are kept, anything else becomes float32. An image smaller than the stack is filled up;
        a larger one makes the whole stack be rewritten once, under a temporary name, with the larger size.
    slice_index : int
        Place in the stack, 0-based.
    pixel_size_mm, thickness_mm : float
        Voxel size.
    description : str
        At most 79 characters.

    Raises
    ------
    FileFormatError
        The existing file is not a stack of this type.
    """
    data = np.asarray(image)
    if data.ndim != 2:
        raise ValueError(f"expected a slice (x, y), got the shape {data.shape}")
    if data.dtype not in (np.float32, np.uint8):
        data = data.astype(np.float32)
    if not path.exists():
        _create(path, data, slice_index, pixel_size_mm, thickness_mm, description)
        return
    shape, count, dtype = _layout(path)
    if dtype != data.dtype:
        raise FileFormatError(f"{path}: holds {dtype}, the new slice {data.dtype}; remove it to start again")
    if data.shape[0] > shape[0] or data.shape[1] > shape[1]:
        _enlarge(path, (max(shape[0], data.shape[0]), max(shape[1], data.shape[1])))
        shape, count, dtype = _layout(path)
    plane_bytes = shape[0] * shape[1] * dtype.itemsize
    with path.open("r+b") as file:
        blank = _plane(np.empty((0, 0), dtype), shape)
        for index in range(count, slice_index):
            file.seek(_HEADER_BYTES + index * plane_bytes)
            file.write(blank)
        file.seek(_HEADER_BYTES + slice_index * plane_bytes)
        file.write(_plane(data, shape))
        file.flush()
        sync_handle(file.fileno(), path)
        if slice_index >= count:
            file.seek(_COUNT_OFFSET)
            file.write(struct.pack("<h", slice_index + 1))
            file.flush()
            sync_handle(file.fileno(), path)


def blank_slice(path: Path, slice_index: int, /) -> None:
    """Make the place of a slice a gap (NaN, 0 for whole numbers); a stack that does not reach so far stays as it is.

    Raises
    ------
    FileFormatError
        The file is not a stack of this type.
    """
    shape, count, dtype = _layout(path)
    if slice_index >= count:
        return
    with path.open("r+b") as file:
        file.seek(_HEADER_BYTES + slice_index * shape[0] * shape[1] * dtype.itemsize)
        file.write(_plane(np.empty((0, 0), dtype), shape))
        file.flush()
        sync_handle(file.fileno(), path)


def _plane(data: NDArray[Any], shape: tuple[int, int]) -> bytes:
    """Return a slice's bytes, x fastest, filled up to `shape`."""
    full = np.full(shape, np.nan if data.dtype.kind == "f" else 0, data.dtype)
    full[: data.shape[0], : data.shape[1]] = data
    return full.tobytes(order="F")


def _create(
    path: Path,
    data: NDArray[Any],
    slice_index: int,
    pixel_size_mm: tuple[float, float],
    thickness_mm: float,
    description: str,
) -> None:
    import nibabel as nib

    shape = (data.shape[0], data.shape[1])
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(data.dtype)
    header.set_data_shape((*shape, slice_index + 1))
    affine = np.diag([*pixel_size_mm, thickness_mm, 1.0])
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header.set_zooms((*pixel_size_mm, thickness_mm))
    header.set_xyzt_units("mm")
    header["descrip"] = description.encode()[:79]
    header["magic"] = b"n+1"
    header["vox_offset"] = _HEADER_BYTES
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(header.binaryblock + b"\0" * 4)
        blank = _plane(np.empty((0, 0), data.dtype), shape)
        for _ in range(slice_index):
            file.write(blank)
        file.write(_plane(data, shape))


def _layout(path: Path) -> tuple[tuple[int, int], int, np.dtype[Any]]:
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    try:
        size, rank, x, y, count, datatype = (
            struct.unpack_from("<i", head, 0)[0],
            *struct.unpack_from("<4h", head, 40),
            struct.unpack_from("<h", head, 70)[0],
        )
        dtype: np.dtype[Any] = np.dtype({16: "<f4", 2: "u1"}[datatype])
    except (struct.error, KeyError) as error:
        raise FileFormatError(f"{path}: is not a stack that can grow; remove it to start again") from error
    if size != 348 or rank != 3 or path.stat().st_size < _HEADER_BYTES + x * y * count * dtype.itemsize:
        raise FileFormatError(f"{path}: is not a stack that can grow, or is cut short; remove it to start again")
    return (x, y), count, dtype


def _enlarge(path: Path, shape: tuple[int, int]) -> None:
    """Rewrite a stack with larger slices, one slice in memory at a time."""
    old, count, dtype = _layout(path)
    with path.open("rb") as source, atomic_path(path) as temporary, temporary.open("wb") as target:
        head = bytearray(source.read(_HEADER_BYTES))
        struct.pack_into("<2h", head, 42, *shape)
        target.write(head)
        for _ in range(count):
            plane = np.frombuffer(source.read(old[0] * old[1] * dtype.itemsize), dtype).reshape(old, order="F")
            target.write(_plane(plane, shape))

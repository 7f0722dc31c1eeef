"""Read maps and volumes of tiles from NIfTI, TIFF, Zarr or NumPy, always as (x, y[, z])."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.geometry import Geometry
from opticstream.io.nifti import check_single, nifti_geometry, nifti_values
from opticstream.io.nifti_header import NiftiHeader, check_real, read_nifti_header
from opticstream.io.reading import check_regular_file, reading_errors
from opticstream.io.steps import values_from_steps
from opticstream.io.tiff import read_tiff
from opticstream.io.tiff_resolution import tiff_geometry
from opticstream.io.zarr import open_zarr_image, readable_zarr
from opticstream.model.errors import FileFormatError, MissingInputError
from opticstream.system.disk import read_at

SUFFIXES = (".nii", ".nii.gz", ".tif", ".tiff", ".zarr", ".npy")
"""Suffixes of the formats that `read_image` reads."""


_KINDS = dict(zip(SUFFIXES, ("nifti", "nifti", "tiff", "tiff", "zarr", "numpy"), strict=True))


def kind_of_image(path: Path, /) -> str:
    """Return ``nifti``, ``tiff``, ``zarr`` or ``numpy`` by the name of a file.

    Raises
    ------
    FileFormatError
        The suffix is not one of `SUFFIXES`.
    """
    name = path.name.lower()
    for suffix, kind in _KINDS.items():
        if name.endswith(suffix):
            return kind
    raise FileFormatError(f"{path}: expected one of {', '.join(SUFFIXES)}")


def read_image(path: Path, /, *, pages_are_depth: bool = False) -> NDArray[Any]:
    """Return an image or a volume, shape (x, y) or (x, y, z); axes of length 1 at the end are dropped.

    TIFF and Zarr hold (rows, columns) or (z, rows, columns), i.e. y, x: they are transposed. NIfTI's slope and
    intercept are applied. A single time point or channel is dropped. Pages of a TIFF file of unknown kind are planes of
    a volume if `pages_are_depth`, and are refused otherwise.

    Raises
    ------
    MissingInputError, FileFormatError
        The file is absent, damaged, has other axes or more than one time point or channel, or does not contain real
        numbers (colours, complex numbers, text, records).
    """
    kind = kind_of_image(path)
    _check_kind(path, kind)
    if kind == "nifti":
        header = read_nifti_header(path)
        check_single(header.shape, 3, path)
        data = nifti_values(path, header)
    elif kind == "numpy":
        data = _read_numpy(path)
        check_single(data.shape, 3, path)
    elif kind == "tiff":
        data = read_tiff(path, pages_are_depth=pages_are_depth).T
        check_real(data.dtype, name=str(path))
    else:
        image = open_zarr_image(path)
        with readable_zarr(path):
            data = image.array.read().result().T
    while data.ndim > 2 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim not in (2, 3):
        raise FileFormatError(f"{path}: expected 2 or 3 axes, got shape {data.shape}")
    if data.size == 0:
        raise FileFormatError(f"{path}: has no values, its shape is {data.shape}")
    return np.asarray(data)


def _check_kind(path: Path, kind: str) -> None:
    if kind != "zarr":
        check_regular_file(path)
    elif not path.is_dir():
        if path.exists():
            raise FileFormatError(f"{path}: is a file, expected the folder of a Zarr array")
        raise MissingInputError(f"{path}: no such file")


def image_geometry(path: Path, /) -> Geometry | None:
    """Return the geometry of an image from its header or metadata; None if they have no voxel size.

    Raises
    ------
    MissingInputError, FileFormatError
        As `read_image`; or the size is zero, not finite, or in an unknown unit.
    """
    kind = kind_of_image(path)
    _check_kind(path, kind)
    if kind == "nifti":
        return nifti_geometry(path)
    if kind == "zarr":
        return open_zarr_image(path).geometry
    return tiff_geometry(path) if kind == "tiff" else None


def _read_numpy(path: Path) -> NDArray[Any]:
    """Return the array of a `.npy` file, in the machine's byte order."""
    with reading_errors(path, "NumPy array"):
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise FileFormatError(f"{path}: is an archive of arrays (.npz), expected one array")
        check_real(array.dtype, name=str(path))
        if array.ndim == 3 and array.dtype == np.uint8 and array.shape[-1] in (3, 4):
            raise FileFormatError(f"{path}: is a colour picture of shape {array.shape}; expected grey values")
        return np.array(array, array.dtype.newbyteorder("="))


class TileVolume:
    """A tile's volume of which blocks are read on demand, in the order (z, y, x).

    Uncompressed NIfTI of float32, or of 16-bit integers with a slope, is read at offsets into the caller's buffer:
    nothing of the file stays mapped, so that the process uses only the memory that the caller planned. Other formats
    are read through their libraries.
    """

    def __init__(self, path: Path, /) -> None:
        self.path = path
        self._whole: NDArray[Any] | None = None
        self._zarr: Any = None
        self._header: NiftiHeader | None = None
        self._offset = 0
        self._slope_and_intercept: tuple[np.float32, np.float32] | None = None
        kind = kind_of_image(path)
        _check_kind(path, kind)
        if kind == "nifti":
            header = read_nifti_header(path)
            check_single(header.shape, 3, path)
            if len(header.shape) < 3:
                raise FileFormatError(f"{path}: expected a volume, got shape {header.shape}")
            self._header = header
            x, y, z = header.shape[:3]
            self.shape = (z, y, x)
            plain = not path.name.lower().endswith(".gz")
            if plain and header.dtype == np.dtype("<f4") and not header.scaled:
                self._offset = header.offset
            elif plain and header.dtype == np.dtype("<i2") and header.scaled:
                self._offset = header.offset
                self._slope_and_intercept = np.float32(header.slope), np.float32(header.intercept)
            else:
                self._whole = nifti_values(path, header).reshape((x, y, z), order="F").T
            return
        if kind == "zarr":
            self._zarr = open_zarr_image(path).array
            shape = tuple(int(n) for n in self._zarr.shape)
        else:
            self._whole = read_image(path, pages_are_depth=True).T
            shape = self._whole.shape
        if len(shape) != 3:
            raise FileFormatError(f"{path}: expected a volume, got shape {shape[::-1]}")
        self.shape = (shape[0], shape[1], shape[2])

    @cached_property
    def geometry(self) -> Geometry | None:
        """Geometry of the volume, None if the file has no voxel size; raises like `image_geometry`."""
        return self._header.geometry if self._header is not None else image_geometry(self.path)

    @property
    def voxel_size_mm(self) -> tuple[float, float, float] | None:
        """Size of a voxel along x, y and z, None if the file has none; raises like `image_geometry`."""
        return self.geometry.voxel_size_mm if self.geometry is not None and self.geometry.sized else None

    def read_into(self, out: NDArray[np.float32], z0: int, y0: int, /) -> None:
        """Fill `out` (z, y, x), whole rows, with the samples from (z0, y0) on.

        Parameters
        ----------
        out : ndarray, shape (z, y, x of the tile), float32
            Each plane contiguous; may be a view with gaps between planes.
        z0, y0 : int
            First plane and row.
        """
        planes, rows, width = out.shape
        if self._whole is not None:
            out[...] = self._whole[z0 : z0 + planes, y0 : y0 + rows]
            return
        if self._zarr is not None:
            with readable_zarr(self.path):
                out[...] = self._zarr[z0 : z0 + planes, y0 : y0 + rows].read().result()
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            if self._slope_and_intercept is not None:
                self._read_integers_into(handle, out, z0, y0)
                return
            plane_bytes = 4 * self.shape[1] * self.shape[2]
            run = 4 * rows * width
            start = self._offset + 4 * (z0 * self.shape[1] + y0) * width
            if run == plane_bytes and out.flags.c_contiguous:
                _read_fully(handle, out.data.cast("B"), start, self.path)
                return
            for z in range(planes):
                _read_fully(handle, out[z].data.cast("B"), start + z * plane_bytes, self.path)
        finally:
            os.close(handle)

    def _read_integers_into(self, handle: int, out: NDArray[np.float32], z0: int, y0: int) -> None:
        assert self._slope_and_intercept is not None
        slope, intercept = self._slope_and_intercept
        planes, rows, width = out.shape
        integers = np.empty((rows, width), "<i2")
        for z in range(planes):
            start = self._offset + 2 * ((z0 + z) * self.shape[1] + y0) * width
            _read_fully(handle, integers.data.cast("B"), start, self.path)
            values_from_steps(integers, slope=slope, intercept=intercept, out=out[z])


def _read_fully(handle: int, view: memoryview, offset: int, path: Path) -> None:
    done = 0
    while done < len(view):
        count = read_at(handle, view[done : done + (1 << 30)], offset + done)
        if count == 0:
            raise FileFormatError(f"{path}: ends at byte {offset + done}, expected more; it is unfinished or was cut")
        done += count

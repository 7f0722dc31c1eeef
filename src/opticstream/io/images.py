"""Maps and volumes of tiles from whatever they come in: NIfTI, TIFF, Zarr or NumPy, always as (x, y[, z])."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.nifti import read_nifti, voxel_size_mm
from opticstream.io.zarr_files import file_store
from opticstream.model.errors import FileFormatError, MissingInputError
from opticstream.system.disk import read_at

SUFFIXES = (".nii", ".nii.gz", ".tif", ".tiff", ".zarr", ".npy")
"""What `read_image` understands."""


_KINDS = dict(zip(SUFFIXES, ("nifti", "nifti", "tiff", "tiff", "zarr", "numpy"), strict=True))


def kind_of_image(path: Path, /) -> str:
    """Return ``nifti``, ``tiff``, ``zarr`` or ``numpy`` by the name of a file.

    Raises
    ------
    FileFormatError
        The suffix is none of `SUFFIXES`.
    """
    name = path.name.lower()
    for suffix, kind in _KINDS.items():
        if name.endswith(suffix):
            return kind
    raise FileFormatError(f"{path}: expected one of {', '.join(SUFFIXES)}")


def read_image(path: Path, /) -> NDArray[Any]:
    """Return an image or a volume, shape (x, y) or (x, y, z); axes of length 1 at the end are dropped.

    TIFF and Zarr hold (rows, columns) or (z, rows, columns), i.e. y, x: they are turned.

    Raises
    ------
    MissingInputError, FileFormatError
        The file is absent, damaged, or has other axes.
    """
    kind = kind_of_image(path)
    if not path.exists():
        raise MissingInputError(f"{path}: no such file")
    if kind == "nifti":
        data = read_nifti(path)
        while data.ndim > 2 and data.shape[-1] == 1:
            data = data[..., 0]
    elif kind == "numpy":
        try:
            data = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise FileFormatError(f"{path}: cannot be read as NumPy array: {error}") from error
    elif kind == "tiff":
        data = _read_tiff(path).T
    else:
        with _readable_zarr(path):
            data = _open_zarr(path).read().result().T
    if data.ndim not in (2, 3):
        raise FileFormatError(f"{path}: expected 2 or 3 axes, got shape {data.shape}")
    return np.asarray(data)


def _read_tiff(path: Path) -> NDArray[Any]:
    import tifffile

    try:
        data = tifffile.imread(path)
    except Exception as error:
        raise FileFormatError(f"{path}: cannot be read as TIFF: {error}") from error
    if data.ndim == 3 and data.shape[-1] in (3, 4):
        raise FileFormatError(f"{path}: is a colour picture of shape {data.shape}; expected grey values")
    return np.asarray(data)


def _open_zarr(path: Path) -> Any:
    """Open a Zarr array, or level 0 of an OME-Zarr image."""
    import tensorstore as ts

    folder = path
    for metadata in (path / "zarr.json", path / ".zattrs"):
        if not metadata.exists() or (path / ".zarray").exists():
            continue
        content = json.loads(metadata.read_text())
        if metadata.name == "zarr.json" and content.get("node_type") == "array":
            break
        attributes = content.get("attributes", content)
        multiscales = (attributes.get("ome") or attributes).get("multiscales")
        if multiscales:
            folder = path / multiscales[0]["datasets"][0]["path"]
        break
    driver = "zarr3" if (folder / "zarr.json").exists() else "zarr"
    return ts.open({"driver": driver, "kvstore": file_store(folder)}, read=True).result()


@contextlib.contextmanager
def _readable_zarr(path: Path) -> Iterator[None]:
    """Raise what is wrong with a Zarr array as an error of ours that names it."""
    try:
        yield
    except ValueError as error:
        raise FileFormatError(f"{path}: cannot be read as Zarr: {error}") from error


class TileVolume:
    """A tile's volume of which blocks are read on demand, in the order (z, y, x).

    Uncompressed float32 NIfTI is read by plain positioned reads into the caller's buffer: nothing of the file stays
    mapped, so that the memory of the process is what the caller plans for. Other formats are read through their
    libraries.
    """

    def __init__(self, path: Path, /) -> None:
        self.path = path
        self._whole: NDArray[Any] | None = None
        self._zarr: Any = None
        self._offset = 0
        kind = kind_of_image(path)
        if not path.exists():
            raise MissingInputError(f"{path}: no such file")
        self.voxel_size_mm: tuple[float, ...] | None = None
        if kind == "nifti":
            plain = _plain_nifti_header(path)
            if plain is not None:
                self._offset, self.shape, self.voxel_size_mm = plain
                expected = self._offset + 4 * int(np.prod(self.shape))
                size = path.stat().st_size
                if size < expected:
                    raise FileFormatError(f"{path}: holds {size} bytes, expected {expected} for {self.shape[::-1]}")
                return
            self.voxel_size_mm = voxel_size_mm(path)
        if kind == "zarr":
            with _readable_zarr(path):
                self._zarr = _open_zarr(path)
            shape = tuple(int(n) for n in self._zarr.shape)
        else:
            self._whole = read_image(path).T
            shape = self._whole.shape
        if len(shape) != 3:
            raise FileFormatError(f"{path}: expected a volume, got shape {shape[::-1]}")
        self.shape = (shape[0], shape[1], shape[2])

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
            with _readable_zarr(self.path):
                out[...] = self._zarr[z0 : z0 + planes, y0 : y0 + rows].read().result()
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
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


def _read_fully(handle: int, view: memoryview, offset: int, path: Path) -> None:
    done = 0
    while done < len(view):
        count = read_at(handle, view[done : done + (1 << 30)], offset + done)
        if count == 0:
            raise FileFormatError(f"{path}: ends at byte {offset + done}, more was expected")
        done += count


def _plain_nifti_header(path: Path) -> tuple[int, tuple[int, int, int], tuple[float, ...]] | None:
    """Return (offset, (z, y, x), voxel size in mm) of an unscaled little-endian float32 NIfTI-1, else None."""
    if path.name.endswith(".gz"):
        return None
    with path.open("rb") as file:
        header = file.read(352)
    if len(header) < 352 or struct.unpack_from("<i", header)[0] != 348 or header[344:348] != b"n+1\0":
        return None
    dim = struct.unpack_from("<8h", header, 40)
    datatype = struct.unpack_from("<h", header, 70)[0]
    pixdim = struct.unpack_from("<8f", header, 76)
    offset = int(struct.unpack_from("<f", header, 108)[0])
    slope, intercept = struct.unpack_from("<2f", header, 112)
    if (
        datatype != 16
        or slope not in (0.0, 1.0)
        or intercept != 0.0
        or dim[0] < 3
        or any(d > 1 for d in dim[4 : dim[0] + 1])
    ):
        return None
    return offset, (dim[3], dim[2], dim[1]), tuple(float(p) for p in pixdim[1:4])

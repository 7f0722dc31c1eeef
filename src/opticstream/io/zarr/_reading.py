"""Volumes in OME-Zarr stores: blocks, voxel size, whole levels and attributes; callers get (x, y, z)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.canvas import BlockReader
from opticstream.io.zarr._files import file_store
from opticstream.io.zarr._images import open_zarr_image, readable_zarr
from opticstream.model.errors import FileFormatError, MissingInputError


def volume_reader(path: Path, planes: slice = slice(None), /) -> tuple[tuple[int, int, int], BlockReader]:
    """Return the shape (x, y, z) of an OME-Zarr volume's finest level and a reader of its blocks.

    Parameters
    ----------
    path : Path
        Volume of real numbers.
    planes : slice
        Depth samples, of which the shape and the blocks are; the others are not read.

    Raises
    ------
    MissingInputError, FileFormatError
        It is not a volume of real numbers, or has more than one time point or channel.
    """
    array = open_zarr_image(path).array
    if array.rank != 3:
        raise FileFormatError(f"{path}: expected the axes z, y, x, got the shape {tuple(array.shape)}")
    depth, y, x = (int(n) for n in array.shape)
    zs = slice(*planes.indices(depth)[:2])
    z = max(0, zs.stop - zs.start)

    def read(xs: slice, ys: slice) -> NDArray[Any]:
        with readable_zarr(path):
            block = array[zs, ys, xs].read().result()
        return np.asarray(block).transpose(2, 1, 0)

    return (x, y, z), read


def shrunk_planes(path: Path, planes: slice, /, *, factor: int = 1) -> NDArray[np.float32]:
    """Return some planes of an OME-Zarr volume's finest level as means of squares of pixels, shape (x, y, planes).

    Parameters
    ----------
    path : Path
        Volume of real numbers.
    planes : slice
        Depth samples.
    factor : int
        Side of the squares in pixels; what is left over at the far ends is dropped. A mean is over the pixels that have
        a value, NaN where none has. The volume is read block by block.

    Raises
    ------
    MissingInputError, FileFormatError
        It is not a volume of real numbers, or has more than one time point or channel.
    """
    array = open_zarr_image(path).array
    if array.rank != 3:
        raise FileFormatError(f"{path}: expected the axes z, y, x, got the shape {tuple(array.shape)}")
    size = int(array.shape[2]) // factor, int(array.shape[1]) // factor
    first, last, _ = planes.indices(int(array.shape[0]))
    out = np.full((*size, last - first), np.nan, np.float32)
    side = max(1, 512 // factor)
    for x in range(0, size[0], side):
        for y in range(0, size[1], side):
            width, height = min(side, size[0] - x), min(side, size[1] - y)
            where = slice(y * factor, (y + height) * factor), slice(x * factor, (x + width) * factor)
            with readable_zarr(path):
                block = np.asarray(array[first:last, where[0], where[1]].read().result(), np.float32)
            squares = block.reshape(last - first, height, factor, width, factor)
            known = np.isfinite(squares)
            count = known.sum((2, 4))
            total = np.where(known, squares, 0).sum((2, 4))
            mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
            out[x : x + width, y : y + height] = mean.transpose(2, 1, 0)
    return out


def volume_voxel_um(path: Path, /) -> tuple[float, float, float]:
    """Return the voxel size (x, y, z) of an OME-Zarr volume in micrometres, whatever unit its axes have.

    Raises
    ------
    MissingInputError, FileFormatError
        There is no volume, or it has no voxel size.
    """
    geometry = open_zarr_image(path).geometry
    if geometry is None or geometry.axes < 3:
        raise FileFormatError(f"{path}: has no voxel size along x, y and z; expected an OME-Zarr with a scale")
    x, y, z = (float(f"{1000 * size:.6g}") for size in geometry.voxel_size_mm)
    return x, y, z


def read_volume(path: Path, /, *, level: int = 0) -> NDArray[np.float32]:
    """Return one level of a store, shape (x, y, z).

    Raises
    ------
    MissingInputError, FileFormatError
        There is no store, or it does not match its name.
    """
    import tensorstore as ts

    if not path.exists():
        raise MissingInputError(f"{path}: no such store")
    driver = "zarr3" if (path / "zarr.json").exists() else "zarr"
    try:
        array = ts.open({"driver": driver, "kvstore": file_store(path / str(level))}).result()
        return np.asarray(array.read().result()).transpose(2, 1, 0)
    except ValueError as error:
        raise FileFormatError(f"{path}: level {level} cannot be read: {error}") from error


def read_attributes(path: Path, /) -> dict[str, Any]:
    """Return the attributes of a store: ``ome`` (or ``multiscales``) and ``opticstream``."""
    group = path / "zarr.json"
    try:
        if group.exists():
            return dict(json.loads(group.read_bytes())["attributes"])
        return dict(json.loads((path / ".zattrs").read_bytes()))
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: is not an OME-Zarr store") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path}: its metadata cannot be read: {error}") from error

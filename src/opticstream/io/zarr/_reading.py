"""Volumes in OME-Zarr stores: blocks, voxel size, whole levels and attributes; callers get (x, y, z)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.zarr._files import file_store
from opticstream.io.zarr._images import open_zarr_image, readable_zarr
from opticstream.model.errors import FileFormatError, MissingInputError

BlockReader = Callable[[slice, slice], NDArray[Any]]
"""Returns the block (x, y, depth[, c]) of a slice for ranges of x and y."""


def volume_reader(path: Path, /) -> tuple[tuple[int, int, int], BlockReader]:
    """Return the shape (x, y, z) of an OME-Zarr volume's finest level and a reader of its blocks.

    Raises
    ------
    MissingInputError, FileFormatError
        It is not a volume of real numbers, or has more than one time point or channel.
    """
    array = open_zarr_image(path).array
    if array.rank != 3:
        raise FileFormatError(f"{path}: expected the axes z, y, x, got the shape {tuple(array.shape)}")
    z, y, x = (int(n) for n in array.shape)

    def read(xs: slice, ys: slice) -> NDArray[Any]:
        with readable_zarr(path):
            block = array[:, ys, xs].read().result()
        return np.asarray(block).transpose(2, 1, 0)

    return (x, y, z), read


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

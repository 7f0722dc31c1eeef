"""Blocks and voxel size of an OME-Zarr volume (0.4 or 0.5), whoever wrote it; callers get (x, y, z)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.reading import reading_errors
from opticstream.io.zarr_files import file_store
from opticstream.model.errors import FileFormatError

BlockReader = Callable[[slice, slice], NDArray[Any]]
"""Returns the block (x, y, depth[, c]) of a slice for ranges of x and y."""


def volume_reader(path: Path, /) -> tuple[tuple[int, int, int], BlockReader]:
    """Return the shape (x, y, z) of an OME-Zarr volume's finest level and a reader of its blocks.

    Raises
    ------
    FileFormatError
        It is no OME-Zarr volume (0.4 or 0.5) with the axes z, y, x.
    """
    import tensorstore as ts

    finest, driver = _finest_level(path)
    with reading_errors(path, "OME-Zarr"):
        spec = {"driver": driver, "kvstore": file_store(path / finest["path"])}
        array = ts.open(spec, open=True, read=True).result()
    if array.rank != 3:
        raise FileFormatError(f"{path}: expected the axes z, y, x, got the shape {tuple(array.shape)}")
    z, y, x = (int(n) for n in array.shape)

    def read(xs: slice, ys: slice) -> NDArray[Any]:
        with reading_errors(path, "OME-Zarr"):
            block = array[:, ys, xs].read().result()
        return np.asarray(block).transpose(2, 1, 0)

    return (x, y, z), read


def _finest_level(path: Path) -> tuple[dict[str, Any], str]:
    """Return what an OME-Zarr says of its finest level and the driver that reads it."""
    try:
        if (path / "zarr.json").exists():
            attributes, driver = json.loads((path / "zarr.json").read_bytes())["attributes"]["ome"], "zarr3"
        else:
            attributes, driver = json.loads((path / ".zattrs").read_bytes()), "zarr"
        level: dict[str, Any] = attributes["multiscales"][0]["datasets"][0]
        return level, driver
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{path}: is no OME-Zarr image: {error!r}") from error


def volume_voxel_um(path: Path, /) -> tuple[float, float, float]:
    """Return the voxel size (x, y, z) of an OME-Zarr volume in micrometres."""
    finest, _ = _finest_level(path)
    with reading_errors(path, "OME-Zarr"):
        scale = next((t["scale"] for t in finest["coordinateTransformations"] if t["type"] == "scale"), None)
        if scale is None or len(scale) < 3:
            raise FileFormatError(f"{path}: says no voxel size")
        z, y, x = (float(f"{s:.6g}") for s in scale[-3:])
    return x, y, z

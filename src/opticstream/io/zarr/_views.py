"""Planes through the stacks of a sample, at the level that suits a preview."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opticstream.io.zarr._files import file_store
from opticstream.io.zarr._images import image_attributes, opened_array, readable_zarr

_LARGEST_PX = 480


@dataclass(frozen=True)
class SampleViews:
    """Planes through a stack: (x, y), (x, z) and (y, z), each with 3 channels for vectors, and the voxel size."""

    enface: NDArray[Any]
    along_x: NDArray[Any]
    along_y: NDArray[Any]
    voxel_um: tuple[float, float, float]
    slice_id: int


@dataclass(frozen=True)
class Section:
    """A plane along z through a stack, thinned to what a picture needs.

    Attributes
    ----------
    plane : ndarray, shape (x or y, z)
        Values; NaN where there are none.
    size_um : (float, float)
        Size of the whole plane along its two axes.
    """

    plane: NDArray[Any]
    size_um: tuple[float, float]


def section_through(
    path: Path, axis: Literal["x", "y"], at: tuple[float, float], /, *, longest_px: int = 900
) -> Section:
    """Return the plane through a place in a stack of scalars, along `axis` and z.

    Parameters
    ----------
    path : Path
        The stack.
    axis : {"x", "y"}
        Axis of the plane beside z.
    at : (float, float)
        The place, as shares of the stack's width along x and y.
    longest_px : int
        Largest width of the picture, where the stack has a level that small.

    Raises
    ------
    FileFormatError
        There is no stack at `path`.
    """
    with readable_zarr(path):
        levels = _levels(path)
        array, scale = next((level for level in levels if max(level[0].shape[-2:]) <= longest_px), levels[-1])
        step = max(1, -(-array.shape[-3] // (2 * longest_px)))
        x, y = (min(int(share * n), n - 1) for share, n in zip(at, array.shape[:-3:-1], strict=True))
        where = (y, slice(None)) if axis == "x" else (slice(None), x)
        plane = np.asarray(array[(slice(step // 2, None, step), *where)].read().result())
    along = array.shape[-1] * scale[2] if axis == "x" else array.shape[-2] * scale[1]
    return Section(plane.T, (along, array.shape[-3] * scale[0]))


def thumbnail_planes(path: Path, count: int, /) -> NDArray[np.float32]:
    """Return some planes of a stack of scalars, evenly spread, at its coarsest level, shape (x, y, planes).

    Raises
    ------
    FileFormatError
        There is no stack at `path`.
    """
    with readable_zarr(path):
        array, _ = _levels(path)[-1]
        step = max(1, array.shape[-3] // count)
        return np.asarray(array[step // 2 :: step].read().result(), np.float32).T


def mean_of_planes(path: Path, planes: slice, /, *, longest_px: int = 384) -> tuple[NDArray[np.float32], int]:
    """Return the mean of some planes of a volume at a level that suits a small picture, and its pixel in px.

    Parameters
    ----------
    path : Path
        OME-Zarr volume whose levels are powers of two along x and y.
    planes : slice
        Planes of the finest level.
    longest_px : int
        Largest side of the picture, where the volume has a level that small.

    Raises
    ------
    FileFormatError
        It is no such volume.
    """
    with readable_zarr(path):
        levels = _levels(path)
        finest = levels[0][1]
        array, scale = next((level for level in levels if max(level[0].shape[-2:]) <= longest_px), levels[-1])
        per_plane = scale[0] / finest[0]
        first, last, _ = planes.indices(int(levels[0][0].shape[-3]))
        low = min(int(first // per_plane), array.shape[-3] - 1)
        block = np.asarray(array[low : max(low + 1, int(last // per_plane))].read().result(), np.float32)
    known = np.isfinite(block)
    mean = np.where(known, block, 0).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), mean, np.nan).astype(np.float32).T, round(scale[2] / finest[2])


def _levels(path: Path) -> list[tuple[Any, tuple[float, float, float]]]:
    """Return the arrays of a multiscale image of scalars, the finest first, and their voxel sizes along z, y, x."""
    attributes = image_attributes(path)
    block = (attributes.get("ome") or attributes)["multiscales"][0]
    found = []
    for dataset in block["datasets"]:
        scale = next(t["scale"] for t in dataset["coordinateTransformations"] if t["type"] == "scale")
        z, y, x = (float(s) for s in scale[-3:])
        found.append((opened_array(path / dataset["path"]), (z, y, x)))
    return found


def sample_views(path: Path, present: Sequence[int], /) -> SampleViews:
    """Return the middle planes of a stack of maps, read from the level that suits a preview."""
    import tensorstore as ts

    multiscale = json.loads((path / "zarr.json").read_bytes())["attributes"]["ome"]["multiscales"][0]
    for dataset in multiscale["datasets"]:
        spec = {"driver": "zarr3", "kvstore": file_store(path / dataset["path"])}
        array = ts.open(spec, open=True, read=True).result()
        if max(array.shape[-2:]) <= _LARGEST_PX:
            break
    scale = dataset["coordinateTransformations"][0]["scale"][-3:]
    held = [n for n in present if n <= array.shape[-3]] or [1]
    slice_id = held[len(held) // 2]
    y, x = array.shape[-2] // 2, array.shape[-1] // 2
    enface = np.asarray(array[..., slice_id - 1, :, :].read().result())
    along_x = np.asarray(array[..., :, y, :].read().result())
    along_y = np.asarray(array[..., :, :, x].read().result())

    def image(plane: NDArray[Any]) -> NDArray[Any]:
        """Return (a, b[, c]) from ([c,] b, a)."""
        return plane.transpose(2, 1, 0) if plane.ndim == 3 else plane.T

    return SampleViews(
        image(enface),
        image(along_x),
        image(along_y),
        (float(scale[2]), float(scale[1]), float(scale[0])),
        slice_id,
    )

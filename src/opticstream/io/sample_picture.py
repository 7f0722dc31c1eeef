"""A preview of the whole sample: three orthogonal views through its stacks, in true proportions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io import orientation_pictures as pictures
from opticstream.io.zarr_files import file_store

_LARGEST_PX = 480
_THINNEST_PX = 6


@dataclass(frozen=True)
class SampleViews:
    """Planes through a stack: (x, y), (x, z) and (y, z), each with 3 channels for vectors, and the voxel size."""

    enface: NDArray[Any]
    along_x: NDArray[Any]
    along_y: NDArray[Any]
    voxel_um: tuple[float, float, float]
    slice_id: int


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


def write_sample_picture(path: Path, views: Mapping[str, SampleViews], /) -> Path:
    """Write a preview: one row of three views for each stack, vectors as colours, others in grey."""
    rows = []
    for name, view in views.items():
        panels = [_panel(view.enface, 1.0, view)]
        for plane, size in ((view.along_x, view.voxel_um[0]), (view.along_y, view.voxel_um[1])):
            panels.append(_panel(plane, max(view.voxel_um[2] / size, _THINNEST_PX), view))
        row = pictures.side_by_side(
            panels[0],
            pictures.side_by_side(panels[1], panels[2], titles=("x-z", "y-z")),
            titles=(f"{name}, slice {view.slice_id}", ""),
        )
        rows.append(row)
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=64) for row in rows]
    return pictures.write_picture(path, np.concatenate(rows))


def _panel(plane: NDArray[Any], stretch: float, view: SampleViews) -> pictures.Picture:
    """Return a plane as picture; its second axis is stretched by whole repeats to its true proportion."""
    if plane.ndim == 3:
        colours = pictures.axis_colours(plane)
    else:
        good = view.enface[np.isfinite(view.enface)]
        low, high = np.percentile(good, [1, 99]) if good.size else (0.0, 1.0)
        grey = np.nan_to_num(np.clip((plane - low) / max(float(high - low), 1e-30), 0, 1))
        colours = np.repeat(grey[..., None], 3, axis=-1)
    picture = pictures.picture_from_colours(colours)
    return np.repeat(picture, max(1, round(stretch)), axis=0)

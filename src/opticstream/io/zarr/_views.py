"""Planes through the stacks of a sample, at the level that suits a preview."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.zarr._files import file_store

_LARGEST_PX = 480


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

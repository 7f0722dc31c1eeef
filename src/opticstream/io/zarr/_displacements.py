"""A displacement field as a multiscale group of NGFF 0.6, for transformations of the type `displacements`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.io.atomic import atomic_folder, write_text
from opticstream.io.zarr._files import file_store

_CHUNK = 32


@dataclass(frozen=True)
class DisplacementField:
    """What is added to points of a space, on a regular grid.

    Attributes
    ----------
    vectors_um : ndarray of float32, shape (3, z, y, x)
        Displacement along z, y, x.
    spacing_um, origin_um : (float, float, float)
        Distance of the points of the grid, and place of its first one, along z, y, x.
    """

    vectors_um: NDArray[np.float32]
    spacing_um: tuple[float, float, float]
    origin_um: tuple[float, float, float]


def write_displacements(path: Path, field: DisplacementField, /, *, space: str) -> Path:
    """Write a field and return its path.

    Parameters
    ----------
    path : Path
        Folder, `....ome.zarr`; it appears only when it is complete.
    field : DisplacementField
        The field.
    space : str
        Name of the coordinate system that its points lie in.
    """
    import tensorstore as ts

    vectors = np.ascontiguousarray(field.vectors_um, np.float32)
    metadata = {
        "shape": list(vectors.shape),
        "data_type": "float32",
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [3, *(min(_CHUNK, n) for n in vectors.shape[1:])]},
        },
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 3}},
        ],
        "dimension_names": ["c", "z", "y", "x"],
    }
    steps = [
        {"type": "scale", "scale": [1.0, *field.spacing_um]},
        {"type": "translation", "translation": [0.0, *field.origin_um]},
    ]
    axes = [{"name": "c", "type": "displacement", "discrete": True}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    placed = {
        "type": "sequence",
        "input": {"path": "0"},
        "output": {"name": space},
        "transformations": steps,
    }
    multiscale = {
        "name": path.name.removesuffix(".ome.zarr"),
        "coordinateSystems": [{"name": space, "axes": axes}],
        "datasets": [{"path": "0", "coordinateTransformations": [placed]}],
    }
    attributes = {"ome": {"version": "0.6", "multiscales": [multiscale]}}
    content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    with atomic_folder(path) as part:
        spec = {"driver": "zarr3", "kvstore": file_store(part / "0"), "metadata": metadata}
        ts.open(spec, create=True).result().write(vectors).result()
        write_text(part / "zarr.json", json.dumps(content, indent=1) + "\n")
    return path

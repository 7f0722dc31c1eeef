"""Scenes of NGFF: the volumes of the slices as they were imaged, where they lie in the sample."""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform
from opticstream.compute.sample import SliceBend
from opticstream.io.zarr import (
    FIELDS,
    SAMPLE_SPACE,
    DisplacementField,
    PlacedVolume,
    SliceStore,
    planes_of_slice,
    volume_reader,
    write_displacements,
    write_scene,
)
from opticstream.stages.sample._ledger import Ledger
from opticstream.stages.sample._other_space import scene_transforms
from opticstream.stages.sample._placed_slice import Place, place_from_facts
from opticstream.stages.sample._sample_input import SampleInput

_log = logging.getLogger(__name__)

_FINER = 3
"""Points of a displacement field for each node of a bend: between them, scenes are linear."""


def write_scenes(new: SampleInput, ledger: Ledger) -> None:
    """Write a scene for each stack of volumes: the volumes of the slices as they were imaged, where they lie.

    A file system that makes no links gets none, and a volume of NGFF 0.4 stays out: scenes are Zarr v3.
    """
    used: set[Path] = set()
    for name in ledger.stacks():
        stack = new.folder / f"{name}.ome.zarr"
        if not (stack / "zarr.json").exists() or planes_of_slice(stack) == 1:
            continue
        store, placed = SliceStore.opened(stack), {}
        voxel, slab_um = store.voxel_um, store.planes * store.voxel_um[2]
        try:
            more, fields = scene_transforms(new.folder)
            for n in ledger.present():
                entry = ledger.slices[n]
                source = new.folder / entry.get("sources", {}).get(name, "nowhere")
                if name not in entry.get("stacks", {}) or not (source / "zarr.json").exists():
                    continue
                place = place_from_facts(entry["pose"]) if "pose" in entry else Place(PlanarTransform.identity())
                volume = PlacedVolume(source, _to_sample_um(place.mapping, voxel, (n - 1) * slab_um))
                group = f"slice_{n:03d}"
                if place.bend is not None:
                    depth_um = volume_reader(source)[0][2] * voxel[2]
                    field = _unbending(place.bend, voxel, (n - 1) * slab_um, depth_um)
                    fields[group] = _written(new.folder / "scenes" / "bends", f"{name}_{group}", field)
                    used.add(fields[group])
                    volume = replace(volume, space=f"{group} bent")
                    more.append(_straightened(volume.space, group))
                placed[group] = volume
            if placed:
                write_scene(scene_path(new, name), placed, more=more, fields=fields, name=name)
        except OSError as error:
            _log.warning("the scene of %s was not written: %s", name, error)
    for old in (new.folder / "scenes" / "bends").glob("*.ome.zarr"):
        if old not in used:
            shutil.rmtree(old)


def _straightened(space: str, group: str) -> dict[str, Any]:
    """Return the transformation by which a bent slice becomes straight, as NGFF has it."""
    ends = {"input": {"name": space}, "output": {"name": SAMPLE_SPACE}, "name": f"{space} to {SAMPLE_SPACE}"}
    return {"type": "displacements", **ends, "path": f"{FIELDS}/{group}", "interpolation": "linear"}


def _unbending(bend: SliceBend, voxel: tuple[float, float, float], top_um: float, depth_um: float) -> DisplacementField:
    """Return what leads from where a bent slice has the tissue to its place in the sample; the same at all depths."""
    step = bend.spacing_px / _FINER
    axes = [
        low + step * np.arange(_FINER * (n - 1) + 1)
        for low, n in zip(bend.first_px, bend.nodes_px.shape[1:], strict=True)
    ]
    bent = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    x, y = ((bend.straightened(bent) - bent) * voxel[:2]).T.reshape(2, len(axes[0]), len(axes[1]))
    vectors = np.stack([np.zeros_like(x.T), y.T, x.T]).astype(np.float32)
    return DisplacementField(
        np.stack([vectors, vectors], axis=1),
        (depth_um, step * voxel[1], step * voxel[0]),
        (top_um, bend.first_px[1] * voxel[1], bend.first_px[0] * voxel[0]),
    )


def _written(folder: Path, name: str, field: DisplacementField) -> Path:
    """Return the store of a field, written where it is not there; its name says what it holds."""
    what = field.vectors_um.tobytes() + repr((field.spacing_um, field.origin_um)).encode()
    path = folder / f"{name}_{hashlib.sha256(what).hexdigest()[:16]}.ome.zarr"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_displacements(path, field, space=SAMPLE_SPACE)
    return path


def scene_path(new: SampleInput, name: str) -> Path:
    return new.folder / "scenes" / f"{name}_scene.ome.zarr"


def _to_sample_um(mapping: PlanarTransform, voxel: tuple[float, float, float], top_um: float) -> NDArray[np.float64]:
    """Return the affine mapping, um along z, y, x, from the space of a slice's volume to that of the sample."""
    back = mapping.inverse()
    size = np.array(voxel[:2])
    out = np.zeros((3, 4))
    out[0, 0], out[0, 3] = 1.0, top_um
    matrix = size[:, None] * back.matrix / size[None]
    offset = size * back.offset
    out[1:, 1:3], out[1:, 3] = matrix[::-1, ::-1], offset[::-1]
    return out

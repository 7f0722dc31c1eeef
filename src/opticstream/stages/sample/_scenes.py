"""Scenes of NGFF: the volumes of the slices as they were imaged, where they lie in the sample."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform
from opticstream.io.zarr import PlacedVolume, SliceStore, planes_of_slice, write_scene
from opticstream.stages.sample._ledger import Ledger
from opticstream.stages.sample._other_space import scene_transforms
from opticstream.stages.sample._placed_slice import mapping_from_facts
from opticstream.stages.sample._sample_input import SampleInput

_log = logging.getLogger(__name__)


def write_scenes(new: SampleInput, ledger: Ledger) -> None:
    """Write a scene for each stack of volumes: the volumes of the slices as they were imaged, where they lie.

    A file system that makes no links gets none, and a volume of NGFF 0.4 stays out: scenes are Zarr v3.
    """
    for name in ledger.stacks():
        stack = new.folder / f"{name}.ome.zarr"
        if not (stack / "zarr.json").exists() or planes_of_slice(stack) == 1:
            continue
        store, placed = SliceStore.opened(stack), {}
        voxel, slab_um = store.voxel_um, store.planes * store.voxel_um[2]
        for n in ledger.present():
            entry = ledger.slices[n]
            source = entry.get("sources", {}).get(name)
            if name in entry.get("stacks", {}) and source is not None and (new.folder / source / "zarr.json").exists():
                mapping = mapping_from_facts(entry["pose"]) if "pose" in entry else PlanarTransform.identity()
                to_sample = _to_sample_um(mapping, voxel, (n - 1) * slab_um)
                placed[f"slice_{n:03d}"] = PlacedVolume(new.folder / source, to_sample)
        if not placed:
            continue
        try:
            more, fields = scene_transforms(new.folder)
            write_scene(scene_path(new, name), placed, more=more, fields=fields, name=name)
        except OSError as error:
            _log.warning("the scene of %s was not written: %s", name, error)


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

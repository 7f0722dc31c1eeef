"""A scene: the volumes of all slices as they were imaged, in one space, by NGFF 0.6's coordinate transformations.

Nothing is copied: each slice is a group whose levels are links to those of its volume. New poses rewrite one small
file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.atomic import atomic_folder, write_text
from opticstream.io.zarr._images import image_attributes, readable_zarr
from opticstream.model.errors import FileFormatError

FIELDS = "coordinateTransformations"
"""Group of a scene for transformations that are arrays, as NGFF names it."""
SAMPLE_SPACE = "sample"
"""Name of the coordinate system of the whole sample, um along z, y, x."""
_OWN_SPACE = "physical"


@dataclass(frozen=True)
class PlacedVolume:
    """A volume, and where it lies in the sample.

    Attributes
    ----------
    path : Path
        OME-Zarr of scalars, NGFF 0.4 or 0.5.
    to_sample : ndarray, shape (3, 4)
        Affine mapping from its own space, um along z, y, x.
    space : str
        Coordinate system that it leads to; from any other one than the sample's, a further transformation goes on.
    """

    path: Path
    to_sample: NDArray[np.float64]
    space: str = SAMPLE_SPACE


def write_scene(
    path: Path,
    volumes: Mapping[str, PlacedVolume],
    /,
    *,
    more: Sequence[Mapping[str, Any]] = (),
    fields: Mapping[str, Path] = MappingProxyType({}),
    name: str = "",
) -> Path:
    """Write a scene, and return its path; groups of volumes that are the same stay.

    Parameters
    ----------
    path : Path
        Folder, `....ome.zarr`.
    volumes : mapping of str to PlacedVolume
        By name of their groups.
    more : sequence of mapping
        Further coordinate transformations, from or to the space `sample`, each as in NGFF 0.6.
    fields : mapping of str to Path
        Displacement fields (`write_displacements`) by the names that `more` refers to, below `FIELDS`.
    name : str
        For people.

    Raises
    ------
    FileFormatError
        A volume is no OME-Zarr of scalars.
    OSError
        The disk is full, or makes no links.
    """
    path.mkdir(parents=True, exist_ok=True)
    transforms: list[Mapping[str, Any]] = []
    for group, volume in volumes.items():
        _write_group(path / group, volume.path)
        transforms.append(
            {
                "type": "affine",
                "name": f"{group} to {volume.space}",
                "input": {"path": group, "name": _OWN_SPACE},
                "output": {"name": volume.space},
                "affine": np.round(volume.to_sample, 9).tolist(),
            }
        )
    for old in sorted(path.iterdir()):
        if old.is_dir() and old.name not in (*volumes, FIELDS):
            _remove_group(old)
    _link_fields(path / FIELDS, fields)
    others = [volume.space for volume in volumes.values()] + [dict(one)["output"]["name"] for one in more]
    scene = {
        "coordinateSystems": [_space(one) for one in dict.fromkeys([SAMPLE_SPACE, *others])],
        "coordinateTransformations": [*transforms, *more],
    }
    ome = {"version": "0.6", **({"name": name} if name else {}), "scene": scene}
    _write_json(path / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})
    return path


def _link_fields(group: Path, fields: Mapping[str, Path]) -> None:
    """Have the group of fields hold links to these, and to no others."""
    wanted = {name: os.path.relpath(field.absolute(), group.absolute()) for name, field in fields.items()}
    if wanted:
        group.mkdir(exist_ok=True)
        _write_json(group / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {}})
    for link in group.glob("*"):
        if link.is_symlink() and wanted.get(link.name) != os.readlink(link):
            link.unlink()
    for name, to in wanted.items():
        if not (group / name).is_symlink():
            (group / name).symlink_to(to, target_is_directory=True)
    if not wanted and group.exists():
        _remove_group(group)


def _space(name: str) -> dict[str, Any]:
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    return {"name": name, "axes": axes}


def _write_group(group: Path, volume: Path) -> None:
    """Write the group of one volume: NGFF 0.6, with links to its levels."""
    with readable_zarr(volume):
        attributes = image_attributes(volume)
        block = (attributes.get("ome") or attributes)["multiscales"][0]
        if [axis["name"] for axis in block["axes"]] != ["z", "y", "x"]:
            raise FileFormatError(f"{volume}: expected the axes z, y, x, got {[a['name'] for a in block['axes']]}")
        levels = [str(dataset["path"]) for dataset in block["datasets"]]
    datasets = []
    for level, dataset in zip(levels, block["datasets"], strict=True):
        steps = [{k: v for k, v in step.items() if k in ("type", step["type"])} for step in _steps(dataset, block)]
        between = {"input": {"path": level}, "output": {"name": _OWN_SPACE}}
        step = steps[0] if len(steps) == 1 else {"type": "sequence", "transformations": steps}
        datasets.append({"path": level, "coordinateTransformations": [{**step, **between}]})
    ome = {
        "version": "0.6",
        "multiscales": [
            {"name": group.name, "coordinateSystems": [_space(_OWN_SPACE)], "datasets": datasets},
        ],
    }
    content = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
    targets = {level: os.path.relpath((volume / level).absolute(), group.absolute()) for level in levels}
    same = all((group / level).is_symlink() and os.readlink(group / level) == to for level, to in targets.items())
    if same and (group / "zarr.json").exists():
        _write_json(group / "zarr.json", content)
        return
    with atomic_folder(group) as part:
        for level, to in targets.items():
            (part / level).symlink_to(to, target_is_directory=True)
        _write_json(part / "zarr.json", content)


def _steps(dataset: Mapping[str, Any], block: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*(dataset.get("coordinateTransformations") or ()), *(block.get("coordinateTransformations") or ())]


def _remove_group(group: Path) -> None:
    """Remove the group of a slice that is gone: its links, never what they lead to."""
    for entry in group.iterdir():
        entry.unlink()
    group.rmdir()


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)

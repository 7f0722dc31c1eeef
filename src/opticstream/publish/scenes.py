"""Scenes of the sample in the archive: all transformations, and of the volumes their coarse levels.

In the project, a scene holds links to all levels of the volumes of the slices. A remote target knows no links, and the
fine levels would be there twice: the volumes themselves are published, too. So the scene says how each is called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opticstream.io.atomic import atomic_folder, write_text
from opticstream.model.errors import MissingInputError
from opticstream.publish.local import copy_growing

_LONGEST_PX = 512
"""Longest side of the levels that are copied; where all are larger, the coarsest one is."""


def is_scene(path: Path, /) -> bool:
    """Return whether a store is a scene."""
    try:
        return "scene" in json.loads((path / "zarr.json").read_bytes())["attributes"]["ome"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def publish_scene(source: Path, target: Path, still: Callable[[], None], archive: Path, /) -> Path:
    """Copy a scene into the archive tree under `target`, and return it.

    Parameters
    ----------
    source, target : Path
        The scene, and its name in the archive.
    still : callable
        As for `publish_growing`.
    archive : Path
        The archive tree. Volumes that lie there are named, relative to the scene.

    Raises
    ------
    MissingInputError
        A volume that the scene links to is gone.
    ChangingStacksError
        See `still`; the archive is as it was.
    """
    with atomic_folder(target) as folder:
        for group in sorted(path for path in source.iterdir() if path.is_dir()):
            facts = _facts(group)
            if "multiscales" in facts["attributes"].get("ome", {}):
                _copy_volume(group, facts, folder / group.name, target / group.name, archive)
            else:
                copy_growing(group, target / group.name, folder / group.name)
                for field in (path for path in group.iterdir() if path.is_dir()):
                    copy_growing(field, target / group.name / field.name, folder / group.name / field.name)
        write_text(folder / "zarr.json", (source / "zarr.json").read_text(encoding="utf-8"))
        still()
    return target


def _copy_volume(group: Path, facts: dict[str, Any], folder: Path, earlier: Path, archive: Path) -> None:
    multiscale = facts["attributes"]["ome"]["multiscales"][0]
    levels = multiscale["datasets"]
    small = [one for one in levels if max(_facts(group / one["path"])["shape"][-2:]) <= _LONGEST_PX]
    multiscale["datasets"] = small or levels[-1:]
    volume, tree = (Path(os.path.realpath(path)) for path in (group / levels[0]["path"] / "..", archive))
    if volume.is_relative_to(tree):
        scene = Path(os.path.realpath(earlier.parent))
        finer = len(levels) - len(multiscale["datasets"])
        named = {"volume": Path(os.path.relpath(volume, scene)).as_posix(), "levels_that_only_the_volume_has": finer}
        facts["attributes"]["opticstream"] = named
    for level in multiscale["datasets"]:
        copy_growing(group / level["path"], earlier / level["path"], folder / level["path"])
    write_text(folder / "zarr.json", json.dumps(facts, indent=1) + "\n")


def _facts(node: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((node / "zarr.json").read_bytes()))
    except FileNotFoundError:
        raise MissingInputError(f"{node}: does not exist and cannot be published") from None

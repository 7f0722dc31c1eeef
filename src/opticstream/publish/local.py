"""The local archive tree (`DANDISET/`): results are written there atomically, and raw copies are linked, not copied."""

from __future__ import annotations

import filecmp
import os
from pathlib import Path

from opticstream.io.atomic import atomic_folder, atomic_path
from opticstream.model.errors import MissingInputError
from opticstream.system.disk import copy_tree, link_or_copy, symbolic_link


def publish_locally(source: Path, target: Path, /) -> Path:
    """Put a result (file or folder) into the archive tree under `target` and return it.

    Files on the same file system become hard links, which costs no space; otherwise they are copied. A target that
    already has the same bytes is not changed.

    Raises
    ------
    MissingInputError
        `source` does not exist.
    """
    if source.is_dir():
        with atomic_folder(target) as folder:
            copy_tree(source, folder)
        return target
    if not source.exists():
        raise MissingInputError(f"{source}: does not exist and cannot be published")
    if target.exists() and (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
        return target
    with atomic_path(target) as temporary:
        link_or_copy(source, temporary)
    return target


def link_into_mosaic(archive: Path, folder: Path, /) -> Path:
    """Make a symbolic link in a mosaic's `archived/` folder to an archive copy, and return the copy.

    The link is a convenience: if the file system has no symbolic links it is left out, and the log says so once.

    Raises
    ------
    MissingInputError
        The archive copy does not exist.
    """
    if not archive.exists():
        raise MissingInputError(f"{archive}: the archive copy does not exist")
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / archive.name
    wanted = os.path.relpath(archive, folder)
    if not (link.is_symlink() and str(link.readlink()) == wanted):
        symbolic_link(link, wanted)
    return archive

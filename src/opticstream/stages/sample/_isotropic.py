"""Cubes of 25, 50 and 100 um beside each stack of volumes, of which only what has changed is written again.

`isotropic.json` lists the slots whose cubes are older than the stack. It is written before the stack is, so that
nothing is forgotten where a process dies.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from opticstream.io.atomic import write_text
from opticstream.io.zarr import SliceStore, planes_of_slice, write_isotropic
from opticstream.model.errors import StateError

_FILE_NAME = "isotropic.json"


def isotropic_path(folder: Path, name: str, /) -> Path:
    """Return the store of the cubes of a stack."""
    return folder / "isotropic" / f"{name}_isotropic.ome.zarr"


def note_changed(folder: Path, name: str, slots: Collection[int], /) -> None:
    """Record that the cubes of some slots of a stack are to be written again, before the stack is changed.

    Raises
    ------
    StateError
        The record cannot be read.
    """
    known = _read(folder)
    wanted = sorted({*known.get(name, ()), *slots})
    if wanted and wanted != known.get(name):
        _write(folder, {**known, name: wanted})


def write_changed(folder: Path, /) -> dict[str, Path]:
    """Write the cubes that are older than their stacks, and return the stores that were written, by stack.

    Raises
    ------
    StateError
        The record cannot be read.
    OSError
        The disk is full, or has another error; the next call goes on.
    """
    known = _read(folder)
    written = {}
    for name in sorted(known):
        stack = folder / f"{name}.ome.zarr"
        if (stack / "zarr.json").exists() and planes_of_slice(stack) > 1:
            target, slots = isotropic_path(folder, name), known[name]
            if not (target / "zarr.json").exists():  # also of a stack that an earlier version wrote
                slots = list(range(1, SliceStore.opened(stack).slots + 1))
                note_changed(folder, name, slots)
            written[name] = write_isotropic(stack, target, slots)
        _write(folder, {other: slots for other, slots in _read(folder).items() if other != name})
    return written


def _read(folder: Path) -> dict[str, list[int]]:
    path = folder / _FILE_NAME
    if not path.exists():
        return {}
    try:
        return {str(name): [int(n) for n in slots] for name, slots in json.loads(path.read_bytes()).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise StateError(f"{path}: cannot be read ({error!r}); remove it and build the stacks again") from error


def _write(folder: Path, content: dict[str, list[int]]) -> None:
    path = folder / _FILE_NAME
    if content:
        write_text(path, json.dumps(content) + "\n")
    else:
        path.unlink(missing_ok=True)

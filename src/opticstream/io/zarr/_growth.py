"""Let a store of Zarr arrays grow at the low ends of x and y without rewriting a chunk: chunks get other names.

Zarr counts chunks from 0, and a regular grid has no origin. So where whole chunks are added before the first one, all
chunks are renamed, as folders as far as possible. `growing.json` says what is to be done before it is begun; every
step can be repeated, so that whoever comes after a kill ends what was begun.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opticstream.io.atomic import write_text

_JOURNAL = "growing.json"
_RENAMED = "renamed"


def grow(path: Path, added: Mapping[str, tuple[int, int]], metadata: str, /) -> None:
    """Add voxels before the first ones of all arrays of a store; what is in them stays at its place in the sample.

    Parameters
    ----------
    path : Path
        The store.
    added : mapping of str to (int, int)
        By name of the array: voxels that are added along y and x, whole chunks.
    metadata : str
        The `zarr.json` of the store afterwards.
    """
    levels = {}
    for name, more in added.items():
        *lead, y, x = _read(path / name)["shape"]
        levels[name] = {"added": list(more), "shape": [*lead, y + more[0], x + more[1]]}
    write_text(path / _JOURNAL, json.dumps({"levels": levels, "metadata": metadata}) + "\n")
    finish_growth(path)


def finish_growth(path: Path, /) -> None:
    """End what `grow` has begun; nothing where nothing was begun."""
    journal = path / _JOURNAL
    if not journal.exists():
        return
    content = json.loads(journal.read_bytes())
    for name, level in content["levels"].items():
        _grow_array(path / name, level["added"], level["shape"])
    write_text(path / "zarr.json", content["metadata"])
    journal.unlink()


def _grow_array(array: Path, added: Sequence[int], shape: Sequence[int]) -> None:
    facts, renamed = _read(array), array / _RENAMED
    if facts["shape"] != list(shape):  # the new shape says that all chunks have their new names
        chunk = facts["chunk_grid"]["configuration"]["chunk_shape"]
        shifts = [0] * (len(shape) - 2) + [more // size for more, size in zip(added, chunk[-2:], strict=True)]
        if (array / "c").exists():
            _rename(array / "c", renamed, shifts)
        # As the store library writes it, so that it does not show how the array came to its shape.
        text = json.dumps({**facts, "shape": list(shape)}, separators=(",", ":"), sort_keys=True)
        write_text(array / "zarr.json", text)
    if renamed.exists():
        renamed.rename(array / "c")


def _rename(source: Path, target: Path, shifts: Sequence[int]) -> None:
    """Move chunks to their new names, all below at once where their names stay the same."""
    if not any(shifts):
        os.rename(source, target)
        return
    target.mkdir(parents=True, exist_ok=True)
    for entry in list(source.iterdir()):
        if entry.name.isdigit():
            _rename(entry, target / str(int(entry.name) + shifts[0]), shifts[1:])
        else:  # the lock of a writer that was killed
            entry.unlink()
    source.rmdir()


def _read(array: Path) -> dict[str, Any]:
    return dict(json.loads((array / "zarr.json").read_bytes()))

"""Results of raw files that did not change while they were read.

A file may have its full size before it has its bytes, and a writer may pause for longer than the watcher waits. So size
and time are looked at again after reading; what has changed is read again once it stands still.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from opticstream.model.errors import ChangingInputError
from opticstream.model.ids import TileId
from opticstream.pipeline.project import Project
from opticstream.state.raw_files import identity_of

R = TypeVar("R")
_LOOK_S = 0.5
"""Longest time between two looks at a file that is waited for, in seconds."""


def result_of_settled_files(
    project: Project, tile: TileId, files: Sequence[Path], compute: Callable[[str], R], /
) -> tuple[R, str]:
    """Return what `compute` makes of raw files, and the identity of these files, which stayed the same meanwhile.

    Parameters
    ----------
    project : Project
        Its deployment settings say how long a file must stand still, and how long it is waited for.
    tile : TileId
        Whose files, for the journal.
    files : sequence of Path
        What `compute` reads.
    compute : callable
        Gets the identity of the files; is called again when they have changed, also when it has failed on them.

    Raises
    ------
    ChangingInputError
        The files changed until `stall_s` was over.
    Exception
        The error of `compute` on files that did not change.
    """
    end = time.monotonic() + project.deployment.stall_s
    while True:
        before = identity_of(*files)
        error: Exception | None = None
        try:
            result = compute(before)
        except Exception as raised:
            error = raised
        changed = _difference(files, before)
        if changed is None:
            if error is not None:
                raise error
            return result, before
        why = f"{changed} changed while it was read; it is read again when it stands still"
        project.facts.journal.failed(tile, None, why=why, kind="changing input", stage="process batch")
        _wait_until_still(files, project.deployment.stable_s, end)
        if time.monotonic() >= end:
            raise ChangingInputError(
                f"{changed}: was still being written {project.deployment.stall_s:g} s after it was first read "
                f"(OPTICSTREAM_STALL_S)"
            ) from error


def _difference(files: Iterable[Path], before: str) -> str | None:
    """Return the names of the files if one of them is not what it was."""
    return None if identity_of(*files) == before else " and ".join(str(path) for path in files)


def _wait_until_still(files: Sequence[Path], stable_s: float, end: float) -> None:
    seen, since = identity_of(*files), time.monotonic()
    while time.monotonic() - since < stable_s and time.monotonic() < end:
        time.sleep(min(_LOOK_S, stable_s))
        now = identity_of(*files)
        if now != seen:
            seen, since = now, time.monotonic()

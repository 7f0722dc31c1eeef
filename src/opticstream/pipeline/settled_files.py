"""Compute results from raw files that did not change while they were read.

A file may have its full size before all bytes are written, and a writer may pause for longer than the watcher waits.
Size and time are therefore compared again after reading; a file that has changed is read again once it is stable.
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
"""Longest time between two checks of a file that is still changing, in seconds."""


def result_of_settled_files(
    project: Project, tile: TileId, files: Sequence[Path], compute: Callable[[str], R], /
) -> tuple[R, str]:
    """Return what `compute` makes from raw files, and the identity of the files, which did not change in the meantime.

    Parameters
    ----------
    project : Project
        Its deployment settings say how long a file must not change, and how long to wait for it.
    tile : TileId
        The tile of the files, for the journal.
    files : sequence of Path
        The files that `compute` reads.
    compute : callable
        Takes the identity of the files; called again if they have changed, even if it raised an error.

    Raises
    ------
    ChangingInputError
        The files kept changing for `stall_s`.
    Exception
        The error that `compute` raised for files that did not change.
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
        why = f"{changed} changed while it was read; it is read again once it is stable"
        project.facts.journal.failed(tile, None, why=why, kind="changing input", stage="process batch")
        _wait_until_still(files, project.deployment.stable_s, end)
        if time.monotonic() >= end:
            raise ChangingInputError(
                f"{changed}: was still changing {project.deployment.stall_s:g} s after it was first read "
                f"(OPTICSTREAM_STALL_S); wait until it is written, then run again"
            ) from error


def _difference(files: Iterable[Path], before: str) -> str | None:
    """Return the names of the files if one of them has changed."""
    return None if identity_of(*files) == before else " and ".join(str(path) for path in files)


def _wait_until_still(files: Sequence[Path], stable_s: float, end: float) -> None:
    seen, since = identity_of(*files), time.monotonic()
    while time.monotonic() - since < stable_s and time.monotonic() < end:
        time.sleep(min(_LOOK_S, stable_s))
        now = identity_of(*files)
        if now != seen:
            seen, since = now, time.monotonic()

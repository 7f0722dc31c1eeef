"""Find out what the file system of a folder lacks, so that it can be reported at the start of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from opticstream.system.disk import remove
from opticstream.system.locks import has_locks
from opticstream.system.temporary_names import temporary_beside


def missing_features(folder: Path, /) -> list[str]:
    """Return what the file system of a folder lacks, in words, with the consequences; leaves no files behind.

    Raises
    ------
    OSError
        The folder is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = temporary_beside(folder / "survey")
    probe.mkdir()
    lacking = []
    try:
        (probe / "a").write_bytes(b"x")
        if not _can(lambda: _sync(probe)):
            lacking.append("syncing of folders (a power failure may lose the latest files)")
        if not _can(lambda: os.symlink("a", probe / "link")):
            lacking.append("symbolic links (mosaic-*/archived stays empty, results are twice on the disk)")
        if not _can(lambda: os.link(probe / "a", probe / "b")):
            lacking.append("hard links (results are copied to the archive)")
        if not has_locks(probe):
            lacking.append("file locks (files that name their owner are used instead)")
        if (probe / "A").exists():
            lacking.append("case-sensitive names (names must differ in more than their case)")
    finally:
        remove(probe)
    return lacking


def _can(call: Callable[[], object]) -> bool:
    with contextlib.suppress(OSError, AttributeError, NotImplementedError):
        call()
        return True
    return False


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

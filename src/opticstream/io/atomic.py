"""Write outputs that have their final name only when they are complete.

A file is written beside its target under a temporary name, synced to disk, and renamed. A process that is killed leaves
at most a temporary file, which `remove_stale_temporaries` finds by its name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from opticstream.io.disk_errors import disk_errors
from opticstream.system.disk import remove, replace, sync_path
from opticstream.system.temporaries import remove_stale_temporaries
from opticstream.system.temporary_names import TEMPORARY_MARK, is_temporary, temporary_beside

__all__ = [
    "TEMPORARY_MARK",
    "atomic_folder",
    "atomic_path",
    "is_temporary",
    "remove_stale_temporaries",
    "replace_folder",
    "sync_path",
    "temporary_beside",
    "write_bytes",
    "write_text",
]


@contextlib.contextmanager
def atomic_path(path: Path, /) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it takes the name `path` when the block ends without an error.

    An existing file is replaced; after an error it is unchanged and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with disk_errors(path):
            yield temporary
            sync_path(temporary)
            replace(temporary, path)
            sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, /) -> Iterator[Path]:
    """Yield a temporary folder to fill; it takes the name `path` when the block ends without an error.

    An existing folder is moved aside first and removed afterwards, so that a reader sees the old one or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        replace_folder(temporary, path)
    finally:
        remove(temporary)


def replace_folder(source: Path, target: Path, /) -> None:
    """Give a folder the name `target`; an existing folder, or a link, is moved aside first and removed afterwards.

    If `source` cannot be renamed, the old folder is moved back.
    """
    old = temporary_beside(target)
    had_one = os.path.lexists(target)
    if had_one:
        os.rename(target, old)
    try:
        os.rename(source, target)
    except OSError:
        if had_one:
            os.rename(old, target)
        raise
    sync_path(target.parent)
    if had_one:
        remove(old)


def write_bytes(path: Path, data: bytes, /) -> Path:
    """Write a whole file atomically and return its path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str, /) -> Path:
    """Write a whole text file (UTF-8) atomically and return its path.

    A file name in the text that is not UTF-8 is written with JSON escapes.
    """
    return write_bytes(path, text.encode(errors="backslashreplace"))

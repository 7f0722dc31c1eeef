"""Create small files atomically and exclusively, on local and network file systems.

The one primitive is `create_exclusively`: write under a temporary name, fsync, then `link` to the final name, which
the file server does atomically and refuses if the name is taken.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from opticstream.system.disk import replace, sync_handle, sync_path, take_name
from opticstream.system.lacking import log_once
from opticstream.system.temporary_names import temporary_beside


def create_exclusively(path: Path, data: bytes, /, *, fsync: bool = True) -> bool:
    """Create `path` with `data` in one step; True for exactly one of all callers on all hosts, False if it exists.

    On file systems without hard links an exclusive rename is used, or else an exclusive creation, which can leave a
    truncated file after a power failure; the log says so once.

    Raises
    ------
    OSError
        The folder cannot be written (full, read-only, gone). Nothing is left under `path` then.
    """
    with temporary_file(path, data, fsync=fsync) as temporary:
        created = take_name(temporary, path)
    if created is None:
        log_once(path, "has neither hard links nor exclusive renames; a power failure may leave cut flags")
        created = _create_in_place(path, data, fsync=fsync)
    if created and fsync:
        sync_path(path.parent)
    return created


def replace_whole(path: Path, data: bytes, /, *, fsync: bool = True) -> None:
    """Write `path` so that a reader sees either the old or the new content, even after a crash."""
    with temporary_file(path, data, fsync=fsync) as temporary:
        replace(temporary, path)
    if fsync:
        sync_path(path.parent)


@contextlib.contextmanager
def temporary_file(path: Path, data: bytes, /, *, fsync: bool = True) -> Iterator[Path]:
    """Yield a complete hidden file beside `path` and remove it afterwards unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if fsync:
                file.flush()
                sync_handle(file.fileno(), path)
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _create_in_place(path: Path, data: bytes, *, fsync: bool) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if fsync:
                file.flush()
                sync_handle(file.fileno(), path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True

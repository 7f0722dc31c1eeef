"""Remove unfinished outputs of processes that were killed.

Names of such outputs are made in `opticstream.system.temporary_names`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from opticstream.system.disk import time_of_server_s
from opticstream.system.temporary_names import (
    TEMPORARY_MARK,
    writer_is_dead,
)

STALE_AFTER_S = 3600.0
"""Seconds without a change after which a temporary file of an unknown process counts as abandoned."""


def remove_stale_temporaries(folder: Path, /, *, older_than_s: float = STALE_AFTER_S) -> list[Path]:
    """Remove what killed processes left anywhere below `folder`, and return the paths.

    Only temporary names are touched: at once if their process is known to have ended, otherwise when
    nothing in them has changed for `older_than_s` seconds by the clock of their own file system.
    """
    removed = []
    now_s: float | None = None
    for path in _temporaries_below(folder):
        try:
            if not writer_is_dead(path):
                if now_s is None:
                    now_s = time_of_server_s(path.parent)
                newest = max([path.lstat().st_mtime, *(p.lstat().st_mtime for p in path.rglob("*"))])
                if now_s - newest < older_than_s:
                    continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:
            continue
        removed.append(path)
    return removed


def _temporaries_below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if name.startswith(".") and TEMPORARY_MARK in name:
                yield Path(root, name)
        # A finished store has thousands of chunks and no unfinished files.
        folders[:] = [name for name in folders if TEMPORARY_MARK not in name and not name.endswith(".zarr")]

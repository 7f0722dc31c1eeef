"""Sync files to the disk while others are still being written, so that there is little left to wait for at the end."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from opticstream.system.disk import sync_path

_BEING_WRITTEN = ".__lock"
"""Suffix of tensorstore's unfinished files."""


class FlushBehind:
    """Syncs the files of a folder in a separate thread.

    Parameters
    ----------
    folder : Path
        The folder, with all files below it. Files are replaced, never changed in place, and identified by their inode.
    """

    def __init__(self, folder: Path, /) -> None:
        self._folder = folder
        self._flushed: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Start to sync files that are new since the last time, unless a sync is still running.

        Raises
        ------
        OSError
            An earlier sync failed. The system reports this only once, and the data may be lost.
        """
        if self._running is None or self._running.done():
            self._settle()
            self._running = self._pool.submit(self._flush)

    def finish(self) -> None:
        """Sync everything, and return when it is on the disk; raises like `start`."""
        self._settle()
        self._flush()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _settle(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _flush(self) -> None:
        for root, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(root, name)
                if name.endswith(_BEING_WRITTEN):
                    continue
                try:
                    inode = os.stat(path).st_ino
                    if self._flushed.get(path) == inode:
                        continue
                    sync_path(Path(path))
                except FileNotFoundError:
                    continue  # replaced just now; it is synced the next time
                self._flushed[path] = inode

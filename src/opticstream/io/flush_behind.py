"""Bringing files to the disk while others are still being written: at the end there is little left to wait for."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from opticstream.system.disk import sync_path

_BEING_WRITTEN = ".__lock"
"""How tensorstore's names end until a file is whole."""


class FlushBehind:
    """Flushes the files of a folder on a thread of its own.

    Parameters
    ----------
    folder : Path
        All files below it are meant. They are replaced, never changed in place: a file is known by its inode.
    """

    def __init__(self, folder: Path, /) -> None:
        self._folder = folder
        self._flushed: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Begin to flush what has come since the last time, unless that is still going on.

        Raises
        ------
        OSError
            The disk refused an earlier flush. It says so only once: what it was told of may be lost.
        """
        if self._running is None or self._running.done():
            self._settle()
            self._running = self._pool.submit(self._flush)

    def finish(self) -> None:
        """Flush everything that is there, and return when it is on the disk; raises as `start`."""
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
                    continue  # replaced just now; the next time is its turn
                self._flushed[path] = inode

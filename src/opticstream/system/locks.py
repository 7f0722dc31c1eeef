"""Locks on files, with a fallback if the file system or the operating system has none.

The operating system frees its locks when a process ends, however it ends. If there are none (some FUSE and SMB
shares, NFS without a lock server, Windows), a file that names its owner is used instead: it counts as abandoned
once its owner has ended, or is not visible and has not renewed it for `UNSEEN_OWNER_S`.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from opticstream.system.disk import time_of_server_s
from opticstream.system.host import HostIdentity
from opticstream.system.lacking import is_unsupported, log_once
from opticstream.system.temporary_names import temporary_beside

fcntl: Any = None  # Windows has none
with contextlib.suppress(ImportError):
    fcntl = importlib.import_module("fcntl")

UNSEEN_OWNER_S = 6 * 3600.0
"""Seconds after which the owner file of a process on another host counts as abandoned."""
_UNREADABLE_S = 10.0
"""Seconds after which an owner file without an owner counts as left by a process that was killed writing it."""
_FIRST_WAIT_S = 0.002
_LONGEST_WAIT_S = 0.25


class FileLock:
    """A lock that this process holds, see `try_lock`. `handle` is the open file."""

    def __init__(self, path: Path, handle: int, owner_file: Path | None) -> None:
        self.path = path
        self.handle = handle
        self._owner_file = owner_file

    def release(self) -> None:
        """Release the lock; the file stays."""
        if self._owner_file is not None:
            self._owner_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.close(self.handle)


def try_lock(path: Path, /) -> FileLock | None:
    """Return a lock on a file, which is created if needed; None while another process holds it.

    Raises
    ------
    OSError
        The file cannot be created or opened.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        locked = _lock(handle)
        if locked is not None:
            if not locked:
                os.close(handle)
                return None
            return FileLock(path, handle, None)
        log_once(path, "has no file locks; files that name their owner take their place")
        owner_file = path.with_name(f"{path.name}.held")
        if _own(owner_file):
            return FileLock(path, handle, owner_file)
        os.close(handle)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(handle)
        raise
    return None


@contextlib.contextmanager
def locked(path: Path, /, *, timeout_s: float = math.inf) -> Iterator[FileLock]:
    """Hold the lock on a file inside a `with` block, waiting while another process holds it.

    Raises
    ------
    TimeoutError
        Another process held it for all of `timeout_s`.
    OSError
        The file cannot be created or opened.
    """
    wait_s, end = _FIRST_WAIT_S, time.monotonic() + timeout_s
    while (lock := try_lock(path)) is None:
        if time.monotonic() >= end:
            raise TimeoutError(f"{path}: another process has held the lock for {timeout_s:g} s")
        time.sleep(wait_s)
        wait_s = min(1.5 * wait_s, _LONGEST_WAIT_S)
    try:
        yield lock
    finally:
        lock.release()


def has_locks(folder: Path, /) -> bool:
    """Return whether the operating system can lock files in a folder; leaves no files there."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = temporary_beside(folder / "lock")
    handle = os.open(probe, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return bool(_lock(handle))
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)


def has_record_locks(folder: Path, /) -> bool:
    """Return whether files in a folder can have locks on parts of them, as databases need; leaves no files there."""
    if fcntl is None:
        return True  # Windows has its own
    probe = temporary_beside(folder / "lock")
    handle = os.open(probe, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not (error.errno == errno.ENOLCK or is_unsupported(error))
    finally:
        os.close(handle)
        probe.unlink(missing_ok=True)
    return True


def _lock(handle: int) -> bool | None:
    """Return whether this process has the lock now; None if the file cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ENOLCK or is_unsupported(error):
            return None
        if error.errno == errno.EACCES:  # the error of some systems for a taken lock
            return False
        raise
    return True


def _own(owner_file: Path) -> bool:
    me = json.dumps(HostIdentity.current().to_json()).encode()
    for _ in range(5):
        try:
            handle = os.open(owner_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if not _is_left_behind(owner_file):
                return False
            doomed = temporary_beside(owner_file)
            with contextlib.suppress(FileNotFoundError):  # another process has noticed it as well
                os.rename(owner_file, doomed)
                doomed.unlink(missing_ok=True)
            continue
        try:
            os.write(handle, me)
        finally:
            os.close(handle)
        return True
    return False


def _is_left_behind(owner_file: Path) -> bool:
    try:
        silent_s = time_of_server_s(owner_file.parent) - owner_file.stat().st_mtime
        owner = HostIdentity.from_json(json.loads(owner_file.read_bytes()))
    except FileNotFoundError:
        return True
    except (ValueError, TypeError, AttributeError):
        return silent_s > _UNREADABLE_S
    life = HostIdentity.current().life_of(owner)
    return life == "dead" or (life == "unknown" and silent_s > UNSEEN_OWNER_S)

"""Folders of this account for replaceable files: compiled code, sockets, locks between its processes."""

from __future__ import annotations

import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def private_folder() -> Path | None:
    """Return a folder for temporary things that only this account can write; None if there is none."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    try:
        folder = Path(tempfile.gettempdir()) / f"opticstream-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder if _is_ours(folder, user) else Path(tempfile.mkdtemp(prefix="opticstream-"))
    except OSError:
        return None


def has_home() -> bool:
    """Return whether this account has a home folder that is writable (containers and services often have none)."""
    home = os.path.expanduser("~")
    return os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK)


def can_run_programs(folder: Path, /) -> bool:
    """Return whether scripts in a folder can be run, which some mounts forbid."""
    probe = folder / f".run-{os.getpid()}"
    try:
        probe.write_bytes(b"#!/bin/sh\n")
        probe.chmod(stat.S_IRWXU)
        return os.access(probe, os.X_OK)
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _is_ours(folder: Path, user: int) -> bool:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or not os.access(folder, os.W_OK | os.X_OK):
        return False
    return not hasattr(os, "getuid") or (status.st_uid == user and not status.st_mode & 0o022)

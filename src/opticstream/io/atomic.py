"""Outputs appear under their final name only when they are complete.

A file is written beside its target under a temporary name, synced to disk, and renamed. A process that is killed leaves
at most a temporary file, which `remove_stale_temporaries` finds by its name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from opticstream.io.disk_errors import disk_errors

TEMPORARY_MARK = ".partial-"
"""Part of every temporary name; readers ignore files and folders that carry it."""


def is_temporary(path: Path, /) -> bool:
    """Return whether a name is that of an output still being written."""
    return TEMPORARY_MARK in path.name


def temporary_beside(path: Path, /) -> Path:
    """Return a fresh temporary name in the folder of `path`, with its suffixes: libraries choose formats by them."""
    stem, dot, suffixes = path.name.partition(".")
    return path.with_name(f".{stem}{TEMPORARY_MARK}{os.getpid()}-{secrets.token_hex(4)}{dot}{suffixes}")


def sync_path(path: Path, /) -> None:
    """Ask the operating system to bring a file or folder to the disk; an OSError names it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_path(path: Path, /) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it takes the name `path` when the block ends without an error.

    An existing file is replaced; after an error the old one stands untouched and the temporary file is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with disk_errors(path):
            yield temporary
            sync_path(temporary)
            os.replace(temporary, path)
            sync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, /) -> Iterator[Path]:
    """Yield a temporary folder to fill; it takes the name `path` when the block ends without an error.

    An existing folder is moved aside first and removed afterwards, so that a reader meets the old one or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    old = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
        sync_path(path.parent)
    finally:
        for leftover in (temporary, old):
            if leftover.exists():
                shutil.rmtree(leftover, ignore_errors=True)


def write_bytes(path: Path, data: bytes, /) -> Path:
    """Write a whole file atomically and return its path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str, /) -> Path:
    """Write a whole text file (UTF-8) atomically and return its path."""
    return write_bytes(path, text.encode())


def remove_stale_temporaries(folder: Path, /, *, older_than_s: float = 3600.0) -> list[Path]:
    """Remove what killed writers left anywhere below `folder`, and return it.

    Only names that this module makes are touched, and only when nothing in them has changed for `older_than_s` seconds.
    """
    removed = []
    now = time.time()
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if not (name.startswith(".") and TEMPORARY_MARK in name):
                continue
            path = Path(root, name)
            try:
                newest = max([path.lstat().st_mtime, *(p.lstat().st_mtime for p in path.rglob("*"))])
                if now - newest < older_than_s:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except OSError:
                continue
            removed.append(path)
        folders[:] = [name for name in folders if TEMPORARY_MARK not in name]
    return removed

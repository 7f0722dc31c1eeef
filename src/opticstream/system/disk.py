"""Calls that some file systems lack: each has a fallback, and logs once that it is used.

All syncing, linking, replacing, sizing, mapping, and reading at an offset goes through here. Errors of the disk itself
(full, broken, read-only, forbidden) are always raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from opticstream.system.lacking import NOT_ALLOWED, is_unsupported, log_once
from opticstream.system.temporary_names import temporary_beside

T = TypeVar("T")

_OPEN_FOR_SYNC = NOT_ALLOWED | {errno.EISDIR, errno.ENOTSUP, errno.EINVAL}
_NO_HARD_LINKS = NOT_ALLOWED | {errno.EMLINK, errno.EXDEV, errno.EROFS}
_NO_SYMBOLIC_LINKS = NOT_ALLOWED | {errno.EROFS}
_NAME_IS_TAKEN = NOT_ALLOWED | {errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY}
_COPIED_BYTES = 1 << 20
_seeking = threading.Lock()


# --- bringing data to the disk ----------------------------------------------------------------------------------------


def sync_handle(handle: int, path: Path, /) -> None:
    """Sync an open file to the disk, if the file system supports it.

    Raises
    ------
    OSError
        The disk refused (full, broken); the error names `path`.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if is_unsupported(error, *NOT_ALLOWED, errno.EROFS):
            log_once(path, "cannot sync files to the disk; a power failure may damage the latest ones")
            return
        error.filename = str(path)
        raise


def sync_path(path: Path, /) -> None:
    """Sync a file, or the names in a folder, to the disk, like `sync_handle`."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in _OPEN_FOR_SYNC and (os.path.isdir(path) or error.errno in NOT_ALLOWED):
            return  # Windows and some shares cannot open folders; an unreadable file can still be renamed
        raise
    try:
        if os.path.isdir(path):
            _sync_folder(handle, path)
        else:
            sync_handle(handle, path)
    finally:
        os.close(handle)


def _sync_folder(handle: int, path: Path) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if is_unsupported(error, *NOT_ALLOWED, errno.EROFS, errno.EISDIR):
            log_once(path, "cannot sync folders to the disk; a power failure may lose the latest files")
            return
        error.filename = str(path)
        raise


# --- names ------------------------------------------------------------------------------------------------------------


def replace(source: Path, target: Path, /) -> None:
    """Rename `source` to `target`, replacing what is there.

    If the file system cannot rename over an existing file (some SMB shares, or Windows while the file is read), the old
    file is moved aside first, and back if the rename fails: for a moment no file has the name.
    """
    try:
        os.replace(source, target)
        return
    except OSError as error:
        if error.errno not in _NAME_IS_TAKEN or not os.path.lexists(target):
            raise
        refused = error
    aside = temporary_beside(target)
    try:
        os.rename(target, aside)
    except OSError:
        raise refused from None
    try:
        os.rename(source, target)
    except OSError:
        os.rename(aside, target)
        raise
    log_once(target, "cannot rename over an existing file; a file is missing for a moment while it is replaced")
    remove(aside)


def remove(path: Path, /) -> None:
    """Remove a file or folder; what cannot be removed is left there, without an error."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def take_name(temporary: Path, path: Path, /) -> bool | None:
    """Give a complete file a name that does not exist yet, in one step; the temporary name may remain.

    Returns
    -------
    bool or None
        True if the file has the name now, False if the name was taken; None if the file system has neither hard links
        nor exclusive renames.
    """
    taken = _hard_link(temporary, path)
    if taken is None:
        taken = _rename_without_replacing(temporary, path)
        if taken is not None:
            log_once(path, "has no hard links; flags are made by exclusive renames instead")
    return taken


def _hard_link(temporary: Path, path: Path) -> bool | None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network client that lost the answer asks again, and then finds its own link.
        return _same_file(temporary, path)
    except (AttributeError, NotImplementedError):
        return None
    except OSError as error:
        if is_unsupported(error, *_NO_HARD_LINKS):
            return None
        if _same_file(temporary, path):
            return True
        raise
    return True


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def exchange(one: Path, other: Path, /) -> bool:
    """Swap the names of two files or folders of one folder, in one step; False if the system cannot do that."""
    rename = _renameat2()
    if rename is None:
        return False
    at_cwd, swap = -100, 2
    return rename(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), swap) == 0


def _rename_without_replacing(temporary: Path, path: Path) -> bool | None:
    if sys.platform == "win32":  # pragma: no cover
        try:
            temporary.rename(path)
        except FileExistsError:
            return False
        return True
    rename = _renameat2()
    if rename is None:
        return None
    at_cwd, no_replace = -100, 1
    if rename(at_cwd, os.fsencode(temporary), at_cwd, os.fsencode(path), no_replace) == 0:
        return True
    if ctypes.get_errno() == errno.EEXIST:
        return False
    return None


def _renameat2() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    except OSError:
        return None
    return function


def link_or_copy(source: Path, target: Path, /) -> str | None:
    """Make `target` a hard link to a file, or a copy if it cannot be linked, which is on the disk then.

    Returns
    -------
    str or None
        SHA-256 of the bytes that were copied; None if none were.

    Raises
    ------
    OSError
        `target` exists, or cannot be written (disk full).
    """
    try:
        os.link(source, target)
        return None
    except FileExistsError:
        raise
    except (OSError, AttributeError, NotImplementedError):
        pass
    return copy_file(source, target)


def copy_file(source: Path, target: Path, /) -> str:
    """Copy the bytes of a file to a new one, which is on the disk when this returns; return their SHA-256."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("xb") as written:
        while data := read.read(_COPIED_BYTES):
            digest.update(data)
            written.write(data)
        written.flush()
        sync_handle(written.fileno(), target)
    return digest.hexdigest()


def symbolic_link(link: Path, goal: str, /) -> bool:
    """Make `link` a symbolic link to `goal`, replacing what is there; return False if there are no symbolic links."""
    temporary = temporary_beside(link)
    try:
        os.symlink(goal, temporary)
    except (AttributeError, NotImplementedError):
        pass
    except OSError as error:
        if not is_unsupported(error, *_NO_SYMBOLIC_LINKS):
            raise
        if os.path.lexists(link) and not link.is_symlink():
            return False
    else:
        try:
            replace(temporary, link)
        finally:
            temporary.unlink(missing_ok=True)
        return True
    log_once(link, "has no symbolic links; links that are only a convenience are left out")
    return False


def replace_by_link(path: Path, goal: str, /, *, if_still: Callable[[Path], bool]) -> bool:
    """Put a symbolic link in the place of a file or folder, which is removed.

    Readers find the one or the other at every moment, except for a folder on a system that cannot exchange names: then
    nothing has the name for a moment.

    Parameters
    ----------
    path : Path
        What is replaced.
    goal : str
        Text of the link.
    if_still : callable
        Whether a path is that of what is to be removed. What another process has put in its place stays.

    Returns
    -------
    bool
        False if everything stays as it is: there are no symbolic links, or something else has the name.
    """
    temporary = temporary_beside(path)
    if not symbolic_link(temporary, goal):
        return False
    if exchange(temporary, path):
        if not if_still(temporary):
            if not exchange(temporary, path):  # pragma: no cover - it has just worked
                raise OSError(errno.EIO, "two names could not be exchanged back", str(temporary))
            temporary.unlink()
            return False
    elif not if_still(path):
        temporary.unlink()
        return False
    elif path.is_dir():
        aside = temporary_beside(path)
        os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(aside, path)
            raise
        temporary = aside
    else:
        replace(temporary, path)
    sync_path(path.parent)
    remove(temporary)
    return True


def link_goal(link: Path, goal: Path, /) -> str:
    """Return the text of a relative link that leads to `goal` from the place of `link`.

    It passes through as few folders as possible. Where a folder on the way is a link itself, a path by names alone
    would lead elsewhere; then the real folders count.
    """
    with contextlib.suppress(ValueError):  # other drives of Windows
        by_names = os.path.relpath(goal, link.parent)
        if _same_file(link.parent / by_names, goal):
            return by_names
        return os.path.relpath(goal.parent.resolve() / goal.name, link.parent.resolve())
    return str(goal.absolute())


def reachable(path: Path, root: Path, /) -> Path:
    """Return `path`; if it is a link that leads nowhere on this host, what lies below `root` under the link's name.

    Hosts mount the folders of a project in different places, and a link holds only one way from one to the other.
    """
    if not path.is_symlink() or path.exists():
        return path
    parts = [part for part in path.readlink().parts if part not in ("..", ".")]
    named = (root.joinpath(*parts[start:]) for start in range(len(parts) - 1))
    return next((there for there in named if there.exists()), path)


# --- files ------------------------------------------------------------------------------------------------------------


def reserve(handle: int, size: int, /) -> None:
    """Set the size of an unfinished file in bytes, if this is possible without writing them."""
    try:
        os.ftruncate(handle, size)
    except AttributeError:
        return
    except OSError as error:
        if not is_unsupported(error, *NOT_ALLOWED):
            raise


def read_at(handle: int, view: memoryview, offset: int, /) -> int:
    """Read into `view` from an offset in a file, from any thread, and return the number of bytes read."""
    if hasattr(os, "preadv"):
        try:
            return os.preadv(handle, [view], offset)
        except OSError as error:
            if not is_unsupported(error, errno.ESPIPE):
                raise
    if hasattr(os, "pread"):
        data = os.pread(handle, len(view), offset)
    else:
        with _seeking:
            os.lseek(handle, offset, os.SEEK_SET)
            data = os.read(handle, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(handle: int, view: memoryview, offset: int, /) -> int:
    """Write at an offset in a file, from any thread, and return the number of bytes written."""
    if hasattr(os, "pwrite"):
        try:
            return os.pwrite(handle, view, offset)
        except OSError as error:
            if not is_unsupported(error):
                raise
    with _seeking:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.write(handle, view)


def mapped_or_read(mapped: Callable[[], T], read: Callable[[], T], /) -> T:
    """Return the result of `mapped`, or of `read` if the file system cannot map files into memory."""
    try:
        return mapped()
    except OSError as error:
        if not is_unsupported(error, *NOT_ALLOWED):
            raise
    return read()


def time_of_server_s(folder: Path, /) -> float:
    """Return the time of the clock that stamps files in `folder`, in seconds since 1970.

    On a network share this is the server's clock, the same for all hosts, even if their own clocks are wrong. The
    probe file also makes a network client refresh its list of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = temporary_beside(folder / f"now-{uuid.uuid4().hex[:8]}")
    try:
        # Closing sends the byte to the server, which sets the time. No fsync: behind gigabytes of tiles it is slow.
        probe.write_bytes(b"\n")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)

"""Small files that appear whole or not at all, once, on local and network file systems alike.

The one primitive is `create_exclusively`: write under a temporary name, fsync, then `link` to the final name, which
the file server itself does atomically and refuses when the name is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

_log = logging.getLogger(__name__)
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}
_said: set[tuple[int, str]] = set()


def create_exclusively(path: Path, data: bytes, /, *, fsync: bool = True) -> bool:
    """Create `path` with `data` in one step; True for exactly one of all callers on all hosts, False when it exists.

    Where the file system has no hard links an exclusive rename takes their place, and where that is missing too an
    exclusive creation, which is as exclusive but can leave a cut file after a power failure; the log says so once.

    Raises
    ------
    OSError
        The folder cannot be written (full, read-only, gone). Nothing is left under `path` then.
    """
    with temporary_file(path, data, fsync=fsync) as temporary:
        created = _link(temporary, path)
        if created is None:
            created = _rename_without_replacing(temporary, path)
            if created is not None:
                _say_once(path, "has no hard links; flags are made by exclusive renames instead")
    if created is None:
        _say_once(path, "has neither hard links nor exclusive renames; a power failure may leave cut flags")
        created = _create_in_place(path, data, fsync=fsync)
    if created and fsync:
        fsync_folder(path.parent)
    return created


def replace_whole(path: Path, data: bytes, /, *, fsync: bool = True) -> None:
    """Write `path` so that a reader sees either the old or the new content, also after a crash."""
    with temporary_file(path, data, fsync=fsync) as temporary:
        temporary.replace(path)
    if fsync:
        fsync_folder(path.parent)


def temporary_name(path: Path, /) -> Path:
    """Return a fresh hidden name beside `path`, marked as those of all outputs that are still being written."""
    return path.with_name(f".{path.name}.partial-{uuid.uuid4().hex}")


@contextlib.contextmanager
def temporary_file(path: Path, data: bytes, /, *, fsync: bool = True) -> Iterator[Path]:
    """Yield a complete hidden file beside `path` that is gone afterwards, unless it was renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def fsync_folder(folder: Path, /) -> None:
    """Make the names in a folder survive a power failure, where the operating system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows cannot open a folder
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)


def file_server_time_s(folder: Path, /) -> float:
    """Return the time of the clock that stamps files in `folder`, in seconds since 1970.

    On a network share that is the server's clock, the same for all hosts however wrong their own clocks are. The
    probe file also makes a network client look again at what the folder holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = temporary_name(folder / "now")
    try:
        # Closing brings the byte to the server, which stamps it. No fsync: behind gigabytes of tiles it takes seconds.
        probe.write_bytes(b"\n")
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> bool | None:
    """Return whether `path` is now ours; None where the file system has no hard links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network client that lost the answer asks again and is then told "exists" about its own link.
        return _same_file(temporary, path)
    except (AttributeError, NotImplementedError):
        return None
    except OSError as error:
        if error.errno in _NO_LINKS:
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
    function: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return function


def _create_in_place(path: Path, data: bytes, *, fsync: bool) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        if fsync:
            file.flush()
            os.fsync(file.fileno())
    return True


def _say_once(path: Path, what: str) -> None:
    device = path.parent.stat().st_dev
    if (device, what) not in _said:
        _said.add((device, what))
        _log.warning("the file system of %s %s", path.parent, what)

"""Whether a folder can be used by this process, and in plain words why not."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from opticstream.system.time_limit import within

LOOK_S = 20.0
"""Time after which a folder that does not answer counts as out of reach, in seconds."""

ABSENT = "it is not there"
_REASONS = {
    errno.ENOENT: ABSENT,
    errno.ENOTDIR: "a part of its path is a file",
    errno.EACCES: "this account may not look into it",
    errno.EPERM: "this account may not look into it",
    errno.ESTALE: "its network share is stale: it was replaced at the file server; mount it again",
    errno.EIO: "the disk or network share reports an input/output error",
    errno.ENOTCONN: "its network share is not connected; mount it again",
    errno.EHOSTDOWN: "the file server is down",
    errno.EHOSTUNREACH: "the file server cannot be reached",
    errno.ETIMEDOUT: "the file server does not answer",
    errno.ELOOP: "its symbolic links lead in a circle",
}


def reason_of(error: OSError, /) -> str:
    """Return in plain words why the operating system refuses a folder.

    Examples
    --------
    >>> reason_of(PermissionError(errno.EACCES, "Permission denied"))
    'this account may not look into it (Permission denied)'
    """
    said = error.strerror or str(error)
    known = _REASONS.get(error.errno or 0)
    return said if known is None else known if known == ABSENT else f"{known} ({said})"


def folder_trouble(folder: Path, /, *, writes: bool = False, limit_s: float = LOOK_S) -> str | None:
    """Return why this process cannot use a folder, None where it can; nothing is written.

    Parameters
    ----------
    folder : Path
        Which folder.
    writes : bool
        Whether it is to be written, too.
    limit_s : float
        Time to wait for an answer of the file system, in seconds.
    """
    try:
        return within(limit_s, lambda: _trouble(folder, writes))
    except TimeoutError:
        return f"its file system did not answer within {limit_s:g} s"
    except OSError as error:
        return reason_of(error)
    except ValueError as error:  # a name that no file can have
        return str(error)


def _trouble(folder: Path, writes: bool) -> str | None:
    if not stat.S_ISDIR(os.stat(folder).st_mode):
        return "it is not a folder"
    with os.scandir(folder) as entries:  # asks the file server, where a cached answer would say that all is well
        next(entries, None)
    if not os.access(folder, os.X_OK):
        return "this account may not look into it (Permission denied)"
    if writes and not os.access(folder, os.W_OK):
        return "its file system is mounted read-only" if _is_read_only(folder) else "this account may not write there"
    return None


def _is_read_only(folder: Path) -> bool:
    read_only = getattr(os, "ST_RDONLY", None)
    return read_only is not None and bool(os.statvfs(folder).f_flag & read_only)

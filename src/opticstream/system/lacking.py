"""Recognise what a file system or an operating system lacks, and log it once per process rather than once per file."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

_log = logging.getLogger("opticstream")
_logged: set[tuple[object, str]] = set()

UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.ENODEV}
)
"""Error codes of file systems for calls that they do not support; never those of a full or broken disk."""
NOT_ALLOWED = frozenset({errno.EPERM, errno.EACCES})
"""Error codes that some file systems use for unsupported calls, and others for forbidden ones."""


def is_unsupported(error: OSError, /, *also: int) -> bool:
    """Return whether an error means that the file system does not support a call; `also` lists further such codes.

    Examples
    --------
    >>> is_unsupported(OSError(errno.EINVAL, "")), is_unsupported(OSError(errno.ENOSPC, ""))
    (True, False)
    """
    return error.errno in UNSUPPORTED or error.errno in also


def log_once(path: Path, what: str, /) -> None:
    """Log that the file system of `path` lacks something, once for each file system and process.

    Flow runs are separate processes, so each of them logs it.
    """
    folder = path if path.is_dir() else path.parent
    try:
        device: object = os.stat(folder).st_dev
    except OSError:
        device = str(folder)
    if (device, what) not in _logged:
        _logged.add((device, what))
        _log.warning("the file system of %s %s", folder, what)


def log_once_for_host(what: str, /) -> None:
    """Log something about this machine or account, once in this process."""
    if (None, what) not in _logged:
        _logged.add((None, what))
        _log.warning("%s", what)


def forget_logged() -> None:
    """Log everything once more; for tests."""
    _logged.clear()

"""Raise the same errors of the file system for every library that writes or reads."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from opticstream.system.temporary_names import TEMPORARY_MARK

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CODE = re.compile(r"os_error_code='(\d+)'")


@contextlib.contextmanager
def disk_errors(path: Path, /) -> Iterator[None]:
    """Raise errors of the file system in this block, which writes `path`, as OSError with its name.

    The store library raises ValueError with the system's code in its text, so that a full disk would look like a bug.
    Python's own error for a full disk has no file name.

    Examples
    --------
    >>> with disk_errors(Path("v.ome.zarr")):
    ...     raise ValueError("Failed to write 9 bytes: No space left on device [os_error_code='28']")
    Traceback (most recent call last):
    OSError: [Errno 28] No space left on device: 'v.ome.zarr'
    """
    try:
        yield
    except OSError as error:
        # Name the final file, not the temporary one that was being written.
        if TEMPORARY_MARK in str(error.filename or "") or (error.errno in _NO_ROOM and error.filename is None):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    except ValueError as error:
        found = _CODE.search(str(error))
        if found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from error

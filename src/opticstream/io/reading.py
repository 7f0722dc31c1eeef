"""Raise the same errors for every library that reads a file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from opticstream.model.errors import FileFormatError, InputError, MissingInputError, OpticStreamError

_PASSING = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "EAGAIN", "EBUSY", "EINTR", "EMFILE", "ENFILE", "ENOTCONN",
        "ECONNRESET", "ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ESHUTDOWN",
    )
    if hasattr(errno, name)
}  # fmt: skip
"""Errors of a disk or a network, not of the file: another attempt may help."""
_REFUSED = {errno.EACCES, errno.EPERM}
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


@contextlib.contextmanager
def reading_errors(path: Path, kind: str, /) -> Iterator[None]:
    """Raise any error of a library in this block, which reads `path`, as an OpticStream error that names the file.

    Damaged bytes can make a reader fail in any way: with its own errors, those of the decompression, of Python's
    arithmetic, or of memory if a header has an absurd size. OpticStream's errors are not changed, nor are errors of
    the disk or the network, after which another attempt may help.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        The format it was read as, for the message: ``NIfTI``, ``TIFF``.

    Raises
    ------
    MissingInputError
        There is no such file.
    FileFormatError
        It is damaged, or does not match its name.
    InputError
        There is no permission to read it.
    OSError
        The disk or the network failed.

    Examples
    --------
    >>> with reading_errors(Path("a.nii.gz"), "NIfTI"):
    ...     raise EOFError("Compressed file ended")
    Traceback (most recent call last):
    opticstream.model.errors.FileFormatError: a.nii.gz: cannot be read as NIfTI: EOFError: Compressed file ended
    """
    try:
        yield
    except OpticStreamError:
        raise
    except OSError as error:
        raise error_of_system(path, error, kind) from error
    except MemoryError as error:
        raise FileFormatError(f"{path}: cannot be read as {kind}: its header asks for more memory than there is") from (
            error
        )
    except Exception as error:
        text = " ".join(str(error).split()) or "damaged"
        raise FileFormatError(f"{path}: cannot be read as {kind}: {type(error).__name__}: {text}") from error


def error_of_system(path: Path, error: OSError, kind: str = "", /) -> OSError | InputError:
    """Return the error to raise for an error of the system, or of a library, on a file."""
    if isinstance(error, OpticStreamError):
        return error
    if error.errno in _ABSENT:
        return MissingInputError(f"{path}: no such file")
    if error.errno in _REFUSED:
        return InputError(f"{path}: cannot be read: {error.strerror}")
    if error.errno == errno.EISDIR:
        return FileFormatError(f"{path}: a folder, not a file")
    if error.errno in _PASSING:
        error.filename = str(path)
        return error
    text = " ".join(str(error.strerror or error).split()) or type(error).__name__
    return FileFormatError(f"{path}: cannot be read{f' as {kind}' if kind else ''}: {text}")


def check_regular_file(path: Path, /) -> os.stat_result:
    """Return the status of a regular file; opening anything else could block forever.

    Raises
    ------
    MissingInputError, FileFormatError, InputError, OSError
        There is nothing at `path` (or only a dangling link), or a folder, a pipe, a socket or a device.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise error_of_system(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise FileFormatError(f"{path}: {_kind_of_file(status.st_mode)}, not a file")
    return status


def _kind_of_file(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((words for is_kind, words in kinds if is_kind(mode)), "something else")

"""Which errors are worth another try, and how a failure is told."""

from __future__ import annotations

from opticstream.model.errors import OpticStreamError, ServerError

_PERMANENT_OS_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


def is_transient(error: BaseException, /) -> bool:
    """Return whether trying again may help: trouble with disk, network or server, not with the data.

    Examples
    --------
    >>> is_transient(OSError("stale file handle")), is_transient(PermissionError("no")), is_transient(ValueError("NaN"))
    (True, False, False)
    """
    if isinstance(error, ServerError):
        return True
    if isinstance(error, OpticStreamError):
        return False
    return isinstance(error, OSError | MemoryError) and not isinstance(error, _PERMANENT_OS_ERRORS)


def describe(error: BaseException, /) -> str:
    """Return one line that tells what went wrong, with the kind of error unless the message is ours."""
    if isinstance(error, ExceptionGroup):
        return "; ".join(describe(inner) for inner in error.exceptions)
    text = " ".join(str(error).split())
    return text if isinstance(error, OpticStreamError) and text else f"{type(error).__name__}: {text}"

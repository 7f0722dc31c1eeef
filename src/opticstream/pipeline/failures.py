"""Which errors are worth another try, what kind of trouble they are, and how a failure is told."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType

from opticstream.model.errors import (
    CalibrationError,
    ChangingInputError,
    ClaimLost,
    ConfigurationError,
    EventError,
    InputError,
    MissingInputError,
    OpticStreamError,
    ProcessingError,
    ServerError,
    StateError,
)

_PERMANENT_OS_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_FULL = {errno.ENOSPC, errno.EDQUOT}

PROCESS_DIED = "process died"
NOT_TOLD = "not told"
SUGGESTIONS: Mapping[str, str] = MappingProxyType(
    {
        "missing input": "put the files back where they were found, or have the tiles acquired again; then retry",
        "changing input": "let whatever writes the raw file end; `opticstream run` then finds that it has changed",
        "damaged input": "compare the file with its archive copy and the scan settings; then retry",
        "calibration": "check scan.calibration with `opticstream project check`; then retry",
        "event not understood": "mend what the program that sends it puts into the event (docs/reference/events.md), "
        "and let it send the event again",
        "settings": "mend the project file (`opticstream project check`); then retry",
        "no result": "look at the quality pictures of the item and at the settings of its stage; then retry",
        "disk full": "make room, or move the project; then retry",
        "no access": "give the worker's user access to the folder; then retry",
        "disk or network": "look at the disk or share of that host; it was tried several times; then retry",
        "memory": "lower the memory budgets or OPTICSTREAM_TILE_LIMIT on that host; then retry",
        "server": "look at the Prefect server's log; work goes on when it answers again",
        "state": "`opticstream state verify` tells which facts are damaged or deny each other",
        "claim lost": "the host was stopped or cut off for longer than OPTICSTREAM_LEASE_S; nothing was lost",
        PROCESS_DIED: "look at that host's memory and system log: its processes were killed; the work was taken over",
        NOT_TOLD: "look at the target in OPTICSTREAM_NOTIFY_TARGETS and at what it writes to; the sweep tries again",
        "unexpected": "this looks like a fault of the program: report it with the message",
        "unknown": "see `opticstream history` of the item",
    }
)
"""Kinds of failures, and what to do about each."""


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


def kind_of(error: BaseException, /) -> str:
    """Return which kind of trouble an error is, one of `SUGGESTIONS`.

    Examples
    --------
    >>> kind_of(OSError(28, "No space left on device")), kind_of(KeyError("x"))
    ('disk full', 'unexpected')
    """
    if isinstance(error, ExceptionGroup):
        return kind_of(error.exceptions[0])
    kinds: tuple[tuple[type[BaseException], str], ...] = (
        (MissingInputError, "missing input"),
        (CalibrationError, "calibration"),
        (ChangingInputError, "changing input"),
        (EventError, "event not understood"),
        (InputError, "damaged input"),
        (ConfigurationError, "settings"),
        (ProcessingError, "no result"),
        (ClaimLost, "claim lost"),
        (StateError, "state"),
        (ServerError, "server"),
        (PermissionError, "no access"),
        (MemoryError, "memory"),
        (FileNotFoundError, "missing input"),
    )
    for type_, kind in kinds:
        if isinstance(error, type_):
            return kind
    if isinstance(error, OSError):
        return "disk full" if error.errno in _FULL else "disk or network"
    return "unexpected"


def describe(error: BaseException, /) -> str:
    """Return one line that tells what went wrong, with the kind of error unless the message is ours."""
    if isinstance(error, ExceptionGroup):
        return "; ".join(describe(inner) for inner in error.exceptions)
    text = " ".join(str(error).split())
    return text if isinstance(error, OpticStreamError) and text else f"{type(error).__name__}: {text}"

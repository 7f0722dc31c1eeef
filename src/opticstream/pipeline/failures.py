"""Classify errors: which are worth another attempt, of which kind they are, and how they are described."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType

from opticstream.model.errors import (
    CalibrationError,
    ChangingInputError,
    ClaimLost,
    ConfigurationError,
    EngineError,
    EngineOutOfMemory,
    EngineTimeout,
    EventError,
    InputError,
    LicenseError,
    MissingInputError,
    OpticStreamError,
    ProcessingError,
    ServerError,
    StateError,
    TargetUnavailable,
    UploadError,
)

_PERMANENT_OS_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_SHARE_AWAY = {errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}

PASSES = "passes"
"""Detail of a record of parked work: what it was parked for passes by itself."""
PROCESS_DIED = "process died"
NOT_TOLD = "not told"
SUGGESTIONS: Mapping[str, str] = MappingProxyType(
    {
        "missing input": "put the files back where they were found, or acquire the tiles again; then retry",
        "changing input": "wait until the raw file is completely written; `opticstream run` then notices the change",
        "damaged input": "compare the file with its archive copy and the scan settings; then retry",
        "calibration": "check scan.calibration with `opticstream project check`; then retry",
        "event not understood": "correct the event in the program that sends it (docs/reference/events.md); resend it",
        "settings": "correct the project file (`opticstream project check`); then retry",
        "no result": "check the quality pictures of the item and the settings of its stage; then retry",
        "engine": "look at the last lines of the program in the message, and at the log of the run; then retry",
        "engine time-out": "raise OPTICSTREAM_MATLAB_TIMEOUT_S or OPTICSTREAM_FIJI_TIMEOUT_S on that host, or find out "
        "what the program waits for; then retry",
        "engine licence": "check the licence server and OPTICSTREAM_MATLAB_ENVIRONMENT (`opticstream engines check`); "
        "then retry",
        "disk full": "free some space, or move the project; the work goes on by itself within half an hour",
        "no access": "give the worker's user access to the folder; then retry",
        "disk or network": "check the disk or network share of that host; several attempts failed; then retry",
        "memory": "lower the memory budgets or OPTICSTREAM_TILE_LIMIT on that host; then retry",
        "server": "check the log of the Prefect server; work continues when it answers again",
        "state": "run `opticstream state verify` to find facts that are damaged or contradict each other",
        "claim lost": "the host was stopped or disconnected for longer than OPTICSTREAM_LEASE_S; nothing was lost",
        "target unavailable": "check the network and the remote target; the upload continues by itself",
        "upload refused": "correct credentials, permissions, quota or the target's settings (`opticstream secrets "
        "check`); then retry",
        PROCESS_DIED: "check the memory and the system log of that host: its processes were killed; the work was taken "
        "over",
        NOT_TOLD: "check the target in OPTICSTREAM_NOTIFY_TARGETS and where it writes to; the sweep tries again",
        "unexpected": "this is probably a bug in OpticStream: report it with the message",
        "unknown": "see `opticstream history` of the item",
    }
)
"""Kinds of failures, and what to do about each."""


def is_transient(error: BaseException, /) -> bool:
    """Return whether another attempt may help: after errors of disk, network or server, not of the data.

    Examples
    --------
    >>> is_transient(OSError("stale file handle")), is_transient(PermissionError("no")), is_transient(ValueError("NaN"))
    (True, False, False)
    """
    if isinstance(error, ServerError | EngineError):
        return not isinstance(error, LicenseError)  # which has been waited for already
    if isinstance(error, OpticStreamError):
        return False
    return isinstance(error, OSError | MemoryError) and not isinstance(error, _PERMANENT_OS_ERRORS)


def is_of_surroundings(error: BaseException, /) -> bool:
    """Return whether an error tells of the place of the work and not of the work: a full disk, a share that is away.

    It may last for days and then pass, and nothing is wrong with the item.

    Examples
    --------
    >>> is_of_surroundings(OSError(28, "No space left on device")), is_of_surroundings(OSError(5, "Input/output error"))
    (True, False)
    """
    if isinstance(error, ExceptionGroup):
        return any(map(is_of_surroundings, error.exceptions))
    return isinstance(error, OSError) and error.errno in _FULL | _SHARE_AWAY


def kind_of(error: BaseException, /) -> str:
    """Return the kind of an error, one of `SUGGESTIONS`.

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
        (EngineTimeout, "engine time-out"),
        (EngineOutOfMemory, "memory"),
        (LicenseError, "engine licence"),
        (EngineError, "engine"),
        (ClaimLost, "claim lost"),
        (StateError, "state"),
        (TargetUnavailable, "target unavailable"),
        (UploadError, "upload refused"),
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
    """Return one line that says what went wrong; errors of other libraries are named with their class."""
    if isinstance(error, ExceptionGroup):
        return "; ".join(describe(inner) for inner in error.exceptions)
    text = " ".join(str(error).split())
    return text if isinstance(error, OpticStreamError) and text else f"{type(error).__name__}: {text}"

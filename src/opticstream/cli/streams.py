"""Prepare the three standard streams, which may be closed, or unable to write some characters."""

from __future__ import annotations

import os
import sys
import warnings


def open_standard_streams() -> None:
    """Open the standard streams that the caller has closed, on the null device.

    Otherwise the next file that is opened, perhaps a result, would get the number of a standard stream, and what is
    printed would be written to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
        if getattr(sys, name) is None:
            stream = open(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def escape_unencodable_text() -> None:
    """Let the streams write characters that their encoding lacks, and names that are not UTF-8, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def ignore_warnings_as_errors() -> None:
    """Ignore warnings of libraries if PYTHONWARNINGS=error, meant for developers, would turn them into errors."""
    if any(given.startswith("error") for given in sys.warnoptions):
        warnings.resetwarnings()
        warnings.simplefilter("ignore")

"""The three standard streams as a command may find them: closed, a pipe that ends, or unable to write some letters."""

from __future__ import annotations

import os
import sys
import warnings


def open_standard_streams() -> None:
    """Open the standard streams that the caller has closed, on nothing.

    Otherwise the next file that is opened, perhaps a result, would get the number of a standard stream, and what is
    printed would land in it.
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


def print_any_letter() -> None:
    """Let the streams write letters that their encoding lacks, and names that are not UTF-8, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def keep_warnings_from_being_errors() -> None:
    """Let no warning of a library become an error, as PYTHONWARNINGS=error asks for in programs under development."""
    if any(given.startswith("error") for given in sys.warnoptions):
        warnings.resetwarnings()
        warnings.simplefilter("ignore")

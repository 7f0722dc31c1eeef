"""What commands share: consoles, errors, JSON, and the PROJECT and FOLDER arguments.

Text is printed literally, because the names of projects and files may contain brackets, colons and any other
character. Colour comes from `styled`, never from markup inside a text.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import TextColumn
from rich.text import Text

from opticstream.cli.streams import open_standard_streams
from opticstream.model.errors import ConfigurationError, OpticStreamError

open_standard_streams()

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
# A pipe or a log file has no width; tables then get this one.
_WIDE = 160


def escaped(text: object, /) -> str:
    r"""Return a text with its control characters escaped, so that the terminal does not act on them.

    Examples
    --------
    >>> escaped("a\x1b[31mname.nii")
    'a\\x1b[31mname.nii'
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


def styled(text: object, style: str, /) -> Text:
    """Return a text in a style such as ``bold red``, ready to print."""
    return Text(escaped(text), style=style)


class PlainConsole(Console):
    """A console that prints text literally, in tables and trees too."""

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(
            stderr=stderr,
            soft_wrap=True,
            highlight=False,
            markup=False,
            emoji=False,
            width=None if stream.isatty() else _WIDE,
        )

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text, ready to print."""
        return super().render_str(escaped(text), **(options | {"markup": False, "emoji": False}))


out = PlainConsole()
err = PlainConsole(stderr=True)


def text_column(template: str = "{task.description}", /) -> TextColumn:
    """Return a column of a progress bar that shows descriptions literally."""
    return TextColumn(template, markup=False)


ProjectArgument = Annotated[
    str, typer.Argument(help="Project file (TOML), or the name of a registered project.", show_default=False)
]
FolderArgument = Annotated[
    Path, typer.Argument(help="Folder of raw tiles, which are never changed.", show_default=False)
]
_wants_json = False
"""Whether the command that runs prints JSON, so that its error is JSON, too."""


def note_json(wanted: bool) -> bool:
    """Note whether the command that is about to run prints JSON."""
    global _wants_json
    _wants_json = wanted
    return wanted


JsonOption = Annotated[
    bool, typer.Option("--json", callback=note_json, help="Print JSON instead of text, also about an error.")
]

DONE, FAILED, MISUSED = 0, 1, 2


@contextlib.contextmanager
def errors_shown() -> Iterator[None]:
    """Print errors as one line and exit with 2 for wrong use or wrong settings, or with 1 for everything else.

    With `--json` the standard output has the error, too: ``{"error": "...", "exit_status": 2}``.

    Errors of the operating system (a full disk, a file without permission, too little memory) are one line too: the
    message names the file, and a traceback would add nothing.
    """
    try:
        yield
    except OpticStreamError as error:
        status = MISUSED if isinstance(error, ConfigurationError) else FAILED
        _show_error(error, status)
        raise typer.Exit(status) from error
    except BrokenPipeError:
        raise  # the reader of the output has gone
    except OSError as error:
        _show_error(error)
        raise typer.Exit(FAILED) from error
    except MemoryError as error:
        _show_error(f"not enough memory: {error}" if str(error) else "not enough memory (see `ulimit -v`)")
        raise typer.Exit(FAILED) from error
    except Exception as error:
        if (said := _said_of_server(error)) is not None:
            _show_error(said)
            raise typer.Exit(FAILED) from error
        if not isinstance(error, RuntimeError) or "start new thread" not in str(error):
            raise
        _show_error(f"{error}: this account has reached its limit of threads and processes (see `ulimit -u`)")
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(130) from None


@contextlib.contextmanager
def misuse_as_json(arguments: Sequence[str], /) -> Iterator[None]:
    """Print an error of Typer about the arguments of a command as JSON, too, if they ask for JSON.

    Typer has not read the options then, so that nobody knows whether the command has `--json`.
    """
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    try:
        yield
    except Exception as error:
        tell, status = getattr(error, "format_message", None), getattr(error, "exit_code", None)
        if "--json" in own and tell is not None and isinstance(status, int):
            print_json({"error": str(tell()), "exit_status": status})
        raise


def _said_of_server(error: Exception) -> str | None:
    """Return one line about an error of a request to the server, None of any other error."""
    if "httpx" not in sys.modules:  # loading it takes time, and what is not loaded has raised nothing
        return None
    import httpx

    if not isinstance(error, httpx.HTTPError):
        return None
    from opticstream.flows.contact import said_of_http_error

    return said_of_http_error(error, os.environ.get("PREFECT_API_URL", ""))


def _show_error(error: object, status: int = FAILED) -> None:
    err.print(styled("error:", "bold red"), str(error))
    if _wants_json:
        print_json({"error": str(error), "exit_status": status})


def print_json(data: Any, /, *, one_line: bool = False) -> None:
    """Print data as JSON, neither wrapped nor coloured; NaN and infinity become null."""
    indent = None if one_line else 1
    text = json.dumps(_finite(data), indent=indent, ensure_ascii=False, default=str, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeError:  # a file name that is not UTF-8, or a terminal that is not
        text = json.dumps(_finite(data), indent=indent, default=str, allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


def is_project_file(project: str, /) -> bool:
    """Return whether a PROJECT argument is a file rather than the name of a registered project."""
    return project.endswith(".toml") or Path(project).is_file()


def end_with_outcomes(found: Mapping[str, str], *, good: str, bad: str, nothing: str, as_json: bool) -> None:
    """Print of each thing that was tried why it failed, or that it did not; end the command if one did.

    Parameters
    ----------
    found : mapping
        By name, why it failed; empty if it did not.
    good, bad : str
        The word before a name.
    nothing : str
        What is printed where nothing was tried.
    as_json : bool
        Print JSON.

    Raises
    ------
    typer.Exit
        One has failed.
    """
    if as_json:
        print_json({name: {"ok": not why, "why": why} for name, why in found.items()})
    else:
        for name, why in found.items():
            out.print(styled(bad, "red") if why else styled(good, "green"), f"{name}: {why}" if why else name)
        if not found:
            out.print(nothing)
    if any(found.values()):
        raise typer.Exit(FAILED)

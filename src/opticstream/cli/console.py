"""What commands share: where they print, how they show errors and progress, how they find a project.

Whatever is printed is shown as it is: names of people's projects and files may hold brackets, colons and any other
character. Colour is given by `styled`, never by markup inside a text.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator
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
# A pipe or a log has no width of its own: tables are then as wide as they need to be.
_WIDE = 160


def harmless(text: object, /) -> str:
    r"""Return a text whose control characters are shown instead of obeyed by the terminal.

    Examples
    --------
    >>> harmless("a\x1b[31mname.nii")
    'a\\x1b[31mname.nii'
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], str(text))


def styled(text: object, style: str, /) -> Text:
    """Return a text to print in a style such as ``bold red``."""
    return Text(harmless(text), style=style)


class PlainConsole(Console):
    """A console that prints texts as they are, also in tables and trees."""

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
        """Return a text ready to print."""
        return super().render_str(harmless(text), **(options | {"markup": False, "emoji": False}))


out = PlainConsole()
err = PlainConsole(stderr=True)


def text_column(template: str = "{task.description}", /) -> TextColumn:
    """Return a column of a progress bar that shows descriptions as they are."""
    return TextColumn(template, markup=False)


ProjectArgument = Annotated[
    str, typer.Argument(help="Project file (TOML), or the name of a registered project.", show_default=False)
]
FolderArgument = Annotated[Path, typer.Argument(help="Folder of raw tiles; only read.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text for people.")]

DONE, FAILED, MISUSED = 0, 1, 2


@contextlib.contextmanager
def errors_shown() -> Iterator[None]:
    """Turn our errors into one clear line and an exit code: 2 for wrong use or settings, 1 for everything else.

    What the operating system refuses (a full disk, a file without permission, too little memory) is one line too: a
    traceback would say no more than its message, which names the file.
    """
    try:
        yield
    except OpticStreamError as error:
        _show_error(error)
        raise typer.Exit(MISUSED if isinstance(error, ConfigurationError) else FAILED) from error
    except BrokenPipeError:
        raise  # whoever read our output has gone: nobody is left to be told
    except OSError as error:
        _show_error(error)
        raise typer.Exit(FAILED) from error
    except MemoryError as error:
        _show_error(f"not enough memory: {error}" if str(error) else "not enough memory (see `ulimit -v`)")
        raise typer.Exit(FAILED) from error
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        _show_error(f"{error}: this account may have no more threads or processes (see `ulimit -u`)")
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(130) from None


def _show_error(error: object) -> None:
    err.print(styled("error:", "bold red"), str(error))


def print_json(data: Any, /) -> None:
    """Print data as JSON, not wrapped or coloured when it goes to a machine; what is not finite becomes null."""
    text = json.dumps(_finite(data), indent=1, ensure_ascii=False, default=str, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeError:  # a file name that is not UTF-8, or a terminal that is not
        text = json.dumps(_finite(data), indent=1, default=str, allow_nan=False)
    sys.stdout.write(text + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return data


def is_project_file(project: str, /) -> bool:
    """Return whether a PROJECT argument means a file rather than a registered name."""
    return project.endswith(".toml") or Path(project).is_file()

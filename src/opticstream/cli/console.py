"""What commands share: where they print, how they show errors and progress, how they find a project."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from opticstream.model.errors import ConfigurationError, OpticStreamError

# A pipe or a log has no width of its own: tables are then as wide as they need to be.
_WIDE = 160
out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, soft_wrap=True, highlight=False, width=None if sys.stderr.isatty() else _WIDE)

ProjectArgument = Annotated[
    str, typer.Argument(help="Project file (TOML), or the name of a registered project.", show_default=False)
]
FolderArgument = Annotated[Path, typer.Argument(help="Folder of raw tiles; only read.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text for people.")]

DONE, FAILED, MISUSED = 0, 1, 2


@contextlib.contextmanager
def errors_shown() -> Iterator[None]:
    """Turn our errors into one clear line and an exit code: 2 for wrong use or settings, 1 for everything else.

    What the operating system refuses (a full disk, a file without permission) is one line too: a traceback would say
    no more than its message, which names the file.
    """
    try:
        yield
    except OpticStreamError as error:
        err.print(f"[bold red]error:[/] {_plain(error)}")
        raise typer.Exit(MISUSED if isinstance(error, ConfigurationError) else FAILED) from error
    except BrokenPipeError:
        raise  # whoever read our output has gone: nobody is left to be told
    except OSError as error:
        err.print(f"[bold red]error:[/] {_plain(error)}")
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(130) from None


def _plain(error: BaseException) -> str:
    from rich.markup import escape

    return escape(str(error))


def print_json(data: Any, /) -> None:
    """Print data as JSON, not wrapped or coloured when it goes to a machine; what is not finite becomes null."""
    text = json.dumps(_finite(data), indent=1, ensure_ascii=False, default=str, allow_nan=False)
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

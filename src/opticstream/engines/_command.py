"""A command of the configuration that gets files and leaves files: run to its end, or until its time is over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from opticstream.engines._running import Running, environment_of_program, how_it_ended, program_path
from opticstream.model.errors import ProcessingError

_LAST_LINES = 5


def run_command(
    command: Sequence[str],
    /,
    *,
    folder: Path,
    time_limit_s: float,
    setting: str,
    environment: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Run a command in a folder, and return the last lines of what it printed.

    Parameters
    ----------
    command : sequence of str
        Program and arguments; the program is a path, or a name on the PATH.
    folder : Path
        Where it runs.
    time_limit_s : float
        Time after which it is ended, with all that it has started.
    setting : str
        The setting that names it, for messages.
    environment : mapping, optional
        Further variables.

    Raises
    ------
    ConfigurationError
        There is no such program.
    ProcessingError
        It took too long, or failed; the message has the last lines of what it printed.
    """
    program = program_path(command[0], usual=(), setting=setting, name="the command")
    log = logging.getLogger(__name__)
    name = Path(program).name
    variables = environment_of_program(environment or {})
    with Running([program, *command[1:]], folder=folder, environment=variables, log=log, name=name) as running:
        status = running.wait(time_limit_s)
        told = "; ".join(running.lines[-_LAST_LINES:]) or "it printed nothing"
        if status is None:
            raise ProcessingError(f"{name} was ended after {time_limit_s:g} s ({setting}): {told}")
        if status != 0:
            raise ProcessingError(f"{name} {how_it_ended(status)} ({setting}): {told}")
        return running.lines

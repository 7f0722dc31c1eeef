"""A program under our control: its output line by line, its time, its end and that of all that it has started."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from opticstream.model.errors import ConfigurationError

_GUARD = Path(__file__).with_name("_guard.py")
_OURS = ("OPTICSTREAM_", "PREFECT_")
"""Variables that other programs are not given: they may hold passwords."""
KEPT_LINES = 400
"""Last lines of the output that are kept for messages."""
_LOOK_S = 0.05


def program_path(command: str | None, /, *, usual: Sequence[str], setting: str, name: str) -> str:
    """Return the path of a program.

    Parameters
    ----------
    command : str, optional
        A path, or a name on the PATH; None: the first of `usual` that the PATH has.
    usual : sequence of str
        Its usual names.
    setting : str
        The setting that names it, for messages.
    name : str
        What the program is called in messages.

    Raises
    ------
    ConfigurationError
        There is no such program.
    """
    candidates = usual if command is None else (os.path.expanduser(command),)
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is not None:
            return os.path.abspath(found)
    if command is None:
        raise ConfigurationError(
            f"{name} was not found on this host: the PATH has none of {', '.join(usual)}; set {setting} to its program"
        )
    path = Path(candidates[0])
    what = "is a folder" if path.is_dir() else "cannot be executed" if path.exists() else "was not found"
    raise ConfigurationError(f"{setting} = {command}: {what}; expected the program of {name}")


def environment_of_program(further: Mapping[str, str], /) -> dict[str, str]:
    """Return the environment of a program: that of this process without our own settings, text in UTF-8."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    locale = environment.get("LC_ALL") or environment.get("LC_CTYPE") or environment.get("LANG") or ""
    if "utf" not in locale.lower():  # names of files that are not ASCII would be lost
        environment["LC_ALL"] = "C.UTF-8"
    return environment | dict(further)


class Running:
    """A program that has been started; use as a context manager, which ends it and all that it has started."""

    def __init__(
        self,
        command: Sequence[str],
        /,
        *,
        folder: Path,
        environment: Mapping[str, str],
        log: logging.Logger,
        name: str,
    ) -> None:
        self.name = name
        self._log = log
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_GUARD), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environment),
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True, name=name)
        self._reader.start()
        self.started = time.monotonic()

    def _read(self, stream: IO[bytes]) -> None:
        for raw in stream:
            line = raw.decode("utf-8", errors="replace").rstrip()
            if line:
                self._lines.append(line)
                self._log.info("%s: %s", self.name, line)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines of the output."""
        return tuple(self._lines)

    @property
    def status(self) -> int | None:
        """Exit status, negative for the signal that ended it; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._reader.join(timeout=5)
        return 128 - code if code > 128 else code

    def wait(self, timeout_s: float, /, *, until: Callable[[], bool] = lambda: False) -> int | None:
        """Return the exit status, or None if the program still runs after a time, or when `until` is true."""
        end = time.monotonic() + timeout_s
        while self.status is None and time.monotonic() < end and not until():
            time.sleep(_LOOK_S)
        return self.status

    def end(self) -> None:
        """End the program with everything that it has started; harmless if it has ended."""
        stdin = self._process.stdin
        assert stdin is not None
        if not stdin.closed:
            stdin.close()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)
        stdout = self._process.stdout
        if stdout is not None and not self._reader.is_alive():
            stdout.close()


def how_it_ended(status: int, /) -> str:
    """Return an exit status in words.

    Examples
    --------
    >>> how_it_ended(-11), how_it_ended(1)
    ('was ended by signal SIGSEGV', 'ended with status 1')
    """
    if status < 0:
        try:
            return f"was ended by signal {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    return f"ended with status {status}"

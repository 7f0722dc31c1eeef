"""MATLAB, or Octave with the same functions: one call for many tiles, whose results come one after the other.

The arguments of a call stand in a JSON file, vectors beside it in a `.mat` file; the statement that the program is
given is always the same and gets the file's name from the environment, so that no path passes through a shell or a
parser. Each tile has a status file, which appears whole when the tile is done or has failed; what the program prints is
logged as it comes. docs/how-to/matlab.md describes the functions.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from opticstream.config import DeploymentSettings
from opticstream.config.engines import MatlabEngine
from opticstream.engines._running import Running, environment_of_program, how_it_ended, program_path
from opticstream.model.errors import (
    ConfigurationError,
    EngineError,
    EngineOutOfMemory,
    EngineTimeout,
    LicenseError,
    ProcessingError,
)
from opticstream.system.disk import symbolic_link

_log = logging.getLogger(__name__)

FUNCTIONS = Path(__file__).parents[1] / "matlab"
"""Folder of our own functions, the package `+opticstream`."""
FUNCTION_PACKAGE = "+opticstream"
USUAL = ("matlab", "octave-cli", "octave")
CALL_VARIABLE = "OPTICSTREAM_CALL"
_STATEMENT = f"opticstream.run_call(getenv('{CALL_VARIABLE}'))"
_FLAGS = {
    "matlab": ("-nodisplay", "-nosplash", "-batch"),
    "octave": ("--no-gui", "--norc", "--no-history", "--quiet", "--eval"),
}
_BEFORE = {
    "matlab": "",
    # An Octave that is ended would save its variables, which may be gigabytes, into the current folder.
    "octave": "crash_dumps_octave_core(false); sigterm_dumps_octave_core(false); sighup_dumps_octave_core(false); ",
}
_LICENSE = re.compile(
    r"licen[sc]e (checkout|manager|server|error)|licensing error|licen[sc]e number|cannot find (a |any )?licen[sc]e|"
    r"maximum number of users|lmgrd|flexnet|flexlm|no (valid )?licen[sc]e|licen[sc]e .*(expired|unavailable|not found)",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"out of memory|MATLAB:nomem|bad_alloc|cannot allocate|java\.lang\.OutOfMemory", re.IGNORECASE)
_CRASH = re.compile(
    r"segmentation (violation|fault)|abnormal termination|crash dump|fatal: caught signal", re.IGNORECASE
)
_TOLD_LINES = 4
_LOOK_S = 0.02
_LAST_S = 10.0
"""Time that the program has to end by itself after its last item."""
_LICENSE_PAUSES_S = (5.0, 10.0, 20.0, 30.0, 60.0)


@dataclass(frozen=True)
class MatlabProgram:
    """How MATLAB is started on this host.

    Attributes
    ----------
    path : str
        The program.
    dialect : {"matlab", "octave"}
        How it is called.
    flags : tuple of str
        Further flags.
    folders : tuple of Path
        Folders of functions besides our own; earlier ones come first.
    environment : mapping
        Further environment variables.
    timeout_s : float
        Longest time to start and finish one item.
    license_wait_s : float
        How long to try again where there is no licence.
    """

    path: str
    dialect: Literal["matlab", "octave"]
    flags: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 3600.0
    license_wait_s: float = 600.0

    @property
    def name(self) -> str:
        """Name of the program in messages."""
        return {"matlab": "MATLAB", "octave": "Octave"}[self.dialect]

    def command(self, statement: str = _STATEMENT, /) -> list[str]:
        """Return the command line that runs a statement."""
        return [self.path, *self.flags, *_FLAGS[self.dialect], _BEFORE[self.dialect] + statement]

    @contextlib.contextmanager
    def running(self, folder: Path, statement: str = _STATEMENT, /, *, call: Path | None = None) -> Iterator[Running]:
        """Have a statement run in a temporary folder inside a `with` block; our own functions are found there."""
        further = {**self.environment, **({} if call is None else {CALL_VARIABLE: str(call)})}
        # A path that is added may not have a colon in it; the current folder may.
        package = folder / FUNCTION_PACKAGE
        if not package.exists() and not symbolic_link(package, str(FUNCTIONS / FUNCTION_PACKAGE)):
            shutil.copytree(FUNCTIONS / FUNCTION_PACKAGE, package)
        with Running(
            self.command(statement),
            folder=folder,
            environment=environment_of_program(further),
            log=_log,
            name=self.name,
        ) as running:
            yield running


def matlab_program(deployment: DeploymentSettings, engine: MatlabEngine, /) -> MatlabProgram:
    """Return how MATLAB is started on this host for a project.

    Raises
    ------
    ConfigurationError
        There is no such program, or a folder of functions is missing.
    """
    path = program_path(deployment.matlab_command, usual=USUAL, setting="OPTICSTREAM_MATLAB_COMMAND", name="MATLAB")
    dialect: Literal["matlab", "octave"]
    if deployment.matlab_dialect == "auto":
        dialect = "octave" if "octave" in os.path.basename(path).lower() else "matlab"
    else:
        dialect = deployment.matlab_dialect
    settings = dict.fromkeys(engine.paths, "processing.engine.paths")
    settings |= {folder: "OPTICSTREAM_MATLAB_PATH" for folder in deployment.matlab_path if folder not in settings}
    for folder, setting in settings.items():
        if not folder.is_dir():
            raise ConfigurationError(f"{setting}: {folder} is not a folder; expected one with MATLAB functions")
        if os.pathsep in str(folder):
            raise ConfigurationError(
                f"{setting}: {folder} has {os.pathsep!r} in its name, which MATLAB takes for the end of a path; move it"
            )
    return MatlabProgram(
        path,
        dialect,
        deployment.matlab_flags,
        tuple(settings),
        {name: value.get_secret_value() for name, value in deployment.matlab_environment.items()},
        deployment.matlab_timeout_s,
        deployment.matlab_license_wait_s,
    )


@dataclass(frozen=True)
class MatlabStep:
    """One function call on an item: ``function(source, outputs, settings)``."""

    function: str
    source: Path
    outputs: Mapping[str, Path]
    """File of each product."""


@dataclass(frozen=True)
class MatlabItem:
    """What one item, such as a tile, needs: its steps, in order."""

    name: str
    """Name in messages."""
    steps: tuple[MatlabStep, ...]
    optional: frozenset[str] = frozenset()
    """Products that a function may leave out."""

    @property
    def outputs(self) -> dict[str, Path]:
        """All files that the steps leave, by product."""
        return {name: path for step in self.steps for name, path in step.outputs.items()}


class MatlabCall:
    """One call for many items, started when the first result is asked for.

    A call that ended before all items were done goes on with the others when their results are asked for. Use as a
    context manager, which ends the program.

    Parameters
    ----------
    program : MatlabProgram
        How MATLAB is started.
    items : sequence of MatlabItem
        In the order in which they are done.
    settings : mapping
        Plain values that every function gets.
    vectors : mapping of arrays
        Arrays that every function gets, in ``settings.vectors``.
    folder : Path
        Existing folder for the files of the call.
    """

    def __init__(
        self,
        program: MatlabProgram,
        items: Sequence[MatlabItem],
        /,
        *,
        settings: Mapping[str, Any],
        vectors: Mapping[str, ArrayLike],
        folder: Path,
    ) -> None:
        self._program = program
        self._items = {item.name: item for item in items}
        self._settings, self._vectors, self._folder = settings, vectors, folder
        self._open: list[str] = []
        """Items of the present call."""
        self._stack = contextlib.ExitStack()
        self._running: Running | None = None
        self._progress = 0.0
        self._refused: LicenseError | None = None
        self._untaken = set(self._items)

    def __enter__(self) -> MatlabCall:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the program; what is done stays."""
        if self._running is not None and not self._open:
            self._running.wait(_LAST_S)  # it has done everything, and ends by itself
        self._stack.close()
        self._running = None
        self._open = []

    def begin(self, name: str, /) -> None:
        """Start the call, unless this item is done or under way."""
        done = name in self._untaken and self._status_file(name).exists()
        if self._refused is None and not done and (name not in self._open or self._running is None):
            self._start(name)

    def wait_for(self, name: str, /) -> MatlabItem:
        """Return an item when MATLAB has done it; asked again, it is done again.

        Raises
        ------
        ProcessingError
            Its function raised an error, or left a file out.
        EngineError
            MATLAB ended before the item was done, took too long, had too little memory, or got no licence.
        ConfigurationError
            The program cannot be started.
        """
        if self._refused is not None:
            raise self._refused
        began = time.monotonic()
        pauses = iter(_LICENSE_PAUSES_S)
        while True:
            self.begin(name)
            try:
                status = self._status_of(name)
                break
            except LicenseError as error:
                waited = time.monotonic() - began
                pause = min(next(pauses, _LICENSE_PAUSES_S[-1]), self._program.license_wait_s - waited)
                if pause <= 0:
                    self._refused = LicenseError(
                        f"{error} (tried again for {waited:.0f} s; OPTICSTREAM_MATLAB_LICENSE_WAIT_S)"
                    )
                    raise self._refused from None
                _log.warning("%s; it is tried again in %.0f s", error, pause)
                time.sleep(pause)
        self._open = [other for other in self._open if other != name]
        item = self._items[name]
        if not status.get("ok"):
            raise self._error_of(item, status)
        absent = [
            str(path) for product, path in item.outputs.items() if product not in item.optional and not path.is_file()
        ]
        if absent:
            functions = " and ".join(step.function for step in item.steps)
            raise ProcessingError(
                f"{name}: {functions} ended without an error, but did not write {absent[0]}"
                + (f" and {len(absent) - 1} more of its outputs" if len(absent) > 1 else "")
            )
        return item

    def _start(self, first: str) -> None:
        """Start a call for an item and all that come after it and have not been taken."""
        names = list(self._items)
        later = names[names.index(first) + 1 :]
        self.end()
        self._forget(first)
        self._open = [first, *(n for n in later if n in self._untaken and not self._status_file(n).exists())]
        for name in self._open[1:]:
            self._forget(name)
        call = self._folder / "call.json"
        vectors = self._folder / "vectors.mat"
        if self._vectors:
            from scipy.io import savemat

            with vectors.open("wb") as file:
                savemat(file, {name: np.asarray(value) for name, value in self._vectors.items()}, format="5")
        content = {
            "paths": [str(folder) for folder in reversed(self._program.folders)],
            "settings": self._settings,
            "vectors": str(vectors) if self._vectors else "",
            "items": [
                {
                    "name": name,
                    "status": str(self._status_file(name)),
                    "steps": [
                        {
                            "name": step.function,
                            "source": str(step.source),
                            "outputs": {product: str(path) for product, path in step.outputs.items()},
                        }
                        for step in self._items[name].steps
                    ],
                }
                for name in self._open
            ],
        }
        try:
            call.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"{self._folder}: MATLAB cannot be told the name of this folder, or of the raw file of {first}, "
                "because it is not UTF-8; rename it"
            ) from error
        self._running = self._stack.enter_context(self._program.running(self._folder, call=call))
        self._progress = time.monotonic()

    def _forget(self, name: str) -> None:
        """Remove what an earlier call has left of an item."""
        for path in (self._status_file(name), *self._items[name].outputs.values()):
            path.unlink(missing_ok=True)

    def _status_file(self, name: str) -> Path:
        return self._folder / f"status-{list(self._items).index(name) + 1}.json"

    def _status_of(self, name: str) -> dict[str, Any]:
        """Return the status of an item as soon as it is there."""
        path, running = self._status_file(name), self._running
        while True:
            ended = None if running is None else running.status  # before the file, which may appear at the very end
            if path.exists():
                self._untaken.discard(name)
                self._progress = time.monotonic()
                status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8", errors="replace"))
                return status
            assert running is not None
            if ended is not None:
                self.end()
                raise error_of_end(self._program, name, ended, running.lines)
            if time.monotonic() - self._progress > self._program.timeout_s:
                self.end()
                raise EngineTimeout(
                    f"{name}: {self._program.name} did not finish within {self._program.timeout_s:g} s "
                    f"(OPTICSTREAM_MATLAB_TIMEOUT_S), and was ended{_said(running.lines)}"
                )
            time.sleep(_LOOK_S)

    def _error_of(self, item: MatlabItem, status: Mapping[str, Any]) -> Exception:
        """Return the error of a function that failed on an item."""
        message = " ".join(str(status.get("message") or "no message").split())
        where = f" ({status['where']})" if status.get("where") else ""
        if _MEMORY.search(f"{status.get('identifier')} {message}"):
            return EngineOutOfMemory(f"{item.name}: {self._program.name} had too little memory: {message}{where}")
        return ProcessingError(f"{item.name}: {self._program.name}: {message}{where}")


def error_of_end(
    program: MatlabProgram, name: str, status: int, lines: Sequence[str], /
) -> EngineError | ConfigurationError:
    """Return why the program ended before an item was done, from its exit status and its last lines."""
    text = "\n".join(lines)
    how, said = how_it_ended(status), _said(lines)
    if status == 126 and lines and lines[-1].startswith("cannot be started"):
        return ConfigurationError(f"{program.path} (OPTICSTREAM_MATLAB_COMMAND) {lines[-1]}")
    if _LICENSE.search(text):
        return LicenseError(f"{program.name} got no licence{said}")
    if _MEMORY.search(text):
        return EngineOutOfMemory(f"{name}: {program.name} had too little memory, and {how}{said}")
    if status == -9:
        return EngineOutOfMemory(
            f"{name}: {program.name} was killed (SIGKILL), which the system does for want of memory{said}"
        )
    if status < 0 or _CRASH.search(text):
        return EngineError(f"{name}: {program.name} crashed: it {how}{said}")
    if status == 0:
        return EngineError(f"{name}: {program.name} ended before it had done it{said}")
    return EngineError(f"{name}: {program.name} {how}{said}")


def _said(lines: Sequence[str]) -> str:
    """Return the last lines of an output, for a message."""
    told = [line for line in lines if not line.startswith("opticstream: ")][-_TOLD_LINES:]
    return f"; it said: {' | '.join(told)}" if told else ""

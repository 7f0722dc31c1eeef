"""The process of the `dandi` client, which runs in an environment of its own; see `dandi_driver`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opticstream.model.errors import ConfigurationError, TargetUnavailable
from opticstream.publish.pace import Pace
from opticstream.publish.target import Passed

SILENT_S = 300.0
"""Time without any line of the process, which says every two seconds that it lives, after which it is ended."""
_DRIVER = Path(__file__).with_name("dandi_driver.py")
_END: dict[str, Any] = {"end": True}


class ClientError(Exception):
    """The client could not do what was asked."""

    def __init__(self, about: Mapping[str, Any], versions: Mapping[str, str], /) -> None:
        super().__init__(str(about["why"]))
        self.kind = str(about["kind"])
        self.why = str(about["why"])
        self.status: int | None = about.get("status")
        self.retry_after_s: float | None = about.get("retry_after_s")
        self.versions = versions


class DandiClient:
    """A process of the client, started by the first request; requests are answered one after the other.

    Parameters
    ----------
    python : Path
        Interpreter of the environment that has the client.
    hello : mapping
        What the process needs to know of the archive, with the key. It goes through a pipe.
    missing : str
        What to do if there is no such interpreter.
    """

    def __init__(self, python: Path, hello: Mapping[str, Any], /, *, missing: str) -> None:
        self._python, self._hello, self._missing = python, hello, missing
        self._process: _Process | None = None

    def ask(self, request: Mapping[str, Any], /, *, pace: Pace | None = None, sent: Passed = lambda _size: None) -> Any:
        """Return the answer to a request.

        `sent` is told, again and again, the bytes of the present file that have been sent; it may raise an error to
        stop. The process is then ended, and the next request starts another one.

        Raises
        ------
        ClientError
            The client could not do it.
        TargetUnavailable
            The process ended, or was silent.
        ConfigurationError
            There is no such environment.
        """
        try:
            process = self._process = self._process or self._started()
            if not process.connected:
                process.answer({"do": "connect", **self._hello}, sent=lambda _size: None, wait=lambda _size: None)
                process.connected = True
            return process.answer(request, sent=sent, wait=(pace or Pace()).take)
        except ClientError:
            raise
        except _EndedError as error:
            never = not process.connected
            self.close()
            if never:
                raise ConfigurationError(f"{self._python}: {error}; {self._missing}") from None
            raise TargetUnavailable(str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _started(self) -> _Process:
        if not os.access(self._python, os.X_OK) or self._python.is_dir():
            raise ConfigurationError(f"{self._python}: there is no such Python; {self._missing}")
        return _Process(self._python)


class _EndedError(Exception):
    """The process has ended, which it does not do by itself."""


class _Process:
    def __init__(self, python: Path) -> None:
        self.connected = False
        passed_on = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OPTICSTREAM_", "PREFECT_", "PYTHON")) and not name.endswith("_API_KEY")
        }
        own = {"DANDI_CACHE": "ignore", "DANDI_NO_ET": "1", "PYTHONWARNINGS": "ignore"}
        # Isolated: the folder of the driver has modules of ours with names of the standard library.
        self._process = subprocess.Popen(
            [str(python), "-I", str(_DRIVER)], env={**passed_on, **own}, cwd=python.parent,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
            errors="replace",
        )  # fmt: skip
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._complaints: deque[str] = deque(maxlen=5)
        reader = threading.Thread(target=_read_lines, args=(self._process, self._lines), daemon=True)
        self._complaining = threading.Thread(
            target=_read_complaints, args=(self._process, self._complaints), daemon=True
        )
        threads = [reader, self._complaining]
        for thread in threads:
            thread.start()
        self.end = weakref.finalize(self, _end, self._process, threads)

    def answer(self, request: Mapping[str, Any], /, *, sent: Passed, wait: Callable[[int], None]) -> Any:
        """Return the answer to a request."""
        self._say(request)
        while True:
            try:
                line = self._lines.get(timeout=SILENT_S)
            except queue.Empty:
                raise TargetUnavailable(f"the dandi client said nothing for {SILENT_S:g} s") from None
            if "wants" in line:
                wait(line["wants"])
                self._say({"granted": line["number"]})
            elif "sent" in line:
                sent(line["sent"])
            elif "alive" in line:
                sent(0)
            elif "error" in line:
                raise ClientError(line["error"], line["versions"])
            elif "ok" in line:
                return line["ok"]
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(10)
                self._complaining.join(10)  # what it said last may not have been read yet
                why = self._complaints[-1] if self._complaints else "it gave no reason"
                raise _EndedError(f"the dandi client ended with status {self._process.poll()}: {why}")

    def _say(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then the end of its answers is read next
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[dict[str, Any]]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # closed meanwhile, or cut
        for line in process.stdout:
            lines.put(json.loads(line))
    lines.put(_END)


def _read_complaints(process: subprocess.Popen[str], complaints: deque[str]) -> None:
    assert process.stderr is not None
    with contextlib.suppress(ValueError):
        complaints.extend(line.strip() for line in process.stderr if line.strip())


def _end(process: subprocess.Popen[str], threads: list[threading.Thread]) -> None:
    process.kill()
    process.wait()
    for thread in threads:
        thread.join(5)
    for stream in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            stream.close()  # type: ignore[union-attr]

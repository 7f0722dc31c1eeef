"""An embedded Prefect server: its own home folder, a free port on this machine only, gone when its owner is gone.

This module does not import Prefect, because Prefect reads its settings when it is imported: start the server, apply
`EmbeddedServer.environment` to the process, and import Prefect afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from opticstream.model.errors import ServerError

START_TIMEOUT_S = 120.0
_HOST = "127.0.0.1"


def free_port() -> int:
    """Return a TCP port that nobody uses on this machine at the moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def is_healthy(api_url: str, /, *, timeout_s: float = 2.0) -> bool:
    """Return whether a Prefect server answers at an API address."""
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/health", timeout=timeout_s) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def client_environment(home: Path, api_url: str, /) -> dict[str, str]:
    """Return the settings of a process that talks to the server, apart from a person's own Prefect profile."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
        "PREFECT_CLI_COLORS": "false",
    }


class EmbeddedServer:
    """A Prefect server (SQLite) that belongs to this process.

    Parameters
    ----------
    home : Path
        Folder of its database, settings and log; a later server on the same folder continues with the same data.
    ui : bool
        Also serve Prefect's own web page.
    port : int, optional
        Port on 127.0.0.1; a free one by default.
    """

    def __init__(self, home: Path, /, *, ui: bool = False, port: int | None = None) -> None:
        self.home = Path(home).expanduser().absolute()
        self.port = port or free_port()
        self.api_url = f"http://{_HOST}:{self.port}/api"
        self.log = self.home / "server.log"
        self._ui = ui
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The settings that a process needs to talk to this server."""
        return client_environment(self.home, self.api_url)

    @property
    def pid(self) -> int | None:
        """Process id of the server, which is also its process group."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, *, waiting: Callable[[float], None] | None = None) -> None:
        """Start the server and wait until it answers.

        Raises
        ------
        ServerError
            It ended or did not answer in time; the message quotes the end of its log.
        """
        process = self.launch()
        begin = time.monotonic()
        while not is_healthy(self.api_url):
            spent = time.monotonic() - begin
            if process.poll() is not None or spent > START_TIMEOUT_S:
                tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                self.stop()
                raise ServerError(f"the Prefect server did not start within {spent:.0f} s; end of {self.log}:\n{tail}")
            if waiting is not None:
                waiting(spent)
            time.sleep(0.2)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the server without waiting for its first answer, and return its process."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._stop_predecessor()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= self.environment | {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.home / 'prefect.db'}",
            "PREFECT_SERVER_UI_ENABLED": str(self._ui).lower(),
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            # Marking late runs floods SQLite in a burst of events, and nothing here acts on it.
            "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
            # The default keeps leases in memory: a lock held during a restart would stay taken for ever.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", _HOST, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        self._pid_file.write_text(json.dumps({"pid": self._process.pid, "port": self.port}), encoding="utf-8")
        return self._process

    def is_alive(self) -> bool:
        """Return whether the server process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server and everything that it started."""
        if self._process is None:
            return
        end_group(self._process.pid, self._process)
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    @property
    def _pid_file(self) -> Path:
        return self.home / "server.pid"

    def _stop_predecessor(self) -> None:
        """End a server that a killed owner left on the same database."""
        try:
            predecessor = json.loads(self._pid_file.read_bytes())
            pid = int(predecessor["pid"])
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError, KeyError):
            return
        if b"server" in command and str(predecessor["port"]).encode() in command:
            end_group(pid, None)


def die_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, however it dies."""
    set_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def end_group(group: int, process: subprocess.Popen[bytes] | None) -> None:
    for sign, patience_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(group, sign)
        except (ProcessLookupError, PermissionError):
            break
        end = time.monotonic() + patience_s
        while time.monotonic() < end and _group_lives(group, process):
            time.sleep(0.05)
    if process is not None:
        process.wait(timeout=10)


def _group_lives(group: int, process: subprocess.Popen[bytes] | None) -> bool:
    if process is not None:
        process.poll()  # a zombie would count as alive
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True

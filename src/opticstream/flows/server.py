"""An embedded Prefect server: its own home folder, a free port on this machine only, gone when its owner is gone.

This module does not import Prefect, because Prefect reads its settings when it is imported: start the server, apply
`EmbeddedServer.environment` to the process, and import Prefect afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from opticstream.config import DeploymentSettings
from opticstream.flows.new_database import DATABASE, keep_database, lay_database
from opticstream.flows.surroundings import child_environment, client_environment, open_directly, prepared_home
from opticstream.model.errors import ServerError
from opticstream.system.disk import replace
from opticstream.system.host import HostIdentity
from opticstream.system.locks import FileLock, has_record_locks, try_lock
from opticstream.system.temporaries import remove_stale_temporaries
from opticstream.system.temporary_names import temporary_beside

START_TIMEOUT_S = 300.0
HOME_VARIABLE = "OPTICSTREAM_SESSION_HOME"
"""Set in every process that an owner of a home starts, by which its leftovers are known."""
_HOST = "127.0.0.1"
_RECORD = "server.json"
_PORT = "server.port"
_LOCK = "server.lock"


def free_port() -> int:
    """Return a TCP port that nobody uses on this machine at the moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def is_healthy(api_url: str, /, *, timeout_s: float = 2.0) -> bool:
    """Return whether a Prefect server answers at an API address."""
    try:
        with open_directly(f"{api_url.rstrip('/')}/health", timeout_s=timeout_s) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


LEASES = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
_LATE_RUNS = "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED"
DURABLE = {
    LEASES: (
        "prefect.server.concurrency.lease_storage.filesystem",
        "a lock that is held during a restart does not stay taken for ever",
    ),
    _LATE_RUNS: ("false", "marking late runs floods the database in a burst of events, and nothing acts on it"),
    "PREFECT_SERVER_UI_API_URL": ("/api", "Prefect's page asks the server that it came from, wherever it is opened"),
}
"""What holds for every server of ours: name -> value, and the reason, which is told where a person starts one."""
_DAY_S = 86_400

# What nothing on a host's own server waits for: looked for less often, an idle server costs less.
_RARELY_S = {
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "30",
}

# Every client asks the server for its version and for a token that this server does not give: 5 requests of a flow run.
_SAME_INSTALLATION = {
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
}


def settings_of_retention(settings: DeploymentSettings, /) -> dict[str, tuple[str, str]]:
    """Return the settings by which a server removes what is old by itself, every hour: name -> value and reason."""
    days, event_days = settings.retention_days, settings.event_retention_days
    return {
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": ("events,flow_runs", "what is old is removed every hour"),
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": (
            f"{days * _DAY_S:.0f}",
            f"runs that have ended, their logs and artifacts: {days:g} days (OPTICSTREAM_RETENTION_DAYS)",
        ),
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": (
            f"PT{event_days * _DAY_S:.0f}S",
            f"events: {event_days:g} days (OPTICSTREAM_EVENT_RETENTION_DAYS)",
        ),
    }


class HomeInUse(ServerError):
    """Another living process has a server in this home folder."""


@dataclass(frozen=True)
class ServerRecord:
    """What a home folder tells of the server that runs in it."""

    owner: HostIdentity
    server: HostIdentity
    port: int
    workers: bool = False

    @property
    def api_url(self) -> str:
        """Address of the API, on the owner's machine."""
        return f"http://{_HOST}:{self.port}/api"


def is_in_use(home: Path, /) -> bool:
    """Return whether a living process has a server in a home folder."""
    if not (home / _LOCK).exists():
        return False
    lock = try_lock(home / _LOCK)
    if lock is not None:
        lock.release()
    return lock is None


def server_record(home: Path, /) -> ServerRecord | None:
    """Return what is known of the server that runs, or was killed, in a home folder."""
    try:
        data = json.loads((home / _RECORD).read_text(encoding="utf-8"))
        owner, server = (HostIdentity.from_json(data[who]) for who in ("owner", "server"))
        return ServerRecord(owner, server, int(data["port"]), bool(data["workers"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class EmbeddedServer:
    """A Prefect server (SQLite) that belongs to this process.

    Parameters
    ----------
    home : Path
        Folder of its database, settings and log; a later server on the same folder continues with the same data.
    ui : bool
        Also serve Prefect's own web page.
    port : int, optional
        Port on 127.0.0.1; by default that of the last server in this home, or a free one.
    """

    def __init__(self, home: Path, /, *, ui: bool = False, port: int | None = None) -> None:
        self.home = prepared_home(Path(home))
        self.port = port or _last_port(self.home) or free_port()
        self.api_url = f"http://{_HOST}:{self.port}/api"
        self.log = self.home / "server.log"
        self._ui = ui
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: FileLock | None = None
        self._makes_tables = False

    @property
    def environment(self) -> dict[str, str]:
        """The settings that a process needs to talk to this server."""
        return client_environment(self.home, self.api_url) | _SAME_INSTALLATION

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
        self.launch()
        self.wait_until_healthy(waiting=waiting)

    def wait_until_healthy(self, *, waiting: Callable[[float], None] | None = None) -> None:
        """Wait until the launched server answers; ServerError as from `start`."""
        assert self._process is not None
        process = self._process
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
        if self._makes_tables:
            keep_database(self.home)
            self._makes_tables = False

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the server without waiting for its first answer, and return its process.

        Raises
        ------
        HomeInUse
            A living process has a server in the same home; it is not touched.
        ServerError
            The home's file system has no locks, without which its database would be damaged.
        """
        self._take_home()
        try:
            return self._launch()
        except BaseException:
            self._give_home_back()
            raise

    def _launch(self) -> subprocess.Popen[bytes]:
        environment = child_environment(os.environ, self.home) | self.environment
        environment |= {
            # Relative to the server's folder: a URL has no way to write every name that a folder may have.
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///../{DATABASE}",
            "PREFECT_SERVER_UI_ENABLED": str(self._ui).lower(),
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        } | _RARELY_S
        lasting = DURABLE | settings_of_retention(DeploymentSettings())
        environment |= {name: value for name, (value, _why) in lasting.items()}
        self._makes_tables = lay_database(self.home)
        command = [sys.executable, "-m", "opticstream.flows.server_process", "--host", _HOST, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment | {HOME_VARIABLE: str(self.home)},
                cwd=empty_folder(self.home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        self._write_record(self._process.pid, workers=False)
        return self._process

    def is_alive(self) -> bool:
        """Return whether the server process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server and everything that it started, and leave its home to others."""
        if self._process is not None:
            end_group(self._process.pid, self._process)
            self._process = None
            (self.home / _RECORD).unlink(missing_ok=True)
        self._give_home_back()

    def _take_home(self) -> None:
        record = server_record(self.home)
        if self._lock is None:
            if not has_record_locks(self.home):
                raise ServerError(
                    f"OPTICSTREAM_HOME = {self.home}: its file system has no file locks, which the database needs; "
                    "choose a folder on a local disk"
                )
            self._lock = try_lock(self.home / _LOCK)
        if self._lock is None:
            who = f"{record.owner}" if record else "another process"
            raise HomeInUse(f"{who} has a server in {self.home}")
        remove_stale_temporaries(self.home)
        if record is not None and record.server.pid:
            end_leftovers(record.server.pid, self.home)

    def _give_home_back(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def tell_workers_are_ready(self) -> None:
        """Let others that share this server know that all pools are served, and their events taken."""
        assert self._process is not None
        self._write_record(self._process.pid, workers=True)

    def _write_record(self, pid: int, *, workers: bool) -> None:
        """Write who has this home, whole: others may read it at any moment."""
        record = {
            "owner": HostIdentity.current().to_json(),
            "server": HostIdentity.of(pid).to_json(),
            "port": self.port,
            "workers": workers,
        }
        for name, text in ((_RECORD, json.dumps(record)), (_PORT, str(self.port))):
            temporary = temporary_beside(self.home / name)
            temporary.write_text(text, encoding="utf-8")
            replace(temporary, self.home / name)


def end_leftovers(group: int, home: Path, /) -> None:
    """End what a killed owner left of a process group that it had started for `home`, and no other process."""
    mark = f"{HOME_VARIABLE}={home}".encode()
    for process in _processes_of_group(group):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                end_group(group, None)
                return


def _processes_of_group(group: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == group:
                yield int(entry.name)
        except OSError:
            continue


def empty_folder(home: Path, /) -> Path:
    """Return a folder in which Prefect finds no settings of anybody's, for processes to run in."""
    folder = home / "empty"
    folder.mkdir(exist_ok=True)
    return folder


def _last_port(home: Path) -> int | None:
    """Return the port of the last server in a home, if it is free: whoever shared that server finds the next one."""
    try:
        port = int((home / _PORT).read_text(encoding="ascii"))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_HOST, port))
    except (OSError, ValueError, OverflowError):
        return None
    return port


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

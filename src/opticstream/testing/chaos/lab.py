"""A lab on one machine: server, workers, watcher and rig in processes of their own, started again whenever they end.

What systemd does for the hosts of a lab is done here by `Lab.supervise`, which the test calls while it waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from opticstream.flows.server import EmbeddedServer, die_with_parent, is_healthy
from opticstream.sim.demo import PHANTOM_FILE, PROJECT_FILE

RESTART_S = 1.0
"""Time between the end of a process and its restart, in seconds."""

SHORT_WAITS: Mapping[str, str] = {
    "OPTICSTREAM_POLL_S": "0.5",
    "OPTICSTREAM_STABLE_S": "1",
    "OPTICSTREAM_SWEEP_S": "10",
    "OPTICSTREAM_LEASE_S": "6",
    "OPTICSTREAM_COLLAPSE_S": "2",
    "OPTICSTREAM_RETRY_DELAY_S": "0.2",
    "OPTICSTREAM_CRASHES": "1000",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
"""Deployment settings of a lab in a hurry."""


class Service:
    """One process that is to run, or with `endless=False` to come to a good end once.

    Parameters
    ----------
    name : str
        Its name.
    command : sequence of str
        Arguments of ``python -m opticstream``.
    environment : mapping
        The whole environment.
    log : Path
        Where its output goes.
    """

    def __init__(
        self, name: str, command: Sequence[str], /, *, environment: Mapping[str, str], log: Path, endless: bool = True
    ) -> None:
        self.name = name
        self.starts = 0
        self._command = [sys.executable, "-m", "opticstream", *command]
        self._environment = dict(environment)
        self._log = log
        self._endless = endless
        self._process: subprocess.Popen[bytes] | None = None
        self._ended_s: float | None = None

    @property
    def pid(self) -> int | None:
        """Process id, which is also the process group; None while it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def is_over(self) -> bool:
        """Whether it has come to its good end."""
        return not self._endless and self._process is not None and self._process.poll() == 0

    def supervise(self) -> None:
        """Start it, or start it again a moment after it has ended."""
        if self.pid is not None or self.is_over:
            return
        now = time.monotonic()
        if self._process is not None and self._ended_s is None:
            self._ended_s = now
        if self._ended_s is None or now >= self._ended_s + RESTART_S:
            self._ended_s = None
            self._process = self._start()
            self.starts += 1

    def kill(self, *, group: bool = True) -> list[int]:
        """Kill it with everything that it has started, or alone; return the processes that were meant."""
        if self.pid is None:
            return []
        pids = processes_of_group(self.pid) if group else [self.pid]
        for pid in pids:
            kill(pid)
        self._wait()
        return pids

    def stop(self) -> None:
        """End it with everything that it has started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._wait()

    def log_tail(self, size: int = 2000) -> str:
        """Return the end of its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-size:] if self._log.exists() else ""

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _wait(self) -> None:
        assert self._process is not None
        self._process.wait()
        self._ended_s = time.monotonic()


class ServerService(Service):
    """The lab's Prefect server: always on the same port and database."""

    def __init__(self, home: Path, /) -> None:
        self._server = EmbeddedServer(home)
        super().__init__("server", (), environment={}, log=self._server.log)

    @property
    def api_url(self) -> str:
        """Address of its API."""
        return self._server.api_url

    def is_healthy(self) -> bool:
        """Return whether it answers."""
        return is_healthy(self.api_url, timeout_s=0.5)

    def stop(self) -> None:
        """End it with everything that it has started, and leave its home to others."""
        super().stop()
        self._server.stop()

    def _start(self) -> subprocess.Popen[bytes]:
        return self._server.launch()


@dataclass
class Lab:
    """The processes of one project. Use it as a context manager; everything is ended at its end.

    Parameters
    ----------
    folder : Path
        Holds project and phantom file; gets the raw tiles, the truth, the results and the logs.
    pools : sequence of sequences of str
        What each worker serves; one worker for all pools by default.
    rate : float
        Pace of the rig against the camera's line rate; the whole acquisition of a small phantom at 1 takes no time.
    settings : mapping
        Deployment settings, as environment variables.
    """

    folder: Path
    pools: Sequence[Sequence[str]] = ((),)
    rate: float = 0.02
    settings: Mapping[str, str] = field(default_factory=lambda: SHORT_WAITS)

    def __post_init__(self) -> None:
        logs = self.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.server = ServerService(self.folder / "prefect")
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "OPTICSTREAM_"))}
        environment = {
            **plain,
            **self.settings,
            "OPTICSTREAM_API_URL": self.server.api_url,
            "OPTICSTREAM_HOME": str(self.folder / "prefect"),
        }
        project, raw = str(self.folder / PROJECT_FILE), str(self.folder / "raw")
        (self.folder / "raw").mkdir(exist_ok=True)
        phantom = ["--phantom", str(self.folder / PHANTOM_FILE), "--truth", str(self.folder / "truth")]
        self._deploy = [sys.executable, "-m", "opticstream", "deploy"]
        self._environment, self._is_deployed = environment, False
        self.workers = [
            Service(
                f"worker {number}",
                ["worker", *(part for pool in pools for part in ("--pool", pool))],
                environment=environment,
                log=logs / f"worker-{number}.log",
            )
            for number, pools in enumerate(self.pools, 1)
        ]
        self.watch = Service("watch", ["watch", project, raw], environment=environment, log=logs / "watch.log")
        self.rig = Service(
            "rig",
            ["sim", "rig", project, raw, *phantom, "--rate", f"{self.rate:g}x"],
            environment=environment,
            log=logs / "rig.log",
            endless=False,
        )

    @property
    def services(self) -> list[Service]:
        """All processes, in the order in which they are started."""
        return [self.server, *self.workers, self.watch, self.rig]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for service in reversed(self.services):
            service.stop()
        for pid in self.processes():  # flow runs that have outlived their worker
            kill(pid)

    def supervise(self) -> None:
        """Start what does not run; what needs the server only while it answers, the rig when the workers are ready."""
        self.server.supervise()
        if self.rig.starts or all("ready\n" in worker.log_tail() for worker in self.workers):
            self.rig.supervise()
        waiting = [service for service in (*self.workers, self.watch) if service.pid is None]
        if waiting and self.server.is_healthy() and self._deployed():
            for service in waiting:
                service.supervise()

    def _deployed(self) -> bool:
        """Make pools and deployments, once; False where the server went away meanwhile."""
        if not self._is_deployed:
            done = subprocess.run(self._deploy, env=self._environment, capture_output=True, check=False)
            self._is_deployed = done.returncode == 0
        return self._is_deployed

    def processes(self) -> list[int]:
        """Return every process on this machine that works for this lab, whoever started it."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(entry.name) != os.getpid() and str(self.folder).encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found


def processes_of_group(group: int, /) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(entry.name)) == group:
                found.append(int(entry.name))
    return found


def kill(pid: int, /) -> None:
    """Kill a process at once, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

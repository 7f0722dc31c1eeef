"""A server and workers on this machine for as long as one command runs, or the way to a server that stands already.

Like `opticstream.flows.server`, this module does not import Prefect.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from opticstream.flows.leftovers import cancel_leftovers
from opticstream.flows.server import EmbeddedServer, die_with_parent, end_group
from opticstream.model.errors import ServerError

_READY_TIMEOUT_S = 180.0
Say = Callable[[str], object]


class WorkerProcess:
    """A worker process that serves pools, ended with everything that it started."""

    def __init__(self, home: Path, /, *, pools: Sequence[str] = (), sweeps: bool = False) -> None:
        self.home = home
        self.log = home / "workers.log"
        self._arguments = [*pools, *([] if sweeps else ["--no-sweep"])]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, which is also the process group."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the worker and wait until its deployments and triggers are registered.

        Raises
        ------
        ServerError
            It ended, or was not ready in time; the message quotes the end of its log.
        """
        self._stop_predecessor()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "opticstream.flows.workers", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.home,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        self._pid_file.write_text(json.dumps({"pid": self._process.pid}), encoding="utf-8")
        if not self._is_ready():
            tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
            self.stop()
            raise ServerError(f"the workers did not start; end of {self.log}:\n{tail}")

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + _READY_TIMEOUT_S
        seen = b""
        while time.monotonic() < end and self._process.poll() is None:
            if select.select([self._process.stdout], [], [], 0.5)[0]:
                piece = os.read(self._process.stdout.fileno(), 4096)
                if not piece:
                    return False
                seen += piece
                if b"ready\n" in seen:
                    return True
        return False

    def is_alive(self) -> bool:
        """Return whether the worker process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the worker and the flow runs that it has started."""
        if self._process is None:
            return
        end_group(self._process.pid, self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    @property
    def _pid_file(self) -> Path:
        return self.home / "workers.pid"

    def _stop_predecessor(self) -> None:
        """End what a killed owner has left: a worker, or flow runs that outlived it in its process group."""
        try:
            group = int(json.loads(self._pid_file.read_bytes())["pid"])
        except (OSError, ValueError, KeyError):
            return
        for process in _processes_of_group(group):
            with contextlib.suppress(OSError):
                if b"opticstream" in Path(f"/proc/{process}/environ").read_bytes():
                    end_group(group, None)
                    return


def _processes_of_group(group: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(entry.name)) == group:
                yield int(entry.name)
        except OSError:
            continue


@dataclass(frozen=True)
class Session:
    """A running server and its worker."""

    server: EmbeddedServer
    worker: WorkerProcess | None

    def check(self) -> None:
        """Do nothing while both run.

        Raises
        ------
        ServerError
            One of them has ended; the message names its log.
        """
        if not self.server.is_alive():
            raise ServerError(f"the Prefect server has ended; its log is {self.server.log}")
        if self.worker is not None and not self.worker.is_alive():
            raise ServerError(f"the workers have ended; their log is {self.worker.log}")


@contextmanager
def local_session(
    home: Path,
    /,
    *,
    ui: bool = False,
    workers: bool = True,
    sweeps: bool = False,
    say: Say = lambda _line: None,
) -> Iterator[Session]:
    """Run an embedded server and a worker for all pools, with this process pointed at them.

    Everything is ended when the block is left. With `sweeps` the worker also looks after what is ready and not started,
    which the process that feeds a project does itself. `home` keeps the database, so that a later session goes on with
    it.
    """
    home = home.expanduser().absolute()
    server = EmbeddedServer(home, ui=ui)
    worker = WorkerProcess(home, sweeps=sweeps)
    before = dict(os.environ)
    try:
        say("starting the Prefect server")
        server.start()
        os.environ.update(server.environment)
        if left := cancel_leftovers(server.api_url):
            say(f"set aside {left} runs of an earlier life; what they were for is announced again")
        if workers:
            say("starting the workers")
            worker.start()
        yield Session(server, worker if workers else None)
    finally:
        worker.stop()
        server.stop()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)

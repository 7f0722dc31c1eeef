"""A server and workers on this machine for as long as one command runs, or a share in those of another command.

One process at a time owns a home: it has the lock, the server and the workers. Others that come under the same home
share them, and when the owner ends, one of them becomes the owner, on the same address and the same database. Nobody
ends what belongs to a living process. Like `opticstream.flows.server`, this module does not import Prefect.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from opticstream.flows.leftovers import cancel_leftovers
from opticstream.flows.server import (
    HOME_VARIABLE,
    START_TIMEOUT_S,
    EmbeddedServer,
    HomeInUse,
    die_with_parent,
    empty_folder,
    end_group,
    end_leftovers,
    is_healthy,
    server_record,
)
from opticstream.flows.surroundings import child_environment, only_our_settings, prepared_home
from opticstream.model.errors import ServerError

_READY_TIMEOUT_S = 180.0
_LOOK_S = 0.3
GO = b"go\n"
"""What a process of workers reads when the server answers and nothing of an earlier life is left in its queues."""
Say = Callable[[str], object]


class WorkerProcess:
    """A process that serves all pools of an embedded server, ended with everything that it started.

    It is launched beside the server: both load for seconds, and neither needs the other until it has.
    """

    def __init__(self, server: EmbeddedServer, /, *, sweeps: bool = False) -> None:
        self.home = server.home
        self.log = self.home / "workers.log"
        self._server = server
        self._arguments = [] if sweeps else ["--no-sweep"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id, which is also the process group."""
        return self._process.pid if self._process else None

    def launch(self) -> None:
        """Start the process, which loads what it needs and then waits for `serve`; the server need not answer yet."""
        self._end_leftovers()
        environment = child_environment(os.environ, self.home) | self._server.environment
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "opticstream.flows.workers", *self._arguments],
                env=environment | {HOME_VARIABLE: str(self.home)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=empty_folder(self.home),
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        self._pid_file.write_text(json.dumps({"pid": self._process.pid}), encoding="utf-8")

    def serve(self) -> None:
        """Let the process serve, and wait until its deployments and triggers are registered; the server answers.

        Raises
        ------
        ServerError
            It ended, or was not ready in time; the message quotes the end of its log.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:  # broken where it has ended
            pipe.write(GO)
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
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    @property
    def _pid_file(self) -> Path:
        return self.home / "workers.pid"

    def _end_leftovers(self) -> None:
        """End what a killed owner has left: a worker, or flow runs that outlived it in its process group."""
        try:
            group = int(json.loads(self._pid_file.read_bytes())["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        end_leftovers(group, self.home)


class Session:
    """A running server and its workers, of this process or shared with another one.

    Attributes
    ----------
    api_url : str
        Address of the API; it stays the same if the owner changes.
    server, worker : optional
        What this process has started; None while it shares what another one owns.
    """

    def __init__(self, home: Path, /, *, ui: bool, workers: bool, sweeps: bool, say: Say) -> None:
        self.home = home
        self.api_url = ""
        self.server: EmbeddedServer | None = None
        self.worker: WorkerProcess | None = None
        self._ui = ui
        self._wants_workers = workers
        self._sweeps = sweeps
        self._say = say

    def begin(self) -> EmbeddedServer | None:
        """Own the home, or find the server of its owner, and return the server to be started.

        Raises
        ------
        ServerError
            The owner's server does not answer, or is not what this command needs.
        """
        end = time.monotonic() + START_TIMEOUT_S + _READY_TIMEOUT_S
        told = False
        while True:
            server = self._launched(None)
            if server is not None:
                return server
            record = server_record(self.home)
            if self._ui and record is not None:
                raise ServerError(
                    f"{record.owner} has a server in {self.home} (OPTICSTREAM_API_URL={record.api_url}); end that "
                    "command first, or choose another folder with --home"
                )
            fits = record is not None and (record.workers or not self._wants_workers)
            if record is not None and fits and is_healthy(record.api_url):
                self.api_url = record.api_url
                self._say(f"sharing the server of {record.owner}, which has the same home {self.home}")
                return None
            if time.monotonic() > end:
                who = record.owner if record is not None else "another process"
                raise ServerError(
                    f"{who} has a server in {self.home} that does not answer here; end that command first, or choose "
                    "another folder with --home"
                )
            if not told:
                self._say(f"waiting for another command that uses {self.home}")
                told = True
            time.sleep(_LOOK_S)

    def _launched(self, port: int | None) -> EmbeddedServer | None:
        server = EmbeddedServer(self.home, ui=self._ui, port=port)
        try:
            server.launch()
        except HomeInUse:
            return None
        self.server, self.api_url = server, server.api_url
        return server

    def start(self, *, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Start the workers, and wait until the server that this process has launched answers and they serve.

        All load side by side, and `meanwhile` is called once, unless Prefect has to be compiled first: each process
        would then compile it for itself.
        """
        assert self.server is not None
        worker = WorkerProcess(self.server, sweeps=self._sweeps) if self._wants_workers else None
        side_by_side = _prefect_is_compiled()
        if side_by_side:
            if worker is not None:
                self.worker = worker
                worker.launch()
            meanwhile()
        self.server.wait_until_healthy()
        if left := cancel_leftovers(self.server.api_url):
            self._say(f"set aside {left} runs of an earlier life; what they were for is announced again")
        if worker is not None:
            self._say("starting the workers")
            if not side_by_side:
                self.worker = worker
                worker.launch()
            worker.serve()
            self.server.tell_workers_are_ready()

    def check(self) -> bool:
        """Return False while all is well, True when this process has just become the owner of a shared server.

        What was under way in the former owner's workers is then to be announced again.

        Raises
        ------
        ServerError
            The server or the workers have ended; the message names their log.
        """
        if self.server is not None:
            if not self.server.is_alive():
                raise ServerError(f"the Prefect server has ended; its log is {self.server.log}")
            if self.worker is not None and not self.worker.is_alive():
                raise ServerError(f"the workers have ended; their log is {self.worker.log}")
            return False
        record = server_record(self.home)
        if record is not None and record.api_url != self.api_url:
            raise ServerError(
                f"the server that was shared has moved to {record.api_url}; give the command again, it goes on where "
                "it stopped"
            )
        if self._launched(int(self.api_url.rpartition(":")[2].partition("/")[0])) is None:
            return False
        self._say("the command that had the server has ended; going on with a server of our own")
        self.start()
        return True

    def stop(self) -> None:
        """End what this process has started."""
        if self.worker is not None:
            self.worker.stop()
        if self.server is not None:
            self.server.stop()


def _prefect_is_compiled() -> bool:
    """Return whether a server has loaded Prefect here before, or its modules were compiled when it was installed."""
    found = importlib.util.find_spec("prefect")
    if found is None or found.origin is None:
        return False
    late = Path(found.origin).with_name("server") / "api" / "server.py"
    return Path(importlib.util.cache_from_source(late)).exists()


@contextmanager
def local_session(
    home: Path,
    /,
    *,
    ui: bool = False,
    workers: bool = True,
    sweeps: bool = False,
    say: Say = lambda _line: None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Iterator[Session]:
    """Run an embedded server and a worker for all pools, or share those of another process under the same home.

    This process is pointed at the server, and what was started here is ended when the block is left. With `sweeps` the
    worker also looks after what is ready and not started, which the process that feeds a project does itself. `home`
    keeps the database, so that a later session goes on with it. `meanwhile` is called while a server of this process
    starts, if that saves time: a place to import what the block needs.

    Raises
    ------
    ConfigurationError
        `home` cannot be written.
    ServerError
        Server or workers do not start, or another process has a server there that cannot be shared.
    """
    session = Session(prepared_home(home), ui=ui, workers=workers, sweeps=sweeps, say=say)
    try:
        say("starting the Prefect server")
        server = session.begin()
        with only_our_settings(session.home, session.api_url):
            if server is not None:
                session.start(meanwhile=meanwhile)
            yield session
    finally:
        session.stop()

"""`opticstream server` as a process of its own, with the environment of its clients."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opticstream.flows.server import free_port, is_healthy

START_S = 900.0


def plain_environment(**values: str) -> dict[str, str]:
    """Return this process's environment without settings of Prefect and of ours, but with `values`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "OPTICSTREAM_"))}
    return kept | values


def opticstream(*arguments: str, environment: dict[str, str], timeout_s: float = 1200.0) -> subprocess.CompletedProcess:
    """Return what a command of ours has said, when it has ended."""
    command = [sys.executable, "-m", "opticstream", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)


class ServerProcess:
    """A part of a server: all of it, an API replica, or the background services."""

    def __init__(self, folder: Path, role: str = "all", **values: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.role = role
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.log = folder / f"{role}.log"
        self.environment = plain_environment(OPTICSTREAM_HOME=str(folder / "home"), **values)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        address = ["--port", str(self.port)] if self.role != "services" else []
        command = [sys.executable, "-m", "opticstream", "server", "--role", self.role, *address]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until the API answers."""
        end = time.monotonic() + START_S
        while not is_healthy(self.url):
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def running(*servers: ServerProcess) -> Iterator[None]:
    """Run parts of a server, all started at once, inside a block."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            if server.role != "services":
                server.wait()
        yield
    finally:
        for server in servers:
            server.kill()

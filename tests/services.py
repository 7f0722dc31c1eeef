"""A PostgreSQL and a Redis of the tests' own, on an address and a port of their choice, gone after the test.

`.ci/packages` installs both on Debian. Where they are missing, a test is skipped with the reason; in CI, it fails.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_S = 120.0
_STOP_S = 60.0


def program(name: str, /) -> str:
    """Return the path of a system program, or skip the test (fail it in CI) where it is not installed."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), "/usr/sbin", "/sbin"]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, places)))
    if found is None:
        reason = f"{name} is not installed; run `.ci/packages` as root (Debian)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def postgresql(folder: Path, host: str, port: int, *, prefix: Sequence[str] = ()) -> Iterator[str]:
    """Run a PostgreSQL with an empty database `prefect` and give its URL, which holds a password.

    Parameters
    ----------
    folder : Path
        Where its log is written, as ``postgresql.log``. Its data are in a folder of their own that it can read.
    host, port
        Address to listen on.
    prefix : sequence of str
        Command that runs it somewhere else, such as ``["ip", "netns", "exec", "server"]``; it must end in `exec`.
    """
    initdb, postgres, psql = program("initdb"), program("postgres"), program("psql")
    owner = _owner()
    password = secrets.token_hex(12)
    with tempfile.TemporaryDirectory(prefix="optic-pg-", ignore_cleanup_errors=True) as name:
        data = Path(name)
        (data / "password").write_text(password)
        if owner:
            account = pwd.getpwnam("postgres")
            for path in (data, data / "password"):
                os.chown(path, account.pw_uid, account.pw_gid)
        _run([*owner, initdb, "-D", str(data / "db"), "-U", "optic", "--pwfile", str(data / "password"),
              "--auth=scram-sha-256", "--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"])  # fmt: skip
        with (data / "db" / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n")
        command = [*prefix, *owner, postgres, "-D", str(data / "db"), "-h", host, "-p", str(port), "-k", str(data),
                   "-c", "fsync=off", "-c", "max_connections=200"]  # fmt: skip

        # Through its socket in a folder, which is there in every network namespace.
        def ask(database: str, text: str) -> subprocess.CompletedProcess[str]:
            call = [psql, "-h", str(data), "-p", str(port), "-U", "optic", "-d", database, "-c", text]
            return subprocess.run(
                call, env=os.environ | {"PGPASSWORD": password}, capture_output=True, text=True, check=False
            )

        with _running(command, folder / "postgresql.log", lambda: ask("postgres", "select 1").returncode == 0, 2):
            made = ask("postgres", "create database prefect")
            assert made.returncode == 0, made.stderr
            yield f"postgresql://optic:{password}@{_bracketed(host)}:{port}/prefect"


@contextmanager
def redis(folder: Path, host: str, port: int, *, prefix: Sequence[str] = ()) -> Iterator[str]:
    """Run a Redis that keeps its data in `folder` (a later one on the same folder continues) and give its URL.

    Parameters
    ----------
    folder : Path
        Its data and its log, ``redis.log``.
    host, port, prefix
        As for `postgresql`.
    """
    server, client = program("redis-server"), program("redis-cli")
    folder.mkdir(parents=True, exist_ok=True)
    command = [*prefix, server, "--bind", host, "--port", str(port), "--dir", str(folder), "--appendonly", "yes",
               "--protected-mode", "no", "--save", "", "--unixsocket", "", "--daemonize", "no"]  # fmt: skip

    def answers() -> bool:
        call = [*prefix, client, "-h", host, "-p", str(port), "ping"]
        return "PONG" in subprocess.run(call, capture_output=True, text=True, check=False).stdout

    with _running(command, folder / "redis.log", answers, signal.SIGTERM):
        yield f"redis://{_bracketed(host)}:{port}"


@contextmanager
def _running(command: list[str], log: Path, answers: Callable[[], bool], stop: int) -> Iterator[None]:
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, cwd="/", stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        end = time.monotonic() + _START_S
        while not answers():
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end, log.read_text(errors="replace")
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(stop)
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _owner() -> list[str]:
    """Return the command that runs PostgreSQL as another user than root, which it refuses."""
    return [program("setpriv"), "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

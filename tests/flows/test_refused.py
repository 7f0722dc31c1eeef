"""A server that refuses user and password: every command says so at once, in one line, and ends."""

from __future__ import annotations

import asyncio
import http.server
import os
import threading
from typing import ClassVar

import httpx
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.flows.events import announce
from opticstream.flows.prefect_state import PrefectApi
from opticstream.flows.queues import credentials
from opticstream.flows.worker_type import WarmWorker
from opticstream.flows.workers import first_server_error
from opticstream.model.errors import ServerError
from opticstream.model.events import BatchReady

SECRET = "s3kr1t"
PROJECT = """
[project]
project_name = "p"
project_base_path = "out"
[scan]
grid_size_y = 2
illuminations = [{ name = "normal", columns = 2, a_lines = 350 }]
"""


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers like a Prefect server with a password: who asks for health is let in, all others are not."""

    seen: ClassVar[list[str | None]] = []

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        healthy = self.path == "/api/health"
        self.seen.append(self.headers.get("Authorization"))
        body = b"true" if healthy else b'{"exception_message":"Unauthorized"}'
        self.send_response(200 if healthy else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing():
    """Address of a server that lets nobody in."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/api"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def host(refusing, tmp_path, monkeypatch):
    """The environment of a host with a project file, restored afterwards."""
    before = dict(os.environ)
    monkeypatch.setenv("OPTICSTREAM_API_URL", refusing)
    monkeypatch.setenv("OPTICSTREAM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "p.toml").write_text(PROJECT)
    yield tmp_path
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


COMMANDS = ["status p", "failures p", "history p mosaic-001", "retry p", "state show p.toml --server",
            "state rebuild p.toml", "state unlock p.toml --yes", "project register p.toml", "run p.toml raw",
            "watch p.toml raw", "deploy", "deploy --json", "worker --pool state", "server vacuum",
            "server vacuum --json"]  # fmt: skip


# Missing for every command, wrong for some: what is looked at is the same.
@pytest.mark.parametrize(
    ("command", "auth"),
    [(command, "") for command in COMMANDS] + [(command, f"optic:{SECRET}") for command in COMMANDS[::5]],
)
def test_a_command_ends_at_once_with_one_line_that_names_setting_and_server(command, auth, host, refusing, monkeypatch):
    if auth:
        monkeypatch.setenv("OPTICSTREAM_API_AUTH", auth)
    Refusing.seen.clear()
    done = CliRunner().invoke(app, command.split())
    assert len(Refusing.seen) <= 3  # it is not asked again and again
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.output
    assert refusing in lines[0]
    assert "OPTICSTREAM_API_AUTH" in lines[0]
    assert ("wrong" in lines[0]) == bool(auth)
    assert SECRET not in done.output


def test_the_status_of_a_project_file_is_told_from_the_files_with_a_warning(host, refusing):
    done = CliRunner().invoke(app, ["status", "p.toml"])
    assert done.exit_code == 0, done.output
    (warning,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert warning.startswith("warning:")
    assert refusing in warning
    assert "OPTICSTREAM_API_AUTH" in warning


def test_a_password_in_a_file_is_given_and_its_setting_is_named(host, monkeypatch):
    (host / "auth").write_text(f"optic:{SECRET}\n")
    monkeypatch.setenv("OPTICSTREAM_API_AUTH_FILE", str(host / "auth"))
    Refusing.seen.clear()
    done = CliRunner().invoke(app, ["deploy"])
    assert done.exit_code == 2
    assert "OPTICSTREAM_API_AUTH_FILE" in done.stderr
    assert httpx.BasicAuth("optic", SECRET)._auth_header in Refusing.seen


def test_who_is_refused_while_working_does_not_wait(refusing):
    event = BatchReady(
        project_name="p", project_base_path="/out", slice_id=1, mosaic_id=1, batch_id=1, illumination="normal",
        total_batches=1, grid_size_y=1, raw_folder="/raw", files={},
    )  # fmt: skip
    with temporary_settings({PREFECT_API_URL: refusing, PREFECT_API_AUTH_STRING: f"optic:{SECRET}"}):
        Refusing.seen.clear()
        with pytest.raises(ServerError, match="refuses this host") as caught:
            announce([event])
        assert len(Refusing.seen) <= 2
        assert SECRET not in str(caught.value)
        with pytest.raises(ServerError, match="refuses this host"):
            PrefectApi(refusing).call("GET", "/variables/name/x")
        assert credentials()["Authorization"].startswith("Basic ")


def test_a_worker_that_is_refused_ends_instead_of_waiting(refusing, monkeypatch):
    async def ask(_worker: object) -> None:
        httpx.post(f"{refusing}/work_pools/state/get_scheduled_flow_runs", json={}).raise_for_status()

    monkeypatch.setattr(ProcessWorker, "get_and_submit_flow_runs", ask)
    with pytest.raises(ServerError, match="refuses this host") as caught:
        asyncio.run(WarmWorker("state", create_pool_if_not_found=False).get_and_submit_flow_runs())
    assert refusing in str(caught.value)


def test_the_first_error_of_a_server_is_what_people_see_of_workers_that_ended():
    told = ServerError("the reason")
    group = BaseExceptionGroup("a", [ValueError("other"), BaseExceptionGroup("b", [told])])
    assert first_server_error(group) is told
    assert first_server_error(BaseExceptionGroup("c", [ValueError("other")])) is None

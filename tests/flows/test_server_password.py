"""A real server with a password, and what it removes by itself and on demand: old, and neither young nor unfinished."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from tests.servers import ServerProcess, opticstream, running
from tests.services import postgresql

from opticstream.flows.prefect_state import PrefectApi, PrefectProjectLock, oct_state_service
from opticstream.flows.server import free_port
from opticstream.flows.vacuum import vacuum_server

pytestmark = [pytest.mark.server, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

USER, PASSWORD = "optic", "s3kr1t-pass-word"
AUTH = f"{USER}:{PASSWORD}"
NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=40)
LOOK_S = "1"
"""How often Prefect looks for what is old in these tests, in seconds."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def server(request, tmp_path):
    """A server with a password, and a client of it in this process."""
    values = {"OPTICSTREAM_API_AUTH_FILE": str(tmp_path / "auth")}
    (tmp_path / "auth").write_text(AUTH + "\n")
    values["PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS"] = LOOK_S
    if request.param == "sqlite":
        yield from _served(tmp_path, values)
        return
    with postgresql(tmp_path, "127.0.0.1", free_port()) as url:
        yield from _served(tmp_path, values | {"OPTICSTREAM_DATABASE_URL": url})


def _served(folder, values):
    server = ServerProcess(folder, **values)
    server.environment["OPTICSTREAM_API_URL"] = server.url
    with (
        running(server),
        temporary_settings({PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: AUTH}),
    ):
        yield server


def run_of(api: PrefectApi, flow_id: str, state: str, age: str) -> str:
    """Make a flow run in a state, with a log line and two artifacts of one key."""
    body = {"flow_id": flow_id, "name": f"{age} {state} {uuid.uuid4().hex[:6]}"}
    run = str(api.call("POST", "/flow_runs/", body).json()["id"])
    for kind in ("RUNNING", state) if state != "SCHEDULED" else (state,):  # what has ended has run
        api.call("POST", f"/flow_runs/{run}/set_state", {"state": {"type": kind}, "force": True})
    when = NOW.isoformat()
    line = {"name": "x", "level": 20, "message": f"line of {run}", "timestamp": when, "flow_run_id": run}
    httpx.post(f"{api.url}/logs/", json=[line], auth=(USER, PASSWORD)).raise_for_status()
    for _ in range(2):
        api.call("POST", "/artifacts/", {"key": f"of-{run}", "type": "markdown", "data": "x", "flow_run_id": run})
    return run


def make_old(server: ServerProcess) -> None:
    """Let the runs that are called old have begun, and ended, as long ago; no client can say so."""
    columns = [("end_time", "end_time is not null"), ("start_time", "start_time is not null"), ("created", "1 = 1")]
    url = server.environment.get("OPTICSTREAM_DATABASE_URL")
    if url is None:
        with contextlib.closing(sqlite3.connect(Path(server.environment["OPTICSTREAM_HOME"]) / "prefect.db")) as base:
            for column, where in columns:
                text = f"update flow_run set {column} = ? where name like 'old %' and {where}"
                base.execute(text, [OLD.strftime("%Y-%m-%d %H:%M:%S.%f")])
            base.commit()
        return

    async def change() -> None:
        base = await asyncpg.connect(url)
        for column, where in columns:
            await base.execute(f"update flow_run set {column} = $1 where name like 'old %' and {where}", OLD)
        await base.close()

    asyncio.run(change())


def count(api: PrefectApi, what: str, **which: object) -> int:
    return int(api.call("POST", f"/{what}/count", which).json())


@pytest.mark.slow
def test_what_is_old_goes_and_what_is_young_unfinished_or_state_stays_behind_a_password(server, tmp_path):
    api = PrefectApi(server.url)
    assert httpx.get(f"{server.url}/admin/version").status_code == 401
    assert httpx.get(f"{server.url}/health").status_code == 200

    flow = api.call("POST", "/flows/", {"name": "some flow"}).json()["id"]
    kept = {run_of(api, flow, state, "young") for state in ("COMPLETED", "FAILED")}
    unfinished = {run_of(api, flow, state, "old") for state in ("RUNNING", "SCHEDULED")}
    kept |= unfinished
    for state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        run_of(api, flow, state, "old")
    make_old(server)
    service = oct_state_service(api_url=server.url)
    with service.open_slice("Brain", slice_id=1):
        pass
    for number in range(5):
        api.call("POST", "/artifacts/", {"key": "picture", "type": "markdown", "data": str(number)})
    young, old = uuid.uuid4(), uuid.uuid4()
    events = [
        {"id": str(id_), "occurred": when.isoformat(), "event": "some.event", "resource": {"prefect.resource.id": "x"}}
        for id_, when in ((young, NOW), (old, OLD))
    ]
    api.call("POST", "/events", events)

    def runs() -> set[str]:
        return {run["id"] for run in api.call("POST", "/flow_runs/filter", {"limit": 200}).json()}

    def seen_events() -> set[str]:
        which = {"event": {"name": ["some.event"]}, "occurred": {"since": (OLD - timedelta(days=1)).isoformat()}}
        found = api.call("POST", "/events/filter", {"filter": which, "limit": 50}).json()
        return {event["id"] for event in found["events"]}

    wait_until(lambda: runs() == kept, "old runs are removed by the server itself", runs)
    wait_until(lambda: seen_events() == {str(young)}, "old events are removed by the server itself", seen_events)
    assert count(api, "artifacts") == 2 * len(kept) + 5

    told = opticstream("server", "vacuum", "--json", "--versions", "2", environment=server.environment)
    assert told.returncode == 0, told.stderr
    assert '"artifact_versions": 3' in told.stdout
    left = api.call("POST", "/artifacts/filter", {"artifacts": {"key": {"any_": ["picture"]}}}).json()
    assert {artifact["data"] for artifact in left} == {"3", "4"}
    assert api.call("GET", "/artifacts/picture/latest").json()["data"] == "4"
    assert vacuum_server(days=30, versions=2, since_last=True).as_dict() == dict.fromkeys(
        ("flow_runs", "artifacts", "artifact_versions"), 0
    )
    time.sleep(0.01)  # what was made before is now older than no days at all
    done = vacuum_server(days=0, versions=2)
    assert done.flow_runs == 2
    assert done.artifacts == 2 + 2 * 2  # the pictures, and those of the runs that have ended
    assert runs() == unfinished
    assert service.read_project("Brain").slices
    assert_no_secret_is_seen(server, tmp_path, api)

    every_minute = [{"schedule": {"interval": 60.0}, "active": True}]
    api.call("POST", "/deployments/", {"name": "scheduled", "flow_id": flow, "schedules": every_minute})
    wait_until(lambda: len(runs()) > len(unfinished), "runs are scheduled, as sweeps are", runs)
    assert "Traceback" not in server.log.read_text()


def assert_no_secret_is_seen(server: ServerProcess, folder: Path, api: PrefectApi) -> None:
    for file in [path for path in folder.rglob("*") if path.is_file() and path.name != "auth"]:
        with contextlib.suppress(FileNotFoundError):  # files of SQLite come and go
            assert PASSWORD.encode() not in file.read_bytes(), file
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        assert PASSWORD.encode() not in line, line
    assert PASSWORD not in api.call("GET", "/admin/settings").text
    assert server.log.stat().st_size


def wait_until(done, what, found, timeout_s=120.0):
    end = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < end, f"{what}: {found()}"
        time.sleep(0.3)


@pytest.mark.slow
def test_all_that_talks_to_a_server_with_a_password_works_and_shows_it_nowhere(acquisition, tmp_path):
    """A worker, a whole run, events, locks, logs and commands, with user and password and without."""
    server = ServerProcess(tmp_path / "server", OPTICSTREAM_API_AUTH=AUTH)
    client = dict(server.environment) | {"OPTICSTREAM_API_URL": server.url, "PREFECT_LOGGING_LEVEL": "DEBUG"}
    client |= {"OPTICSTREAM_HOME": str(tmp_path / "worker")}
    project = str(acquisition / "project.toml")
    with running(server):
        assert opticstream("deploy", environment=client).returncode == 0
        with (tmp_path / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "opticstream", "worker"], env=client, stdout=log, stderr=log
            )
        try:
            ran = opticstream("run", project, str(acquisition / "raw"), environment=client, timeout_s=800)
            assert ran.returncode == 0, ran.stdout + ran.stderr
            for command in (f"status {project}", f"status {project} --json", f"state show {project} --server",
                            f"failures {project}", f"state rebuild {project}", f"project register {project}",
                            f"state unlock {project} --yes", f"retry {project}", "server vacuum"):  # fmt: skip
                told = opticstream(*command.split(), environment=client)
                assert told.returncode == 0, (command, told.stderr)
                assert PASSWORD not in told.stdout + told.stderr
            with temporary_settings({PREFECT_API_URL: server.url, PREFECT_API_AUTH_STRING: AUTH}):
                api = PrefectApi(server.url)
                with PrefectProjectLock(pipeline="oct", api=api).hold("q", timeout_s=10):
                    pass
                logs = api.call("POST", "/logs/filter", {"limit": 200}).json()
                assert logs
                assert PASSWORD not in str(logs)
                assert_no_secret_is_seen(server, tmp_path, api)
        finally:
            worker.terminate()
            worker.wait(timeout=60)
    assert PASSWORD.encode() not in (tmp_path / "worker.log").read_bytes()

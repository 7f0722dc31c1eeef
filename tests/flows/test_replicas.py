"""A server of several processes on PostgreSQL and Redis: two API replicas, the background services apart."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from tests.servers import ServerProcess, opticstream, running
from tests.services import postgresql, redis

from opticstream.flows.events import announce
from opticstream.flows.prefect_state import LEASE_S, PrefectApi, PrefectProjectLock
from opticstream.flows.server import free_port
from opticstream.model.errors import LockTimeout
from opticstream.model.events import BatchReady

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

AUTH = "optic:s3kr1t"
HOLDER = """
import sys, time
from opticstream.flows.prefect_state import PrefectApi, PrefectProjectLock
with PrefectProjectLock(pipeline="oct", api=PrefectApi(sys.argv[1]), queue_on_host=False).hold("p", timeout_s=60):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def urls(tmp_path):
    """Variables that name an empty PostgreSQL and a Redis of this test's own."""
    with (
        postgresql(tmp_path, "127.0.0.1", free_port()) as database,
        redis(tmp_path / "redis", "127.0.0.1", free_port()) as messages,
    ):
        yield {"OPTICSTREAM_DATABASE_URL": database, "OPTICSTREAM_REDIS_URL": messages, "OPTICSTREAM_API_AUTH": AUTH}


def parts(folder, urls) -> list[ServerProcess]:
    return [
        ServerProcess(folder / "first", "api", **urls),
        ServerProcess(folder / "second", "api", **urls),
        ServerProcess(folder / "services", "services", **urls),
    ]


def lock_at(server: ServerProcess) -> PrefectProjectLock:
    return PrefectProjectLock(pipeline="oct", api=PrefectApi(server.url), queue_on_host=False)


def ended_runs(api: PrefectApi, flow: str) -> int:
    which = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}, "flows": {"name": {"any_": [flow]}}}
    return int(api.call("POST", "/flow_runs/count", which).json())


def test_a_server_whose_database_refuses_it_says_so_at_once_without_the_password(tmp_path):
    with postgresql(tmp_path, "127.0.0.1", free_port()) as url:
        for wrong, said in ((re.sub(":[^:@]*@", ":wr0ng-one@", url), "password is wrong"),
                            (url.replace("/prefect", "/other"), "no such database")):  # fmt: skip
            server = ServerProcess(tmp_path / said, OPTICSTREAM_DATABASE_URL=wrong)
            done = opticstream("server", "--port", str(server.port), environment=server.environment)
            assert done.returncode == 1
            assert said in done.stderr.splitlines()[-1]
            assert "wr0ng-one" not in done.stderr + done.stdout
            assert wrong.split(":")[2].split("@")[0] not in done.stderr + done.stdout


@pytest.mark.slow
def test_parts_that_start_at_once_wait_for_the_tables_which_one_of_two_upgrades_makes(tmp_path, urls):
    first, second, services = parts(tmp_path, urls)
    whole = [ServerProcess(tmp_path / name, "all", **urls) for name in ("one", "two")]
    for part in (first, second, services):
        part.start()
    environment = first.environment
    try:
        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(lambda _: opticstream("server", "upgrade", environment=environment), range(2)))
        assert [done.returncode for done in ended] == [0, 0], ended
        assert sorted("brought up to date" in done.stderr for done in ended) == [False, True]
        for part in (first, second):
            part.wait()
            assert "waiting for the tables" in part.log.read_text()
        again = opticstream("server", "upgrade", environment=environment)
        assert "is up to date" in again.stderr
        with temporary_settings({PREFECT_API_AUTH_STRING: AUTH}):
            types = PrefectApi(second.url).call("POST", "/block_types/filter", {}).json()
        assert {"secret", "webhook"} <= {kind["slug"] for kind in types}
        assert services.process is not None
        assert services.process.poll() is None
        with running(*whole):  # whole servers beside them: they migrate one after the other
            pass
    finally:
        for part in (first, second, services):
            part.kill()
    for part in (first, second, services, *whole):
        assert "Traceback" not in part.log.read_text(), part.log.read_text()


@pytest.mark.slow
def test_events_through_either_replica_become_runs_and_a_project_is_done_whole(acquisition, tmp_path, urls):
    first, second, services = parts(tmp_path, urls)
    assert opticstream("server", "upgrade", environment=first.environment).returncode == 0
    file = str(acquisition / "project.toml")
    client = first.environment | {"OPTICSTREAM_API_URL": first.url, "OPTICSTREAM_HOME": str(tmp_path / "client")}
    with running(first, second, services):
        assert opticstream("deploy", environment=client).returncode == 0
        at_second = client | {"OPTICSTREAM_API_URL": second.url, "OPTICSTREAM_HOME": str(tmp_path / "worker")}
        worker = subprocess.Popen([sys.executable, "-m", "opticstream", "worker"], env=at_second)
        try:
            ran = opticstream("run", file, str(acquisition / "raw"), environment=client, timeout_s=1200)
            assert ran.returncode == 0, ran.stdout + ran.stderr
            for replica in (first, second):
                with temporary_settings({PREFECT_API_URL: replica.url, PREFECT_API_AUTH_STRING: AUTH}):
                    api = PrefectApi(replica.url)
                    before = ended_runs(api, "process-batch")
                    announce([event_of_unknown_project()])
                    end = time.monotonic() + 120
                    while ended_runs(api, "process-batch") == before:
                        assert time.monotonic() < end
                        time.sleep(0.5)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(timeout=60)


def event_of_unknown_project() -> BatchReady:
    return BatchReady(
        project_name="nobody's", project_base_path="/nowhere", slice_id=1, mosaic_id=1, batch_id=1,
        illumination="normal", total_batches=1, grid_size_y=1, raw_folder="/nowhere", files={},
    )  # fmt: skip


@pytest.mark.slow
def test_a_lock_of_one_replica_keeps_the_other_out_and_is_freed_after_its_holder_although_all_restart(tmp_path, urls):
    servers = parts(tmp_path, urls)
    first, second, _ = servers
    assert opticstream("server", "upgrade", environment=first.environment).returncode == 0
    with temporary_settings({PREFECT_API_AUTH_STRING: AUTH}):
        with running(*servers):
            environment = {**os.environ, "PREFECT_API_AUTH_STRING": AUTH}
            held = subprocess.Popen(
                [sys.executable, "-c", HOLDER, first.url], stdout=subprocess.PIPE, text=True, env=environment
            )
            assert held.stdout is not None
            assert held.stdout.readline() == "held\n"
            with pytest.raises(LockTimeout), lock_at(second).hold("p", timeout_s=1):
                pass
            held.kill()
            held.communicate()
        with running(*servers), lock_at(second).hold("p", timeout_s=4 * LEASE_S):
            pass

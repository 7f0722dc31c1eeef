"""Work pools and workers as other programs see them: at the server's own interface, with real worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import httpx
import pytest
import yaml
from prefect.client.schemas.objects import StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from tests.flows.conftest import ask_again_if_busy

from opticstream.config import DeploymentSettings, config_from_mapping
from opticstream.flows.deploying import deploy
from opticstream.flows.deployments import DEPLOYMENTS, TAG
from opticstream.flows.events import announce_automatically
from opticstream.flows.leftovers import lost_workers
from opticstream.flows.pool_state import check_pools
from opticstream.flows.pools import POOLS
from opticstream.flows.server import EmbeddedServer
from opticstream.flows.sweep import sweep
from opticstream.flows.transfer_slots import LIMIT
from opticstream.flows.workers import checked_pools
from opticstream.model.errors import ConfigurationError, ServerError
from opticstream.model.events import BatchProcessed
from opticstream.model.ids import MosaicId
from opticstream.pipeline.project import Project

pytestmark = [pytest.mark.server, pytest.mark.timeout(900), pytest.mark.filterwarnings("default")]

FLOWS = """
import os, time
from pathlib import Path
from prefect import flow

@flow
def told(mark, seconds=0.0):
    print("said by the flow")
    Path(mark).write_text(f"{os.getpid()} {os.getcwd()} {os.environ.get('COLOUR')}")
    time.sleep(seconds)
    if seconds < 0.001 and "fail" in mark:
        raise ValueError("wanted")

@flow
def gone(mark):
    Path(mark).write_text("x")
    os._exit(7)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of these tests alone: their workers serve all of its pools."""
    with (
        EmbeddedServer(tmp_path_factory.mktemp("pools")) as server,
        temporary_settings({PREFECT_API_URL: server.api_url}),
    ):
        yield server


@pytest.fixture(scope="module")
def api(server):
    with httpx.Client(base_url=server.api_url, timeout=30, trust_env=False) as client:
        yield partial(ask_again_if_busy, client)


def deployed(**changed):
    return asyncio.run(deploy(DeploymentSettings(**changed)))


def pools_of(api):
    return {pool["name"]: pool for pool in api("POST", "/work_pools/filter", {})}


def test_the_server_has_the_pools_and_every_deployment_is_in_its_own(server, api):
    done = deployed()
    assert set(done.pools) == set(POOLS)
    assert {name: pool["type"] for name, pool in pools_of(api).items()} == dict.fromkeys(POOLS, "opticstream")
    assert {name: pool["concurrency_limit"] for name, pool in pools_of(api).items()} == {
        "tile": 2, "stitch": 1, "register": 1, "upload": 1, "state": 4,
    }  # fmt: skip
    found = {one["name"]: one["work_pool_name"] for one in api("POST", "/deployments/filter", {})}
    assert found == {deployment.name: deployment.pool for deployment in DEPLOYMENTS}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The working folder is a git checkout with a remote, as that of somebody who has cloned the project."""
    for words in (
        "init --quiet",
        "remote add origin https://example.org/somebody/opticstream.git",
        "-c user.name=a -c user.email=a@example.org commit --quiet --allow-empty --message first",
    ):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("checkout")
def test_a_second_time_nothing_changes_and_no_trigger_is_made_anew(server, api):
    deployed()
    before = sorted(one["id"] for one in api("POST", "/automations/filter", {}))
    done = deployed()
    assert set(done.pools.values()) | set(done.deployments.values()) == {"unchanged"}
    assert sorted(one["id"] for one in api("POST", "/automations/filter", {})) == before


def test_what_has_changed_is_brought_up_to_date(server, api):
    deployed()
    done = deployed(collapse_s=7.0)
    assert done.deployments["upload"] == "updated"
    assert done.deployments["process-batch"] == "unchanged"
    deployed()


def test_events_of_two_projects_in_one_window_share_no_run(server, api, tmp_path):
    deployed()
    names = ["Brain one", "brain-two"]
    projects = [
        Project.open(config_from_mapping({"project": {"project_name": name, "project_base_path": tmp_path / name}}))
        for name in names
    ]
    batches = projects[0].layout.batches(MosaicId(1))[:3]
    announce_automatically(one.event(BatchProcessed, batch) for batch in batches for one in projects)

    def runs():
        found = api("POST", "/flow_runs/filter", {"deployments": {"name": {"any_": ["batch-state"]}}})
        return [one for one in found if one["parameters"]["payload"]["project_name"] in names]

    while len(runs()) < 2:
        time.sleep(0.2)
    time.sleep(2.0)  # none of the others makes a further one
    assert sorted(run["parameters"]["payload"]["project_name"] for run in runs()) == names
    for run in runs():  # not for the workers of other tests
        api("DELETE", f"/flow_runs/{run['id']}")


def test_a_trigger_that_somebody_has_deleted_comes_back(server, api):
    done = deployed()
    (lost,) = api("GET", f"/automations/related-to/prefect.deployment.{done.ids['notify']}")
    api("DELETE", f"/automations/{lost['id']}")
    assert deployed().deployments["notify"] == "updated"
    assert len(api("GET", f"/automations/related-to/prefect.deployment.{done.ids['notify']}")) == 1


def test_a_limit_that_was_changed_in_the_page_stays_unless_the_environment_sets_it(server, api, monkeypatch):
    deployed()
    api("PATCH", "/work_pools/tile", {"concurrency_limit": 5})
    assert deployed().pools["tile"] == "unchanged"
    assert pools_of(api)["tile"]["concurrency_limit"] == 5
    monkeypatch.setenv("OPTICSTREAM_TILE_LIMIT", "3")
    assert deployed().pools["tile"] == "updated"
    assert pools_of(api)["tile"]["concurrency_limit"] == 3


def test_the_limit_of_transfers_is_made_and_stays_unless_the_environment_sets_it(server, api, monkeypatch):
    def limit():
        return api("GET", f"/v2/concurrency_limits/{LIMIT}")["limit"]

    assert set(deployed().limits) == {LIMIT}
    assert limit() == 5
    api("PATCH", f"/v2/concurrency_limits/{LIMIT}", {"limit": 2})
    assert deployed().limits[LIMIT] == "unchanged"
    assert limit() == 2
    monkeypatch.setenv("OPTICSTREAM_UPLOAD_LIMIT", "3")
    assert deployed().limits[LIMIT] == "updated"
    assert limit() == 15
    monkeypatch.setenv("OPTICSTREAM_UPLOAD_TRANSFER_LIMIT", "7")
    deployed()
    assert limit() == 7


def test_a_deployment_of_an_earlier_version_is_removed_and_those_of_others_stay(server, api):
    deployed()
    flow = api("POST", "/flows/", {"name": "old"})["id"]
    old = api("POST", "/deployments/", {"flow_id": flow, "name": "process-column", "tags": [TAG]})["id"]
    trigger = {"type": "event", "expect": ["linc.oct.column.ready"], "posture": "Reactive", "threshold": 1, "within": 0}
    api("POST", "/automations/", {
        "name": "of the old one", "trigger": trigger, "owner_resource": f"prefect.deployment.{old}",
        "actions": [{"type": "run-deployment", "deployment_id": old}],
    })  # fmt: skip
    api("POST", "/deployments/", {"flow_id": flow, "name": "of somebody else"})
    assert deployed().removed == ("process-column",)
    names = {one["name"] for one in api("POST", "/deployments/filter", {})}
    assert "of somebody else" in names
    assert "process-column" not in names
    assert "of the old one" not in [one["name"] for one in api("POST", "/automations/filter", {})]


@pytest.mark.slow
def test_prefect_deploys_the_same_from_the_written_file(server, api, tmp_path):
    deployed()
    api("DELETE", f"/deployments/{deployed().ids['upload']}")
    environment = {**os.environ, **server.environment, "OPTICSTREAM_API_URL": server.api_url}
    file = tmp_path / "prefect.yaml"
    cli = [sys.executable, "-m", "opticstream", "deploy", "--yaml", str(file)]
    subprocess.run(cli, env=environment, check=True, cwd=tmp_path)
    assert len(yaml.safe_load(file.read_text())["deployments"]) == len(DEPLOYMENTS)
    prefect = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(prefect, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {one["name"]: one for one in api("POST", "/deployments/filter", {}) if TAG in one["tags"]}
    assert {name: one["work_pool_name"] for name, one in found.items()} == {d.name: d.pool for d in DEPLOYMENTS}
    by_file = _triggers(api)
    deployed()  # replaces what the file made
    assert by_file == _triggers(api)


def _triggers(api):
    """Return what starts each deployment, and with which parameters."""
    names = {one["id"]: one["name"] for one in api("POST", "/deployments/filter", {})}
    return {
        names[action["deployment_id"]]: (
            sorted(one["trigger"]["expect"]), one["trigger"]["within"], sorted(one["trigger"]["for_each"]),
            json.dumps(action["parameters"], sort_keys=True),
        )
        for one in api("POST", "/automations/filter", {})
        for action in one["actions"]
        if action["deployment_id"] in names
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "meant"),
    [([], list(POOLS)), (["upload", "tile"], ["upload", "tile"]), (["tile,stitch", "tile"], ["tile", "stitch"])],
)
def test_a_worker_serves_the_pools_that_are_named_and_else_all(said, meant):
    assert checked_pools(said) == meant


def test_an_unknown_pool_is_refused_with_the_names_of_the_known_ones():
    with pytest.raises(ConfigurationError, match="gpu: no such pool; pools are tile, stitch, register, upload, state"):
        checked_pools(["gpu"])


class Workers:
    """Worker processes of the command line, and flows to run in their pools."""

    def __init__(self, server, api, folder):
        self.server, self.api, self.folder = server, api, folder
        (folder / "flows_of_test.py").write_text(FLOWS)
        self.environment = {
            **os.environ, "OPTICSTREAM_API_URL": server.api_url, "OPTICSTREAM_HOME": str(folder / "home"),
            "PYTHONPATH": str(folder), "COLOUR": "red", "OPTICSTREAM_WORKER_POLL_S": "0.5",
        }  # fmt: skip
        self.processes = []
        deployed()

    def start(self, *arguments, **environment):
        command = [sys.executable, "-m", "opticstream", "worker", *arguments]
        process = subprocess.Popen(
            command, env=self.environment | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def ready(self, *arguments, **environment):
        process = self.start(*arguments, **environment)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    def submit(self, name, **parameters):
        deployment = RunnerDeployment(
            name=name, flow_name=name, entrypoint=f"flows_of_test.{name}", work_pool_name="state",
            enforce_parameter_schema=False,
        )  # fmt: skip
        id_ = asyncio.run(deployment.aapply())
        return self.api("POST", f"/deployments/{id_}/create_flow_run", {"parameters": parameters})["id"]

    def run(self, id_):
        return self.api("GET", f"/flow_runs/{id_}")

    def wait(self, id_, *states, timeout_s=240):
        end = time.monotonic() + timeout_s
        while (run := self.run(id_))["state"]["type"] not in states:
            assert time.monotonic() < end, f"{run['state']}"
            time.sleep(0.2)
        return run

    def wait_for_log(self, id_, text, timeout_s=120):
        """Wait until a line of a run's log is at the server, which may come after the run's last state."""
        query = {"logs": {"flow_run_id": {"any_": [id_]}}}
        end = time.monotonic() + timeout_s
        while not any(text in log["message"] for log in self.api("POST", "/logs/filter", query)):
            assert time.monotonic() < end, f"no {text!r} in the log of the run"
            time.sleep(0.3)

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def workers(server, api, tmp_path):
    workers = Workers(server, api, tmp_path)
    yield workers
    workers.end()


def wait_for(path, timeout_s=240):
    end = time.monotonic() + timeout_s
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.1)
    return path.read_text()


@pytest.mark.parametrize("warm", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_worker_runs_what_is_scheduled_and_keeps_what_prefect_promises(workers, tmp_path, warm):
    worker = workers.ready("--pool", "state", OPTICSTREAM_WARM_STARTS=warm)
    done = workers.submit("told", mark=str(tmp_path / "done"))
    failed = workers.submit("told", mark=str(tmp_path / "fail"))
    gone = workers.submit("gone", mark=str(tmp_path / "gone"))
    ended = [workers.wait(id_, "COMPLETED", "FAILED", "CRASHED") for id_ in (done, failed, gone)]
    assert [run["state"]["type"] for run in ended] == ["COMPLETED", "FAILED", "CRASHED"]
    assert "wanted" in ended[1]["state"]["message"]
    assert "7" in ended[2]["state"]["message"], "the exit code is told"
    assert ended[0]["labels"]["prefect.worker.type"] == ("opticstream" if warm == "true" else "process")
    _pid, folder, colour = wait_for(tmp_path / "done").split()
    assert colour == "red"
    assert folder != os.getcwd()
    workers.wait_for_log(failed, "wanted")
    worker.terminate()
    assert worker.wait(60) == 0


def running(workers, folder):
    """Start a run that takes long, and return its id and its process."""
    id_ = workers.submit("told", mark=str(folder / "mark"), seconds=600)
    pid = int(wait_for(folder / "mark").split()[0])
    workers.wait(id_, "RUNNING")
    return id_, pid


def test_a_cancelled_run_ends(workers, tmp_path):
    workers.ready("--pool", "state")
    id_, pid = running(workers, tmp_path)
    workers.api("POST", f"/flow_runs/{id_}/set_state", {"state": {"type": StateType.CANCELLING.value}})
    assert workers.wait(id_, "CANCELLED", "CRASHED", "FAILED", "COMPLETED")["state"]["type"] == "CANCELLED"
    assert _is_gone(pid)


def test_no_run_outlives_a_worker_that_was_killed(workers, tmp_path):
    worker = workers.ready("--pool", "state")
    _id, pid = running(workers, tmp_path)
    worker.send_signal(signal.SIGKILL)
    assert _is_gone(pid)


def test_runs_that_were_killed_with_their_worker_are_marked_as_crashed_by_the_next_one(workers, tmp_path):
    worker = workers.ready("--pool", "state")
    id_, pid = running(workers, tmp_path)
    worker.send_signal(signal.SIGSTOP)  # so that it does not tell the server of the death of its run
    os.kill(pid, signal.SIGKILL)
    worker.send_signal(signal.SIGKILL)
    assert _is_gone(pid)
    assert workers.run(id_)["state"]["type"] == "RUNNING", "nobody is there to tell the server"
    workers.ready("--pool", "state")
    assert "has ended" in workers.wait(id_, "CRASHED")["state"]["message"]


def test_runs_of_a_worker_that_never_comes_back_are_marked_as_crashed_by_the_sweep(server, api):
    deployed()
    ghost = {"name": "ghost state", "heartbeat_interval_seconds": 1}
    api("POST", "/work_pools/state/workers/heartbeat", ghost)
    flow = api("POST", "/flows/", {"name": "of a ghost"})["id"]
    runs = [api("POST", "/flow_runs/", {"flow_id": flow, "state": {"type": "RUNNING"}})["id"] for _ in range(2)]
    api("PATCH", f"/flow_runs/{runs[0]}/labels", {"prefect.worker.name": "ghost state"})
    end = time.monotonic() + 240
    while "ghost state" not in lost_workers(server.api_url, POOLS):
        assert time.monotonic() < end, "the server still believes in the worker"
        time.sleep(1)
    sweep()
    assert [api("GET", f"/flow_runs/{id_}")["state"]["type"] for id_ in runs] == ["CRASHED", "RUNNING"]


def test_a_second_worker_of_the_same_pool_and_home_is_refused(workers):
    workers.ready("--pool", "upload")
    second = workers.start("--pool", "tile,upload")
    assert second.wait(120) == 1
    assert "pool upload is served by another worker" in second.stderr.read()


def test_a_missing_pool_is_told_with_what_to_do(workers, api):
    api("DELETE", "/work_pools/upload")
    worker = workers.start("--pool", "upload")
    assert worker.wait(600) == 1
    assert "no work pool upload; run `opticstream deploy` once" in worker.stderr.read()


def test_a_pool_of_another_type_is_refused_by_workers_and_deployments(server, api):
    deployed()
    api("DELETE", "/work_pools/upload")
    api("POST", "/work_pools/", {"name": "upload", "type": "docker", "base_job_template": {}})
    try:
        with pytest.raises(ServerError, match="work pool upload is of type 'docker', expected 'opticstream'"):
            deployed()
        with pytest.raises(ServerError, match="work pool upload is of type 'docker', expected 'opticstream'"):
            check_pools(["upload"], server.api_url, headers=None, say=print)
    finally:
        api("DELETE", "/work_pools/upload")
        deployed()


@pytest.mark.slow
def test_a_paused_pool_is_told_once_and_when_it_goes_on(workers, api):
    deployed()
    api("PATCH", "/work_pools/upload", {"is_paused": True})
    worker = workers.ready("--pool", "upload")
    lines = [line_with(worker.stderr, "upload")]
    assert "work pool upload is paused: no run of it starts until it is resumed" in lines[0]
    assert "waiting since 20" in lines[0]
    api("PATCH", "/work_pools/upload", {"is_paused": False})
    assert "work pool upload goes on, after" in line_with(worker.stderr, "upload")


def doctor(workers, *arguments, status=0):
    """Return what the command finds with the server of these tests, by the name of the check."""
    done = subprocess.run(
        [sys.executable, "-m", "opticstream", "doctor", "--json", *arguments], env=workers.environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    found = {}
    for one in json.loads(done.stdout)["checks"]:
        found.setdefault(one["name"], []).append(one)
    return found


@pytest.mark.slow
def test_the_doctor_finds_a_server_in_order_and_what_somebody_has_switched_off(workers, api):
    ids = deployed().ids
    told = doctor(workers)
    assert [one["result"] for one in told["server"]] in (["ok"], ["warning"]), "it answers, on a busy machine slowly"
    for name in ("credentials", "version", "clock", "pools", "deployments", "triggers", "locks"):
        assert [one["result"] for one in told[name]] == ["ok"], told[name]
    (automation,) = api("GET", f"/automations/related-to/prefect.deployment.{ids['upload']}")
    api("PATCH", f"/automations/{automation['id']}", {"enabled": False})
    (lost,) = api("GET", f"/automations/related-to/prefect.deployment.{ids['notify']}")
    api("DELETE", f"/automations/{lost['id']}")
    api("POST", f"/deployments/{ids['stitch-mosaic']}/pause_deployment")
    api("DELETE", f"/deployments/{ids['register-slice']}")
    told = doctor(workers, status=1)
    said = {one["found"]: one["result"] for name in ("deployments", "triggers") for one in told[name]}
    assert said == {
        "missing: register-slice": "problem",
        "paused, so that their runs do not start: stitch-mosaic": "warning",
        "deployments without trigger, which no event starts: notify": "problem",
        "triggers that are switched off: upload": "problem",
    }
    api("PATCH", f"/automations/{automation['id']}", {"enabled": True})
    api("POST", f"/deployments/{ids['stitch-mosaic']}/resume_deployment")
    deployed()


def line_with(stream, word):
    """Return the next line of a stream that holds a word; the time limit of the test ends the wait."""
    return next(line for line in stream if word in line)


def _is_gone(pid, timeout_s=60):
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False

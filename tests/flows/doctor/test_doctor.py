"""`opticstream doctor`: each bad day is found, said in one line with what to do, and nothing is changed."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.version import Version
from tests.flows.fake_api import HTML, as_json, fake_api, prefect
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings
from opticstream.flows.contact import Contact
from opticstream.flows.doctor import CHECKS, Check, Finding, Scene, _host, _server, run_checks
from opticstream.flows.pools import POOL_TYPE, POOLS
from opticstream.system.host import HostIdentity

PROJECT = """
[project]
project_name = "p"
project_base_path = "out"
raw_path = "raw"
[scan]
grid_size_y = 2
illuminations = [{ name = "normal", columns = 2, a_lines = 350 }]
"""
READY = Contact("ready", "Prefect 3.8.8", "", "3.8.8", skew_s=0.0)


def names(findings):
    return {(one.name, one.result) for one in findings}


def of_check(findings, name):
    return [(one.result, one.found, one.advice) for one in findings if one.name == name]


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    """Call the command on a host of its own."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "OPTICSTREAM_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OPTICSTREAM_HOME", str(tmp_path / "home"))

    def call(*words, url=None):
        if url is not None:
            monkeypatch.setenv("OPTICSTREAM_API_URL", url)
        before = dict(os.environ)
        try:
            return CliRunner().invoke(app, ["doctor", *map(str, words)])
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)

    return call


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "tile.nii").write_bytes(b"raw")
    file = tmp_path / "p.toml"
    file.write_text(PROJECT, encoding="utf-8")
    return file


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_a_host_without_a_server_is_well_and_nothing_is_changed(invoke, project, tmp_path):
    (tmp_path / "home").mkdir()
    before = tree(tmp_path / "raw") | dict.fromkeys(tmp_path.rglob("*"), 0)
    answer = invoke(project)
    assert answer.exit_code == 0, answer.output
    assert "no problem" in answer.output
    assert "run`, `watch` and `up` start one of their own" in answer.output
    assert before == tree(tmp_path / "raw") | dict.fromkeys(tmp_path.rglob("*"), 0)


def test_a_home_that_is_not_there_yet_is_not_made(invoke, tmp_path):
    assert "not there yet; the first command makes it" in invoke().output
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_a_problem_with_what_to_do(invoke):
    answer = invoke("--json", url="http://127.0.0.1:9/api")
    assert answer.exit_code == 1
    told = json.loads(answer.output)
    assert told["problems"] == 1
    (one,) = [check for check in told["checks"] if check["name"] == "server"]
    assert one["result"] == "problem"
    assert one["found"].startswith("http://127.0.0.1:9/api: no Prefect server answers there")
    assert "`opticstream server`" in one["advice"]
    assert not [check for check in told["checks"] if check["name"] in ("pools", "workers", "deployments")]


@pytest.mark.parametrize(
    ("replies", "name", "said"),
    [
        ({"*": HTML}, "server", "not a Prefect API"),
        ({"*": as_json({}, 401)}, "credentials", "refuses this host (HTTP 401)"),
        ({"*": as_json({}, 403)}, "credentials", "HTTP 403"),
        (prefect("2.20.0"), "version", f"the server runs Prefect 2.20.0, and this host {version('prefect')}"),
    ],
)
def test_another_program_credentials_and_versions_are_told_apart(invoke, replies, name, said):
    with fake_api(replies) as api:
        answer = invoke("--json", url=api.url)
    assert answer.exit_code == 1
    problems = [check for check in json.loads(answer.output)["checks"] if check["result"] == "problem"]
    assert [check["name"] for check in problems] == [name]
    assert said in problems[0]["found"]
    assert problems[0]["advice"]


def test_a_setting_that_is_none_is_a_problem(invoke, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_LEASE_S", "soon")
    answer = invoke()
    assert answer.exit_code == 1
    assert "OPTICSTREAM_LEASE_S = soon" in answer.output
    monkeypatch.setenv("OPTICSTREAM_LEASE_S", "60")
    monkeypatch.setenv("OPTICSTREAM_LEESE_S", "60")
    assert "no such setting: OPTICSTREAM_LEESE_S" in invoke().output


def test_an_unknown_pool_is_wrong_use(invoke):
    answer = invoke("--pool", "gpu")
    assert answer.exit_code == 2
    assert "gpu: no such pool" in answer.output


def test_the_help_teaches(invoke):
    answer = invoke("--help")
    for word in ("OPTICSTREAM_", "problem", "warning", "Exit status", "never writes into the folder of raw tiles"):
        assert word in " ".join(answer.output.split()), word


class TestProject:
    @pytest.fixture
    def look(self, project, tmp_path, monkeypatch):
        def look(**settings):
            found = list(run_checks(CHECKS, Scene(DeploymentSettings(home=tmp_path), str(project), True, **settings)))
            return [one for one in found if one.name.startswith(("project", "raw"))]

        monkeypatch.delenv("OPTICSTREAM_API_URL", raising=False)
        return look

    def test_a_project_in_order(self, look):
        found = look()
        assert {one.result for one in found} == {"ok"}, found
        assert "can be read; this account could also write there, and never does" in of_check(found, "raw folder")[0][1]

    def test_an_absent_folder_names_the_path_map(self, look, tmp_path):
        (tmp_path / "out").rmdir()
        (one,) = of_check(look(), "project folder")
        assert one[0] == "problem"
        assert f"{tmp_path / 'out'}: cannot be found on this host" in one[1]
        assert "OPTICSTREAM_PATH_MAP" in one[2]

    def test_a_full_disk_and_a_small_one(self, look, monkeypatch):
        free = [10 << 20]
        monkeypatch.setattr(_host.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=free[0]))
        found = look()
        assert ("project space", "problem") in names(found)
        assert "the raw tiles of a mosaic take" in of_check(found, "project space")[0][1]
        free[0] = 1 << 50
        assert ("project space", "ok") in names(look())

    def test_a_folder_that_cannot_be_written_is_named_with_the_reason(self, look, monkeypatch):
        from opticstream.flows.doctor import _project

        monkeypatch.setattr(_project, "write_refusal", lambda _folder: "No space left on device")
        (one,) = of_check(look(), "project folder")
        assert one[0] == "problem"
        assert "cannot be written: No space left on device" in one[1]

    def test_a_raw_folder_that_this_host_does_not_see(self, look, tmp_path):
        (tmp_path / "raw" / "tile.nii").unlink()
        (tmp_path / "raw").rmdir()
        (one,) = of_check(look(), "raw folder")
        assert one[0] == "warning"
        assert "cannot be read on this host: it is not there" in one[1]

    def test_a_file_that_is_no_project(self, project, look):
        project.write_text(PROJECT + "[scan.nonsense]\n", encoding="utf-8")
        (one,) = of_check(look(), "project")
        assert one[0] == "problem"
        assert "scan.nonsense" in one[1]


def served(**changed):
    """What a server says of pools, workers and the rest, all in order."""
    pools = [{"name": name, "type": POOL_TYPE, "is_paused": False, "concurrency_limit": 2} for name in POOLS]
    host = HostIdentity.current().host
    replies = {"/work_pools/filter": as_json(pools)}
    for name in POOLS:
        worker = {"name": f"{host} {name} 1a2b", "status": "ONLINE", "last_heartbeat_time": "2026-01-02T00:00:00Z"}
        replies[f"/work_pools/{name}/workers/filter"] = as_json([worker])
    replies["/v2/concurrency_limits/filter"] = as_json([{"name": "p-oct-state", "active_slots": 0}])
    return prefect("3.8.8") | replies | changed


def look_at(check, replies, **scene):
    with fake_api(replies) as api:
        settings = DeploymentSettings(api_url=api.url)
        return list(check(Scene(settings, look=lambda *_: READY, **scene)))


def test_pools_and_workers_in_order():
    assert [one.result for one in look_at(_server.pools, served())] == ["ok"]
    assert [one.result for one in look_at(_server.workers, served())] == ["ok"]


def test_pools_that_are_missing_of_another_type_or_paused():
    pools = [
        {"name": "tile", "type": "docker"}, {"name": "stitch", "type": POOL_TYPE, "is_paused": True},
        {"name": "state", "type": POOL_TYPE, "concurrency_limit": 0},
    ]  # fmt: skip
    found = look_at(_server.pools, served(**{"/work_pools/filter": as_json(pools)}), pools=("tile", "stitch", "state"))
    assert [one.result for one in found] == ["problem", "warning", "warning"]
    assert "of type 'docker', expected 'opticstream'" in found[0].found
    assert "`prefect work-pool resume stitch`" in found[1].advice
    (gone,) = look_at(_server.pools, served(**{"/work_pools/filter": as_json([])}), pools=("upload",))
    assert (gone.result, gone.found) == ("problem", "the server has no work pool upload")
    assert "`opticstream deploy`" in gone.advice


def test_pools_without_a_worker_and_with_two_of_one_host():
    host = HostIdentity.current().host
    two = [
        {"name": f"{host} tile {mark}", "status": "ONLINE", "last_heartbeat_time": None} for mark in ("1a2b", "3c4d")
    ]
    gone = [{"name": f"{host} state 1a2b", "status": "OFFLINE", "last_heartbeat_time": "2026-01-02T00:00:00+00:00"}]
    replies = served(**{
        "/work_pools/tile/workers/filter": as_json(two), "/work_pools/state/workers/filter": as_json(gone),
    })  # fmt: skip
    found = look_at(_server.workers, replies, pools=("tile", "state"))
    assert [one.result for one in found] == ["warning", "warning"]
    assert "2 workers of this host serve pool tile" in found[0].found
    assert "no worker online: none since 2026-01-0" in found[1].found


def lock(**value):
    since = datetime.now(UTC) - timedelta(seconds=value.pop("age_s", 1))
    held = {"host": HostIdentity.current().host, "pid": os.getpid(), "since": since.isoformat()} | value
    return served(**{
        "/v2/concurrency_limits/filter": as_json([{"name": "p-oct-state", "active_slots": 1}]),
        "/variables/name/p-oct-state-holder": as_json({"value": held}),
    })  # fmt: skip


def test_locks_of_the_living_and_of_the_dead(monkeypatch):
    monkeypatch.setattr(_server.time, "sleep", lambda _s: None)
    assert [one.result for one in look_at(_server.locks, served())] == ["ok"]
    assert [one.result for one in look_at(_server.locks, lock())] == ["ok"]
    (dead,) = look_at(_server.locks, lock(pid=2**22 + 1))
    assert dead.result == "problem"
    assert "which has ended" in dead.found
    assert "state unlock" in dead.advice
    assert [one.result for one in look_at(_server.locks, lock(host="elsewhere", age_s=600))] == ["warning"]


def test_a_clock_that_is_wrong_is_told_with_its_size():
    for skew_s, result in ((0.5, "ok"), (-40.0, "warning"), (400.0, "problem")):
        contact = Contact("ready", "Prefect 3.8.8", skew_s=skew_s, skew_error_s=0.6)
        (one,) = _server.clock(Scene(DeploymentSettings(api_url="http://x/api"), look=lambda *_, c=contact: c))
        assert one.result == result
        assert result == "ok" or f"{abs(skew_s):.0f} s" in one.found


def test_packages_that_do_not_fit_are_named(monkeypatch):
    versions = {"prefect": Version("2.20.0"), "zarr": None}
    monkeypatch.setattr(_host, "installed_version", lambda name: versions.get(name, Version("99")))
    (one,) = _host.packages(Scene(DeploymentSettings()))
    assert one.result == "problem"
    assert "prefect 2.20.0, needed <4,>=3.8.8" in one.found
    assert "zarr is missing" in one.found


def test_a_home_on_a_full_disk_without_locks_or_on_a_share(tmp_path, monkeypatch):
    from opticstream.system.mounts import Mount

    scene = Scene(DeploymentSettings(home=tmp_path))
    monkeypatch.setattr(_host, "write_refusal", lambda _folder: "No space left on device")
    (one,) = _host.home(scene)
    assert (one.result, "No space left" in one.found) == ("problem", True)
    monkeypatch.setattr(_host, "write_refusal", lambda _folder: None)
    monkeypatch.setattr(_host, "mount_of", lambda _folder: Mount("nfs4", Path("/home")))
    (one,) = _host.home(scene)
    assert (one.result, "network share" in one.found) == ("warning", True)
    monkeypatch.setattr(_host, "has_record_locks", lambda _folder: False)
    (one,) = _host.home(scene)
    assert (one.result, "no file locks" in one.found) == ("problem", True)


def test_little_memory_and_few_open_files(monkeypatch):
    import resource

    monkeypatch.setattr(_host, "memory_of_host", lambda: 1 << 30)
    (one,) = _host.machine(Scene(DeploymentSettings()))
    assert (one.result, "1.0 GiB" in one.found) == ("warning", True)
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (256, 4096))
    (over,) = _host.machine(Scene(DeploymentSettings(memory_budget="2GiB")))
    assert (over.result, "OPTICSTREAM_MEMORY_BUDGET = 2.0 GiB" in over.found) == ("problem", True)
    (one,) = _host.open_files(Scene(DeploymentSettings()))
    assert (one.result, "256 files" in one.found) == ("warning", True)


def test_a_check_that_fails_or_hangs_is_told_itself_and_the_others_go_on():
    def broken(_scene):
        raise ZeroDivisionError("by zero")
        yield

    def hanging(_scene):
        time.sleep(60)
        yield

    def fine(_scene):
        yield Finding("ok", "all\nis well")

    checks = [Check("broken", broken), Check("hanging", hanging, limit_s=0.2), Check("fine", fine)]
    found = list(run_checks(checks, Scene(DeploymentSettings())))
    assert names(found) == {("broken", "problem"), ("hanging", "problem"), ("fine", "ok")}
    assert "ZeroDivisionError: by zero" in found[0].found
    assert "did not end: no answer within 0.2 s" in found[1].found
    assert found[2].found == "all is well"


def test_a_part_that_cannot_be_told_leaves_out_what_needs_it_and_ends_nothing(monkeypatch):
    def broken(_scene, need):
        raise OSError(f"no {need}")

    monkeypatch.setattr(Scene, "has", broken)
    checks = [Check("one", lambda _s: [Finding("ok", "one")], needs=("project",)), Check("two", lambda _s: [])]
    assert list(run_checks(checks, Scene(DeploymentSettings()))) == []


def test_every_check_has_a_name_of_its_own_and_a_limit():
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(0 < check.limit_s <= 120 for check in CHECKS)

"""The periodic sweep on a real server: what was never announced is found, what is stuck is told."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.deployments import runner_deployments
from opticstream.flows.driver import Driver
from opticstream.flows.parameters import registered_projects, save_parameters
from opticstream.flows.sweep import sweep
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.pipeline.milestones import notifier, tell_milestones
from opticstream.pipeline.progress import is_finished
from opticstream.pipeline.project import Project
from opticstream.pipeline.stale import stale_results
from opticstream.pipeline.sweep import memory_of_sweeps
from opticstream.testing.bus import LocalBus
from opticstream.watch import Watcher

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]


def registered(acquired, folder, name):
    shutil.copytree(acquired, folder, dirs_exist_ok=True)
    text = (folder / "project.toml").read_text().replace('project_name = "small"', f'project_name = "{name}"')
    (folder / "project.toml").write_text(text)
    config = load_project(folder / "project.toml")
    assert config.name == name
    save_parameters(config)
    return Project.open(config, deployment=DeploymentSettings())


@pytest.fixture
def swept_alone(monkeypatch):
    """Return a function that lets sweeps see only some projects: other tests leave theirs on the server, half done."""

    def choose(*names):
        every = registered_projects()
        assert {config.name for config in every} >= set(names)
        chosen = [config for config in every if config.name in names]
        monkeypatch.setattr("opticstream.flows.sweep.registered_projects", lambda: chosen)

    return choose


def test_only_a_worker_that_is_to_sweep_has_it_scheduled():
    def deployments(sweep_s):
        return asyncio.run(runner_deployments(collapse_s=3, sweep_s=sweep_s))

    (found,) = [d for d in deployments(42.0) if d.name == "sweep"]
    assert [schedule.schedule.interval.total_seconds() for schedule in found.schedules] == [42.0]
    assert found.concurrency_limit == 1
    assert all(not d.schedules for d in deployments(None))


def test_what_was_never_announced_is_found_by_the_second_sweep(
    acquired, tmp_path, worker, prefect_server, swept_alone, monkeypatch
):
    monkeypatch.setenv("OPTICSTREAM_SWEEP_S", "2")
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        project = registered(acquired, tmp_path, "swept")
        away = registered(acquired, tmp_path / "away", "elsewhere")
        shutil.rmtree(away.paths.base)
        swept_alone("swept", "elsewhere")
        watcher = Watcher(tmp_path / "raw", project.config.scan, stable_s=0)
        driver = Driver(project, watcher, announce=lambda _events: None)  # every announcement is lost
        driver.step()
        driver.step()
        for batch in project.layout.batches(MosaicId(2)):
            project.facts.withdraw(batch, "ready", reason="one mosaic is enough")
        sweep()
        assert not project.facts.has(BatchId(1, 1), "started"), "the first sweep is patient"
        assert len(memory_of_sweeps(project)) == 3
        worker.wait_until(lambda: sweep() or project.facts.has(MosaicId(1), "stitched"))
        worker.wait_until_quiet()
    assert worker.errors == []
    assert not away.paths.base.exists(), "a project that this host cannot see is left alone"
    attempts = [
        len(list(project.facts.claims.attempts(batch, "started"))) for batch in project.layout.batches(MosaicId(1))
    ]
    assert attempts == [1, 1, 1]


def test_what_is_stuck_is_an_artifact_until_it_is_not(acquired, tmp_path, worker, prefect_server, swept_alone):
    def tables():
        return [json.loads(a["data"]) for a in worker.artifacts() if a["key"] == "halted--stuck"]

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        project = registered(acquired, tmp_path, "halted")
        swept_alone("halted")
        sweep()
        assert tables() == []
        project.facts.record(MosaicId(3), "ready")
        project.facts.record(MosaicId(3), "waiting")
        sweep()
        sweep()
        (table,) = tables()
        assert [(row["item"], row["what"]) for row in table] == [("mosaic-003", "template missing")]
        project.facts.withdraw(MosaicId(3), "ready", reason="test")
        project.facts.withdraw(MosaicId(3), "waiting", reason="test")
        sweep()
        assert tables()[-1] == []


def test_what_a_target_could_not_be_told_is_told_by_the_sweep(
    acquired, tmp_path, worker, prefect_server, swept_alone, monkeypatch
):
    monkeypatch.setenv("OPTICSTREAM_NOTIFY_TARGETS", '[{"kind": "file"}, {"kind": "log"}]')
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        project = registered(acquired, tmp_path, "Not Told")
        project.facts.record(MosaicId(1), "failed", {"detail": {"reason": "no template"}})
        told = project.paths.base / "milestones.jsonl"
        told.mkdir()  # in the way
        warnings: list[str] = []
        tell_milestones(project, notifier(project, say=print, warn=warnings.append))
        assert len(warnings) == 1
        swept_alone("Not Told")
        assert sweep(return_state=True).is_completed()
        told.rmdir()
        assert sweep(return_state=True).is_completed()
    assert [json.loads(line)["key"] for line in told.read_text().splitlines()] == ["Not Told/mosaic-001.failed-1"]


@pytest.mark.slow
def test_run_stale_does_again_what_a_changed_setting_concerns(acquired, tmp_path, worker, prefect_server, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_API_URL", prefect_server)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        project = registered(acquired, tmp_path, "restitched")
        bus = LocalBus(project)
        bus.feed(tmp_path / "raw")
        bus.run()
        file = tmp_path / "project.toml"
        tiles = project.facts.path(BatchId(1, 1), "processed").stat().st_mtime_ns
        nothing = CliRunner().invoke(app, ["run", str(file), "--stale"])
        assert nothing.exit_code == 0, nothing.output
        assert "nothing is out of date" in nothing.output
        file.write_text(file.read_text() + "\n[processing.registration]\nmin_birefringence = 2e-5\n")
        answer = CliRunner().invoke(app, ["run", str(file), "--stale", "--json"])
        assert answer.exit_code == 0, answer.output
        worker.wait_until_quiet()
    changed = Project.open(load_project(file))
    assert is_finished(changed, changed.facts.snapshot())
    assert stale_results(changed) == []
    counts = [e.item for e in changed.facts.journal.entries() if e.event == "computed" and e.fact == "registered"]
    assert counts == [SliceId(1)] * 2
    assert changed.facts.path(BatchId(1, 1), "processed").stat().st_mtime_ns == tiles

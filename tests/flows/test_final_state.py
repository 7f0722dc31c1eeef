"""A feeder leaves when all is told and shown, whatever the last announcements came to."""

from __future__ import annotations

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings, load_project
from opticstream.flows.driver import Driver
from opticstream.flows.events import announce_automatically
from opticstream.flows.parameters import save_parameters
from opticstream.flows.picture import picture_is_current
from opticstream.flows.queues import unfinished_runs
from opticstream.model.events import BatchProcessed
from opticstream.model.ids import BatchId
from opticstream.pipeline.milestones import milestones
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.testing.bus import LocalBus

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]


@pytest.fixture
def finished(acquisition) -> Driver:
    """A driver of a project whose work is done, and of which no server has heard."""
    overrides = {"project_name": f"final {acquisition.parent.name}"}
    config = load_project(acquisition / "project.toml", overrides=overrides)
    project = Project.open(config, deployment=DeploymentSettings(stable_s=0, stall_s=0.01, collapse_s=3))
    return LocalBus(project).run_folder(acquisition / "raw")


def test_what_an_earlier_run_did_not_tell_or_show_is_told_and_shown(finished, worker, prefect_server):
    project = finished.project
    driver = Driver.on_folder(project, finished.watcher.folder, live=False)
    told = project.paths.base / "state" / "notified"
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        save_parameters(project.config)
        assert not picture_is_current(project)
        lines: list[str] = []
        driver.finish(say=lines.append)
        assert picture_is_current(project)
        keys = {milestone.key for milestone in milestones(project, project_progress(project))}
        assert {"mosaic-001.stitched", "slice-001.stacked"} <= keys
        assert {path.name for path in told.iterdir()} >= keys
        before = {path.name: path.read_text() for path in told.iterdir()}

        name = project.config.name
        worker.wait_until(lambda: bool(worker.events("linc.oct.sample.updated", project=name)))
        lines.clear()
        driver.finish(say=lines.append)
        assert lines == [], "each is told once"
        assert {path.name: path.read_text() for path in told.iterdir()} == before


def test_a_feeder_waits_until_the_runs_of_its_project_have_ended(finished, worker, prefect_server):
    project = finished.project
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        save_parameters(project.config)
        driver = Driver.on_folder(project, finished.watcher.folder, live=False)
        announce_automatically([project.event(BatchProcessed, BatchId(1, 1))])
        worker.wait_until(lambda: bool(unfinished_runs(project.config.name)))
        assert unfinished_runs("another project") == []
        driver.finish()
        assert unfinished_runs(project.config.name) == []

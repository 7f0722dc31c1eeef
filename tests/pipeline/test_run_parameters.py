"""Parameters of one run follow its items down the chain, and those of no other run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, config_from_mapping, load_project
from opticstream.flows.driver import Driver
from opticstream.model.events import BatchProcessed, BatchReady, MosaicReady, MosaicStitched, SliceReady
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.pipeline.jobs import UPDATE_SAMPLE
from opticstream.pipeline.pending import pending_announcements, starting_event
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import RedoPlan
from opticstream.pipeline.retry import apply_plan
from opticstream.pipeline.rules import after_batch, after_mosaic
from opticstream.pipeline.run_parameters import run_parameters, take_over
from opticstream.pipeline.stale import stale_plan, stale_results
from opticstream.testing.bus import LocalBus
from opticstream.watch import FoundBatch, Watcher

DEEP = {"processing.enface.depth": 61}
FINE = {"processing.stitch.interpolation": "linear"}


@pytest.fixture
def registered(project_file: Path) -> Project:
    return Project.open(load_project(project_file), deployment=DeploymentSettings())


def session(registered: Project, parameters: dict) -> Project:
    """The same project as a run with other parameters opens it."""
    config = config_from_mapping(registered.config.model_dump(mode="json"), overrides=parameters)
    return Project.open(config, deployment=registered.deployment, parameters=parameters)


def announced(project: Project, batch: BatchId, folder: Path) -> BatchReady:
    """Have a session find a batch, and return its announcement."""
    told: list = []
    driver = Driver(project, Watcher(folder, project.config.scan), announce=told.extend)
    driver.ready(FoundBatch(batch, {}, {}, {}))
    return told[0]


def processed(project: Project, batch: BatchId) -> None:
    project.facts.record(batch, "processed", {"detail": {"parameters": dict(project.parameters)}})


def test_what_a_run_announces_and_makes_carries_its_parameters(registered, tmp_path):
    deep = session(registered, DEEP)
    assert announced(deep, BatchId(1, 1), tmp_path).parameters == DEEP
    assert deep.event(BatchProcessed, BatchId(1, 1)).parameters == DEEP
    assert registered.event(BatchProcessed, BatchId(1, 1)).parameters == {}


def test_a_look_under_other_parameters_announces_each_item_with_those_of_its_own_run(registered, tmp_path):
    deep = session(registered, DEEP)
    processed(registered, BatchId(1, 1))
    processed(deep, BatchId(1, 2))
    processed(session(registered, FINE), BatchId(2, 1))
    mosaic, other = after_batch(registered, BatchId(1, 1)), after_batch(deep, BatchId(2, 1))
    assert mosaic.parameters == DEEP, "those of the batch that came last"
    assert other.parameters == FINE
    for made, parameters in ((MosaicId(1), DEEP), (MosaicId(2), {})):
        registered.facts.record(made, "stitched", {"detail": {"parameters": parameters}})
    assert after_mosaic(deep, MosaicId(1)).parameters == {}


def test_sweeps_of_anybody_repeat_the_parameters_of_the_run_that_found_an_item(registered, tmp_path):
    deep, fine = session(registered, DEEP), session(registered, FINE)
    announced(deep, BatchId(1, 1), tmp_path)
    announced(registered, BatchId(1, 2), tmp_path)
    for sweeper in (registered, deep, fine):
        found = {event.item: event.parameters for event in pending_announcements(sweeper)}
        assert found == {BatchId(1, 1): DEEP, BatchId(1, 2): {}}
    processed(deep, BatchId(1, 1))
    processed(deep, BatchId(1, 2))
    after_batch(registered, BatchId(1, 1))
    (waiting,) = [e for e in pending_announcements(fine) if isinstance(e, MosaicReady)]
    assert waiting.parameters == DEEP


def test_a_run_takes_up_what_waits_in_its_own_folder_and_nothing_else(registered, tmp_path):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    announced(session(registered, DEEP), BatchId(1, 1), here)
    announced(session(registered, FINE), BatchId(1, 2), elsewhere)
    told: list = []
    driver = Driver(registered, Watcher(here, registered.config.scan), announce=told.extend)
    driver.start()
    assert {event.item: event.parameters for event in told} == {BatchId(1, 1): {}, BatchId(1, 2): FINE}
    assert run_parameters(registered, BatchId(1, 2)) == FINE


def test_what_is_done_again_belongs_to_the_run_that_does_it(registered, tmp_path):
    deep = session(registered, DEEP)
    announced(registered, BatchId(1, 1), tmp_path)
    registered.facts.record(MosaicId(1), "ready")
    registered.facts.record(SliceId(1), "ready")
    take_over(deep, [BatchId(1, 1), MosaicId(1), SliceId(1), MosaicId(2)])
    assert [run_parameters(registered, item) for item in (BatchId(1, 1), MosaicId(1), SliceId(1))] == [DEEP] * 3
    assert not registered.facts.has(MosaicId(2), "ready"), "what nobody found is not made ready"


@pytest.mark.slow
def test_the_whole_chain_of_a_run_uses_its_parameters_and_status_tells_what_they_put_out_of_date(acquired, tmp_path):
    folder = Path(shutil.copytree(acquired, tmp_path / "acquired"))
    registered = Project.open(load_project(folder / "project.toml"), deployment=DeploymentSettings(attempts=1))
    deep = session(registered, DEEP)
    bus = LocalBus(registered)
    Driver(deep, Watcher(folder / "raw", deep.config.scan, stable_s=0, stall_s=0), announce=bus.announce).step()
    bus.run()
    assert project_progress(registered).failures == ()
    computing = (BatchReady, MosaicReady, MosaicStitched, SliceReady)
    assert {type(event) for event in bus.seen} >= set(computing)
    assert all(event.parameters == DEEP for event in bus.seen)
    assert registered.facts.has(SliceId(1), "registered")
    assert stale_results(deep) == []
    told = {why for one in stale_results(registered) for why in one.why}
    assert "processing.enface.depth: 61 -> 80" in told

    plan = stale_plan(registered, stale_results(registered))
    apply_plan(registered, plan, reason="a run with the registered parameters")
    again = LocalBus(registered)
    again.run_until_nothing_is_pending()
    assert stale_results(registered) == []
    assert all(event.parameters == {} for event in again.seen)


def test_what_is_done_again_is_announced_with_the_parameters_of_who_has_it_done(registered):
    deep = session(registered, DEEP)
    registered.facts.record(SliceId(1), "ready")
    registered.facts.record(SliceId(1), "registered")
    registered.facts.record(SliceId(1), "stacked")
    plan = RedoPlan(deep)
    plan.redo(UPDATE_SAMPLE, SliceId(1))
    (event,) = plan.announce
    assert (event.item, event.parameters) == (SliceId(1), DEEP)
    registered.facts.withdraw(SliceId(1), "stacked", reason="test")
    stacking = starting_event(deep, UPDATE_SAMPLE, SliceId(1))
    assert stacking.parameters == {}, "a sweep repeats what the item's own run has announced"

"""What does not go on is told, with its reason; what goes on is not."""

from __future__ import annotations

from datetime import timedelta

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.pipeline.project import Project
from opticstream.pipeline.stuck import stuck_items
from opticstream.state import Facts
from opticstream.state.facts import utc_now
from opticstream.system.host import HostIdentity


@pytest.fixture
def project(project_file):
    return Project.open(load_project(project_file), deployment=DeploymentSettings(sweep_s=60, stall_s=600))


def told(project, *, later_s=0.0):
    found = stuck_items(project, now=utc_now() + timedelta(seconds=later_s))
    return {(one.item, one.what) for one in found}


def test_an_empty_project_and_a_fresh_one_are_not_stuck(project):
    assert told(project) == set()
    project.facts.record(BatchId(1, 1), "ready")
    assert told(project, later_s=200) == set()


def test_work_that_nobody_takes_up_is_told_until_it_is_taken_up(project):
    project.facts.record(BatchId(1, 1), "ready")
    assert (BatchId(1, 1), "not started") in told(project, later_s=301)
    with project.facts.claim(BatchId(1, 1)):
        assert (BatchId(1, 1), "not started") not in told(project, later_s=301)
    project.facts.record(BatchId(1, 1), "processed")
    assert (BatchId(1, 1), "not started") not in told(project, later_s=301)


def test_a_dead_holder_is_told_with_its_host(project):
    project.facts.record(BatchId(1, 1), "ready")
    identity = HostIdentity.current()
    dead = HostIdentity("opal", 2**22 + 1, identity.boot_id, identity.pid_namespace, process_start=1)
    Facts(project.facts.project_dir, host=dead).claim(BatchId(1, 1))
    (found,) = stuck_items(project)
    assert (found.item, found.what) == (BatchId(1, 1), "lease dead")
    assert "opal" in found.why


def test_columns_that_never_came_are_told_when_the_acquisition_has_moved_on_or_stands_still(project):
    project.facts.record(BatchId(1, 2), "ready")
    project.facts.record(BatchId(1, 2), "processed")
    assert told(project, later_s=500) == set()
    (found,) = stuck_items(project, now=utc_now() + timedelta(seconds=601))
    assert (found.item, found.what) == (MosaicId(1), "columns incomplete")
    assert found.why.endswith("; missing: 1")
    project.facts.record(BatchId(2, 1), "ready")
    (found,) = stuck_items(project)
    assert found.why == "columns 1 are incomplete although mosaic 2 has started"


def test_a_mosaic_without_its_template_is_told(project):
    mosaic = MosaicId(3)
    for batch in project.layout.batches(mosaic):
        project.facts.record(batch, "ready")
        project.facts.record(batch, "processed")
    for fact in ("ready", "waiting"):
        project.facts.record(mosaic, fact)
    assert told(project, later_s=400) == {(mosaic, "template missing")}
    project.paths.tilemap("normal").write_text("there")
    assert told(project) == set()


def test_what_has_ended_is_not_stuck(project):
    for item in (SliceId(1), MosaicId(2)):
        project.facts.record(item, "ready")
        project.facts.record(item, "failed")
    assert told(project, later_s=10_000) == set()

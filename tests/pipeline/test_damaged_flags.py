"""One damaged flag file costs what stands in it, and ends none of the looks at a project."""

from __future__ import annotations

from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.ids import MosaicId, SliceId
from opticstream.pipeline.failure_patterns import failure_patterns
from opticstream.pipeline.milestones import milestones
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.stuck import stuck_items

MOSAIC, SLICE = MosaicId(1), SliceId(1)


@pytest.fixture
def project(project_file: Path) -> Project:
    return Project.open(load_project(project_file), deployment=DeploymentSettings())


@pytest.mark.parametrize("fact", ["ready", "registered", "axis_failed", "skipped", "failed", "stack_failed"])
def test_a_damaged_flag_ends_none_of_the_looks(project, fact):
    project.facts.record(MOSAIC, "stitched")
    path = project.facts.path(SLICE, fact)
    path.write_text("not JSON")
    snapshot = project.facts.snapshot()
    progress = project_progress(project, snapshot)
    assert [mosaic.state for mosaic in progress.mosaics] == ["stitched"]
    assert {m.key for m in milestones(project, progress)} >= {"mosaic-001.stitched"}
    stuck_items(project, snapshot)
    assert failure_patterns(project) == []

"""A failure stops what depends on it and nothing else, at every level (section 17.4 of the design).

A tile in its batch, a parked publication and a slice that cannot be stacked are in `test_chain.py`; the same on a
Prefect server, one project beside another, in `tests/flows/test_event_chain.py`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.errors import ProcessingError
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.notify import Notifier
from opticstream.pipeline.milestones import milestones, tell_milestones
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.testing.bus import LocalBus


@pytest.fixture
def two_slices(acquisition) -> Path:
    """The small acquisition, its slice acquired twice."""
    for raw in list((acquisition / "raw").iterdir()):
        number = int(raw.name.split("_")[1])
        shutil.copy(raw, raw.with_name(raw.name.replace(f"mosaic_{number:03d}", f"mosaic_{number + 2:03d}")))
    return acquisition


def processed(folder: Path) -> tuple[Project, LocalBus]:
    project = Project.open(load_project(folder / "project.toml"), deployment=DeploymentSettings(attempts=1))
    bus = LocalBus(project)
    bus.feed(folder / "raw")
    bus.run()
    assert is_finished(project, project.facts.snapshot())
    return project, bus


def spoil(folder: Path, pattern: str) -> None:
    for raw in (folder / "raw").glob(pattern):
        os.truncate(raw, 1000)


def test_a_batch_of_which_no_tile_is_good_stops_no_other_batch_and_is_stitched_around(acquisition):
    for tile in (3, 4):
        spoil(acquisition, f"mosaic_001_image_{tile:04d}_*")
    project, bus = processed(acquisition)
    (failed,) = [event for event in bus.seen if event.event_name() == "linc.oct.batch.failed"]
    assert failed.batch == BatchId(1, 2)
    for batch in (*project.layout.batches(MosaicId(1)), *project.layout.batches(MosaicId(2))):
        lost = [3, 4] if batch == BatchId(1, 2) else []
        assert project.facts.read(batch, "processed").detail["failed_tiles"] == lost
        assert project.facts.has(batch, "published")
    assert {f.item for f in project_progress(project).failures} == {TileId(1, 3), TileId(1, 4)}
    assert project.facts.read(MosaicId(1), "stitched").detail["missing_tiles"] == [3, 4]
    assert project.facts.has(SliceId(1), "ready")


@pytest.mark.slow
def test_a_mosaic_that_is_lost_stops_its_slices_axis_and_no_other_slice(two_slices):
    spoil(two_slices, "mosaic_002_*")
    project, bus = processed(two_slices)
    progress = project_progress(project)
    assert [m.state for m in progress.mosaics] == ["stitched", "failed", "stitched", "stitched"]
    assert [m.volume for m in progress.mosaics] == ["stitched", "none", "stitched", "stitched"]
    assert [(s.state, s.stacked) for s in progress.slices][1] == ("registered", True)
    assert progress.slices[0].state == "skipped"
    assert "mosaic 2 (tilted)" in progress.slices[0].reason
    assert {"linc.oct.mosaic.failed", "linc.oct.slice.failed"} <= {event.event_name() for event in bus.seen}
    assert project.facts.has(MosaicId(1), "published")


@pytest.mark.slow  # `test_slices.py` shows the same of a registration that fails for its pictures
def test_a_slice_that_cannot_be_registered_stops_no_other_slice(two_slices, monkeypatch):
    from opticstream.stages import slice as stage

    original = stage.register_slice

    def register(*arguments, slice_id, **options):
        if slice_id == 1:
            raise ProcessingError("slice 1: out of luck")
        return original(*arguments, slice_id=slice_id, **options)

    monkeypatch.setattr(stage, "register_slice", register)
    project, bus = processed(two_slices)
    assert project_progress(project).slices[1].state == "registered"
    assert project_progress(project).slices[1].stacked
    (failure,) = project_progress(project).failures
    assert (failure.item, failure.reason) == (SliceId(1), "slice 1: out of luck")
    assert "linc.oct.slice.failed" in {event.event_name() for event in bus.seen}
    assert all(project.facts.has(MosaicId(number), "published") for number in (1, 2, 3, 4))


def test_a_publication_that_fails_stops_neither_the_others_nor_the_computing(acquisition, monkeypatch):
    from opticstream.pipeline import publishing

    original = publishing.move_to_archive

    def publish(source, target, **options):
        if source.name == "mosaic_001_aip.nii.gz":
            raise OSError(5, "Input/output error")
        return original(source, target, **options)

    monkeypatch.setattr(publishing, "move_to_archive", publish)
    project, _ = processed(acquisition)
    (failure,) = project_progress(project).failures
    assert (failure.item, failure.fact) == (MosaicId(1), "publish_failed")
    assert project.facts.has(MosaicId(1), "volume_published")
    assert project.facts.has(MosaicId(2), "published")
    assert [(s.state, s.stacked, s.published) for s in project_progress(project).slices] == [("registered", True, True)]


def test_a_damaged_flag_stops_its_own_item_only(acquisition):
    project = Project.open(load_project(acquisition / "project.toml"), deployment=DeploymentSettings(attempts=1))
    bus = LocalBus(project, lose=lambda _event: True)
    bus.feed(acquisition / "raw")
    project.facts.path(BatchId(1, 2), "ready").write_text("{ cut by a power fail")
    project.facts.path(BatchId(1, 3), "ready").write_text("")  # made by a person with `touch`
    assert [event.batch for event in pending_announcements(project)] == [
        BatchId(1, 1), BatchId(2, 1), BatchId(2, 2), BatchId(2, 3),
    ]  # fmt: skip
    bus.lose = lambda event: event.event_name() == "linc.oct.mosaic.stitched"
    bus.sweep()
    bus.run()
    assert project.facts.has(MosaicId(2), "stitched")
    project.facts.path(BatchId(2, 1), "archived").write_text("{ cut by a power fail")
    project.facts.withdraw(BatchId(2, 1), "published", reason="test")
    project.facts.withdraw(BatchId(2, 2), "published", reason="test")
    bus.lose = lambda _event: False
    bus.run_until_nothing_is_pending()
    assert project.facts.has(BatchId(2, 2), "published")
    (failure,) = project_progress(project).failures
    assert (failure.item, failure.fact) == (BatchId(2, 1), "publish_failed")
    assert "batch-001.archived" in failure.reason
    project.facts.path(BatchId(2, 1), "publish_failed").write_text("damaged as well")
    assert "batch-001.publish_failed" in project_progress(project).failures[0].reason


def test_a_milestone_that_cannot_be_told_stops_no_other_and_is_told_later(acquisition):
    class Target:
        name = "made_up"

        def __init__(self):
            self.told = []
            self.broken = True

        def tell(self, milestone):
            if self.broken and milestone.key == "mosaic-001.stitched":
                raise OSError("the picture is gone")
            self.told.append(milestone.key)

    def look():
        return Notifier(project.paths.base, [target], on_failure=failures.append)

    project, _ = processed(acquisition)
    target, failures = Target(), []
    reached = len(milestones(project, project_progress(project)))
    assert reached >= 6
    assert tell_milestones(project, look()) == reached - 1
    assert ["the picture is gone" in str(failure) for failure in failures] == [True]
    assert "slice-001.registered" in target.told
    target.broken = False
    assert tell_milestones(project, look()) == 1
    assert target.told[-1] == "mosaic-001.stitched"

"""An event that is sent again has parked work, and work on changed raw files, tried again; nothing else does."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model import events as catalogue
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.incoming import ANNOUNCED, Received
from opticstream.pipeline.pending import pending_announcements, ready_event
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.reemission import release
from opticstream.testing.bus import LocalBus
from opticstream.testing.chaos.outcome import computed

BATCH, MOSAIC, SLICE = BatchId(1, 1), MosaicId(1), SliceId(1)


@pytest.fixture
def project(project_file: Path) -> Project:
    return Project.open(load_project(project_file), deployment=DeploymentSettings())


def received(event: catalogue.Event, *, occurred: datetime | None = None, id_: str = "1", automatic=False) -> Received:
    occurred = occurred or datetime.now(UTC) + timedelta(seconds=1)
    label = {ANNOUNCED: occurred.isoformat()} if automatic else {}
    return Received(event.event_name(), event.payload(), event.resource() | label, id_, occurred)


# What is parked, the event that stands for it, and what is announced so that it is done again.
PARKED = {
    "stitching": (MOSAIC, "failed", catalogue.MosaicReady, MOSAIC, "mosaic.ready"),
    "volumes": (MOSAIC, "volume_failed", catalogue.MosaicStitched, MOSAIC, "mosaic.stitched"),
    "maps published": (MOSAIC, "publish_failed", catalogue.MosaicStitched, MOSAIC, "mosaic.stitched"),
    "volumes published": (
        MOSAIC, "volume_publish_failed", catalogue.MosaicVolumeStitched, MOSAIC, "mosaic.volume_stitched",
    ),
    "registration": (SLICE, "axis_failed", catalogue.SliceReady, SLICE, "slice.ready"),
    "registration without any mosaic": (SLICE, "failed", catalogue.SliceReady, SLICE, "slice.ready"),
    "slice published": (SLICE, "publish_failed", catalogue.SliceRegistered, SLICE, "slice.ready"),
    "stacks, by the slice": (SLICE, "stack_failed", catalogue.SliceReady, SLICE, "slice.ready"),
    "stacks, by its registration": (SLICE, "stack_failed", catalogue.SliceRegistered, SLICE, "slice.ready"),
    "stacks, by its failure": (SLICE, "stack_failed", catalogue.SliceFailed, SLICE, "slice.ready"),
    "stacks, by its volumes": (SLICE, "stack_failed", catalogue.MosaicVolumeStitched, MOSAIC, "slice.ready"),
    "batch published": (BATCH, "publish_failed", catalogue.BatchArchived, BATCH, "batch.archived"),
    "batch": (BATCH, "failed", catalogue.BatchReady, BATCH, "batch.ready"),
}  # fmt: skip


@pytest.fixture(params=PARKED.values(), ids=PARKED)
def parked(request, project: Project, tmp_path: Path):
    """Something that is parked: its item and fact, the event that stands for it, and what is announced then."""
    item, fact, kind, about, announced = request.param
    ready = project.event(catalogue.BatchReady, BATCH, raw_folder=str(tmp_path), files={1: "a", 2: "b"})
    project.facts.record(BATCH, "ready", {"detail": {"event": ready.payload()}})
    for one in (MOSAIC, SLICE):
        project.facts.record(one, "ready")
    project.facts.record(item, fact, {"detail": {"reason": "the disk was full"}})
    values = {"stage": "register slice", "reason": "no"} if kind is catalogue.SliceFailed else {}
    event = ready if kind is catalogue.BatchReady else project.event(kind, about, **values)
    return item, fact, event, announced


def test_what_is_parked_is_tried_again_when_its_event_is_sent_again(project, parked):
    item, fact, event, announced = parked
    again = release(project, event, received(event))
    assert not project.facts.has(item, fact)
    assert [one.event_name() for one in again] == [f"linc.oct.{announced}"]
    (why,) = {entry.why for entry in project.facts.journal.history(item) if entry.event == "withdrawn"}
    assert why.startswith(f"re-emitted event {event.event_name()} of ")


def test_announcements_of_the_pipeline_itself_try_nothing_again(project, parked):
    item, fact, event, _ = parked
    assert release(project, event, received(event, automatic=True)) == []
    assert project.facts.has(item, fact)


def test_an_event_that_was_sent_before_the_work_was_parked_tries_nothing_again(project, parked):
    item, fact, event, _ = parked
    late = received(event, occurred=datetime.now(UTC) - timedelta(minutes=1))
    assert release(project, event, late) == []
    assert project.facts.has(item, fact)


def test_an_event_that_is_delivered_twice_tries_again_once_also_from_a_host_whose_clock_is_ahead(project, parked):
    item, fact, event, _ = parked
    ahead = received(event, occurred=datetime.now(UTC) + timedelta(hours=1))
    assert release(project, event, ahead) != []
    project.facts.record(item, fact, {"detail": {"reason": "it failed again"}})
    assert release(project, event, ahead) == []
    assert project.facts.has(item, fact)
    assert release(project, event, received(event, occurred=ahead.occurred, id_="2")) != [], "a person sends it again"


def test_a_copy_of_an_announcement_with_its_labels_is_not_the_announcement(project, parked):
    item, fact, event, _ = parked
    first = received(event, automatic=True)
    later = datetime.now(UTC) + timedelta(seconds=5)
    assert release(project, event, Received(first.name, first.payload, first.labels, "2", later)) != []
    assert not project.facts.has(item, fact)


def test_a_run_that_a_person_starts_tries_again(project, parked):
    item, fact, event, _ = parked
    assert release(project, event, Received(event.event_name(), event.payload())) != []
    assert not project.facts.has(item, fact)


@pytest.mark.parametrize("case", ["stitching", "registration", "registration without any mosaic", "batch"])
def test_the_sweep_does_not_announce_what_is_parked(project, tmp_path, case):
    item, fact, kind, _, _ = PARKED[case]
    content = None
    if kind is catalogue.BatchReady:
        content = {"detail": {"event": project.event(kind, item, raw_folder=str(tmp_path), files={1: "a"}).payload()}}
    project.facts.record(item, "ready", content)
    assert kind in {type(event) for event in pending_announcements(project)}
    project.facts.record(item, fact)
    assert kind not in {type(event) for event in pending_announcements(project)}


def test_a_damaged_flag_of_parked_work_is_released_too(project):
    project.facts.record(MOSAIC, "failed")
    project.facts.path(MOSAIC, "failed").write_text("not JSON")
    event = project.event(catalogue.MosaicReady, MOSAIC)
    assert release(project, event, received(event)) != []
    assert not project.facts.has(MOSAIC, "failed")


def test_a_skipped_slice_is_registered_once_it_has_two_good_mosaics(project):
    project.facts.record(SLICE, "ready")
    project.facts.record(SLICE, "skipped", {"detail": {"reason": "one good illumination"}})
    event = project.event(catalogue.SliceReady, SLICE)
    assert release(project, event, received(event)) == []
    for mosaic in project.layout.mosaics(SLICE):
        project.facts.record(mosaic, "stitched")
    assert release(project, event, received(event, id_="2")) != []
    assert not project.facts.has(SLICE, "skipped")


@pytest.mark.slow
def test_bad_tiles_and_changed_raw_files_are_done_again_and_finished_batches_skipped(acquisition):
    project = Project.open(
        load_project(acquisition / "project.toml"), deployment=DeploymentSettings(lease_s=5, attempts=1)
    )
    raw = {n: next((acquisition / "raw").glob(f"mosaic_001_image_{n:04d}_*")) for n in (1, 2)}
    good = {n: path.read_bytes() for n, path in raw.items()}
    os.truncate(raw[2], len(good[2]) // 2)
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    bus.run()
    assert [f.item for f in project_progress(project).failures] == [TileId(1, 2)]
    before = computed(project)
    payload = ready_event(project, BATCH).payload()

    def emitted(**more) -> set[str]:
        """What is computed again when the event of the batch is sent again."""
        known = computed(project)
        again = LocalBus(project)
        again.emit("linc.oct.batch.ready", {**payload, **more})
        again.run_until_nothing_is_pending()
        assert is_finished(project, project.facts.snapshot())
        return {key for key, count in computed(project).items() if count > known.get(key, 0)}

    raw[2].write_bytes(good[2])
    redone = emitted()
    assert {"mosaic-001/tile-0002 processed", "mosaic-001 stitched", "slice-001 registered"} <= redone
    assert not any(key.startswith(("mosaic-002", "mosaic-001/tile-0001")) for key in redone)
    assert project_progress(project).failures == ()

    assert emitted() == set(), "finished, and from unchanged files"
    os.utime(raw[1])
    assert emitted() == set(), "another time of the same bytes is no change"

    raw[1].write_bytes(good[2])
    redone = emitted(operator="A", raw_folder=None, files=None)
    assert {"mosaic-001/tile-0001 processed", "mosaic-001 stitched", "slice-001 registered"} <= redone
    assert "mosaic-001/tile-0002 processed" not in redone
    assert emitted() == set()
    whys = {entry.why for entry in project.facts.journal.history(BATCH) if entry.event == "withdrawn"}
    assert any("tile 2 of mosaic 1 failed" in why for why in whys)
    assert any("the raw file of tile 1 of mosaic 1 has changed" in why for why in whys)
    assert before

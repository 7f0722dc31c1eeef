"""Announcements of other programs: what can be derived is derived, what cannot be understood is refused in one line."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.errors import EventError
from opticstream.model.events import ALL_EVENTS, BatchReady, MosaicFailed, MosaicReady, SampleUpdated, SliceReady
from opticstream.model.ids import BatchId, MosaicId, SampleId, SliceId, TileId
from opticstream.pipeline.failure_patterns import failure_patterns
from opticstream.pipeline.incoming import ANNOUNCED, Received, event_from_received
from opticstream.pipeline.milestones import milestones
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.refused import refuse, refused_events
from opticstream.watch import Watcher

ITEMS = {
    "sample": SampleId(),
    "slice": SliceId(2),
    "mosaic": MosaicId(4),
    "batch": BatchId(3, 2),
    "tile": TileId(3, 3),
}


@pytest.fixture
def project(project_file: Path) -> Project:
    return Project.open(load_project(project_file), deployment=DeploymentSettings())


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder with the files of batch 2 of mosaic 3: tiles 3 and 4."""
    folder = tmp_path / "raw day 1"
    (folder / "sub").mkdir(parents=True)
    for name in ("mosaic_003_image_0003_spectral_0000.nii", "sub/mosaic_003_image_0004_spectral_0000.nii",
                 "mosaic_003_image_0001_spectral_0000.nii", "notes.txt", ".mosaic_003_image_0003.nii"):  # fmt: skip
        (folder / name).write_bytes(b"x")
    return folder


def received(name: str, payload, labels=None) -> Received:
    return Received(f"linc.oct.{name}", payload, labels or {}, "id-1", datetime(2026, 1, 2, tzinfo=UTC))


def understood(project: Project, name: str, payload, labels=None):
    return event_from_received(project, received(name, payload, labels))


@pytest.mark.parametrize("kind", ALL_EVENTS, ids=lambda kind: kind.event_name())
def test_every_event_of_our_own_comes_back_as_it_was(project, kind, raw):
    values = {"reason": "why", "stage": "where", "reasons": ("a",), "slice_id": 2, "slices": (1, 2)}
    if kind is BatchReady:
        values = {"raw_folder": str(raw), "files": {3: "mosaic_003_image_0003_spectral_0000.nii"}}
    given = {name: value for name, value in values.items() if name in kind.model_fields}
    event = project.event(kind, ITEMS[kind.hierarchy], **given)
    assert event_from_received(project, Received(kind.event_name(), event.payload(), event.resource())) == event


@pytest.mark.parametrize("kind", ALL_EVENTS, ids=lambda kind: kind.event_name())
def test_ids_alone_are_enough_in_the_payload_or_in_the_resource(project, kind, raw):
    project.facts.replace(SampleId(), "updated", {"detail": {"slices": [1, 2]}}, why="test")
    item = ITEMS[kind.hierarchy]
    names = ("slice_id", "mosaic_id", "batch_id", "tile_id")
    ids = {name: f"{getattr(item, name):03d}" for name in names if hasattr(item, name)}
    further = {"raw_folder": str(raw)} if kind is BatchReady else {}
    name = kind.event_name().removeprefix("linc.oct.")
    first = understood(project, name, {"project_name": "p", **ids, **further})
    assert first.item == item
    assert understood(project, name, further, {"project": "p", **ids}) == first
    id_ = f"other.program.{item.key.replace('/', '.')}"
    assert understood(project, name, further, {"project": "p", "prefect.resource.id": id_}) == first
    if hasattr(first, "illumination"):
        assert (
            first.illumination == ("normal" if item.mosaic_id == 3 else "tilted")
            if kind.hierarchy != "mosaic"
            else True
        )
    assert first.project_base_path == str(project.config.base_path)


def test_the_mosaic_follows_from_slice_and_illumination(project):
    payload = {"project_name": "p", "slice_id": 2, "illumination": "Tilted"}
    event = understood(project, "mosaic.ready", payload)
    assert (event.mosaic, event.illumination) == (MosaicId(4), "tilted")
    assert (event.total_batches, event.grid_size_x, event.grid_size_y) == (1, 1, 2)


def test_a_mosaic_that_is_named_is_not_looked_up_and_an_illumination_alone_names_none(project):
    payload = {"project_name": "p", "slice_id": 2, "mosaic_id": 3}
    assert understood(project, "mosaic.ready", payload).mosaic == MosaicId(3)
    with pytest.raises(EventError, match="mosaic_id"):
        understood(project, "mosaic.ready", {"project_name": "p", "illumination": "tilted"})
    with pytest.raises(EventError, match="illumination"):
        understood(project, "mosaic.ready", payload | {"illumination": "tilted"})


def test_unknown_fields_are_ignored_with_a_line_in_the_log(project, caplog):
    caplog.set_level(logging.INFO)
    event = understood(project, "mosaic.ready", {"project_name": "p", "mosaic_id": 1, "operator": "A", "nested": {}})
    assert event == project.event(MosaicReady, MosaicId(1))
    (line,) = [record.message for record in caplog.records if "unknown fields" in record.message]
    assert "nested, operator" in line


def test_counts_of_another_layout_are_told_and_not_used(project, caplog):
    payload = {"project_name": "p", "mosaic_id": 1, "total_batches": 12, "grid_size_y": "2"}
    assert understood(project, "mosaic.ready", payload).total_batches == 2
    (line,) = [record.message for record in caplog.records if "is not used" in record.message]
    assert "total_batches 12" in line


@pytest.mark.parametrize("given", ["folder", "nothing"])
def test_the_raw_files_of_a_batch_are_found_by_their_names(project, raw, given):
    payload = {"project_name": "p", "mosaic_id": 3, "batch_id": "02"}
    if given == "folder":
        payload["raw_folder"] = str(raw)
    else:  # a neighbour was found there
        neighbour = project.event(BatchReady, BatchId(3, 1), raw_folder=str(raw), files={1: "x"})
        project.facts.record(BatchId(3, 1), "ready", {"detail": {"event": neighbour.payload()}})
    event = understood(project, "batch.ready", payload)
    assert event.raw_folder == str(raw)
    assert event.files == {
        3: "mosaic_003_image_0003_spectral_0000.nii", 4: "sub/mosaic_003_image_0004_spectral_0000.nii",
    }  # fmt: skip
    assert event.problems == {}


@pytest.mark.parametrize(
    "files",
    [
        {"3": "mosaic_003_image_0003_spectral_0000.nii", "04": "sub\\mosaic_003_image_0004_spectral_0000.nii"},
        ["mosaic_003_image_0003_spectral_0000.nii", "sub/mosaic_003_image_0004_spectral_0000.nii"],
        ["D:\\raw\\mosaic_003_image_0003_spectral_0000.nii", "D:\\raw\\sub\\mosaic_003_image_0004_spectral_0000.nii"],
    ],
    ids=["numbers as text", "a list", "Windows paths"],
)
def test_raw_files_are_taken_as_other_programs_write_them(project, raw, files):
    payload = {"project_name": "p", "mosaic_id": 3, "batch_id": 2, "raw_folder": str(raw), "files": files}
    event = understood(project, "batch.ready", payload)
    assert event.files == {
        3: "mosaic_003_image_0003_spectral_0000.nii", 4: "sub/mosaic_003_image_0004_spectral_0000.nii",
    }  # fmt: skip


def test_a_raw_folder_under_a_name_of_another_host_is_the_one_where_the_batch_was_found(project, raw):
    known = project.event(BatchReady, BatchId(3, 2), raw_folder=str(raw), files={3: "x"})
    project.facts.record(BatchId(3, 2), "ready", {"detail": {"event": known.payload()}})
    payload = {"project_name": "p", "mosaic_id": 3, "batch_id": 2, "raw_folder": "D:\\raw day 1"}
    assert understood(project, "batch.ready", payload).raw_folder == str(raw)


def test_two_files_of_one_tile_are_a_problem_of_that_tile(project, raw):
    (raw / "sub" / "mosaic_003_image_0003_spectral_0000.nii").write_bytes(b"y")
    payload = {"project_name": "p", "mosaic_id": 3, "batch_id": 2, "raw_folder": str(raw)}
    event = understood(project, "batch.ready", payload)
    assert list(event.problems) == [3]
    assert "2 files have its name" in str(event.problems[3])


WRONG = {
    "unknown event": ("mosaic.finished", {"mosaic_id": 1}, "unknown event 'linc.oct.mosaic.finished'; expected one of"),
    "no payload": ("mosaic.ready", None, "the payload is None, expected an object"),
    "a list": ("mosaic.ready", [1], "the payload is [1], expected an object"),
    "mosaic 0": ("mosaic.ready", {"mosaic_id": 0}, "mosaic_id: expected a whole number from 1 up, got 0"),
    "true": ("mosaic.ready", {"mosaic_id": True}, "mosaic_id: expected a whole number from 1 up, got True"),
    "text": ("mosaic.ready", {"mosaic_id": "one"}, "mosaic_id: expected a whole number from 1 up, got 'one'"),
    "half": ("mosaic.ready", {"mosaic_id": 1.5}, "mosaic_id: expected a whole number from 1 up, got 1.5"),
    "NaN": ("mosaic.ready", {"mosaic_id": float("nan")}, "mosaic_id: expected a whole number from 1 up, got nan"),
    "no id": ("mosaic.ready", {}, "mosaic_id is missing"),
    "no batch": ("batch.archived", {"mosaic_id": 1}, "batch_id is missing"),
    "batch 3 of 2": ("batch.archived", {"mosaic_id": 1, "batch_id": 3}, "batch_id: expected 1 to 2 for mosaic 1"),
    "tile 9 of 4": ("tile.failed", {"mosaic_id": 1, "tile_id": 9}, "tile_id: expected 1 to 4 for mosaic 1"),
    "another slice": ("mosaic.ready", {"mosaic_id": 1, "slice_id": 2}, "slice_id 2 contradicts mosaic_id 1"),
    "another illumination": (
        "mosaic.ready", {"mosaic_id": 1, "illumination": "tilted"}, "illumination 'tilted' contradicts mosaic_id 1",
    ),
    "no such illumination": (
        "mosaic.ready", {"slice_id": 1, "illumination": "red"}, "expected one of normal, tilted, got 'red'",
    ),
    "no raw folder": ("batch.ready", {"mosaic_id": 1, "batch_id": 1}, "raw_folder is missing"),
    "a raw folder elsewhere": (
        "batch.ready", {"mosaic_id": 1, "batch_id": 1, "raw_folder": "D:\\raw"}, "got 'D:\\\\raw' (a Windows path)",
    ),
    "raw folder 7": ("batch.ready", {"mosaic_id": 1, "batch_id": 1, "raw_folder": 7}, "raw_folder: expected the path"),
    "outputs 7": ("mosaic.stitched", {"mosaic_id": 1, "outputs": 7}, "outputs: "),
}  # fmt: skip


@pytest.mark.parametrize(("name", "payload", "told"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_understood_is_refused_with_one_line(project, name, payload, told):
    with pytest.raises(EventError) as error:
        understood(project, name, payload)
    text = str(error.value)
    assert told in text
    assert f"linc.oct.{name}" in text
    assert "\n" not in text


def test_a_folder_without_files_of_the_batch_is_refused(project, tmp_path):
    payload = {"mosaic_id": 1, "batch_id": 1, "raw_folder": str(tmp_path)}
    with pytest.raises(EventError, match=r"no file of batch 1 of mosaic 1 follows scan\.file_name"):
        understood(project, "batch.ready", payload)


@pytest.mark.parametrize(
    ("payload", "labels", "told"),
    [
        ({}, {}, "project_name is missing"),
        ({"project_name": ["p"]}, {}, "expected the name of a registered project"),
        ({"project_name": "p"}, {"project": "q"}, "project_name 'p' contradicts the label project 'q'"),
    ],
)
def test_an_event_belongs_to_one_project(payload, labels, told):
    with pytest.raises(EventError) as error:
        _ = received("mosaic.ready", payload, labels).project_name
    assert told in str(error.value)
    assert received("mosaic.ready", {}, {"project": "q"}).project_name == "q"
    assert received("mosaic.ready", {"project_name": 55}).project_name == "55"


def test_what_people_read_may_be_missing(project):
    event = understood(project, "mosaic.failed", {"mosaic_id": 1})
    assert isinstance(event, MosaicFailed)
    assert event.reason == "not said"
    project.facts.replace(SampleId(), "updated", {"detail": {"slices": [1, 3]}}, why="test")
    updated = understood(project, "sample.updated", {})
    assert isinstance(updated, SampleUpdated)
    assert (updated.slice_id, updated.slices) == (3, (1, 3))
    assert isinstance(understood(project, "slice.ready", {"mosaic_id": 4}), SliceReady)


def test_a_linked_folder_is_searched_for_an_event_as_it_is_by_the_watcher(project, raw, tmp_path):
    (raw / "sub").rename(tmp_path / "elsewhere")
    (raw / "day 2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(raw)
    event = understood(project, "batch.ready", {"mosaic_id": 3, "batch_id": 2, "raw_folder": str(raw)})
    assert event.files == {
        3: "mosaic_003_image_0003_spectral_0000.nii",
        4: "day 2/mosaic_003_image_0004_spectral_0000.nii",
    }
    watcher = Watcher(raw, project.config.scan, stable_s=0, stall_s=0, unfinished_s=0, live=False)
    found = {one.batch: one.files for _ in range(3) for one in watcher.poll()}
    assert found[BatchId(3, 2)] == event.files


def test_only_what_occurs_when_the_pipeline_announced_it_is_automatic():
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    labels = {ANNOUNCED: when.isoformat()}
    assert Received("n", {}, labels, "1", when).is_automatic
    assert not Received("n", {}, labels, "2", datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)).is_automatic, "a copy"
    assert not Received("n", {}, {}, "3", when).is_automatic
    assert not Received("n", {}, {ANNOUNCED: "soon"}, "4", when).is_automatic
    assert not Received("n", {}, labels).is_automatic, "a run that a person starts"


def test_a_refused_event_is_told_once_wherever_people_look(project):
    one = received("mosaic.ready", {"project_name": "p", "mosaic_id": 1, "illumination": "tilted"})
    with pytest.raises(EventError) as error:
        event_from_received(project, one)
    refuse(project, one, error.value)
    refuse(project, one, error.value)
    (refused,) = refused_events(project)
    assert "contradicts mosaic_id 1" in refused.why
    told = [m for m in milestones(project, project_progress(project)) if m.key == refused.key]
    assert [m.failure for m in told] == [True]
    (pattern,) = failure_patterns(project)
    assert (pattern.kind, pattern.count, pattern.stage) == ("event not understood", 1, "linc.oct.mosaic.ready")
    assert pattern.items == ("mosaic-001",)

"""The sample's stacks are published and uploaded after every slice, whole, and without holding up the next slice."""

from __future__ import annotations

from pathlib import Path

import pytest

from opticstream.model.errors import StateError
from opticstream.model.events import SampleUpdated
from opticstream.model.ids import MosaicId, SampleId, SliceId
from opticstream.pipeline import stacking
from opticstream.pipeline.pending import starting_event
from opticstream.pipeline.progress import is_finished
from opticstream.pipeline.project import Project
from opticstream.pipeline.uploads import upload_pending, upload_queue
from opticstream.stages.sample import stacks_at_rest
from opticstream.state.record import sha256_of_path
from opticstream.testing.slice_phantom import Picture, make_slice
from opticstream.testing.stitched_project import record_volume, stitched_project

ALL = SampleId()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Two slices, of which the first is in the stacks."""
    pictures = (Picture(shape=(24, 20)), Picture(shape=(24, 20)))
    phantoms = [make_slice(pictures, seed=n, grain_px=4.0, margin_px=4) for n in (1, 2)]
    project = stitched_project(tmp_path, phantoms)
    record_volume(project, MosaicId(1), 1.0, shape=(24, 20, 8))
    project.facts.record(SliceId(1), "skipped", {"detail": {"reason": "test"}})
    assert len(list(stacking.update_sample(project))) == 1
    return project


def published(project: Project) -> dict[str, str]:
    """Return the checksums of what the archive holds of the stacks."""
    record = project.facts.read(ALL, "published")
    assert record is not None
    return {file.path: sha256_of_path(project.paths.absolute(file.path)) for file in record.outputs}


def stacks(project: Project) -> dict[str, str]:
    record = project.facts.read(ALL, "updated")
    assert record is not None
    names = {file.path: project.paths.absolute(file.path) for file in record.outputs}
    return {f"archive:derivative/sub-01/{Path(name).name}": sha256_of_path(path) for name, path in names.items()}


def test_the_stacks_are_published_after_each_slice_and_the_archive_does_not_grow_in_place(project):
    (step,) = [step for item, step in upload_queue(project, project.facts.snapshot()) if item == ALL]
    assert isinstance(starting_event(project, step, ALL), SampleUpdated), "a sweep has it done where the event was lost"
    assert not is_finished(project, project.facts.snapshot())
    list(upload_pending(project))
    first = published(project)
    assert first == stacks(project)
    assert any(name.endswith(".ome.zarr") for name in first)
    project.facts.record(SliceId(2), "skipped", {"detail": {"reason": "test"}})
    before = {name: sha256_of_path(project.paths.absolute(name)) for name in first}
    list(stacking.update_sample(project))
    assert before == {name: sha256_of_path(project.paths.absolute(name)) for name in first}, "only a publication does"
    assert not project.facts.has(ALL, "published"), "the new stacks are not"
    list(upload_pending(project))
    second = published(project)
    assert second == stacks(project) != first
    assert not (project.paths.sample_folder / "slices.json").is_symlink()


def test_a_slice_that_is_added_meanwhile_has_the_stacks_published_again(project, monkeypatch):
    from opticstream.pipeline import publishing

    original = publishing.publish_growing
    moments = []

    def meanwhile(source, target, still):
        if not moments:
            moments.append(source)
            project.facts.record(SliceId(2), "skipped", {"detail": {"reason": "test"}})
            list(stacking.update_sample(project))
        return original(source, target, still)

    monkeypatch.setattr(publishing, "publish_growing", meanwhile)
    list(upload_pending(project))
    list(upload_pending(project))
    assert published(project) == stacks(project)
    assert not list(project.paths.archive_root.rglob("*.partial-*"))


def test_stacks_that_are_being_written_are_not_published(project):
    ledger = project.paths.sample_folder / "slices.json"
    still = stacks_at_rest(project.paths.sample_folder)
    ledger.write_text(ledger.read_text().replace('"present"', '"writing"'))
    with pytest.raises(StateError, match="a slice was added meanwhile"):
        still()
    list(upload_pending(project))
    assert not project.facts.has(ALL, "published")
    assert not project.facts.has(ALL, "publish_failed"), "they are published later"


def test_a_failure_names_the_sample_and_is_announced(project, monkeypatch):
    record = project.facts.read(ALL, "updated")
    project.paths.absolute(record.outputs[0].path).rename(project.paths.base / "gone")
    (event,) = [event for event in upload_pending(project) if event.item == ALL]
    assert event.event_name() == "linc.oct.sample.failed"
    assert "cannot be published" in event.reason
    assert project.facts.has(ALL, "publish_failed")

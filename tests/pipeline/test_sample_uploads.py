"""The sample's stacks are published and uploaded after every slice, whole, and without holding up the next slice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from opticstream.io.nifti import read_nifti
from opticstream.model.errors import StateError
from opticstream.model.events import SampleFailed, SampleUpdated
from opticstream.model.ids import MosaicId, SampleId, SliceId
from opticstream.pipeline import stacking
from opticstream.pipeline.pending import starting_event
from opticstream.pipeline.progress import is_finished
from opticstream.pipeline.project import Project
from opticstream.pipeline.retry import apply_plan, retry_plan
from opticstream.pipeline.uploads import upload_pending, upload_queue
from opticstream.stages.sample import stacks_at_rest, unfinished_slices
from opticstream.state.record import sha256_of_path
from opticstream.state.verify import verify
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
    """Return the checksums of what the archive holds of the stacks; scenes are not the same there."""
    record = project.facts.read(ALL, "published")
    assert record is not None
    paths = [file.path for file in record.outputs if "_scene" not in file.path]
    return {path: sha256_of_path(project.paths.absolute(path)) for path in paths}


def stacks(project: Project) -> dict[str, str]:
    record = project.facts.read(ALL, "updated")
    assert record is not None
    names = {file.path: project.paths.absolute(file.path) for file in record.outputs if "_scene" not in file.path}
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


STACKS = "opticstream.stages.sample._update_sample"


class Cut(Exception):
    """The share is gone in the middle of a slice."""


@pytest.fixture
def begun(project, monkeypatch) -> Project:
    """The second slice is parked while its maps are in the stacks and its volumes are not."""
    record_volume(project, MosaicId(3), 1.0, shape=(24, 20, 8))
    project.facts.record(SliceId(2), "skipped", {"detail": {"reason": "test"}})

    def cut(*_arguments):
        raise Cut("in the middle")

    monkeypatch.setattr(f"{STACKS}.put_volumes", cut)
    return project


def test_a_slice_that_is_parked_in_the_middle_does_not_keep_the_sample_from_its_archive(begun, monkeypatch):
    before = stacks(begun)
    events = list(stacking.update_sample(begun))
    assert begun.facts.has(SliceId(2), "stack_failed")
    assert [type(event) for event in events] == [SampleFailed, SampleUpdated], "who publishes hears of it"
    assert events[-1].slices == (1,)
    assert unfinished_slices(begun.paths.sample_folder) == ()
    list(upload_pending(begun))
    assert published(begun) == stacks(begun)
    assert [found for found in verify(begun.facts, layout=begun.layout) if found.item == ALL] == []
    maps = list(begun.paths.sample_folder.glob("*.nii"))
    assert maps
    for path in maps:
        planes = read_nifti(path)
        assert planes.shape[2] < 2 or not np.nan_to_num(planes[:, :, 1]).any(), "a gap, not a part of a slice"
    assert before.keys() <= stacks(begun).keys()
    monkeypatch.undo()
    apply_plan(begun, retry_plan(begun, only=[SliceId(2)]), reason="test")
    (updated,) = stacking.update_sample(begun)
    assert updated.slices == (1, 2)
    list(upload_pending(begun))
    assert published(begun) == stacks(begun)


def test_a_slice_that_could_not_be_taken_out_when_it_was_parked_is_taken_out_before_the_publication(begun, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(f"{STACKS}.blank", full)
        assert [type(event) for event in stacking.update_sample(begun)] == [SampleFailed]
        list(upload_pending(begun))
        assert not begun.facts.has(ALL, "published")
        assert not begun.facts.has(ALL, "publish_failed")
    list(upload_pending(begun))
    assert published(begun) == stacks(begun)


def test_late_volumes_that_are_parked_leave_the_maps_of_their_slice(project, monkeypatch):
    project.facts.record(SliceId(2), "skipped", {"detail": {"reason": "test"}})
    list(stacking.update_sample(project))
    held = {path: np.array(read_nifti(path)) for path in project.paths.sample_folder.glob("*.nii")}
    record_volume(project, MosaicId(3), 1.0, shape=(24, 20, 8))
    monkeypatch.setattr(f"{STACKS}.put_volumes", lambda *_arguments: 1 / 0)
    events = list(stacking.update_sample(project))
    assert [type(event) for event in events] == [SampleFailed, SampleUpdated]
    assert events[-1].slices == (1, 2)
    for path, planes in held.items():
        assert np.array_equal(read_nifti(path), planes, equal_nan=True)
    list(upload_pending(project))
    assert published(project) == stacks(project)


SHIFT = (
    "import sys, SimpleITK as s; t=s.TranslationTransform(3,(1.0,2.0,3.0)); s.WriteTransform(t, sys.argv[1]+'/t.tfm')"
)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("opticstream", "derivative/sub-01/normal_dBI_scene.ome.zarr"),
        ("bids", "derivatives/opticstream/sub-01/micr/sub-01_sample-all_desc-normalDBIScene_OCT.ome.zarr"),
    ],
)
def test_the_scene_is_published_beside_the_volumes_and_again_when_a_way_to_another_space_is_found(
    tmp_path: Path, layout: str, name: str
) -> None:
    hook = f"[processing.sample.hook]\nname = 'mri'\ncommand = {[sys.executable, '-c', SHIFT, '{output}']!r}\n"
    more = f"[publish]\nlayout = '{layout}'\n[processing.sample]\nisotropic = true\n{hook}"
    phantom = make_slice((Picture(shape=(24, 20)), Picture(shape=(24, 20))), seed=1, grain_px=4.0, margin_px=4)
    project = stitched_project(tmp_path, [phantom], more=more)
    record_volume(project, MosaicId(1), 1.0, shape=(24, 20, 8))
    project.facts.record(SliceId(1), "skipped", {"detail": {"reason": "test"}})
    list(stacking.update_sample(project))
    list(upload_pending(project))
    scene = project.paths.archive_root / name
    group = zarr.open_group(scene, mode="r")
    assert [one["name"] for one in group.attrs["ome"]["scene"]["coordinateTransformations"]] == ["slice_001 to sample"]
    assert (group["slice_001/0"][:] == 1).all()
    if layout == "bids":
        sidecar = scene.with_name(scene.name.removesuffix(".ome.zarr") + ".json")
        assert "transformations" in json.loads(sidecar.read_text())["Description"]
    stacking.register_sample(project)
    assert not project.facts.has(ALL, "published")
    list(upload_pending(project))
    assert project.facts.has(ALL, "published")
    assert [found for found in verify(project.facts, layout=project.layout) if found.item == ALL] == []
    ways = zarr.open_group(scene, mode="r").attrs["ome"]["scene"]["coordinateTransformations"]
    assert [one["output"]["name"] for one in ways] == ["sample", "mri"]

"""Archiving that is turned on later archives the batches that are finished, from their raw tiles."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from tests.pipeline.one_column import BATCH, PROJECT

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.events import BatchArchived, BatchFailed, BatchReady
from opticstream.model.ids import TileId
from opticstream.pipeline import batches
from opticstream.pipeline.late_archive import archive_finished_batches
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.retry import apply_plan, retry_plan
from opticstream.pipeline.upload_plan import planned_uploads
from opticstream.stages.tile import unpack_archive, verify_archives
from opticstream.state.record import sha256_of_path
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

OFF = "[processing.archive]\nenabled = false\n"
ZARR = '[processing.archive]\nformat = "zarr"\n'


def raw(folder: Path, tile: int) -> Path:
    return folder / "raw" / f"mosaic_001_image_{tile:04d}.nii"


def opened(folder: Path) -> Project:
    return Project.open(load_project(folder / "p.toml"), deployment=DeploymentSettings(lease_s=5, attempts=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Both tiles of the batch are processed while archiving was off; now it is on."""
    (tmp_path / "raw").mkdir()
    for tile in (1, 2):
        write_spectral_nifti(raw(tmp_path, tile), fringe_counts(channels=1, seed=tile))
        raw(tmp_path, tile).chmod(0o444)
    (tmp_path / "p.toml").write_text(PROJECT + OFF)
    project = opened(tmp_path)
    files = {tile: raw(tmp_path, tile).name for tile in (1, 2)}
    event = project.event(BatchReady, BATCH, raw_folder=str(tmp_path / "raw"), files=files)
    project.facts.record(BATCH, "ready", {"detail": {"event": event.payload()}})
    batches.process_batch(project, event)
    assert project.facts.has(BATCH, "processed")
    assert not project.facts.has(BATCH, "archived")
    assert [event for event in pending_announcements(project) if isinstance(event, BatchReady)] == []
    (tmp_path / "p.toml").write_text(PROJECT)
    return tmp_path


def swept(project: Project) -> list[object]:
    """Do what a sweep announces for the batch."""
    due = [event for event in pending_announcements(project) if isinstance(event, BatchReady)]
    return [event for ready in due for event in batches.process_batch(project, ready)]


def test_a_sweep_archives_finished_batches_and_changes_nothing_else(folder):
    project = opened(folder)
    products = sorted(project.paths.processed_folder(BATCH.mosaic).iterdir())
    before = [(path, path.stat().st_mtime_ns) for path in [*products, raw(folder, 1), raw(folder, 2)]]
    assert not is_finished(project, project.facts.snapshot())
    assert [type(event) for event in swept(project)] == [BatchArchived]
    assert [(path, path.stat().st_mtime_ns) for path, _ in before] == before
    record = project.facts.read(BATCH, "archived")
    assert [file.sha256 for file in record.outputs] == [
        sha256_of_path(project.paths.absolute(file.path)) for file in record.outputs
    ]
    for tile in (1, 2):
        copy = project.paths.archived_tile(TileId(1, tile))
        assert gzip.decompress(copy.read_bytes()) == raw(folder, tile).read_bytes()
    assert swept(project) == []


def test_a_raw_tile_that_is_gone_is_told_once_and_the_others_are_archived(folder):
    project = opened(folder)
    raw(folder, 1).rename(folder / "away.nii")
    assert [type(event) for event in swept(project)] == [BatchFailed]
    (failure,) = project_progress(project).failures
    assert failure.fact == "archive_failed"
    assert "1 of 2 raw tiles cannot be archived" in failure.reason
    assert f"{raw(folder, 1)} is gone" in failure.reason
    assert project.paths.archived_tile(TileId(1, 2)).exists()
    assert swept(project) == [], "it is not tried over and over"
    (folder / "away.nii").rename(raw(folder, 1))
    apply_plan(project, retry_plan(project), reason="test")
    assert [type(event) for event in swept(project)] == [BatchArchived]
    assert project_progress(project).failures == ()


def test_another_file_under_the_name_of_a_raw_tile_is_not_archived_for_it(folder):
    project = opened(folder)
    os.chmod(raw(folder, 2), 0o644)
    write_spectral_nifti(raw(folder, 2), fringe_counts(channels=1, seed=9))
    assert [type(event) for event in swept(project)] == [BatchFailed]
    (failure,) = project_progress(project).failures
    assert "is not the file that" in failure.reason
    assert not project.paths.archived_tile(TileId(1, 2)).exists()


def test_it_can_be_done_by_hand_without_a_server(folder):
    project = opened(folder)
    assert [type(event) for event in archive_finished_batches(project)] == [BatchArchived]
    assert list(archive_finished_batches(project)) == []


def test_flags_that_people_made_name_no_raw_tiles_and_are_left_alone(tmp_path):
    (tmp_path / "p.toml").write_text(PROJECT)
    project = opened(tmp_path)
    project.facts.record(BATCH, "ready")
    project.facts.record(BATCH, "processed")
    assert list(archive_finished_batches(project)) == []
    assert swept(project) == []


class TestFormat:
    """The setting `processing.archive.format` is that of new copies; copies that exist keep their form."""

    def test_late_copies_have_the_form_of_the_setting_and_are_recorded(self, folder):
        (folder / "p.toml").write_text(PROJECT + ZARR)
        project = opened(folder)
        assert [type(event) for event in archive_finished_batches(project)] == [BatchArchived]
        record = project.facts.read(BATCH, "archived")
        names = [Path(file.path).name for file in record.outputs]
        assert [name.partition("_OCT")[2] for name in names] == [".nii.zarr.zip", ".nii.sha256"] * 2
        for tile in (1, 2):
            copy = project.paths.archived_tile(TileId(1, tile), ".nii.zarr.zip")
            unpack_archive(copy, folder / f"back-{tile}.nii")
            assert (folder / f"back-{tile}.nii").read_bytes() == raw(folder, tile).read_bytes()
            assert sha256_of_path(copy) == next(f.sha256 for f in record.outputs if f.path.endswith(copy.name))

    def test_copies_keep_their_form_and_a_new_one_takes_the_place_of_the_old(self, folder):
        def process():
            project = opened(folder)
            for fact in ("processed", "archived"):
                project.facts.withdraw(BATCH, fact, reason="done again")
            files = {tile: raw(folder, tile).name for tile in (1, 2)}
            batches.process_batch(
                project, project.event(BatchReady, BATCH, raw_folder=str(folder / "raw"), files=files)
            )
            record = project.facts.read(BATCH, "archived")
            assert all(project.paths.absolute(file.path).stat().st_size == file.size for file in record.outputs)
            return project, [Path(file.path).name.partition("_OCT.nii.")[2] for file in record.outputs]

        other = [PROJECT.replace("depth = 30", f"depth = {depth}") for depth in (31, 32)]
        (folder / "p.toml").write_text(other[0])
        assert process()[1] == ["gz", "gz"]
        raw(folder, 2).chmod(0o644)
        write_spectral_nifti(raw(folder, 2), fringe_counts(channels=1, seed=5))  # another recording
        (folder / "p.toml").write_text(other[1] + ZARR)
        project, ends = process()
        assert ends == ["gz", "zarr.zip"]
        present = sorted(path.name.partition("chunk-")[2] for path in project.paths.archive_root.rglob("*_OCT.*"))
        assert present == [
            *("0001_acq-normal_OCT.nii.gz", "0001_acq-normal_OCT.nii.sha256"),
            *("0002_acq-normal_OCT.nii.sha256", "0002_acq-normal_OCT.nii.zarr.zip"),
        ]
        assert all(outcome.problem is None for outcome in verify_archives(project.paths.archive_root))


def test_a_plan_of_uploads_names_the_tiles_that_are_archived_first(folder):
    target = '[[publish.targets]]\nkind = "s3"\nendpoint = "http://127.0.0.1:9"\nbucket = "brains"\n'
    (folder / "p.toml").write_text(PROJECT + target)
    project = opened(folder)
    planned = list(planned_uploads(project, lambda _item: True, {"s3"}))
    assert [(one.item, one.before, one.size, one.targets) for one in planned] == [(BATCH, "archive", None, ("s3",))] * 2
    list(archive_finished_batches(project))
    copies = {
        path.relative_to(project.paths.archive_root).as_posix() for path in project.paths.archive_root.rglob("*.gz")
    }
    assert {one.key for one in planned} == copies
    again = [one for one in planned_uploads(project, lambda _item: True, {"s3"}) if one.key in copies]
    assert [one.before for one in again] == ["publish"] * 2

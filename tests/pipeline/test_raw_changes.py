"""Raw files that change while they are read, or after they were archived."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.pipeline.one_column import BATCH, PROJECT
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.model.errors import ChangingInputError
from opticstream.model.events import BatchProcessed, BatchReady
from opticstream.model.ids import MosaicId, TileId
from opticstream.pipeline import batches
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.project import Project
from opticstream.pipeline.raw_changes import take_back_changed
from opticstream.pipeline.settled_files import result_of_settled_files
from opticstream.pipeline.stale import stale_plan, stale_results
from opticstream.state.verify import verify
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti


def write_tile(folder: Path, tile: int, *, seed: int) -> Path:
    counts = fringe_counts(channels=1, seed=seed)
    return write_spectral_nifti(folder / "raw" / f"mosaic_001_image_{tile:04d}.nii", counts)


def opened(folder: Path, **deployment) -> Project:
    settings = DeploymentSettings(**{"lease_s": 5, "attempts": 1, "stable_s": 0.05, "stall_s": 60, **deployment})
    return Project.open(load_project(folder / "p.toml"), deployment=settings)


def ready(project: Project, folder: Path) -> BatchReady:
    files = {tile: f"mosaic_001_image_{tile:04d}.nii" for tile in (1, 2)}
    event = project.event(BatchReady, BATCH, raw_folder=str(folder / "raw"), files=files)
    project.facts.record(BATCH, "ready", {"detail": {"event": event.payload()}})
    return event


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "p.toml").write_text(PROJECT, encoding="utf-8")
    for tile in (1, 2):
        write_tile(tmp_path, tile, seed=tile)
    return tmp_path


@pytest.fixture
def archived(folder: Path) -> Project:
    """Both tiles are processed and archived, and the mosaic counts as stitched from them."""
    project = opened(folder)
    events = batches.process_batch(project, ready(project, folder))
    assert any(isinstance(event, BatchProcessed) for event in events)
    for fact in ("ready", "stitched"):
        project.facts.record(MosaicId(1), fact)
    return project


def again(project: Project) -> None:
    """Do what is announced for the batch."""
    for event in pending_announcements(project):
        if isinstance(event, BatchReady):
            batches.process_batch(project, event)


def archive_is_raw(project: Project, folder: Path, tile: int) -> bool:
    raw = (folder / "raw" / f"mosaic_001_image_{tile:04d}.nii").read_bytes()
    copy = project.paths.archived_tile(TileId(1, tile))
    vouched = copy.with_name(copy.name.removesuffix(".gz") + ".sha256").read_text(encoding="utf-8").split()[0]
    return gzip.decompress(copy.read_bytes()) == raw and hashlib.sha256(raw).hexdigest() == vouched


def touch(path: Path, *, seconds: float) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + int(seconds * 1e9)))


def test_a_file_that_changes_while_it_is_read_is_read_again_and_archived_as_it_is(folder, monkeypatch):
    project = opened(folder)
    process, calls = batches.process_tile, []

    def process_and_change(source, tile, **options):
        result = process(source, tile, **options)
        calls.append(tile.tile_id)
        if calls == [1]:
            write_tile(folder, 1, seed=77)  # same size, other bytes
        return result

    monkeypatch.setattr(batches, "process_tile", process_and_change)
    batches.process_batch(project, ready(project, folder))
    assert calls == [1, 1, 2]
    assert archive_is_raw(project, folder, 1)
    record = project.facts.read(TileId(1, 1), "processed")
    assert record.inputs_hash.endswith(str((folder / "raw" / "mosaic_001_image_0001.nii").stat().st_mtime_ns))
    assert take_back_changed(project).announce == []
    assert any("changed while it was read" in (entry.why or "") for entry in project.facts.journal.entries())


def test_a_file_that_is_damaged_because_it_is_still_written_is_no_failed_tile(folder, monkeypatch):
    project = opened(folder)
    whole = (folder / "raw" / "mosaic_001_image_0001.nii").read_bytes()
    (folder / "raw" / "mosaic_001_image_0001.nii").write_bytes(whole[:-100])
    process = batches.process_tile

    def write_the_rest_meanwhile(source, tile, **options):
        try:
            return process(source, tile, **options)
        finally:
            if source.stat().st_size < len(whole):
                source.write_bytes(whole)

    monkeypatch.setattr(batches, "process_tile", write_the_rest_meanwhile)
    batches.process_batch(project, ready(project, folder))
    assert project.facts.has(TileId(1, 1), "processed")
    assert not project.facts.has(TileId(1, 1), "failed")
    assert archive_is_raw(project, folder, 1)


def test_waiting_for_a_file_that_never_stands_still_ends_and_leaves_no_product(folder, monkeypatch):
    project = opened(folder, stall_s=0.3)
    process = batches.process_tile

    def always_changing(source, tile, **options):
        result = process(source, tile, **options)
        if tile.tile_id == 1:
            touch(source, seconds=1)
        return result

    monkeypatch.setattr(batches, "process_tile", always_changing)
    batches.process_batch(project, ready(project, folder))
    failed = project.facts.read(TileId(1, 1), "failed")
    assert "still changing" in failed.detail["reason"]
    assert "OPTICSTREAM_STALL_S" in failed.detail["reason"]
    assert failed.detail["kind"] == "changing input"
    assert not project.paths.tile_product(TileId(1, 1), "aip").exists()
    assert project.facts.has(TileId(1, 2), "processed")
    monkeypatch.setattr(batches, "process_tile", process)
    touch(folder / "raw" / "mosaic_001_image_0001.nii", seconds=1)
    take_back_changed(project)
    again(project)
    assert project.facts.has(TileId(1, 1), "processed")


def test_a_changing_file_is_waited_for_until_it_has_stood_still(folder):
    project = opened(folder, stable_s=0.5)
    path = folder / "raw" / "mosaic_001_image_0001.nii"
    go_on, changes = threading.Event(), []

    def writer():
        go_on.wait(60)
        for number in range(5):
            changes.append(number)
            touch(path, seconds=1 + number)
            threading.Event().wait(0.1)

    thread = threading.Thread(target=writer)
    thread.start()
    reads = []

    def compute(identity):
        reads.append(len(changes))
        if len(reads) == 1:
            touch(path, seconds=1)
            go_on.set()
        return identity

    result, identity = result_of_settled_files(project, TileId(1, 1), (path,), compute)
    thread.join()
    assert result == identity
    assert reads[-1] in (0, 5)  # before the writer had begun, or when it had ended


def test_an_error_on_a_file_that_stood_still_is_passed_on(folder):
    def refuse(_identity):
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        result_of_settled_files(opened(folder), TileId(1, 1), (folder / "p.toml",), refuse)


def test_a_raw_file_that_changed_after_it_was_archived_is_found_and_done_again(archived, folder):
    project = archived
    assert take_back_changed(project).announce == []
    before = project.facts.read(TileId(1, 2), "processed").time
    path = write_tile(folder, 1, seed=50)
    (stale,) = [one for one in stale_results(project) if one.item == BATCH]
    assert stale.raw_files_changed
    assert "raw file changed since it was archived" in stale.why[0]
    assert path.name in stale.why[0]
    for checksums in (True, False):
        findings = verify(project.facts, layout=project.layout, checksums=checksums)
        assert [str(path) in f.message for f in findings if f.problem == "raw file changed"] == [True]
    told: list[str] = []
    take_back_changed(project, say=told.append)
    assert any(path.name in line for line in told)
    for item, fact in ((BATCH, "processed"), (BATCH, "archived"), (MosaicId(1), "stitched"), (MosaicId(1), "ready")):
        assert not project.facts.has(item, fact)
    again(project)
    assert archive_is_raw(project, folder, 1)
    assert project.facts.read(TileId(1, 2), "processed").time == before  # the other tile is not done again
    assert [f for f in verify(project.facts) if f.problem == "raw file changed"] == []
    assert take_back_changed(project).announce == []


def test_status_and_verify_name_the_changed_raw_file(archived, folder):
    write_tile(folder, 1, seed=50)
    with (folder / "raw" / "mosaic_001_image_0001.nii").open("ab") as file:
        file.write(b"\0")
    told = CliRunner().invoke(app, ["status", str(folder / "p.toml")], env={"COLUMNS": "400"})
    assert "raw file changed since it was archived" in told.output.replace("\n", "")
    assert "mosaic_001_image_0001.nii" in told.output.replace("\n", "")
    checked = CliRunner().invoke(app, ["state", "verify", "--no-checksums", str(folder / "p.toml")])
    assert checked.exit_code == 1
    assert "raw file changed" in checked.output.replace("\n", "")


def test_other_times_of_the_same_bytes_make_nothing_again(archived, folder):
    """A copy of the raw folder, or a file system with coarse times, in its place."""
    project = archived
    hash_before = project.facts.hashes(BATCH, "processed")
    for path in (folder / "raw").iterdir():
        touch(path, seconds=-3600)
    assert any(one.raw_files_changed for one in stale_results(project))  # by their times they may have changed
    told: list[str] = []
    assert take_back_changed(project, say=told.append).announce == []
    assert told == ["the size or time of 2 raw files has changed since they were archived; comparing their content"]
    assert not any(one.raw_files_changed for one in stale_results(project))
    assert project.facts.hashes(BATCH, "processed") == hash_before
    assert verify(project.facts) == []
    told.clear()
    take_back_changed(project, say=told.append)
    assert told == []  # noted: not compared twice
    project.facts.withdraw(BATCH, "processed", reason="test")
    again(project)
    computed = [e.item for e in project.facts.journal.entries() if e.event == "computed" and e.fact == "processed"]
    assert computed.count(TileId(1, 1)) == 1
    assert project.facts.hashes(BATCH, "processed") == hash_before


def test_a_raw_folder_that_is_away_says_nothing(archived, folder):
    (folder / "raw").rename(folder / "elsewhere")
    assert take_back_changed(archived).announce == []
    assert not any(one.raw_files_changed for one in stale_results(archived))
    assert [f for f in verify(archived.facts) if f.problem == "raw file changed"] == []


def test_a_batch_with_a_changed_and_a_vanished_file_stays_as_it_is(archived, folder):
    write_tile(folder, 1, seed=50)
    (folder / "raw" / "mosaic_001_image_0002.nii").unlink()
    plan = take_back_changed(archived)
    assert "mosaic_001_image_0002.nii no longer exists" in plan.refused[0]
    assert archived.facts.has(BATCH, "processed")


def test_a_failed_tile_whose_raw_file_was_mended_is_done_again(folder):
    project = opened(folder)
    path = folder / "raw" / "mosaic_001_image_0001.nii"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    batches.process_batch(project, ready(project, folder))
    assert project.facts.has(TileId(1, 1), "failed")
    assert take_back_changed(project).announce == []
    path.write_bytes(whole)
    assert take_back_changed(project).announce != []
    again(project)
    assert project.facts.has(TileId(1, 1), "processed")
    assert not project.facts.has(TileId(1, 1), "failed")


def test_a_changed_file_beside_changed_settings_makes_a_batch_stale_once(archived, folder):
    write_tile(folder, 1, seed=50)
    (folder / "p.toml").write_text(PROJECT.replace("depth = 30", "depth = 20"), encoding="utf-8")
    project = opened(folder)
    (stale,) = [one for one in stale_results(project) if one.item == BATCH]
    assert any("depth" in why for why in stale.why)
    assert any("raw file changed" in why for why in stale.why)
    assert (BATCH, "archived") in stale_plan(project, [stale]).withdraw


def test_the_spectra_beside_a_complex_tile_are_looked_at_too(folder):
    from opticstream.state.raw_files import changed_raw_files, identity_of

    project = opened(folder)
    complex_, spectra = (folder / "raw" / name for name in ("c+1.nii", "s:1.nii"))
    for path in (complex_, spectra):
        path.write_bytes(np.arange(9).tobytes())
    event = {"raw_folder": str(folder / "raw"), "files": {"1": complex_.name}, "spectra": {"1": spectra.name}}
    project.facts.record(BATCH, "ready", {"detail": {"event": event}})
    project.facts.record(BATCH, "processed", {"detail": {"tiles": {"1": {"outcome": "ok"}}, "failed_tiles": []}})
    sha256 = hashlib.sha256(spectra.read_bytes()).hexdigest()
    content = {"inputs_hash": identity_of(complex_, spectra), "detail": {"raw_sha256": sha256}}
    project.facts.record(TileId(1, 1), "processed", content)
    assert changed_raw_files(project.facts, BATCH) == []
    touch(spectra, seconds=2)
    (changed,) = changed_raw_files(project.facts, BATCH)
    assert (changed.path, changed.has_same_content()) == (spectra, True)
    take_back_changed(project)
    assert changed_raw_files(project.facts, BATCH) == []
    touch(complex_, seconds=2)
    assert [one.path for one in changed_raw_files(project.facts, BATCH)] == [complex_, spectra]


def test_a_tile_that_changes_for_ever_is_a_failure_of_its_own_kind(folder):
    path = folder / "p.toml"
    with pytest.raises(ChangingInputError, match=r"p\.toml: was still changing"):
        result_of_settled_files(
            opened(folder, stall_s=0.2), TileId(1, 1), (path,), lambda _identity: touch(path, seconds=1)
        )

"""Results are links into the archive: what is written where, what a kill leaves, and what is never lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from opticstream.io.atomic import atomic_folder, write_text
from opticstream.model.errors import StateError
from opticstream.publish import local
from opticstream.publish.local import link_into_mosaic, move_to_archive, publish_locally
from opticstream.state.manifest import write_manifest
from opticstream.state.record import sha256_of_path
from opticstream.system import disk


def refusing(code: int):
    def refuse(*_args, **_options):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.fixture(params=["one file system", "two file systems", "names cannot be exchanged"])
def surroundings(request, monkeypatch):
    """The same promises hold where hard links cannot be made, and where two names cannot be exchanged."""
    if request.param == "two file systems":
        monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    if request.param == "names cannot be exchanged":
        monkeypatch.setattr(disk, "_renameat2", lambda: None)
    return request.param


@pytest.fixture(params=["file", "store"])
def result(request, tmp_path: Path) -> Path:
    """A stitched result: a map, or a store with its manifest."""
    folder = tmp_path / "project" / "mosaic-01" / "stitched"
    if request.param == "file":
        return write_text(folder / "mosaic_001_aip.nii.gz", "map")
    store = folder / "mosaic_001_dBI.ome.zarr"
    for number in range(3):
        write_text(store / "0" / "c" / str(number), f"chunk {number}")
    write_manifest(store)
    return store


def archived(tmp_path: Path, result: Path) -> Path:
    return tmp_path / "archive" / "derivative" / "sub-01" / result.name


def test_a_result_becomes_a_relative_link_to_the_only_copy_of_its_bytes(surroundings, result, tmp_path):
    digest = sha256_of_path(result)
    archive = move_to_archive(result, archived(tmp_path, result))
    assert str(result.readlink()) == f"../../../archive/derivative/sub-01/{result.name}"
    assert not archive.is_symlink()
    assert sha256_of_path(result) == sha256_of_path(archive) == digest
    files = [archive] if archive.is_file() else [path for path in archive.rglob("*") if path.is_file()]
    assert {path.stat().st_nlink for path in files} == {1}, "the bytes have no second name"
    others = {path.name for path in result.parent.iterdir()} - {result.name, result.name + ".sha256"}
    assert others == set(), "nothing is left behind"
    before = archive.stat().st_ino
    assert move_to_archive(result, archive) == archive
    assert archive.stat().st_ino == before, "published again, it is the same"


def test_a_kill_after_the_copy_leaves_both_and_the_next_run_goes_on(surroundings, result, tmp_path):
    archive = publish_locally(result, archived(tmp_path, result))  # and the process is killed here
    assert result.exists()
    move_to_archive(result, archive)
    assert result.is_symlink()
    assert result.exists()


def test_a_result_that_is_made_again_takes_the_place_of_the_link_and_the_archive_keeps_the_old_one(result, tmp_path):
    archive = move_to_archive(result, archived(tmp_path, result))
    old = sha256_of_path(archive)
    if archive.is_file():
        write_text(result, "better")
    else:
        with atomic_folder(result) as folder:
            write_text(folder / "0", "better")
        write_manifest(result)
    assert not result.is_symlink()
    assert sha256_of_path(archive) == old
    move_to_archive(result, archive)
    assert result.is_symlink()
    assert sha256_of_path(archive) == sha256_of_path(result) != old


def test_a_store_takes_the_place_of_a_link_that_leads_nowhere(tmp_path):
    link = tmp_path / "a.ome.zarr"
    link.symlink_to("gone/a.ome.zarr")
    with atomic_folder(link) as folder:
        write_text(folder / "zarr.json", "{}")
    assert not link.is_symlink()
    assert (link / "zarr.json").exists()


@pytest.mark.parametrize("moment", ["publish_locally", "link_goal"])
def test_a_result_made_again_while_it_is_published_is_not_replaced_by_the_link(
    surroundings, result, moment, tmp_path, monkeypatch
):
    """It is made again after it was copied, or after the link was prepared."""
    original = getattr(local, moment)

    def meanwhile(*args, **options):
        done = original(*args, **options)
        if result.is_file():
            write_text(result, "again")
        else:
            with atomic_folder(result) as folder:
                write_text(folder / "made again", "")
        return done

    monkeypatch.setattr(local, moment, meanwhile)
    move_to_archive(result, archived(tmp_path, result))
    assert not result.is_symlink()
    assert result.read_text() == "again" if result.is_file() else (result / "made again").exists()
    names = {path.name for path in result.parent.iterdir()}
    assert names <= {result.name, result.name + ".sha256"}


def test_without_symbolic_links_a_result_stays_and_is_in_the_archive_too(result, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "symlink", refusing(errno.EPERM))
    archive = move_to_archive(result, archived(tmp_path, result))
    assert not result.is_symlink()
    assert sha256_of_path(archive) == sha256_of_path(result)


def test_a_full_disk_leaves_the_result_as_it_is(result, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "symlink", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        move_to_archive(result, archived(tmp_path, result))
    assert not result.is_symlink()
    assert result.exists()


def test_damaged_bytes_are_not_copied_into_the_archive(result, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refusing(errno.EXDEV))
    recorded = sha256_of_path(result)
    damaged = result if result.is_file() else result / "0" / "c" / "1"
    damaged.write_text("damaged")
    with pytest.raises(StateError, match="as it was recorded, and is not published"):
        publish_locally(result, archived(tmp_path, result), sha256=recorded)
    assert not archived(tmp_path, result).exists()
    assert result.exists()


def test_the_link_leads_to_the_archive_although_a_folder_on_the_way_is_a_link(tmp_path):
    (tmp_path / "big" / "m").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "mosaic-01").symlink_to("../big/m")
    result = write_text(tmp_path / "project" / "mosaic-01" / "stitched" / "a.nii", "map")
    move_to_archive(result, tmp_path / "project" / "DANDISET" / "a.nii")
    assert result.is_symlink()
    assert result.read_text() == "map"
    raw = write_text(tmp_path / "project" / "DANDISET" / "raw.nii.gz", "raw")
    link_into_mosaic(raw, tmp_path / "project" / "mosaic-01" / "archived")
    assert (tmp_path / "project" / "mosaic-01" / "archived" / "raw.nii.gz").read_text() == "raw"


def test_a_link_of_another_host_is_read_in_the_archive_of_this_one(tmp_path):
    here = write_text(tmp_path / "mnt" / "archive" / "derivative" / "sub-01" / "a.nii", "map")
    link = tmp_path / "a.nii"
    link.symlink_to("../../elsewhere/derivative/sub-01/a.nii")
    assert disk.reachable(link, tmp_path / "mnt" / "archive") == here
    nowhere = tmp_path / "b.nii"
    nowhere.symlink_to("../../elsewhere/derivative/sub-01/b.nii")
    assert disk.reachable(nowhere, tmp_path / "mnt" / "archive") == nowhere
    assert disk.reachable(here, tmp_path) == here

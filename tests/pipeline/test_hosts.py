"""Hosts that name one folder differently, and folders that are moved: what one host begins another goes on with."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.one_column import BATCH, PROJECT

from opticstream.config import DeploymentSettings, config_from_mapping, load_project
from opticstream.config.path_map import PathMapping
from opticstream.model.errors import ConfigurationError, EventError
from opticstream.model.events import BatchReady, Event
from opticstream.model.ids import MosaicId, TileId
from opticstream.pipeline.incoming import Received, event_from_received
from opticstream.pipeline.pending import pending_announcements, ready_event
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.project_folder import config_of_received
from opticstream.pipeline.raw_changes import take_back_changed
from opticstream.pipeline.redo import apply_plan
from opticstream.pipeline.reemission import remember_batch
from opticstream.pipeline.retry import retry_plan
from opticstream.pipeline.stale import stale_plan, stale_results
from opticstream.state.verify import verify
from opticstream.system import folders
from opticstream.testing.bus import LocalBus
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

RIG = r"\\rig\data"


@dataclass
class Host:
    """A host with a mount point of its own and its path map."""

    mount: Path
    path_map: Sequence[PathMapping] = ()

    @property
    def deployment(self) -> DeploymentSettings:
        return DeploymentSettings(lease_s=5, attempts=1, stable_s=0, stall_s=1, path_map=self.path_map)

    def from_file(self, **overrides: Any) -> Project:
        config = load_project(self.mount / "I80" / "p.toml", overrides=overrides, path_map=self.path_map)
        return Project.open(config, deployment=self.deployment)

    def takes(self, event: Event, *, registered: dict[str, Any] | None = None, **changes: Any) -> tuple[Project, Event]:
        """Return the project and the event as a flow run of this host has them, from the payload alone."""
        payload = json.loads(json.dumps(event.payload())) | changes
        received = Received(event.event_name(), payload, {}, str(uuid.uuid4()), datetime.now(UTC))
        stored = None if registered is None else config_from_mapping(registered, path_map=self.path_map)
        project = Project.open(config_of_received(received, stored, path_map=self.path_map), deployment=self.deployment)
        understood = event_from_received(project, received)
        if isinstance(understood, BatchReady):
            remember_batch(project, understood, received=received)
        return project, understood


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A shared folder that holds a project file and raw tiles."""
    folder = tmp_path / "share" / "I80"
    (folder / "raw").mkdir(parents=True)
    (folder / "p.toml").write_text(PROJECT, encoding="utf-8")
    for tile in (1, 2):
        write_tile(folder / "raw", tile)
    return tmp_path / "share"


def write_tile(raw: Path, tile: int) -> Path:
    return write_spectral_nifti(raw / f"mosaic_001_image_{tile:04d}.nii", fringe_counts(channels=1, seed=tile))


def mounted(share: Path, name: str, *folders: str) -> Host:
    mount = share.parent / name
    mount.symlink_to(share)
    return Host(mount, [PathMapping(from_=folder, to=mount) for folder in folders])


@pytest.fixture
def rig(share: Path) -> Host:
    return mounted(share, "rig")


def found_by(host: Host) -> BatchReady:
    """The batch that a watch on a host announces."""
    bus = LocalBus(host.from_file())
    bus.feed(host.mount / "I80" / "raw")
    (event,) = (event for event in bus.seen if isinstance(event, BatchReady))
    return event


def made_in(folder: Path) -> list[Path]:
    """All files and folders, but what the watch notes of disks and quality, by a thread of its own."""
    return sorted(path for path in folder.rglob("*") if "conditions" not in path.parts and "quality" not in path.name)


def worked_off(project: Project, events: list[Event]) -> LocalBus:
    bus = LocalBus(project)
    bus.announce(events)
    bus.run_until_nothing_is_pending()
    return bus


def assert_whole(project: Project) -> None:
    assert project_progress(project).failures == ()
    assert project.facts.has(MosaicId(1), "stitched")
    assert list(verify(project.facts, layout=project.layout)) == []


def test_what_one_host_announces_another_works_on_where_it_sees_the_folder(share, rig):
    event = found_by(rig)
    worker = mounted(share, "worker", str(rig.mount))
    project, understood = worker.takes(event)
    assert project.config.base_path == worker.mount / "I80" / "out"
    assert understood.raw_folder == str(worker.mount / "I80" / "raw")
    bus = worked_off(project, [understood])
    assert_whole(project)
    assert_whole(rig.from_file())
    told = {event.project_base_path for event in bus.seen if event is not understood}
    assert told == {str(rig.mount / "I80" / "out")}, "the name that came is the one that goes on"


@pytest.mark.parametrize("registered", [True, False])
def test_an_event_of_a_windows_rig_is_worked_on_by_its_base_path(share, registered):
    """The event names everything as Windows does; the project is registered so, or only its file lies there."""
    worker = mounted(share, "worker", RIG)
    parameters = worker.from_file().config.model_dump(mode="json")
    parameters["project"]["project_base_path"] = rf"{RIG}\I80\out"
    payload = {
        "project_base_path": r"\\RIG\Data\I80\out",
        "raw_folder": rf"{RIG}\I80\raw",
        "files": {"1": "mosaic_001_image_0001.nii", "2": rf"{RIG}\I80\raw\mosaic_001_image_0002.nii"},
    }
    event = worker.from_file().event(BatchReady, BATCH, raw_folder="x", files={1: "x"})
    project, understood = worker.takes(event, registered=parameters if registered else None, **payload)
    worked_off(project, [understood])
    assert_whole(project)
    kept = project.facts.read(BATCH, "ready").detail["event"]
    assert (kept["raw_folder"], kept["project_base_path"]) == (payload["raw_folder"], payload["project_base_path"])

    other = mounted(share, "other", RIG)
    assert ready_event(other.from_file(), BATCH).raw_folder == str(other.mount / "I80" / "raw")


@pytest.mark.parametrize("where", ["in the folder", "beside it"])
def test_a_project_that_is_not_registered_is_known_by_its_file(share, rig, where):
    event = found_by(rig)
    folder = share / "I80"
    if where == "in the folder":
        shutil.move(folder / "p.toml", folder / "out" / "project.toml")
        text = PROJECT.replace('"out"', r"'\\somewhere\else\out'")
        (folder / "out" / "project.toml").write_text(text, encoding="utf-8")
    (folder / "other.toml").write_text(PROJECT.replace("small", "other"), encoding="utf-8")
    (folder / "broken.toml").write_text("[project", encoding="utf-8")
    project, _ = rig.takes(event)
    assert project.config.base_path == rig.mount / "I80" / "out"
    assert project.config.scan.samples == 256


def test_the_registered_parameters_rule_where_both_exist(share, rig):
    event = found_by(rig)
    registered = rig.from_file(depth=25).config.model_dump(mode="json")
    project, _ = rig.takes(event, registered=registered)
    assert project.config.processing.enface.depth == 25


def test_the_folder_that_an_event_names_counts_and_its_archive_goes_with_it(share, rig):
    event = found_by(rig)
    registered = rig.from_file().config.model_dump(mode="json")
    registered["project"] |= {"project_base_path": "/former/out", "archive_path": "/former/out/dandi"}
    project, _ = rig.takes(event, registered=registered)
    assert project.config.base_path == rig.mount / "I80" / "out"
    assert project.config.project.archive_root == rig.mount / "I80" / "out" / "dandi"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (r"Z:\I80\out", r"project_base_path 'Z:\\I80\\out' (a Windows path), which OPTICSTREAM_PATH_MAP does not name"),
        (r"\\rig\data\I81", "which is MOUNT/I81 by OPTICSTREAM_PATH_MAP, cannot be found on this host"),
        ("/nowhere/out", "project_base_path '/nowhere/out', which OPTICSTREAM_PATH_MAP does not name"),
        ("out", "project_base_path: expected the absolute path of the project's folder, got 'out'"),
        (7, "project_base_path: expected the absolute path of the project's folder, got 7"),
    ],
)
@pytest.mark.parametrize("registered", [True, False])
def test_a_folder_that_this_host_does_not_see_is_one_clear_error_and_nothing_is_made(share, said, words, registered):
    worker = mounted(share, "worker", RIG)
    event = found_by(worker)
    stored = worker.from_file().config.model_dump(mode="json") if registered else None
    before = made_in(share)
    with pytest.raises(EventError) as error:
        worker.takes(event, registered=stored, project_base_path=said)
    assert words.replace("\\\\", "\\" * 2).replace("MOUNT", str(worker.mount)) in str(error.value)
    assert "\n" not in str(error.value)
    assert made_in(share) == before


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EACCES, "this account may not look into it (Permission denied)"),
        (errno.ESTALE, "its network share is stale"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_folder_that_this_host_may_not_use_is_one_clear_error_that_names_it(share, rig, monkeypatch, code, said):
    event = found_by(rig)
    registered = rig.from_file().config.model_dump(mode="json")
    folder, scandir = rig.mount / "I80" / "out", os.scandir

    def refuse(path):
        if Path(path) == folder:
            raise OSError(code, os.strerror(code), str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    with pytest.raises(EventError) as error:
        rig.takes(event, registered=registered)
    told = str(error.value)
    assert said in told
    assert f"{str(folder)!r}, which OPTICSTREAM_PATH_MAP does not name, cannot be used on this host: " in told
    assert "Nothing was changed" in told
    assert "\n" not in told


def test_a_registered_folder_that_this_host_does_not_see_is_not_made(share, rig, tmp_path):
    event = found_by(rig)
    registered = rig.from_file().config.model_dump(mode="json")
    registered["project"]["project_base_path"] = str(tmp_path / "elsewhere" / "out")
    with pytest.raises(EventError, match="registered project_base_path"):
        rig.takes(event, registered=registered, project_base_path=None)
    assert not (tmp_path / "elsewhere").exists()


def test_a_path_of_windows_is_never_made_as_a_folder_of_that_name(share, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = config_from_mapping({"project": {"project_name": "p", "project_base_path": r"D:\p"}})
    with pytest.raises(ConfigurationError, match="OPTICSTREAM_PATH_MAP"):
        Project.open(config)
    assert not list(tmp_path.glob("D:*"))


class TestMoved:
    """A batch was processed; then its raw folder, or everything, is moved."""

    @pytest.fixture
    def failed(self, share: Path, rig: Host) -> Project:
        """One tile was good, the other cut short, and everything is done that can be done with it."""
        (share / "I80" / "raw" / "mosaic_001_image_0002.nii").write_bytes(b"cut")
        project = rig.from_file()
        worked_off(project, [found_by(rig)])
        assert project.facts.has(TileId(1, 2), "failed")
        assert project.facts.has(MosaicId(1), "stitched")
        return project

    @staticmethod
    def retried(project: Project) -> None:
        plan = retry_plan(project)
        assert plan.refused == []
        assert plan.announce
        apply_plan(project, plan, reason="test")
        worked_off(project, plan.announce)
        assert_whole(project)
        assert project.facts.has(TileId(1, 2), "processed")

    def test_retry_finds_the_raw_files_when_everything_was_moved_together(self, share, failed):
        moved = share.parent / "archive" / "2026"
        moved.parent.mkdir()
        shutil.move(share / "I80", moved)
        write_tile(moved / "raw", 2)
        project = Project.open(load_project(moved / "p.toml"), deployment=failed.deployment)
        self.retried(project)

    def test_retry_finds_the_raw_files_in_the_folder_of_the_settings(self, share, failed, rig):
        shutil.move(share / "I80" / "raw", share / "tape" / "I80-raw")
        write_tile(share / "tape" / "I80-raw", 2)
        assert retry_plan(rig.from_file()).announce
        self.retried(rig.from_file(raw_path=str(share / "tape" / "I80-raw")))

    def test_retry_finds_the_raw_files_in_the_folder_that_the_project_was_fed_from_since(self, share, failed, rig):
        moved = share / "tape" / "I80-raw"
        shutil.move(share / "I80" / "raw", moved)
        shutil.move(share / "I80" / "out", share / "results")
        (share / "I80" / "p.toml").write_text(PROJECT.replace('"out"', '"../results"'), encoding="utf-8")
        write_tile(moved, 2)
        project = rig.from_file()
        driver = LocalBus(project).run_folder(moved)
        assert driver.undone == []
        assert_whole(project)
        assert project.facts.has(TileId(1, 2), "processed"), "the tile that was replaced was taken"
        plan = stale_plan(rig.from_file(depth=25), stale_results(rig.from_file(depth=25)))
        assert plan.refused == []
        (event,) = plan.announce
        assert event.raw_folder == str(moved)
        assert set(event.files.values()) == {"mosaic_001_image_0001.nii", "mosaic_001_image_0002.nii"}

    def test_retry_finds_the_raw_files_where_the_path_map_says(self, share, failed, rig):
        shutil.move(share / "I80" / "raw", share / "tape")
        write_tile(share / "tape", 2)
        rig.path_map = [PathMapping(from_=str(rig.mount / "I80" / "raw"), to=share / "tape")]
        self.retried(rig.from_file())

    def test_an_empty_folder_where_the_share_was_mounted_is_not_taken_for_it(self, share, failed, rig):
        shutil.move(share / "I80" / "raw", share / "tape")
        (share / "I80" / "raw").mkdir()
        write_tile(share / "tape", 2)
        self.retried(rig.from_file(raw_path=str(share / "tape")))

    def test_a_record_of_an_earlier_version_is_read(self, share, failed):
        record = failed.facts.read(BATCH, "ready")
        failed.facts.replace(BATCH, "ready", {"detail": {"event": dict(record.detail["event"])}}, why="as it was")
        moved = share.parent / "moved"
        shutil.move(share / "I80", moved)
        write_tile(moved / "raw", 2)
        self.retried(Project.open(load_project(moved / "p.toml"), deployment=failed.deployment))

    def test_changed_raw_files_are_seen_where_they_lie_now(self, share, failed, rig):
        shutil.move(share / "I80" / "raw", share / "tape")
        write_spectral_nifti(share / "tape" / "mosaic_001_image_0001.nii", fringe_counts(channels=1, seed=9))
        project = rig.from_file(raw_path=str(share / "tape"))
        assert take_back_changed(project).announce
        assert pending_announcements(project)

    def test_a_tile_that_comes_late_into_the_moved_folder_keeps_the_names_of_the_others(self, share, failed, rig):
        moved = share / "tape"
        shutil.move(share / "I80" / "raw", moved)
        write_tile(moved, 2)
        project = rig.from_file()
        LocalBus(project).run_folder(moved)
        kept = project.facts.read(BATCH, "ready").detail["event"]
        assert kept["raw_folder"] == str(moved)
        assert set(kept["files"].values()) == {"mosaic_001_image_0001.nii", "mosaic_001_image_0002.nii"}


def test_nothing_that_is_written_names_a_path_of_the_host_but_what_is_looked_for(share, rig):
    """Only the folders of a batch's announcement are named, which are found again, and that of a watch, for people."""
    project = rig.from_file()
    worked_off(project, [found_by(rig)])
    files = [path for path in project.paths.base.rglob("*") if path.is_file() and path.parent.name != "acquisition"]
    naming = [path for path in files if str(share.parent).encode() in path.read_bytes()]
    assert {path.name for path in naming} == {"batch-001.ready", "batch-001.processed"}
    keys = {key for path in naming for key, value in values_in(path) if str(share.parent) in str(value)}
    assert keys == {"raw_folder", "project_base_path"}


def values_in(path: Path) -> list[tuple[str, Any]]:
    """Every value in a file of JSON that holds no others, with its key."""
    found: list[tuple[str, Any]] = []
    json.loads(path.read_text(encoding="utf-8"), object_hook=lambda table: found.extend(table.items()))
    return [(key, value) for key, value in found if not isinstance(value, dict | list | None)]

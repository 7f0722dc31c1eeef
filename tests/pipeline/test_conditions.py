"""A rig that stands still, a disk that fills up and uploads that fail are reported, once while they last."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.ids import BatchId, MosaicId
from opticstream.notify import Milestone, Notifier
from opticstream.pipeline.acquisition import acquisitions, forget_acquisition, note_acquisition
from opticstream.pipeline.conditions import conditions
from opticstream.pipeline.milestones import milestones, tell_milestones
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project

NOW = time.time()
Usage = namedtuple("Usage", "total used free")
GB = 10**9


@pytest.fixture
def free(monkeypatch) -> dict[str, float]:
    """Free GB of the disk of 1000 GB, which a test may change."""
    size = {"gb": 500.0}
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(1000 * GB, 0, int(size["gb"] * GB)))
    return size


def opened(project_file: Path, more: str = "", **settings) -> Project:
    project_file.write_text(project_file.read_text() + more)
    return Project.open(load_project(project_file), deployment=DeploymentSettings(**settings))


@pytest.fixture
def project(project_file, free) -> Project:
    return opened(project_file)


def titles(found: list[Milestone]) -> list[str]:
    return [one.title for one in found]


def test_an_acquisition_that_stands_still_with_columns_missing_is_reported_once_until_it_goes_on(project):
    def seen(quiet_s: float, *columns: str, now: float = NOW) -> list[Milestone]:
        note_acquisition(project, Path("/rig"), quiet_s=quiet_s, open_columns=columns, now=now)
        return conditions(project, now=now)

    assert seen(200, "mosaic-001/batch-002") == []
    assert seen(400) == [], "no column is missing"
    (stalled,) = seen(400, "mosaic-001/batch-002")
    assert (stalled.title, stalled.level) == ("acquisition stalled", "failure")
    assert "nothing new in /rig since" in stalled.text
    assert "(7 min)" in stalled.text
    assert "mosaic-001/batch-002" in stalled.text
    assert [one.key for one in seen(460, "mosaic-001/batch-002", now=NOW + 60)] == [stalled.key]
    assert seen(1, "mosaic-001/batch-002", now=NOW + 70) == []
    assert [one.key for one in seen(400, "mosaic-001/batch-002", now=NOW + 500)] != [stalled.key]


def test_a_watcher_that_has_gone_is_reported_and_one_that_was_ended_is_not(project):
    note_acquisition(project, Path("/rig"), quiet_s=1, open_columns=["mosaic-001/batch-002"], now=NOW)
    assert conditions(project, now=NOW + 200) == []
    (silent,) = conditions(project, now=NOW + 400)
    assert (silent.title, silent.level) == ("watcher silent", "failure")
    forget_acquisition(project)
    assert acquisitions(project) == []
    assert conditions(project, now=NOW + 500) == []


def test_a_disk_that_is_nearly_full_is_reported_with_the_time_that_is_left(project, free):
    free["gb"] = 200.0
    assert conditions(project, now=NOW) == []
    free["gb"] = 190.0  # 10 GB in 30 min: 9.5 h
    (low,) = conditions(project, now=NOW + 1800)
    assert (low.title, low.level) == ("disk nearly full", "warning")
    assert "190.0 of 1000 GB free, enough for 9.5 h at the present rate" in low.text
    free["gb"] = 12.0
    (lower,) = conditions(project, now=NOW + 3600)
    assert lower.level == "failure", "that it becomes urgent is news"
    assert lower.key != low.key
    free["gb"] = 900.0
    assert conditions(project, now=NOW + 3700) == []
    free["gb"] = 40.0
    (again,) = conditions(project, now=NOW + 20_000)
    assert "40.0 of 1000 GB free" in again.text
    assert "rate" not in again.text, "it was not seen long enough"
    assert again.key not in (low.key, lower.key)


def test_a_disk_at_the_limit_is_not_reported_again_and_again(project, free):
    keys = set()
    for step, size in enumerate([49, 51, 49, 52, 49]):
        free["gb"] = float(size)
        keys |= {one.key for one in conditions(project, now=NOW + 3 * step)}
    assert len(keys) == 1


def test_disks_of_other_folders_are_looked_at_too_and_no_alarm_is_wanted_with_zero(project_file, free, tmp_path):
    free["gb"] = 1.0
    project = opened(project_file, disk_alarm_share=0, disk_alarm_h=0)
    assert conditions(project, raw_folder=tmp_path, now=NOW) == []


TARGET = '[publish]\ntargets = [{ kind = "s3", bucket = "bucket" }]\n'


def test_uploads_that_fail_are_reported_until_one_succeeds(project_file, free):
    project = opened(project_file, TARGET)
    journal = project.facts.journal
    assert conditions(project) == []
    for _ in range(3):
        journal.failed(MosaicId(1), None, why="s3: does not answer", kind="target unavailable", stage="upload")
    (failing,) = conditions(project)
    assert (failing.title, failing.level) == ("uploads fail", "warning")
    assert "s3: does not answer" in failing.text
    assert [one.key for one in conditions(project)] == [failing.key]
    journal.computed(MosaicId(1), "uploaded", 2.0)
    assert conditions(project) == []


def test_failures_of_other_stages_are_no_failures_of_uploads(project_file, free):
    project = opened(project_file, TARGET)
    project.facts.journal.failed(MosaicId(1), None, why="cut", kind="damaged input", stage="stitch mosaic")
    assert conditions(project) == []


def test_conditions_can_be_told_on_a_full_disk(project, free, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opticstream.pipeline.conditions.create_exclusively", full)
    monkeypatch.setattr("opticstream.pipeline.conditions.replace_whole", full)
    free["gb"] = 0.0
    assert titles(conditions(project, now=NOW)) == ["disk nearly full"]


class Channel:
    name = "channel"

    def __init__(self) -> None:
        self.told: list[Milestone] = []

    def tell(self, milestone: Milestone, /) -> None:
        self.told.append(milestone)


def test_what_quality_control_flags_is_told(project):
    flags = {"flags": ["saturated: 2 % of the samples"], "verdict": "look"}
    project.facts.record(BatchId(1, 1), "processed", {"detail": {"tiles": {"1": {}, "2": flags}}})
    bad = {"doubts": ["the mask keeps nothing"], "verdict": "bad"}
    project.facts.record(MosaicId(1), "stitched", {"detail": bad})
    channel = Channel()
    for _ in range(2):
        tell_milestones(project, Notifier(project.paths.base, [channel]))
    told = {one.text: one for one in channel.told if "flagged" in one.key}
    assert {text: one.level for text, one in told.items()} == {
        "tile 2 of mosaic 1 is to be checked: saturated: 2 % of the samples": "warning",
        "mosaic 1 is bad: the mask keeps nothing": "failure",
    }
    assert [p.name for p in told["mosaic 1 is bad: the mask keeps nothing"].pictures] == ["mosaic_001_qc_overlap.jpg"]
    assert len(channel.told) == len({one.key for one in channel.told})

    project.facts.withdraw(MosaicId(1), "stitched", reason="done again")
    project.facts.record(MosaicId(1), "stitched", {"detail": {"doubts": [], "verdict": "ok"}})
    assert not any("mosaic-001.flagged" in one.key for one in milestones(project, project_progress(project)))


def test_a_failure_that_occurs_again_after_a_retry_is_told_again(project):
    channel = Channel()
    for number in (1, 2, 3):
        project.facts.record(MosaicId(1), "failed", {"detail": {"reason": f"no template ({number})"}})
        for _ in range(2):
            tell_milestones(project, Notifier(project.paths.base, [channel]))
        project.facts.withdraw(MosaicId(1), "failed", reason="retry")
    assert [one.text for one in channel.told] == [f"mosaic 1 failed: no template ({n})" for n in (1, 2, 3)]


def test_a_percentage_is_told_once_whichever_way_the_tiles_come_and_go(project):
    channel = Channel()
    tiles = project.layout.tiles(MosaicId(1))
    for tile in tiles:
        project.facts.record(tile, "processed")
        for _ in range(2):
            tell_milestones(project, Notifier(project.paths.base, [channel]))
    for tile in reversed(tiles):
        project.facts.withdraw(tile, "processed", reason="test")
        tell_milestones(project, Notifier(project.paths.base, [channel]))
    facts = [one.fact for one in channel.told]
    assert facts == ["tiles-25", "tiles-50", "tiles-75", "tiles-100"]

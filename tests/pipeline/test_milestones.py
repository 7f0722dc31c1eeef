"""Targets are told each milestone once, separately from one another, and again after a failure."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.notify import Milestone, Notifier, NotTold
from opticstream.pipeline.acquisition import note_acquisition
from opticstream.pipeline.failure_patterns import failure_patterns
from opticstream.pipeline.milestones import finished, finished_by_now, milestones, notifier, tell_milestones
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.progress import project_progress
from opticstream.pipeline.project import Project


class MadeUpTarget:
    """A target that a test defines; fails with the keys in `broken`."""

    def __init__(self, name: str, *, broken: set[str] | None = None) -> None:
        self.name = name
        self.broken = broken or set()
        self.told: list[Milestone] = []

    def tell(self, milestone: Milestone, /) -> None:
        if milestone.key in self.broken or "all" in self.broken:
            raise ConnectionError("nobody answers")
        self.told.append(milestone)

    @property
    def keys(self) -> list[str]:
        return [milestone.key for milestone in self.told]


@pytest.fixture
def project(project_file: Path) -> Project:
    """A project with some milestones: all tiles of one mosaic, its stitching, a failure of the other."""
    project = Project.open(load_project(project_file), deployment=DeploymentSettings())
    for tile in project.layout.tiles(MosaicId(1)):
        project.facts.record(tile, "processed")
    project.facts.record(MosaicId(1), "stitched")
    project.facts.record(MosaicId(2), "failed", {"detail": {"reason": "no template", "attempts": 2}})
    return project


KEYS = {"mosaic-001.tiles-100", "mosaic-001.stitched", "mosaic-002.failed-2"}


def reached(project: Project) -> list[Milestone]:
    return milestones(project, project_progress(project))


def test_each_target_is_told_each_milestone_once(project):
    first, second = MadeUpTarget("first"), MadeUpTarget("second")
    assert {one.key for one in reached(project)} == KEYS
    assert tell_milestones(project, Notifier(project.paths.base, [first, second])) == 6
    for _ in range(2):
        assert tell_milestones(project, Notifier(project.paths.base, [first, second])) == 0
    assert set(first.keys) == set(second.keys) == KEYS
    assert len(first.keys) == len(second.keys) == 3


def test_a_target_that_is_added_later_is_told_what_it_has_not_heard_and_the_others_nothing(project):
    first, late = MadeUpTarget("first"), MadeUpTarget("late")
    tell_milestones(project, Notifier(project.paths.base, [first]))
    tell_milestones(project, Notifier(project.paths.base, [first, late]))
    assert len(first.keys) == 3
    assert set(late.keys) == KEYS


def test_a_target_that_fails_stops_no_other_and_is_told_again_by_the_next_look(project):
    broken, sound = MadeUpTarget("broken", broken={"mosaic-001.stitched"}), MadeUpTarget("sound")
    failures: list[NotTold] = []
    look = Notifier(project.paths.base, [broken, sound], on_failure=failures.append)
    tell_milestones(project, look)
    tell_milestones(project, look)
    assert set(sound.keys) == KEYS
    assert set(broken.keys) == KEYS - {"mosaic-001.stitched"}
    (failure,) = failures
    assert str(failure).startswith("target broken: could not send mosaic-001.stitched (mosaic 1")
    assert "ConnectionError: nobody answers" in str(failure)

    again = Notifier(project.paths.base, [broken, sound], on_failure=failures.append)
    assert tell_milestones(project, again) == 0
    assert [one.is_new for one in failures] == [True, False]
    broken.broken.clear()
    assert tell_milestones(project, Notifier(project.paths.base, [broken, sound])) == 1
    assert broken.keys.count("mosaic-001.stitched") == 1
    assert len(sound.keys) == 3
    assert again.memory.untold("broken") == frozenset()


def test_what_could_not_be_told_and_is_no_longer_true_is_forgotten(project):
    target = MadeUpTarget("one", broken={"all"})
    tell_milestones(project, Notifier(project.paths.base, [target]))
    project.facts.withdraw(MosaicId(2), "failed", reason="tried again")
    target.broken = set()
    look = Notifier(project.paths.base, [target])
    assert tell_milestones(project, look) == 2
    assert set(target.keys) == KEYS - {"mosaic-002.failed-2"}
    assert look.memory.untold("one") == frozenset()


def test_a_target_that_cannot_be_reached_is_left_alone_after_some_failures(project):
    attempts = []

    class Away(MadeUpTarget):
        def tell(self, milestone, /):
            attempts.append(milestone.key)
            raise TimeoutError("no answer")

    many = [Milestone(f"m-{n}", "p", None, "made up", "t", "t") for n in range(20)]
    sound = MadeUpTarget("sound")
    Notifier(project.paths.base, [Away("away"), sound]).tell(many)
    assert len(attempts) < 10
    assert len(sound.keys) == 20
    Notifier(project.paths.base, [Away("away")]).tell(many[:1])
    assert attempts[-1] == "m-0"


def test_what_was_told_before_there_were_targets_counts_for_the_log_alone(project):
    told = project.paths.base / "state" / "notified"
    told.mkdir(parents=True)
    (told / "mosaic-001.stitched").write_text("2026-01-02T03:04:05Z mosaic 1 (slice 1, normal): stitched\n")
    lines: list[str] = []
    deployment = DeploymentSettings(notify_targets=[{"kind": "log"}, {"kind": "file"}])
    project = Project.open(project.config, deployment=deployment)
    tell_milestones(project, notifier(project, say=lines.append, warn=pytest.fail))
    assert len(lines) == 2
    assert not any("stitched" in line for line in lines)
    assert {path.name for path in told.iterdir() if path.is_file() and path.name[0] != "."} == KEYS, "as it was"
    written = [json.loads(line) for line in (project.paths.base / "milestones.jsonl").read_text().splitlines()]
    assert {entry["key"] for entry in written} == {f"p/{key}" for key in KEYS}


def test_a_failing_target_parks_no_work_and_stands_in_the_journal_once(project):
    (project.paths.base / "milestones.jsonl").mkdir()  # no file can be written there
    deployment = DeploymentSettings(notify_targets=[{"kind": "file"}, {"kind": "log"}])
    project = Project.open(project.config, deployment=deployment)
    before = project.facts.snapshot(), pending_announcements(project), project_progress(project)
    said: list[str] = []
    warnings: list[str] = []
    for _ in range(3):
        tell_milestones(project, notifier(project, say=said.append, warn=warnings.append))
    assert len(said) == 3
    assert len(warnings) == 9
    assert all("target file" in line and "the next check tries again" in line for line in warnings)
    (pattern,) = (one for one in failure_patterns(project) if one.kind == "not told")
    assert (pattern.stage, pattern.count, pattern.parked) == ("notify file", 3, 0)
    assert (project.facts.snapshot(), pending_announcements(project), project_progress(project)) == before
    os.rmdir(project.paths.base / "milestones.jsonl")
    assert tell_milestones(project, notifier(project, say=said.append, warn=pytest.fail)) == 3


def test_milestones_carry_what_targets_need(project):
    by_key = {one.key: one for one in reached(project)}
    stitched, failed = by_key["mosaic-001.stitched"], by_key["mosaic-002.failed-2"]
    assert (stitched.project, stitched.item, stitched.fact, stitched.level) == ("p", MosaicId(1), "stitched", "info")
    assert [picture.name for picture in stitched.pictures] == ["mosaic_001_aip.jpg"]
    assert stitched.idempotency_key == "p/mosaic-001.stitched"
    assert (failed.level, failed.title) == ("failure", "mosaic 2: failed")
    assert "no template" in failed.text


def test_looks_at_the_same_time_tell_a_target_each_milestone_once(project):
    told: list[str] = []

    class Slow(MadeUpTarget):
        def tell(self, milestone, /):
            told.append(milestone.key)
            gate.wait(0.02)

    gate = threading.Event()
    due = reached(project)
    looks = [
        threading.Thread(target=Notifier(project.paths.base, [Slow("slow")], on_failure=pytest.fail).tell, args=(due,))
        for _ in range(4)
    ]
    for look in looks:
        look.start()
    for look in looks:
        look.join()
    assert sorted(told) == sorted(KEYS)


def test_a_target_that_cannot_be_opened_fails_alone(project, monkeypatch):
    monkeypatch.setattr("opticstream.notify.file.open_target", None)
    deployment = DeploymentSettings(notify_targets=[{"kind": "file"}, {"kind": "log"}])
    said: list[str] = []
    warnings: list[str] = []
    project = Project.open(project.config, deployment=deployment)
    assert tell_milestones(project, notifier(project, say=said.append, warn=warnings.append)) == 3
    assert len(said) == len(warnings) == 3


@pytest.fixture
def over(project_file: Path) -> Project:
    """A project whose only slice is whole, and of which nothing is left to do."""
    project = Project.open(load_project(project_file), deployment=DeploymentSettings(finished_after_s=600))
    for batch in (BatchId(1, 1), BatchId(1, 2), BatchId(2, 1)):
        for fact in ("ready", "failed"):
            project.facts.record(batch, fact)
    for item in (MosaicId(1), MosaicId(2), SliceId(1)):
        for fact in ("ready", "failed"):
            project.facts.record(item, fact)
    return project


def summaries(project: Project, *, after_s: float) -> list[str]:
    snapshot = project.facts.snapshot()
    found = finished_by_now(project, project_progress(project, snapshot), snapshot, now=time.time() + after_s)
    return [] if found is None else [found.text]


def rest(project: Project, seconds: float) -> None:
    """Let the last sign of work be some time ago."""
    project.facts.journal.skipped(SliceId(1), None, "a sign of work")
    then = time.time() - seconds
    for path in project.facts.journal.folder.glob("*.jsonl"):
        os.utime(path, (then, then))


def test_a_project_is_over_when_nothing_is_left_to_do_and_nothing_new_comes(over):
    rest(over, 0)
    assert summaries(over, after_s=300) == []
    assert summaries(over, after_s=700) == ["finished: 0 of 6 tiles processed, 0 of 2 mosaics stitched, 0 of 1 slices "
                                            "registered, 6 failed"]  # fmt: skip
    over.facts.record(BatchId(3, 1), "processed")  # the next slice has begun
    assert summaries(over, after_s=700) == []


def test_a_project_is_not_over_while_its_watcher_sees_new_files(over):
    rest(over, 7200)
    note_acquisition(over, over.paths.base, quiet_s=5, open_columns=())
    assert summaries(over, after_s=0) == []
    note_acquisition(over, over.paths.base, quiet_s=7200, open_columns=())
    assert len(summaries(over, after_s=0)) == 1


def test_the_end_is_told_once_whoever_looks(over):
    """The sweep of a server, the flows of several hosts and a watcher all look."""
    rest(over, 7200)
    target = MadeUpTarget("one")
    for _ in range(3):
        tell_milestones(over, Notifier(over.paths.base, [target]))
    assert [one.fact for one in target.told].count("finished") == 1
    by_run = finished(over, project_progress(over))  # what `run` tells at its end is the same message
    assert by_run is not None
    assert by_run.key in target.keys

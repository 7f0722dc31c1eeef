"""The protocol of all work, step by step, with computations that do nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.chain import chain
from opticstream.model.errors import InputError
from opticstream.model.events import MosaicFailed, MosaicStitched
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.pipeline.dependencies import changed_settings, inputs_hash, keep_settings, settings_of
from opticstream.pipeline.healed import take_up_healed
from opticstream.pipeline.jobs import Done, Failed, Part, Result, Skipped, announcements, park, perform, perform_part
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.project import Project
from opticstream.pipeline.stuck import stuck_items
from opticstream.pipeline.sweep import Sweeper
from opticstream.state import Facts
from opticstream.state.facts import utc_now
from opticstream.system.host import HostIdentity

MOSAIC = MosaicId(1)


@pytest.fixture
def project(project_file: Path) -> Project:
    project = Project.open(load_project(project_file), deployment=DeploymentSettings(attempts=2, crashes=2))
    for batch in project.layout.batches(MOSAIC):
        project.facts.record(batch, "processed")
    project.facts.record(MOSAIC, "ready")
    return project


def stitch(project: Project, work: Callable[[], Result] = Result, **given: object):
    return perform(project, MOSAIC, chain().step_of(MOSAIC, "stitched"), lambda _claim: work(), **given)


def failing(error: BaseException) -> Callable[[], Result]:
    def work() -> Result:
        raise error

    return work


def test_work_is_done_once_and_recorded_with_its_settings_and_inputs(project):
    calls = []
    outcome = stitch(project, lambda: calls.append(1) or Result(detail={"note": "fine"}))
    assert isinstance(outcome, Done)
    record = project.facts.read(MOSAIC, "stitched")
    assert record.detail["note"] == "fine"
    assert record.inputs_hash == inputs_hash(project, MOSAIC, "stitched")
    assert record.parameters_hash == settings_of(project, MOSAIC, "stitched").hash
    assert isinstance(stitch(project, lambda: calls.append(1) or Result()), Skipped)
    assert calls == [1]
    events = announcements(project, MOSAIC, chain().step_of(MOSAIC, "stitched"), outcome)
    assert [type(event) for event in events] == [MosaicStitched]


def test_work_that_somebody_does_is_left_alone(project):
    with project.facts.claim(MOSAIC, "started"):
        outcome = stitch(project, failing(AssertionError("not to be called")))
    assert isinstance(outcome, Skipped)
    assert outcome.why.startswith("claimed")
    assert isinstance(stitch(project), Done)


def test_bad_input_parks_at_once_and_trouble_of_the_disk_too_where_a_work_retries_itself(project):
    step = chain().step_of(MOSAIC, "stitched")
    outcome = stitch(project, failing(OSError("stale handle")))
    assert isinstance(outcome, Failed)
    detail = project.facts.read(MOSAIC, "failed").detail
    assert (detail["kind"], detail["stage"]) == ("disk or network", step.name)
    assert [type(event) for event in announcements(project, MOSAIC, step, outcome)] == [MosaicFailed]
    skipped = stitch(project, failing(AssertionError("parked work is not tried")))
    assert isinstance(skipped, Skipped)
    assert announcements(project, MOSAIC, step, skipped) == []
    project.facts.withdraw(MOSAIC, "failed", reason="retry")
    once = stitch(project, failing(InputError("tile 3 is bad")))
    assert isinstance(once, Failed)
    assert once.reason == "tile 3 is bad"
    assert project.facts.read(MOSAIC, "failed").detail["reason"] == "tile 3 is bad"


BATCH = BatchId(2, 1)


def process(project: Project, work: Callable[[], Result]):
    return perform(project, BATCH, chain().step_of(BATCH, "processed"), lambda _claim: work())


def test_trouble_of_the_disk_is_tried_again_as_often_as_the_deployment_says(project):
    project.facts.record(BATCH, "ready")
    with pytest.raises(OSError, match="stale"):
        process(project, failing(OSError("stale handle")))
    assert not project.facts.has(BATCH, "failed")
    assert isinstance(process(project, failing(OSError("stale handle"))), Failed)
    project.facts.withdraw(BATCH, "failed", reason="retry")
    assert isinstance(process(project, failing(InputError("bad"))), Failed)  # at once


def test_work_that_has_killed_its_process_too_often_is_parked_unseen(project):
    project.facts.record(BATCH, "ready")
    identity = HostIdentity.current()
    dead = HostIdentity("opal", 2**22 + 1, identity.boot_id, identity.pid_namespace, process_start=1)
    elsewhere = Facts(project.facts.project_dir, host=dead)
    assert elsewhere.claim(BATCH, "started") is not None
    calls = []
    with pytest.raises(OSError, match="again"):  # one death is no reason
        process(project, lambda: calls.append(1) or failing(OSError("again"))())
    assert calls == [1]
    for _ in range(2):
        assert elsewhere.claim(BATCH, "started") is not None
    outcome = process(project, lambda: calls.append(1) or Result())
    assert isinstance(outcome, Failed)
    assert "last 2 attempts" in outcome.reason
    assert calls == [1]


def test_a_result_whose_inputs_were_done_again_meanwhile_is_not_recorded(project):
    def work() -> Result:
        project.facts.replace(BatchId(1, 1), "processed", {"inputs_hash": "another"}, why="done again")
        return Result()

    outcome = stitch(project, work)
    assert isinstance(outcome, Skipped)
    assert not project.facts.has(MOSAIC, "stitched")
    assert isinstance(stitch(project), Done)


def test_a_result_may_name_its_own_inputs_and_another_fact(project):
    slice_id = SliceId(1)
    for mosaic in project.layout.mosaics(slice_id):
        project.facts.record(mosaic, "stitched")
    project.facts.record(slice_id, "ready")
    step = chain().step_of(slice_id, "registered")
    result = Result(fact="skipped", inputs_hash="own", detail={"reason": "one good mosaic only"})
    assert isinstance(perform(project, slice_id, step, lambda _claim: result), Done)
    assert project.facts.read(slice_id, "skipped").inputs_hash == "own"
    assert not project.facts.has(slice_id, "registered")
    assert isinstance(perform(project, slice_id, step, lambda _claim: Result()), Done | Skipped)


def test_what_is_parked_keeps_what_was_known_beside_the_reason(project):
    reason = park(
        project,
        MOSAIC,
        "failed",
        InputError("bad"),
        stage="stitch mosaic",
        content={"inputs_hash": "h", "detail": {"more": 1}},
    )
    record = project.facts.read(MOSAIC, "failed")
    assert reason == "bad"
    assert record.inputs_hash == "h"
    assert {name: record.detail[name] for name in ("more", "reason", "stage", "kind")} == {
        "more": 1,
        "reason": "bad",
        "stage": "stitch mosaic",
        "kind": "damaged input",
    }
    (entry,) = [entry for entry in project.facts.journal.entries() if entry.event == "failed"]
    assert (entry.item, entry.why, entry.detail["stage"]) == (MOSAIC, "bad", "stitch mosaic")


def test_the_settings_behind_a_hash_are_kept_and_what_has_changed_is_named(project):
    before = settings_of(project, MOSAIC, "stitched")
    assert keep_settings(project, before) == before.hash
    assert changed_settings(project, before.hash, before) == ()
    plain = project.config.model_dump()
    plain["processing"]["mask"]["sigma_px"] = 7.5
    other = Project.open(type(project.config).model_validate(plain), deployment=project.deployment)
    now = settings_of(other, MOSAIC, "stitched")
    assert now.hash != before.hash
    (told,) = changed_settings(project, before.hash, now)
    assert told.endswith("-> 7.5")
    assert "sigma_px: " in told
    assert changed_settings(project, "unknown", now) == ()
    assert settings_of(project, MOSAIC, "ready") is None


def test_the_hash_of_inputs_changes_with_each_result_they_are_made_from(project):
    first = inputs_hash(project, MOSAIC, "stitched")
    assert first == inputs_hash(project, MOSAIC, "stitched")
    project.facts.replace(BatchId(1, 2), "processed", {"inputs_hash": "another"}, why="done again")
    second = inputs_hash(project, MOSAIC, "stitched")
    project.facts.replace(BatchId(1, 2), "processed", {"parameters_hash": "p"}, why="done again")
    third = inputs_hash(project, MOSAIC, "stitched")
    project.facts.withdraw(BatchId(1, 2), "processed", reason="taken back")
    assert len({first, second, third, inputs_hash(project, MOSAIC, "stitched")}) == 4


FULL = [errno.ENOSPC, errno.EDQUOT]
AWAY = [errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN]


@pytest.mark.parametrize("code", FULL + AWAY)
def test_a_full_disk_or_a_share_that_is_away_parks_nothing_however_often_it_fails(project, code):
    error = OSError(code, os.strerror(code), "mosaic_001_aip.nii")
    for _ in range(project.deployment.attempts + 2):
        with pytest.raises(OSError, match=os.strerror(code)):
            stitch(project, failing(error))
    assert not project.facts.has(MOSAIC, "failed")
    assert [e.detail["kind"] for e in project.facts.journal.entries() if e.event == "failed"][-1] == (
        "disk full" if code in FULL else "disk or network"
    )
    assert MOSAIC in {event.item for event in pending_announcements(project)}, "the sweep announces it again"
    later = stuck_items(project, now=utc_now() + timedelta(hours=1))
    (why,) = [one.why for one in later if one.item == MOSAIC]
    assert os.strerror(code) in why
    assert isinstance(stitch(project), Done), "and it is done as soon as there is room"


def test_a_tile_on_a_full_disk_is_not_parked_and_ends_the_batch(project):
    batch = BatchId(2, 1)
    project.facts.record(batch, "ready")
    tile = project.layout.tiles(batch)[0]
    step = chain().named("process batch", "batch")

    def compute(claim):
        part = Part(tile, lambda _content, _seconds: None)
        perform_part(project, part, step, claim, lambda _c: failing(OSError(errno.ENOSPC, "No space left on device"))())
        return Result()

    with pytest.raises(OSError, match="No space left"):
        perform(project, batch, step, compute)
    assert not project.facts.has(tile, "failed")
    assert not project.facts.has(batch, "failed")


def test_work_that_fails_for_days_is_announced_again_within_half_an_hour(project):
    now = [0.0]
    told: list[float] = []
    sweeper = Sweeper(project, 60.0, lambda events: told.append(now[0]) if list(events) else None, clock=lambda: now[0])
    while now[0] < 86_400 * 2:
        sweeper.sweep()
        now[0] += 30
    assert max(later - earlier for earlier, later in pairwise(told)) <= 1830
    assert len(told) < 200


def test_what_was_parked_for_a_full_disk_is_tried_again_by_itself_and_other_failures_are_not(project):
    upload = next(step for step in chain().steps if step.publishes and step.hierarchy == "mosaic")
    for batch in project.layout.batches(MosaicId(2)):
        project.facts.record(batch, "processed")
    project.facts.record(MosaicId(2), "ready")
    park(project, MosaicId(2), "failed", InputError("tile 3 is bad"), stage="stitch mosaic")
    assert isinstance(stitch(project), Done)
    full = failing(OSError(errno.ENOSPC, "No space left on device"))
    outcome = perform(project, MOSAIC, upload, lambda _claim: full())
    assert isinstance(outcome, Failed), "it is parked, holds up nothing, and is told"
    assert take_up_healed(project, now=utc_now() + timedelta(minutes=10)) == []
    for moment in (utc_now() + timedelta(minutes=40), utc_now() - timedelta(days=1)):
        events = take_up_healed(project, now=moment)
        assert {event.item for event in events} == {MOSAIC}
        assert not project.facts.has(MOSAIC, upload.failed)
        assert project.facts.has(MosaicId(2), "failed")
        assert take_up_healed(project, now=moment) == []
        perform(project, MOSAIC, upload, lambda _claim: full())
    assert take_up_healed(project, now=utc_now() + timedelta(hours=1))
    assert isinstance(perform(project, MOSAIC, upload, lambda _claim: Result()), Done)

"""Parts of a claimed item, tiles and slices, go through the protocol of all work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.errors import ClaimLost, InputError, StateError
from opticstream.model.ids import BatchId, SampleId, SliceId, TileId
from opticstream.pipeline.jobs import (
    PROCESS_BATCH,
    UPDATE_SAMPLE,
    Done,
    Failed,
    Part,
    Result,
    Skipped,
    perform_part,
)
from opticstream.pipeline.project import Project

TILE = TileId(1, 1)
SLICE = SliceId(1)


@pytest.fixture
def project(project_file):
    return Project.open(load_project(project_file), deployment=DeploymentSettings())


def tile(project, **options):
    return Part(TILE, lambda content, _s: project.facts.record(TILE, "processed", content), **options)


def test_a_part_is_recorded_with_the_settings_that_it_was_made_with(project):
    with project.facts.claim(BatchId(1, 1)) as claim:
        made = perform_part(project, tile(project), PROCESS_BATCH, claim, lambda _claim: Result(detail={"a": 1}))
    assert isinstance(made, Done)
    record = project.facts.read(TILE, "processed")
    assert record.detail == {"a": 1}
    assert (project.paths.base / "state" / "settings" / f"{record.parameters_hash}.json").exists()


def test_a_part_that_fails_is_parked_with_its_grounds_and_the_next_one_is_done(project):
    def broken(_claim):
        raise InputError("no good")

    part = tile(project, failure=lambda: {"inputs_hash": "raw", "detail": {"attempts": 2}})
    with project.facts.claim(BatchId(1, 1)) as claim:
        failed = perform_part(project, part, PROCESS_BATCH, claim, broken)
        other = Part(TileId(1, 2), lambda content, _s: project.facts.record(TileId(1, 2), "processed", content))
        assert isinstance(perform_part(project, other, PROCESS_BATCH, claim, lambda _claim: Result()), Done)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, InputError)
    record = project.facts.read(TILE, "failed")
    assert (record.inputs_hash, record.detail["attempts"], record.detail["kind"]) == ("raw", 2, "damaged input")
    assert record.parameters_hash is not None
    assert not project.facts.has(TILE, "processed")


@pytest.mark.parametrize("fails", [False, True])
def test_a_part_is_neither_recorded_nor_parked_when_the_claim_was_lost(project, fails):
    def compute(claim):
        claim.release()  # as good as lost
        if fails:
            raise InputError("no good")
        return Result()

    with project.facts.claim(BatchId(1, 1)) as claim, pytest.raises(ClaimLost):
        perform_part(project, tile(project), PROCESS_BATCH, claim, compute)
    assert project.facts.facts_of(TILE) == frozenset()


def test_a_part_with_nothing_to_do_is_skipped_with_the_reason_in_the_journal(project):
    with project.facts.claim(BatchId(1, 1)) as claim:
        made = perform_part(project, tile(project), PROCESS_BATCH, claim, lambda _claim: Skipped("good already"))
    assert made == Skipped("good already")
    assert [e.why for e in project.facts.journal.history(TILE) if e.event == "skipped"] == ["good already"]
    assert project.facts.facts_of(TILE) == frozenset()


def test_a_slice_that_was_registered_again_while_it_was_stacked_is_not_recorded_as_stacked(project):
    facts = project.facts
    facts.record(SLICE, "registered", {"parameters_hash": "old"})

    def compute(_claim):
        facts.replace(SLICE, "registered", {"parameters_hash": "new"}, why="test")
        return Result()

    part = Part(SLICE, lambda content, _s: facts.record(SLICE, "stacked", content))
    with facts.claim(SampleId(), UPDATE_SAMPLE.claim) as claim:
        assert isinstance(perform_part(project, part, UPDATE_SAMPLE, claim, compute), Skipped)
        assert not facts.has(SLICE, "stacked")
        assert isinstance(perform_part(project, part, UPDATE_SAMPLE, claim, lambda _claim: Result()), Done)
    assert facts.has(SLICE, "stacked")


def test_a_step_that_does_not_park_tells_its_caller(project):
    def broken(_claim):
        raise StateError("no good")

    part = Part(SLICE, lambda content, _s: project.facts.record(SLICE, "stacked", content))
    with project.facts.claim(SampleId(), UPDATE_SAMPLE.claim) as claim, pytest.raises(StateError, match="no good"):
        perform_part(project, part, replace(UPDATE_SAMPLE, failed=None), claim, broken)
    assert project.facts.facts_of(SLICE) == frozenset()

"""Rules over facts, one by one: what is ready, who decides for others, what waits, how far everything is."""

from __future__ import annotations

import itertools
from datetime import timedelta
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, ProjectConfig, load_project
from opticstream.model.chain import chain
from opticstream.model.events import BatchProcessed, BatchReady, MosaicReady, MosaicStitched, SliceReady
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.arrivals import _with_former_files, end_waiting, repaired_tiles
from opticstream.pipeline.dependencies import inputs_hash, keep_settings, settings_of
from opticstream.pipeline.failure_patterns import failure_patterns
from opticstream.pipeline.fan_in import look_at_batches, look_at_mosaics
from opticstream.pipeline.parameters import slice_settings
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import RedoPlan, apply_plan
from opticstream.pipeline.retry import retry_plan
from opticstream.pipeline.rules import (
    after_batch,
    after_mosaic,
    belongs_in_sample,
    earlier_mosaics,
    has_begun,
    may_determine_template,
    may_register,
    waits_for_template,
)
from opticstream.pipeline.stacking import unstacked
from opticstream.pipeline.stale import stale_results
from opticstream.pipeline.templates import determined_template, template_noted
from opticstream.pipeline.uploads import upload_queue
from opticstream.state.facts import utc_now
from opticstream.state.raw_files import identity_of


@pytest.fixture
def project(project_file: Path) -> Project:
    """Return a project of `normal` (two columns) and `tilted` (one column), two rows each."""
    return Project.open(load_project(project_file), deployment=DeploymentSettings())


def with_settings(project: Project, **rooms: dict[str, object]) -> Project:
    plain = project.config.model_dump()
    for room, changed in rooms.items():
        plain["processing"][room] |= changed
    return Project.open(ProjectConfig.model_validate(plain), deployment=project.deployment)


def recorded(project: Project, item: object, *facts: str) -> None:
    for fact in facts:
        if fact.endswith("started"):
            project.facts.claim(item, fact)
        else:
            project.facts.record(item, fact)


# --- mosaics and slices become ready ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", list(itertools.product(["processed", "failed"], repeat=2)))
def test_a_mosaic_is_ready_when_its_last_batch_has_ended_and_is_announced_once(project, ends):
    first, last = BatchId(1, 1), BatchId(1, 2)
    recorded(project, first, "ready", ends[0])
    assert after_batch(project, first) is None
    recorded(project, last, "ready")
    assert after_batch(project, last) is None
    recorded(project, last, ends[1])
    event = after_batch(project, last)
    assert isinstance(event, MosaicReady)
    assert event.mosaic == MosaicId(1)
    assert project.facts.has(MosaicId(1), "ready")
    assert after_batch(project, last) is None
    assert after_batch(project, first) is None


def test_one_look_announces_every_mosaic_and_slice_that_is_ready_and_no_other(project):
    for batch in (BatchId(1, 1), BatchId(1, 2), BatchId(2, 1), BatchId(3, 1), BatchId(4, 1)):
        recorded(project, batch, "ready", "processed")
    assert [event.mosaic for event in look_at_batches(project)] == [MosaicId(1), MosaicId(2), MosaicId(4)]
    assert list(look_at_batches(project)) == []
    recorded(project, MosaicId(1), "stitched")
    recorded(project, MosaicId(4), "stitched")
    assert list(look_at_mosaics(project)) == []
    recorded(project, MosaicId(2), "failed")
    (event,) = look_at_mosaics(project)
    assert isinstance(event, SliceReady)
    assert event.slice == SliceId(1)
    assert list(look_at_mosaics(project)) == []
    recorded(project, MosaicId(3), "stitched")
    assert [event.slice for event in look_at_mosaics(project)] == [SliceId(2)]


def test_a_slice_is_announced_by_whoever_finds_it_ready_first_only(project):
    recorded(project, MosaicId(2), "stitched")
    assert after_mosaic(project, MosaicId(2)) is None
    recorded(project, MosaicId(1), "stitched")
    assert after_mosaic(project, MosaicId(1)) is not None
    assert after_mosaic(project, MosaicId(2)) is None


@pytest.mark.parametrize(("volume", "may"), [(None, False), ("volume_stitched", True), ("volume_failed", True)])
def test_a_registration_that_resamples_volumes_waits_for_them_and_no_other_does(project, volume, may):
    recorded(project, MosaicId(1), "failed")  # needs no volume
    recorded(project, MosaicId(2), "stitched")
    if volume is not None:
        recorded(project, MosaicId(2), volume)
    assert may_register(project, SliceId(1), project.facts)
    plain = with_settings(project, registration={"resample_volumes": True})
    assert plain.config.stitches_volumes
    assert may_register(plain, SliceId(1), plain.facts) is may
    assert not may_register(plain, SliceId(2), plain.facts)


@pytest.mark.parametrize(
    ("of_slice", "of_first", "belongs"),
    [
        ("registered", "stitched", True),
        ("axis_failed", "stitched", True),
        ("skipped", "stitched", True),
        ("axis_failed", "failed", False),
        ("skipped", "failed", False),
        ("ready", "stitched", False),
        (None, "stitched", False),
    ],
)
def test_a_slice_joins_the_sample_with_its_axes_or_with_the_maps_of_its_first_mosaic(
    project, of_slice, of_first, belongs
):
    recorded(project, MosaicId(1), of_first)
    recorded(project, MosaicId(2), "stitched")
    if of_slice is not None:
        recorded(project, SliceId(1), of_slice)
    assert belongs_in_sample(project, SliceId(1), project.facts) is belongs
    without = with_settings(project, sample={"enabled": False})
    assert not belongs_in_sample(without, SliceId(1), without.facts)


def test_with_one_illumination_a_slice_joins_the_sample_as_soon_as_it_is_ready(project, project_file):
    text = project_file.read_text()
    start = text.index(', { name = "tilted"')
    project_file.write_text(text[:start] + "]\n")
    single = Project.open(load_project(project_file))
    recorded(single, MosaicId(1), "stitched")
    assert not belongs_in_sample(single, SliceId(1), single.facts)
    recorded(single, SliceId(1), "ready")
    assert belongs_in_sample(single, SliceId(1), single.facts)
    recorded(single, SliceId(2), "ready")
    assert not belongs_in_sample(single, SliceId(2), single.facts)


# --- who determines the template -------------------------------------------------------------------------------------


def test_earlier_mosaics_are_those_of_the_same_illumination_in_order(project):
    assert list(earlier_mosaics(project, MosaicId(5))) == [MosaicId(1), MosaicId(3)]
    assert list(earlier_mosaics(project, MosaicId(6))) == [MosaicId(2), MosaicId(4)]
    assert list(earlier_mosaics(project, MosaicId(1))) == []


def test_the_first_mosaic_that_is_not_lost_determines_the_template(project):
    assert may_determine_template(project, MosaicId(1), project.facts)
    assert not may_determine_template(project, MosaicId(3), project.facts)
    recorded(project, MosaicId(1), "failed")
    assert may_determine_template(project, MosaicId(3), project.facts)
    assert not may_determine_template(project, MosaicId(5), project.facts)
    assert not may_determine_template(project, MosaicId(4), project.facts)


def test_a_mosaic_has_begun_with_its_first_fact_or_that_of_one_of_its_batches(project):
    assert not has_begun(project, MosaicId(1), project.facts)
    recorded(project, BatchId(1, 2), "ready")
    assert has_begun(project, MosaicId(1), project.facts)
    assert not has_begun(project, MosaicId(2), project.facts)
    recorded(project, MosaicId(2), "ready")
    assert has_begun(project, MosaicId(2), project.facts)


def test_a_mosaic_waits_until_the_template_is_there_or_everybody_makes_their_own(project):
    assert not waits_for_template(project, MosaicId(1), project.facts)
    assert waits_for_template(project, MosaicId(3), project.facts)
    own = with_settings(project, coordinates={"force_refresh_coordinates": True})
    assert not waits_for_template(own, MosaicId(3), own.facts)
    project.paths.tilemap("normal").write_text("there")
    assert not waits_for_template(project, MosaicId(3), project.facts)
    assert waits_for_template(project, MosaicId(4), project.facts)


def test_waiting_ends_after_the_patience_when_nothing_of_earlier_slices_has_come(project):
    for mosaic in (MosaicId(3), MosaicId(5)):
        recorded(project, mosaic, "ready", "waiting")

    def ended(patience_s: float = 100, later_s: float = 101) -> list[MosaicId]:
        now = utc_now() + timedelta(seconds=later_s)
        return [e.mosaic for e in end_waiting(project, project.facts.snapshot(), patience_s=patience_s, now=now)]

    assert ended(later_s=95) == []
    assert ended() == [MosaicId(3)]  # the other one waits for it
    assert may_determine_template(project, MosaicId(3), project.facts)
    assert not may_determine_template(project, MosaicId(5), project.facts)
    record = project.facts.read(MosaicId(3), "waiting")
    assert record is not None
    assert "mosaic 1" in record.detail["no_longer"]
    assert ended() == []  # once
    recorded(project, BatchId(1, 1), "ready")  # an earlier slice has come after all
    assert not may_determine_template(project, MosaicId(3), project.facts)


@pytest.mark.parametrize("what", ["begun", "stitched", "template"])
def test_waiting_does_not_end_where_there_is_something_to_wait_for_or_no_need(project, what):
    recorded(project, MosaicId(3), "ready", "waiting")
    if what == "begun":
        recorded(project, BatchId(1, 1), "ready")
    elif what == "stitched":
        recorded(project, MosaicId(3), "stitched")
    else:
        project.paths.tilemap("normal").write_text("there")
    later = utc_now() + timedelta(days=1)
    assert end_waiting(project, project.facts.snapshot(), patience_s=1, now=later) == []


def test_an_earlier_mosaic_that_was_lost_is_not_waited_for(project):
    recorded(project, BatchId(1, 1), "ready")
    recorded(project, MosaicId(1), "failed")
    recorded(project, MosaicId(5), "ready", "waiting")
    later = utc_now() + timedelta(days=1)
    (event,) = end_waiting(project, project.facts.snapshot(), patience_s=1, now=later)
    assert event.mosaic == MosaicId(5)


# --- what is pending, how far, finished ------------------------------------------------------------------------------


def kinds(events) -> set[tuple[type, object]]:
    return {(type(event), event.item) for event in events}


def test_what_is_ready_and_nobody_works_on_is_announced_again(project):
    event = project.event(BatchReady, BatchId(1, 1), raw_folder="raw", files={1: "a", 2: "b"}).payload()
    project.facts.record(BatchId(1, 1), "ready", {"detail": {"event": event}})
    assert kinds(pending_announcements(project)) == {(BatchReady, BatchId(1, 1))}
    with project.facts.claim(BatchId(1, 1)):
        assert pending_announcements(project) == []
    assert kinds(pending_announcements(project)) == {(BatchReady, BatchId(1, 1))}
    recorded(project, BatchId(1, 1), "failed")
    assert pending_announcements(project) == []


def test_gates_that_nobody_has_looked_through_are_announced_once_for_each_mosaic_and_slice(project):
    recorded(project, BatchId(1, 1), "processed")
    assert pending_announcements(project) == []
    recorded(project, BatchId(1, 2), "processed")
    assert kinds(pending_announcements(project)) == {(BatchProcessed, BatchId(1, 1))}
    recorded(project, MosaicId(1), "ready", "stitched", "volume_stitched", "published")
    recorded(project, MosaicId(2), "ready")
    assert (MosaicStitched, MosaicId(1)) not in kinds(pending_announcements(project))
    assert (MosaicReady, MosaicId(2)) in kinds(pending_announcements(project))
    recorded(project, MosaicId(2), "failed")
    gates = {one for one in kinds(pending_announcements(project)) if one[0] is MosaicStitched}
    assert (MosaicStitched, MosaicId(2)) in gates
    recorded(project, SliceId(1), "ready")
    left = kinds(pending_announcements(project))
    assert (SliceReady, SliceId(1)) in left
    assert (MosaicStitched, MosaicId(2)) not in left


def test_a_project_is_finished_when_nothing_that_was_announced_is_left_to_do(project):
    def finished() -> bool:
        return is_finished(project, project.facts.snapshot())

    assert finished()
    recorded(project, BatchId(1, 1), "ready")
    assert not finished()
    recorded(project, BatchId(1, 1), "processed")
    assert finished()  # a column is missing: nothing more can be done for the mosaic
    recorded(project, BatchId(1, 1), "archived")
    assert not finished()  # to be published
    recorded(project, BatchId(1, 1), "published")
    recorded(project, BatchId(1, 2), "ready", "failed")
    assert not finished()  # the mosaic is not recorded as ready yet
    recorded(project, MosaicId(1), "ready")
    assert not finished()
    recorded(project, MosaicId(1), "failed")
    assert finished()  # the other mosaic of the slice has not begun: nothing more can be done now
    recorded(project, MosaicId(2), "failed")
    recorded(project, BatchId(2, 1), "failed")
    recorded(project, MosaicId(2), "ready")
    assert not finished()  # the slice is not recorded as ready yet
    recorded(project, SliceId(1), "ready")
    assert not finished()
    recorded(project, SliceId(1), "failed")
    assert finished()


def test_progress_counts_tiles_batches_and_states_of_each_mosaic(project):
    for number, facts in enumerate([("processed",), ("failed",), ("failed", "processed"), ()], 1):
        recorded(project, TileId(1, number), *facts)
    recorded(project, BatchId(1, 1), "ready", "started", "processed")
    recorded(project, BatchId(1, 2), "ready")
    (mosaic,) = project_progress(project).mosaics
    assert (mosaic.mosaic_id, mosaic.slice_id, mosaic.illumination) == (1, 1, "normal")
    assert (mosaic.total_batches, mosaic.total_tiles) == (2, 4)
    assert (mosaic.tiles_processed, mosaic.tiles_failed) == (2, 1)
    assert mosaic.percent == 75
    assert mosaic.batches == {"ready": 2, "started": 1, "archived": 0, "processed": 1, "published": 0, "uploaded": 0}
    assert (mosaic.state, mosaic.volume, mosaic.published) == ("acquiring", "none", False)


@pytest.mark.parametrize(
    ("facts", "state", "volume"),
    [
        (("ready",), "ready", "none"),
        (("ready", "started"), "stitching", "none"),
        (("ready", "started", "waiting"), "waiting", "none"),
        (("ready", "waiting", "stitched", "volume_started"), "stitched", "stitching"),
        (("ready", "stitched", "volume_started", "volume_stitched"), "stitched", "stitched"),
        (("ready", "stitched", "volume_failed"), "stitched", "failed"),
        (("ready", "failed"), "failed", "none"),
    ],
)
def test_the_furthest_state_of_a_mosaic_is_told(project, facts, state, volume):
    recorded(project, MosaicId(2), *facts)
    (mosaic,) = project_progress(project).mosaics
    assert (mosaic.illumination, mosaic.state, mosaic.volume) == ("tilted", state, volume)


@pytest.mark.parametrize(
    ("fact", "state"),
    [
        *(("ready", "ready"), ("registered", "registered"), ("skipped", "skipped")),
        *(("axis_failed", "axis failed"), ("failed", "failed")),
    ],
)
def test_the_furthest_state_of_a_slice_is_told_with_its_reason(project, fact, state):
    recorded(project, MosaicId(3), "stitched")
    (found,) = project_progress(project).slices
    assert (found.slice_id, found.state, found.reason) == (2, "acquiring", "")
    project.facts.record(SliceId(2), fact, {"detail": {"reason": "because"}})
    (found,) = project_progress(project).slices
    told = fact in ("skipped", "axis_failed", "failed")
    assert (found.state, found.reason, found.stacked, found.published) == (
        state,
        "because" if told else "",
        False,
        False,
    )
    recorded(project, SliceId(2), "started", "stacked", "published")
    (found,) = project_progress(project).slices
    assert found.stacked
    assert found.published
    assert found.state == ("registering" if fact == "ready" else state)


def test_failures_carry_their_reason_and_number_of_attempts(project):
    project.facts.record(TileId(1, 3), "failed", {"detail": {"reason": "cut short", "attempts": 3}})
    project.facts.record(MosaicId(1), "volume_failed")
    found = {(f.item, f.fact): (f.reason, f.attempts) for f in project_progress(project).failures}
    assert found == {
        (TileId(1, 3), "failed"): ("cut short", 3),
        (MosaicId(1), "volume_failed"): ("unknown", 1),
    }


# --- late files, retries, failures, publications ---------------------------------------------------------------------


def test_a_parked_tile_is_repaired_when_its_whole_files_are_not_those_that_it_failed_with(project, tmp_path):
    old, new = tmp_path / "old.nii", tmp_path / "new.nii"
    old.write_bytes(b"cut short")
    new.write_bytes(b"whole again")
    for tile in (1, 2, 3, 4):
        project.facts.record(TileId(1, tile), "failed", {"inputs_hash": identity_of(old)})
    files = {1: ("new.nii",), 2: ("old.nii",), 3: None, 4: ("gone.nii",)}
    parked = [TileId(1, tile) for tile in (1, 2, 3, 4, 5)]
    found = repaired_tiles(project, parked, tmp_path, lambda tile: files.get(tile.tile_id, ("new.nii",)))
    assert found == {TileId(1, 1): identity_of(new)}  # the fifth has not failed


def test_files_that_are_gone_from_the_folder_are_still_known_by_their_old_places(project):
    def ready(folder: str, **more: dict[int, str]) -> BatchReady:
        return project.event(BatchReady, BatchId(1, 1), raw_folder=folder, **more)

    before = ready("/first", files={1: "a1", 2: "a2"}, spectra={1: "s1", 2: "s2"})
    found = _with_former_files(ready("/second", files={1: "b1"}, spectra={}, problems={2: "no file"}), before)
    assert found.files == {1: "b1", 2: str(Path("/first/a2"))}
    assert found.spectra == {2: str(Path("/first/s2"))}
    assert found.problems == {}
    assert found.raw_folder == "/second"
    broken = ready("/first", files={1: "a1", 2: "a2"}, problems={2: "two files"})
    kept = _with_former_files(ready("/second", files={1: "b1"}, problems={2: "no file"}), broken)
    assert kept.files == {1: "b1"}
    assert set(kept.problems) == {2}
    assert _with_former_files(found, None) is found


@pytest.mark.parametrize(
    ("only", "taken"),
    [
        (None, {"tile", "volume", "other slice"}),
        ([TileId(1, 1)], {"tile"}),
        ([TileId(1, 2)], set()),
        ([BatchId(1, 1)], {"tile"}),
        ([BatchId(1, 2)], set()),
        ([MosaicId(1)], {"tile"}),
        ([MosaicId(2)], {"volume"}),
        ([SliceId(1)], {"tile", "volume"}),
        ([SliceId(2)], {"other slice"}),
    ],
)
def test_a_retry_takes_what_failed_in_the_chosen_items_and_nothing_else(project, only, taken):
    event = project.event(BatchReady, BatchId(1, 1), raw_folder="raw", files={1: "a"}).payload()
    project.facts.record(BatchId(1, 1), "ready", {"detail": {"event": event}})
    recorded(project, BatchId(1, 1), "processed")
    recorded(project, TileId(1, 1), "failed")
    recorded(project, MosaicId(2), "ready", "stitched", "volume_failed")
    recorded(project, SliceId(2), "ready", "failed")
    plan = retry_plan(project, only=only)
    facts = {
        "tile": (BatchId(1, 1), "processed"),
        "volume": (MosaicId(2), "volume_failed"),
        "other slice": (SliceId(2), "failed"),
    }
    assert {name for name, key in facts.items() if key in plan.withdraw} == taken
    assert {event.item for event in plan.announce} == {facts[name][0] for name in taken}
    assert plan.refused == []
    assert not plan.takes_back(MosaicId(2), "stitched")


def test_a_parked_tile_of_a_batch_that_was_never_announced_cannot_be_retried_and_is_told(project):
    recorded(project, TileId(1, 1), "failed")
    plan = retry_plan(project)
    assert plan.withdraw == []
    assert plan.announce == []
    (why,) = plan.refused
    assert str(BatchId(1, 1)) in why


def test_failures_are_grouped_by_kind_stage_and_host_the_most_frequent_first(project):
    journal = project.facts.journal
    journal.failed(TileId(1, 3), None, why="rare", kind="disk full", stage="stitch mosaic")
    for tile in (1, 2, 1):
        journal.failed(TileId(1, tile), None, why=f"tile {tile} is cut short", kind="bad input", stage="process batch")
    recorded(project, TileId(1, 1), "failed")
    project.facts.record(TileId(1, 4), "failed", {"detail": {"reason": "no journal", "kind": "bad input"}})
    first, *others = failure_patterns(project)
    assert (first.kind, first.stage, first.count) == ("bad input", "process batch", 4)
    assert first.items == tuple(TileId(1, tile).key for tile in (1, 2, 4))
    assert first.parked == 2
    assert first.first <= first.last
    assert first.message == "no journal"
    assert sum(first.per_day.values()) == 4
    assert [(one.kind, one.stage, one.count, one.parked) for one in others] == [("disk full", "stitch mosaic", 1, 0)]
    recorded(project, TileId(1, 4), "processed")  # mended meanwhile
    assert failure_patterns(project)[0].items == (TileId(1, 1).key, TileId(1, 2).key)
    assert len(failure_patterns(project, since=utc_now() - timedelta(hours=1))) == 2
    assert failure_patterns(project, since=utc_now() + timedelta(hours=1)) == []


def test_the_queue_of_publications_holds_what_has_its_result_and_has_not_ended(project):
    def queue() -> list[tuple[object, str]]:
        return [(item, step.name) for item, step in upload_queue(project, project.facts.snapshot())]

    recorded(project, BatchId(1, 1), "ready", "archived")
    recorded(project, MosaicId(2), "stitched")
    recorded(project, MosaicId(1), "stitched", "published")
    assert [item for item, _ in queue()] == [BatchId(1, 1), MosaicId(2)]
    recorded(project, BatchId(1, 1), "published")
    recorded(project, MosaicId(2), "publish_failed")
    assert queue() == []


def test_with_a_result_what_rests_on_it_is_taken_back_and_nothing_else(project):
    event = project.event(BatchReady, BatchId(1, 1), raw_folder="raw", files={1: "a"}).payload()
    project.facts.record(BatchId(1, 1), "ready", {"detail": {"event": event}})
    recorded(project, BatchId(1, 1), "processed", "archived", "published")
    for item in (MosaicId(1), MosaicId(2)):
        recorded(project, item, "ready", "stitched", "volume_stitched", "published")
    for item in (SliceId(1), SliceId(2)):
        recorded(project, item, "ready", "registered", "published")
    plan = RedoPlan(project)
    plan.redo(chain().step_of(BatchId(1, 1), "processed"), BatchId(1, 1))
    assert set(plan.withdraw) == {
        (BatchId(1, 1), "processed"),
        *((MosaicId(1), fact) for fact in ("ready", "stitched", "volume_stitched", "published")),
        *((SliceId(1), fact) for fact in ("ready", "registered", "published")),
    }
    assert len(plan.withdraw) == len(set(plan.withdraw))
    assert [event.item for event in plan.announce] == [BatchId(1, 1)]
    number = apply_plan(project, plan, reason="a test")
    assert number == len(plan.withdraw)
    assert not project.facts.facts_of(MosaicId(1)) & {"ready", "stitched"}
    assert project.facts.has(MosaicId(2), "stitched")
    assert project.facts.has(BatchId(1, 1), "archived")


# --- what results rest on --------------------------------------------------------------------------------------------


def test_a_template_belongs_to_the_mosaic_that_has_made_it(project):
    assert not determined_template(project, MosaicId(1))
    with template_noted(project, MosaicId(1)):
        project.paths.tilemap("normal").write_text("there")
    assert determined_template(project, MosaicId(1))
    assert not determined_template(project, MosaicId(3))
    assert not determined_template(project, MosaicId(2))


def test_a_template_that_was_not_made_is_not_noted(project):
    with template_noted(project, MosaicId(1)):
        pass
    assert not determined_template(project, MosaicId(1))


@pytest.mark.parametrize(("mask", "own"), [("aip", False), ("", False), ("mip", True)])
def test_a_registration_rests_on_the_settings_of_a_mask_of_its_own_only(project, mask, own):
    changed = with_settings(project, mask={"made_from": "aip"}, registration={"mask_file_type": mask})
    settings = slice_settings(changed.config).results["processing"]
    assert ("mask" in settings) is own
    assert settings["registration"]["use_mask"] == (mask if own else bool(mask))


def test_slices_that_the_stacks_do_not_hold_are_told_unless_parked(project):
    for number in (1, 2, 3):
        recorded(project, SliceId(number), "ready", "registered")
    recorded(project, SliceId(2), "stack_failed")
    recorded(project, SliceId(3), "stacked")
    assert unstacked(project) == [SliceId(1)]


def test_a_result_is_stale_when_what_it_is_made_from_was_done_again_or_a_setting_has_changed(project):
    for batch in project.layout.batches(MosaicId(1)):
        recorded(project, batch, "processed")
    grounds = {
        "inputs_hash": inputs_hash(project, MosaicId(1), "stitched"),
        "parameters_hash": keep_settings(project, settings_of(project, MosaicId(1), "stitched")),
    }
    project.facts.record(MosaicId(1), "stitched", grounds)
    assert stale_results(project) == []
    other = with_settings(project, mask={"sigma_px": 7.5})
    (stale,) = stale_results(other)
    assert (stale.item, stale.fact) == (MosaicId(1), "stitched")
    assert "7.5" in stale.why[0]
    project.facts.replace(BatchId(1, 2), "processed", {"inputs_hash": "another"}, why="done again")
    (stale,) = stale_results(project)
    assert (stale.item, stale.fact) == (MosaicId(1), "stitched")
    project.facts.replace(MosaicId(1), "stitched", {}, why="made by hand")
    assert stale_results(project) == []

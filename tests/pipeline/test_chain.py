"""The whole chain on a small acquisition, with real stages and without a server."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.io.tilemap import read_tilemap
from opticstream.model.events import BatchReady, MosaicReady, MosaicStitched, SliceReady
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.retry import apply_plan, retry_plan
from opticstream.testing.bus import LocalBus
from opticstream.testing.chaos.outcome import computed
from opticstream.testing.checksums import tree_checksums


def opened(folder: Path, **overrides) -> Project:
    config = load_project(folder / "project.toml", overrides=overrides)
    return Project.open(config, deployment=DeploymentSettings(lease_s=5, attempts=1))


def results(folder: Path) -> dict[str, str]:
    """Checksums of everything but the facts, by path."""
    return tree_checksums(folder / "project", without="state")


@pytest.fixture(scope="module")
def undisturbed(acquired: Path, tmp_path_factory) -> Path:
    """The small acquisition, processed without any trouble."""
    folder = Path(shutil.copytree(acquired, tmp_path_factory.mktemp("undisturbed") / "acquisition"))
    bus = LocalBus(opened(folder))
    bus.feed(folder / "raw")
    bus.run()
    return folder


def test_raw_tiles_become_a_registered_and_published_slice(undisturbed):
    project = opened(undisturbed)
    progress = project_progress(project)
    assert [m.state for m in progress.mosaics] == ["stitched", "stitched"]
    assert [m.volume for m in progress.mosaics] == ["stitched", "stitched"]
    assert [(s.state, s.stacked, s.published) for s in progress.slices] == [("registered", True, True)]
    assert progress.failures == ()
    assert is_finished(project, project.facts.snapshot())
    base = undisturbed / "project"
    for name in (
        "tilemap-normal.j2", "tilemap-tilted.j2", "focus-normal.nii", "focus-tilted.nii",
        "mosaic-01/processed/mosaic_001_image_0001_dBI.nii", "mosaic-01/stitched/mosaic_001_aip.nii.gz",
        "mosaic-01/stitched/mosaic_001_mask.nii.gz", "mosaic-02/stitched/mosaic_002_ori.jpg",
        "mosaic-01/stitched/mosaic_001_dBI.ome.zarr", "registered/slice_001_axis.nii.gz",
        "registered/slice_001_thruplane.mat", "mosaic-01/state/batch-001.processed", "state/slice-001.registered",
        "DANDISET/rawdata/sub-phantom/sample-slice-001_chunk-0001_acq-normal_OCT.nii.gz",
        "DANDISET/derivative/sub-phantom/mosaic_001_aip.nii.gz",
        "DANDISET/derivative/sub-phantom/mosaic_002_O3D.ome.zarr",
        "mosaic-01/archived/sample-slice-001_chunk-0001_acq-normal_OCT.nii.gz",
    ):  # fmt: skip
        assert (base / name).exists(), name


def test_the_commands_stitch_what_the_pipeline_stitches(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "acquisition"))
    made = folder / "by-hand"
    for command in ("mosaic", "volume"):
        arguments = ["stitch", command, str(folder / "project.toml"), "--mosaic", "2", "--out", str(made)]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    by_hand, by_pipeline = tree_checksums(made), tree_checksums(undisturbed / "project" / "mosaic-02" / "stitched")
    assert {"mosaic_002_aip.nii.gz", "mosaic_002_mask.nii.gz", "mosaic_002_dBI.ome.zarr/zarr.json"} <= by_hand.keys()
    assert {name: by_pipeline[name] for name in by_hand} == by_hand


def test_nothing_of_the_raw_tiles_is_changed(acquired, undisturbed):
    before = {
        p.name: (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in (acquired / "raw").iterdir()
    }
    after = {
        p.name: (p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p in (undisturbed / "raw").iterdir()
    }
    assert before == after


def test_each_work_is_done_once_and_a_rerun_changes_nothing(undisturbed):
    before, done = results(undisturbed), computed(opened(undisturbed))
    assert set(done.values()) == {1}
    bus = LocalBus(opened(undisturbed))
    bus.feed(undisturbed / "raw")
    bus.run_until_nothing_is_pending()
    assert results(undisturbed) == before
    assert computed(opened(undisturbed)) == done


def test_duplicate_announcements_in_any_order_change_nothing(undisturbed):
    before, done = results(undisturbed), computed(opened(undisturbed))
    project = opened(undisturbed)
    bus = LocalBus(project)
    first = LocalBus(project)
    first.lose = lambda _event: True
    for batch in (BatchId(1, 1), BatchId(2, 2)):
        record = project.facts.read(batch, "ready")
        bus.announce([BatchReady.from_payload(dict(record.detail["event"]))] * 2)
    bus.announce([project.event(MosaicReady, MosaicId(m)) for m in (2, 1, 2)])
    bus.announce([project.event(SliceReady, SliceId(1))] * 2)
    rng = random.Random(3)
    bus.run(order=lambda n: rng.randrange(n))
    assert results(undisturbed) == before
    assert computed(project) == done


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_with_every_second_announcement_lost_the_sweep_brings_the_same_result(acquisition, undisturbed, seed):
    rng = random.Random(seed)
    bus = LocalBus(opened(acquisition), lose=lambda _event: rng.random() < 0.5)
    bus.feed(acquisition / "raw")
    bus.run_until_nothing_is_pending(rounds=60)
    assert is_finished(bus.project, bus.project.facts.snapshot())
    assert results(acquisition) == results(undisturbed)
    assert set(computed(bus.project).values()) == {1}


def test_a_bad_tile_is_parked_stitched_around_and_retried(acquisition):
    raw = next((acquisition / "raw").glob("mosaic_001_image_0002_*"))
    good = raw.read_bytes()
    os.truncate(raw, len(good) // 2)
    project = opened(acquisition)
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    bus.run()
    progress = project_progress(project)
    (failure,) = progress.failures
    assert failure.item == TileId(1, 2)
    for word in (raw.name, str(len(good)), str(len(good) // 2), "scan.illuminations[0]"):
        assert word in failure.reason, failure.reason
    assert [m.state for m in progress.mosaics] == ["stitched", "stitched"]
    assert project.facts.read(MosaicId(1), "stitched").detail["missing_tiles"] == [2]
    assert is_finished(project, project.facts.snapshot())
    names = {event.event_name() for event in bus.seen}
    assert {"linc.oct.tile.failed", "linc.oct.mosaic.flagged", "linc.oct.slice.ready"} <= names

    raw.write_bytes(good)
    before = computed(project)
    plan = retry_plan(project)
    apply_plan(project, plan, reason="test")
    bus = LocalBus(project)
    bus.announce(plan.announce)
    bus.run()
    assert project_progress(project).failures == ()
    assert project.facts.read(MosaicId(1), "stitched").detail["missing_tiles"] == []
    after = computed(project)
    redone = {key for key, count in after.items() if count > before.get(key, 0)}
    assert "mosaic-001/tile-0002 processed" in redone
    assert "mosaic-001/tile-0001 processed" not in redone
    assert not any(key.startswith("mosaic-002") for key in redone)
    assert is_finished(project, project.facts.snapshot())


def test_a_failed_publication_is_parked_holds_up_nothing_and_is_retried(acquisition, monkeypatch):
    from opticstream.pipeline import publishing

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    original = publishing.move_to_archive
    monkeypatch.setattr(publishing, "move_to_archive", full)
    project = opened(acquisition)
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    bus.run()
    progress = project_progress(project)
    assert [s.state for s in progress.slices] == ["registered"]
    assert {f.fact for f in progress.failures} == {"publish_failed", "volume_publish_failed"}
    assert all("No space left" in f.reason for f in progress.failures)
    assert is_finished(project, project.facts.snapshot())
    assert {"linc.oct.mosaic.failed", "linc.oct.slice.failed"} <= {event.event_name() for event in bus.seen}

    monkeypatch.setattr(publishing, "move_to_archive", original)
    plan = retry_plan(project)
    assert not any(fact in ("stitched", "registered") for _item, fact in plan.withdraw)
    apply_plan(project, plan, reason="test")
    again = LocalBus(project)
    again.announce(plan.announce)
    again.run()
    assert project_progress(project).failures == ()
    assert set(computed(project).values()) == {1}


def test_a_result_that_is_gone_when_it_is_to_be_published_is_told_and_not_passed_over(acquisition):
    project = opened(acquisition)
    bus = LocalBus(project)
    gone = acquisition / "project" / "mosaic-01" / "stitched" / "mosaic_001_aip.nii.gz"
    bus.lose = lambda event: event.event_name() == "linc.oct.mosaic.stitched" and (gone.unlink(missing_ok=True) or True)
    bus.feed(acquisition / "raw")
    bus.run()
    bus.lose = lambda _event: False
    bus.announce([project.event(MosaicStitched, MosaicId(1))])
    bus.run()
    (failure,) = [f for f in project_progress(project).failures if f.fact == "publish_failed"]
    assert failure.item == MosaicId(1)
    assert gone.name in failure.reason
    assert not project.facts.has(MosaicId(1), "published")


@pytest.mark.slow
def test_a_slice_that_cannot_be_stacked_is_parked_and_retried(acquisition, monkeypatch):
    from opticstream.stages import sample

    def broken(_new):
        raise OSError(28, "No space left on device")

    original = sample.update_sample
    monkeypatch.setattr(sample, "update_sample", broken)
    project = opened(acquisition)
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    bus.run()
    assert [f.fact for f in project_progress(project).failures] == ["stack_failed"]
    assert is_finished(project, project.facts.snapshot())
    assert "linc.oct.sample.failed" in {event.event_name() for event in bus.seen}
    monkeypatch.setattr(sample, "update_sample", original)
    plan = retry_plan(project)
    apply_plan(project, plan, reason="test")
    again = LocalBus(project)
    again.announce(plan.announce)
    again.run()
    assert project_progress(project).failures == ()
    assert project_progress(project).slices[0].stacked


def test_a_lost_illumination_skips_the_slice_with_the_reason(acquisition):
    for raw in (acquisition / "raw").glob("mosaic_002_*"):
        os.truncate(raw, 1000)
    project = opened(acquisition)
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    bus.run()
    progress = project_progress(project)
    assert [m.state for m in progress.mosaics] == ["stitched", "failed"]
    (slice_,) = progress.slices
    assert slice_.state == "skipped"
    assert "mosaic 2 (tilted) is parked as failed" in slice_.reason
    assert is_finished(project, project.facts.snapshot())
    assert "linc.oct.slice.failed" in {event.event_name() for event in bus.seen}


def test_a_missing_calibration_file_fails_every_tile_with_its_name(acquisition):
    (acquisition / "calibration" / "wavelength_2.npy").unlink()
    project = opened(acquisition)
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    bus.run()
    tiles = [f for f in project_progress(project).failures if isinstance(f.item, TileId)]
    assert len(tiles) == 12
    assert all("wavelength_2.npy" in f.reason and "calibration" in f.reason for f in tiles)
    assert "linc.oct.batch.failed" in {event.event_name() for event in bus.seen}


@pytest.mark.slow
def test_a_tile_that_vanishes_after_it_was_found_is_named(acquisition):
    project = opened(acquisition)
    bus = LocalBus(project)
    bus.feed(acquisition / "raw")
    raw = next((acquisition / "raw").glob("mosaic_002_image_0003_*"))
    raw.unlink()
    bus.run()
    (failure,) = project_progress(project).failures
    assert failure.item == TileId(2, 3)
    assert raw.name in failure.reason
    assert [m.state for m in project_progress(project).mosaics] == ["stitched", "stitched"]


@pytest.mark.slow
def test_a_later_mosaic_waits_for_the_template_and_is_taken_up_when_it_appears(acquired, tmp_path):
    """Slice 2 comes first: its mosaics wait, and go on once slice 1 has made the templates."""
    folder = Path(shutil.copytree(acquired, tmp_path / "acquisition"))
    late = folder / "late"
    late.mkdir()
    for raw in list((folder / "raw").iterdir()):
        number = int(raw.name.split("_")[1])
        shutil.copy(raw, folder / "raw" / raw.name.replace(f"mosaic_{number:03d}", f"mosaic_{number + 2:03d}"))
        raw.rename(late / raw.name)
    project = opened(folder)
    bus = LocalBus(project)
    bus.feed(folder / "raw")
    bus.run()
    assert [m.state for m in project_progress(project).mosaics] == ["waiting", "waiting"]
    bus.feed(late)
    bus.run()
    progress = project_progress(project)
    assert [m.state for m in progress.mosaics] == ["stitched"] * 4
    assert [s.state for s in progress.slices] == ["registered", "registered"]
    reused = [project.facts.read(MosaicId(n), "stitched").detail["template_reused"] for n in (1, 2, 3, 4)]
    assert reused == [False, False, True, True]
    for name, first in (("normal", 1), ("tilted", 2)):
        assert read_tilemap(project.paths.tilemap(name)).source["mosaic_id"] == first


def test_parameters_that_do_not_matter_to_a_stage_do_not_change_its_hash(acquired):
    from opticstream.pipeline import parameters

    base = opened(acquired).config
    tilt = opened(acquired, gamma=-12.0).config
    mask = opened(acquired, mask_threshold_normal=40.0).config
    depth = opened(acquired, depth=30).config
    assert parameters.mosaic_settings(tilt, 0) == parameters.mosaic_settings(base, 0)
    assert parameters.slice_settings(tilt).hash != parameters.slice_settings(base).hash
    assert parameters.tile_hash(mask, 0) == parameters.tile_hash(base, 0)
    assert parameters.mosaic_settings(mask, 0).hash != parameters.mosaic_settings(base, 0).hash
    assert parameters.mosaic_settings(mask, 1).hash == parameters.mosaic_settings(base, 1).hash
    assert parameters.tile_hash(depth, 1) != parameters.tile_hash(base, 1)

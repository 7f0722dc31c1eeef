"""After a change of settings just what rests on it is done again, and the result is that of a fresh run."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import apply_plan
from opticstream.pipeline.stale import stale_plan, stale_results
from opticstream.stages.project import MosaicStages
from opticstream.state import Facts
from opticstream.state.verify import verify
from opticstream.testing.bus import LocalBus
from opticstream.testing.checksums import tree_checksums, without_stacks


def opened(folder: Path, **overrides) -> Project:
    config = load_project(folder / "project.toml", overrides=overrides)
    return Project.open(config, deployment=DeploymentSettings(lease_s=5, attempts=1))


def processed(source: Path, folder: Path, **overrides) -> Project:
    """A copy of an acquisition, processed from nothing with these settings."""
    shutil.copytree(source, folder)
    project = opened(folder, **overrides)
    bus = LocalBus(project)
    bus.feed(folder / "raw")
    bus.run_until_nothing_is_pending()
    return project


def results(project: Project) -> dict[str, str]:
    """Checksums of everything but the facts, by path."""
    return tree_checksums(project.paths.base, without="state")


def computed(project: Project) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in project.facts.journal.entries():
        if entry.event == "computed":
            key = f"{entry.item.hierarchy} {entry.fact}"
            counts[key] = counts.get(key, 0) + 1
    return counts


def redo(project: Project, *, lose=lambda _event: False) -> set[str]:
    """Do again what is stale, and return which kinds of work were done."""
    before = computed(project)
    plan = stale_plan(project, stale_results(project))
    apply_plan(project, plan, reason="test")
    bus = LocalBus(project, lose=lose)
    bus.announce(plan.announce)
    bus.run_until_nothing_is_pending(rounds=60)
    assert is_finished(project, project.facts.snapshot())
    return {key for key, count in computed(project).items() if count > before.get(key, 0)}


@pytest.fixture(scope="module")
def undisturbed(acquired: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "acquisition"
    processed(acquired, folder)
    return folder


@pytest.fixture
def done(undisturbed: Path, tmp_path: Path) -> Path:
    """A processed acquisition that a test may change."""
    folder = Path(shutil.copytree(undisturbed, tmp_path / "done", symlinks=True))
    for flag in folder.rglob("batch-*.ready"):  # the raw files have moved with it
        flag.write_text(flag.read_text().replace(str(undisturbed), str(folder)))
    return folder


def stale_of(folder: Path, **overrides) -> list[tuple[str, str]]:
    return [(stale.item.key, stale.fact) for stale in stale_results(opened(folder, **overrides))]


def test_nothing_is_stale_after_an_undisturbed_run(undisturbed):
    assert stale_results(opened(undisturbed)) == []


@pytest.mark.parametrize(
    "setting",
    [
        {"processing.quality.saturated_fraction": 0.5},
        {"processing.reconstruction.threads": 1},
        {"processing.reconstruction.memory_budget_gb": 3.0},
        {"processing.volume.memory_budget_gb": 3.0},
        {"processing.archive.level": 9},
        {"scan.line_rate_hz": 1.0},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_that_matters_to_no_result_makes_nothing_stale(undisturbed, setting):
    assert stale_of(undisturbed, **setting) == []


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        (
            {"processing.enface.depth": 30},
            {("mosaic-001/batch-001", "processed"), ("mosaic-002/batch-003", "processed")},
        ),
        ({"processing.stitch.shading_correction": True}, {("mosaic-001", "stitched"), ("mosaic-002", "stitched")}),
        ({"mask_threshold_normal": 40.0}, {("mosaic-001", "stitched")}),
        ({"processing.volume.crop_offset": 3}, {("mosaic-001", "volume_stitched"), ("mosaic-002", "volume_stitched")}),
        ({"gamma": -12.0}, {("slice-001", "registered")}),
        ({"processing.sample.align_pullback": 0.3}, {("slice-001", "stacked")}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_setting_makes_the_results_of_its_stage_stale_and_is_named(undisturbed, setting, first):
    project = opened(undisturbed, **setting)
    stale = stale_results(project)
    hierarchies = {item.partition("-")[0] if "/" not in item else "batch" for item, _ in first}
    assert first <= {(one.item.key, one.fact) for one in stale}
    assert {one.item.hierarchy for one in stale} == hierarchies
    name, value = next(iter(setting.items()))
    word = {"gamma": "tilt_deg", "mask_threshold_normal": "threshold_db"}.get(name, name)
    for one in stale:
        (why,) = one.why
        assert word in why
        assert why.endswith(f"-> {value!r}")


def test_a_calibration_file_of_other_content_makes_the_tiles_stale(done):
    import numpy as np

    assert stale_of(done) == []
    path = next((done / "calibration").glob("wavelength_1*"))
    np.save(path, np.load(path) * 1.0001)
    assert {fact for _, fact in stale_of(done)} == {"processed"}


@pytest.mark.slow
def test_another_surface_method_redoes_tiles_and_all_that_follows(acquired, done, tmp_path):
    change = {"processing.enface.surface": 12}
    project = opened(done, **change)
    archived = sorted((project.paths.archive_root / "rawdata").rglob("*.nii.gz"))
    before = [path.stat().st_ino for path in archived]
    assert redo(project) >= {"tile processed", "mosaic stitched", "mosaic volume_stitched", "slice registered"}
    assert results(project) == results(processed(acquired, tmp_path / "fresh", **change))
    assert [path.stat().st_ino for path in archived] == before, "the archive copies of the same raw tiles stand"
    assert stale_results(project) == []
    assert verify(project.facts, layout=project.layout) == []


STITCHING = {"processing.stitch.shading_correction": True, "processing.focus.degree": 1}


@pytest.fixture(scope="module")
def freshly_stitched(acquired: Path, tmp_path_factory) -> dict[str, str]:
    """Results of a run from nothing with other stitching options."""
    return results(processed(acquired, tmp_path_factory.mktemp("fresh") / "acquisition", **STITCHING))


def test_another_stitching_option_leaves_tiles_alone(done, freshly_stitched):
    project = opened(done, **STITCHING)
    work = redo(project)
    assert not work & {"tile processed", "batch processed"}
    assert work >= {"mosaic stitched", "mosaic volume_stitched", "slice registered", "mosaic published"}
    assert results(project) == freshly_stitched
    assert verify(project.facts, layout=project.layout) == []


def test_another_focus_map_redoes_the_volumes_and_the_mosaic_that_finds_it_but_no_slice(done):
    project = opened(done, **{"processing.focus.degree": 1})
    focus = project.paths.focus("normal").read_bytes()
    work = redo(project)
    assert "mosaic volume_stitched" in work
    assert not work & {"tile processed", "slice registered"}
    assert project.paths.focus("normal").read_bytes() != focus
    assert stale_results(project) == []


@pytest.mark.slow
def test_a_crash_between_any_two_facts_that_are_taken_back_ends_with_the_fresh_result(done, freshly_stitched):
    project = opened(done, **STITCHING)
    number = len(stale_plan(project, stale_results(project)).withdraw)
    rng = random.Random(4)
    withdraw, left = Facts.withdraw, [0]

    def dying(self, item, fact, *, reason):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return withdraw(self, item, fact, reason=reason)

    for moment in sorted(rng.sample(range(1, number), 2)):
        left[0] = moment
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Facts, "withdraw", dying)
            with pytest.raises(KeyboardInterrupt):
                apply_plan(project, stale_plan(project, stale_results(project)), reason="test")
        LocalBus(project).run_until_nothing_is_pending()  # what was taken back is done again from what still stands
    redo(project)
    assert results(project) == freshly_stitched
    assert stale_results(project) == []


def test_a_batch_whose_raw_files_are_gone_keeps_its_good_results(done):
    for raw in (done / "raw").glob("mosaic_001_image_0001_*"):
        raw.unlink()
    project = opened(done, **{"processing.enface.depth": 30})
    plan = stale_plan(project, stale_results(project))
    (refused,) = plan.refused
    assert refused.startswith("batch 1 of mosaic 1: cannot be made again")
    assert "mosaic_001_image_0001" in refused
    assert (BatchId(1, 1), "processed") not in plan.withdraw
    assert (BatchId(1, 2), "processed") in plan.withdraw


@pytest.mark.slow
def test_a_tile_that_fails_under_the_new_settings_is_not_stitched_from_the_old_ones(done):
    raw = next((done / "raw").glob("mosaic_001_image_0002_*"))
    os.truncate(raw, 1000)
    project = opened(done, **{"processing.enface.depth": 30, "processing.volume.enabled": False})
    redo(project)
    (failure,) = project_progress(project).failures
    assert failure.item == TileId(1, 2)
    assert not project.facts.has(TileId(1, 2), "processed")
    assert project.facts.read(MosaicId(1), "stitched").detail["missing_tiles"] == [2]
    kept = project.paths.processed_folder(MosaicId(1)) / "withdrawn"
    assert (kept / "mosaic_001_image_0002_aip.nii").exists()


def test_a_batch_that_was_done_again_makes_its_mosaic_stale(done):
    raw = next((done / "raw").glob("mosaic_001_image_0002_*"))
    os.utime(raw, ns=(1, 1))  # acquired again: another file under the same name
    project = opened(done)
    project.facts.withdraw(BatchId(1, 1), "processed", reason="reset without what rests on it")
    bus = LocalBus(project)
    bus.sweep()
    bus.run()
    (stale,) = [one for one in stale_results(project) if one.item == MosaicId(1) and one.fact == "stitched"]
    assert stale.why == ("its inputs have been made again since",)
    redo(project)
    assert stale_results(project) == []


def test_a_result_whose_ground_is_taken_back_meanwhile_is_not_recorded(done, monkeypatch):
    project = opened(done)
    for fact in ("stitched", "volume_stitched"):
        project.facts.withdraw(MosaicId(1), fact, reason="test")
    stitch = MosaicStages.stitch_mosaic

    def and_meanwhile(stages):
        project.facts.withdraw(BatchId(1, 2), "processed", reason="retried by somebody")
        return stitch(stages)

    monkeypatch.setattr(MosaicStages, "stitch_mosaic", and_meanwhile)
    bus = LocalBus(project)
    bus.sweep()
    bus.run()
    assert not project.facts.has(MosaicId(1), "stitched")
    (entry,) = [e for e in project.facts.journal.history(MosaicId(1)) if e.event == "skipped" and "meanwhile" in e.why]
    assert entry.fact == "stitched"
    monkeypatch.undo()
    LocalBus(project).run_until_nothing_is_pending()


@pytest.mark.slow
def test_later_slices_wait_for_the_new_template(acquired, tmp_path):
    folder = Path(shutil.copytree(acquired, tmp_path / "two"))
    for raw in list((folder / "raw").iterdir()):
        number = int(raw.name.split("_")[1])
        shutil.copy(raw, folder / "raw" / raw.name.replace(f"mosaic_{number:03d}", f"mosaic_{number + 2:03d}"))
    quick = {"processing.volume.enabled": False, "save_volumes": False}
    project = processed(folder, tmp_path / "done", **quick)
    template = project.paths.tilemap("normal").read_text()
    change = quick | {"processing.coordinates.method": "nominal"}
    project = opened(tmp_path / "done", **change)
    rng = random.Random(1)
    work = redo(project, lose=lambda _event: rng.random() < 0.4)
    assert not work & {"tile processed", "batch processed"}
    assert project.paths.tilemap("normal").read_text() != template
    assert project.facts.read(MosaicId(3), "stitched").detail["template_reused"]
    fresh, found = (without_stacks(results(one)) for one in (processed(folder, tmp_path / "fresh", **change), project))
    assert {name: found[name] for name in fresh} == fresh
    assert all("qc_coordinates" in name for name in found.keys() - fresh.keys()), "pictures of the old positions stay"
    assert stale_results(project) == []
    assert verify(project.facts, layout=project.layout) == []
    assert [s.state for s in project_progress(project).slices] == ["registered", "registered"]
    assert SliceId(2) in project.facts.snapshot().items("slice")

"""Slices and the sample after stitching: an axis that fails costs the axis, and the stacks take what there is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opticstream.config import DeploymentSettings, config_from_mapping
from opticstream.io.nifti import read_nifti
from opticstream.io.zarr import volume_reader
from opticstream.model.errors import InputError, StateError
from opticstream.model.events import MosaicVolumeStitched
from opticstream.model.ids import MosaicId, SampleId, SliceId
from opticstream.pipeline.milestones import milestones
from opticstream.pipeline.parameters import mosaic_settings, slice_settings
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.retry import apply_plan, retry_plan
from opticstream.pipeline.rules import after_mosaic
from opticstream.pipeline.stacking import stack_slices, update_sample
from opticstream.stages import sample as sample_stages
from opticstream.testing.bus import LocalBus
from opticstream.testing.slice_phantom import Picture, SlicePhantom, make_slice
from opticstream.testing.stitched_project import record_stitched, record_volume, slice_ready, stitched_project

SHAPE = (120, 100)
BEAMS = (Picture(shape=SHAPE), Picture(tilt_deg=-15.0, shape=SHAPE, shift_px=(4.0, -3.0)))
NO_VOLUMES = "\n[processing.volume]\nenabled = false\n"
AS_IMAGED = '\n[processing.sample]\nalign = "none"\nintensity = { enabled = false }\n'
"""Slices lie in the stacks as they are: with the same values at the same places."""


def phantom(seed: int) -> SlicePhantom:
    return make_slice(BEAMS, seed=seed, grain_px=8.0, margin_px=20)


def of_two_slices(one: SlicePhantom, other: SlicePhantom) -> SlicePhantom:
    """The normal beam's picture of one slice and the tilted one's of another: nothing to register."""
    return SlicePhantom(one.axis, one.birefringence, one.white, (one.beams[0], other.beams[1]))


def run(project: Project, *slices: int) -> LocalBus:
    bus = LocalBus(project)
    bus.announce([slice_ready(project, number) for number in slices])
    bus.run()
    return bus


def plane(project: Project, name: str, slice_id: int) -> np.ndarray:
    shape, read = volume_reader(project.paths.sample_folder / f"{name}.ome.zarr")
    return read(slice(0, shape[0]), slice(0, shape[1]))[:, :, slice_id - 1]


def ledger(project: Project) -> dict:
    return json.loads((project.paths.sample_folder / "slices.json").read_text())


@pytest.fixture(scope="module")
def pair() -> tuple[SlicePhantom, SlicePhantom]:
    return phantom(1), phantom(2)


def test_a_failed_registration_stops_the_axis_and_not_the_slice(pair, tmp_path: Path) -> None:
    good, other = pair
    project = stitched_project(tmp_path, [of_two_slices(good, other), good], more=NO_VOLUMES + AS_IMAGED)
    bus = run(project, 1, 2)

    first, second = project_progress(project).slices
    assert (first.state, first.stacked) == ("axis failed", True)
    assert first.reason.startswith("no fibre axis: tilted onto normal: ")
    assert (second.state, second.stacked, second.published) == ("registered", True, True)
    (failure,) = project_progress(project).failures
    assert (failure.item, failure.fact) == (SliceId(1), "axis_failed")
    record = project.facts.read(SliceId(1), "axis_failed")
    assert {Path(name).name for name in record.detail["pictures"]} == {"slice_001_overlay.jpg"}
    assert (tmp_path / "project/registered/slice_001_transform.json").is_file()
    (told,) = [e for e in bus.seen if e.event_name() == "linc.oct.slice.failed"]
    assert told.stage == "register slice"
    assert "no fibre axis" in told.reason
    assert [m.text for m in milestones(project, project_progress(project)) if m.failure] == [
        f"slice 1 axis_failed: {failure.reason}"
    ]

    # The slice's own maps are in the sample; its axes are a gap that is listed.
    np.testing.assert_array_equal(plane(project, "normal_aip", 1), good.beams[0].intensity)
    np.testing.assert_array_equal(plane(project, "normal_aip", 2), good.beams[0].intensity)
    assert np.isnan(plane(project, "registered_inplane", 1)).all()
    assert np.isfinite(plane(project, "registered_inplane", 2)).mean() > 0.5
    assert ledger(project)["slices"]["1"]["without_axis"] == first.reason
    assert ledger(project)["missing"] == {}


def test_retry_gives_the_axis_later_and_writes_nothing_else_again(pair, tmp_path: Path) -> None:
    good, other = pair
    project = stitched_project(tmp_path, [of_two_slices(good, other)], more=NO_VOLUMES + AS_IMAGED)
    run(project, 1)
    stack = project.paths.sample_folder / "normal_aip.ome.zarr"
    before = {p: p.stat().st_mtime_ns for p in stack.rglob("*") if p.is_file()}

    record_stitched(project, MosaicId(2), good.beams[1])
    plan = retry_plan(project)
    apply_plan(project, plan, reason="test")
    bus = LocalBus(project)
    bus.announce(plan.announce)
    bus.run()
    (slice_,) = project_progress(project).slices
    assert (slice_.state, slice_.stacked, slice_.reason) == ("registered", True, "")
    assert np.isfinite(plane(project, "registered_inplane", 1)).mean() > 0.5
    assert "without_axis" not in ledger(project)["slices"]["1"]
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_axes_that_are_lost_in_a_second_run_leave_a_gap(pair, tmp_path: Path) -> None:
    good, other = pair
    project = stitched_project(tmp_path, [good], more=NO_VOLUMES + AS_IMAGED)
    run(project, 1)
    assert np.isfinite(plane(project, "registered_inplane", 1)).mean() > 0.5
    record_stitched(project, MosaicId(2), other.beams[1])
    for fact in ("registered", "stacked", "published"):
        project.facts.withdraw(SliceId(1), fact, reason="test")
    run(project, 1)
    assert project_progress(project).slices[0].state == "axis failed"
    for name in ("registered_inplane", "registered_thruplane", "registered_biref"):
        assert np.isnan(plane(project, name, 1)).all()
        assert np.isnan(read_nifti(project.paths.sample_folder / f"{name}.nii")).all()
    assert (plane(project, "registered_flags", 1) == 0).all()
    np.testing.assert_array_equal(plane(project, "normal_aip", 1), good.beams[0].intensity)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_slice_without_its_tilted_mosaic_is_stacked_and_one_without_its_first_is_a_gap(
    pair, tmp_path: Path, lost: int
) -> None:
    project = stitched_project(tmp_path, [pair[0], pair[1]], more=NO_VOLUMES)
    project.facts.withdraw(MosaicId(lost), "stitched", reason="test")
    project.facts.record(MosaicId(lost), "failed", {"detail": {"reason": "all tiles are blank"}})
    run(project, 1, 2)
    first, second = project_progress(project).slices
    assert (first.state, first.stacked) == ("skipped", lost == 2)
    assert second.stacked
    if lost == 2:
        assert "mosaic 2 (tilted) is parked as failed" in ledger(project)["slices"]["1"]["without_axis"]
    else:
        assert "mosaic 1 (normal) is parked as failed" in ledger(project)["missing"]["1"]
        assert np.isnan(plane(project, "normal_aip", 1)).all()


def test_a_slice_without_any_mosaic_has_failed(pair, tmp_path: Path) -> None:
    project = stitched_project(tmp_path, [pair[0]], more=NO_VOLUMES)
    for mosaic in (MosaicId(1), MosaicId(2)):
        project.facts.withdraw(mosaic, "stitched", reason="test")
        project.facts.record(mosaic, "failed", {"detail": {"reason": "no template"}})
    bus = run(project, 1)
    assert project_progress(project).slices[0].state == "failed"
    assert "linc.oct.slice.failed" in {event.event_name() for event in bus.seen}
    assert not (project.paths.sample_folder / "slices.json").exists()


def test_a_project_of_one_illumination_gets_its_stacks(tmp_path: Path) -> None:
    only = make_slice((Picture(shape=SHAPE),), seed=4)
    project = stitched_project(tmp_path, [only, only], more=NO_VOLUMES + AS_IMAGED)
    bus = run(project, 1, 2)
    assert [s.stacked for s in project_progress(project).slices] == [True, True]
    assert project_progress(project).failures == ()
    assert "linc.oct.slice.failed" not in {event.event_name() for event in bus.seen}
    np.testing.assert_array_equal(plane(project, "normal_aip", 2), only.beams[0].intensity)


def test_volumes_that_are_stitched_later_join_the_sample_when_they_are_announced(pair, tmp_path: Path) -> None:
    project = stitched_project(tmp_path, list(pair), more=AS_IMAGED)
    run(project, 1, 2)
    assert not (project.paths.sample_folder / "normal_dBI.ome.zarr").exists()
    record_volume(project, MosaicId(3), 5.0, shape=(*SHAPE, 10))
    bus = LocalBus(project)
    bus.announce([project.event(MosaicVolumeStitched, MosaicId(3))])
    bus.run()
    shape, read = volume_reader(project.paths.sample_folder / "normal_dBI.ome.zarr")
    assert shape == (*SHAPE, 16)  # 20 um a slice, 2.5 um a plane
    column = read(slice(7, 8), slice(9, 10))[0, 0]
    assert np.isnan(column[:8]).all()
    assert (column[8:] == 5).all()
    assert [e.slice_id for e in bus.seen if e.event_name() == "linc.oct.sample.updated"] == [2]

    # Lost announcements are made good by the sweep, for slice 1 as well.
    record_volume(project, MosaicId(1), 3.0, shape=(*SHAPE, 10))
    assert [e.item for e in pending_announcements(project) if e.hierarchy == "slice"] == [SliceId(1)]
    LocalBus(project).run_until_nothing_is_pending()
    assert (read(slice(7, 8), slice(9, 10))[0, 0] == [3] * 8 + [5] * 8).all()


def test_volumes_that_are_not_in_the_sample_yet_keep_a_run_going(pair, tmp_path: Path) -> None:
    """As after a kill: the volumes were stitched last, and published, and their announcement was lost."""
    project = stitched_project(tmp_path, [pair[0]])
    run(project, 1)
    for mosaic in (MosaicId(1), MosaicId(2)):
        record_volume(project, mosaic, 5.0, shape=(*SHAPE, 10))
        for fact in ("published", "volume_published"):
            project.facts.record(mosaic, fact)
    assert project.facts.has(SliceId(1), "stacked")
    assert not is_finished(project, project.facts.snapshot())
    LocalBus(project).run_until_nothing_is_pending()
    assert is_finished(project, project.facts.snapshot())


def test_a_slice_that_is_not_stacked_yet_keeps_a_run_going(pair, tmp_path: Path) -> None:
    project = stitched_project(tmp_path, [of_two_slices(*pair)], more=NO_VOLUMES)
    bus = LocalBus(project, lose=lambda event: event.event_name() == "linc.oct.slice.failed")
    bus.announce([slice_ready(project, 1)])
    bus.run()
    for mosaic in (MosaicId(1), MosaicId(2)):
        project.facts.record(mosaic, "published")
    project.facts.withdraw(SliceId(1), "stacked", reason="test")
    assert not is_finished(project, project.facts.snapshot())
    bus.run_until_nothing_is_pending()
    assert project.facts.has(SliceId(1), "stacked")
    assert is_finished(project, project.facts.snapshot())


def test_stacking_by_hand(pair, tmp_path: Path) -> None:
    project = stitched_project(tmp_path, list(pair), more=NO_VOLUMES)
    assert stack_slices(project) is None
    run(project, 2)
    with pytest.raises(InputError, match=r"slices \[1\] are not stitched and registered; those that are: \[2\]"):
        stack_slices(project, [1, 2])
    with pytest.raises(InputError, match="leave the slice numbers out"):
        stack_slices(project, [2], rebuild=True)
    with (
        project.facts.claim(SampleId(), lease_s=60),
        pytest.raises(StateError, match=r"stacks are being updated by .*; try again later"),
    ):
        stack_slices(project)
    (project.paths.sample_folder / "stranger.txt").write_text("x")
    project.facts.record(SliceId(2), "stack_failed", {"detail": {"reason": "disk full"}})
    made = stack_slices(project, rebuild=True)
    assert made.slices == (2,)
    assert made.missing == (1,)
    assert not (project.paths.sample_folder / "stranger.txt").exists()
    assert not project.facts.has(SliceId(2), "stack_failed")
    assert not stack_slices(project).changed


def test_a_registration_that_is_to_resample_volumes_waits_for_them(pair, tmp_path: Path) -> None:
    project = stitched_project(tmp_path, [pair[0]], more="\n[processing.registration]\nresample_volumes = true\n")
    project.facts.withdraw(SliceId(1), "ready", reason="test")
    assert after_mosaic(project, MosaicId(2)) is None
    record_volume(project, MosaicId(1), 1.0, shape=(*SHAPE, 8))
    assert after_mosaic(project, MosaicId(1)) is None
    record_volume(project, MosaicId(2), 7.0, shape=(*SHAPE, 8))
    bus = LocalBus(project)
    bus.announce([project.event(MosaicVolumeStitched, MosaicId(2))])
    bus.run()
    record = project.facts.read(SliceId(1), "registered")
    shape, read = volume_reader(project.paths.absolute(record.detail["products"]["tilted_dBI"]))
    volume = read(slice(0, shape[0]), slice(0, shape[1]))
    assert shape == (*SHAPE, 8)
    np.testing.assert_allclose(volume[np.isfinite(volume)], 7.0, rtol=1e-6)
    assert np.isfinite(volume).mean() > 0.8
    # It is published with the slice's other results.
    assert (project.paths.derivative_folder / "slice_001_tilted_dBI.ome.zarr" / "zarr.json").exists()


def test_volumes_that_failed_do_not_hold_up_the_registration(pair, tmp_path: Path) -> None:
    project = stitched_project(tmp_path, [pair[0]], more="\n[processing.registration]\nresample_volumes = true\n")
    project.facts.withdraw(SliceId(1), "ready", reason="test")
    for mosaic in (MosaicId(1), MosaicId(2)):
        assert after_mosaic(project, mosaic) is None
        project.facts.record(mosaic, "volume_failed", {"detail": {"reason": "disk full"}})
    assert after_mosaic(project, MosaicId(2)) == slice_ready(project, 1)


class TestMaskOfTheRegistration:
    @staticmethod
    def maps(tmp_path: Path, pair, **tables: str) -> set[str]:
        from opticstream.pipeline.slices import _maps

        more = "".join(f"\n[processing.{table}]\n{line}\n" for table, line in tables.items())
        return set(_maps(stitched_project(tmp_path, [pair[0]], more=more), MosaicId(1)))

    def test_the_mask_of_stitching_serves_where_both_are_made_from_one_map(self, pair, tmp_path: Path) -> None:
        assert "mask" in self.maps(tmp_path, pair)

    def test_another_map_for_the_registration_gets_a_mask_of_its_own(self, pair, tmp_path: Path) -> None:
        assert "mask" not in self.maps(tmp_path, pair, registration='mask_file_type = "mip"')
        assert "mask" not in self.maps(tmp_path / "2", pair, mask='made_from = "mip"')

    def test_registered_slices_rest_on_the_choice_and_stitched_mosaics_do_not(self, pair, tmp_path: Path) -> None:
        project = stitched_project(tmp_path, [pair[0]], more=NO_VOLUMES)
        data = project.config.model_dump(mode="json")
        other = config_from_mapping(data, overrides={"mask_file_type": ""})
        assert mosaic_settings(project.config, 0).hash == mosaic_settings(other, 0).hash
        assert slice_settings(project.config).hash != slice_settings(other).hash
        stitching = config_from_mapping(data, overrides={"processing.mask.made_from": "mip"})
        assert mosaic_settings(project.config, 0).hash != mosaic_settings(stitching, 0).hash


def test_a_slice_that_kills_its_process_again_and_again_is_parked_and_the_others_go_on(pair, tmp_path, monkeypatch):
    project = stitched_project(tmp_path, [pair[0]] * 3, more=NO_VOLUMES)
    run(project, 1, 2, 3)
    for number in (2, 3):
        project.facts.withdraw(SliceId(number), "stacked", reason="test")
    project = replace(project, deployment=DeploymentSettings(lease_s=5, attempts=1, crashes=2))
    real = sample_stages.update_sample

    def dies(given):
        if given.slice_id == 2:
            os._exit(9)
        return real(given)

    monkeypatch.setattr(sample_stages, "update_sample", dies)
    for _ in range(2):
        child = os.fork()
        if not child:
            # Opened in the child: a claim names the process that opened the project.
            list(update_sample(Project.open(project.config, deployment=project.deployment)))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert not project.facts.has(SliceId(2), "stack_failed")
    list(update_sample(project))
    assert "the last 2 attempts ended with the death of their process" in project_progress(project).failures[0].reason
    assert project.facts.has(SliceId(3), "stacked")

    monkeypatch.setattr(sample_stages, "update_sample", real)
    apply_plan(project, retry_plan(project), reason="test")
    list(update_sample(project))
    assert project.facts.has(SliceId(2), "stacked")

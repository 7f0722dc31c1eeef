"""Poses of slices in the stacks: a file of their own, no slice's fault is another's, and moved slices are rewritten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opticstream.compute.sample import Pose
from opticstream.config.processing import SampleSettings
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.nifti_stack import stack_canvas
from opticstream.io.zarr import SliceStore, shrunk_planes, volume_reader
from opticstream.model.errors import InputError, StateError
from opticstream.sim.cut_sample import CutSample, CutSampleSettings
from opticstream.sim.settings import CuttingSettings
from opticstream.stages.sample import SampleInput, UpdatedSample, stacks_at_rest, update_sample
from opticstream.stages.sample._pose_book import PoseBook, stage_positions_um
from opticstream.testing.checksums import tree_checksums
from opticstream.testing.slice_phantom import make_slice

IMAGE = make_slice(seed=30).beams[0].intensity
RIGID = SampleSettings(formats=("nifti",))


def new_slice(folder: Path, slice_id: int, image: np.ndarray = IMAGE, settings: SampleSettings = RIGID) -> SampleInput:
    path = write_nifti(folder / f"aip{slice_id}.nii.gz", image.astype(np.float32), voxel_size_mm=(0.01, 0.01, 1.0))
    return SampleInput(folder / "sample", slice_id, {"normal_aip": path}, settings=settings)


def stack_of(made: UpdatedSample) -> np.ndarray:
    """Return the stack on the pixels of the first slice, without what lies around them."""
    path = made.outputs["normal_aip_nifti"]
    x, y = stack_canvas(path).low
    return np.asarray(read_nifti(path))[-x : IMAGE.shape[0] - x, -y : IMAGE.shape[1] - y]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[int, Pose]:
    """Poses that the solve gives, as the test sets them."""
    poses: dict[int, Pose] = {}

    def update(self: PoseBook, _pictures: object, _slice_id: int, *, slices: list[int], **_options: object) -> None:
        self.centre_px = (99.5, 79.5)
        self.poses = {n: poses.get(n, Pose()) for n in slices}
        self.version += 1

    monkeypatch.setattr(PoseBook, "update", update)
    return poses


def test_alignment_is_on_and_nothing_is_pulled_back() -> None:
    assert SampleSettings().align == "rigid"
    assert SampleSettings().align_pullback == 0


def test_a_bad_slice_hands_its_pose_to_no_other(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).random(IMAGE.shape)
    update_sample(new_slice(tmp_path, 1))
    bad = update_sample(new_slice(tmp_path, 2, noise))
    assert set(bad.unplaced) == {2}
    made = update_sample(new_slice(tmp_path, 3, np.roll(IMAGE, (4, -3), (0, 1))))
    np.testing.assert_allclose(made.poses[3].shift_px, [4, -3], atol=0.3)
    assert made.poses[3].sigma_px < 4 < made.poses[2].sigma_px
    assert set(made.unplaced) == {2}
    assert "compares with none of them" in made.unplaced[2]
    content = json.loads(made.outputs["poses"].read_text())
    assert {(e["first"], e["second"]) for e in content["edges"]} == {(1, 2), (2, 3), (1, 3)}
    assert content["version"] >= 2
    assert content["slices"]["3"]["sigma_px"] == made.poses[3].sigma_px


def test_edges_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opticstream.stages.sample import _pose_book

    pairs = []
    original = _pose_book.edge_between

    def counted(first: int, second: int, *args: object, **options: object) -> object:
        pairs.append((first, second))
        return original(first, second, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_pose_book, "edge_between", counted)
    for slice_id in (1, 2, 6):
        update_sample(new_slice(tmp_path, slice_id))
    assert pairs == [(1, 2)]  # sections, not files: 6 is four sections from 2
    version = json.loads((tmp_path / "sample" / "poses.json").read_text())["version"]
    update_sample(new_slice(tmp_path, 2))
    assert pairs == [(1, 2)]
    assert json.loads((tmp_path / "sample" / "poses.json").read_text())["version"] == version


def test_only_slices_that_moved_are_written_again(tmp_path: Path, told: dict[int, Pose]) -> None:
    told.update({2: Pose(0.0, (3.0, 0.0))})
    for slice_id in (1, 2):
        update_sample(new_slice(tmp_path, slice_id, IMAGE + slice_id))
    told.update({1: Pose(0.0, (0.1, 0.0)), 2: Pose(0.0, (5.0, 0.0)), 3: Pose()})
    made = update_sample(new_slice(tmp_path, 3, IMAGE + 3))
    assert made.moved == (2,)
    stack = stack_of(made)
    np.testing.assert_array_equal(stack[:, :, 0], IMAGE + np.float32(1))
    np.testing.assert_allclose(stack[:190, :, 1], (IMAGE + np.float32(2))[5:195], rtol=1e-5)
    poses = json.loads(made.outputs["slices"].read_text())["slices"]
    assert [poses[n]["pose"]["offset"][0] for n in "123"] == [0.0, 5.0, 0.0]  # as written, not as solved
    stacks_at_rest(tmp_path / "sample")()


def test_what_lies_beyond_the_first_slice_on_any_side_is_kept(tmp_path: Path, told: dict[int, Pose]) -> None:
    both = SampleSettings(formats=("nifti", "zarr"), volumes=False)
    told.update({2: Pose(0.0, (300.0, -150.0)), 3: Pose(0.0, (-20.0, 90.0))})
    for slice_id in (1, 2, 3):
        made = update_sample(new_slice(tmp_path, slice_id, IMAGE + slice_id, both))
    # The sample's pixel q is the slice's pixel q + shift.
    shape, read = volume_reader(made.outputs["normal_aip_zarr"])
    store = SliceStore.opened(made.outputs["normal_aip_zarr"])
    nifti = made.outputs["normal_aip_nifti"]
    planes = read(slice(0, shape[0]), slice(0, shape[1]))
    for stack, low in ((planes, store.canvas().low), (read_nifti(nifti), stack_canvas(nifti).low)):
        for n, (x, y) in ((1, (0, 0)), (2, (-300, 150)), (3, (20, -90))):
            part = stack[x - low[0] : x - low[0] + 200, y - low[1] : y - low[1] + 160, n - 1]
            np.testing.assert_array_equal(part, (IMAGE + n).astype(np.float32))
            assert np.isfinite(stack[:, :, n - 1]).sum() == part.size
    stacks_at_rest(tmp_path / "sample")()


def test_a_crash_while_others_are_moved_is_healed(
    tmp_path: Path, told: dict[int, Pose], monkeypatch: pytest.MonkeyPatch
) -> None:
    from opticstream.model.errors import ChangingStacksError
    from opticstream.stages.sample import _update_sample

    update_sample(new_slice(tmp_path, 1))
    told.update({1: Pose(0.0, (2.0, 0.0))})
    with monkeypatch.context() as broken:

        def crash(*_args: object) -> None:
            raise OSError("disk full")

        broken.setattr(_update_sample, "_move_slice", crash)
        with pytest.raises(OSError, match="disk full"):
            update_sample(new_slice(tmp_path, 2))
    with pytest.raises(ChangingStacksError):
        stacks_at_rest(tmp_path / "sample")
    healed = update_sample(new_slice(tmp_path, 2))
    assert healed.moved == (1,)
    stack = stack_of(healed)
    np.testing.assert_allclose(stack[:190, :, 0], IMAGE[2:192], rtol=1e-5)
    stacks_at_rest(tmp_path / "sample")()
    before = tree_checksums(tmp_path / "sample")
    assert not update_sample(new_slice(tmp_path, 2)).changed
    assert tree_checksums(tmp_path / "sample") == before


def test_a_slice_whose_files_are_gone_keeps_its_place_and_says_so(tmp_path: Path, told: dict[int, Pose]) -> None:
    update_sample(new_slice(tmp_path, 1))
    (tmp_path / "aip1.nii.gz").unlink()
    told.update({1: Pose(0.0, (2.0, 0.0))})
    made = update_sample(new_slice(tmp_path, 2))
    assert made.slices == (1, 2)
    assert "normal_aip of this slice are gone" in made.unplaced[1]
    np.testing.assert_array_equal(stack_of(made)[:, :, 0], IMAGE)


def test_the_stage_log_is_read_and_its_errors_name_the_line(tmp_path: Path) -> None:
    log = tmp_path / "stage.csv"
    settings = RIGID.model_copy(update={"stage_log": log})
    nothing = np.full(IMAGE.shape, 3.0)
    update_sample(new_slice(tmp_path, 1, settings=settings))  # the log is not there yet
    log.write_text("slice,x_um,y_um\n1,0,0\n2,100,-50\n")
    made = update_sample(new_slice(tmp_path, 2, nothing, settings))
    np.testing.assert_allclose(made.poses[2].shift_px, [-10, 5], atol=4)
    log.write_text("slice,x_um,y_um\n1,0,0\n2,far,0\n")
    with pytest.raises(InputError, match=r"stage.csv: line 3: expected a slice number .* got \['2', 'far', '0'\]"):
        stage_positions_um(log)
    log.write_text("slice,x\n1,0\n")
    with pytest.raises(InputError, match="has no column x_um, y_um; expected slice, x_um, y_um"):
        stage_positions_um(log)


def test_a_damaged_pose_file_is_named(tmp_path: Path) -> None:
    update_sample(new_slice(tmp_path, 1))
    (tmp_path / "sample" / "poses.json").write_text('{"version": 1}')
    with pytest.raises(StateError, match=r"poses.json: cannot be read .*; remove it and add the slices again"):
        update_sample(new_slice(tmp_path, 2))


def test_planes_are_means_of_squares_of_pixels(tmp_path: Path) -> None:
    values = np.random.default_rng(3).random((41, 30, 6)).astype(np.float32)
    values[0:3, 0:3] = np.nan
    values[3, 3, 2] = np.nan
    store = SliceStore(tmp_path / "v.ome.zarr", 6, (10.0, 10.0, 50.0))
    store.put(0, (41, 30), lambda xs, ys: values[xs, ys])
    out = shrunk_planes(store.path, slice(2, 5), factor=3)
    assert out.shape == (13, 10, 3)
    assert np.isnan(out[0, 0]).all()
    np.testing.assert_allclose(out[5, 4], values[15:18, 12:15, 2:5].mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(out[1, 1, 0], np.nanmean(values[3:6, 3:6, 2]), rtol=1e-6)
    np.testing.assert_array_equal(shrunk_planes(store.path, slice(0, 6)), values)


@pytest.mark.slow
def test_a_cut_sample_comes_out_straight_with_its_angles(tmp_path: Path) -> None:
    cutting = CuttingSettings(rotation_deg=1.5, shift_px=8.0, jump_px=30.0, jump_at=3, missing=(4,))
    sample = CutSample(
        CutSampleSettings(seed=7, slots=5, shape=(220, 200), imaged_um=400.0, cut_um=150.0, cutting=cutting)
    )
    assert sample.slices == (1, 2, 3, 5)
    settings = SampleSettings(formats=("zarr",))
    for n in sample.slices:
        volume = sample.volume_db(n)
        store = SliceStore(tmp_path / f"v{n}.ome.zarr", sample.planes, (10.0, 10.0, 10.0))
        store.put(0, volume.shape[:2], lambda xs, ys, volume=volume: volume[xs, ys])
        axis = sample.axis(n)
        maps = {"normal_aip": volume.mean(2), "registered_axis": axis[:, :, None, :]}
        maps["registered_inplane"] = np.degrees(np.arctan2(axis[..., 1], axis[..., 0]))
        paths = {
            name: write_nifti(tmp_path / f"{name}{n}.nii.gz", values, voxel_size_mm=(0.01, 0.01, 1.0))
            for name, values in maps.items()
        }
        new = SampleInput(tmp_path / "sample", n, paths, {}, settings, slice_thickness_um=150.0)
        update_sample(new)
        made = update_sample(replace(new, volumes={"normal_dBI": store.path}))  # volumes come later
    ledger = json.loads(made.outputs["slices"].read_text())["slices"]
    grid = np.stack(np.meshgrid(np.arange(40, 180, 20.0), np.arange(40, 160, 20.0), indexing="ij"), -1).reshape(-1, 2)
    off = []
    for n in sample.slices:
        matrix, offset = sample.pose(n)
        seen = grid @ np.array(ledger[str(n)]["pose"]["matrix"]).T + ledger[str(n)]["pose"]["offset"]
        off.append((seen - offset) @ matrix - grid)  # in the sample, where all slices may be off by the same
    assert np.hypot(*np.moveaxis(off - np.mean(off, axis=0), -1, 0)).max() < 0.4
    edges = json.loads(made.outputs["poses"].read_text())["edges"]
    assert {e["compared"] for e in edges} == {"volume"}
    shape, read = volume_reader(made.outputs["registered_inplane_zarr"])
    low = SliceStore.opened(made.outputs["registered_inplane_zarr"]).canvas().low
    angles = read(slice(0, shape[0]), slice(0, shape[1]))[-low[0] :, -low[1] :][:220, :200]
    true = sample.true_axis()
    expected = np.degrees(np.arctan2(true[..., 1], true[..., 0]))
    for n in sample.slices:
        apart = np.abs((angles[:, :, n - 1] - expected + 90) % 180 - 90)[60:160, 60:140]
        assert np.nanmedian(apart) < 0.4, n

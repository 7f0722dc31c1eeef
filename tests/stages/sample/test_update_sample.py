"""Stacks of the sample: every slice in its place, gaps listed, nothing rewritten that did not change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opticstream.config.processing import SampleIntensitySettings, SampleSettings
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.zarr import SliceStore, volume_reader
from opticstream.model.errors import InputError, MissingInputError, StateError
from opticstream.stages.sample import SampleInput, UpdatedSample, _stacks, update_sample
from opticstream.testing.checksums import tree_checksums
from opticstream.testing.slice_phantom import make_slice

PHANTOM = make_slice(seed=30)
AXIS = PHANTOM.axis.astype(np.float32)


def slice_input(folder: Path, slice_id: int, *, value: float = 0.0, **options: object) -> SampleInput:
    """Return a slice whose maps hold its number, so that a mix-up shows."""
    intensity = PHANTOM.beams[0].intensity + np.float32(100 * slice_id + value)
    angle = np.full((200, 160), 10.0 * slice_id, np.float32)
    maps = {
        "normal_aip": write_nifti(folder / f"aip{slice_id}.nii.gz", intensity, voxel_size_mm=(0.01, 0.01, 1.0)),
        "registered_inplane": write_nifti(folder / f"in{slice_id}.nii.gz", angle, voxel_size_mm=(0.01, 0.01, 1.0)),
        "registered_axis": write_nifti(
            folder / f"axis{slice_id}.nii.gz", AXIS[:, :, None, :], voxel_size_mm=(0.01, 0.01, 1.0)
        ),
        "registered_flags": write_nifti(
            folder / f"flags{slice_id}.nii.gz", np.full((200, 160), slice_id, np.uint8), voxel_size_mm=(0.01, 0.01, 1.0)
        ),
    }
    settings = SampleSettings(align="none")
    return SampleInput(
        folder / "sample",
        slice_id,
        maps,
        **{"settings": settings, "slice_thickness_um": 300.0, **options},  # type: ignore[arg-type]
    )


def stack(result: UpdatedSample, name: str) -> np.ndarray:
    shape, read = volume_reader(result.outputs[f"{name}_zarr"])
    return read(slice(0, shape[0]), slice(0, shape[1]))


def test_slices_lie_in_their_places_and_gaps_are_listed(tmp_path: Path) -> None:
    update_sample(slice_input(tmp_path, 1))
    result = update_sample(slice_input(tmp_path, 4, failed={2: "mosaic 3 is parked as failed"}, expected=5))
    assert result.slices == (1, 4)
    assert result.missing == (2, 3, 5)
    ledger = json.loads(result.outputs["slices"].read_text())
    assert ledger["missing"] == {
        "2": "mosaic 3 is parked as failed",
        "3": "not registered yet",
        "5": "not registered yet",
    }
    for planes in (stack(result, "normal_aip"), read_nifti(result.outputs["normal_aip_nifti"])):
        assert planes.shape == (200, 160, 4)
        np.testing.assert_array_equal(planes[:, :, 3], PHANTOM.beams[0].intensity + np.float32(400))
        np.testing.assert_array_equal(planes[:, :, 0], PHANTOM.beams[0].intensity + np.float32(100))
        assert np.isnan(planes[:, :, 1:3]).all()
    assert (stack(result, "registered_flags")[:, :, 1] == 0).all()


def test_the_order_of_arrival_does_not_show(tmp_path: Path) -> None:
    for name, order in (("a", (1, 2, 3)), ("b", (3, 1, 2)), ("c", (2, 3, 2, 1, 3))):
        folder = tmp_path / name
        for slice_id in order:
            update_sample(slice_input(folder, slice_id, expected=3))
    first = tree_checksums(tmp_path / "a" / "sample")
    assert len(first) > 10
    assert tree_checksums(tmp_path / "b" / "sample") == first
    assert tree_checksums(tmp_path / "c" / "sample") == first


def test_adding_a_slice_leaves_the_data_of_the_others_untouched(tmp_path: Path) -> None:
    for slice_id in (1, 2):
        update_sample(slice_input(tmp_path, slice_id))
    folder = tmp_path / "sample"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("c/**/*") if p.is_file()}
    assert before
    nifti = folder / "normal_aip.nii"
    planes, inode = nifti.read_bytes()[352:], nifti.stat().st_ino
    update_sample(slice_input(tmp_path, 3))
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert nifti.stat().st_ino == inode
    assert nifti.read_bytes()[352:].startswith(planes)
    assert nifti.stat().st_size == 352 + len(planes) * 3 // 2


def test_the_same_slice_again_changes_nothing(tmp_path: Path) -> None:
    update_sample(slice_input(tmp_path, 1))
    folder = tmp_path / "sample"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.ome.zarr/**/*") if p.is_file()}
    again = update_sample(slice_input(tmp_path, 1))
    assert not again.changed
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_reprocessed_slice_replaces_its_own_part_only(tmp_path: Path) -> None:
    for slice_id in (1, 2, 3):
        update_sample(slice_input(tmp_path, slice_id))
    folder = tmp_path / "sample"
    before = tree_checksums(folder)
    result = update_sample(slice_input(tmp_path, 2, value=7.0))
    after = tree_checksums(folder)
    told = {"preview.jpg", "report.html", "slices.csv", *(n for n in {*before, *after} if n.startswith("report/"))}
    changed = {name for name in after if name not in told and before[name] != after[name]}
    chunks = {name for name in before if name.startswith("normal_aip.ome.zarr/") and "/c/1/" in name}
    assert len(chunks) >= 2
    assert changed == {*chunks, "normal_aip.nii", "slices.json"}
    planes = read_nifti(result.outputs["normal_aip_nifti"])
    np.testing.assert_array_equal(planes[:, :, 1], PHANTOM.beams[0].intensity + np.float32(207))
    np.testing.assert_array_equal(planes[:, :, 2], PHANTOM.beams[0].intensity + np.float32(300))


def test_a_crash_in_the_middle_leaves_this_slice_missing_and_is_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update_sample(slice_input(tmp_path, 1))
    original = SliceStore.put

    def crash(self: SliceStore, *args: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(SliceStore, "put", crash)
    with pytest.raises(OSError, match="disk full"):
        update_sample(slice_input(tmp_path, 2))
    ledger = json.loads((tmp_path / "sample" / "slices.json").read_text())
    assert ledger["slices"]["1"]["state"] == "present"
    assert "2" in ledger["missing"]
    monkeypatch.setattr(SliceStore, "put", original)
    healed = update_sample(slice_input(tmp_path, 2))
    assert healed.slices == (1, 2)
    straight = tmp_path / "straight"
    for slice_id in (1, 2):
        update_sample(slice_input(straight, slice_id))
    assert tree_checksums(tmp_path / "sample") == tree_checksums(straight / "sample")


def test_volumes_join_to_one_store_and_may_come_later(tmp_path: Path) -> None:
    # 0.3 mm of tissue a slice, 0.05 mm a plane: 6 planes; deeper ones belong to the next slice.
    for slice_id in (1, 2):
        volume = np.full((70, 50, 9), float(slice_id), np.float32)
        store = SliceStore(tmp_path / f"v{slice_id}.ome.zarr", 9, (10.0, 10.0, 50.0))
        store.put(0, (70, 50), lambda xs, ys, volume=volume: volume[xs, ys])
        as_imaged = SampleSettings(align="none", intensity=SampleIntensitySettings(enabled=False))
        new = slice_input(tmp_path, slice_id, settings=as_imaged)
        update_sample(new)
        result = update_sample(
            SampleInput(
                new.folder, slice_id, new.maps, {"normal_dBI": store.path}, new.settings, slice_thickness_um=300.0
            )
        )
        assert result.changed
    planes = stack(result, "normal_dBI")
    assert planes.shape == (70, 50, 12)
    np.testing.assert_array_equal(planes[3, 3], [1] * 6 + [2] * 6)
    ledger = json.loads(result.outputs["slices"].read_text())
    assert "normal_dBI" in ledger["slices"]["2"]["stacks"]


def test_only_the_planes_of_a_section_are_read_and_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SliceStore(tmp_path / "v.ome.zarr", 40, (10.0, 10.0, 50.0))
    store.put(0, (200, 160), lambda xs, ys: np.ones((xs.stop - xs.start, ys.stop - ys.start, 40), np.float32))
    new = slice_input(tmp_path, 1, settings=SampleSettings())
    moved: list[tuple[int, ...]] = []
    real = _stacks.resampled
    monkeypatch.setattr(
        _stacks, "resampled", lambda image, *a, **more: moved.append(np.shape(image)) or real(image, *a, **more)
    )
    result = update_sample(
        replace(new, maps={"normal_aip": new.maps["normal_aip"]}, volumes={"normal_R3D": store.path})
    )
    assert 6 <= len(moved) < 12, "0.3 mm are six planes of 40; the map besides"
    assert stack(result, "normal_R3D").shape[2] == 6


def test_a_larger_slice_makes_the_stack_larger(tmp_path: Path) -> None:
    update_sample(slice_input(tmp_path, 1))
    large = write_nifti(tmp_path / "l.nii.gz", np.ones((230, 150), np.float32), voxel_size_mm=(0.01, 0.01, 1.0))
    still = SampleSettings(align="none")
    result = update_sample(
        SampleInput(tmp_path / "sample", 2, {"normal_aip": large}, {}, still, slice_thickness_um=300.0)
    )
    for planes in (stack(result, "normal_aip"), read_nifti(result.outputs["normal_aip_nifti"])):
        assert planes.shape == (230, 160, 2)
        np.testing.assert_array_equal(planes[:200, :, 0], PHANTOM.beams[0].intensity + np.float32(100))
        assert np.isnan(planes[200:, :, 0]).all()
        assert (planes[:, :150, 1] == 1).all()
        assert np.isnan(planes[:, 150:, 1]).all()


def test_stacks_are_valid_ome_zarr_with_true_voxel_sizes(tmp_path: Path) -> None:
    import zarr
    from ome_zarr_models.v05.image import Image

    result = update_sample(slice_input(tmp_path, 1))
    for name in ("normal_aip", "registered_axis"):
        group = zarr.open_group(result.outputs[f"{name}_zarr"], mode="r")
        image = Image.from_zarr(group)
        multiscale = image.attributes.ome.multiscales[0]
        scale = multiscale.datasets[0].coordinateTransformations[0].scale
        assert scale[-3:] == [300.0, 10.0, 10.0]
        assert [axis.unit for axis in multiscale.axes if axis.type == "space"] == ["micrometer"] * 3
    coarse = zarr.open_group(result.outputs["registered_axis_zarr"], mode="r")["1"][:]
    np.testing.assert_allclose(np.linalg.norm(coarse, axis=0), 1, atol=1e-5)


def test_aligned_slices_come_to_lie_over_each_other(tmp_path: Path) -> None:
    settings = SampleSettings(align="rigid", formats=("zarr",))
    shifts = {1: (0, 0), 2: (4, -3), 3: (-3, 5)}
    for slice_id, shift in shifts.items():
        image = np.roll(PHANTOM.beams[0].intensity, shift, (0, 1))
        angle = np.full((200, 160), 30.0, np.float32)
        maps = {
            "normal_aip": write_nifti(tmp_path / f"a{slice_id}.nii.gz", image, voxel_size_mm=(0.01, 0.01, 1)),
            "registered_inplane": write_nifti(tmp_path / f"i{slice_id}.nii.gz", angle, voxel_size_mm=(0.01, 0.01, 1)),
        }
        result = update_sample(SampleInput(tmp_path / "sample", slice_id, maps, settings=settings))
    low = SliceStore.opened(result.outputs["normal_aip_zarr"]).canvas().low
    assert low == (-64, -64)
    planes = stack(result, "normal_aip")[84:244, 84:204]
    for k in (1, 2):
        both = np.isfinite(planes[:, :, k])
        assert np.corrcoef(planes[:, :, 0][both], planes[:, :, k][both])[0, 1] > 0.8
    poses = json.loads(result.outputs["slices"].read_text())["slices"]
    np.testing.assert_allclose(poses["2"]["pose"]["offset"], [4, -3], atol=0.6)
    np.testing.assert_allclose(poses["3"]["pose"]["offset"], [-3, 5], atol=0.8)
    assert poses["2"]["pose"]["failure"] == ""


@pytest.mark.parametrize(("pullback", "expected"), [(0.0, [0, 3, 6, 9]), (0.2, [0, 2.4, 4.32, 5.86])])
def test_the_leash_keeps_a_chain_of_slices_from_drifting_away(
    tmp_path: Path, pullback: float, expected: list[float]
) -> None:
    settings = SampleSettings(align="translation", align_pullback=pullback, formats=("nifti",))
    for slice_id in (1, 2, 3, 4):
        image = np.roll(PHANTOM.beams[0].intensity, 3 * (slice_id - 1), 0)
        path = write_nifti(tmp_path / f"a{slice_id}.nii.gz", image, voxel_size_mm=(0.01, 0.01, 1.0))
        made = update_sample(SampleInput(tmp_path / "sample", slice_id, {"normal_aip": path}, settings=settings))
    slices = json.loads(made.outputs["slices"].read_text())["slices"]
    np.testing.assert_allclose([slices[str(n)]["pose"]["offset"][0] for n in (1, 2, 3, 4)], expected, atol=0.4)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"slice 2: normal_aip is missing: .*gone.nii"):
        update_sample(SampleInput(tmp_path / "sample", 2, {"normal_aip": tmp_path / "gone.nii"}))
    with pytest.raises(InputError, match="slice 2: there is nothing to add"):
        update_sample(SampleInput(tmp_path / "sample", 2, {}))
    update_sample(slice_input(tmp_path, 1))
    other = write_nifti(tmp_path / "o.nii.gz", np.ones((20, 20), np.float32), voxel_size_mm=(0.05, 0.05, 1.0))
    with pytest.raises(InputError, match=r"holds voxels of 0\.01 x 0\.01 x 0\.3 mm"):
        update_sample(SampleInput(tmp_path / "sample", 2, {"normal_aip": other}, slice_thickness_um=300.0))
    (tmp_path / "sample" / "slices.json").write_text("{")
    with pytest.raises(StateError, match=r"slices.json: cannot be read"):
        update_sample(slice_input(tmp_path, 1))


def test_the_preview_shows_three_views(tmp_path: Path) -> None:
    from PIL import Image

    for slice_id in (1, 2):
        result = update_sample(slice_input(tmp_path, slice_id))
    assert result.preview is not None
    with Image.open(result.preview) as picture:
        assert picture.width > 200 + 200 + 160
        assert np.asarray(picture).std() > 20

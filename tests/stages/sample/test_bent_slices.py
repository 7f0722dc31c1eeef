"""Bent slices: their tissue comes together in the stacks, slices without a bend stay as they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from scipy import ndimage

from opticstream.compute.sample import Pose, SliceBend
from opticstream.config.processing import SampleIntensitySettings, SampleSettings
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.nifti_stack import stack_canvas
from opticstream.io.zarr import SliceStore, volume_reader
from opticstream.sim.cut_sample import CutSample, CutSampleSettings
from opticstream.sim.settings import CuttingSettings
from opticstream.stages.sample import SampleInput, UpdatedSample, update_sample
from opticstream.stages.sample._pose_book import PoseBook, bend_from_facts, facts_of_bend
from opticstream.testing.checksums import tree_checksums

SHAPE = (200, 160)
IMAGE = np.random.default_rng(3).normal(50, 8, SHAPE).astype(np.float32)


def shifted(x_px: float, y_px: float = 0.0) -> SliceBend:
    """Return a bend that is the same everywhere."""
    nodes = np.broadcast_to(np.array([x_px, y_px])[:, None, None], (2, 9, 8)).copy()
    return SliceBend((-100.0, -100.0), 60.0, nodes, 0.05, (0.5, 1.0))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[int, SliceBend]:
    """Bends that the solve gives, as the test sets them; all poses are the same."""
    bends: dict[int, SliceBend] = {}

    def update(self: PoseBook, _pictures: object, _slice_id: int, *, slices: list[int], **_options: object) -> None:
        self.centre_px = (99.5, 79.5)
        self.poses = {n: Pose() for n in slices}
        self.bends = {n: bend for n, bend in bends.items() if n in slices}
        self.version += 1

    monkeypatch.setattr(PoseBook, "update", update)
    return bends


def new_slice(folder: Path, slice_id: int) -> SampleInput:
    path = write_nifti(folder / f"aip{slice_id}.nii.gz", IMAGE + slice_id, voxel_size_mm=(0.01, 0.01, 1.0))
    return SampleInput(folder / "sample", slice_id, {"normal_aip": path}, settings=SampleSettings(formats=("nifti",)))


def stack_of(made: UpdatedSample) -> np.ndarray:
    """Return the stack on the pixels of the first slice."""
    path = made.outputs["normal_aip_nifti"]
    x, y = stack_canvas(path).low
    return np.asarray(read_nifti(path))[-x : SHAPE[0] - x, -y : SHAPE[1] - y]


def pose_of(made: UpdatedSample, slice_id: int) -> dict[str, object]:
    return dict(json.loads(made.outputs["slices"].read_text())["slices"][str(slice_id)]["pose"])


def test_a_slice_is_written_where_its_bend_has_it(tmp_path: Path, told: dict[int, SliceBend]) -> None:
    told[2] = shifted(3.0)
    for n in (1, 2):
        made = update_sample(new_slice(tmp_path, n))
    np.testing.assert_array_equal(stack_of(made)[:, :, 0], IMAGE + 1)
    np.testing.assert_allclose(stack_of(made)[:190, :, 1], (IMAGE + 2)[3:193], rtol=1e-4)
    assert "bend" not in pose_of(made, 1)
    assert bend_from_facts(pose_of(made, 2)["bend"]).at([[0, 0]]) == pytest.approx(np.array([[3.0, 0.0]]))  # type: ignore[arg-type]
    book = PoseBook.read(made.outputs["poses"])
    assert {n: facts_of_bend(bend) for n, bend in book.bends.items()} == {2: facts_of_bend(told[2])}
    rows = list(csv.DictReader(made.outputs["slice_table"].read_text().splitlines()))
    assert [row["bend_largest [px]"] for row in rows] == ["", "1.0"]
    assert "0.50 (1.0)" in made.outputs["report"].read_text()


def test_only_slices_whose_bend_changed_are_written_again(tmp_path: Path, told: dict[int, SliceBend]) -> None:
    told.update({2: shifted(3.0), 3: shifted(-2.0)})
    for n in (1, 2, 3):
        update_sample(new_slice(tmp_path, n))
    told.update({2: shifted(3.1), 3: shifted(-2.0, 0.4)})
    made = update_sample(new_slice(tmp_path, 4))
    assert made.moved == (3,)
    assert pose_of(made, 2)["bend"]["nodes_px"][0] == 3.0, "as it was written"  # type: ignore[index]
    told.clear()
    made = update_sample(new_slice(tmp_path, 5))
    assert made.moved == (2, 3)
    assert "bend" not in pose_of(made, 2)
    np.testing.assert_array_equal(stack_of(made)[:, :, 1], IMAGE + 2)


def volume_slice(folder: Path, sample: CutSample, slice_id: int, settings: SampleSettings) -> SampleInput:
    volume = sample.volume_db(slice_id)
    store = SliceStore(folder / f"v{slice_id}.ome.zarr", volume.shape[2], (10.0, 10.0, 10.0))
    store.put(0, volume.shape[:2], lambda xs, ys: volume[xs, ys])
    axis = write_nifti(
        folder / f"axis{slice_id}.nii.gz", sample.axis(slice_id)[:, :, None], voxel_size_mm=(0.01, 0.01, 0.2)
    )
    return SampleInput(
        folder / "sample",
        slice_id,
        {"registered_axis": axis},
        {"normal_dBI": store.path},
        settings,
        slice_thickness_um=200.0,
    )


def bent_sample(bend_um: float) -> CutSample:
    cutting = CuttingSettings(rotation_deg=0.5, shift_px=4.0, distortion_um=bend_um)
    return CutSample(
        CutSampleSettings(seed=31, slots=2, shape=(200, 180), imaged_um=400.0, cut_um=200.0, cutting=cutting)
    )


@pytest.mark.slow
@pytest.mark.parametrize("even", [True, False])
def test_tissue_and_axes_of_a_bent_slice_come_together(tmp_path: Path, even: bool) -> None:
    sample = bent_sample(60.0)
    settings = SampleSettings(intensity=SampleIntensitySettings(enabled=even))
    off = {}
    for bends in ("off", "auto"):
        folder = tmp_path / bends
        folder.mkdir()
        chosen = settings.model_copy(update={"bends": bends})
        for n in (1, 2):
            made = update_sample(volume_slice(folder, sample, n, chosen))
        planes = read_zarr(made.outputs["normal_dBI_zarr"])
        true = sample.tissue_db(slice(20, 32)).astype(float)
        inner = np.zeros(true.shape[:2], bool)
        inner[40:-40, 40:-40] = True
        inner &= true.min(2) > -20
        seen, goal = (fine(image) for image in (planes[:200, :180, 20:32].mean(2), true.mean(2)))
        axis = read_axes(made.outputs["registered_axis_zarr"])[:200, :180, 1]
        turn = np.abs((axis * sample.true_axis()).sum(-1))[inner]
        off[bends] = (
            np.corrcoef(seen[inner], goal[inner])[0, 1],
            np.degrees(np.arccos(np.clip(turn, 0, 1))).mean(),
            made,
        )
    assert 1 - off["auto"][0] < 0.8 * (1 - off["off"][0])
    assert off["auto"][1] < 0.6 * off["off"][1]
    made = off["auto"][2]
    assert set(PoseBook.read(made.outputs["poses"]).bends) == {2}
    scene = json.loads((made.outputs["normal_dBI_scene"] / "zarr.json").read_text())["attributes"]["ome"]["scene"]
    (last,) = (one for one in scene["coordinateTransformations"] if one["type"] == "displacements")
    assert last["output"] == {"name": "sample"}
    assert (made.outputs["normal_dBI_scene"] / last["path"] / "zarr.json").exists()
    assert "displacements" not in json.dumps(
        json.loads((off["off"][2].outputs["normal_dBI_scene"] / "zarr.json").read_text())
    )


def read_zarr(path: Path) -> np.ndarray:
    """Return a stack from the sample's first pixel on."""
    store = SliceStore.opened(path)
    x, y = store.canvas().low
    shape, read = volume_reader(path)
    return np.asarray(read(slice(-x, shape[0]), slice(-y, shape[1])), float)


def fine(image: np.ndarray) -> np.ndarray:
    """Return what an image has beside its large structures."""
    return np.asarray(image - ndimage.gaussian_filter(np.nan_to_num(image, nan=-40.0), 5.0))


def read_axes(path: Path) -> np.ndarray:
    """Return a stack of axis vectors (x, y, slices, 3) from the sample's first pixel on."""
    x, y = SliceStore.opened(path).canvas().low
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "0")}}
    array = np.asarray(ts.open(spec).result().read().result(), float)
    return array.transpose(3, 2, 1, 0)[-x:, -y:]


@pytest.mark.slow
def test_stacks_without_a_bend_are_the_same_bytes_with_and_without_the_setting(tmp_path: Path) -> None:
    sample, sums = bent_sample(0.0), []
    for bends in ("off", "auto"):
        folder = tmp_path / bends
        folder.mkdir()
        for n in (1, 2):
            made = update_sample(volume_slice(folder, sample, n, SampleSettings(bends=bends)))  # type: ignore[arg-type]
        stacks = [path for name, path in made.outputs.items() if name.endswith("_zarr")]
        sums.append({path.name: tree_checksums(path) for path in stacks})
    assert {"normal_dBI", "registered_axis"} <= {name.partition(".")[0] for name in sums[0]}
    assert sums[0] == sums[1]

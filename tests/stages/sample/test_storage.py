"""Stacks, their cubes and their scene: grown by slabs, the same bytes after a kill, nothing of other slices touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import tensorstore as ts

from opticstream.config.processing import SampleIntensitySettings, SampleSettings
from opticstream.io.nifti import write_nifti
from opticstream.io.zarr import ISOTROPIC_UM, SliceStore, open_zarr_image, volume_reader, write_isotropic
from opticstream.model.errors import FileFormatError
from opticstream.stages.sample import SampleInput, update_sample
from opticstream.testing.checksums import tree_checksums

PLAIN = SampleSettings(align="none", formats=("zarr",), intensity=SampleIntensitySettings(enabled=False))


def new_slice(folder: Path, slice_id: int, settings: SampleSettings = PLAIN) -> SampleInput:
    rng = np.random.default_rng(slice_id)
    volume = (60 + rng.normal(size=(60, 50, 24))).astype(np.float32)
    folder.mkdir(exist_ok=True)
    path = folder / f"aip{slice_id}.nii.gz"
    store = SliceStore(folder / f"v{slice_id}.ome.zarr", 24, (10.0, 10.0, 10.0))
    if not path.exists():
        write_nifti(path, volume.mean(2), voxel_size_mm=(0.01, 0.01, 0.13))
        store.put(0, (60, 50), lambda xs, ys: volume[xs, ys])
    volumes = {"normal_dBI": store.path}
    return SampleInput(
        folder / "sample", slice_id, {"normal_aip": path}, volumes, settings=settings, slice_thickness_um=130.0
    )


def level(path: Path, number: int) -> np.ndarray:
    array = open_zarr_image(path / str(number)).array
    return np.asarray(array.read().result()).transpose(2, 1, 0)


def test_cubes_are_means_of_what_lies_in_them(tmp_path: Path) -> None:
    for n in (1, 2):
        made = update_sample(new_slice(tmp_path, n))
    shape, read = volume_reader(made.outputs["normal_dBI_zarr"])
    stack = read(slice(0, shape[0]), slice(0, shape[1]))
    cubes = made.outputs["normal_dBI_isotropic"]
    assert ISOTROPIC_UM == (25.0, 50.0, 100.0)
    np.testing.assert_allclose(level(cubes, 1)[:12, :10, :5], _means(stack, 5)[:12, :10, :5], atol=1e-4)
    np.testing.assert_allclose(level(cubes, 2)[:6, :5, :2], _means(stack, 10)[:6, :5, :2], atol=1e-4)
    # 25 um are two voxels and a half.
    two_and_half = np.array([1, 1, 0.5]) / 2.5
    expected = np.einsum("i,j,k,ijk->", two_and_half, two_and_half, two_and_half, stack[:3, :3, :3])
    assert level(cubes, 0)[0, 0, 0] == pytest.approx(expected, abs=1e-4)
    assert shape[2] == 26
    assert level(cubes, 2).shape == (6, 5, 3)


def _means(stack: np.ndarray, side: int) -> np.ndarray:
    n = [size // side for size in stack.shape]
    whole = stack[: n[0] * side, : n[1] * side, : n[2] * side]
    return whole.reshape(n[0], side, n[1], side, n[2], side).mean((1, 3, 5))


def test_angles_are_averaged_as_axes(tmp_path: Path) -> None:
    store = SliceStore(tmp_path / "o.ome.zarr", 10, (50.0, 50.0, 50.0), "axial")
    angles = np.where(np.arange(10) % 2, 80.0, -80.0).astype(np.float32)
    store.put(0, (4, 4), lambda xs, ys: np.broadcast_to(angles, (4, 4, 10)))
    cubes = write_isotropic(store.path, tmp_path / "cubes.ome.zarr", [1])
    np.testing.assert_allclose(np.abs(level(cubes, 2)), 90, atol=1e-3)
    vectors = SliceStore(tmp_path / "v.ome.zarr", 2, (50.0, 50.0, 50.0), "vector")
    vectors.put(0, (4, 4), lambda xs, ys: np.zeros((4, 4, 2, 3), np.float32))
    with pytest.raises(FileFormatError, match="expected scalars or angles, got vector values"):
        write_isotropic(vectors.path, tmp_path / "none.ome.zarr", [1])


def test_a_new_slice_leaves_what_is_far_from_it_untouched(tmp_path: Path) -> None:
    for n in range(1, 8):
        update_sample(new_slice(tmp_path, n))
    folder = tmp_path / "sample"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("c/**/*") if p.is_file()}
    update_sample(new_slice(tmp_path, 8))
    touched = {p for p in before if p.stat().st_mtime_ns != before[p]}
    # 7 slices of 130 um end at 910 um: only the pieces of 400 um that hold this plane are written again.
    assert touched
    assert all("isotropic" in str(p) for p in touched)
    assert {int(p.relative_to(folder).parts[4]) for p in touched} == {2}


def test_volumes_of_an_older_format_have_no_place_in_a_scene(tmp_path: Path) -> None:
    old = new_slice(tmp_path, 1)
    volume = old.volumes["normal_dBI"]
    values = level(volume, 0).T
    ome = json.loads((volume / "zarr.json").read_text())["attributes"]["ome"]
    shutil.rmtree(volume)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{volume}/0"}, "dtype": "float32"}
    ts.open(spec, create=True, shape=values.shape).result().write(values).result()
    multiscale = ome["multiscales"][0] | {"version": "0.4", "datasets": ome["multiscales"][0]["datasets"][:1]}
    (volume / ".zattrs").write_text(json.dumps({"multiscales": [multiscale]}))
    (volume / ".zgroup").write_text('{"zarr_format": 2}')
    assert "normal_dBI_scene" not in update_sample(old).outputs
    made = update_sample(new_slice(tmp_path, 2))
    facts = json.loads((made.outputs["normal_dBI_scene"] / "zarr.json").read_text())
    (transform,) = facts["attributes"]["ome"]["scene"]["coordinateTransformations"]
    assert transform["input"]["path"] == "slice_002"


def test_the_scene_places_the_volumes_of_the_slices_without_a_copy(tmp_path: Path) -> None:
    for n in (1, 2):
        update_sample(new_slice(tmp_path, n))
    scene = tmp_path / "sample" / "scenes" / "normal_dBI_scene.ome.zarr"
    ome = json.loads((scene / "zarr.json").read_text())["attributes"]["ome"]
    assert ome["version"] == "0.6"
    assert [system["name"] for system in ome["scene"]["coordinateSystems"]] == ["sample"]
    second = ome["scene"]["coordinateTransformations"][1]
    assert (second["type"], second["input"], second["output"]) == (
        "affine",
        {"path": "slice_002", "name": "physical"},
        {"name": "sample"},
    )
    assert second["affine"] == [[1, 0, 0, 130], [0, 1, 0, 0], [0, 0, 1, 0]]
    image = json.loads((scene / "slice_002" / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    transform = image["datasets"][0]["coordinateTransformations"][0]
    assert (transform["input"], transform["output"]) == ({"path": "0"}, {"name": "physical"})
    assert (scene / "slice_002" / "0").is_symlink()
    np.testing.assert_array_equal(level(scene / "slice_002", 0), level(tmp_path / "v2.ome.zarr", 0))


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from opticstream.io import atomic
from opticstream.io.zarr import _slices, _isotropic
from opticstream.stages.sample import update_sample
import test_storage

left = [int(sys.argv[2])]

def counted(original):
    def call(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)
    return call

_slices.SliceStore._write = counted(_slices.SliceStore._write)
_isotropic._write_boxes = counted(_isotropic._write_boxes)
update_sample(test_storage.new_slice(Path(sys.argv[1]), 3))
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_kill_in_the_middle_changes_no_byte_of_the_end(tmp_path: Path, at: int) -> None:
    for name in ("killed", "straight"):
        for n in (1, 2):
            update_sample(new_slice(tmp_path / name, n))
        new_slice(tmp_path / name, 3)
    code = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent))
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "killed"), str(at)], timeout=300, check=False)
    assert ended.returncode == -signal.SIGKILL
    for name in ("killed", "straight"):
        update_sample(new_slice(tmp_path / name, 3))
    assert tree_checksums(tmp_path / "killed" / "sample") == tree_checksums(tmp_path / "straight" / "sample")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_an_error_in_the_middle_changes_no_byte_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    boxes = "opticstream.io.zarr._isotropic._write_boxes"
    for name in ("stopped", "straight"):
        for n in (1, 2):
            update_sample(new_slice(tmp_path / name, n))
        new_slice(tmp_path / name, 3)  # its own volume is whole
    left = [at]

    def counted(original):  # type: ignore[no-untyped-def]
        def call(*args: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise OSError("disk full")
            return original(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(SliceStore, "_write", counted(SliceStore._write))
        patch.setattr(boxes, counted(resolve_name(boxes)))
        with pytest.raises(OSError, match="disk full"):
            update_sample(new_slice(tmp_path / "stopped", 3))
    for name in ("stopped", "straight"):
        update_sample(new_slice(tmp_path / name, 3))
    assert tree_checksums(tmp_path / "stopped" / "sample") == tree_checksums(tmp_path / "straight" / "sample")
    assert not os.path.exists(tmp_path / "stopped" / "sample" / "isotropic.json")

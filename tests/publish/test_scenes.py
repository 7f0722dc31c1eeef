"""Scenes in the archive: readable by themselves, without the fine levels, and with the names of the volumes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from opticstream.io.zarr import (
    DisplacementField,
    PlacedVolume,
    SliceStore,
    volume_reader,
    write_displacements,
    write_scene,
)
from opticstream.model.errors import ChangingStacksError
from opticstream.publish.scenes import is_scene, publish_scene
from opticstream.testing.checksums import tree_checksums

BESIDE = "derivative/sub-01"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A scene of two slices, of which the first is published, with a bent way to another space."""
    archive = tmp_path / "archive" / BESIDE
    paths = archive / "mosaic_001_dBI.ome.zarr", tmp_path / "mosaic_003_dBI.ome.zarr"
    for n, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(n).random((700, 60, 4)).astype(np.float32)
        SliceStore(path, 4, (10.0, 10.0, 40.0)).put(0, (700, 60), lambda xs, ys, values=values: values[xs, ys])
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "v1.ome.zarr").symlink_to(paths[0])
    field = DisplacementField(np.ones((3, 4, 5, 6), np.float32), (100.0,) * 3, (0.0,) * 3)
    write_displacements(tmp_path / "project" / "mri.ome.zarr", field, space="sample")
    moved = np.array([[1, 0, 0, 40], [0, 0.8, -0.6, 7], [0, 0.6, 0.8, -9]])
    way = {
        "type": "displacements",
        "input": {"name": "sample"},
        "output": {"name": "mri"},
        "path": "coordinateTransformations/mri",
    }
    return write_scene(
        tmp_path / "project" / "normal_dBI_scene.ome.zarr",
        {
            "slice_001": PlacedVolume(tmp_path / "project" / "v1.ome.zarr", np.eye(3, 4)),
            "slice_002": PlacedVolume(paths[1], moved),
        },
        more=[way],
        fields={"mri": tmp_path / "project" / "mri.ome.zarr"},
    )


def published(scene: Path, tmp_path: Path) -> Path:
    target = tmp_path / "archive" / BESIDE / scene.name
    return publish_scene(scene, target, lambda: None, tmp_path / "archive")


def test_a_published_scene_needs_nothing_else(scene: Path, tmp_path: Path) -> None:
    assert is_scene(scene)
    assert not is_scene(tmp_path / "mosaic_003_dBI.ome.zarr")
    out = published(scene, tmp_path)
    assert is_scene(out)
    assert not any(path.is_symlink() for path in out.rglob("*"))
    root = zarr.open_group(out, mode="r")
    assert root.attrs["ome"] == json.loads((scene / "zarr.json").read_text())["attributes"]["ome"]
    for entry in root.attrs["ome"]["scene"]["coordinateTransformations"][:2]:
        image = root[entry["input"]["path"]]
        levels = image.attrs["ome"]["multiscales"][0]["datasets"]
        assert [level["path"] for level in levels] == ["1", "2"], "350 and 175 px; 700 px are the volume's own"
        coarse = image["1"][:].transpose(2, 1, 0)
        source = tmp_path / (
            "mosaic_003_dBI.ome.zarr" if "2" in image.name else f"archive/{BESIDE}/mosaic_001_dBI.ome.zarr"
        )
        shape, read = volume_reader(source)
        fine = read(slice(0, shape[0]), slice(0, shape[1]))
        np.testing.assert_allclose(coarse, fine.reshape(350, 2, 30, 2, 4).mean((1, 3)), rtol=1e-5)
    np.testing.assert_array_equal(root["coordinateTransformations/mri/0"][:], np.ones((3, 4, 5, 6)))
    told = [root[f"slice_00{n}"].attrs.get("opticstream") for n in (1, 2)]
    assert told == [{"volume": "../mosaic_001_dBI.ome.zarr", "levels_that_only_the_volume_has": 1}, None]


def test_the_same_scene_again_is_the_same_and_another_one_takes_its_place(scene: Path, tmp_path: Path) -> None:
    out = published(scene, tmp_path)
    before = tree_checksums(out)
    assert tree_checksums(published(scene, tmp_path)) == before
    write_scene(scene, {"slice_002": PlacedVolume(tmp_path / "mosaic_003_dBI.ome.zarr", np.eye(3, 4))})
    with pytest.raises(ChangingStacksError):
        publish_scene(scene, out, changing, tmp_path / "archive")
    assert tree_checksums(out) == before
    published(scene, tmp_path)
    assert sorted(path.name for path in out.iterdir()) == ["slice_002", "zarr.json"]


def changing() -> None:
    raise ChangingStacksError("a slice is being added")

"""Volumes are packed without loss, are read by other libraries, and older stores go on in the codec that they have."""

import json

import numpy as np
import pytest
import zarr

from opticstream.io.zarr import LevelArrays, SliceStore, read_volume, store_layout

SHAPE = (70, 40, 50)
ZSTD = {"name": "zstd", "configuration": {"level": 3}}


def noise(shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.default_rng(1).normal(40, 6, shape).astype(np.float32)
    values.reshape(-1)[::97] = np.nan
    return values


def codecs(array: dict) -> list[str]:
    (codec,) = array["codecs"]
    inner = codec["configuration"]["codecs"] if codec["name"] == "sharding_indexed" else array["codecs"]
    return [one["name"] for one in inner]


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_stitched_volumes_come_back_bit_by_bit_in_zarr_python(tmp_path, version):
    layout, values = store_layout(SHAPE, voxel_size_um=(2.5, 10, 10), version=version), noise(SHAPE)
    levels = LevelArrays(tmp_path / "v.ome.zarr", layout)
    levels.settle([levels.write(0, (0, 0, 0), values)])
    found = zarr.open_array(str(tmp_path / "v.ome.zarr" / "0"), mode="r")
    np.testing.assert_array_equal(np.asarray(found[:]).view(np.int32), values.view(np.int32))


def test_a_stack_of_slices_comes_back_bit_by_bit_and_an_older_one_grows_in_its_own_codec(tmp_path, monkeypatch):
    one, other = noise((30, 20, 8)), noise((30, 20, 8)) + 1
    monkeypatch.setattr("opticstream.io.zarr._slices.number_codec", lambda _itemsize: ZSTD)
    store = SliceStore(tmp_path / "s.ome.zarr", planes=8, voxel_um=(10, 10, 2.5))
    store.put(0, (30, 20), lambda xs, ys: one[xs, ys])
    monkeypatch.undo()
    store.put(1, (30, 20), lambda xs, ys: other[xs, ys])
    np.testing.assert_array_equal(read_volume(store.path), np.concatenate([one, other], axis=2))
    assert codecs(json.loads((store.path / "0" / "zarr.json").read_text())) == ["bytes", "zstd"]
    new = SliceStore(tmp_path / "n.ome.zarr", planes=8, voxel_um=(10, 10, 2.5))
    new.put(0, (30, 20), lambda xs, ys: one[xs, ys])
    np.testing.assert_array_equal(read_volume(new.path), one)
    assert codecs(json.loads((new.path / "0" / "zarr.json").read_text())) == ["bytes", "blosc"]

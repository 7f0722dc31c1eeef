"""Tiles and maps in Zarr, TIFF and NumPy: their axes, units and types are honoured or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opticstream.io.images import TileVolume, image_geometry, read_image
from opticstream.io.zarr import multiscales_metadata, store_layout, volume_reader, volume_voxel_um
from opticstream.model.errors import OpticStreamError


def one_line(text: str) -> str:
    assert "\n" not in text
    return text


def refusal(call, *arguments) -> str:
    with pytest.raises(OpticStreamError) as caught:
        call(*arguments)
    return one_line(str(caught.value))


def zarr_array(path: Path, data, *, names: list[str] | None = None, version: int = 3) -> None:
    spec: dict[str, Any] = {"driver": "zarr3" if version == 3 else "zarr", "kvstore": f"file://{path}/"}
    if names and version == 3:
        spec["metadata"] = {"dimension_names": names}
    ts.open(spec, create=True, dtype=data.dtype, shape=data.shape).result()[...] = data


def ome_zarr(path: Path, data, axes, *, scale=None, shift=None, outer=None, version: int = 3) -> Path:
    """Write an OME-Zarr of one level; axes are names or (name, unit)."""
    pairs = [(a, None) if isinstance(a, str) else a for a in axes]
    zarr_array(path / "0", data, version=version)
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": list(scale)}] if scale is not None else []
    steps += [{"type": "translation", "translation": list(shift)}] if shift is not None else []
    block: dict[str, Any] = {
        "axes": [{"name": name} | ({"unit": unit} if unit else {}) for name, unit in pairs],
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
    }
    if outer is not None:
        block["coordinateTransformations"] = [{"type": "scale", "scale": list(outer)}]
    if version == 3:
        attributes = {"ome": {"version": "0.5", "multiscales": [block]}}
        (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    else:
        (path / ".zgroup").write_text('{"zarr_format": 2}')
        (path / ".zattrs").write_text(json.dumps({"multiscales": [block | {"version": "0.4"}]}))
    return path


VOLUME = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


# --- Zarr ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(("unit", "um"), [("micrometer", 1), ("millimeter", 1e3), ("nanometer", 1e-3), (None, 1)])
def test_an_ome_zarr_gives_its_own_voxel_size_in_its_own_unit(tmp_path, version, unit, um):
    axes = [("z", unit), ("y", unit), ("x", unit)]
    path = ome_zarr(tmp_path / "v.ome.zarr", VOLUME, axes, scale=(2.5, 10, 12), version=version)
    assert image_geometry(path).voxel_size_mm == pytest.approx((0.012 * um, 0.01 * um, 0.0025 * um))
    assert TileVolume(path).voxel_size_mm == pytest.approx((0.012 * um, 0.01 * um, 0.0025 * um))
    assert volume_voxel_um(path) == pytest.approx((12 * um, 10 * um, 2.5 * um))
    np.testing.assert_array_equal(read_image(path), VOLUME.T)


def test_scales_of_image_and_level_count_together_and_the_origin_is_kept(tmp_path):
    axes = [("z", "micrometer"), ("y", "micrometer"), ("x", "micrometer")]
    path = ome_zarr(tmp_path / "v.zarr", VOLUME, axes, scale=(1, 2, 3), shift=(10, 20, 30), outer=(2, 2, 2))
    geometry = image_geometry(path)
    assert geometry.voxel_size_mm == pytest.approx((0.006, 0.004, 0.002))
    assert geometry.origin_mm == pytest.approx((0.06, 0.04, 0.02))


def test_one_time_point_and_channel_are_dropped_and_more_are_refused_by_name(tmp_path):
    axes = ["t", "c", "z", "y", "x"]
    path = ome_zarr(tmp_path / "a.zarr", VOLUME[None, None], axes, scale=(1, 1, 2.5, 10, 10))
    np.testing.assert_array_equal(read_image(path), VOLUME.T)
    volume = TileVolume(path)
    out = np.empty((2, 3, 5), np.float32)
    volume.read_into(out, 1, 1)
    np.testing.assert_array_equal(out, VOLUME[1:, 1:])
    assert volume_reader(path)[0] == (5, 4, 3)
    for name, shape in (("time (t)", (2, 1, 3, 4, 5)), ("channel (c)", (1, 2, 3, 4, 5))):
        many = ome_zarr(tmp_path / f"{shape[0]}.zarr", np.zeros(shape, np.float32), axes)
        for read in (read_image, TileVolume, volume_reader):
            assert f"axis {name} has 2 entries" in refusal(read, many)


def test_axes_in_another_order_are_turned_by_their_names(tmp_path):
    turned = np.ascontiguousarray(VOLUME.T)
    path = ome_zarr(tmp_path / "v.zarr", turned, [("x", "millimeter"), ("y", None), ("z", "meter")], scale=(3, 2, 1))
    np.testing.assert_array_equal(read_image(path), VOLUME.T)
    assert image_geometry(path).voxel_size_mm == pytest.approx((3, 0.002, 1000))
    zarr_array(tmp_path / "plain.zarr", turned, names=["x", "y", "z"])
    np.testing.assert_array_equal(read_image(tmp_path / "plain.zarr"), VOLUME.T)


def test_an_image_without_axes_is_read_as_old_versions_mean_it(tmp_path):
    path = ome_zarr(tmp_path / "a.zarr", VOLUME[None, None], [])
    np.testing.assert_array_equal(read_image(path), VOLUME.T)
    assert image_geometry(path) is None
    many = ome_zarr(tmp_path / "b.zarr", np.zeros((1, 2, 3, 4, 5), np.float32), [])
    assert "axis channel (c) has 2 entries" in refusal(read_image, many)


def test_a_plain_array_has_no_voxel_size(tmp_path):
    zarr_array(tmp_path / "p.zarr", VOLUME[None])
    np.testing.assert_array_equal(read_image(tmp_path / "p.zarr"), VOLUME.T)
    assert image_geometry(tmp_path / "p.zarr") is None
    zarr_array(tmp_path / "q.zarr", np.zeros((2, 3, 4, 5), np.float32))
    assert "axis 1 has 2 entries" in refusal(read_image, tmp_path / "q.zarr")


def test_metadata_that_mean_nothing_are_refused(tmp_path):
    axes = [("z", "furlong"), "y", "x"]
    furlong = ome_zarr(tmp_path / "a.zarr", VOLUME, axes, scale=(2.5, 10, 10))
    assert "'furlong'" in refusal(image_geometry, furlong)
    zero = ome_zarr(tmp_path / "b.zarr", VOLUME, [("z", "micrometer"), "y", "x"], scale=(0, 10, 10))
    assert "expected numbers above 0" in refusal(image_geometry, zero)
    names = ome_zarr(tmp_path / "c.zarr", VOLUME, ["y", "x"])
    assert "name the axes ['y', 'x'], but the array has 3 axes" in refusal(read_image, names)
    (tmp_path / "d.zarr").mkdir()
    (tmp_path / "d.zarr" / "zarr.json").write_text("[1, 2]")
    assert "cannot be read as Zarr" in refusal(read_image, tmp_path / "d.zarr")
    zarr_array(tmp_path / "e.zarr", np.zeros((3, 4), np.complex64))
    assert "complex numbers" in refusal(read_image, tmp_path / "e.zarr")


@given(
    scale=st.one_of(st.none(), st.lists(st.floats(), max_size=6), st.text()),
    axes=st.one_of(st.none(), st.lists(st.sampled_from(["x", "y", "z", "c", "t", "q", 3, None]), max_size=6)),
    unit=st.one_of(st.none(), st.text(max_size=4), st.integers(), st.just("micrometer")),
    path=st.sampled_from(["0", "1", "", None, 7, "../0"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_metadata_of_an_ome_zarr_give_an_image_or_one_line(tmp_path, scale, axes, unit, path):
    store = tmp_path / "v.zarr"
    if not store.exists():
        zarr_array(store / "0", VOLUME)
    block = {"datasets": [{"path": path, "coordinateTransformations": [{"type": "scale", "scale": scale}]}]}
    if axes is not None:
        block["axes"] = [{"name": axis, "unit": unit} for axis in axes]
    content = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"multiscales": [block]}}}
    (store / "zarr.json").write_text(json.dumps(content))
    for read in (read_image, image_geometry):
        try:
            found = read(store)
        except OpticStreamError as error:
            one_line(str(error))
            continue
        if isinstance(found, np.ndarray):
            assert sorted(found.shape) == [3, 4, 5]


def test_the_origin_of_a_store_moves_all_levels():
    plain = store_layout((64, 300, 300), voxel_size_um=(2, 10, 10))
    moved = type(plain)(**{**plain.__dict__, "origin_um": (1.0, 2.0, 3.0)})
    for before, after in zip(
        multiscales_metadata(plain, name="v")["datasets"],
        multiscales_metadata(moved, name="v")["datasets"],
        strict=True,
    ):
        steps = {s["type"]: s for s in before["coordinateTransformations"]}
        start = np.array(steps["translation"]["translation"]) if "translation" in steps else np.zeros(3)
        assert after["coordinateTransformations"][1]["translation"] == pytest.approx(start + np.array([1, 2, 3]))


# --- TIFF ---------------------------------------------------------------------------------------------------------


MAP = np.arange(20, dtype=np.float32).reshape(4, 5)


def tiff(path: Path, data=MAP, **options) -> Path:
    tifffile.imwrite(path, data, **options)
    return path


def test_the_resolution_of_a_tiff_is_its_pixel_size(tmp_path):
    cm = tiff(tmp_path / "a.tif", resolution=(1000, 500), resolutionunit="CENTIMETER", metadata=None)
    assert image_geometry(cm).voxel_size_mm[:2] == pytest.approx((0.01, 0.02))
    inch = tiff(tmp_path / "b.tif", resolution=(2540, 2540), resolutionunit="INCH", metadata=None)
    assert image_geometry(inch).voxel_size_mm[:2] == pytest.approx((0.01, 0.01))
    imagej = tiff(tmp_path / "c.tif", imagej=True, resolution=(0.1, 0.1), metadata={"unit": "um", "spacing": 2.5})
    assert image_geometry(imagej).voxel_size_mm == pytest.approx((0.01, 0.01, 0.0025))
    metadata = {"axes": "YX", "PhysicalSizeX": 10, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.02}
    ome = tiff(tmp_path / "d.ome.tif", ome=True, metadata=metadata | {"PhysicalSizeYUnit": "mm"})
    assert image_geometry(ome).voxel_size_mm[:2] == pytest.approx((0.01, 0.02))


def test_what_picture_programs_write_of_themselves_is_no_pixel_size(tmp_path):
    assert image_geometry(tiff(tmp_path / "a.tif")) is None
    assert image_geometry(tiff(tmp_path / "b.tif", resolution=(72, 72), resolutionunit="INCH", metadata=None)) is None
    assert image_geometry(tiff(tmp_path / "c.tif", imagej=True)) is None


def test_a_size_that_is_none_is_refused(tmp_path):
    metadata = {"axes": "YX", "PhysicalSizeX": 0, "PhysicalSizeY": 1}
    assert "expected numbers above 0" in refusal(
        image_geometry, tiff(tmp_path / "a.ome.tif", ome=True, metadata=metadata)
    )
    (tmp_path / "b.tif").write_bytes(b"II*\0" + b"\xff" * 40)
    assert "cannot be read as TIFF" in refusal(image_geometry, tmp_path / "b.tif")


# --- NumPy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (np.zeros((3, 4), np.complex128), "complex numbers"),
        (np.zeros((3, 4), "U3"), "expected real numbers"),
        (np.zeros((3, 4), "S3"), "expected real numbers"),
        (np.zeros((3, 4), "M8[s]"), "expected real numbers"),
        (np.zeros((3, 4), [("a", "f4"), ("b", "f4")]), "expected real numbers"),
        (np.zeros((3, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour picture"),
        (np.zeros((3, 4, 3), "u1"), "colour picture"),
        (np.zeros((3, 4, 5, 2), "f4"), "axis 4"),
        (np.zeros((0, 4), "f4"), "has no values"),
        (np.zeros(4, "f4"), "expected 2 or 3 axes"),
    ],
)
def test_arrays_that_are_no_map_are_one_line(tmp_path, data, told):
    np.save(tmp_path / "a.npy", data)
    assert told in refusal(read_image, tmp_path / "a.npy")


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[None, 1]], object), allow_pickle=True)
    assert "cannot be read as NumPy array" in refusal(read_image, tmp_path / "a.npy")


@pytest.mark.parametrize("kind", ["?", "<i2", ">u2", ">f4", "f2", "i8", "f8"])
def test_booleans_whole_numbers_and_both_byte_orders_are_read(tmp_path, kind):
    data = (np.arange(60).reshape(3, 4, 5) % 7).astype(kind)
    np.save(tmp_path / "a.npy", data[..., None])
    values = read_image(tmp_path / "a.npy")
    assert values.dtype.isnative
    np.testing.assert_array_equal(values, data)


def test_a_header_that_promises_too_much_is_one_line(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.float32))
    content = (tmp_path / "a.npy").read_bytes().replace(b"(3, 4)", b"(9999999, 9999999)", 1)
    (tmp_path / "a.npy").write_bytes(content[:8] + (len(content[10:-48]) - 12).to_bytes(2, "little") + content[10:])
    refusal(read_image, tmp_path / "a.npy")

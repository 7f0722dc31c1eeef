"""What a NIfTI header says is honoured or refused in one line, whatever stands in it."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opticstream.io.geometry import Geometry
from opticstream.io.images import TileVolume, image_geometry, read_image
from opticstream.io.nifti import map_from_nifti, nifti_geometry, read_nifti, voxel_size_mm, write_nifti
from opticstream.io.nifti_header import read_nifti_header
from opticstream.io.nifti_stack import blank_slice, put_slice
from opticstream.io.nifti_stream import nifti_header, open_volume, write_map
from opticstream.model.errors import FileFormatError, InputError, MissingInputError, OpticStreamError

UNITS = {"meter": 1e3, "mm": 1.0, "micron": 1e-3}


def saved(path: Path, data, *, size=(1.0, 1.0, 1.0), unit="mm", affine=None, version=1, **fields) -> Path:
    """Write an image as nibabel does, then set fields of its header."""
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    image = kind(data, np.diag([*size, 1.0]) if affine is None else affine, dtype=data.dtype)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    if fields:
        rewritten(path, **fields)
    return path


def rewritten(path: Path, **fields) -> None:
    """Set fields of a header without any check."""
    content = bytearray(path.read_bytes())
    bytes_, kind = (348, nib.Nifti1Header) if content[:4] == b"\x5c\x01\0\0" else (540, nib.Nifti2Header)
    header = kind(bytes(content[:bytes_]), check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + bytes(content[bytes_:]))


def refusal(call, *arguments) -> str:
    with pytest.raises(OpticStreamError) as caught:
        call(*arguments)
    return one_line(str(caught.value))


def outcome(read, path):
    """Return what a reader gives, or the one line of an error of ours; any other error passes through."""
    try:
        return read(path)
    except OpticStreamError as error:
        return one_line(str(error))


def one_line(text: str) -> str:
    assert "\n" not in text
    return text


# --- voxel sizes and places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_the_unit_of_length_is_honoured(tmp_path, unit, suffix, version):
    size = np.array([10.0, 12.0, 2.5])
    path = saved(tmp_path / f"a{suffix}", np.zeros((3, 4, 5), np.float32), size=size, unit=unit, version=version)
    assert voxel_size_mm(path) == pytest.approx(size * UNITS[unit], rel=1e-6)
    assert TileVolume(path).voxel_size_mm == pytest.approx(size * UNITS[unit], rel=1e-6)
    assert image_geometry(path).sized


def test_an_unknown_unit_counts_as_millimetres_and_a_bare_header_as_no_size(tmp_path):
    data = np.zeros((3, 4, 5), np.float32)
    assert voxel_size_mm(saved(tmp_path / "a.nii", data, size=(0.02, 0.02, 0.5), unit=0)) == (0.02, 0.02, 0.5)
    bare = saved(tmp_path / "b.nii", data, unit=0)
    assert not nifti_geometry(bare).sized
    assert TileVolume(bare).voxel_size_mm is None
    assert TileVolume(saved(tmp_path / "c.nii", data, unit="mm")).voxel_size_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_voxel_size_that_is_none_is_refused_where_it_is_needed(tmp_path, value):
    path = saved(tmp_path / "a.nii", np.ones((3, 4, 5), np.float32), sform_code=0, qform_code=0)
    rewritten(path, pixdim=[1, 0.01, value, 0.01, 0, 0, 0, 0])
    assert "pixdim" in refusal(voxel_size_mm, path)
    assert "expected numbers above 0" in refusal(lambda: TileVolume(path).voxel_size_mm)
    assert read_image(path).sum() == 60  # the values themselves need no size


def test_two_voxel_sizes_in_one_header_are_refused(tmp_path):
    path = saved(tmp_path / "a.nii", np.ones((3, 4, 5), np.float32), size=(0.01, 0.01, 0.01))
    rewritten(path, pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    assert "two voxel sizes" in refusal(voxel_size_mm, path)


def test_sform_counts_before_qform_and_a_contradiction_is_known(tmp_path):
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.float32), None)
    sform, qform = np.diag([2.0, 3, 4, 1]), np.diag([2.0, 3, 4, 1])
    qform[:3, 3] = [10, 20, 30]
    image.set_qform(qform, 1)
    nib.save(image, tmp_path / "q.nii")
    assert nifti_geometry(tmp_path / "q.nii").origin_mm == (10, 20, 30)
    assert nifti_geometry(tmp_path / "q.nii").other_affine_mm is None
    image.set_sform(sform, 2)
    nib.save(image, tmp_path / "both.nii")
    assert nifti_geometry(tmp_path / "both.nii").origin_mm == (0, 0, 0)
    np.testing.assert_allclose(nifti_geometry(tmp_path / "both.nii").other_affine_mm, qform)


def test_directions_are_said_in_words():
    affine = np.array([[0, 2.0, 0, 1], [-3, 0, 0, 2], [0, 0, 4, 3], [0, 0, 0, 1]])
    geometry = Geometry(affine, positioned=True)
    assert geometry.voxel_size_mm == (3, 2, 4)
    assert geometry.says() == "x to posterior, y to right, z to superior"
    assert not geometry.is_straight
    assert geometry.from_voxel((1, 0, 0)).origin_mm == (1, -1, 3)


def test_what_is_written_has_the_given_place_and_millimetres(tmp_path):
    affine = np.array([[-0.01, 0, 0, 5], [0, 0.01, 0, -7], [0, 0, 0.0025, 1], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "a.nii.gz", np.ones((3, 4, 1)), geometry=Geometry(affine, positioned=True))
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, affine, atol=1e-7)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-7)
    assert image.header.get_xyzt_units()[0] == "mm"
    nowhere = write_nifti(tmp_path / "b.nii", np.ones((3, 4, 1)), geometry=Geometry(np.diag([0.01, 0.02, 1, 1])))
    assert not nifti_geometry(nowhere).positioned
    assert voxel_size_mm(nowhere) == (0.01, 0.02, 1.0)


# --- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("scaling", [(0.0, 0.0), (1.0, 0.0), (0.5, -3.0), (np.nan, 5.0)])
def test_scaling_and_byte_order_are_honoured_by_every_reader(tmp_path, order, kind, suffix, scaling):
    numbers = np.arange(60).reshape(3, 4, 5).astype(kind)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_shape(numbers.shape)
    header.set_data_dtype(np.dtype(kind).newbyteorder(order))
    header["scl_slope"], header["scl_inter"] = scaling
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + b"\0" * 4 + numbers.astype(np.dtype(kind).newbyteorder(order)).tobytes(order="F")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    slope, intercept = scaling if scaling[0] and np.isfinite(scaling[0]) else (1.0, 0.0)
    expected = numbers.astype(float) * slope + intercept
    values = read_image(path)
    assert values.dtype.isnative
    np.testing.assert_allclose(values, expected)
    np.testing.assert_allclose(values, np.asanyarray(nib.load(path).dataobj))
    volume = TileVolume(path)
    out = np.empty((5, 2, 3), np.float32)
    volume.read_into(out, 0, 1)
    np.testing.assert_allclose(out, expected.T[:, 1:3])


@pytest.mark.parametrize("code", ["RGB", "RGBA"])
def test_colours_are_refused(tmp_path, code):
    data = np.zeros((3, 4, 1), np.dtype([(c, "u1") for c in code]))
    path = saved(tmp_path / "a.nii", data)
    for read in (read_image, read_nifti, map_from_nifti, TileVolume):
        assert f"colour picture ({code})" in refusal(read, path)


def test_complex_numbers_are_refused_and_told_what_to_do(tmp_path):
    path = saved(tmp_path / "a.nii", np.zeros((3, 4, 2), np.complex64))
    for read in (read_image, read_nifti, map_from_nifti, TileVolume):
        assert "complex numbers" in refusal(read, path)
        assert "magnitude" in refusal(read, path)


def test_one_time_point_or_channel_is_dropped_and_more_are_refused(tmp_path):
    single = saved(tmp_path / "a.nii", np.ones((3, 4, 5, 1, 1), np.float32))
    assert read_image(single).shape == (3, 4, 5)
    assert TileVolume(single).shape == (5, 4, 3)
    for shape, axis in (((3, 4, 5, 2), "axis 4 (time)"), ((3, 4, 5, 1, 2), "axis 5 (channel)")):
        path = saved(tmp_path / "b.nii", np.ones(shape, np.float32))
        assert axis in refusal(read_image, path)
        assert axis in refusal(TileVolume, path)
    planes = saved(tmp_path / "c.nii", np.ones((3, 4, 2), np.float32))
    assert "axis 3 (depth (z))" in refusal(map_from_nifti, planes)


@pytest.mark.parametrize(
    "fields",
    [
        {"dim": [3, -1, 4, 5, 1, 1, 1, 1]},
        {"dim": [0, 3, 4, 5, 1, 1, 1, 1]},
        {"dim": [9, 3, 4, 5, 1, 1, 1, 1]},
        {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]},
        {"vox_offset": np.nan},
        {"vox_offset": np.inf},
        {"vox_offset": 100.0},
        {"vox_offset": 352.5},
        {"vox_offset": -1.0},
        {"scl_slope": np.inf},
        {"scl_slope": 2.0, "scl_inter": np.nan},
        {"datatype": 1},
        {"datatype": 4242},
        {"magic": b"xyz"},
        {"magic": b"ni1"},
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_impossible_header_is_one_line(tmp_path, fields, packed):
    path = saved(tmp_path / "a.nii", np.ones((3, 4, 5), np.float32))
    rewritten(path, **fields)
    if packed:
        path = path.rename(tmp_path / "b.nii.gz")
        path.write_bytes(gzip.compress(path.read_bytes()))
    for read in (read_image, read_nifti, TileVolume):
        assert refusal(read, path).startswith(str(path))


@pytest.mark.parametrize(
    "fields",
    [
        {"xyzt_units": 5},
        {"srow_x": [np.nan, 0, 0, 0]},
        {"srow_x": [0, 0, 0, 0]},
        {"srow_y": [0, np.inf, 0, 0]},
        {"sform_code": 0, "qform_code": 1, "quatern_b": 2.0},
        {"sform_code": 0, "qform_code": 1, "quatern_c": np.nan},
        {"sform_code": 0, "qform_code": 1, "qoffset_x": np.inf},
    ],
)
def test_an_impossible_place_is_one_line(tmp_path, fields):
    path = saved(tmp_path / "a.nii", np.ones((3, 4, 5), np.float32))
    rewritten(path, **fields)
    assert refusal(nifti_geometry, path).startswith(str(path))


@st.composite
def headers(draw):
    """Bytes of a NIfTI file with any header, its numbers, and how they are meant."""
    version, order = draw(st.sampled_from([1, 2])), draw(st.sampled_from("<>"))
    header = (nib.Nifti1Header if version == 1 else nib.Nifti2Header)(endianness=order)
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)))
    kind = np.dtype(draw(st.sampled_from(["u1", "i1", "i2", "u2", "i4", "f4", "f8", "i8", "c8"])))
    number = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.01, np.nan, np.inf, -np.inf]), st.floats(width=32))
    header.set_data_shape(shape)
    header.set_data_dtype(kind)
    header["pixdim"] = [draw(number) for _ in range(8)]
    header["scl_slope"], header["scl_inter"] = draw(number), draw(number)
    header["xyzt_units"] = draw(st.integers(0, 127))
    header["qform_code"], header["sform_code"] = draw(st.integers(-1, 5)), draw(st.integers(-1, 5))
    for name in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        header[name] = draw(number)
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row] = [draw(number) for _ in range(4)]
    header["magic"] = b"n+1" if version == 1 else b"n+2"
    header["vox_offset"] = 352 if version == 1 else 544
    numbers = np.arange(int(np.prod(shape))).reshape(shape).astype(kind)
    content = header.binaryblock + b"\0" * 4 + numbers.astype(kind.newbyteorder(order)).tobytes(order="F")
    damage = draw(st.lists(st.tuples(st.integers(0, 347), st.integers(0, 255)), max_size=3))
    damaged = bytearray(content)
    for place, value in damage:
        damaged[place] = value
    return bytes(damaged), numbers, header, damaged == content


COUNTER = itertools.count()


@given(case=headers(), packed=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_gives_the_right_values_or_one_of_our_errors(tmp_path, case, packed):
    content, numbers, header, intact = case
    path = tmp_path / f"{next(COUNTER)}.nii{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    values = outcome(read_nifti, path)
    if isinstance(values, np.ndarray) and intact:
        slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
        slope, intercept = (slope, intercept) if slope and not np.isnan(slope) else (1.0, 0.0)
        with np.errstate(all="ignore"):
            expected = numbers * slope + intercept
        assert values.shape == numbers.shape
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    for read in (read_image, TileVolume, nifti_geometry, map_from_nifti, lambda p: TileVolume(p).voxel_size_mm):
        found = outcome(read, path)
        if isinstance(found, Geometry):
            assert np.isfinite(found.affine_mm).all()
            assert min(found.voxel_size_mm) >= 0


@given(content=st.binary(max_size=700))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_no_header_in_one_line(tmp_path, content):
    path = tmp_path / "a.nii"
    path.write_bytes(b"\x5c\x01\0\0" + content)
    outcome(read_nifti_header, path)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(MissingInputError, match="no such file"):
        read_nifti(tmp_path / "gone.nii")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(InputError, match="a folder, not a file"):
        read_nifti(tmp_path / "folder.nii")


# --- long axes ----------------------------------------------------------------------------------------------------


def test_an_axis_too_long_for_nifti1_is_written_as_nifti2_and_read(tmp_path):
    long = np.arange(40_000 * 2, dtype=np.float32).reshape(40_000, 2)
    for path in (tmp_path / "a.nii.gz", tmp_path / "a.nii"):
        write_nifti(path, long, voxel_size_mm=(0.01, 0.02, 0.5))
        assert isinstance(nib.load(path), nib.Nifti2Image)
        np.testing.assert_array_equal(map_from_nifti(path), long)
        assert voxel_size_mm(path) == (0.01, 0.02, 0.5)
    write_map(tmp_path / "b.nii", long, voxel_size_mm=(0.01, 0.02, 0.5), description="words")
    image = nib.load(tmp_path / "b.nii")
    assert image.header["descrip"].item() == b"words"
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(np.diag(image.affine), [0.01, 0.02, 0.5, 1])
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), long)
    np.testing.assert_allclose(image.get_qform(), image.get_sform())


@pytest.mark.parametrize("x", [12, 40_000])
def test_a_volume_written_piece_by_piece_is_what_nibabel_reads(tmp_path, x):
    data = np.arange(x * 4 * 3, dtype=np.float32).reshape(x, 4, 3)
    with open_volume(tmp_path / "v.nii", data.shape, voxel_size_mm=(0.01, 0.01, 0.0025)) as volume:
        for first in (2, 0):
            volume.write(first, data[:, first : first + 2].transpose(2, 1, 0))
    np.testing.assert_array_equal(np.asanyarray(nib.load(tmp_path / "v.nii").dataobj), data)
    read = TileVolume(tmp_path / "v.nii")
    out = np.empty((3, 2, x), np.float32)
    read.read_into(out, 0, 1)
    np.testing.assert_array_equal(out, data[:, 1:3].T)


def test_both_kinds_of_header_say_the_same():
    short = nib.Nifti1Header(nifti_header((5, 6, 7), voxel_size_mm=(0.1, 0.2, 0.3), description="words")[:348])
    long = nib.Nifti2Header(nifti_header((40_000, 6, 7), voxel_size_mm=(0.1, 0.2, 0.3), description="words")[:540])
    for name in ("datatype", "bitpix", "qform_code", "sform_code", "xyzt_units", "scl_slope", "descrip"):
        assert short[name] == long[name], name
    np.testing.assert_allclose(short["pixdim"], long["pixdim"], rtol=1e-6)
    np.testing.assert_allclose(short.get_sform(), long.get_sform(), rtol=1e-6)
    assert long.get_data_shape() == (40_000, 6, 7)


def constant(value):
    return lambda xs, ys: np.full((xs.stop - xs.start, ys.stop - ys.start, 1), value, np.float32)


def test_a_stack_grows_beyond_what_nifti1_can_say(tmp_path):
    path, affine = tmp_path / "s.nii", np.diag([-0.01, 0.01, 0.5, 1.0])
    affine[:3, 3] = [1, 2, 3]
    put_slice(path, 0, (10, 2), constant(1), affine_mm=affine, description="stack")
    put_slice(path, 2, (40_000, 2), constant(3), affine_mm=affine)
    stack = nib.load(path)
    values = np.asanyarray(stack.dataobj)
    assert values.shape == (40_000, 2, 3)
    assert (values[:10, :, 0] == 1).all()
    assert np.isnan(values[10:, :, 0]).all()
    assert np.isnan(values[..., 1]).all()
    assert (values[..., 2] == 3).all()
    np.testing.assert_allclose(stack.affine, affine, atol=1e-6)
    assert stack.header["descrip"].item() == b"stack"
    put_slice(path, 3, (40_000, 2), constant(4), affine_mm=affine)
    blank_slice(path, 2)
    values = np.asanyarray(nib.load(path).dataobj)
    assert np.isnan(values[..., 2]).all()
    assert (values[..., 3] == 4).all()


def test_a_slice_with_other_voxels_is_not_put_into_a_stack(tmp_path):
    put_slice(tmp_path / "s.nii", 0, (3, 4), constant(1), affine_mm=np.diag([0.01, 0.01, 0.5, 1]))
    with pytest.raises(FileFormatError, match=r"holds voxels of 0\.01 x 0\.01 x 0\.5 mm, the new slice has 0\.02"):
        put_slice(tmp_path / "s.nii", 1, (3, 4), constant(1), affine_mm=np.diag([0.02, 0.02, 0.5, 1]))
    with pytest.raises(FileFormatError, match=r"has axes x to right, .* the new slice x to left"):
        put_slice(tmp_path / "s.nii", 1, (3, 4), constant(1), affine_mm=np.diag([-0.01, 0.01, 0.5, 1]))

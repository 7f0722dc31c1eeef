"""Readers of raw tiles: every header that rigs write, and a clear refusal of everything else."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opticstream.io.packed12 import packed12_from_samples, samples_from_packed12
from opticstream.io.raw import (
    ComplexTile,
    SpectralShape,
    SpectralTile,
    nifti_layout_from_bytes,
)
from opticstream.model.errors import FileFormatError, InputError, MissingInputError, OpticStreamError, TileSizeError
from opticstream.testing.raw_tiles import nifti_header, write_spectral_nifti

SHAPE = SpectralShape(samples=32, a_lines=6, channels=2, b_lines=5, setting="scan.illuminations[0]")


def _counts(seed=0):
    return np.random.default_rng(seed).integers(0, 4096, (5, 2, 6, 32)).astype(np.uint16)


def _read(path, shape=SHAPE, rows=2, **options):
    seen = bytearray()
    with SpectralTile.open(path, shape, **options) as tile:
        parts = [counts.copy() for _, counts in tile.blocks(rows, tap=seen.extend)]
    return np.concatenate(parts), bytes(seen)


@pytest.mark.parametrize("dims", [None, (32, 12, 5), (32, 6, 10), (1920,), (32, 6, 2, 5, 1, 1, 1), (32, 0, 10)])
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("vox_offset", [352, 368, 1024])
def test_any_header_whose_product_fits_is_read(tmp_path, dims, byte_order, vox_offset):
    path = write_spectral_nifti(tmp_path / "t.nii", _counts(), dims=dims, byte_order=byte_order, vox_offset=vox_offset)
    counts, seen = _read(path)
    np.testing.assert_array_equal(counts, _counts())
    assert seen == path.read_bytes()


def test_packed_samples_are_read(tmp_path):
    path = tmp_path / "t.raw"
    path.write_bytes(packed12_from_samples(_counts()).tobytes())
    counts, seen = _read(path, raw_format="packed12")
    np.testing.assert_array_equal(counts, _counts())
    assert seen == path.read_bytes()


@given(st.lists(st.integers(0, 4095), min_size=2, max_size=40).filter(lambda v: len(v) % 2 == 0))
def test_packing_and_unpacking_12_bits_are_inverse(values):
    np.testing.assert_array_equal(samples_from_packed12(packed12_from_samples(np.array(values))), values)


def test_a_tile_is_read_from_its_archive_copy(tmp_path):
    path = write_spectral_nifti(tmp_path / "t.nii", _counts())
    (tmp_path / "t.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(_read(tmp_path / "t.nii.gz")[0], _counts())


def test_a_file_of_another_size_is_refused_with_both_sizes_and_the_setting(tmp_path):
    path = write_spectral_nifti(tmp_path / "t.nii", _counts())
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(TileSizeError, match=r"t\.nii: holds 4185 bytes, expected 4192 for .*scan\.illuminations\[0\]"):
        _read(path)


def test_a_header_that_says_another_size_is_refused(tmp_path):
    path = write_spectral_nifti(tmp_path / "t.nii", _counts(), dims=(32, 6, 2, 4))
    with pytest.raises(TileSizeError, match="1536 samples, expected 1920"):
        _read(path)


def test_a_compressed_file_that_is_too_short_too_long_or_damaged_is_refused(tmp_path):
    data = write_spectral_nifti(tmp_path / "t.nii", _counts()).read_bytes()
    path = tmp_path / "u.nii.gz"
    path.write_bytes(gzip.compress(data[:-100]))
    with pytest.raises(TileSizeError, match="ended after"):
        _read(path)
    path.write_bytes(gzip.compress(data + b"xx"))
    with pytest.raises(TileSizeError, match="more samples"):
        _read(path)
    damaged = bytearray(gzip.compress(data))
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(InputError):
        _read(path)
    path.write_bytes(b"no gzip at all, but some bytes")
    with pytest.raises(FileFormatError):
        _read(path)


def test_a_file_that_vanished_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"gone\.nii"):
        _read(tmp_path / "gone.nii")


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = write_spectral_nifti(tmp_path / "t.nii", _counts())
    with SpectralTile.open(path, SHAPE) as tile:
        blocks = tile.blocks(2)
        next(blocks)
        with path.open("r+b") as file:
            file.truncate(352 + 2 * tile.bytes_per_b_line + 10)
        with pytest.raises(TileSizeError, match="ended after"):
            list(blocks)


def _complex_file(path, data, dims=None):
    path.write_bytes(nifti_header(dims or data.shape, datatype=16) + data.astype("<f4").tobytes(order="F"))
    return path


def test_complex_tiles_are_read_by_rows(tmp_path):
    data = np.random.default_rng(0).normal(size=(24, 5, 7)).astype(np.float32)
    with ComplexTile.open(_complex_file(tmp_path / "c.nii", data), a_lines=6, b_lines=5) as tile:
        assert tile.depth == 7
        np.testing.assert_array_equal(tile.block(1, 3), data[:, 1:4])
        np.testing.assert_array_equal(tile.block(3, 4), data[:, 3:])


def test_a_complex_tile_is_read_once_where_its_bytes_are_wanted_too(tmp_path, monkeypatch):
    data = np.random.default_rng(0).normal(size=(24, 5, 7)).astype(np.float32)
    path = _complex_file(tmp_path / "c.nii", data)
    monkeypatch.setattr("opticstream.io.raw._PIECE_BYTES", 1000)
    pieces = []
    with ComplexTile.open(path, a_lines=6, b_lines=5, tap=pieces.append, copy_to=tmp_path) as tile:
        content = path.read_bytes()
        path.write_bytes(b"")  # whatever comes now comes from the copy
        np.testing.assert_array_equal(tile.block(1, 3), data[:, 1:4])
    assert b"".join(pieces) == content
    assert [file.name for file in tmp_path.iterdir()] == ["c.nii"]


def test_nan_in_a_complex_tile_is_refused_with_its_place(tmp_path):
    data = np.zeros((24, 5, 7), np.float32)
    data[3, 2, 6] = np.nan
    with ComplexTile.open(_complex_file(tmp_path / "c.nii", data), a_lines=6, b_lines=5) as tile:
        tile.block(0, 2)
        with pytest.raises(FileFormatError, match=r"c\.nii: holds nan at \[3, 2, 6\]"):
            tile.block(2, 2)


def test_complex_tiles_of_another_size_are_refused(tmp_path):
    path = _complex_file(tmp_path / "c.nii", np.zeros((24, 5, 7), np.float32))
    with pytest.raises(TileSizeError):
        ComplexTile.open(path, a_lines=7, b_lines=5)
    with pytest.raises(TileSizeError, match=r"shape \(24, 5, 7\)"):
        ComplexTile.open(path, a_lines=3, b_lines=10)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TileSizeError):
        ComplexTile.open(path, a_lines=6, b_lines=5)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_header_crashes_the_reader_or_makes_it_take_memory(tmp_path, data):
    """Any bytes in any place of the header, any length of the file: read right, or refused with our own error."""
    path = tmp_path / "fuzz.nii"
    content = bytearray(nifti_header((32, 6, 2, 5)) + _counts().tobytes())
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.sampled_from([0, 4, 40, 42, 44, 48, 70, 72, 108, 110, 344, 345]) | st.integers(0, 351))
        patch = data.draw(st.binary(min_size=1, max_size=8))
        content[place : place + len(patch)] = patch
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content) + 20))
    content = content[:cut] + b"\0" * (cut - len(content))
    path.write_bytes(content)

    def complex_tile():
        with ComplexTile.open(path, a_lines=2, b_lines=5) as tile:
            return tile.block(0, 5)

    for read in (lambda: _read(path)[0], complex_tile):
        refusal = None
        try:
            values = read()
        except OpticStreamError as error:
            refusal = str(error)
        if refusal is None:
            assert values.size == SHAPE.count or values.shape[:2] == (8, 5)
        else:
            assert "fuzz.nii" in refusal


@given(st.binary(max_size=600))
@settings(max_examples=200, deadline=None)
def test_no_bytes_crash_the_header_parser(content):
    try:
        layout = nifti_layout_from_bytes(content)
        assert layout.offset >= 348
    except FileFormatError:
        pass


def test_nifti_2_headers_are_read(tmp_path):
    header = bytearray(544)
    struct.pack_into("<i", header, 0, 540)
    header[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into("<hh", header, 12, 512, 16)
    struct.pack_into("<8q", header, 16, 4, 32, 6, 2, 5, 1, 1, 1)
    struct.pack_into("<q", header, 168, 544)
    path = tmp_path / "t.nii"
    path.write_bytes(bytes(header) + _counts().tobytes())
    np.testing.assert_array_equal(_read(path)[0], _counts())


def _with_scaling(path, slope, intercept):
    content = bytearray(path.read_bytes())
    struct.pack_into("<2f", content, 112, slope, intercept)
    path.write_bytes(content)
    return path


NO_SCALING = [(0.0, 0.0), (1.0, 0.0), (0.0, 7.0), (float("nan"), 0.0), (float("nan"), float("nan"))]
SCALING = [(2.0, 0.0), (1.0, 5.0), (-1.0, 0.0), (float("inf"), 0.0), (1.0, float("nan"))]


@pytest.mark.parametrize(("slope", "intercept"), NO_SCALING)
def test_a_raw_tile_whose_header_scales_nothing_is_read(tmp_path, slope, intercept):
    path = _with_scaling(write_spectral_nifti(tmp_path / "t.nii", _counts()), slope, intercept)
    np.testing.assert_array_equal(_read(path)[0], _counts())
    data = np.ones((24, 5, 3), np.float32)
    with ComplexTile.open(
        _with_scaling(_complex_file(tmp_path / "c.nii", data), slope, intercept), a_lines=6, b_lines=5
    ) as tile:
        np.testing.assert_array_equal(tile.block(0, 5), data)


@pytest.mark.parametrize(("slope", "intercept"), SCALING)
def test_a_raw_tile_whose_header_scales_its_numbers_is_refused(tmp_path, slope, intercept):
    path = _with_scaling(write_spectral_nifti(tmp_path / "t.nii", _counts()), slope, intercept)
    packed = tmp_path / "t.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        with pytest.raises(FileFormatError, match=r"t\.nii.*: its header scales the numbers \(scl_slope"):
            SpectralTile.open(file, SHAPE)
    path = _with_scaling(_complex_file(tmp_path / "c.nii", np.ones((24, 5, 3), np.float32)), slope, intercept)
    with pytest.raises(FileFormatError, match="expected slope 1 and intercept 0, or slope 0"):
        ComplexTile.open(path, a_lines=6, b_lines=5)


def test_a_complex_tile_of_more_volumes_or_another_depth_than_its_header_is_refused(tmp_path):
    data = np.ones((24, 5, 6), np.float32)
    for dims in ((24, 5, 3, 2), (24, 5, 1, 6)):
        path = _complex_file(tmp_path / "c.nii", data, dims=dims)
        with pytest.raises(FileFormatError, match=f"axis 4 has {dims[3]} entries"):
            ComplexTile.open(path, a_lines=6, b_lines=5)
    path = _complex_file(tmp_path / "c.nii", data, dims=(24, 5, 9))
    with pytest.raises(TileSizeError, match="holds 6 planes, its header gives 9"):
        ComplexTile.open(path, a_lines=6, b_lines=5)
    path = _complex_file(tmp_path / "c.nii", data, dims=(24, 5, 6, 1, 1))
    with ComplexTile.open(path, a_lines=6, b_lines=5) as tile:
        assert tile.depth == 6

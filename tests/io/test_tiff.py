"""TIFF files as programs of the field write them: read right, or refused with one line that says why."""

from __future__ import annotations

import random
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
import tifffile

from opticstream.io.images import read_image
from opticstream.io.tiff import read_tiff
from opticstream.model.errors import FileFormatError, MissingInputError, OpticStreamError


def picture(shape=(90, 70), dtype=np.uint16, seed=0):
    smooth = np.add.outer(np.arange(shape[0]), 2 * np.arange(shape[1]))
    values = smooth + np.random.default_rng(seed).integers(0, 50, shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values % 256).astype(dtype)


def ome_xml(files: list[str], number: int | None, *, axes: str = "XYZCT", z=1, c=1, t=1, per_file=1) -> str:
    """The metadata that each file of a data set carries: all files, and which one this is."""
    ids = [uuid.UUID(int=k + 1) for k in range(len(files))]
    blocks, plane = "", 0
    for k, name in enumerate(files):
        for ifd in range(per_file):
            first_z, rest = plane % z, plane // z
            blocks += (
                f'<TiffData FirstZ="{first_z}" FirstC="{rest % c}" FirstT="{rest // c}" IFD="{ifd}" PlaneCount="1">'
                f'<UUID FileName="{name}">urn:uuid:{ids[k]}</UUID></TiffData>'
            )
            plane += 1
    mine = "" if number is None else f' UUID="urn:uuid:{ids[number]}"'
    return (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
        f'{mine}><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="{axes}" Type="uint16" SizeX="70" SizeY="90" '
        f'SizeZ="{z}" SizeC="{c}" SizeT="{t}"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{blocks}</Pixels></Image>'
        "</OME>"
    )


@pytest.mark.parametrize("sizes", [{"t": 6}, {"c": 6}, {"z": 6}])
@pytest.mark.parametrize("present", ["all", "this one alone", "under another name"])
def test_a_file_of_a_multi_file_ome_tiff_is_its_own_page(tmp_path, sizes, present):
    names = [f"t{k}.ome.tif" for k in range(6)]
    for k, name in enumerate(names):
        if present == "all" or k == 3:
            tifffile.imwrite(tmp_path / name, picture(seed=k), description=ome_xml(names, k, **sizes), metadata=None)
    path = tmp_path / names[3]
    if present == "under another name":
        path = path.rename(tmp_path / "renamed.tif")
    np.testing.assert_array_equal(read_tiff(path), picture(seed=3))


def test_several_pages_of_a_multi_file_ome_tiff_are_refused(tmp_path):
    names = ["a.ome.tif", "b.ome.tif"]
    xml = ome_xml(names, 0, z=2, t=2, per_file=2)
    with tifffile.TiffWriter(tmp_path / names[0]) as writer:
        for k in range(2):
            writer.write(picture(seed=k), description=xml if k == 0 else None, metadata=None)
    with pytest.raises(FileFormatError, match=r"a\.ome\.tif: is one of several files .* holds 2 of its pages"):
        read_tiff(tmp_path / names[0])


@pytest.mark.parametrize("number", [0, None])
def test_names_in_the_ome_metadata_that_no_longer_fit_do_not_matter(tmp_path, number):
    path = tmp_path / "now.tif"
    tifffile.imwrite(path, picture(), description=ome_xml(["then.ome.tif"], number), metadata=None)
    np.testing.assert_array_equal(read_tiff(path), picture())


@pytest.mark.parametrize(
    "options",
    [
        {},
        *({"compression": c} for c in ("lzw", "zlib", "zstd", "packbits", "lzma", "deflate", "jpeg2000", "lerc")),
        *({"compression": c, "predictor": True} for c in ("lzw", "zlib", "zstd")),
        {"tile": (32, 16)},
        {"tile": (32, 16), "compression": "zlib", "predictor": True},
        {"rowsperstrip": 7},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"byteorder": ">", "compression": "lzw", "predictor": True, "bigtiff": True},
    ],
    ids=str,
)
def test_compressed_tiled_big_and_big_endian_files_are_read(tmp_path, options):
    path = tmp_path / "t.tif"
    tifffile.imwrite(
        path, picture(), **({"compressionargs": {"reversible": True}} if "jpeg2000" in str(options) else {}), **options
    )
    read = read_tiff(path)
    np.testing.assert_array_equal(read, picture())
    np.testing.assert_array_equal(read_image(path), picture().T)


def test_jpeg_compressed_grey_values_are_read(tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", np.full((64, 48), 90, np.uint8), compression="jpeg")
    assert abs(read_tiff(tmp_path / "t.tif").astype(int) - 90).max() <= 1


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_all_number_types_are_read(tmp_path, dtype, compression):
    tifffile.imwrite(tmp_path / "t.tif", picture(dtype=dtype), compression=compression, predictor=bool(compression))
    np.testing.assert_array_equal(read_tiff(tmp_path / "t.tif"), picture(dtype=dtype))


def test_half_precision_one_bit_and_twelve_bit_values_are_read(tmp_path):
    half = picture(dtype=np.float16)
    tifffile.imwrite(tmp_path / "half.tif", half)
    assert read_tiff(tmp_path / "half.tif").dtype == np.float32
    np.testing.assert_array_equal(read_tiff(tmp_path / "half.tif"), half)
    bits = picture() > 100
    tifffile.imwrite(tmp_path / "bits.tif", bits, photometric="minisblack")
    np.testing.assert_array_equal(read_tiff(tmp_path / "bits.tif"), bits.astype(np.uint8))
    twelve = picture() * 16
    tifffile.imwrite(tmp_path / "12.tif", twelve, bitspersample=12, rowsperstrip=90)
    np.testing.assert_array_equal(read_tiff(tmp_path / "12.tif"), twelve)


def test_white_is_the_largest_value_also_where_the_file_says_zero(tmp_path):
    tifffile.imwrite(tmp_path / "8.tif", 255 - picture(dtype="u1"), photometric="miniswhite")
    np.testing.assert_array_equal(read_tiff(tmp_path / "8.tif"), picture(dtype="u1"))
    tifffile.imwrite(tmp_path / "1.tif", picture() < 100, photometric="miniswhite")
    np.testing.assert_array_equal(read_tiff(tmp_path / "1.tif"), picture() >= 100)


@pytest.mark.parametrize("sub_ifds", [True, False])
def test_of_a_pyramid_the_finest_level_is_read(tmp_path, sub_ifds):
    whole = picture((128, 96))
    with tifffile.TiffWriter(tmp_path / "t.ome.tif", ome=sub_ifds) as writer:
        writer.write(whole, tile=(32, 32), **({"subifds": 2} if sub_ifds else {}))
        for step in (2, 4):
            writer.write(whole[::step, ::step], subfiletype=1, tile=(32, 32))
    np.testing.assert_array_equal(read_tiff(tmp_path / "t.ome.tif"), whole)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_single_channels_and_time_points_are_dropped_and_planes_are_a_volume(tmp_path, kind):
    stack = np.stack([picture(seed=k) for k in range(5)])
    path = tmp_path / ("t.ome.tif" if kind == "ome" else "t.tif")
    tifffile.imwrite(path, stack[None, :, None], **{kind: True}, metadata={"axes": "TZCYX"})
    np.testing.assert_array_equal(read_tiff(path), stack)
    tifffile.imwrite(path, stack[None, :1, None], **{kind: True}, metadata={"axes": "TZCYX"})
    np.testing.assert_array_equal(read_tiff(path), stack[0])


@pytest.mark.parametrize("kind", ["imagej", "ome"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 1, 1), r"holds 3 time points \(axis T of T"), ((1, 1, 2), r"holds 2 channels \(axis C of C"),
     ((3, 4, 1), r"3 time points \(axis T"), ((1, 4, 2), r"2 channels \(axis C")],
)  # fmt: skip
def test_several_channels_or_time_points_are_refused_with_the_axis(tmp_path, kind, shape, message):
    path = tmp_path / ("t.ome.tif" if kind == "ome" else "t.tif")
    tifffile.imwrite(path, np.zeros((*shape, 90, 70), np.uint16), **{kind: True}, metadata={"axes": "TZCYX"})
    with pytest.raises(FileFormatError, match=rf"t\.[a-z.]*tif+: .*{message}") as refused:
        read_tiff(path, pages_are_depth=True)
    assert "\n" not in str(refused.value)


def test_pages_that_do_not_say_what_they_are_are_planes_of_volumes_only(tmp_path):
    stack = np.stack([picture(seed=k) for k in range(5)])
    tifffile.imwrite(tmp_path / "t.tif", stack)
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        for page in stack:
            writer.write(page, metadata=None)
    for name in ("t.tif", "p.tif"):
        np.testing.assert_array_equal(read_tiff(tmp_path / name, pages_are_depth=True), stack)
        with pytest.raises(FileFormatError, match=r"holds 5 pages that do not say what they are \(axis [QI] of"):
            read_image(tmp_path / name)


def test_several_images_are_refused_with_their_shapes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "t.tif") as writer:
        writer.write(picture())
        writer.write(picture((40, 30)))
    with pytest.raises(FileFormatError, match=r"holds 2 images \(series\) of the shapes \(90, 70\), \(40, 30\)"):
        read_tiff(tmp_path / "t.tif")


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("samples", [3, 4])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colour_is_refused(tmp_path, planar, samples, compression):
    data = np.zeros((90, 70, samples) if planar == "contig" else (samples, 90, 70), np.uint8)
    tifffile.imwrite(tmp_path / "t.tif", data, photometric="rgb", planarconfig=planar, compression=compression)
    with pytest.raises(FileFormatError, match=r"t\.tif: is a colour picture \(RGB\)"):
        read_tiff(tmp_path / "t.tif")


def test_palettes_and_several_grey_samples_are_refused(tmp_path):
    colours = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", picture(dtype="u1"), photometric="palette", colormap=colours)
    with pytest.raises(FileFormatError, match="palette"):
        read_tiff(tmp_path / "p.tif")
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((90, 70, 2), "u1"), photometric="minisblack", planarconfig="contig")
    with pytest.raises(FileFormatError, match=r"2 samples of a pixel \(axis S"):
        read_tiff(tmp_path / "s.tif")


def test_a_volume_of_three_columns_is_no_colour_picture(tmp_path):
    data = np.zeros((9, 40, 3), np.float32)
    tifffile.imwrite(tmp_path / "t.tif", data, photometric="minisblack")
    assert read_tiff(tmp_path / "t.tif", pages_are_depth=True).shape == (9, 40, 3)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zlib"}, {"tile": (32, 16)}, {"tile": (32, 16), "compression": "lzw"}, {"bigtiff": True}],
    ids=str,
)
@pytest.mark.parametrize("stack", [False, True])
def test_a_file_that_was_cut_anywhere_is_refused(tmp_path, options, stack):
    whole = tmp_path / "whole.tif"
    with tifffile.TiffWriter(whole, bigtiff=options.get("bigtiff", False)) as writer:
        for k in range(4 if stack else 1):
            writer.write(picture(seed=k), metadata=None, **{k: v for k, v in options.items() if k != "bigtiff"})
    content = whole.read_bytes()
    path = tmp_path / "cut.tif"
    rng = random.Random(0)
    with tifffile.TiffFile(whole) as tiff:
        needed = max(o + n for page in tiff.pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
    for cut in [*(rng.randrange(needed) for _ in range(60)), needed - 1, 8, 4, 1, 0]:
        path.write_bytes(content[:cut])
        with pytest.raises(FileFormatError, match=r"cut\.tif"):
            read_tiff(path, pages_are_depth=True)


@pytest.mark.parametrize(
    "options",
    [{}, *({"compression": c} for c in ("lzw", "zlib", "zstd", "packbits", "lzma")), {"ome": True, "tile": (32, 16)}],
    ids=str,
)
def test_no_damage_lets_an_error_of_a_library_through(tmp_path, options):
    path = tmp_path / "fuzz.tif"
    tifffile.imwrite(path, picture(), **options)
    whole = path.read_bytes()
    rng = random.Random(3)
    refusals = []
    for _ in range(250):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            place = rng.randrange(rng.choice((16, 400, len(content))))
            content[place] = rng.choice((0, 1, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            assert read_tiff(path, pages_are_depth=True).ndim in (2, 3)
        except OpticStreamError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert all("fuzz.tif" in refusal and not re.search(r"[\r\n]", refusal) for refusal in refusals)


def test_what_is_no_tiff_or_not_there_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"gone\.tif"):
        read_tiff(tmp_path / "gone.tif")
    for content in (b"", b"II", b"no TIFF at all", bytes(100), b"II*\0" + bytes(4)):
        (tmp_path / "t.tif").write_bytes(content)
        with pytest.raises(FileFormatError, match=r"t\.tif"):
            read_tiff(tmp_path / "t.tif")


def test_real_tiles_of_a_microscope_are_read(shared_data: Path):
    for path in sorted((shared_data / "tiles_lscm").glob("*.tif")):
        np.testing.assert_array_equal(read_tiff(path), np.squeeze(tifffile.imread(path)))

"""A mosaic takes size, directions and origin from its tiles, or says why not; and `stitch` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from opticstream.cli.stitch import app
from opticstream.io.nifti import nifti_geometry
from opticstream.io.zarr import open_zarr_image
from opticstream.model.errors import InputError
from opticstream.stages.mosaic._geometry import USUAL_VOXEL_MM, geometry_of_tiles
from opticstream.stages.mosaic._tiles import check_placed, tiles_from_configuration

PLACES = [(0, 0), (70, 0), (0, 70), (70, 70)]


def scene(*, depth: int = 0):
    values = np.random.default_rng(0).normal(60, 5, (170, 170, *((depth,) if depth else ())))
    return values.astype(np.float32)


def tile_affine(place, *, size=(10.0, 10.0, 2.5), signs=(1, 1, 1), origin=(0.0, 0.0, 0.0)):
    """Return the affine of a tile at a place of the mosaic, in the unit of `size`."""
    affine = np.diag([*(np.array(size) * signs), 1.0])
    affine[:3, 3] = np.array(origin) + affine[:3, :3] @ [*place, 0]
    return affine


def write_tiles(folder: Path, *, depth: int = 0, unit="micron", affine=tile_affine, places=PLACES) -> Path:
    folder.mkdir(exist_ok=True)
    values = scene(depth=depth)
    lines = ["dim = 2"]
    for k, (place, (x, y)) in enumerate(zip(places, PLACES, strict=True)):
        image = nib.Nifti1Image(values[x : x + 100, y : y + 100], affine(place))
        image.header.set_xyzt_units(unit)
        nib.save(image, folder / f"t{k}.nii")
        lines.append(f"t{k}.nii; ; ({place[0]}.0, {place[1]}.0)")
    path = folder / "TileConfiguration.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def found(path: Path, **options):
    tiles = tiles_from_configuration(path)
    return geometry_of_tiles(tiles, "image", tiles.nominal_px, **options)


def command(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, " ".join(result.output.split())


def told(*arguments):
    code, output = command(*arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def test_a_mosaic_lies_where_its_tiles_lay_whatever_their_unit_and_directions(tmp_path):
    def affine(place):
        return tile_affine(place, signs=(-1, 1, 1), origin=(500.0, -300.0, 20.0))

    path = write_tiles(tmp_path, affine=affine)
    place = found(path)
    assert place.voxel_size_mm == pytest.approx((0.01, 0.01, 0.0025))
    assert "from the headers" in place.sentence
    assert not place.notes
    np.testing.assert_allclose(place.geometry.affine_mm @ [70, 70, 0, 1], np.append(affine((70, 70))[:3, 3], 1e3) / 1e3)
    made = told("mosaic", path, "--positions", "keep", "--out", tmp_path / "out")
    written = nifti_geometry(Path(made["outputs"]["image"]))
    np.testing.assert_allclose(written.affine_mm, place.geometry.affine_mm, atol=1e-7)


def test_tiles_that_tell_of_themselves_only_begin_at_their_common_origin(tmp_path):
    place = found(write_tiles(tmp_path, affine=lambda _place: tile_affine((0, 0), origin=(40, 0, 0))))
    assert place.geometry.origin_mm == pytest.approx((0.04, 0, 0))
    assert not place.notes


def test_origins_that_contradict_the_positions_are_told(tmp_path):
    place = found(write_tiles(tmp_path, affine=lambda p: tile_affine((3 * p[0], p[1]))))
    assert "px from its position" in place.notes[0]


def test_tiles_with_other_voxels_or_directions_are_refused(tmp_path):
    def coarse(place):
        return tile_affine(place, size=(10, 10, 2.5) if place == (0, 0) else (20, 20, 2.5))

    path = write_tiles(tmp_path, affine=coarse)
    with pytest.raises(InputError, match=r"tile 2 .*t1.nii\) has voxels of 0\.02 x 0\.02 mm, tile 1"):
        found(path)
    assert found(path, voxel_size_mm=(0.01, 0.01, 0.1)).voxel_size_mm == (0.01, 0.01, 0.1)
    path = write_tiles(tmp_path, affine=lambda p: tile_affine(p, signs=(1, 1 if p == (0, 0) else -1, 1)))
    with pytest.raises(InputError, match=r"has axes x to right, y to posterior, tile 1"):
        found(path)


def test_without_any_size_the_usual_one_is_assumed_and_said(tmp_path):
    place = found(write_tiles(tmp_path, unit=0, affine=lambda _place: np.eye(4)))
    assert place.voxel_size_mm == USUAL_VOXEL_MM
    assert "--pixel" in place.sentence


def test_a_size_of_zero_is_refused_unless_one_is_given(tmp_path):
    path = write_tiles(tmp_path)
    for k in range(4):
        content = bytearray((tmp_path / f"t{k}.nii").read_bytes())
        content[76:108] = bytes(32)
        (tmp_path / f"t{k}.nii").write_bytes(content)
    code, output = command("mosaic", path, "--positions", "keep", "--out", tmp_path / "out")
    assert code == 1
    assert output.startswith("error: ")
    assert "expected numbers above 0" in output
    code, output = command(
        "mosaic", path, "--positions", "keep", "--pixel", "0.02", "0.02", "0.1", "--out", tmp_path / "out"
    )
    assert code == 0, output
    assert "its header is not used" in output
    assert "voxels of 0.02 x 0.02 x 0.1 mm (as given)" in output


def test_a_volume_keeps_size_and_origin_and_says_what_ome_zarr_cannot(tmp_path):
    def straight(place):
        return tile_affine(place, origin=(100.0, 200.0, 50.0))

    path = write_tiles(tmp_path, depth=16, affine=straight)
    made = told("volume", path, "--positions", "keep", "--out", tmp_path / "out")
    geometry = open_zarr_image(Path(made["outputs"]["dBI"])).geometry
    assert geometry.voxel_size_mm == pytest.approx((0.01, 0.01, 0.0025))
    assert geometry.origin_mm == pytest.approx((0.1, 0.2, 0.05))
    path = write_tiles(tmp_path, depth=16, affine=lambda p: tile_affine(p, signs=(-1, 1, 1), origin=(900, 0, 0)))
    made = told("volume", path, "--positions", "keep", "--out", tmp_path / "flipped")
    assert "OME-Zarr knows no directions" in made["notes"][0]
    attributes = json.loads((Path(made["outputs"]["dBI"]) / "zarr.json").read_text())["attributes"]["opticstream"]
    np.testing.assert_allclose(np.array(attributes["affine_mm"])[:3, 3], [0.9, 0, 0], atol=1e-7)


@pytest.mark.parametrize("positions", ["keep", "measure"])
def test_tiles_without_a_place_are_refused_with_the_reason(tmp_path, positions):
    path = write_tiles(tmp_path, places=[(0, 0)] * 4)
    code, output = command("mosaic", path, "--positions", positions, "--out", tmp_path / "out")
    assert code == 1
    assert "all 4 tiles lie at (0, 0)" in output
    assert "as Fiji leaves tiles that it could not place" in output
    assert not (tmp_path / "out").exists()
    path = write_tiles(tmp_path, places=[(0, 0), (70, 0), (0, 0), (70, 70)])
    code, output = command("mosaic", path, "--positions", positions, "--out", tmp_path / "out")
    assert code == 1
    assert "2 tiles lie at (0, 0) (t0.nii, t2.nii)" in output


def test_one_tile_at_the_origin_is_a_place():
    check_placed([("a", (0.0, 0.0)), ("b", (10.0, 0.0)), ("c", (0.0, 0.0, 5.0))], "TileConfiguration.txt")


@pytest.mark.parametrize("longest", [33_000, 66_000])
def test_a_long_mosaic_leaves_all_that_can_be_written(tmp_path, longest):
    values = np.random.default_rng(0).normal(1000, 100, (longest, 12)).astype(np.float32)
    half = longest // 2 + 500
    np.save(tmp_path / "a.npy", values[:half])
    np.save(tmp_path / "b.npy", values[longest - half :])
    path = tmp_path / "TileConfiguration.txt"
    path.write_text(f"dim = 2\na.npy; ; (0.0, 0.0)\nb.npy; ; ({longest - half}.0, 0.0)\n")
    made = told("mosaic", path, "--positions", "keep", "--out", tmp_path / "out")
    assert made["shape"] == [longest, 12]
    assert "NIfTI-2" in made["notes"][0]
    np.testing.assert_allclose(np.asanyarray(nib.load(made["outputs"]["image"]).dataobj), values, rtol=1e-5)
    for name in ("image_tif", "image_jpg", "qc_overlap"):
        assert Path(made["outputs"][name]).stat().st_size

"""`opticstream stitch` as a person types it: any kind of tile, a project step by step, and what goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from opticstream.cli.stitch import app
from opticstream.config.coordinates import NativeCoordinates
from opticstream.config.scan import ScanSettings
from opticstream.io.nifti import read_nifti, write_nifti
from opticstream.io.tileconfig import ConfiguredTile, read_tile_configuration, write_tile_configuration
from opticstream.io.tilemap import read_tilemap
from opticstream.io.zarr import read_volume
from opticstream.stages.mosaic import find_coordinates
from opticstream.testing.checksums import tree_checksums
from opticstream.testing.stitching_cases import MOSAIC, make_case

PROJECT = """
[project]
project_name = "p"
project_base_path = "project"
[scan]
samples = 64
b_lines = 64
grid_size_y = 2
tile_overlap = 30.0
scan_order = "column by column"
scan_resolution_3d = [0.01, 0.01, 0.0025]
[[scan.illuminations]]
name = "normal"
columns = 3
a_lines = 72
[processing.mask]
threshold_db = { normal = 50.0 }
[processing.volume]
modalities = ["dBI"]
"""


@pytest.fixture
def case(tmp_path):
    return make_case(tmp_path / "project")


@pytest.fixture
def project(tmp_path):
    """A project file whose tiles have maps and volumes; mosaic and volume are not stitched yet."""
    make_case(tmp_path / "project", volumes=("dBI",))
    file = tmp_path / "project.toml"
    file.write_text(PROJECT)
    return file


def command(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def told(*arguments):
    """Return what a command that must succeed prints for machines."""
    code, output = command(*arguments, "--json")
    assert code == 0, output
    return json.loads(output)


def refused(*arguments):
    """Return the status and the one line that a command that must fail prints."""
    code, output = command(*arguments)
    assert code != 0
    assert output.startswith("error: "), output
    return code, " ".join(output.split())


def configured(case, suffix=".tif", product="aip"):
    """Return a TileConfiguration of the case's tiles in another format, at nominal positions."""
    folder = case.folder / f"as{suffix}"
    folder.mkdir()
    listed = []
    for k, position in enumerate(case.truth.nominal_px, start=1):
        data = read_nifti(case.file(k, product))
        path = folder / f"tile_{k}{suffix}"
        if suffix == ".tif":
            tifffile.imwrite(path, np.ascontiguousarray(data.T))
        elif suffix == ".npy":
            np.save(path, data)
        elif suffix.startswith(".nii"):
            nib.save(nib.Nifti1Image(data, np.eye(4)), path)
        else:
            import tensorstore as ts

            store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
            ts.open(store, create=True, dtype=ts.float32, shape=data.T.shape).result()[...] = data.T
        listed.append(ConfiguredTile(path.name, tuple(position)))
    return write_tile_configuration(folder / "TileConfiguration.txt", listed)


# --- from a TileConfiguration -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".zarr", ".nii", ".nii.gz"])
def test_the_commands_stitch_any_tiles_that_a_configuration_lists(case, suffix):
    source = configured(case, suffix)
    made = told("mosaic", source, "--db", "--out", case.folder / "out")
    assert list(read_nifti(Path(made["outputs"]["aip"])).shape) == made["shape"]
    settings = NativeCoordinates(further_modalities=())
    find_coordinates(MOSAIC, scan=case.scan, settings=settings, tiles_folder=case.tiles, template_path=case.template)
    own = np.array([p.position_px for p in read_tilemap(case.template).places])
    configuration = Path(made["outputs"]["tile_configuration"])
    registered = read_tile_configuration(configuration)
    assert np.allclose([t.position_px for t in registered], own, atol=0.01)
    again = told("mosaic", configuration, "--db", "--positions", "keep", "--out", case.folder / "again")
    assert again["shape"] == made["shape"]


def test_positions_of_a_configuration_can_be_kept(case):
    made = told("mosaic", configured(case), "--positions", "keep", "--out", case.folder / "out")
    extent = np.floor(np.ptp(case.truth.nominal_px, axis=0) + 0.5).astype(int)
    assert made["shape"] == [extent[0] + 72, extent[1] + 64]


@pytest.mark.parametrize("suffix", [".npy", ".nii", ".nii.gz", ".tif", ".zarr"])
def test_volumes_of_a_configuration_are_stitched(tmp_path, suffix):
    made = make_case(tmp_path / "p", columns=2, products=(), volumes=("dBI",))
    source = configured(made, suffix, "dBI")
    assert told("volume", source, "--positions", "keep", "--ngff", "0.4")["shape"][2] == 40
    volume = read_volume(source.parent / "TileConfiguration_dBI.ome.zarr")
    first = read_nifti(made.file(1, "dBI"))
    assert np.array_equal(volume[:40, :35], first[:40, :35])  # what no other tile covers
    assert (source.parent / "TileConfiguration_dBI.ome.zarr" / ".zattrs").exists()


# --- from a project -----------------------------------------------------------------------------------------------


def test_a_project_is_stitched_by_four_commands(project):
    coords = told("coords", project)
    assert coords["verdict"]["grade"] == "good"
    assert told("coords", project)["reused"]
    assert not told("coords", project, "--force")["reused"]
    mosaic = told("mosaic", project)
    focus = told("focus", project)
    assert focus["residual_after_px"] < focus["residual_before_px"]
    assert Path(focus["outputs"]["qc_focus"]).exists()
    assert told("focus", project)["reused"]
    assert not told("focus", project, "--force")["reused"]
    volume = told("volume", project)
    assert volume["mask"] == mosaic["outputs"]["mask"]
    assert volume["shape"][:2] == mosaic["shape"]
    assert {p.name for p in (project.parent / "project" / "mosaic-01" / "stitched").iterdir()} >= {
        "mosaic_001_aip.nii.gz",
        "mosaic_001_dBI.ome.zarr",
        "mosaic_001_qc_coordinates.jpg",
        "mosaic_001_qc_focus.jpg",
    }


def test_a_volume_makes_what_it_needs_first_and_says_what_it_lacks(project):
    """Without the focus map it would be another volume than that of the pipeline, and nobody would know."""
    base = project.parent / "project"
    code, output = command("volume", project)
    assert code == 0, output
    assert (base / "tilemap-normal.j2").exists()
    assert read_nifti(base / "focus-normal.nii").any()
    assert "no mask is applied" in output
    assert "focus map: surfaces differ by" in output


@pytest.mark.parametrize("linear", ["stitch", "volume"])
def test_a_mask_fits_the_volume_whichever_of_both_is_interpolated(project, linear):
    options = ("--set", f'processing.{linear}.interpolation="linear"')
    mosaic = told("mosaic", project, *options)
    volume = told("volume", project, *options)
    assert volume["shape"][:2] == mosaic["shape"]
    assert volume["mask"] == mosaic["outputs"]["mask"]
    blank = np.isnan(read_volume(Path(volume["outputs"]["dBI"]))).all(axis=2)
    assert blank[read_nifti(Path(volume["mask"])) == 0].all()


def test_a_mask_that_keeps_nothing_is_told(project):
    options = ("--set", "processing.mask.threshold_db.normal=95")
    assert (
        "the mask keeps 0% of the pixels (see processing.mask.threshold_db" in command("mosaic", project, *options)[1]
    )
    assert "the mask keeps 99%" in command("mosaic", project)[1]


def test_the_margin_of_the_command_line_is_that_of_the_template(project):
    told("coords", project, "--margin", "23")
    assert read_tilemap(project.parent / "project" / "tilemap-normal.j2").source["margin_px"] == 23


def test_machines_get_json_also_where_a_number_is_not_known(project):
    base = project.parent / "project" / "mosaic-01" / "processed"
    for tile in (1, 2, 3, 5, 6):  # one tile with tissue: no overlap says anything
        write_nifti(base / f"mosaic_001_image_{tile:04d}_aip.nii", np.zeros((72, 64), np.float32))
    verdict = told("coords", project)["verdict"]
    assert verdict["grade"] == "stage only"
    assert verdict["rms_px"] is None


def test_every_scan_order_and_corner_can_be_chosen_on_the_command_line(project):
    """They are settings, so `--set` gives them; the template then lies as the tiles were taken."""
    from opticstream.model.layout import ScanPattern, ScanStart

    assert set(ScanSettings.model_fields) >= {"scan_order", "scan_start"}
    for pattern in ScanPattern:
        for start in ScanStart:
            settings = (f'scan.scan_order="{pattern}"', f'scan.scan_start="{start}"')
            chosen = [word for setting in settings for word in ("--set", setting)]
            told("coords", project, "--force", "--set", 'processing.coordinates.method="nominal"', *chosen)
            places = read_tilemap(project.parent / "project" / "tilemap-normal.j2").places
            away = np.array(places[0].position_px) > 0  # who travels left began at the right
            assert away.tolist() == ["left" in start, "down" in start]


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_wrong_use_and_bad_input_give_their_exit_codes(case, tmp_path):
    assert command("mosaic", tmp_path / "none.txt")[0] == 1
    assert command("volume", configured(case), "--ngff", "0.3")[0] == 2
    assert command("focus", case.folder / "as.tif" / "TileConfiguration.txt")[0] == 2
    code, output = refused("mosaic", tmp_path)
    assert code == 1
    assert "is a folder" in output


def test_a_configuration_with_wrong_names_is_named_with_its_folder(case):
    source = configured(case)
    source.write_text(source.read_text().replace("tile_", "tyle_"))
    assert "none of the 6 tiles that it lists exists in" in refused("coords", source)[1]
    source.write_text(source.read_text().replace("tyle_2.tif", "tyle_1.tif"))
    assert "'tyle_1.tif' is listed 2 times" in refused("mosaic", source)[1]


def test_volumes_at_different_depths_are_refused_and_not_stitched_wrongly(tmp_path):
    made = make_case(tmp_path / "p", columns=2, rows=1, products=(), volumes=("dBI",))
    source = configured(made, ".npy", "dBI")
    tiles = read_tile_configuration(source)
    for depths, status in (((4.0, 4.0), 0), ((4.0, 6.5), 1)):
        placed = [ConfiguredTile(t.name, (*t.position_px, z)) for t, z in zip(tiles, depths, strict=True)]
        write_tile_configuration(source, placed)
        code, output = command("volume", source, "--positions", "keep")
        assert code == status, output
    assert "depths from 4 to 6.5 px" in output


def test_tiles_that_a_configuration_lists_in_vain_are_stitched_around_and_listed(case):
    source = configured(case)
    (source.parent / "tile_4.tif").unlink()
    assert told("mosaic", source, "--db")["missing"] == {"aip": [4]}
    assert "missing tiles, left blank: 4" in command("mosaic", source, "--db")[1]


def test_tiles_of_unequal_size_are_named_with_both_sizes(case):
    source = configured(case)
    tifffile.imwrite(source.parent / "tile_5.tif", np.zeros((64, 71), np.float32))
    for name in ("coords", "mosaic"):
        told = refused(name, source)[1]
        assert "tile_5.tif" in told
        assert "has shape (71, 64), expected (72, 64) (the size of tile_1.tif)" in told


def test_a_volume_of_another_depth_is_named_and_nothing_is_written(project):
    base = project.parent / "project" / "mosaic-01"
    write_nifti(base / "processed" / "mosaic_001_image_0004_dBI.nii", np.zeros((72, 64, 37), np.float32))
    code, output = refused("volume", project)
    assert code == 1
    assert "(72, 64, 37), expected (72, 64, 40) (as most tiles have; process it again" in output
    assert not list(base.glob("stitched/*.ome.zarr"))


def test_a_tile_of_nan_is_stitched_around_and_told(project):
    tile = project.parent / "project" / "mosaic-01" / "processed" / "mosaic_001_image_0005_aip.nii"
    write_nifti(tile, np.full((72, 64), np.nan, np.float32))
    assert told("mosaic", project)["blank"] == [5]
    assert "tiles without any content: 5" in command("mosaic", project)[1]


def test_a_focus_map_of_other_tiles_is_named_with_what_to_turn(project):
    write_nifti(project.parent / "project" / "focus-normal.nii", np.zeros((5, 5), np.float32))
    for name in ("focus", "volume"):
        told = refused(name, project)[1]
        assert "is for tiles of (5, 5) px, expected (72, 64)" in told
        assert "processing.focus.force_refresh" in told


@pytest.mark.parametrize("name", ["coords", "mosaic", "focus", "volume"])
def test_a_template_for_another_grid_is_named_with_what_to_turn(project, name):
    told("coords", project)
    before = tree_checksums(project.parent / "project")
    code, output = refused(name, project, "--set", "scan.grid_size_y=3")
    assert code == 1
    assert "tilemap-normal.j2 is for 3 x 2 tiles of 72 x 64 px, but this mosaic has 3 x 3" in output
    assert "processing.coordinates.force_refresh_coordinates" in output
    assert tree_checksums(project.parent / "project") == before


@pytest.mark.parametrize("name", ["coords", "mosaic", "focus", "volume"])
def test_a_mosaic_of_blank_tiles_is_told_and_nothing_is_written(project, name):
    base = project.parent / "project"
    for tile in (base / "mosaic-01" / "processed").glob("*_aip.nii"):
        write_nifti(tile, np.zeros((72, 64), np.float32))
    before = tree_checksums(base)
    code, output = refused(name, project)
    assert code == 1
    assert "every tile is blank (constant or NaN in aip)" in output
    assert 'coordinates.method = "nominal"' in output
    assert tree_checksums(base) == before


def test_a_damaged_mask_is_named(project):
    mask = Path(told("mosaic", project)["outputs"]["mask"])
    mask.write_bytes(mask.read_bytes()[:40])
    assert mask.name in refused("volume", project)[1]


@pytest.mark.parametrize("name", ["coords", "mosaic"])
def test_a_faulty_tile_is_named_in_one_line_and_nothing_is_written(project, name):
    base = project.parent / "project" / "mosaic-01"
    tile = base / "processed" / "mosaic_001_image_0003_aip.nii"
    tile.write_bytes(tile.read_bytes()[:2000])
    code, output = refused(name, project)
    assert code == 1
    assert "mosaic_001_image_0003_aip.nii" in output
    assert not base.joinpath("stitched").exists()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".zarr", ".npy"])
def test_a_volume_that_cannot_be_read_is_named_in_one_line(tmp_path, suffix):
    made = make_case(tmp_path / "p", columns=2, rows=1, products=(), volumes=("dBI",))
    source = configured(made, suffix, "dBI")
    bad = source.parent / f"tile_2{suffix}"
    if bad.is_dir():
        (chunk,) = [p for p in bad.rglob("*") if p.is_file() and p.name != "zarr.json"]
        chunk.write_bytes(chunk.read_bytes()[:1000])
    else:
        bad.write_bytes(b"this is no volume")
    code, output = refused("volume", source, "--positions", "keep")
    assert code == 1
    assert bad.name in output
    assert not (source.parent / "TileConfiguration_dBI.ome.zarr").exists()


def test_a_mosaic_without_tiles_is_named_with_the_folder_that_was_looked_at(project):
    code, output = refused("mosaic", project, "--mosaic", "7")
    assert code == 1
    assert "none of its 6 tiles has a file of aip in " in output
    assert "mosaic-07/processed" in output


FULL = """
import resource, sys
from opticstream.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


@pytest.mark.parametrize(
    ("name", "bytes_per_file"), [("coords", 3000), ("mosaic", 3000), ("focus", 3000), ("volume", 60_000)]
)
def test_a_disk_that_takes_no_more_is_one_line_and_the_old_results_stand(project, name, bytes_per_file):
    """Files may not grow beyond a size: the system refuses writes as a full disk does, in libraries as well."""
    for step in ("coords", "mosaic", "focus", "volume"):
        told(step, project)
    before = tree_checksums(project.parent)
    options = ["--force"] if name in ("coords", "focus") else ["--linear"] if name == "volume" else ["--shading"]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(bytes_per_file), "stitch", name, str(project), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: [Errno 27] File too large: ")
    assert len(done.stderr.splitlines()) == 1
    after = tree_checksums(project.parent)
    finished = {path: checksum for path, checksum in after.items() if ".partial-" not in path}
    changed = {path for path in finished.keys() | before.keys() if finished.get(path) != before.get(path)}
    # What was small enough is whole; template, focus map and volume, which others wait for, are the old ones.
    assert all((project.parent / path).stat().st_size < bytes_per_file for path in changed)
    assert not [path for path in changed if path.endswith(("j2", "focus-normal.nii")) or "ome.zarr" in path]

"""The commands on files: tile, archive, calibrate."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from opticstream.cli import tile as commands
from opticstream.testing.raw_tiles import fringe_counts, write_spectral_nifti

app = typer.Typer()
app.command("tile")(commands.tile)
app.add_typer(commands.archive_app, name="archive")
app.add_typer(commands.calibrate_app, name="calibrate")

PROJECT = """
[project]
project_name = "t"
project_base_path = "project"
[scan]
samples = 192
b_lines = 7
grid_size_y = 2
[[scan.illuminations]]
name = "normal"
columns = 2
a_lines = 9
"""


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def project(tmp_path):
    (tmp_path / "project.toml").write_text(PROJECT)
    for k in (1, 2):
        write_spectral_nifti(
            tmp_path / f"mosaic_001_image_000{k}_spectral_0007.nii",
            fringe_counts(samples=192, a_lines=9, b_lines=7, seed=k),
        )
    return tmp_path


def test_tile_makes_the_products_of_every_file(project):
    files = sorted(project.glob("*.nii"))
    result = run("tile", *files, "-c", project / "project.toml", "-o", project / "out", "--json", "--archive")
    tiles = json.loads(result.stdout)
    assert [t["tile"] for t in tiles] == ["mosaic-001/tile-0001", "mosaic-001/tile-0002"]
    names = {p.name for p in (project / "out" / "mosaic-01" / "processed").iterdir()}
    assert "mosaic_001_image_0002_dBI.nii" in names
    assert "mosaic_001_image_0001_ori.nii" in names
    assert "2 of 2 copies are intact" in run("archive", "verify", project / "out" / "archived").stdout


def test_tile_makes_only_what_is_asked_for(project):
    file = project / "mosaic_001_image_0001_spectral_0007.nii"
    run("tile", file, "-c", project / "project.toml", "-o", project, "--no-volumes", "--modalities", "aip,mus",
        "--complex-out")  # fmt: skip
    names = {p.name for p in (project / "mosaic-01" / "processed").iterdir()}
    products = {name.removeprefix("mosaic_001_image_0001_").partition(".")[0] for name in names}
    assert products == {"aip", "mus", "surf", "surfraw", "qc"}
    assert (project / "mosaic-01" / "complex" / "mosaic_001_image_0001_complex.nii").is_file()


def test_one_bad_tile_does_not_stop_the_others(project):
    files = sorted(project.glob("*.nii"))
    files[0].write_bytes(files[0].read_bytes()[:-5])
    stranger = project / "stranger.nii"
    stranger.write_bytes(b"")
    result = run("tile", *files, stranger, "-c", project / "project.toml", "-o", project, "--json", code=1)
    first, second, third = json.loads(result.stdout)
    assert "expected" in first["error"]
    assert second["tile"] == "mosaic-001/tile-0002"
    assert "scan.file_name" in third["error"]


def test_name_says_which_tile_a_file_is(project):
    file = (project / "mosaic_001_image_0001_spectral_0007.nii").rename(project / "any.nii")
    run("tile", file, "-c", project / "project.toml", "-o", project, "--name", "mosaic-001/tile-0004")
    assert (project / "mosaic-01" / "processed" / "mosaic_001_image_0004_aip.nii").is_file()
    run("tile", file, "-c", project / "project.toml", "--name", "slice-001", code=2)


def test_archive_verify_notices_damage(project):
    file = project / "mosaic_001_image_0001_spectral_0007.nii"
    run("archive", "write", file, "-o", project / "copies")
    copy = project / "copies" / f"{file.name}.gz"
    copy.write_bytes(copy.read_bytes()[:-9])
    outcome = json.loads(run("archive", "verify", project / "copies", "--json", code=1).stdout)
    assert outcome[0]["problem"]


def test_calibrate_makes_files_that_narrow_the_real_mirrors(tmp_path, cscan):
    spectra = cscan / "mirror_and_dark_spectra_f32.npz"
    mirrors = [f"{spectra}#example_mirror1", f"{spectra}#example_mirror2"]
    dark = ["--dark", f"{spectra}#example_dark_ref"]
    out = tmp_path / "klinear.npy"
    report = json.loads(
        run("calibrate", "wavelength", *mirrors, "--side", 1, "--side", -1, *dark, "-o", out, "--json").stdout
    )
    assert all(row["after_bins"] < 2.5 < 7 < row["before_bins"] for row in report["widths"])
    assert np.load(out).shape == (1024,)
    phase = tmp_path / "dispersion.npy"
    report = json.loads(
        run("calibrate", "dispersion", mirrors[0], *dark, "--positions", out, "-o", phase, "--json").stdout
    )
    assert report["widths"][0]["after_bins"] < 2.3
    run("calibrate", "wavelength", f"{spectra}#nothing", "-o", out, code=1)

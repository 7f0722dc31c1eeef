"""The real recording of the guide goes through the same chain as everything else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.config import DeploymentSettings, load_project
from opticstream.io.nifti import read_nifti
from opticstream.model.ids import TileId
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.testing.bus import LocalBus

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "real-recording.md"


@pytest.fixture(scope="module")
def processed(shared_data, tmp_path_factory):
    """The recording, processed as the guide says, with and without the owners' calibration."""
    folder = tmp_path_factory.mktemp("cscan")
    (block,) = re.findall(r"```toml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    text = block
    owners = np.load(shared_data / "sdoct_cscan/calib_example.npz")
    for name in ("klinear", "dispersion"):
        np.save(folder / f"{name}.npy", owners[name])
    without = re.sub(r"\[scan\.calibration.*?(?=\[processing)", "", text, flags=re.DOTALL).replace(
        "cscan-results", "plain"
    )
    projects = []
    for name, content in (("cscan.toml", text), ("plain.toml", without)):
        (folder / name).write_text(content)
        arguments = [
            "import",
            str(shared_data / "sdoct_cscan/cscan_counts_u16.npy"),
            str(folder / name),
            str(folder / "raw"),
        ]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        project = Project.open(load_project(folder / name), deployment=DeploymentSettings())
        bus = LocalBus(project)
        bus.feed(folder / "raw")
        bus.run()
        projects.append(project)
    return projects


def test_it_yields_volume_surface_maps_and_pictures_and_nothing_fails(processed):
    project = processed[0]
    progress = project_progress(project)
    assert progress.failures == ()
    assert is_finished(project, project.facts.snapshot())
    assert progress.slices[0].state == "skipped"
    assert "one illumination" in progress.slices[0].reason
    for modality in ("dBI", "aip", "mip", "surf"):
        assert np.isfinite(read_nifti(project.paths.tile_product(TileId(1, 1), modality))).any(), modality
    mosaic = project.layout.mosaics(project.layout.slice_of(TileId(1, 1).mosaic))[0]
    assert project.paths.mosaic_product(mosaic, "aip", ".jpg").exists()
    assert project.paths.mosaic_volume(mosaic, "dBI").is_dir()
    assert list(project.paths.processed_folder(mosaic).glob("*_qc.jpg"))


def test_the_calibration_sharpens_it(processed):
    def sharpness(project):
        volume = read_nifti(project.paths.tile_product(TileId(1, 1), "dBI")).astype(float)
        linear = 10 ** (volume / 10)
        return float((linear**2).sum() / linear.sum() ** 2)

    calibrated, plain = map(sharpness, processed)
    assert calibrated > 1.2 * plain

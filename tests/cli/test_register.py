"""`opticstream register` on files, without a project or a server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.io.nifti import write_nifti
from opticstream.testing.slice_phantom import Picture, make_slice

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("maps")
    phantom = make_slice((Picture(), Picture(tilt_deg=-15.0, shift_px=(6, 4))), seed=50)
    names = []
    for k, beam in enumerate(phantom.beams):
        for modality, image in (("ori", beam.orientation_deg), ("biref", beam.birefringence)):
            names.append(str(write_nifti(folder / f"{k}_{modality}.nii.gz", image, voxel_size_mm=(0.01, 0.01, 1.0))))
    return names


def test_four_files_are_enough(files: list[str], tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["register", *files, "--out", str(tmp_path), "--slice", "3", "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["registrations"][0]["good"] is True
    assert (tmp_path / "slice_003_axis.nii.gz").is_file()
    assert Path(summary["outputs"]["axis"]) == tmp_path / "slice_003_axis.nii.gz"


def test_settings_can_be_given(files: list[str], tmp_path: Path) -> None:
    options = ["--set", "transform=translation", "--set", "processing.registration.file_name=s{slice}_{product}"]
    result = RUNNER.invoke(app, ["register", *files, "-o", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "s1_transform.json").read_text())
    np.testing.assert_array_equal(facts["registrations"][0]["matrix_px"], np.eye(2))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("{0} {1} {2}", 2, "two or more illuminations, got 3 files"),
        ("{0} {1} {2} {3} --tilt 0", 2, "--tilt was given 1 times for 2 illuminations"),
        ("{0} {1} {2} {3} --set transform=wild", 2, "processing.registration.transform"),
        ("{0} {1} {2} {3} {0} {1}", 2, "give --tilt once for each of the 3 illuminations"),
        ("{0} {1} {2} gone.nii", 1, "gone.nii: no such file"),
    ],
)
def test_wrong_use_is_explained(files: list[str], tmp_path: Path, arguments: str, code: int, message: str) -> None:
    result = RUNNER.invoke(app, ["register", *arguments.format(*files).split(), "-o", str(tmp_path)])
    assert result.exit_code == code
    assert message in result.output.replace("\n", " ")


def test_strangers_exit_with_1(files: list[str], tmp_path: Path) -> None:
    stranger = make_slice(seed=51).beams[1]
    other = [
        str(write_nifti(tmp_path / f"{name}.nii.gz", image, voxel_size_mm=(0.01, 0.01, 1.0)))
        for name, image in (("ori", stranger.orientation_deg), ("biref", stranger.birefringence))
    ]
    result = RUNNER.invoke(app, ["register", *files[:2], *other, "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert not list((tmp_path / "out").glob("*axis*"))

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
        ("{0} {1} {2} {3} --tilt 0", 2, "--tilt was given 1 times, expected 2: once per illumination"),
        ("{0} {1} {2} {3} --set transform=wild", 2, "processing.registration.transform"),
        ("{0} {1} {2} {3} {0} {1}", 2, "--tilt is missing; give it once for each of the 3 illuminations"),
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


def test_sample_adds_what_is_registered_and_says_what_is_missing(tmp_path: Path) -> None:
    from opticstream.model.ids import SliceId
    from opticstream.pipeline.slices import register_slice
    from opticstream.testing.slice_phantom import SlicePhantom
    from opticstream.testing.stitched_project import slice_ready, stitched_project

    shape = (120, 100)
    good, other = (
        make_slice((Picture(shape=shape), Picture(tilt_deg=-15.0, shape=shape)), seed=s, grain_px=8.0) for s in (1, 2)
    )
    mixed = SlicePhantom(good.axis, good.birefringence, good.white, (good.beams[0], other.beams[1]))
    project = stitched_project(tmp_path, [good, mixed, good], more="\n[processing.volume]\nenabled = false\n")
    file = str(tmp_path / "project.toml")

    result = RUNNER.invoke(app, ["sample", file])
    assert result.exit_code == 1
    assert "no slice is stitched and registered yet" in result.output

    for number in (1, 2):
        register_slice(project, slice_ready(project, number))
    result = RUNNER.invoke(app, ["sample", file])
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "slices in the stacks: 1, 2" in lines
    assert "slice 3 is missing: not registered yet" in lines
    assert any(line.startswith("slice 2 has no axis: no fibre axis: tilted onto normal:") for line in lines)
    assert project.facts.has(SliceId(2), "stacked")

    register_slice(project, slice_ready(project, 3))
    result = RUNNER.invoke(app, ["sample", file, "--slice", "3", "--json"])
    report = json.loads(result.stdout)
    assert (report["slices"], report["missing"]) == ([1, 2, 3], [])
    assert Path(report["preview"]).is_file()
    assert Path(report["outputs"]["normal_aip_nifti"]) == tmp_path / "project/sample/normal_aip.nii"

    result = RUNNER.invoke(app, ["sample", file, "--slice", "9"])
    assert result.exit_code == 1
    assert "slices [9] are not stitched and registered" in " ".join(result.output.split())
    result = RUNNER.invoke(app, ["sample", file, "--slice", "1", "--rebuild"])
    assert result.exit_code == 1
    assert "leave the slice numbers out" in " ".join(result.output.split())
    assert RUNNER.invoke(app, ["sample", file, "--rebuild"]).exit_code == 0

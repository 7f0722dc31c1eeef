"""MATLAB's functions, run by Octave, give the numbers of our own code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from opticstream.compute.axis import axis_from_projections, projections_from_axis
from opticstream.config import DeploymentSettings, load_project
from opticstream.config.engines import MatlabEngine
from opticstream.io.nifti import write_nifti
from opticstream.model.ids import TileId
from opticstream.stages.slice import axis_solver_by_matlab
from opticstream.stages.tile import Comparison, compare_engines

ROOT = Path(__file__).resolve().parents[2]


def compared(acquired: Path, octave: str, folder: Path, **overrides) -> Comparison:
    project = load_project(
        acquired / "project.toml",
        overrides={
            "processing.engine.kind": "matlab",
            "processing.reconstruction.threads": 1,
            "processing.enface.depth": 30,
            "processing.enface.retardance_method": "mean",
            **overrides,
        },
    )
    source = sorted((acquired / "raw").glob("mosaic_001_image_0006*"))[0]  # tissue all over
    return compare_engines(
        source,
        TileId(1, 6),
        scan=project.scan,
        processing=project.processing,
        deployment=DeploymentSettings(matlab_command=octave),
        folder=folder,
    )


def differing(made: Comparison) -> list[str]:
    return [f"{one.product}: {one.most:g} {one.unit}" for one in made.differences if not one.is_small]


def test_octave_and_our_own_code_agree_on_every_product_of_a_tile(acquired, octave, tmp_path):
    made = compared(acquired, octave, tmp_path)
    assert not differing(made)
    assert {one.product for one in made.differences} == {
        "complex", "dBI", "R3D", "O3D", "aip", "mip", "ret", "ori", "biref", "surf", "surfraw",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {
            "processing.engine.by_complex": True,
            "processing.enface.orientation_method": "mean",
            "processing.enface.birefringence_method": "slope",
            "processing.enface.retardance_method": "mean",
            "processing.enface.surface": "gradient",
            "processing.reconstruction.zero_padding": 2,
            "processing.reconstruction.window": "hann",
            "processing.reconstruction.flip_z": False,
        },
        {
            "processing.enface.birefringence_method": "unwrap",
            "processing.enface.surface": "gradient_threshold",
            "processing.enface.offset": -3,
            "processing.enface.modalities": ["aip", "mip", "ret", "ori", "biref", "surf", "mus"],
            "processing.reconstruction.flip_phase": True,
            "processing.reconstruction.background": "none",
        },
        {"processing.enface.surface": 30, "processing.reconstruction.residual_background": False},
        {"processing.reconstruction.flip_channel2": False, "processing.reconstruction.cut": 10},
    ],
    ids=["by-complex", "unwrap", "flat", "unflipped"],
)
def test_they_agree_for_every_method(acquired, octave, tmp_path, settings):
    assert not differing(compared(acquired, octave, tmp_path, **settings))


@pytest.mark.slow
def test_they_agree_on_a_recorded_background_a_given_surface_and_a_complex_tile(acquired, octave, tmp_path):
    project = load_project(acquired / "project.toml")
    made = compared(acquired, octave, tmp_path / "first")
    assert not differing(made)
    complex_tile = next((tmp_path / "first" / "native").rglob("*complex*.nii"))
    surface = write_nifti(tmp_path / "surface.nii", np.full((64, 64), 31.0, np.float32))
    scan = project.scan.model_copy(update={"raw_format": "complex"})
    enface = project.processing.enface.model_copy(update={"surface": str(surface)})
    made = compare_engines(
        complex_tile,
        TileId(1, 1),
        scan=scan,
        processing=project.processing.model_copy(update={"enface": enface, "engine": MatlabEngine()}),
        deployment=DeploymentSettings(matlab_command=octave),
        folder=tmp_path / "second",
    )
    assert not differing(made)


@pytest.mark.slow
def test_octave_and_our_own_code_agree_on_fibre_axes(octave, tmp_path):
    random = np.random.default_rng(0)
    axis, birefringence = random.normal(size=(60, 50, 3)), random.uniform(3e-4, 2e-3, (60, 50))
    tilts = [0.0, -15.0]
    angle, seen = projections_from_axis(axis, birefringence, tilt_deg=tilts)
    angle += random.normal(scale=0.3, size=angle.shape)
    seen += random.normal(scale=1e-6, size=seen.shape)
    angle[0, :3, :3] = np.nan
    solver = axis_solver_by_matlab(
        MatlabEngine(), DeploymentSettings(matlab_command=octave), tmp_path / "registered", name="slice 1"
    )
    ours = axis_from_projections(angle, seen, tilt_deg=tilts)
    theirs = axis_from_projections(angle, seen, tilt_deg=tilts, solver=solver)
    apart = np.degrees(np.arccos(np.clip(np.abs((ours.axis * theirs.axis).sum(-1)), 0, 1)))
    assert np.nanpercentile(apart, 99.9) < 0.1
    assert (ours.flags != theirs.flags).mean() < 1e-3
    assert np.nanmedian(np.abs(ours.uncertainty_deg - theirs.uncertainty_deg)) < 0.01
    assert not list((tmp_path / "registered").iterdir())


def test_a_difference_beyond_its_limit_is_told():
    made = Comparison((), 1.0, 1.0)
    from opticstream.stages.tile import Difference

    small, large = Difference("aip", "dB", 0.02, 0.001, 0.0, 0.01), Difference("aip", "dB", 0.02, 0.02, 0.0, 0.01)
    assert dataclasses.replace(made, differences=(small,)).agrees
    assert not dataclasses.replace(made, differences=(small, large)).agrees
    assert not Difference("aip", "dB", 0.0, float("nan"), 0.0, 0.01).is_small


def test_the_functions_are_part_of_the_installed_package():
    from opticstream.engines import FUNCTIONS

    names = {path.stem for path in (FUNCTIONS / "+opticstream").glob("*.m")}
    assert {"run_call", "spectral_to_complex", "complex_to_processed", "spectral_to_processed", "find_surface"} <= names
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "matlab/**/*.m" in settings["tool"]["setuptools"]["package-data"]["opticstream"]


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "src/opticstream/matlab").rglob("*.m")), ROOT / "tests/matlab/run_tests.m"],
    ids=lambda path: path.stem,
)
def test_the_functions_keep_to_what_matlab_and_octave_share(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        # A quotation mark after a name or a bracket is a transpose, any other one begins a text.
        code = re.sub(r"(?<=[\w)\]}'])'|'(?:[^'\n]|'')*'", "", line).partition("%")[0]
        of_octave = re.search(
            r"#|!|\"|\+\+|--|[-+*/|&]=(?!=)|\*\*"
            r"|\b(endif|endfor|endwhile|endfunction|endswitch|end_try_catch|end_unwind_protect"
            r"|unwind_protect|until|printf|puts|strtrunc)\b",
            code,
        )
        assert of_octave is None, f"{path.name}, line {number}: {line.strip()}"


@pytest.mark.slow
def test_the_functions_pass_their_own_tests_in_octave(octave, tmp_path):
    import subprocess

    ran = subprocess.run(
        [octave, "--norc", "--quiet", "--eval", "run_tests"],
        cwd=ROOT / "tests" / "matlab",
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr

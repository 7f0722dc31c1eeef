"""Illuminations registered by MATLAB's functions: they agree with our own code, and what they leave is judged by it."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.axis import IlluminationImages, slice_axis_from_illuminations
from opticstream.compute.registration import MappingTask, PlanarTransform, register_images
from opticstream.config import DeploymentSettings
from opticstream.config.engines import MatlabEngine
from opticstream.model.errors import EngineError, ProcessingError
from opticstream.stages.slice import axis_solver_by_matlab, mapping_finder_by_matlab
from opticstream.testing.slice_phantom import Picture, axial_error_deg, make_slice

SHAPE = (150, 130)


def two_beams(shape=SHAPE, *, rotation_deg=2.0, scale=(0.97, 1.0)):
    moved = (shape[0] - 10, shape[1] + 10)
    tilted = Picture(tilt_deg=-15.0, rotation_deg=rotation_deg, shift_px=(9.0, -6.0), shape=moved, scale=scale)
    return make_slice((Picture(shape=shape), tilted))


def finder_by(program, folder, **engine):
    return mapping_finder_by_matlab(
        MatlabEngine(**engine), DeploymentSettings(matlab_command=program), folder, name="slice 1"
    )


def both_mappings(octave, folder, *, details=True, **options):
    geometry = {"rigid": {"scale": (1.0, 1.0)}, "translation": {"scale": (1.0, 1.0), "rotation_deg": 0.0}}
    one, other = two_beams(**geometry.get(options.get("freedom"), {})).beams
    options |= {"details": [(one.intensity, other.intensity)] if details else [], "scale_guess": (0.966, 1.0)}
    ours = register_images(one.birefringence, other.birefringence, **options)
    theirs = register_images(
        one.birefringence, other.birefringence, finder=finder_by(octave, folder / "registered"), **options
    )
    return ours, theirs, one, other


def apart_px(one: PlanarTransform, other: PlanarTransform) -> float:
    corners = [[0, 0], [SHAPE[0], 0], [0, SHAPE[1]], SHAPE]
    return float(np.abs(one.points(corners) - other.points(corners)).max())


def test_octave_and_our_own_code_register_two_illuminations_alike(octave, tmp_path):
    ours, theirs, _, other = both_mappings(octave, tmp_path)
    assert ours.good
    assert theirs.good
    assert apart_px(ours.mapping, theirs.mapping) < 0.02
    assert apart_px(PlanarTransform(other.matrix, other.offset), theirs.mapping) < 0.3
    assert not list((tmp_path / "registered").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"details": False},
        {"freedom": "rigid"},
        {"freedom": "translation"},
        {"bend_sigma_px": 30.0},
        {"max_pixels": 8000, "bend_sigma_px": 30.0},
    ],
    ids=["birefringence-alone", "rigid", "translation", "bent", "shrunk-and-bent"],
)
def test_they_agree_for_every_freedom_and_size(octave, tmp_path, options):
    ours, theirs, *_ = both_mappings(octave, tmp_path, **options)
    assert apart_px(ours.mapping, theirs.mapping) < 0.1
    if "bend_sigma_px" in options:
        bends = [found.mapping.displacement for found in (ours, theirs)]
        assert np.abs(bends[0] - bends[1]).max() < 0.1


@pytest.mark.slow
def test_the_axes_of_a_slice_registered_and_solved_by_octave_are_those_of_our_own_code(octave, tmp_path):
    truth = two_beams()
    illuminations = [
        IlluminationImages(
            name, maps.orientation_deg, maps.birefringence, maps.tilt_deg, details={"aip": maps.intensity}
        )
        for name, maps in zip(("normal", "tilted"), truth.beams, strict=True)
    ]
    solver = axis_solver_by_matlab(
        MatlabEngine(), DeploymentSettings(matlab_command=octave), tmp_path / "registered", name="slice 1"
    )
    ours = slice_axis_from_illuminations(illuminations, axis_sigma_px=1.0)
    theirs = slice_axis_from_illuminations(
        illuminations, axis_sigma_px=1.0, finder=finder_by(octave, tmp_path / "registered"), solver=solver
    )
    assert ours.axes is not None
    assert theirs.axes is not None
    apart = axial_error_deg(ours.axes.axis, theirs.axes.axis)
    sure = (ours.axes.flags == 0) & (theirs.axes.flags == 0)
    assert np.nanpercentile(apart[sure], 95) < 0.1
    errors = [np.nanmedian(axial_error_deg(one.axes.axis, truth.axis)[sure]) for one in (ours, theirs)]
    assert errors[1] == pytest.approx(errors[0], abs=0.05)


@pytest.mark.slow
def test_a_labs_own_registration_is_used_and_judged_by_our_limits(octave, tmp_path):
    (tmp_path / "lab box").mkdir()
    (tmp_path / "lab box" / "lab_register.m").write_text(
        "function lab_register(source, outputs, settings)\n"
        "  given = load(source);\n"
        "  assert(isequal(size(given.fixed), [150 130]) && strcmp(settings.transform, 'affine'));\n"
        "  matrix = eye(2); offset = [40 40];\n"
        "  save('-v6', outputs.mapping, 'matrix', 'offset');\n"
        "end\n"
    )
    one, other = two_beams().beams
    finder = finder_by(
        octave,
        tmp_path / "registered",
        functions={"register_illuminations": "lab_register"},
        paths=(tmp_path / "lab box",),
    )
    found = register_images(one.birefringence, other.birefringence, finder=finder)
    assert found.mapping.offset.tolist() == [40.0, 40.0]
    assert any("parts of the images disagree" in reason for reason in found.failures)


def task() -> MappingTask:
    image, valid = np.zeros((6, 5), np.float32), np.ones((6, 5), bool)
    return MappingTask((image,), (image,), valid, valid, "affine", 0.0, 3.0, (1.0, 1.0), 8.0, 10_000)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"offset": [1.0, 2.0]}, r"slice 1: MATLAB wrote no variable `matrix`; it wrote \['offset'\]"),
        ({"matrix": np.eye(3), "offset": [1.0, 2.0]}, r"matrix with the shape \(3, 3\) .* expected .* \(2, 2\)"),
        ({"matrix": np.eye(2), "offset": [np.nan, 2.0]}, "offset with values that are not finite"),
        (
            {"matrix": np.eye(2), "offset": [1.0, 2.0], "displacement": np.zeros((5, 6, 2))},
            r"displacement with the shape \(5, 6, 2\) .* expected .* \(6, 5, 2\)",
        ),
    ],
)
def test_a_mapping_that_is_none_is_refused_by_name(stand_in, tmp_path, arrays, words):
    from scipy.io import savemat

    savemat(tmp_path / "answer.mat", arrays)
    stand_in.plan(slice_1={"answer": str(tmp_path / "answer.mat")})
    with pytest.raises(ProcessingError, match=words):
        finder_by(str(stand_in.path), tmp_path / "registered")(task())
    assert not list((tmp_path / "registered").iterdir())


def test_a_crash_while_registering_is_told_as_that_of_the_slice(stand_in, tmp_path):
    stand_in.plan(slice_1={"do": "signal", "signal": "SIGSEGV"})
    with pytest.raises(EngineError, match=r"slice 1: MATLAB crashed"):
        finder_by(str(stand_in.path), tmp_path / "registered")(task())


@pytest.mark.slow
def test_the_command_registers_and_solves_by_octave_where_the_project_says_so(octave, monkeypatch, tmp_path):
    import json

    from typer.testing import CliRunner

    from opticstream.cli import app
    from opticstream.io.nifti import read_nifti, write_nifti

    head = '[project]\nproject_name = "p"\nproject_base_path = "out"\n'
    (tmp_path / "p.toml").write_text(head + '[processing.engine]\nkind = "matlab"\n')
    files, options = [], []
    for name, maps in zip("nt", two_beams().beams, strict=True):
        files += [str(write_nifti(tmp_path / f"{name}_ori.nii", maps.orientation_deg))]
        files += [str(write_nifti(tmp_path / f"{name}_biref.nii", maps.birefringence))]
        options += ["--intensity", str(write_nifti(tmp_path / f"{name}_aip.nii", maps.intensity))]
    monkeypatch.setenv("OPTICSTREAM_MATLAB_COMMAND", octave)
    made = []
    for number, project in enumerate(([], ["--project", str(tmp_path / "p.toml")])):
        out = tmp_path / f"registered {number}"
        ran = CliRunner().invoke(app, ["register", *files, *options, *project, "--out", str(out), "--json"])
        assert ran.exit_code == 0, ran.output
        made.append(json.loads(ran.stdout)["registrations"][0]["offset_px"])
        assert np.isfinite(read_nifti(out / "slice_001_axis.nii.gz")).any()
    assert np.abs(np.subtract(*made)).max() < 0.02
    assert made[0] != made[1]  # two programs have found them

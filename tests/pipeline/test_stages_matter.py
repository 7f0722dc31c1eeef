"""Each stage matters: with a trivial one in its place the validation against the phantom's truth fails.

The full-size demo tiles, one slice, without volumes; real stages, no server.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.pipeline.project import Project
from opticstream.sim.demo import demo_phantom, write_demo
from opticstream.sim.rig import VirtualRig
from opticstream.sim.validate import Report, validate_project
from opticstream.testing.bus import LocalBus


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scanned")
    project_file, _ = write_demo(folder, slices=1)
    config = load_project(project_file)
    rig = VirtualRig(config, demo_phantom(slices=1), folder / "raw", folder / "truth", calibration_folder=folder)
    rig.run()
    return folder


def validated(scanned: Path, base: Path, **overrides: object) -> Report:
    quick = {
        "processing.volume.enabled": False,
        "processing.archive.enabled": False,
        "processing.sample.enabled": False,
    }
    config = load_project(
        scanned / "project.toml",
        overrides={"project_base_path": str(base), "save_volumes": False, **quick, **overrides},
    )
    bus = LocalBus(Project.open(config, deployment=DeploymentSettings(attempts=1)))
    bus.feed(scanned / "raw")
    bus.run()
    return validate_project(config, scanned / "truth")


def missed(report: Report) -> set[str]:
    return {figure.quantity for figure in report.summary if figure.bound is not None and not figure.passed}


def test_with_all_stages_every_bound_is_met(scanned, tmp_path):
    report = validated(scanned, tmp_path)
    assert report.problems == ()
    assert missed(report) == set()
    assert report.passed


@pytest.mark.slow
def test_the_nominal_grid_misses_the_position(scanned, tmp_path):
    report = validated(scanned, tmp_path, **{"processing.coordinates.method": "nominal"})
    assert "position" in missed(report)


@pytest.mark.slow
def test_a_flat_surface_misses_the_surface(scanned, tmp_path):
    report = validated(scanned, tmp_path, surface=40)
    assert "surface" in missed(report)


@pytest.mark.slow
def test_a_constant_angle_misses_the_orientation(scanned, tmp_path, monkeypatch):
    from opticstream.compute.reconstruction import axis_window_mean as original

    name = "opticstream.stages.tile._enface_maps.axis_window_mean"
    monkeypatch.setattr(name, lambda *a, **k: np.full_like(original(*a, **k), 30.0))
    report = validated(scanned, tmp_path, **{"processing.enface.orientation_method": "mean"})
    assert "orientation" in missed(report)


@pytest.mark.slow
def test_without_k_linearization_the_validation_fails(scanned, tmp_path):
    report = validated(scanned, tmp_path, **{"scan.calibration.linearization": {"method": "none"}})
    assert not report.passed
    assert missed(report) & {"surface", "orientation", "birefringence"}

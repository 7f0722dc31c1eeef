"""An undisturbed run of the small demo, by which every disturbed one is judged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from opticstream.config import DeploymentSettings, load_project
from opticstream.pipeline.project import Project
from opticstream.sim.demo import demo_phantom, write_demo
from opticstream.sim.rig import VirtualRig
from opticstream.testing.bus import LocalBus
from opticstream.testing.chaos.outcome import Outcome, differences


@pytest.fixture(scope="session")
def calm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small demo that was processed without any trouble; not to be changed."""
    folder = tmp_path_factory.mktemp("calm")
    project_file, _ = write_demo(folder, slices=1, small=True)
    config = load_project(project_file)
    VirtualRig(config, demo_phantom(slices=1), folder / "raw", folder / "truth", calibration_folder=folder).run()
    bus = LocalBus(Project.open(config, deployment=DeploymentSettings()))
    bus.feed(folder / "raw")
    bus.run()
    return folder


@pytest.fixture(scope="session")
def calm(calm_folder: Path) -> Outcome:
    """What an undisturbed run comes to."""
    project = Project.open(load_project(calm_folder / "project.toml"))
    outcome = Outcome.of(project)
    assert differences(project, outcome) == []
    return outcome


@pytest.fixture
def acquisition(calm_folder: Path, tmp_path: Path) -> Path:
    """The raw tiles, calibration and project file of the undisturbed run, not processed yet."""
    return Path(
        shutil.copytree(calm_folder, tmp_path / "acquisition", ignore=shutil.ignore_patterns("project", "truth"))
    )

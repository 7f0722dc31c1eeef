"""What tests of all floors share: real recordings, a small acquisition, a Prefect server of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tests.services import program

from opticstream.system.cores import start_with_one_blas_thread

start_with_one_blas_thread()  # two processes of tests on two cores: with more threads each waits for the other's


def _shared_data() -> Path:
    root = Path(__file__).resolve().parents[1]
    return Path(os.environ.get("OPTICSTREAM_SHARED_DATA") or root.parent / "shared" / "data")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings; tests that need it are skipped without it."""
    folder = _shared_data()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set OPTICSTREAM_SHARED_DATA)")
    return folder


@pytest.fixture(scope="session")
def cscan(shared_data: Path) -> Path:
    """A recording of a spectral-domain microscope, with the owners' calibration."""
    return shared_data / "sdoct_cscan"


@pytest.fixture(scope="session")
def octave() -> str:
    """Path of Octave; without it a test is skipped, in CI it fails."""
    return program("octave-cli")


@pytest.fixture(scope="session")
def acquired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with project.toml, calibration, truth and the raw tiles of one small slice; not to be changed."""
    from opticstream.config import load_project
    from opticstream.io.atomic import write_text
    from opticstream.sim.demo import demo_phantom, project_text
    from opticstream.sim.rig import VirtualRig

    folder = tmp_path_factory.mktemp("acquired")
    text = project_text(
        name="small", slices=1, samples=256, b_lines=64, a_lines=64, a_lines_tilted=56, columns=3, rows=2
    )
    config = load_project(write_text(folder / "project.toml", text))
    rig = VirtualRig(config, demo_phantom(slices=1), folder / "raw", folder / "truth", calibration_folder=folder)
    rig.run()
    return folder


@pytest.fixture
def acquisition(acquired: Path, tmp_path: Path) -> Path:
    """A copy of the small acquisition that a test may change and process."""
    return Path(shutil.copytree(acquired, tmp_path / "acquisition"))


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory):
    """Yield the address of the API of a server of our own."""
    from opticstream.flows.server import EmbeddedServer

    with EmbeddedServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server.api_url

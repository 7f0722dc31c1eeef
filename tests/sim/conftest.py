from __future__ import annotations

import os
from pathlib import Path

import pytest

from opticstream.config import ProjectConfig
from opticstream.testing.small_phantom import small_project_config


@pytest.fixture
def config(tmp_path: Path) -> ProjectConfig:
    """A project of two 2 x 2 mosaics of small tiles."""
    return small_project_config(tmp_path / "project")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings; tests that need it are skipped without it."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("OPTICSTREAM_SHARED_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set OPTICSTREAM_SHARED_DATA)")
    return folder

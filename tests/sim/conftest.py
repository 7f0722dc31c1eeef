from __future__ import annotations

from pathlib import Path

import pytest

from opticstream.config import ProjectConfig
from opticstream.testing.small_phantom import small_project_config


@pytest.fixture
def config(tmp_path: Path) -> ProjectConfig:
    """A project of two 2 x 2 mosaics of small tiles."""
    return small_project_config(tmp_path / "project")

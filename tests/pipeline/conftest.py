"""A project of two illuminations in which nothing has happened yet."""

from __future__ import annotations

from pathlib import Path

import pytest

PROJECT = """
[project]
project_name = "p"
project_base_path = "out"
[scan]
grid_size_y = 2
illuminations = [{ name = "normal", columns = 2, a_lines = 350 }, { name = "tilted", columns = 1, a_lines = 200 }]
"""


@pytest.fixture
def project_file(tmp_path: Path) -> Path:
    file = tmp_path / "p.toml"
    file.write_text(PROJECT)
    return file

"""Commands take a project file that another host has written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.cli.project import _make_folder
from opticstream.config import config_from_mapping

PROJECT = r"""
[project]
project_name = "p"
project_base_path = '\\rig\data\I80\out'
[scan]
grid_size_y = 2
illuminations = [{ name = "normal", columns = 2, a_lines = 350 }]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "p.toml").write_text(PROJECT, encoding="utf-8")
    return tmp_path / "p.toml"


def test_the_path_map_says_where_its_folder_lies(file, tmp_path, monkeypatch):
    monkeypatch.setenv("OPTICSTREAM_PATH_MAP", json.dumps([{"from": r"\\rig\data", "to": str(tmp_path / "mnt")}]))
    shown = CliRunner().invoke(app, ["project", "show", str(file), "--json"])
    assert json.loads(shown.output)["project"]["project_base_path"] == str(tmp_path / "mnt" / "I80" / "out")
    status = CliRunner().invoke(app, ["status", str(file), "--json"])
    assert status.exit_code == 0, status.output


def test_without_one_the_error_names_the_setting_and_no_folder_is_made(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["status", str(file)])
    assert answer.exit_code == 2
    assert r"project.project_base_path = '\\\\rig\\data\\I80\\out'" in answer.output
    assert "OPTICSTREAM_PATH_MAP" in answer.output
    assert [path.name for path in tmp_path.iterdir()] == ["p.toml"]


def test_registering_makes_the_folder_where_this_host_can(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def config(base: str):
        return config_from_mapping({"project": {"project_name": "p", "project_base_path": base}})

    _make_folder(config(str(tmp_path / "new" / "out")))
    assert (tmp_path / "new" / "out").is_dir()
    (tmp_path / "file").write_bytes(b"")
    _make_folder(config(str(tmp_path / "file" / "out")))
    _make_folder(config(r"D:\acq"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]

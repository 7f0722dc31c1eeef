"""The guide to several hosts: its path map is one, and maps as the table says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from opticstream.config import DeploymentSettings
from opticstream.config.path_map import path_here

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "several-hosts.md").read_text(encoding="utf-8")


def test_the_path_map_of_the_guide_maps_as_its_table_says(monkeypatch):
    (command,) = re.findall(r"^export OPTICSTREAM_PATH_MAP=.*?'$", GUIDE, re.MULTILINE | re.DOTALL)
    word = shlex.split(command)[1]
    monkeypatch.setenv(*word.split("=", 1))
    path_map = DeploymentSettings().path_map
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 5
    for said, here in rows:
        assert str(path_here(said, path_map)) == here

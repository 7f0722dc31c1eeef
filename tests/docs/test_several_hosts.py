"""The guide to several hosts: its path map maps as the table says, and each of its commands is one that a test runs."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from tests.hosts.walk import ADDRESSES, PAGE, SHARE, THREE_HOSTS, TWO_HOSTS, blocks_of_page

from opticstream.config import DeploymentSettings
from opticstream.config.path_map import path_here

ROOT = Path(__file__).resolve().parents[2]
GUIDE = PAGE.read_text(encoding="utf-8")
WALK = GUIDE.partition("## Pools and limits")[0]
INSTALLED = {"postgresql": "A", "redis-server": "A", "python3-venv": "each host"}


def test_the_path_map_of_the_guide_maps_as_its_table_says(monkeypatch):
    (command,) = re.findall(r"^export OPTICSTREAM_PATH_MAP='\[$.*?'$", GUIDE, re.MULTILINE | re.DOTALL)
    word = shlex.split(command)[1]
    monkeypatch.setenv(*word.split("=", 1))
    path_map = DeploymentSettings().path_map
    rows = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 5
    for said, here in rows:
        assert str(path_here(said, path_map)) == here


def test_each_command_of_the_walk_is_run_by_a_test_or_installs():
    blocks = blocks_of_page()
    assert len(re.findall(r"^```\w+$", WALK, re.MULTILINE)) == len(blocks), "a block of the walk has no comment above"
    settings = {"settings", "settings of the database"}
    run = [(block.host, block.step) for block in blocks if block.step not in {"install"} | settings]
    assert len(run) == len(set(run))
    assert set(run) == TWO_HOSTS | THREE_HOSTS
    assert {(b.host, b.step) for b in blocks if b.step in settings} == {
        *((host, "settings") for host in ADDRESSES),
        ("A", "settings of the database"),
    }


def test_each_block_of_the_walk_is_a_script_of_the_shell():
    for block in blocks_of_page():
        done = subprocess.run(["bash", "-n"], input=block.script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_what_the_walk_installs_is_well_formed_and_found_by_the_settings():
    found = {}
    lines = [
        (b.host, shlex.split(line)) for b in blocks_of_page() if b.step == "install" for line in b.script.splitlines()
    ]
    for host, words in lines:
        match words:
            case ["apt-get", "install", "--yes", *packages]:
                found |= dict.fromkeys(packages, host)
            case ["python3", "-m", "venv", folder]:
                assert all(
                    f"export PATH={folder}/bin:$PATH\n" in b.script for b in blocks_of_page() if b.step == "settings"
                )
            case [pip, "install", "-c", constraints, package]:
                assert pip == f"{folder}/bin/pip"
                assert (ROOT / constraints).is_file()
                assert (ROOT / package.partition("[")[0] / "pyproject.toml").is_file()
            case _:
                raise AssertionError(words)
    assert found == INSTALLED


def test_the_table_of_the_walk_names_the_hosts_as_the_test_builds_them():
    rows = re.findall(r"^\| ([A-Z]) \| ([\d.]+) \| `(.+?)` \|", GUIDE, re.MULTILINE)
    assert {host: (address, share) for host, address, share in rows} == {
        host: (ADDRESSES[host], SHARE[host]) for host in ADDRESSES
    }

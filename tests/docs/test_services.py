"""The guides to services and clusters: files, units and pools that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "how-to" / name for name in ("install-services.md", "cluster.md")]
UNITS = {unit.name.removesuffix(".service").removesuffix("@") for unit in ROOT.glob("deploy/systemd/*.service")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_units_of_the_guide_exist(page):
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"deploy/[\w./*-]*\w", text)) - {"deploy/.env"}
    assert names
    for name in names:
        assert "secrets/" in name or list(ROOT.glob(name)), f"{page.name}: there is no {name}"
    for unit in re.findall(r"(?:systemctl [\w ./*'@-]*|journalctl -u ')(opticstream-[\w-]+)", text):
        assert unit.rstrip("-") in UNITS | {"opticstream"}, f"{page.name}: there is no unit {unit}"


def test_every_unit_is_installed_and_started_in_the_guide():
    text = PAGES[0].read_text(encoding="utf-8")
    assert all(unit in text for unit in UNITS)

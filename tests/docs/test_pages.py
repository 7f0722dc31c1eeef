"""The documentation agrees with the code: generated pages, examples, links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from opticstream.config import config_from_mapping

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["project-file.md", "events.md"])
def test_generated_pages_are_up_to_date(name):
    written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == generator().PAGES[name](), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


def test_the_project_file_of_the_guide_is_valid():
    import tomllib

    text = (ROOT / "docs" / "how-to" / "real-recording.md").read_text(encoding="utf-8")
    block = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    config = config_from_mapping(tomllib.loads(block[1]))
    assert config.scan.tile_shape(0) == (100, 100)


def test_the_readme_begins_with_the_two_commands():
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("\n")[:6]
    assert any(line.startswith("make demo") for line in head)
    assert any(line.startswith("make test") for line in head)


def test_the_code_of_the_registration_guide_runs(capsys):
    text = (ROOT / "docs" / "how-to" / "register.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "register.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("(1, 2, 3)")
    assert any(line.startswith("True ") for line in said)
    assert said[-1] == "(200, 160, 3) ()"

"""The documentation agrees with the code: generated pages, examples, links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("name", ["project-file.md", "deployment.md", "events.md", "chain.md", "modalities.md"])
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


class TestGuideToRecordings:
    """Every step that this repository alone can take is taken, with small waiting times."""

    GUIDE = (ROOT / "docs" / "how-to" / "real-recording.md").read_text(encoding="utf-8")

    @staticmethod
    def call(*arguments: str) -> str:
        from typer.testing import CliRunner

        from opticstream.cli import app

        answer = CliRunner().invoke(app, list(arguments))
        assert answer.exit_code == 0, answer.output
        return answer.output

    def commands(self, name: str) -> list[list[str]]:
        lines = re.findall(rf"^opticstream ({name} .*)$", self.GUIDE, re.MULTILINE)
        assert lines, name
        return [line.split() for line in lines]

    @staticmethod
    def processed(project_file: Path, raw: Path) -> Any:
        """What `run` does, without a server."""
        from opticstream.config import DeploymentSettings, load_project
        from opticstream.pipeline.progress import project_progress
        from opticstream.pipeline.project import Project
        from opticstream.testing.bus import LocalBus

        project = Project.open(load_project(project_file), deployment=DeploymentSettings(attempts=1))
        bus = LocalBus(project)
        bus.feed(raw)
        bus.run()
        progress = project_progress(project)
        assert progress.failures == ()
        assert [slice_.state for slice_ in progress.slices] == ["skipped"]
        return project

    def test_a_reader_with_this_repository_alone_can_follow_it(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for command in (*self.commands("sim make"), *self.commands("sim rig")):
            self.call(*command)
        project = self.processed(Path("single/project.toml"), Path("single/raw"))
        for name in ("processed/mosaic_001_image_0001_dBI.nii", "stitched/mosaic_001_aip.jpg",
                     "stitched/mosaic_001_dBI.ome.zarr", "stitched/mosaic_001_dBI.ome.zarr.sha256"):  # fmt: skip
            assert (project.paths.base / "mosaic-01" / name).exists(), name
        for command in self.commands("validate"):
            assert "all bounds met" in self.call(*command)

        (block,) = re.findall(r"<!-- run: arrays -->\n```python\n(.*?)```", self.GUIDE, re.DOTALL)
        exec(compile(block, "real-recording.md", "exec"), {})
        said = self.call(*self.commands("import volts")[0])
        assert "64 B-scans, 1 channel, 64 A-lines, 512 samples" in said
        self.processed(Path("volts.toml"), Path("volts-raw"))

    def test_it_names_where_the_real_recording_is_published_and_no_folder_that_a_reader_lacks(self):
        assert "https://github.com/MartinPdeS/OCT_calibration" in self.GUIDE
        assert "MIT" in self.GUIDE
        assert "../" not in re.sub(r"\]\([^)]*\)", "", self.GUIDE)


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

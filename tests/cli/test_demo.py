"""`opticstream demo`: what is resumed is what was begun."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from opticstream.cli import app
from opticstream.cli import demo as module
from opticstream.cli.console import DONE


@pytest.fixture
def files_of_a_run(monkeypatch, tmp_path):
    """Call the demo with options; return the contents of its files when the pipeline would start."""
    seen = []

    class Stub:
        def __init__(self, _folder, project_file, phantom_file, *, quiet):
            seen.append((project_file.read_text(), phantom_file.read_text()))

        def run(self):
            return DONE

    monkeypatch.setattr(module, "_Demo", Stub)
    monkeypatch.setattr(module, "_validate", lambda *_arguments, **_options: True)

    def run(*options: str) -> tuple[str, str]:
        result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), "--json", *options])
        assert result.exit_code == 0, result.output
        return seen[-1]

    return run


def test_a_resumed_demo_keeps_its_project_and_phantom_whatever_the_options_say(files_of_a_run):
    begun = files_of_a_run("--small", "--slices", "1", "--seed", "5")
    assert files_of_a_run("--resume") == begun
    assert files_of_a_run("--resume", "--slices", "3") == begun
    assert files_of_a_run() != begun


def test_a_demo_that_was_killed_before_its_files_were_written_gets_them_at_the_resumption(files_of_a_run, tmp_path):
    begun = files_of_a_run("--small")
    (tmp_path / "demo" / "phantom.json").unlink()
    assert files_of_a_run("--resume", "--small") == begun

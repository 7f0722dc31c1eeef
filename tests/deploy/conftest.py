"""Where the files of `deploy/` are, and whether what they call exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from opticstream.cli import app
from opticstream.config import DeploymentSettings
from opticstream.config.deployment import variable_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def assert_command(words: Sequence[str]) -> None:
    """Fail unless `opticstream WORDS...` is understood: the command, its options, and the form of their values."""
    command = typer.main.get_command(app)
    _do_nothing(command)
    try:
        command.main(list(words), "opticstream", standalone_mode=False)
    except Exception as error:
        said = error.format_message() if hasattr(error, "format_message") else repr(error)
        raise AssertionError(f"opticstream {' '.join(words)}: {said}") from error


def _do_nothing(command: Any) -> None:
    """Take out what a command and those below it do, so that only their words are read."""
    command.callback = lambda **_values: None
    for below in getattr(command, "commands", {}).values():
        _do_nothing(below)


def settings_of(environment: Mapping[str, str], monkeypatch: Any) -> DeploymentSettings:
    """Return the settings of a host with these variables; fail where one is none of ours."""
    known = {variable_of(name) for name in DeploymentSettings.model_fields}
    for name, value in environment.items():
        assert name in known, f"{name}: there is no such setting"
        monkeypatch.setenv(name, value)
    return DeploymentSettings()

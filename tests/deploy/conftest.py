"""Where the files of `deploy/` are, and whether what they call exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from click.exceptions import ClickException

from opticstream.cli import app
from opticstream.config import DeploymentSettings
from opticstream.config.deployment import variable_of

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def assert_command(words: Sequence[str]) -> None:
    """Fail unless `opticstream WORDS...` is understood: the command, its options, and the form of their values."""
    command: Any = typer.main.get_command(app)
    context = None
    words = list(words)
    try:
        while True:
            context = command.make_context(command.name or "opticstream", list(words), parent=context)
            if not hasattr(command, "commands"):
                return
            words = [*context.protected_args, *context.args] if hasattr(context, "protected_args") else context.args
            if not words:
                assert command.invoke_without_command, f"{command.name}: a command is missing"
                return
            name, command, words = command.resolve_command(context, words)
            assert command is not None, f"there is no command {name}"
    except ClickException as error:
        raise AssertionError(f"opticstream {' '.join(words)}: {error.format_message()}") from error


def settings_of(environment: Mapping[str, str], monkeypatch: Any) -> DeploymentSettings:
    """Return the settings of a host with these variables; fail where one is none of ours."""
    known = {variable_of(name) for name in DeploymentSettings.model_fields}
    for name, value in environment.items():
        assert name in known, f"{name}: there is no such setting"
        monkeypatch.setenv(name, value)
    return DeploymentSettings()

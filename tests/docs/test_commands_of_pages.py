"""Commands that the pages name exist, with the options that they are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from opticstream.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
COMMAND = typer.main.get_command(app)


def commands_in(page: Path) -> list[str]:
    """Command lines in code spans and blocks, without what stands before and after them."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:\w*)\n(.*?)```", text, re.DOTALL)
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + [
        " ".join(span.split()) for span in spans
    ]
    found = (re.match(r"(?:[A-Z_]+=\S+ )*opticstream ([a-z].*)", line.strip().removeprefix("$ ")) for line in lines)
    return [re.split(r"\s+#|\s[|&;>]|\s{3,}", match[1])[0] for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist_with_their_options(page):
    for line in commands_in(page):
        command: Any = COMMAND
        words = line.split()
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            if words[0] not in command.commands and getattr(command, "default_command", ""):
                command = command.commands[command.default_command]
                break
            name = words.pop(0)
            for part in name.split("|"):
                assert part in command.commands, f"opticstream {line}: there is no command {part}"
            command = command.commands[name.split("|")[0]]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for option in re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", " ".join(words)):
            assert option in known | {"--help", "--version"}, f"opticstream {line}: there is no option {option}"


def test_the_recovery_guide_names_the_commands_of_recovery():
    named = {
        " ".join(re.findall(r"^[a-z]+(?: (?:show|reset|verify|rebuild))?", line))
        for line in commands_in(ROOT / "docs/how-to/recover.md")
    }
    assert named >= {
        "status",
        "retry",
        "failures",
        "history",
        "run",
        "state verify",
        "state reset",
        "state rebuild",
        "state show",
    }

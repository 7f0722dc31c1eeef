"""Whatever command is used wrongly: exit status 2, and JSON where JSON was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import typer

from opticstream.cli import app


def commands(group, path=()) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield the words of each command, and whether it has `--json`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
            if not command.invoke_without_command:
                continue
        yield (*path, name), any("--json" in one.opts for one in command.params)


COMMAND = typer.main.get_command(app)
ALL = list(commands(COMMAND))


@pytest.fixture
def call(capsys):
    """Return exit status, standard output and standard error of a command."""

    def called(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            COMMAND.main(list(arguments), prog_name="opticstream")
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return called


def test_there_are_commands_with_json():
    assert sum(has_json for _, has_json in ALL) > 15


@pytest.mark.parametrize(("words", "has_json"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_an_unknown_option_is_told_as_json(call, words, has_json):
    status, shown, said = call(*words, "--json", "--no-such-option")
    told = json.loads(shown)
    assert (status, told["exit_status"]) == (2, 2)
    assert ("--no-such-option" if has_json else "--json") in told["error"] or "Missing" in told["error"]
    assert said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "--json"], "project"),
        (["status", "p.toml", "--json", "--watch=maybe"], "--watch"),
        (["no-such-command", "--json"], "no-such-command"),
        (["state", "no-such-command", "--json"], "no-such-command"),
        (["worker", "--limit", "0", "--json"], ""),
        (["server", "--json", "--port", "0"], ""),
    ],
)
def test_missing_and_wrong_arguments_are_told_as_json(call, arguments, words):
    status, shown, _ = call(*arguments)
    told = json.loads(shown)
    assert (status, told["exit_status"]) == (2, 2)
    assert words in told["error"]


def test_without_json_nothing_is_printed_on_the_standard_output(call):
    for arguments in (["status"], ["status", "--no-such-option"], ["status", "--", "--json", "x", "y"]):
        assert call(*arguments)[:2] == (2, ""), arguments


def test_help_is_help(call):
    status, shown, _ = call("status", "--help", "--json")
    assert status == 0
    assert "exit_status" not in shown

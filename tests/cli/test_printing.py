"""What is printed is printed as it is, whatever names hold and wherever it goes."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.tree import Tree

import opticstream.cli
from opticstream.cli.console import PlainConsole, styled

NAMES = ["I55 [slice] [/left]", "[red]x", ":smile: {{ x }} {0}", "--slice", "ü ñ 脳", "100% #1 ? & * 'q' \"q\"", "[/]"]
PROJECT = '[project]\nproject_name = """{name}"""\nproject_base_path = """{base}"""\n'


def _run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "opticstream", *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are_in_lines_tables_and_trees(name):
    console = PlainConsole()
    console.file = io.StringIO()
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    console.print(styled(name, "bold red"), name)
    console.print(table)
    tree = Tree(name)
    tree.add(name)
    console.print(tree)
    assert console.file.getvalue().count(name) >= 6


def test_a_terminal_obeys_nothing_that_a_name_holds():
    console = PlainConsole()
    console.file = io.StringIO()
    console.print("a\x1b[31mb\rc\x07", styled("d\x1b]0;title\x07", "red"))
    assert "\x1b" not in console.file.getvalue()


def test_no_text_of_the_commands_holds_markup():
    markup = re.compile(r"\[/?(bold|red|green|yellow|dim)?( \w+)?\]")
    folder = Path(opticstream.cli.__file__).parent
    found = [
        f"{path.name}:{node.lineno}: {node.value!r}"
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and markup.search(node.value)
        and not (path.name == "__init__.py" and "opticstream demo" in node.value)  # the help, which typer renders
    ]  # fmt: skip
    assert found == []


@pytest.mark.slow
def test_a_project_with_any_name_is_checked_and_shown(tmp_path):
    name = "I55 [slice] [/left] :x: {{y}} 100%"
    folder = tmp_path / "old [2024] [red]"
    folder.mkdir()
    (folder / "project.toml").write_text(PROJECT.format(name=name, base="out [/b]"), encoding="utf-8")
    for command in (["status"], ["project", "check"], ["state", "show"], ["failures"]):
        done = _run(*command, str(folder / "project.toml"))
        assert done.returncode == 0, done.stderr
        assert command == ["failures"] or name in done.stdout
    refused = _run("status", str(folder / "none.toml"))
    assert "old [2024] [red]/none.toml" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_file_name_that_is_not_utf8_is_told_and_harms_nothing(tmp_path):
    import json

    (tmp_path / "project.toml").write_text(PROJECT.format(name="x", base="out"))
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.nii"
    with open(raw, "wb") as file:
        file.write(b"x")
    for options in ([], ["--json"]):
        done = _run("tile", raw, "--config", str(tmp_path / "project.toml"), "--out", str(tmp_path / "o"), *options)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        if options:
            assert "\udcff" in json.loads(done.stdout)[0]["source"]
        else:
            assert "\\udcff" in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "| head -c 1 > /dev/null"])
def test_closed_streams_and_readers_that_leave_make_no_noise(tmp_path, closed):
    (tmp_path / "project.toml").write_text(PROJECT.format(name="x", base="out"))
    command = f"'{sys.executable}' -m opticstream project show '{tmp_path}/project.toml' {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


SURROUNDINGS = [
    {"PYTHONWARNINGS": "error"},
    {"PYTHONOPTIMIZE": "2"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"TERM": "dumb", "COLUMNS": "20", "NO_COLOR": "1", "TZ": "Mars/Phobos"},
]


@pytest.mark.parametrize("surroundings", SURROUNDINGS, ids=lambda s: next(iter(s)))
def test_commands_work_whatever_a_person_has_set(tmp_path, surroundings):
    (tmp_path / "project.toml").write_text(PROJECT.format(name="Größe", base="out"), encoding="utf-8")
    for command in (["--help"], ["status", str(tmp_path / "project.toml")]):
        done = _run(*command, env={**os.environ, **surroundings})
        assert done.returncode == 0, done.stderr[-2000:]


def test_an_impossible_variable_is_named_in_one_line(tmp_path):
    (tmp_path / "project.toml").write_text(PROJECT.format(name="x", base="out"))
    done = _run("run", str(tmp_path / "project.toml"), str(tmp_path), env={**os.environ, "OPTICSTREAM_TILE_LIMIT": "x"})
    assert done.returncode == 2
    assert done.stderr.startswith("error: OPTICSTREAM_TILE_LIMIT = x")
    assert len(done.stderr.strip().splitlines()) == 1

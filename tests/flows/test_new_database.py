"""A new home gets its tables from a kept copy, and nothing of anybody's."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from opticstream.flows import new_database
from opticstream.flows.new_database import DATABASE, keep_database, kept_folder, lay_database
from opticstream.flows.server import EmbeddedServer, is_healthy

NOTE = "memo_store.toml"


@pytest.fixture(autouse=True)
def folder_of_this_account(tmp_path, monkeypatch):
    (tmp_path / "private").mkdir()
    monkeypatch.setattr(new_database, "private_folder", lambda: tmp_path / "private")


def home_of_a_server(home: Path, *, variables: int = 0) -> Path:
    """Return a home as a server leaves it that has just made its tables, or is in use."""
    home.mkdir()
    with contextlib.closing(sqlite3.connect(home / DATABASE)) as connection, connection:
        connection.execute("CREATE TABLE block_type (name)")
        connection.execute("INSERT INTO block_type VALUES ('Secret')")
        connection.execute("CREATE TABLE variable (name)")
        connection.executemany("INSERT INTO variable VALUES (?)", [(str(n),) for n in range(variables)])
    (home / NOTE).write_text("registered")
    return home


def empty_home(home: Path) -> Path:
    home.mkdir()
    return home


def tables(home: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(home / DATABASE)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def test_the_first_home_makes_its_tables_and_the_next_one_gets_a_copy(tmp_path):
    assert lay_database(empty_home(tmp_path / "first")), "nothing is kept yet"
    made = home_of_a_server(tmp_path / "made")
    assert keep_database(made)
    new = empty_home(tmp_path / "new")
    assert not lay_database(new)
    assert tables(new) == tables(made)
    assert (new / NOTE).read_text() == "registered"
    assert sorted(path.name for path in new.iterdir()) == sorted([DATABASE, NOTE])


def test_a_home_that_has_a_database_keeps_it(tmp_path):
    assert keep_database(home_of_a_server(tmp_path / "made"))
    used = home_of_a_server(tmp_path / "used", variables=2)
    before = (used / DATABASE).read_bytes()
    assert not lay_database(used)
    assert (used / DATABASE).read_bytes() == before
    (used / DATABASE).rename(used / f"{DATABASE}-wal")  # of a database that was taken away by hand
    assert not lay_database(used)
    assert not (used / DATABASE).exists()


def test_a_database_that_was_used_or_is_unfinished_is_not_kept(tmp_path):
    assert not keep_database(home_of_a_server(tmp_path / "used", variables=1))
    unfinished = home_of_a_server(tmp_path / "unfinished")
    (unfinished / NOTE).unlink()
    assert not keep_database(unfinished)
    kept = kept_folder()
    assert kept is not None
    assert list(kept.parent.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "no database", "no note"])
def test_a_damaged_copy_is_not_used(tmp_path, damage):
    assert keep_database(home_of_a_server(tmp_path / "made"))
    kept = kept_folder()
    assert kept is not None
    if damage == "no note":
        (kept / NOTE).unlink()
    elif damage == "cut":
        (kept / DATABASE).write_bytes((kept / DATABASE).read_bytes()[:5000])
    else:
        (kept / DATABASE).write_text("this is no database")
    home = empty_home(tmp_path / "home")
    assert lay_database(home) or damage == "no note"
    assert not (home / NOTE).exists(), "the server itself registers what the database lacks"


@pytest.mark.server
def test_a_server_on_a_copy_has_what_a_server_makes_itself(tmp_path):
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        with EmbeddedServer(home) as server:
            assert is_healthy(server.api_url)
        assert kept_folder().exists()  # type: ignore[union-attr]
    first, second = (tables(home) for home in homes)
    assert first == second
    notes = [(home / NOTE).read_bytes() for home in homes]
    assert notes[0] == notes[1], "the second server has found the note, and all blocks registered"
    modified = (kept_folder() / DATABASE).stat().st_mtime_ns  # type: ignore[operator]
    assert (homes[1] / DATABASE).stat().st_mtime_ns > modified, "it was copied, not made and kept again"

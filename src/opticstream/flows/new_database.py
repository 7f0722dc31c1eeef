"""The database of a new home: a copy of one that has its tables already.

Prefect makes the tables of a new database by some hundred migrations and then registers its types of blocks: seven
seconds of processor time for an outcome that depends on nothing but Prefect's version. The outcome is kept among this
account's replaceable files. It only saves work: a server brings a copied database up to date as it does any other, and
where there is no copy it makes all tables itself. Does not import Prefect.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import sqlite3
from pathlib import Path

from opticstream.io.atomic import atomic_folder, atomic_path
from opticstream.system.places import private_folder

DATABASE = "prefect.db"
_REGISTERED = "memo_store.toml"
"""Prefect's note, in its home, of the types of blocks that the database has."""
_SAME_IN_ALL = {"alembic_version", "block_type", "block_schema", "block_schema_reference"}
"""Tables that have rows before a server was used; rows in any other belong to somebody."""


def kept_folder() -> Path | None:
    """Return where a database of the installed Prefect is kept; None where there is no folder for it."""
    folder = private_folder()
    return None if folder is None else folder / f"new-database-{importlib.metadata.version('prefect')}"


def lay_database(home: Path, /) -> bool:
    """Give a home that has no database one with all tables, and return whether it has to make its tables itself."""
    if any(home.glob(f"{DATABASE}*")):
        return False
    kept = kept_folder()
    if kept is None or not _is_whole(kept / DATABASE):
        return True
    with contextlib.suppress(OSError):
        # The note last: with it alone, the server would believe that a database without them has the types of blocks.
        for name in (DATABASE, _REGISTERED):
            with atomic_path(home / name) as temporary:
                shutil.copyfile(kept / name, temporary)
        return False
    return True


def keep_database(home: Path, /) -> bool:
    """Keep a copy of a database that a server has just made, and return whether it is kept.

    One that has been used since, by another command of the same home, is not.
    """
    kept = kept_folder()
    if kept is None or not (home / _REGISTERED).exists():
        return False
    with contextlib.suppress(OSError, sqlite3.Error), atomic_folder(kept) as folder:
        with contextlib.closing(sqlite3.connect(home / DATABASE)) as connection:
            connection.execute("VACUUM INTO ?", (str(folder / DATABASE),))
        if _tables_with_rows(folder / DATABASE) - _SAME_IN_ALL:
            raise sqlite3.DataError("the database has been used")
        shutil.copyfile(home / _REGISTERED, folder / _REGISTERED)
        return True
    return False


def _tables_with_rows(database: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name for name in names if connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()}


def _is_whole(database: Path) -> bool:
    """Return whether a kept database is there and undamaged."""
    if not database.exists():
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database)) as connection:
        return bool(connection.execute("PRAGMA quick_check").fetchone() == ("ok",))
    return False

"""The database of a server of several processes: waited for, as Redis is, and brought up to date by one at a time.

Prefect's replicas would each migrate the tables and register their block types when they start, and fail when two do so
at once. Here ``all`` and ``upgrade`` do it under a lock of PostgreSQL, and ``api`` and ``services`` wait for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import redis
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from prefect.server.database import PrefectDBInterface, provide_database_interface
from prefect.server.database.alembic_commands import alembic_config
from prefect.server.models.block_registration import run_block_auto_registration
from sqlalchemy.ext.asyncio import AsyncEngine

from opticstream.config.secrets import without_password
from opticstream.model.errors import ServerError

PATIENCE_S = 300.0
"""How long a server waits for its database, or for its tables to be brought up to date, in seconds."""
_LONGEST_MIGRATION_S = 3600.0
_LOOK_S = 1.0
_LOCK = 0x6F70746963  # a number of our own among PostgreSQL's advisory locks
_HOPELESS = {
    "28P01": "the user or the password is wrong",
    "28000": "the user is not let in (see pg_hba.conf)",
    "3D000": "there is no such database; make it with `createdb`",
    "42501": "the user may not do this",
}
"""States of SQL that no waiting changes."""
Say = Callable[[str], object]


def prepare_database(role: str, /, *, say: Say, patience_s: float = PATIENCE_S) -> None:
    """Return when a server of this role can start on the configured database.

    Parameters
    ----------
    role : str
        ``all`` and ``upgrade`` bring the tables up to date, others wait until somebody has.
    say : callable
        Told what is waited for.
    patience_s : float
        How long to wait at most, in seconds.

    Raises
    ------
    ServerError
        The database cannot be reached, or is not up to date, in time.
    """
    asyncio.run(_prepare(role, say, patience_s))


def reach_redis(url: str, /, *, say: Say, patience_s: float = PATIENCE_S) -> None:
    """Return when a Redis answers; parameters as in `prepare_database`.

    Raises
    ------
    ServerError
        It refuses the password, or does not answer in time.
    """
    shown = without_password(url)
    end, told = time.monotonic() + patience_s, False
    with redis.Redis.from_url(url, socket_connect_timeout=5.0, socket_timeout=5.0) as client:
        while True:
            try:
                client.ping()
                return
            except (redis.AuthenticationError, redis.exceptions.NoPermissionError, redis.ResponseError) as error:
                raise ServerError(f"Redis {shown}: it refuses this server ({_one_line(error)})") from None
            except (redis.RedisError, OSError) as error:
                if time.monotonic() > end:
                    raise ServerError(
                        f"Redis {shown}: no answer within {patience_s:g} s ({_one_line(error)})"
                    ) from None
                if not told:
                    say(f"waiting for Redis {shown} ({_one_line(error)})")
                    told = True
            time.sleep(_LOOK_S)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


async def _prepare(role: str, say: Say, patience_s: float) -> None:
    database = provide_database_interface()
    shown = without_password(str(database.database_config.connection_url))
    engine = await database.engine()
    try:
        await _reachable(engine, shown, say, patience_s)
        if role in ("all", "upgrade"):
            async with _alone(engine, shown, say):
                before = await _revision(engine)
                await database.create_db()
                await _register_blocks(database)
            after = await _revision(engine)
            if role == "upgrade" or before != after:
                say(f"database {shown}: " + ("is up to date" if before == after else "brought up to date"))
        else:
            await _up_to_date(engine, Path(database.orm.versions_dir), shown, say, patience_s)
    finally:
        await engine.dispose()


async def _reachable(engine: AsyncEngine, shown: str, say: Say, patience_s: float) -> None:
    """Wait until the database answers."""
    end, told = time.monotonic() + patience_s, False
    while True:
        try:
            async with engine.connect() as connection:
                await connection.execute(sa.text("select 1"))
                return
        except (OSError, sa.exc.SQLAlchemyError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            reason = _hopeless(error)
            if reason is not None:
                raise ServerError(f"database {shown}: {reason}") from None
            said = _one_line(error)
            if time.monotonic() > end:
                raise ServerError(f"database {shown}: no answer within {patience_s:g} s ({said})") from None
            if not told:
                say(f"waiting for the database {shown} ({said})")
                told = True
        await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def _alone(engine: AsyncEngine, shown: str, say: Say) -> AsyncIterator[None]:
    """Hold the lock of those who change the tables; it ends with its connection, however the holder dies."""
    if engine.dialect.name != "postgresql":
        yield
        return
    async with engine.connect() as connection:
        lock = await connection.execution_options(isolation_level="AUTOCOMMIT")
        end, told = time.monotonic() + _LONGEST_MIGRATION_S, False
        while not (await lock.execute(sa.text("select pg_try_advisory_lock(:n)"), {"n": _LOCK})).scalar():
            if time.monotonic() > end:
                raise ServerError(f"database {shown}: another process has changed its tables for an hour")
            if not told:
                say(f"database {shown}: another process brings it up to date; waiting")
                told = True
            await asyncio.sleep(_LOOK_S)
        try:
            yield
        finally:
            await lock.execute(sa.text("select pg_advisory_unlock(:n)"), {"n": _LOCK})


async def _register_blocks(database: PrefectDBInterface) -> None:
    async with await database.session() as session:
        await run_block_auto_registration(session=session)


async def _up_to_date(engine: AsyncEngine, versions: Path, shown: str, say: Say, patience_s: float) -> None:
    """Wait until somebody has brought the tables to what this Prefect needs."""
    scripts = ScriptDirectory.from_config(alembic_config())
    scripts.version_locations = [str(versions)]
    needed, known = scripts.get_current_head(), {script.revision for script in scripts.walk_revisions()}
    assert needed is not None, f"no migrations in {versions}"
    end, told = time.monotonic() + patience_s, False
    advice = "run `opticstream server upgrade` once, with this version of Prefect"
    while (found := await _revision(engine)) != needed:
        if found is not None and found not in known:
            raise ServerError(
                f"database {shown}: brought up to date by a newer Prefect than this host's; install the same one here"
            )
        if time.monotonic() > end:
            state = "has no tables" if found is None else "has the tables of an older Prefect"
            raise ServerError(f"database {shown}: {state} after {patience_s:g} s of waiting; {advice}")
        if not told:
            say(f"waiting for the tables of the database {shown}; {advice}")
            told = True
        await asyncio.sleep(_LOOK_S)


async def _revision(engine: AsyncEngine) -> str | None:
    """Return up to which migration the database is, None where it has no tables."""
    async with engine.connect() as connection:
        if not await connection.run_sync(lambda sync: sa.inspect(sync).has_table("alembic_version")):
            return None
        return (await connection.execute(sa.text("select version_num from alembic_version"))).scalar()


def _hopeless(error: BaseException) -> str | None:
    """Return why waiting cannot help; None where it can."""
    seen: BaseException | None = error
    while seen is not None:
        state: Any = getattr(seen, "sqlstate", None)
        if state in _HOPELESS:
            return _HOPELESS[state]
        seen = getattr(seen, "orig", None) or seen.__cause__ or seen.__context__
    return None

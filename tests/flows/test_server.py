"""The embedded server: its own home, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from opticstream.flows.server import EmbeddedServer, is_healthy
from opticstream.model.errors import ServerError

pytestmark = pytest.mark.server

SESSION = """
import os, sys
from pathlib import Path
from opticstream.flows.session import local_session
with local_session(Path(sys.argv[1])) as session:
    server = session.server
    session.check()
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME
    assert str(PREFECT_API_URL.value()) == server.api_url
    assert str(PREFECT_HOME.value()) == sys.argv[1]
    print(server.api_url)
assert "PREFECT_API_URL" not in os.environ
"""


def test_a_session_leaves_nothing_running_and_a_persons_profile_alone(tmp_path):
    person, home = tmp_path / "person", tmp_path / "home"
    person.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {"HOME": str(person)}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(home)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not is_healthy(done.stdout.strip())
    assert not (person / ".prefect").exists()
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(home).encode() in (entry / "environ").read_bytes():
                left.append(entry.name)
        except OSError:
            continue
    assert left == []
    assert (home / "prefect.db").exists()


def test_a_server_that_cannot_start_says_why(tmp_path):
    (tmp_path / "prefect.db").write_text("this is no database")
    with pytest.raises(ServerError, match="did not start"):
        EmbeddedServer(tmp_path).start()


REMEMBERED = """
from prefect.settings import get_current_settings, PREFECT_LOGGING_LEVEL, temporary_settings
from prefect.settings.base import PrefectBaseSettings
from opticstream.flows.server_process import remember_rendered_settings
settings = get_current_settings()
plain, key = settings.to_environment_variables(exclude_unset=True), settings.hash_key()
calls = []
render = PrefectBaseSettings.to_environment_variables
PrefectBaseSettings.to_environment_variables = lambda self, **k: calls.append(self) or render(self, **k)
remember_rendered_settings()
assert settings.to_environment_variables(exclude_unset=True) == plain
assert settings.hash_key() == key
once = len(calls)
assert settings.hash_key() == key and settings.to_environment_variables(exclude_unset=True) == plain
assert len(calls) == once > 0
with temporary_settings({PREFECT_LOGGING_LEVEL: "CRITICAL"}):
    assert get_current_settings().hash_key() != key
"""


def test_a_server_renders_its_settings_once_and_to_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", REMEMBERED],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


SERVICES = """
import asyncio
from datetime import timedelta
from docket import Docket, Worker
from opticstream.flows.server_process import look_for_services_every

look_for_services_every(0.5)

async def main():
    async with Docket(name="x", url="memory://") as docket:
        rarely = timedelta(seconds=0.5)
        own, told = Worker(docket), Worker(docket, scheduling_resolution=timedelta(seconds=2))
        assert (own.scheduling_resolution, own.minimum_check_interval) == (rarely, rarely)
        assert told.scheduling_resolution == timedelta(seconds=2)
        ran = []

        async def service():
            ran.append(1)

        docket.register(service)
        async with own:
            await docket.add(service)()
            await asyncio.wait_for(own.run_until_finished(), 60)
        assert ran == [1]

asyncio.run(main())
"""


def test_a_server_looks_for_its_own_services_less_often_and_still_runs_them(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SERVICES],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


TWO_WRITERS = """
import asyncio, sys
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration
from opticstream.flows.server_process import begin_writing_at_once

if sys.argv[1] == "waiting":
    begin_writing_at_once()

async def main():
    database = AioSqliteConfiguration("sqlite+aiosqlite:///" + sys.argv[2])
    engine = await database.engine()
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE run (number INTEGER)"))
    read = asyncio.Event()

    async def reads_then_writes(number, wait=None):
        session = await database.session(engine)
        async with session, database.begin_transaction(session):
            await session.execute(sa.text("SELECT * FROM run"))
            if wait is not None:
                read.set()
                await asyncio.wait([wait], timeout=1)
            await session.execute(sa.text(f"INSERT INTO run VALUES ({number})"))

    async def second():
        await read.wait()
        await reads_then_writes(2)

    other = asyncio.ensure_future(second())
    await reads_then_writes(1, wait=other)
    await other

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["waiting", "Prefect's own"])
def test_requests_that_read_and_then_write_wait_for_each_other(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-c", TWO_WRITERS, kind, str(tmp_path / "runs.db")],
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(tmp_path)},
        check=False,
    )
    if kind == "waiting":
        assert done.returncode == 0, done.stderr[-3000:]
        with contextlib.closing(sqlite3.connect(tmp_path / "runs.db")) as database:
            assert database.execute("SELECT number FROM run ORDER BY number").fetchall() == [(1,), (2,)]
    else:  # once this fails, Prefect waits by itself and our change can go
        assert "database is locked" in done.stderr

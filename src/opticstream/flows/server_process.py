"""The process of a Prefect server: ``python -m opticstream.flows.server_process --role R --host H --port N``.

It is ``prefect server start``, or for the role ``services`` ``prefect server services start``, with four things
changed. What is loaded when the server has started stays out of the garbage collector, which otherwise stops the
server's one thread for a third of a second to visit 300,000 objects. And one thing is remembered: for every flow run
that a trigger starts, Prefect 3.8 asks for its application by the hash of its settings and sets up its logging, and
renders all its settings twice for it: 0.4 s in which the server, one thread, does nothing else. In a server process the
settings never change. Third, transactions of an SQLite database wait for each other instead of failing. Fourth, the
queue of the server's own services is looked at once a second instead of four times: none of them begins more often than
every few seconds, and the looks were a third of what an idle server costs.

Where the database is PostgreSQL, which several processes share, it is brought up to date before the server starts.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import os
import runpy
import sys
import threading
from collections import OrderedDict
from datetime import timedelta
from functools import partialmethod
from typing import Any

from opticstream.flows.shared_server import ROLES
from opticstream.model.errors import ServerError

OWN_MIGRATIONS = "PREFECT_SERVER_DATABASE_MIGRATE_ON_START"
"""Prefect's setting that says, as ``false``, that a server does not bring its database up to date by itself."""
REDIS = "PREFECT_REDIS_MESSAGING_URL"
_REMEMBERED = 64
_LOADED_AFTER_S = 30.0
"""Seconds after which a server has loaded what it needs."""


def remember_rendered_settings() -> None:
    """Let Prefect's settings be rendered as environment variables once per object, in this process."""
    try:
        from prefect.settings.base import PrefectBaseSettings

        render = PrefectBaseSettings.to_environment_variables
    except (ImportError, AttributeError):  # another Prefect than the one that this was written for: it works as it does
        return
    # The object is kept beside what it rendered to, so that no other object gets its identity meanwhile.
    known: OrderedDict[tuple[int, tuple[Any, ...]], tuple[PrefectBaseSettings, dict[str, str]]] = OrderedDict()

    def rendered(self: PrefectBaseSettings, *args: Any, **options: Any) -> dict[str, str]:
        key = (id(self), (*args, *sorted(options.items())))
        if key not in known:
            known[key] = (self, render(self, *args, **options))
            if len(known) > _REMEMBERED:
                known.popitem(last=False)
        return dict(known[key][1])

    PrefectBaseSettings.to_environment_variables = rendered  # type: ignore[method-assign]


def begin_writing_at_once() -> None:
    """Let every transaction of an SQLite database that Prefect begins wait for the right to write before it reads.

    Prefect begins most of them as readers that write later ("deferred"). SQLite refuses the write, without waiting, if
    another has written since: the server answers 503 and the client waits 2, 4, 8 seconds before it asks again.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def immediate(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> tuple[str, Any]:
        return ("BEGIN IMMEDIATE" if statement == "BEGIN DEFERRED" else statement), parameters

    event.listen(Engine, "before_cursor_execute", immediate, retval=True)


def look_for_services_every(seconds: float = 1.0, /) -> None:
    """Let the worker of the server's own services look that often, in seconds, for one that is due."""
    try:
        from docket import Worker
    except ImportError:  # another Prefect than the one that this was written for: it works as it does
        return
    begin = Worker.__init__
    known = inspect.signature(begin).parameters
    pause = timedelta(seconds=seconds)
    rarely = {name: pause for name in ("minimum_check_interval", "scheduling_resolution") if name in known}
    Worker.__init__ = partialmethod(begin, **rarely)  # type: ignore[method-assign,assignment]


def keep_out_of_collections(after_s: float = _LOADED_AFTER_S, /) -> None:
    """Take what is loaded when the server has started out of the garbage collector, once, some seconds from now."""

    def freeze() -> None:
        gc.collect()
        gc.freeze()

    timer = threading.Timer(after_s, freeze)
    timer.daemon = True
    timer.start()


def main() -> None:
    """Be what ``--role`` says: ``all``, ``api``, ``services`` or ``upgrade``."""
    parser = argparse.ArgumentParser(prog="opticstream.flows.server_process")
    parser.add_argument("--role", choices=ROLES, default="all")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default="4200")
    given = parser.parse_args()
    remember_rendered_settings()
    begin_writing_at_once()
    look_for_services_every()
    try:
        _prepare(given.role)
    except ServerError as error:
        _say(f"error: {error}")
        sys.exit(1)
    if given.role == "upgrade":
        return
    keep_out_of_collections()
    if given.role in ("all", "api"):
        _show_figures(given.host, given.port)
    address = ["--host", given.host, "--port", given.port]
    command = {
        "all": ["start", *address],
        "api": ["start", "--no-services", *address],
        "services": ["services", "start"],
    }[given.role]
    sys.argv[:] = ["prefect", "server", *command]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def _prepare(role: str) -> None:
    """Return when what the server needs is there: PostgreSQL with its tables, and Redis."""
    redis_url = os.environ.get(REDIS)
    if role == "upgrade" or os.environ.get(OWN_MIGRATIONS) == "false":
        from opticstream.flows.server_database import prepare_database

        prepare_database(role, say=_say)
    if role != "upgrade" and redis_url and "+" not in redis_url.partition(":")[0]:  # no cluster and no sentinel
        from opticstream.flows.server_database import reach_redis

        reach_redis(redis_url, say=_say)


def _show_figures(host: str, port: str) -> None:
    """Show figures of this server, if the settings of this host say where."""
    from opticstream.config import DeploymentSettings
    from opticstream.flows.server_figures import show_figures
    from opticstream.flows.shared_server import SERVER_AUTH, address_of_api

    settings = DeploymentSettings()
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    show_figures(settings, api_url=address_of_api(near, int(port)), auth=os.environ.get(SERVER_AUTH))


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()

"""The process of an embedded Prefect server: ``python -m opticstream.flows.server_process --host H --port N``.

It is ``prefect server start`` with three things changed. What is loaded when the server has started stays out of the
garbage collector, which otherwise stops the server's one thread for a third of a second to visit 300,000 objects. And
one thing is remembered: for every flow run that a trigger starts, Prefect 3.8 asks for its application by the hash of
its settings and sets up its logging, and renders all its settings twice for it: 0.4 s in which the server, one thread,
does nothing else. In a server process the settings never change. Third, transactions of an SQLite database wait for
each other instead of failing.
"""

from __future__ import annotations

import gc
import runpy
import sys
import threading
from collections import OrderedDict
from typing import Any

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


def keep_out_of_collections(after_s: float = _LOADED_AFTER_S, /) -> None:
    """Take what is loaded when the server has started out of the garbage collector, once, some seconds from now."""

    def freeze() -> None:
        gc.collect()
        gc.freeze()

    timer = threading.Timer(after_s, freeze)
    timer.daemon = True
    timer.start()


def main() -> None:
    """Start the server with the options of the command line."""
    remember_rendered_settings()
    begin_writing_at_once()
    keep_out_of_collections()
    sys.argv[:] = ["prefect", "server", "start", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""What waits or runs at the server: so that nothing is announced twice, and nobody leaves before the last run ends."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

from opticstream.flows.leftovers import queued_deployments, runs_of_project, waiting_runs
from opticstream.flows.started_by import flows_started_by
from opticstream.flows.surroundings import header_of
from opticstream.model.events import Event
from opticstream.model.ids import BatchId


def is_queued(event: Event, /) -> bool:
    """Return whether a run of a flow that the event starts waits in the server's queue."""
    try:
        queued = queued_deployments(str(PREFECT_API_URL.value()), headers=credentials())
    except httpx.HTTPError:
        return True  # the server is busy or away; announcing would not reach it either
    return not flows_started_by(type(event)).isdisjoint(queued)


def unfinished_runs(project_name: str, /) -> list[str]:
    """Return the names of the flow runs of a project that wait or run; empty where the server does not answer."""
    try:
        return runs_of_project(str(PREFECT_API_URL.value()), project_name, headers=credentials())
    except httpx.HTTPError:
        return []


class PlaceInPool:
    """The place that a run has in its pool while it waits for tiles, and whether another run waits for one.

    Parameters
    ----------
    pool : str
        The pool.
    project_name : str
        Project of the run.
    batch : BatchId
        Column of the run; other runs of the same column do not count.
    waiting : callable, optional
        Returns the runs that wait to be started in a pool, by id, each with project, mosaic and column.
    clock : callable
        Monotonic time in seconds.
    """

    def __init__(
        self,
        pool: str,
        project_name: str,
        batch: BatchId,
        /,
        *,
        waiting: Callable[[str], dict[str, tuple[object, ...]]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._own = (project_name, batch.mosaic_id, batch.batch_id)
        self._waiting = waiting or _waiting_in
        self._clock = clock
        self._seen: set[str] = set()
        self._next_look = 0.0

    def is_wanted(self) -> bool:
        """Return whether a run has waited since the last look, a few seconds ago: there is no other place for it."""
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK_S
        others = {id_ for id_, about in self._waiting(self._pool).items() if about != self._own}
        wanted = bool(others & self._seen)
        self._seen = others
        return wanted


_LOOK_S = 2.0
"""Time between two looks at the queue of a pool, in seconds; a run that finds a place starts within it."""


def _waiting_in(pool: str) -> dict[str, tuple[object, ...]]:
    try:
        return waiting_runs(str(PREFECT_API_URL.value()), pool, headers=credentials())
    except httpx.HTTPError:
        return {}


def credentials() -> dict[str, str]:
    """Return the header by which a server that asks for it knows us, as Prefect's settings say."""
    return header_of(_plain(PREFECT_API_AUTH_STRING.value()), _plain(PREFECT_API_KEY.value()))


def _plain(secret: object) -> str | None:
    reveal = getattr(secret, "get_secret_value", None)
    value = reveal() if reveal is not None else secret
    return str(value) if value else None

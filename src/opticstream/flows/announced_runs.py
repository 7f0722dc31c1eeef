"""Tells the workers of this process when a flow run of their pool was scheduled or has ended.

A query for scheduled runs costs the server 25 to 40 ms of its one thread, found or not; five pools that ask every
second cost it a fifth of a core for nothing. The server announces what happens to a run as an event anyway: one
subscription for all pools of a process, and a worker asks when there is something to ask for. Without a connection
the workers ask as often as their setting says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import anyio
from prefect.events import Event, ResourceSpecification
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

_AGAIN_S = 2.0
"""Wait before the next attempt to subscribe, in seconds."""
# A run that ends leaves its place in the pool to one that waits.
_STATES = ["SCHEDULED", "COMPLETED", "FAILED", "CRASHED", "CANCELLED", "PAUSED"]
_LOG = logging.getLogger(__name__)


class Listener(Protocol):
    """A worker that can be told."""

    is_told: bool

    def tell(self) -> None:
        """Ask for runs now."""


async def tell_workers(workers: Mapping[str, Listener], /) -> None:
    """Tell the worker of each pool of what happens there, until this is cancelled.

    Parameters
    ----------
    workers : mapping
        Pool -> its worker.
    """
    while True:
        try:
            async with get_events_subscriber(_wanted(), reconnection_attempts=0) as events:
                for worker in workers.values():
                    worker.is_told = True
                    worker.tell()  # of what was scheduled before
                async for event in events:
                    if (worker_of_pool := workers.get(_pool(event))) is not None:
                        worker_of_pool.tell()
        except Exception as error:  # whatever it is, workers ask by themselves meanwhile
            _LOG.debug("no events of flow runs: %s: %s", type(error).__name__, error)
        finally:
            for worker in workers.values():
                worker.is_told = False
                worker.tell()
        await anyio.sleep(_AGAIN_S)


def _wanted() -> EventFilter:
    return EventFilter(
        event=EventNameFilter(prefix=["prefect.flow-run."]),
        resource=EventResourceFilter(labels=ResourceSpecification({"prefect.state-type": _STATES})),
    )


def _pool(event: Event) -> str:
    """Return the name of the work pool of the run that an event is about; empty where it has none."""
    return next((related.name or "" for related in event.related if related.role == "work-pool"), "")

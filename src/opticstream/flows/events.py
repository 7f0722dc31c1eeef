"""From a typed event to Prefect's event bus, and back.

Events are posted synchronously: Prefect's own `emit_event` only queues, and a process that dies right after loses them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.client.orchestration import get_client

from opticstream.model.errors import ServerError
from opticstream.model.events import EVENT_OF_NAME, Event

_ATTEMPTS = 6
_FIRST_WAIT_S = 0.25


def announce(events: Iterable[Event], /) -> int:
    """Post events to the bus, in order, and return how many.

    Raises
    ------
    ServerError
        The server did not take them within several attempts. Nothing is lost: the facts are recorded, and the sweep
        announces again what rests on them.
    """
    import time

    bodies = [_body(event) for event in events]
    if not bodies:
        return 0
    problem: Exception | None = None
    with get_client(sync_client=True) as client:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_WAIT_S * 2**attempt)
            try:
                client._client.post("/events", json=bodies).raise_for_status()
                return len(bodies)
            except (httpx.HTTPError, OSError) as error:
                problem = error
    raise ServerError(f"{client.api_url} did not take {[body['event'] for body in bodies]}: {problem}") from problem


def _body(event: Event) -> dict[str, Any]:
    return {
        # The server makes one run of an id however often it arrives, so a repeated attempt is harmless.
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": event.event_name(),
        "resource": event.resource(),
        "related": [],
        "payload": event.payload(),
    }


def event_from_trigger(name: str, payload: Mapping[str, Any], /) -> Event:
    """Return the typed event that a trigger handed to a flow as name and payload."""
    try:
        kind = EVENT_OF_NAME[name]
    except KeyError:
        raise ValueError(f"{name!r} is none of our events; known are {sorted(EVENT_OF_NAME)}") from None
    return kind.from_payload(payload)

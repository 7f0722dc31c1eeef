"""From a typed event to Prefect's event bus, and back.

Events are posted synchronously: Prefect's own `emit_event` only queues, and a process that dies right after loses them.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.client.orchestration import get_client

from opticstream.flows.surroundings import refusal
from opticstream.model.errors import EventError, ServerError
from opticstream.model.events import RESOURCE_ID, RESOURCE_NAME, Event
from opticstream.pipeline.incoming import ANNOUNCED

_ATTEMPTS = 6
_FIRST_WAIT_S = 0.25
MOST_BYTES = 400_000
"""Most bytes of a payload: Prefect takes more than 500 KiB, and makes no run of it."""
SENDER = "sender"
"""Label of the pipeline's own announcements: events of other programs never share a window with them."""
_FOUND_BY_READERS = ("files", "spectra", "problems", "outputs", "artifacts")
"""Fields that whoever reads the event finds in the flag files or the raw folder, where they are missing."""
_OF_PREFECT = {RESOURCE_ID: "prefect.resource.id", RESOURCE_NAME: "prefect.resource.name"}
"""Labels of a resource that have names of their own at Prefect."""
_log = logging.getLogger(__name__)


def announce(events: Iterable[Event], /, *, automatic: bool = False) -> int:
    """Post events to the bus, in order, and return how many.

    Parameters
    ----------
    events : iterable of Event
        What to announce.
    automatic : bool, default False
        The pipeline announces what follows by itself. Any other announcement of parked work has it tried again.

    Raises
    ------
    ServerError
        The server did not take them within several attempts. Nothing is lost: the facts are recorded, and the sweep
        announces again what rests on them.
    EventError
        An event is larger than the server hands on.
    """
    import time

    bodies = [_body(event, automatic) for event in events]
    if not bodies:
        return 0
    problem: Exception | None = None
    with get_client(sync_client=True) as client:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_WAIT_S * 2**attempt)
            try:
                client.request("POST", "/events", json=bodies).raise_for_status()
                return len(bodies)
            except (httpx.HTTPError, OSError) as error:
                problem = error
                if isinstance(error, httpx.HTTPStatusError) and (
                    message := refusal(error.response.status_code, str(client.api_url))
                ):
                    raise ServerError(message) from None
    raise ServerError(f"{client.api_url} did not take {[body['event'] for body in bodies]}: {problem}") from problem


def announce_automatically(events: Iterable[Event], /) -> int:
    """Post what the pipeline announces by itself; it has no parked work tried again. See `announce`."""
    return announce(events, automatic=True)


def _body(event: Event, automatic: bool) -> dict[str, Any]:
    occurred = datetime.now(UTC).isoformat()
    # A copy that somebody sends later carries the label, too, but occurs later than it says.
    label = {ANNOUNCED: occurred, SENDER: "opticstream"} if automatic else {}
    return {
        # The server makes one run of an id however often it arrives, so a repeated attempt is harmless.
        "id": str(uuid.uuid4()),
        "occurred": occurred,
        "event": event.event_name(),
        "resource": {_OF_PREFECT.get(key, key): value for key, value in event.resource().items()} | label,
        "related": [],
        "payload": _payload(event),
    }


def _payload(event: Event) -> dict[str, Any]:
    """Return the payload of an event; of one that is too large without the fields that its reader finds by itself."""
    payload = event.payload()
    size = _size(payload)
    if size <= MOST_BYTES:
        return payload
    left_out = sorted((name for name in _FOUND_BY_READERS if name in payload), key=lambda name: -_size(payload[name]))
    for name in left_out:
        del payload[name]
        if _size(payload) <= MOST_BYTES:
            _log.warning("%s of %s takes %d bytes; sent without %s", event.event_name(), event.item, size, name)
            return payload
    raise EventError(
        f"{event.event_name()} of {event.item} takes {_size(payload)} bytes, and the server drops events of more than "
        f"{MOST_BYTES}; expected fewer `parameters`"
    )


def _size(value: Any) -> int:
    return len(json.dumps(value))

"""Record events that could not be understood in the project, so that they are reported and the sender can be fixed.

They are not facts about items, and nothing waits for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from opticstream.io.atomic import write_text
from opticstream.model.errors import EventError
from opticstream.pipeline.failures import describe, kind_of
from opticstream.pipeline.incoming import Received, item_of_received
from opticstream.pipeline.project import Project
from opticstream.state.facts import utc_now
from opticstream.state.record import time_from_text, time_to_text

SHOWN_FOR = timedelta(days=7)
"""How long `status` shows a refused event; notifications and the journal keep it."""


@dataclass(frozen=True)
class RefusedEvent:
    """An event that could not be understood."""

    key: str
    """Its key in notifications."""
    name: str
    """Name of the event."""
    id: str | None
    """Its id at the server."""
    why: str
    """What was wrong with it."""
    time: datetime
    """When it was refused."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"time": time_to_text(self.time)}


def refuse(project: Project, received: Received, error: EventError, /) -> RefusedEvent:
    """Record that an event could not be understood, once, however many flows it was meant to start."""
    why = describe(error)
    mark = received.id or hashlib.sha256(f"{received.name} {why}".encode()).hexdigest()
    key = f"event-{mark[:16]}"
    refused = RefusedEvent(key, received.name, received.id, why, utc_now())
    path = project.paths.base / "state" / "refused" / f"{key}.json"
    if not path.exists():
        write_text(path, json.dumps(refused.as_dict(), indent=1, ensure_ascii=False) + "\n")
        item = item_of_received(project, received)
        project.facts.journal.failed(item, None, why=why, kind=kind_of(error), stage=received.name)
    return refused


def refused_events(project: Project, /, *, since: datetime | None = None) -> list[RefusedEvent]:
    """Return the events of a project that could not be understood, the earliest first.

    Parameters
    ----------
    project : Project
        The project.
    since : datetime, optional
        Omit events that were refused before this time.
    """
    found = [one for one in _read(project) if since is None or one.time >= since]
    return sorted(found, key=lambda one: one.time)


def _read(project: Project) -> Iterator[RefusedEvent]:
    for path in (project.paths.base / "state" / "refused").glob("*.json"):
        try:
            known = json.loads(path.read_bytes())
            yield RefusedEvent(**{**known, "time": time_from_text(known["time"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue  # the journal has it as well

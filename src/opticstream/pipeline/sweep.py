"""The sweep announces work again that is ready but not started, with growing delays; a lost event only costs time.

`Sweeper` is used by the process that runs a project and by the periodic flow of a server.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from opticstream.io.atomic import write_text
from opticstream.model.errors import ServerError
from opticstream.model.events import Event
from opticstream.pipeline.healed import take_up_healed
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.project import Project

Memory = dict[tuple[str, str], tuple[float, float]]
"""Wait before the next announcement and its time, both in seconds, by name and item of the event."""
LOOK_FOR_HEALED_S = 60.0
"""Time between two looks for parked work that is tried again by itself, in seconds."""
LONGEST_WAIT_S = 1800.0
"""Longest wait between two announcements of the same work, in seconds: a disk may have room again after days."""


@dataclass
class Sweeper:
    """Repeats events whose work has not started, each with a delay that doubles up to half an hour.

    Parameters
    ----------
    project : Project
        The project.
    patience_s : float
        How long work may be ready but not started before it is announced again, in seconds.
    announce : callable
        Takes the events; may raise ServerError.
    """

    project: Project
    patience_s: float
    announce: Callable[[Iterable[Event]], object]
    is_queued: Callable[[Event], bool] = lambda _event: False
    """Whether a run that the event would start is already in a queue, so that it need not be announced again."""
    clock: Callable[[], float] = time.monotonic
    memory: Memory = field(default_factory=dict)
    _looks_for_healed_at: float = -math.inf

    def sweep(self, *, at_once: bool = False) -> list[Event]:
        """Announce again what has waited too long (or everything that waits, if `at_once`), and return the events."""
        now = self.clock()
        healed: list[Event] = []
        if now >= self._looks_for_healed_at:
            self._looks_for_healed_at = now + LOOK_FOR_HEALED_S
            healed = take_up_healed(self.project)
        pending = {(event.event_name(), event.item.key): event for event in pending_announcements(self.project)}
        for key in self.memory.keys() - pending.keys():
            del self.memory[key]
        due = list(healed)
        for key, event in pending.items():
            wait, at = self.memory.get(key, (self.patience_s, now + self.patience_s))
            if event in healed:
                at = now + wait
            elif at_once or (now >= at and not self.is_queued(event)):
                due.append(event)
                wait = max(self.patience_s, min(wait * 2, LONGEST_WAIT_S))
                at = now + wait
            self.memory[key] = (wait, at)
        if due:
            try:
                self.announce(due)
            except ServerError:
                return []  # nothing is lost: it is still pending when the server answers again
        return due


def memory_of_sweeps(project: Project, /) -> Memory:
    """Return the delays of earlier sweeps of other processes; empty if they are lost, which only costs time."""
    try:
        entries = json.loads(_path(project).read_bytes())
        return {(name, item): (float(wait), float(at)) for name, item, wait, at in entries}
    except (OSError, ValueError, TypeError):
        return {}


def keep_memory_of_sweeps(project: Project, memory: Memory, /) -> None:
    """Save the delays for later sweeps."""
    write_text(_path(project), json.dumps([[*key, *times] for key, times in sorted(memory.items())], indent=1))


def _path(project: Project) -> Path:
    return project.paths.base / "state" / "sweep.json"

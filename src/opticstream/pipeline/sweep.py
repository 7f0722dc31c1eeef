"""The sweep: what is ready and not started is announced again, ever more patiently, so a lost event only costs time.

`Sweeper` is the one rule, used by the process that feeds a project and by the periodic flow of a server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from opticstream.io.atomic import write_text
from opticstream.model.errors import ServerError
from opticstream.model.events import Event
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.project import Project

Memory = dict[tuple[str, str], tuple[float, float]]
"""Wait before the next announcement and its time, both in seconds, by name and item of the event."""


@dataclass
class Sweeper:
    """Repeats announcements that nothing has come of, each after a patience that doubles.

    Parameters
    ----------
    project : Project
        Whose facts to look at.
    patience_s : float
        How long something may be ready and not started before it is announced again, in seconds.
    announce : callable
        Takes the announcements; may raise ServerError.
    """

    project: Project
    patience_s: float
    announce: Callable[[Iterable[Event]], object]
    is_queued: Callable[[Event], bool] = lambda _event: False
    """Whether a run that the event would start waits in a queue already; then patience is all that is needed."""
    clock: Callable[[], float] = time.monotonic
    memory: Memory = field(default_factory=dict)

    def sweep(self, *, at_once: bool = False) -> list[Event]:
        """Announce again what has waited too long (everything that waits if `at_once`), and return it."""
        now = self.clock()
        pending = {(event.event_name(), event.item.key): event for event in pending_announcements(self.project)}
        for key in self.memory.keys() - pending.keys():
            del self.memory[key]
        due = []
        for key, event in pending.items():
            wait, at = self.memory.get(key, (self.patience_s, now + self.patience_s))
            if at_once or (now >= at and not self.is_queued(event)):
                due.append(event)
                wait, at = wait * 2, now + wait * 2
            self.memory[key] = (wait, at)
        if due:
            try:
                self.announce(due)
            except ServerError:
                return []  # nothing is lost: it is still pending when the server is back
        return due


def memory_of_sweeps(project: Project, /) -> Memory:
    """Return what earlier sweeps of other processes remember; nothing where that is lost, which only costs time."""
    try:
        entries = json.loads(_path(project).read_bytes())
        return {(name, item): (float(wait), float(at)) for name, item, wait, at in entries}
    except (OSError, ValueError, TypeError):
        return {}


def keep_memory_of_sweeps(project: Project, memory: Memory, /) -> None:
    """Keep what later sweeps are to remember."""
    write_text(_path(project), json.dumps([[*key, *times] for key, times in sorted(memory.items())], indent=1))


def _path(project: Project) -> Path:
    return project.paths.base / "state" / "sweep.json"

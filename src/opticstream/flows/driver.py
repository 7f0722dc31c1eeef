"""What `run`, `watch` and the demo do next to the server: announce batches as they appear, sweep, and see the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from opticstream.flows.events import announce_automatically
from opticstream.flows.queues import is_queued
from opticstream.io.atomic import remove_stale_temporaries
from opticstream.model.errors import InputError, ServerError
from opticstream.model.events import BatchReady, Event
from opticstream.pipeline.progress import ProjectProgress, is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.sweep import Sweeper
from opticstream.watch import FoundBatch, IncompleteBatch, Watcher

Announce = Callable[[Iterable[Event]], object]


class Driver:
    """Feeds a project from a raw folder until told to stop.

    Parameters
    ----------
    project : Project
        What to feed.
    watcher : Watcher
        Where batches come from.
    """

    def __init__(
        self,
        project: Project,
        watcher: Watcher,
        /,
        *,
        announce: Announce = announce_automatically,
        is_queued: Callable[[Event], bool] = lambda _event: False,
    ) -> None:
        self.project = project
        self.watcher = watcher
        self._announce = announce
        self.sweeper = Sweeper(project, project.deployment.sweep_s, announce, is_queued)
        self.trouble: str | None = None
        """Why the raw folder or the facts cannot be reached for the moment."""
        self._unrecorded: list[FoundBatch] = []
        self._progress: ProjectProgress | None = None
        self._next_sweep = 0.0
        self._has_seen_folder = False

    @classmethod
    def on_folder(cls, project: Project, folder: Path, /, *, live: bool = True) -> Driver:
        """Return a driver for a folder, with the waiting times of this host's deployment settings.

        Without `live` nobody writes to the folder any more: a file that stands still and has the wrong size is a
        problem of its tile at once, and does not hold up its column.
        """
        facts = project.facts
        watcher = Watcher(
            folder,
            project.config.scan,
            stable_s=project.deployment.stable_s,
            stall_s=project.deployment.stall_s if live else project.deployment.stable_s,
            settled=lambda batch: facts.has(batch, "ready") or facts.has(batch, "processed"),
        )
        return cls(project, watcher, is_queued=is_queued)

    def start(self) -> list[Event]:
        """Announce what an earlier life has left undone, and let what killed writers have left be removed."""
        for folder in (self.project.paths.base, self.project.paths.archive_root):
            threading.Thread(target=remove_stale_temporaries, args=(folder,), daemon=True).start()
        return self.sweeper.sweep(at_once=True)

    def step(self) -> list[FoundBatch]:
        """Look once at the raw folder and, now and then, at what is overdue; return the batches that were announced.

        A share that is away or a disk that is full for a while must not end a watch of months: what could not be done
        is done by a later step, and `trouble` says why.
        """
        self.trouble = None
        with self._bearing_trouble():
            self._unrecorded += self.watcher.poll()
        self._has_seen_folder = True
        announced: list[FoundBatch] = []
        with self._bearing_trouble():
            while self._unrecorded:
                self.ready(self._unrecorded[0])
                announced.append(self._unrecorded.pop(0))
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + min(5.0, self.project.deployment.sweep_s)
            with self._bearing_trouble():
                self.sweeper.sweep()
        return announced

    @contextmanager
    def _bearing_trouble(self) -> Iterator[None]:
        try:
            yield
        except (InputError, OSError) as error:
            if not self._has_seen_folder:
                raise
            self.trouble = self.trouble or str(error)

    def ready(self, found: FoundBatch, /) -> None:
        """Record that a batch is ready and announce it; the sweep does so again if the server cannot be reached."""
        event = self.project.event(
            BatchReady,
            found.batch,
            raw_folder=str(self.watcher.folder.absolute()),
            files=found.files,
            spectra=found.spectra,
            problems=found.problems,
        )
        if self.project.facts.record(found.batch, "ready", {"detail": {"event": event.payload()}}):
            try:
                self._announce([event])
            except ServerError:
                self._next_sweep = 0.0

    def progress(self) -> ProjectProgress:
        """Return how far the project is, or was when its facts could last be read."""
        with self._bearing_trouble():
            self._progress = project_progress(self.project)
        return self._progress or ProjectProgress(self.project.config.name, (), (), ())

    def is_finished(self) -> bool:
        """Return whether everything that was found has come to its end."""
        finished = False
        with self._bearing_trouble():
            finished = not self._unrecorded and is_finished(self.project, self.project.facts.snapshot())
        return finished  # noqa: RET504  (trouble inside the block leaves it False)

    def incomplete(self) -> list[IncompleteBatch]:
        """Return the batches that have not come whole."""
        return self.watcher.incomplete()

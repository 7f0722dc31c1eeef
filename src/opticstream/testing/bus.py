"""The event chain without a server: events are handled in one process, one after the other.

For tests of rules and jobs. What starts what is written down here once more, by hand, so that a wrong trigger in
`opticstream.flows.deployments` cannot hide behind a wrong bus.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opticstream.config import config_from_mapping
from opticstream.model import events as catalogue
from opticstream.model.chain import chain
from opticstream.model.events import Event
from opticstream.pipeline import batches, fan_in, mosaics, slices, stacking, uploads
from opticstream.pipeline.bindings import binding_of
from opticstream.pipeline.incoming import Received, event_from_received
from opticstream.pipeline.pending import pending_announcements
from opticstream.pipeline.project import Project
from opticstream.pipeline.reemission import release, remember_batch
from opticstream.watch import Watcher

if TYPE_CHECKING:  # brings Prefect
    from opticstream.flows.driver import Driver

_PUBLISHED = (
    catalogue.BatchArchived,
    catalogue.MosaicStitched,
    catalogue.MosaicVolumeStitched,
    catalogue.SliceRegistered,
    catalogue.SampleUpdated,
)
_STACKED = (
    catalogue.SliceReady,
    catalogue.SliceRegistered,
    catalogue.SliceFailed,
    catalogue.MosaicVolumeStitched,
)
Step = Callable[[Event], Iterable[Event]]


class LocalBus:
    """Handles events and does the work that they start, until nothing is left.

    Parameters
    ----------
    project : Project
        What is worked on.
    lose : callable
        Tells of an event whether it is lost on its way.
    tolerate : exception type or tuple of them
        Errors that end a step, as they end a flow run, and nothing else; they are kept in `errors`.
    """

    def __init__(
        self,
        project: Project,
        /,
        *,
        lose: Callable[[Event], bool] = lambda _event: False,
        tolerate: type[Exception] | tuple[type[Exception], ...] = (),
    ) -> None:
        self.project = project
        self.lose = lose
        self.tolerate = tolerate
        self.seen: list[Event] = []
        self.errors: list[Exception] = []
        self._queue: deque[Event] = deque()

    def announce(self, events: Iterable[Event], /) -> None:
        """Put events into the queue, unless they are lost."""
        for event in events:
            self.seen.append(event)
            if not self.lose(event):
                self._queue.append(event)

    def emit(self, name: str, payload: Any, /, *, id: str | None = None, occurred: datetime | None = None) -> None:
        """Put an event from another program, or from a person, into the queue.

        Raises
        ------
        EventError
            It cannot be understood.
        """
        received = Received(name, payload, {}, id or str(uuid.uuid4()), occurred or datetime.now(UTC))
        event = event_from_received(self.project, received)
        if isinstance(event, catalogue.BatchReady):
            remember_batch(self.project, event, received=received)
        released = release(self.project, event, received)
        self.announce([event, *(other for other in released if other != event)])

    def run(self, *, order: Callable[[int], int] = lambda _n: 0) -> None:
        """Handle events until the queue is empty; `order` picks which of n waiting events comes next."""
        while self._queue:
            index = order(len(self._queue))
            event = self._queue[index]
            del self._queue[index]
            for step in self._steps(event):
                try:
                    self.announce(step(event))
                except self.tolerate as error:
                    self.errors.append(error)

    def sweep(self) -> int:
        """Announce again what is ready and not started, and return how many announcements that were."""
        events = pending_announcements(self.project)
        self.announce(events)
        return len(events)

    def run_until_nothing_is_pending(self, *, rounds: int = 20) -> None:
        """Run and sweep in turn, as a live pipeline does."""
        for _ in range(rounds):
            self.run()
            if not self.sweep():
                return
        raise AssertionError(f"still pending after {rounds} sweeps: {pending_announcements(self.project)}")

    def feed(self, folder: Path, /) -> None:
        """Announce every batch that lies complete in a folder."""
        from opticstream.flows.driver import Driver

        facts = self.project.facts
        watcher = Watcher(
            folder, self.project.config.scan, stable_s=0, stall_s=0, settled=lambda batch: facts.has(batch, "ready")
        )
        driver = Driver(self.project, watcher, announce=self.announce)
        driver.step()

    def run_folder(self, folder: Path, /, *, live: bool = False, steps: int = 60) -> Driver:
        """Do what `opticstream run` does with a folder, without a server, until nothing is left to do.

        Raises
        ------
        AssertionError
            Something was still left after so many steps: the run would not have ended.
        """
        from opticstream.flows.driver import Driver

        driver = Driver.on_folder(self.project, folder, live=live, announce=self.announce)
        for _ in range(steps):
            driver.step()
            self.run()
            driver.progress()
            if not driver.waits_for_files() and driver.is_finished():
                return driver
            self.sweep()
        left = [str(event.item) for event in pending_announcements(self.project)]
        raise AssertionError(f"not finished after {steps} steps; pending: {left}; waits: {driver.watcher.incomplete()}")

    def _opened(self, event: Event) -> Project:
        """Return the project as a flow run opens it: with the parameters of its event on top."""
        own = self.project
        if event.parameters == dict(own.parameters):
            return own
        config = config_from_mapping(own.config.model_dump(mode="json"), overrides=event.parameters)
        return Project.open(config, deployment=own.deployment, parameters=event.parameters)

    def _steps(self, event: Event) -> list[Step]:
        project = self._opened(event)
        steps: list[Step] = []
        match event:
            case catalogue.BatchReady():
                steps.append(lambda _e: batches.process_batch(project, event))
            case (
                catalogue.BatchArchived()
                | catalogue.BatchProcessed()
                | catalogue.BatchUploaded()
                | catalogue.BatchFailed()
            ):
                steps.append(lambda _e: fan_in.look_at_batches(project))
            case catalogue.MosaicReady():
                steps.append(lambda _e: mosaics.stitch_mosaic(project, event))
            case catalogue.MosaicStitched():
                steps.append(lambda _e: mosaics.stitch_volume(project, event))
                steps.append(lambda _e: fan_in.look_at_mosaics(project))
            case catalogue.MosaicVolumeStitched() | catalogue.MosaicFailed():
                steps.append(lambda _e: fan_in.look_at_mosaics(project))
            case catalogue.SliceReady():
                steps.append(lambda _e: slices.register_slice(project, event))
        for tried in chain().started_by(type(event)):  # a step that has no flow yet is done by the bus itself
            if (work := binding_of(tried).work) is not None and not tried.flow:
                steps.append(partial(work, project))
        if isinstance(event, _STACKED):
            steps.append(lambda _e: stacking.update_sample(project))
        if isinstance(event, _PUBLISHED):
            steps.append(lambda _e: uploads.upload_pending(project))
        return steps

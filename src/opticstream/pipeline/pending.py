"""What is ready and not started: the announcements that a sweep repeats, so that a lost event only costs time.

Everything here follows from the flag files alone. Repeating an announcement is always safe: the work behind it looks
at the facts first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from opticstream.model.chain import Step, chain
from opticstream.model.errors import StateError
from opticstream.model.events import BatchProcessed, BatchReady, Event, MosaicStitched
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId
from opticstream.pipeline.bindings import binding_of, due_items
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import BATCH_ENDED, has_all_batches, is_settled, may_register
from opticstream.pipeline.run_parameters import event_of
from opticstream.pipeline.stacking import stacking_event, unstacked
from opticstream.state import FactsSnapshot

_READY_FIELDS = ("raw_folder", "files", "spectra", "problems", "parameters")
"""Fields of a batch's announcement that only its record knows."""


def pending_announcements(project: Project, /, snapshot: FactsSnapshot | None = None) -> list[Event]:
    """Return the announcements that something waits for, in the order of the pipeline.

    Work that somebody holds a living claim on is left out, and so is work that is parked. Of the queues that one run
    takes whole only the head is announced.
    """
    snapshot = project.facts.snapshot() if snapshot is None else snapshot
    computing = [step for step in chain().steps if not step.publishes]
    publishing = [step for step in chain().steps if step.publishes]
    events = [
        *(event for step in computing for event in _of_step(project, step, snapshot)),
        *_of_gates(project, snapshot),
        *itertools.islice((event for step in publishing for event in _of_step(project, step, snapshot)), 1),
    ]
    return list({(type(event), event.item): event for event in events}.values())


def ready_event(project: Project, batch: BatchId, /) -> BatchReady | None:
    """Return the announcement that was recorded when a batch's files were found, None when there is none to read.

    A flag that is damaged, or that a person made with `touch`, tells no files; `verify` names it, and no other batch
    has to wait for it.
    """
    try:
        record = project.facts.read(batch, "ready")
    except StateError:
        return None
    event = record.detail.get("event") if record else None
    if not isinstance(event, Mapping):
        return None
    given = {name: event[name] for name in _READY_FIELDS if event.get(name) is not None}
    try:  # the rest follows from the layout of now; what an earlier version did not write is not missed
        return project.event(BatchReady, batch, **given)
    except ValueError:
        return None


def _of_step(project: Project, step: Step, snapshot: FactsSnapshot) -> Iterator[Event]:
    """Yield the announcements of a step that is due, and that nobody is at."""
    if step.claimed_on_sample:
        waiting = unstacked(project, snapshot)
        if waiting and _idle(project, SampleId(), step):
            yield stacking_event(project, waiting[0])  # one run takes all that wait
        return
    waits = binding_of(step).waits
    for item in due_items(project, step, snapshot, snapshot.items(step.hierarchy)):
        if waits(project, item, snapshot) or not _idle(project, item, step):
            continue
        if step.started_by[0] is not BatchReady:
            yield event_of(project, step.started_by[0], item)
        elif isinstance(item, BatchId) and (event := ready_event(project, item)) is not None:
            yield event


def _idle(project: Project, item: ItemId, step: Step) -> bool:
    holder = project.facts.holder(item, step.claim)
    return holder is None or holder.state != "alive"


def _of_gates(project: Project, snapshot: FactsSnapshot) -> Iterator[Event]:
    """Yield what makes a state flow look at a mosaic or a slice that is ready, and not recorded as that."""
    told: set[ItemId] = set()
    for item in snapshot.items("batch"):
        assert isinstance(item, BatchId)
        mosaic = item.mosaic
        if mosaic in told or snapshot.has(mosaic, "ready") or not snapshot.reached([item], *BATCH_ENDED):
            continue
        if has_all_batches(project, mosaic, snapshot):
            told.add(mosaic)
            yield event_of(project, BatchProcessed, item)
    for item in snapshot.items("mosaic"):
        assert isinstance(item, MosaicId)
        slice_id = project.layout.slice_of(item)
        if snapshot.has(slice_id, "ready") or not is_settled(snapshot, item):
            continue
        if may_register(project, slice_id, snapshot):
            yield event_of(project, MosaicStitched, item)

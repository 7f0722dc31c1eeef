"""What is ready and not started: the announcements that a sweep repeats, so that a lost event only costs time.

Everything here follows from the flag files alone. Repeating an announcement is always safe: the work behind it looks
at the facts first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from opticstream.model.chain import Step, chain
from opticstream.model.events import BatchProcessed, BatchReady, Event, MosaicStitched, SliceRegistered
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId
from opticstream.pipeline.bindings import binding_of, due_items
from opticstream.pipeline.project import Project
from opticstream.pipeline.raw_folders import located
from opticstream.pipeline.rules import BATCH_ENDED, has_all_batches, is_settled, may_register
from opticstream.pipeline.run_parameters import event_of
from opticstream.pipeline.stacking import end_of_registration, last_update, unstacked
from opticstream.state import FactsSnapshot
from opticstream.state.raw_folders import position_in_record

_READY_FIELDS = ("raw_folder", "files", "spectra", "problems", "parameters")
"""Fields of a batch's announcement that only its record knows."""


def pending_announcements(project: Project, /, snapshot: FactsSnapshot | None = None) -> list[Event]:
    """Return the announcements of work that is due and not started, in the order of the pipeline.

    Work under a living claim is left out, and so is work that is parked. Where one run takes a whole queue, only the
    head of the queue is announced.
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

    Its raw folder is the one of this host, now. A flag that is damaged, or that a person made with `touch`, names no
    files; `verify` reports it, and no other batch waits for it.
    """
    record = project.facts.read_whole(batch, "ready")
    return None if record is None else event_of_detail(project, batch, record.detail)


def event_of_detail(project: Project, batch: BatchId, detail: Mapping[str, Any], /) -> BatchReady | None:
    """Return the announcement of a batch from the content of its record, as this host sees its folder now.

    None where it holds none.
    """
    event = detail.get("event")
    if not isinstance(event, Mapping):
        return None
    given = {name: event[name] for name in _READY_FIELDS if event.get(name) is not None}
    try:  # all other fields follow from the layout; earlier versions wrote fewer
        return located(project, project.event(BatchReady, batch, **given), position=position_in_record(detail))
    except ValueError:
        return None


def starting_event(
    project: Project, step: Step, item: ItemId, /, *, parameters: Mapping[str, Any] | None = None
) -> Event | None:
    """Return the announcement that has a step done on an item.

    None where it is that of a batch whose files are not on record.

    Parameters
    ----------
    project, step, item
        What is to be done.
    parameters : mapping, optional
        Run parameters that it passes on; by default those of the run that the item belongs to.
    """
    event: Event | None
    if isinstance(item, BatchId) and step.started_by[0] is BatchReady:
        event = ready_event(project, item)
    elif isinstance(item, SliceId) and SliceRegistered in step.started_by:
        event = end_of_registration(project, item)
    elif isinstance(item, SampleId):
        event = last_update(project)
    else:
        event = event_of(project, step.started_by[0], item)
    if event is None or parameters is None:
        return event
    return event.model_copy(update={"parameters": dict(parameters)})


def _known(event: Event | None) -> tuple[Event, ...]:
    return () if event is None else (event,)


def _of_step(project: Project, step: Step, snapshot: FactsSnapshot) -> Iterator[Event]:
    """Yield the announcements of a step that is due and that no process works on."""
    if step.claimed_on_sample:
        waiting = unstacked(project, snapshot)
        if waiting and not project.facts.is_worked_on(SampleId(), step.claim):
            yield from _known(starting_event(project, step, waiting[0]))  # one run takes all that wait
        return
    waits = binding_of(step).waits
    for item in due_items(project, step, snapshot, snapshot.items(step.hierarchy)):
        if not waits(project, item, snapshot) and not project.facts.is_worked_on(item, step.claim):
            yield from _known(starting_event(project, step, item))


def _of_gates(project: Project, snapshot: FactsSnapshot) -> Iterator[Event]:
    """Yield the announcements that have a mosaic or a slice recorded as ready, where it is ready and not recorded."""
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

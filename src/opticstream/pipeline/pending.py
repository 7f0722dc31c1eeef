"""What is ready and not started: the announcements that a sweep repeats, so that a lost event only costs time.

Everything here follows from the flag files alone. Repeating an announcement is always safe: the work behind it looks
at the facts first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from opticstream.model.errors import StateError
from opticstream.model.events import (
    BatchArchived,
    BatchProcessed,
    BatchReady,
    Event,
    MosaicReady,
    MosaicStitched,
    MosaicVolumeStitched,
    SliceReady,
    SliceRegistered,
)
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId
from opticstream.pipeline.jobs import PROCESS_BATCH, REGISTER_SLICE, STITCH_MOSAIC, STITCH_VOLUME, UPDATE_SAMPLE, Job
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import (
    BATCH_ENDED,
    REGISTRATION_ENDED,
    has_all_batches,
    is_settled,
    may_register,
    waits_for_focus,
    waits_for_template,
)
from opticstream.pipeline.run_parameters import event_of
from opticstream.pipeline.stacking import stacking_event, unstacked
from opticstream.pipeline.uploads import upload_queue
from opticstream.state import FactsSnapshot

_READY_FIELDS = ("raw_folder", "files", "spectra", "problems", "parameters")
"""Fields of a batch's announcement that only its record knows."""


def pending_announcements(project: Project, /, snapshot: FactsSnapshot | None = None) -> list[Event]:
    """Return the announcements that something waits for, in the order of the pipeline.

    Work that somebody holds a living claim on is left out, and so is work that is parked.
    """
    snapshot = project.facts.snapshot() if snapshot is None else snapshot
    events: list[Event] = []
    events += _batches(project, snapshot)
    events += _mosaics(project, snapshot)
    events += _slices(project, snapshot)
    events += _uploads(project, snapshot)
    return events


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


def _idle(project: Project, item: ItemId, job: Job) -> bool:
    holder = project.facts.holder(item, job.claim)
    return holder is None or holder.state != "alive"


def _batches(project: Project, snapshot: FactsSnapshot) -> Iterator[Event]:
    told: set[MosaicId] = set()
    for item in snapshot.items("batch"):
        assert isinstance(item, BatchId)
        if not snapshot.reached([item], *BATCH_ENDED):
            event = ready_event(project, item)
            if event is not None and _idle(project, item, PROCESS_BATCH):
                yield event
        elif (
            item.mosaic not in told
            and not snapshot.has(item.mosaic, "ready")
            and has_all_batches(project, item.mosaic, snapshot)
        ):
            told.add(item.mosaic)
            yield event_of(project, BatchProcessed, item)


def _mosaics(project: Project, snapshot: FactsSnapshot) -> Iterator[Event]:
    for item in snapshot.items("mosaic"):
        assert isinstance(item, MosaicId)
        if not is_settled(snapshot, item):
            if (
                snapshot.has(item, "ready")
                and not waits_for_template(project, item, snapshot)
                and _idle(project, item, STITCH_MOSAIC)
            ):
                yield event_of(project, MosaicReady, item)
            continue
        slice_id = project.layout.slice_of(item)
        unannounced_slice = not snapshot.has(slice_id, "ready") and may_register(project, slice_id, snapshot)
        unstitched_volume = (
            project.config.stitches_volumes
            and snapshot.has(item, "stitched")
            and not snapshot.has(item, "volume_stitched")
            and not snapshot.has(item, "volume_failed")
            and not waits_for_focus(project, item, snapshot)
            and _idle(project, item, STITCH_VOLUME)
        )
        if unannounced_slice or unstitched_volume:
            yield event_of(project, MosaicStitched, item)


def _slices(project: Project, snapshot: FactsSnapshot) -> Iterator[Event]:
    for item in snapshot.items("slice"):
        assert isinstance(item, SliceId)
        settled = snapshot.facts_of(item) & REGISTRATION_ENDED
        if snapshot.has(item, "ready") and not settled and _idle(project, item, REGISTER_SLICE):
            yield event_of(project, SliceReady, item)
    waiting = unstacked(project, snapshot)
    if waiting and _idle(project, SampleId(), UPDATE_SAMPLE):
        yield stacking_event(project, waiting[0])  # one run takes all that wait


def _uploads(project: Project, snapshot: FactsSnapshot) -> Iterator[Event]:
    """Announce the head of the queue only: one run takes all of it."""
    announce: dict[str, Callable[[ItemId], Event]] = {
        "archived": lambda item: event_of(project, BatchArchived, item),
        "stitched": lambda item: event_of(project, MosaicStitched, item),
        "volume_stitched": lambda item: event_of(project, MosaicVolumeStitched, item),
        "registered": lambda item: event_of(project, SliceRegistered, item),
    }
    for item, fact, job, _event in upload_queue(snapshot):
        if _idle(project, item, job):
            yield announce[fact](item)
            return

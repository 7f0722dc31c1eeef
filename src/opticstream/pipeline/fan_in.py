"""The work of the state flows: check all facts of a project once, and return the events that follow."""

from __future__ import annotations

from collections.abc import Iterator

from opticstream.model.events import Event
from opticstream.model.ids import BatchId, MosaicId
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import after_batch, after_mosaic, has_all_batches


def look_at_batches(project: Project, /) -> Iterator[Event]:
    """Announce every mosaic of which all batches are processed or parked."""
    snapshot = project.facts.snapshot()
    seen: set[MosaicId] = set()
    for item in snapshot.items("batch"):
        assert isinstance(item, BatchId)
        mosaic = item.mosaic
        if mosaic in seen:
            continue
        seen.add(mosaic)
        if not snapshot.has(mosaic, "ready") and has_all_batches(project, mosaic, snapshot):
            event = after_batch(project, project.layout.batches(mosaic)[0])
            if event is not None:
                yield event


def look_at_mosaics(project: Project, /) -> Iterator[Event]:
    """Announce every slice of which all mosaics are stitched or parked."""
    snapshot = project.facts.snapshot()
    for item in snapshot.items("mosaic"):
        assert isinstance(item, MosaicId)
        if snapshot.has(project.layout.slice_of(item), "ready"):
            continue
        event = after_mosaic(project, item)
        if event is not None:
            yield event

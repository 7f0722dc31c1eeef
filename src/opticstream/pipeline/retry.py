"""Trying again what was parked: which facts are taken back, so that the work and all that rests on it is done anew."""

from __future__ import annotations

from collections.abc import Iterable

from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.pipeline.progress import Failure, failures
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import PUBLISHED, RedoPlan, apply_plan

__all__ = ["apply_plan", "retry_plan"]


def retry_plan(project: Project, /, *, only: Iterable[ItemId] | None = None) -> RedoPlan:
    """Return what a retry of the parked items would do.

    A parked tile makes its batch, its mosaic and what rests on it stale: their facts are taken back (they are kept
    among the withdrawn ones), and the batch is announced again. Tiles that are good are not computed again.

    Parameters
    ----------
    project : Project
        Whose failures to look at.
    only : iterable of items, optional
        Only failures of these items, or inside them; all by default.
    """
    plan = RedoPlan(project)
    chosen = None if only is None else set(only)
    parked = [
        f for f in failures(project, project.facts.snapshot()) if chosen is None or _is_inside(project, f, chosen)
    ]
    for batch in sorted({batch for f in parked if (batch := _unprocessed(project, f)) is not None}):
        plan.redo_batch(batch, archive=True)
    for failure in parked:
        match failure.item, failure.fact:
            case MosaicId() as mosaic, "volume_failed":
                plan.redo_volume(mosaic)
            case MosaicId() as mosaic, "failed":
                plan.redo_mosaic(mosaic)
    for failure in parked:
        if isinstance(failure.item, SliceId) and failure.fact in ("failed", "axis_failed"):
            plan.redo_slice(failure.item)
    for failure in parked:
        if failure.fact in PUBLISHED:
            plan.redo_publication(failure.item, failure.fact)
        elif isinstance(failure.item, SliceId) and failure.fact == "stack_failed":
            plan.redo_stack(failure.item)
    return plan


def _unprocessed(project: Project, failure: Failure) -> BatchId | None:
    """Return the batch that a parked tile or batch has processed again; None for other failures."""
    if isinstance(failure.item, TileId):
        return project.layout.batch_of(failure.item)
    return failure.item if isinstance(failure.item, BatchId) and failure.fact == "failed" else None


def _is_inside(project: Project, failure: Failure, chosen: set[ItemId]) -> bool:
    item = failure.item
    around: set[ItemId] = {item, SampleId()}
    if isinstance(item, TileId):
        around |= {project.layout.batch_of(item), item.mosaic, project.layout.slice_of(item.mosaic)}
    elif isinstance(item, BatchId):
        around |= {item.mosaic, project.layout.slice_of(item.mosaic)}
    elif isinstance(item, MosaicId):
        around.add(project.layout.slice_of(item))
    return bool(around & chosen)

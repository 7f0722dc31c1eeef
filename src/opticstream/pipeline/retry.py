"""Plan a retry of parked work: which facts to withdraw so that the work, and all that depends on it, is done again."""

from __future__ import annotations

from collections.abc import Iterable

from opticstream.model.chain import Step, chain, lift
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, TileId
from opticstream.pipeline.progress import Failure, failures
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import RedoPlan, apply_plan

__all__ = ["apply_plan", "retry_plan"]


def retry_plan(project: Project, /, *, only: Iterable[ItemId] | None = None) -> RedoPlan:
    """Return what a retry of the parked items would do.

    For a parked tile, the facts of its batch, its mosaic and what depends on them are withdrawn (and kept among the
    withdrawn ones), and the batch is announced again. Good tiles are not computed again.

    Parameters
    ----------
    project : Project
        The project.
    only : iterable of items, optional
        Retry only failures of these items, or inside them; all by default.
    """
    plan = RedoPlan(project)
    chosen = None if only is None else set(only)
    parked = [
        f for f in failures(project, project.facts.snapshot()) if chosen is None or _is_inside(project, f, chosen)
    ]
    for step in chain().steps:
        items = {item for failure in parked if (item := _parked_in(project, step, failure)) is not None}
        for item in sorted(items, key=lambda one: one.key):
            plan.redo(step, item, side_results=True)
    return plan


def _parked_in(project: Project, step: Step, failure: Failure) -> ItemId | None:
    """Return the item whose step is redone for a failure, for a tile its batch; None if another step has failed."""
    if chain().step_of(failure.item, failure.fact) is not step:
        return None
    return lift(failure.item, step.hierarchy, project.layout)


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

"""Trying again what was parked: which facts are taken back, so that the work and all that rests on it is done anew."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from opticstream.model.events import (
    BatchArchived,
    Event,
    MosaicReady,
    MosaicStitched,
    MosaicVolumeStitched,
    SliceReady,
)
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.progress import Failure, failures
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import REGISTRATION_ENDED
from opticstream.pipeline.stacking import stacking_event

_PUBLISHED = ("uploaded", "upload_failed", "volume_uploaded", "volume_upload_failed")
_MOSAIC_RESULTS = ("stitched", "volume_stitched", "failed", "volume_failed", "waiting", *_PUBLISHED)
_SLICE_RESULTS = ("ready", *sorted(REGISTRATION_ENDED), "stacked", "stack_failed", *_PUBLISHED)
_BATCH_RESULTS = ("processed", "archived", *_PUBLISHED)


@dataclass
class RetryPlan:
    """What a retry takes back, and what it announces."""

    withdraw: list[tuple[ItemId, str]] = field(default_factory=list)
    announce: list[Event] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """What cannot be tried again, and why."""


def retry_plan(project: Project, /, *, only: Iterable[ItemId] | None = None) -> RetryPlan:
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
    plan = RetryPlan()
    chosen = None if only is None else set(only)
    parked = [
        f for f in failures(project, project.facts.snapshot()) if chosen is None or _is_inside(project, f, chosen)
    ]
    batches = sorted({project.layout.batch_of(f.item) for f in parked if isinstance(f.item, TileId)})
    for batch in batches:
        _retry_batch(project, batch, plan)
    redone = {batch.mosaic for batch in batches}
    for failure in parked:
        if isinstance(failure.item, MosaicId) and failure.item not in redone and failure.fact not in _PUBLISHED:
            _retry_mosaic(project, failure.item, failure.fact, plan)
    redone_slices = {item for item, _fact in plan.withdraw if isinstance(item, SliceId)}
    for failure in parked:
        if (
            isinstance(failure.item, SliceId)
            and failure.item not in redone_slices
            and failure.fact in ("failed", "axis_failed")
        ):
            _withdraw(project, failure.item, [fact for fact in _SLICE_RESULTS if fact != "ready"], plan)
            plan.announce.append(project.event(SliceReady, failure.item))
    for failure in parked:
        _retry_after_compute(project, failure, plan)
    return plan


def _retry_after_compute(project: Project, failure: Failure, plan: RetryPlan) -> None:
    """Retry a publication or a place in the stacks, unless what it rests on is done anew anyway."""
    item, fact = failure.item, failure.fact
    if (item, fact) in plan.withdraw or not (fact in _PUBLISHED or fact == "stack_failed"):
        return
    _withdraw(project, item, (fact,), plan)
    if isinstance(item, BatchId):
        plan.announce.append(project.event(BatchArchived, item))
    elif isinstance(item, MosaicId):
        kind = MosaicVolumeStitched if fact.startswith("volume") else MosaicStitched
        plan.announce.append(project.event(kind, item))
    elif isinstance(item, SliceId):
        plan.announce.append(stacking_event(project, item))


def apply_plan(project: Project, plan: RetryPlan, /, *, reason: str) -> int:
    """Take back the facts of a plan and return how many there were; announcing is the caller's part."""
    return sum(project.facts.withdraw(item, fact, reason=reason) for item, fact in plan.withdraw)


def _retry_batch(project: Project, batch: BatchId, plan: RetryPlan) -> None:
    event = ready_event(project, batch)
    if event is None:
        plan.refused.append(
            f"{batch}: it was never announced, so its raw folder is unknown; `opticstream run` finds it"
        )
        return
    _withdraw(project, batch, _BATCH_RESULTS, plan)
    _withdraw(project, batch.mosaic, ("ready", *_MOSAIC_RESULTS), plan)
    _withdraw_slice(project, batch.mosaic, plan)
    plan.announce.append(event)


def _retry_mosaic(project: Project, mosaic: MosaicId, fact: str, plan: RetryPlan) -> None:
    if fact == "volume_failed":
        _withdraw(project, mosaic, ("volume_failed",), plan)
        plan.announce.append(project.event(MosaicStitched, mosaic))
        return
    _withdraw(project, mosaic, _MOSAIC_RESULTS, plan)
    _withdraw_slice(project, mosaic, plan)
    plan.announce.append(project.event(MosaicReady, mosaic))


def _withdraw_slice(project: Project, mosaic: MosaicId, plan: RetryPlan) -> None:
    _withdraw(project, project.layout.slice_of(mosaic), _SLICE_RESULTS, plan)


def _withdraw(project: Project, item: ItemId, facts: Iterable[str], plan: RetryPlan) -> None:
    known = project.facts.facts_of(item)
    plan.withdraw += [(item, fact) for fact in facts if fact in known and (item, fact) not in plan.withdraw]


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

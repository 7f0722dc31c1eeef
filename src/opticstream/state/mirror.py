"""From flag files to the shared state: the whole of it after a loss, or a few items after an event."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, ItemId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.state.facts import Facts
from opticstream.state.oct_state import OCTBatchState, OCTProjectState, OCTStateService, OCTWork
from opticstream.state.vocabulary import FACTS, is_failure

_log = logging.getLogger(__name__)


def oct_state_from_facts(project_name: str, facts: Facts, layout: AcquisitionLayout, /) -> OCTProjectState:
    """Return the state that the flag files of a project amount to."""
    state = OCTProjectState(project_name=project_name)
    mirror_items(state, facts, layout, facts.snapshot().items())
    return state


def rebuild_oct_state(
    service: OCTStateService, project_name: str, facts: Facts, layout: AcquisitionLayout, /
) -> OCTProjectState:
    """Replace a project's shared state by what its flag files say, under the lock, and return it.

    Also right when the shared state is lost or damaged. Facts that are recorded meanwhile are in it, or are added by
    the state flow that waits for the lock.
    """
    return service.store.replace(project_name, lambda: oct_state_from_facts(project_name, facts, layout))


def update_oct_state(
    service: OCTStateService,
    project_name: str,
    facts: Facts,
    layout: AcquisitionLayout,
    /,
    items: Iterable[ItemId],
    *,
    timeout_s: float | None = None,
) -> None:
    """Bring some items of a project's shared state up to date with their flag files, in one locked step.

    The flags are read under the lock, so that of two updates at the same time the later one has seen more.
    """
    chosen = list(items)
    with service.open_project(project_name, timeout_s=timeout_s) as state:
        mirror_items(state, facts, layout, chosen)


def mirror_items(state: OCTProjectState, facts: Facts, layout: AcquisitionLayout, /, items: Iterable[ItemId]) -> None:
    """Make some items of a state say what their flag files say; facts that were withdrawn are taken back."""
    for item in items:
        try:
            _mirror_item(state, facts, layout, item)
        except ValueError as error:
            _log.warning("%s is left out of the shared state: %s", item, error)


def _mirror_item(state: OCTProjectState, facts: Facts, layout: AcquisitionLayout, item: ItemId) -> None:
    known = facts.facts_of(item)
    if isinstance(item, TileId):
        batch = state.item(item, layout)
        assert isinstance(batch, OCTBatchState)
        others = set(batch.failed_tiles) - {item.tile_id}
        parked = "failed" in known and "processed" not in known
        batch.set_failed_tiles(tuple(others | {item.tile_id} if parked else others))
        return
    if isinstance(item, BatchId) and item.batch_id > layout.illumination_of(item.mosaic).columns:
        raise ValueError(f"its mosaic has {layout.illumination_of(item.mosaic).columns} columns")
    target = state.item(item, layout)
    failure: str | None = None
    for fact in FACTS[item.hierarchy]:
        if fact not in known:
            target.unmark(fact)
            continue
        try:
            record = facts.read(item, fact)
        except StateError as error:
            _log.warning("%s", error)
            record = None
        if record is None:
            if not target.has(fact):
                target.mark(fact)
            continue
        target.mark(fact, at=record.time)
        if fact == "started" and isinstance(target, OCTWork):
            target.attempts = int(record.detail.get("attempt", target.attempts))
        if fact == "skipped" or is_failure(fact):
            failure = str(record.detail.get("reason", "")) or failure
    if isinstance(target, OCTWork) and target.failure != failure:
        target.mark_reason(failure)

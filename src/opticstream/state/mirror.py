"""Update the shared state from flag files: all of it after a loss, or what has changed after an event.

Each object of the state keeps a mark of the flag files that it was made from: their names, times and sizes. An update
lists the folders, compares the marks, and opens only the flags of items whose marks differ. After every update the
state equals a rebuild, whatever was recorded, withdrawn, replaced or damaged in between.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.state.facts import Facts
from opticstream.state.flags import Stamp, stamp_flags
from opticstream.state.oct_state import OCTBatchState, OCTProjectState, OCTStateService, OCTWork
from opticstream.state.tree import shortened
from opticstream.state.vocabulary import facts_of, is_failure

_UNSETTLED_NS = 3_000_000_000
"""Age that a flag must have, relative to the newest one, so that its time differs from that of a successor: file
systems store times in steps of up to 2 s."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FlagLook:
    """All flag files of a project at one moment, without their content."""

    stamps: Mapping[ItemId, Mapping[str, Stamp]]
    """Flags of every item except tiles."""
    failed_tiles: Mapping[BatchId, frozenset[int]]
    """Tiles that are parked as failed, by batch."""
    settled_before_ns: int
    """Only flags older than this differ in time from their successors."""

    def mark(self, item: ItemId, /) -> str:
        """Return a mark that changes whenever a flag of an item does; empty if the flags are too new."""
        stamps = self.stamps.get(item, {})
        if not stamps or any(stamp.mtime_ns >= self.settled_before_ns for stamp in stamps.values()):
            return ""
        text = ";".join(f"{fact}:{stamp.mtime_ns}:{stamp.size}" for fact, stamp in sorted(stamps.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def items(self) -> set[ItemId]:
        """Return the items of the state: those with flags, and batches with failed tiles."""
        return set(self.stamps) | set(self.failed_tiles)


def look_at_flags(facts: Facts, layout: AcquisitionLayout, /) -> FlagLook:
    """Return all flags of a project, from one listing of each folder."""
    stamps: dict[ItemId, dict[str, Stamp]] = {}
    tiles: dict[TileId, set[str]] = {}
    for item, fact, stamp in stamp_flags(facts.project_dir):
        if isinstance(item, TileId):
            tiles.setdefault(item, set()).add(fact)
        elif stamp is not None:
            stamps.setdefault(item, {})[fact] = stamp
    stamps = {item: known for item, known in stamps.items() if _problem(item, layout) is None}
    failed: dict[BatchId, set[int]] = {}
    for tile, known in tiles.items():
        if known == {"failed"} and _problem(tile, layout) is None:
            failed.setdefault(layout.batch_of(tile), set()).add(tile.tile_id)
    newest = max((stamp.mtime_ns for known in stamps.values() for stamp in known.values()), default=0)
    return FlagLook(stamps, {batch: frozenset(numbers) for batch, numbers in failed.items()}, newest - _UNSETTLED_NS)


def oct_state_from_facts(project_name: str, facts: Facts, layout: AcquisitionLayout, /) -> OCTProjectState:
    """Return the state that follows from the flag files of a project."""
    for item in facts.snapshot().items():
        if problem := _problem(item, layout):
            _log.warning("%s is left out of the shared state: %s", item, problem)
    state = OCTProjectState(project_name=project_name)
    mirror_flags(state, facts, layout)
    return state


def rebuild_oct_state(
    service: OCTStateService, project_name: str, facts: Facts, layout: AcquisitionLayout, /
) -> OCTProjectState:
    """Replace a project's shared state by that of its flag files, with the lock held, and return it.

    Also works if the shared state is lost or damaged. Facts that are recorded in the meantime are in it, or are added
    by the state flow that waits for the lock.
    """
    return service.store.replace(project_name, lambda: oct_state_from_facts(project_name, facts, layout))


def oct_state_is_current(
    service: OCTStateService, project_name: str, facts: Facts, layout: AcquisitionLayout, /
) -> bool:
    """Return whether a project's shared state agrees with its flag files, without changing it or taking its lock.

    Lists the folders and opens only the flags of items that have changed in the last seconds.

    Raises
    ------
    StateError
        The shared state cannot be read; a rebuild replaces it.
    """
    changed = service.store.peek(project_name, lambda state: mirror_flags(state, facts, layout))
    return not look_at_flags(facts, layout).items() if changed is None else not changed


def update_oct_state(
    service: OCTStateService,
    project_name: str,
    facts: Facts,
    layout: AcquisitionLayout,
    /,
    items: Iterable[ItemId] | None = None,
    *,
    timeout_s: float | None = None,
) -> None:
    """Bring a project's shared state up to date with its flag files, in one locked step.

    The flags are read with the lock held, so that of two updates at the same time the later one uses newer flags. Only
    differences are read and written.

    Parameters
    ----------
    service : OCTStateService
        The service of the state.
    project_name : str
        Name of the project.
    facts : Facts
        Its flag files.
    layout : AcquisitionLayout
        Its grids.
    items : iterable of items, optional
        Only these items; by default all that differ.
    timeout_s : float, optional
        How long to wait for the lock.
    """
    chosen = None if items is None else set(items)
    with service.open_project(project_name, timeout_s=timeout_s) as state:
        mirror_flags(state, facts, layout, only=chosen)


def mirror_flags(
    state: OCTProjectState, facts: Facts, layout: AcquisitionLayout, /, *, only: set[ItemId] | None = None
) -> bool:
    """Bring a state into agreement with the flag files, and return whether anything in it has changed.

    Items that have no flags any more are removed. With `only`, other items are not changed.
    """
    look = look_at_flags(facts, layout)
    known = look.items()
    wanted = known if only is None else known & {_owner(item, layout) for item in only}
    changed = False
    for item in sorted(wanted, key=lambda one: one.key):
        changed |= _mirror_item(state, facts, layout, look, item)
    return _take_out(state, layout, known, only) or changed


def _owner(item: ItemId, layout: AcquisitionLayout) -> ItemId:
    """Return the item whose object contains an item: for a tile its batch."""
    return layout.batch_of(item) if isinstance(item, TileId) and _problem(item, layout) is None else item


def _problem(item: ItemId, layout: AcquisitionLayout) -> str | None:
    """Return why an item is outside the layout, or None if it is inside."""
    if isinstance(item, BatchId) and item.batch_id > layout.illumination_of(item.mosaic).columns:
        return f"its mosaic has {layout.illumination_of(item.mosaic).columns} columns"
    if isinstance(item, TileId) and item.tile_id > layout.illumination_of(item.mosaic).tiles:
        return f"its mosaic has {layout.illumination_of(item.mosaic).tiles} tiles"
    return None


def _mirror_item(state: OCTProjectState, facts: Facts, layout: AcquisitionLayout, look: FlagLook, item: ItemId) -> bool:
    """Bring one object up to date, and return whether it is new or has changed."""
    found = state.find(item, layout)
    mark = look.mark(item)
    failed = tuple(sorted(look.failed_tiles.get(item, ()))) if isinstance(item, BatchId) else ()
    if found is not None and mark and found.flags == mark and getattr(found, "failed_tiles", ()) == failed:
        return False
    target = state.item(item, layout)
    before = None if found is None else _own_fields(found)
    stamps = look.stamps.get(item, {})
    attempts, failure = 0, None
    kept = frozenset(target.facts())
    for fact in facts_of(item.hierarchy):
        if fact not in kept:  # of a step that is only being tried, see `opticstream.model.chain.extended`
            continue
        if fact not in stamps:
            target.unmark(fact)
            continue
        try:
            record = facts.read(item, fact)
        except StateError as error:  # a damaged flag is still a fact, with its file's time
            _log.warning("%s", error)
            target.mark(fact, at=datetime.fromtimestamp(stamps[fact].mtime_ns / 1e9, UTC))
            continue
        if record is None:  # withdrawn since the listing; the next update finds other marks
            target.unmark(fact)
            mark = ""
            continue
        target.mark(fact, at=record.time)
        if fact == "started":
            attempts = _number(record.detail.get("attempt"))
        if fact == "skipped" or is_failure(fact):
            failure = str(record.detail.get("reason", "")) or failure
    if isinstance(target, OCTWork):
        target.attempts = attempts
        target.failure = None if failure is None else shortened(failure)
    if isinstance(target, OCTBatchState):
        target.set_failed_tiles(failed)
    target.flags = mark
    return before != _own_fields(target)


def _number(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


def _own_fields(target: object) -> dict[str, object]:
    others = ("slices", "mosaics", "batches", "flags")
    return {name: value for name, value in vars(target).items() if name not in others}


def _take_out(state: OCTProjectState, layout: AcquisitionLayout, known: set[ItemId], only: set[ItemId] | None) -> bool:
    """Remove the objects of items that have no flags any more, and return whether there were any."""
    changed = False
    wanted = set(known)
    for item in known:
        if isinstance(item, BatchId):
            wanted.add(item.mosaic)
    wanted |= {layout.slice_of(item) for item in wanted if isinstance(item, MosaicId)}

    def goes(item: ItemId) -> bool:
        return item not in wanted and (only is None or item in only)

    def is_blank(item: ItemId) -> bool:
        """Return whether an object exists only because it contains others: it has no flags itself."""
        return item not in known and (only is None or item in only)

    for slice_number, slice_state in list(state.slices.items()):
        for mosaic_number, mosaic in list(slice_state.mosaics.items()):
            mosaic_id = MosaicId(mosaic_number)
            misplaced = only is None and layout.slice_of(mosaic_id).slice_id != slice_number
            for number in list(mosaic.batches):
                if misplaced or goes(BatchId(mosaic_number, number)):
                    del mosaic.batches[number]
                    changed = True
            if misplaced or goes(mosaic_id):
                del slice_state.mosaics[mosaic_number]
                changed = True
            elif is_blank(mosaic_id):
                changed |= mosaic.clear()
        if goes(SliceId(slice_number)):
            del state.slices[slice_number]
            changed = True
        elif is_blank(SliceId(slice_number)):
            changed |= slice_state.clear()
    if is_blank(SampleId()):
        changed |= state.clear()
    return changed

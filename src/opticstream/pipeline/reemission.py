"""Events that are sent again, to retry parked work or work on changed raw files.

The pipeline repeats its own announcements, and a server may deliver one twice; neither is a request
for a retry. A re-emitted event meets three conditions: the pipeline did not make it itself
(`Received.is_automatic`), it occurred after the work was parked or done, and its id has not released anything before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from opticstream.model.chain import chain, lift
from opticstream.model.errors import StateError
from opticstream.model.events import BatchReady, Event
from opticstream.model.ids import ItemId, SliceId, TileId
from opticstream.pipeline.incoming import Received
from opticstream.pipeline.jobs import PROCESS_BATCH
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.project import Project
from opticstream.pipeline.raw_folders import ready_content
from opticstream.pipeline.redo import RedoPlan, apply_plan
from opticstream.pipeline.rules import good_mosaics
from opticstream.state.durable import create_exclusively
from opticstream.state.facts import utc_now
from opticstream.state.raw_files import changes_of, identity_of


def remember_batch(project: Project, event: BatchReady, /, *, received: Received) -> None:
    """Record that a batch is ready where another program found it, so that sweep and retry know its raw files.

    An event that is sent again may name other raw files than the first one; these are then used from now on.
    """
    said = received.payload.get("raw_folder") if isinstance(received.payload, Mapping) else None
    content = ready_content(project, event, raw_folder=said if isinstance(said, str) else None)
    if project.facts.record(event.batch, "ready", content) or received.is_automatic:
        return
    before = ready_event(project, event.batch)
    same = before is not None and all(getattr(before, name) == getattr(event, name) for name in _RAW)
    if not same and _is_later(project, event.batch, "ready", received):
        project.facts.replace(event.batch, "ready", content, why=f"{_why(received)} names other raw files")


_RAW = ("raw_folder", "files", "spectra")


def release(project: Project, event: Event, received: Received, /) -> list[Event]:
    """Withdraw what a re-emitted event asks to retry, and return the events to announce for it.

    Finished work from unchanged raw files is never withdrawn, nor is anything for the pipeline's own events. The
    journal records for each fact why it was withdrawn.
    """
    if received.is_automatic:
        return []
    plan = RedoPlan(project)
    reasons = list(_plan(plan, event, received))
    if not plan.withdraw or _has_released(project, received):
        return []
    reason = f"{_why(received)}: {'; '.join(dict.fromkeys(reasons))}"
    if not apply_plan(project, plan, reason=reason):
        return []  # another run of the same event was faster
    _note(project, received, plan)
    return plan.announce


def _plan(plan: RedoPlan, event: Event, received: Received) -> Iterator[str]:
    """Fill a plan with the work that an event starts, and yield the reasons."""
    project = plan.project
    item = event.item

    def parked(about: ItemId, fact: str) -> bool:
        return project.facts.has(about, fact) and _is_later(project, about, fact, received)

    if isinstance(event, BatchReady):
        yield from _plan_batch(plan, event, received)
        return
    for step in chain().started_by(type(event)):
        about = lift(item, step.hierarchy, project.layout)
        ended = [fact for fact in step.ends if fact != step.done and parked(about, fact)]
        if ended == ["skipped"] and not (isinstance(about, SliceId) and len(good_mosaics(project, about)) > 1):
            continue  # the reason for skipping it is still valid
        if ended:
            plan.redo(step, about)
            yield step.failure


def _plan_batch(plan: RedoPlan, event: BatchReady, received: Received) -> Iterator[str]:
    project, batch = plan.project, event.batch
    ended = [fact for fact in ("processed", "failed") if project.facts.has(batch, fact)]
    if not ended or not all(_is_later(project, batch, fact, received) for fact in ended):
        return
    reasons = ["the batch failed"] if "failed" in ended else []
    for tile in project.layout.tiles(batch):
        known = project.facts.facts_of(tile)
        if "failed" in known and "processed" not in known:
            reasons.append(f"{tile} failed")
        elif "processed" in known and _has_changed(project, event, tile):
            reasons.append(f"the raw file of {tile} has changed")
    if reasons:
        plan.redo(PROCESS_BATCH, batch, side_results=True)
        yield from reasons


def _has_changed(project: Project, event: BatchReady, tile: TileId) -> bool:
    """Return whether a tile's raw file exists and has changed since the tile was made.

    If only the time differs, as for a copy, the checksum decides.
    """
    names = [event.files.get(tile.tile_id), event.spectra.get(tile.tile_id)]
    paths = tuple(Path(event.raw_folder, name) for name in names if name is not None)
    try:
        identity = identity_of(*paths)
    except OSError:
        return False  # it no longer exists: what was made from it stays
    try:
        project.facts.read(tile, "processed")
    except StateError:
        return True
    return any(not one.has_same_content() for one in changes_of(project.facts, tile, paths, identity))


def _is_later(project: Project, item: ItemId, fact: str, received: Received) -> bool:
    """Return whether an event occurred after a fact was recorded; one started by hand occurs now."""
    occurred = received.occurred or utc_now()
    try:
        record = project.facts.read(item, fact)
    except StateError:  # a damaged flag is still a fact, with its file's time
        modified = project.facts.path(item, fact).stat().st_mtime
        return occurred > datetime.fromtimestamp(modified, UTC)
    return record is not None and occurred > record.time


def _why(received: Received) -> str:
    when = f" of {received.occurred:%Y-%m-%d %H:%M:%S}" if received.occurred else " of a run started by hand"
    return f"re-emitted event {received.name}{when}"


def _note_path(project: Project, received: Received) -> Path | None:
    return project.paths.base / "state" / "reemitted" / f"{received.id}.json" if received.id else None


def _has_released(project: Project, received: Received) -> bool:
    """Return whether this event has already released something: servers may deliver twice, and clocks differ."""
    path = _note_path(project, received)
    return path is not None and path.exists()


def _note(project: Project, received: Received, plan: RedoPlan) -> None:
    path = _note_path(project, received)
    if path is None:
        return
    taken_back = [f"{item.key}.{fact}" for item, fact in plan.withdraw]
    content = {"event": received.name, "occurred": str(received.occurred), "taken_back": taken_back}
    create_exclusively(path, (json.dumps(content, indent=1) + "\n").encode())


__all__ = ["release", "remember_batch"]

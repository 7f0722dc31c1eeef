"""Find raw files that have changed since they were archived, by size and time and then by content, and redo them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opticstream.model.ids import BatchId
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import RedoPlan, apply_plan
from opticstream.pipeline.stale import Stale, stale_by_raw_files, stale_plan
from opticstream.state import FactsSnapshot
from opticstream.state.raw_files import ChangedRawFile, changed_raw_files, remember_same_content


def batches_of_changed_files(
    project: Project,
    /,
    *,
    snapshot: FactsSnapshot | None = None,
    batches: Iterable[BatchId] | None = None,
    say: Callable[[str], object] = lambda _line: None,
) -> list[Stale]:
    """Return the batches whose raw files have other content than when they were archived.

    A file of which only the time has changed is read and compared with its checksum; if the content is the same, the
    new time is noted in the tile's record. Files that are not accessible are left out.

    Parameters
    ----------
    project : Project
        The project.
    snapshot : FactsSnapshot, optional
        Its facts.
    batches : iterable of BatchId, optional
        Check only these batches; all by default.
    say : callable, optional
        Takes a line with the number of files to compare, before the comparison starts.
    """
    snapshot = project.facts.snapshot() if snapshot is None else snapshot
    chosen = snapshot.items("batch") if batches is None else list(batches)
    suspects = {
        item: changed
        for item in chosen
        if isinstance(item, BatchId)
        and snapshot.has(item, "processed")
        and (changed := changed_raw_files(project.facts, item))
    }
    number = sum(len(changed) for changed in suspects.values())
    if number:
        say(f"the size or time of {number} raw files has changed since they were archived; comparing their content")
    found = []
    for batch, changed in suspects.items():
        different = [file for tile in _by_tile(changed) for file in _different(project, tile)]
        if different:
            found.append(stale_by_raw_files(batch, different))
    return found


def _by_tile(changed: Iterable[ChangedRawFile]) -> list[list[ChangedRawFile]]:
    tiles: dict[int, list[ChangedRawFile]] = {}
    for file in changed:
        tiles.setdefault(file.tile.tile_id, []).append(file)
    return list(tiles.values())


def _different(project: Project, changed: list[ChangedRawFile]) -> list[ChangedRawFile]:
    """Return the files of one tile whose content has changed; if none has, note the new times in the tile's record."""
    different = [file for file in changed if not file.has_same_content()]
    if not different:
        remember_same_content(project.facts, changed[0])
    return different


def take_back_changed(
    project: Project,
    /,
    *,
    batches: Iterable[BatchId] | None = None,
    say: Callable[[str], object] = lambda _line: None,
) -> RedoPlan:
    """Withdraw the batches whose raw files have changed, and what depends on them; return the plan with its events.

    The sweep announces the events as well.
    """
    found = batches_of_changed_files(project, batches=batches, say=say)
    plan = stale_plan(project, found)
    apply_plan(project, plan, reason="a raw file changed since it was archived")
    for stale in found:
        for why in stale.why:
            say(why)
    return plan

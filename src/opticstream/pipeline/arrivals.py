"""Handle raw files that arrive late or replace bad ones, and slices that never arrive.

A column is processed without tiles that are missing, so that nothing waits forever; tiles that arrive later are
processed then, and what depends on them is redone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path

from opticstream.model.errors import StateError
from opticstream.model.events import BatchReady, Event, MosaicReady
from opticstream.model.ids import BatchId, MosaicId, TileId
from opticstream.pipeline.jobs import PROCESS_BATCH
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.project import Project
from opticstream.pipeline.raw_folders import ready_content
from opticstream.pipeline.redo import RedoPlan, apply_plan
from opticstream.pipeline.rules import (
    earlier_mosaics,
    has_begun,
    has_stopped_waiting,
    is_settled,
    waits_for_template,
)
from opticstream.pipeline.run_parameters import event_of
from opticstream.state import FactsSnapshot
from opticstream.state.facts import utc_now
from opticstream.state.raw_files import identity_of


def repaired_tiles(
    project: Project,
    parked: Iterable[TileId],
    folder: Path,
    whole_files: Callable[[TileId], tuple[str, ...] | None],
    /,
) -> dict[TileId, str]:
    """Return the parked tiles whose raw files are complete now and have changed since they failed, with their identity.

    Parameters
    ----------
    project : Project
        The project.
    parked : iterable of TileId
        Tiles that failed.
    folder : Path
        The raw folder.
    whole_files : callable
        Returns the names of a tile's files in that folder, or None while they are not all there and complete.
    """
    repaired: dict[TileId, str] = {}
    for tile in parked:
        names = whole_files(tile)
        if names is None:
            continue
        try:
            record = project.facts.read(tile, "failed")
            now = identity_of(*(folder / name for name in names))
        except (StateError, OSError):
            continue
        if record is not None and record.inputs_hash != now:
            repaired[tile] = now
    return repaired


def take_again(project: Project, batch: BatchId, tiles: Iterable[TileId], found: BatchReady, /) -> list[Event] | None:
    """Let a batch be processed again because files of its tiles have arrived; return the events to announce.

    For other tiles whose files are no longer in the folder, the earlier paths are kept. None while another process
    works on the batch: the caller tries again later.
    """
    claim = project.facts.claim(batch, PROCESS_BATCH.claim, lease_s=project.deployment.lease_s)
    if claim is None:
        return None
    why = f"files of tiles {', '.join(str(tile.tile_id) for tile in tiles)} arrived late or were replaced"
    with claim:
        event = _with_former_files(found, ready_event(project, batch))
        project.facts.replace(batch, "ready", ready_content(project, event), why=why)
        plan = RedoPlan(project)
        plan.redo(PROCESS_BATCH, batch, side_results=True)
        apply_plan(project, plan, reason=why)
    return plan.announce


def _with_former_files(found: BatchReady, before: BatchReady | None) -> BatchReady:
    """Return an event, completed by the files of an earlier one."""
    if before is None:
        return found
    files, spectra, problems = dict(found.files), dict(found.spectra), dict(found.problems)
    for number, name in before.files.items():
        if number not in files and number not in before.problems:
            files[number] = _name_from(found, before, name)
            problems.pop(number, None)
            if number in before.spectra:
                spectra[number] = _name_from(found, before, before.spectra[number])
    return found.model_copy(update={"files": files, "spectra": spectra, "problems": problems})


def _name_from(found: BatchReady, before: BatchReady, name: str) -> str:
    """Return the name of a file from the raw folder of now; the whole path where it lies in another one."""
    return name if found.raw_folder == before.raw_folder else str(Path(before.raw_folder, name))


def end_waiting(
    project: Project, snapshot: FactsSnapshot, /, *, patience_s: float, now: datetime | None = None
) -> list[Event]:
    """Let mosaics stop waiting for a template if no tile of the earlier slices has arrived for too long.

    The first of each illumination then determines the template itself; an earlier slice that arrives after all uses
    that template.

    Parameters
    ----------
    project : Project
        The project.
    snapshot : FactsSnapshot
        Its facts.
    patience_s : float
        How long a mosaic waits, in seconds.
    now : datetime, optional
        The current time; that of this host by default.
    """
    now = now or utc_now()
    events: list[Event] = []
    for item in snapshot.items("mosaic"):
        if not isinstance(item, MosaicId) or not snapshot.has(item, "waiting") or is_settled(snapshot, item):
            continue
        # The first mosaic of an illumination that has started goes on; the others wait for it.
        earlier = list(earlier_mosaics(project, item))
        if any(has_begun(project, m, snapshot) and not snapshot.has(m, "failed") for m in earlier):
            continue
        if has_stopped_waiting(project, item) or not waits_for_template(project, item, snapshot):
            continue
        record = project.facts.read_whole(item, "waiting")
        if record is not None and now - record.time < timedelta(seconds=patience_s):
            continue
        absent = ", ".join(str(m.mosaic_id) for m in earlier if not has_begun(project, m, snapshot))
        reason = f"no tile of mosaic {absent} has arrived; this mosaic determines the positions of its illumination"
        former = record.detail if record is not None else {}
        project.facts.replace(item, "waiting", {"detail": {**former, "no_longer": reason}}, why=reason)
        events.append(event_of(project, MosaicReady, item))
    return events

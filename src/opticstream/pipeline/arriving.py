"""Tiles that have come of columns that are not done yet: what the process beside the rig sees, for those who process.

``state/arriving/{mosaic}-{batch}.json``, written anew with every tile and removed when the column is done. It is a
view, not a fact: without it columns are processed when they are complete.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from opticstream.model.events import BatchReady
from opticstream.model.ids import BatchId, TileId
from opticstream.pipeline.pending import event_of_detail
from opticstream.pipeline.project import Project
from opticstream.pipeline.raw_folders import ready_content
from opticstream.state.durable import replace_whole


@dataclass(frozen=True)
class Arriving:
    """The tiles that have come of one column.

    Attributes
    ----------
    event : BatchReady
        The column with the raw files of these tiles, as this host sees their folder, and of those that have their size
        and may still be written.
    since : dict of int to float
        When each tile was found whole, in seconds since 1970.
    """

    event: BatchReady
    since: dict[int, float]

    @property
    def batch(self) -> BatchId:
        """The column."""
        return self.event.batch

    def tiles(self) -> list[TileId]:
        """Return the tiles that have come, in the order of their numbers."""
        return [TileId(self.batch.mosaic_id, number) for number in sorted(self.since)]

    def unsettled(self) -> list[TileId]:
        """Return the tiles whose files have their size and may still be written, in the order of their numbers."""
        return [TileId(self.batch.mosaic_id, number) for number in sorted(self.event.files.keys() - self.since.keys())]


@dataclass(frozen=True)
class Lag:
    """How far processing is behind the rig.

    Attributes
    ----------
    tiles : int
        Tiles that have come and are neither processed nor parked.
    seconds : float
        Time since the oldest of them came; 0 without any.
    """

    tiles: int
    seconds: float


def note_arriving(
    project: Project, event: BatchReady, /, *, unsettled: Set[int] = frozenset(), now: float | None = None
) -> Arriving:
    """Write which tiles of a column have come, unless that is known, and return them.

    Parameters
    ----------
    project : Project
        The project.
    event : BatchReady
        The column with the raw files of these tiles.
    unsettled : set of int
        Numbers of tiles in it whose files may still be written.
    now : float, optional
        The present time, in seconds since 1970.
    """
    now = time.time() if now is None else now
    known = arriving(project, event.batch)
    whole = event.files.keys() - unsettled
    if (
        known is not None
        and (known.event.files, known.event.spectra) == (event.files, event.spectra)
        and known.since.keys() == whole
    ):
        return known
    before = {} if known is None else known.since
    since = {number: before.get(number, now) for number in sorted(whole)}
    content = {**ready_content(project, event)["detail"], "since": since}
    replace_whole(_path(project, event.batch), json.dumps(content, default=str).encode(), fsync=False)
    return Arriving(event, since)


def arriving(project: Project, batch: BatchId, /) -> Arriving | None:
    """Return the tiles that have come of a column; None where none are known, or it is done."""
    return _read(project, batch, _path(project, batch))


def all_arriving(project: Project, /) -> Iterator[Arriving]:
    """Yield the columns of which tiles have come and that are not done, in the order of their numbers."""
    for path in sorted(_folder(project).glob("*.json")):
        mosaic, _, batch = path.stem.partition("-")
        if (
            mosaic.isdecimal()
            and batch.isdecimal()
            and (found := _read(project, BatchId(int(mosaic), int(batch)), path))
        ):
            yield found


def forget_arriving(project: Project, batch: BatchId, /) -> None:
    """Remove what was noted of a column: it is done."""
    with contextlib.suppress(OSError):
        _path(project, batch).unlink(missing_ok=True)


def waiting_in(project: Project, known: Arriving, /) -> list[TileId]:
    """Return the tiles of a column that have come and are neither processed nor parked, by number."""
    return [tile for tile in known.tiles() if project.facts.facts_of(tile).isdisjoint(("processed", "failed"))]


def waiting_tiles(project: Project, /) -> list[tuple[float, Arriving, TileId]]:
    """Return the tiles that have come and are neither processed nor parked, with the time when each came, by time."""
    found = [
        (known.since[tile.tile_id], known, tile)
        for known in all_arriving(project)
        for tile in waiting_in(project, known)
    ]
    return sorted(found, key=lambda one: (one[0], one[2]))


def lag_of(project: Project, /, *, now: float | None = None) -> Lag:
    """Return how far processing is behind the rig, for tiles that come while a folder is watched.

    Parameters
    ----------
    project : Project
        The project.
    now : float, optional
        The present time, in seconds since 1970.
    """
    waiting = waiting_tiles(project)
    now = time.time() if now is None else now
    return Lag(len(waiting), max(0.0, now - waiting[0][0]) if waiting else 0.0)


def _read(project: Project, batch: BatchId, path: Path) -> Arriving | None:
    try:
        content = json.loads(path.read_bytes())
        event = event_of_detail(project, batch, content)
        since = {int(number): float(at) for number, at in content["since"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # just removed, or of another version
        return None
    return None if event is None else Arriving(event, {n: at for n, at in since.items() if n in event.files})


def _folder(project: Project) -> Path:
    return project.paths.base / "state" / "arriving"


def _path(project: Project, batch: BatchId) -> Path:
    return _folder(project) / f"{batch.mosaic_id:04d}-{batch.batch_id:04d}.json"

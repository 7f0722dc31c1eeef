"""The facts of a project, kept up to date by looking at the modification times of its folders.

A project of months has 150,000 flags. The folders of a mosaic are listed once, those of the latest mosaics first; after
that only folders that have changed are listed again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.state import FactsSnapshot
from opticstream.state.flags import (
    STATE_FOLDER,
    TILES_FOLDER,
    Numbered,
    flags_above,
    flags_of_batches,
    flags_of_tiles,
    mosaics_of_project,
)

SETTLED_S = 2.0
"""Time for which a folder is listed again although its modification time stays the same: some file systems store it in
whole seconds."""
OLD_S = 600.0
"""Age from which the modification time of a folder is not that of a change that is still going on, whatever the clocks
of this host and of the file server say: they differ by less."""
_NO_FACTS: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Folder:
    mtime_ns: int
    seen_s: float
    """When this modification time was first seen; earlier, where it was old then."""
    listed_s: float


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs from the last look."""

    mosaics: frozenset[MosaicId] = frozenset()
    """Mosaics of which a batch or tile may have changed."""
    above: frozenset[ItemId] = frozenset()
    """Mosaics, slices and the sample whose own facts have changed."""

    def __bool__(self) -> bool:
        return bool(self.mosaics or self.above)


@dataclass
class Listings:
    """Listings of the folders that were due, for `FactsWatch.take`."""

    above: dict[ItemId, frozenset[str]] | None = None
    """None if they are as before."""
    batches: dict[MosaicId, dict[int, frozenset[str]]] = field(default_factory=dict)
    tiles: dict[MosaicId, dict[int, frozenset[str]]] = field(default_factory=dict)
    rewritten: set[MosaicId] = field(default_factory=set)
    """Mosaics of which a folder has another modification time: a record may have been replaced."""


class FactsWatch:
    """The facts of the project in a folder, as of the last `take`.

    Listing and taking over are apart, so that nobody who reads the facts waits for a slow disk. One thread lists and
    takes.
    """

    def __init__(
        self,
        project_dir: Path,
        /,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._project_dir = project_dir
        self._clock = clock
        self._wall_clock = wall_clock
        self._folders: dict[str, _Folder] = {}
        self._places: dict[MosaicId, tuple[str, str]] = {}
        """Folders of the batches' and of the tiles' flags, of every mosaic that has a folder."""
        self._unread: set[MosaicId] = set()
        self._above: Mapping[ItemId, frozenset[str]] = {}
        self._batches: dict[MosaicId, Numbered] = {}
        self._tiles: dict[MosaicId, Numbered] = {}

    @property
    def mosaics(self) -> tuple[MosaicId, ...]:
        """The mosaics of which anything is known, in order."""
        own = {item for item in self._above if isinstance(item, MosaicId)}
        inside = {mosaic for known in (self._batches, self._tiles) for mosaic, facts in known.items() if facts}
        return tuple(sorted(own | inside))

    @property
    def unread(self) -> frozenset[MosaicId]:
        """The mosaics whose batches and tiles have not been listed yet."""
        return frozenset(self._unread)

    @property
    def folders(self) -> int:
        """Number of mosaics that have a folder."""
        return len(self._places)

    def facts_of(self, item: ItemId, /) -> frozenset[str]:
        """Return all facts of an item."""
        if isinstance(item, TileId):
            return self._tiles.get(item.mosaic, {}).get(item.tile_id, _NO_FACTS)
        if isinstance(item, BatchId):
            return self._batches.get(item.mosaic, {}).get(item.batch_id, _NO_FACTS)
        return self._above.get(item, _NO_FACTS)

    def snapshot(self, mosaics: Iterable[MosaicId], slices: Iterable[SliceId] = ()) -> FactsSnapshot:
        """Return the facts of some mosaics with their batches and tiles, and of some slices."""
        chosen = list(mosaics)
        above: list[ItemId] = [*chosen, *slices]
        return FactsSnapshot.of_listings(
            {one: facts for one in above if (facts := self._above.get(one))},
            {one.mosaic_id: self._batches.get(one, {}) for one in chosen},
            {one.mosaic_id: self._tiles.get(one, {}) for one in chosen},
        )

    def refresh(self) -> Changes:
        """List every folder that has changed or was not read yet, and return what differs."""
        return self.take(self.look(lambda unread: unread))

    def look(self, wanted: Callable[[frozenset[MosaicId]], Iterable[MosaicId]], /) -> Listings:
        """List the folders that have changed, and those of the mosaics not read yet that are wanted.

        Parameters
        ----------
        wanted : callable
            Is given the mosaics that were not read yet, and returns those to list now; asked for one after another.
        """
        try:
            return self._look(wanted)
        except OSError:
            self._folders.clear()  # what was noted and not taken over would never be listed again
            raise

    def _look(self, wanted: Callable[[frozenset[MosaicId]], Iterable[MosaicId]]) -> Listings:
        found = Listings()
        above_due = self._changed(str(self._project_dir / STATE_FOLDER)) != "same"
        if self._changed(str(self._project_dir)) != "same":
            for mosaic in mosaics_of_project(self._project_dir):
                if mosaic not in self._places:
                    folder = self._project_dir / mosaic.folder / STATE_FOLDER
                    self._places[mosaic] = (str(folder), str(folder / TILES_FOLDER))
                    self._unread.add(mosaic)
        for mosaic in self._places:
            if mosaic not in self._unread:
                self._list(mosaic, found)
        for mosaic in wanted(self.unread):
            self._list(mosaic, found)
        if above_due or found.batches or found.tiles:
            above = flags_above(self._project_dir)
            found.above = above if above != self._above else None
        return found

    def take(self, found: Listings, /) -> Changes:
        """Take listings over, and return what differs."""
        changed = {mosaic for mosaic, facts in found.batches.items() if facts != self._batches.get(mosaic, {})}
        changed |= {mosaic for mosaic, facts in found.tiles.items() if facts != self._tiles.get(mosaic, {})}
        self._batches.update(found.batches)
        self._tiles.update(found.tiles)
        self._unread -= found.batches.keys()
        before = self._above
        if found.above is None:
            return Changes(frozenset(changed | found.rewritten))
        self._above = found.above
        differing = {one for one in found.above.keys() | before.keys() if found.above.get(one) != before.get(one)}
        return Changes(frozenset(changed | found.rewritten), frozenset(differing))

    def _list(self, mosaic: MosaicId, found: Listings) -> None:
        batches, tiles = map(self._changed, self._places[mosaic])
        if batches != "same":
            found.batches[mosaic] = flags_of_batches(self._project_dir, mosaic)
        if tiles != "same":
            found.tiles[mosaic] = flags_of_tiles(self._project_dir, mosaic)
        if "new" in (batches, tiles):
            found.rewritten.add(mosaic)

    def _changed(self, folder: str) -> Literal["same", "again", "new"]:
        """Return whether a folder has changed, or may have changed without another modification time."""
        now = self._clock()
        try:
            mtime_ns = os.stat(folder).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            mtime_ns = 0
        last = self._folders.get(folder)
        if last is None or last.mtime_ns != mtime_ns:
            is_old = self._wall_clock() - mtime_ns / 1e9 > OLD_S
            self._folders[folder] = _Folder(mtime_ns, now - 2 * SETTLED_S if is_old else now, now)
            return "new"
        if not mtime_ns or last.listed_s > last.seen_s + SETTLED_S:
            return "same"
        last.listed_s = now
        return "again"

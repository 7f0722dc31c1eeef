"""The facts of a project, kept up to date by looking at the modification times of its folders.

A project of months has 150,000 flags. They are listed once; after that only folders that have changed are listed again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.state import FactsSnapshot
from opticstream.state.flags import STATE_FOLDER, TILES_FOLDER, mosaics_of_project, scan_flags

SETTLED_S = 2.0
"""Time for which a folder is listed again although its modification time stays the same: some file systems store it in
whole seconds."""

_Known = Mapping[ItemId, frozenset[str]]


@dataclass(slots=True)
class _Folder:
    mtime_ns: int
    seen_s: float
    """When this modification time was first seen."""
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


class FactsWatch:
    """The facts of the project in a folder, as of the last `refresh`."""

    def __init__(self, project_dir: Path, /, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._project_dir = project_dir
        self._clock = clock
        self._folders: dict[str, _Folder] = {}
        self._places: dict[MosaicId, tuple[str, str]] = {}
        """Folders of the batches' and of the tiles' flags."""
        self._above: _Known = {}
        self._mosaics: dict[MosaicId, _Known] = {}

    @property
    def mosaics(self) -> tuple[MosaicId, ...]:
        """The mosaics of which anything is known, in order."""
        own = {item for item in self._above if isinstance(item, MosaicId)}
        return tuple(sorted(own | {mosaic for mosaic, known in self._mosaics.items() if known}))

    def facts_of(self, item: ItemId, /) -> frozenset[str]:
        """Return all facts of an item."""
        inside = self._mosaics.get(item.mosaic, {}) if isinstance(item, BatchId | TileId) else self._above
        return inside.get(item, frozenset())

    def snapshot(self, mosaics: Iterable[MosaicId], slices: Iterable[SliceId] = ()) -> FactsSnapshot:
        """Return the facts of some mosaics with their batches and tiles, and of some slices."""
        known: dict[ItemId, frozenset[str]] = {}
        for mosaic in mosaics:
            known.update(self._mosaics.get(mosaic, {}))
            if own := self._above.get(mosaic):
                known[mosaic] = own
        known.update({one: facts for one in slices if (facts := self._above.get(one))})
        return FactsSnapshot(known)

    def refresh(self) -> Changes:
        """List the folders that have changed, and return what differs."""
        above_due = self._look(str(self._project_dir / STATE_FOLDER)) != "same"
        if self._look(str(self._project_dir)) != "same":
            for mosaic in mosaics_of_project(self._project_dir):
                self._mosaics.setdefault(mosaic, {})
                folder = self._project_dir / mosaic.folder / STATE_FOLDER
                self._places.setdefault(mosaic, (str(folder), str(folder / TILES_FOLDER)))
        due, touched = [], set()
        for mosaic, places in self._places.items():
            looks = [self._look(place) for place in places]
            if looks == ["same", "same"]:
                continue
            due.append(mosaic)
            if "new" in looks:  # a record may have been replaced
                touched.add(mosaic)
        if not due and not above_due:
            return Changes()
        found: dict[MosaicId, dict[ItemId, set[str]]] = {mosaic: {} for mosaic in due}
        above: dict[ItemId, set[str]] = {}
        for item, fact in scan_flags(self._project_dir, mosaics=due):
            place = found[item.mosaic] if isinstance(item, BatchId | TileId) else above
            place.setdefault(item, set()).add(fact)
        changed = {mosaic for mosaic, known in found.items() if known != self._mosaics[mosaic]}
        self._mosaics.update({mosaic: _frozen(found[mosaic]) for mosaic in due})
        differing = {item for item in above.keys() | self._above.keys() if above.get(item) != self._above.get(item)}
        self._above = _frozen(above)
        return Changes(frozenset(changed | touched), frozenset(differing))

    def _look(self, folder: str) -> Literal["same", "again", "new"]:
        """Return whether a folder has changed, or may have changed without another modification time."""
        now = self._clock()
        try:
            mtime_ns = os.stat(folder).st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            mtime_ns = 0
        last = self._folders.get(folder)
        if last is None or last.mtime_ns != mtime_ns:
            self._folders[folder] = _Folder(mtime_ns, now, now)
            return "new"
        if not mtime_ns or last.listed_s > last.seen_s + SETTLED_S:
            return "same"
        last.listed_s = now
        return "again"


def _frozen(found: Mapping[ItemId, Iterable[str]]) -> _Known:
    return {item: frozenset(facts) for item, facts in found.items()}

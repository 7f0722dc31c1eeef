"""What the dashboard shows of a project, kept up to date by small steps and counted in versions."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock

from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.pipeline.arriving import waiting_tiles
from opticstream.pipeline.progress import Failure, ProjectProgress, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.quality_flags import FlaggedResult, flagged_results
from opticstream.pipeline.rules import BATCH_ENDED
from opticstream.pipeline.under_way import UnderWay, uploads_under_way
from opticstream.state import FactsSnapshot
from opticstream.web.facts_watch import Changes, FactsWatch
from opticstream.web.journal_tail import JournalTail
from opticstream.web.tiles import TileLook, TileLooks

_VITALS_EVERY_S = 5.0
_FLAGS_AT_ONCE = 200
"""Records that one step reads for their quality flags."""
_FIRST_READING_S, _READING_S = 0.05, 0.05
"""Times after which the first step, and a later one, reads no further slice; between steps pages are answered."""


@dataclass(frozen=True)
class Disk:
    """Space of the disk of one folder."""

    folder: str
    total_bytes: int
    free_bytes: int
    hours_left: float | None = None
    """Time until it is full at the present rate; None where it does not fill."""

    @property
    def percent_used(self) -> float:
        return 100.0 * (1 - self.free_bytes / self.total_bytes) if self.total_bytes else 0.0

    @property
    def nearly_full(self) -> bool:
        return self.percent_used > 90 or (self.hours_left is not None and self.hours_left < 24)


@dataclass(frozen=True)
class Vitals:
    """How fast it goes."""

    per_minute: float = 0.0
    """Tiles per minute."""
    megabytes_per_s: float = 0.0
    """Raw data processed."""
    lag_s: float | None = None
    """Age of the oldest tile, or column, that has come from the rig and is not processed; None if there is none."""
    waiting_columns: int = 0
    waiting_tiles: int = 0
    """Tiles that have come and are not processed, as far as a watch has noted them."""
    finish_s: float | None = None
    """Time until the current slice is processed at this rate; None if it is, or nothing is processed now."""
    last_tile_s: float | None = None
    """Time since the last tile was processed."""
    histogram: tuple[int, ...] = ()
    """Tiles in equal parts of the last two hours."""


@dataclass(frozen=True)
class Reading:
    """How far the first look at the facts of a project is."""

    mosaics: int = 0
    """Mosaics that were read."""
    of: int = 0
    """Mosaics that have a folder; 0 before anything was read."""
    slices: int = 0
    """Slices that are still to be read."""


class Board:
    """The state of a project as the dashboard shows it; one for all pages.

    `refresh` is called from one thread at a time; the other methods may be called from any thread.
    """

    def __init__(self, project: Project, /) -> None:
        self.project = project
        self.watch = FactsWatch(project.paths.base)
        self.version = 0
        self.slices: dict[SliceId, ProjectProgress] = {}
        self.previews: dict[SliceId, tuple[MosaicId, int]] = {}
        """The mosaic that stands for a slice in the strip of slices, and when it was stitched."""
        self.vitals = Vitals()
        self.disks: tuple[Disk, ...] = ()
        self.uploads: tuple[UnderWay, ...] = ()
        self.problem = ""
        """Why the facts cannot be read now; empty if they can."""
        self.reading: Reading | None = Reading()
        """How far the first look at all facts is; None when it is done."""
        self.touched: dict[MosaicId, int] = {}
        """The version at which something in a mosaic changed last."""
        self.lock = RLock()
        self._looks = TileLooks(project, self.watch)
        self._journal = JournalTail(project.facts.journal.folder)
        self._flagged: dict[ItemId, tuple[int, tuple[FlaggedResult, ...]]] = {}
        self._unjudged: deque[ItemId] = deque()
        self._touched: set[SliceId] = set()
        """Slices of which a fact has changed and a mosaic was not read yet."""
        self._asked_for: SliceId | None = None
        self._tile_bytes: dict[MosaicId, int] = {}
        self._vitals_s = 0.0
        self._free: dict[str, deque[tuple[float, int]]] = {}

    @property
    def current_slice(self) -> SliceId | None:
        """The last slice of which anything is known."""
        return max(self.slices, default=None)

    @property
    def has_sample_picture(self) -> bool:
        """Whether there is a picture of the whole sample."""
        return self.project.paths.sample_preview.is_file()

    def preview_of(self, slice_id: int, /) -> tuple[MosaicId, int] | None:
        """Return the mosaic that stands for a slice in the strip of slices, and when it was stitched."""
        return self.previews.get(SliceId(slice_id))

    @property
    def failures(self) -> list[Failure]:
        """Everything that is parked, the latest slice first."""
        return [failure for one in sorted(self.slices, reverse=True) for failure in self.slices[one].failures]

    @property
    def judging(self) -> bool:
        """Whether there are results of which the quality flags were not read yet."""
        return self.reading is not None or bool(self._unjudged)

    def is_open(self, item: ItemId, /) -> bool:
        """Return whether a failed tile's column has not ended: it is still worked on, or done again after a retry."""
        if not isinstance(item, TileId):
            return False
        return self.watch.facts_of(self.project.layout.batch_of(item)).isdisjoint(BATCH_ENDED)

    @property
    def flagged(self) -> list[FlaggedResult]:
        """The results that quality control flagged, the latest slice first."""
        found = itertools.chain.from_iterable(results for _, results in self._flagged.values())
        return sorted(found, key=lambda one: one.item.key, reverse=True)

    def looks(self, mosaic: MosaicId, column: int, /) -> list[TileLook]:
        """Return the tiles of a column, counted from 0 at the left of the picture."""
        layout = self.project.layout
        grid = layout.illumination_of(mosaic)
        if not 0 <= column < grid.columns:
            raise ValueError(f"column {column + 1} is outside 1..{grid.columns}")
        tiles = layout.tiles(BatchId(mosaic.mosaic_id, self._batch_numbers(layout.illumination_index(mosaic))[column]))
        with self.lock:
            return [self._looks.of(tile) for tile in tiles]

    @cache  # noqa: B019  (one board lives as long as its process)
    def _batch_numbers(self, illumination: int) -> tuple[int, ...]:
        """Return the numbers of the batches of an illumination by column, from the left of the picture."""
        layout = self.project.layout
        mosaic = layout.mosaic(SliceId(1), illumination)
        grid = layout.illumination_of(mosaic)

        def column(batch: BatchId) -> int:
            return layout.scan_order.grid_position(layout.tiles(batch)[0].tile_id, grid.columns, grid.rows)[0]

        return tuple(batch.batch_id for batch in sorted(layout.batches(mosaic), key=column))

    def look(self, tile_mosaic: MosaicId, tile_id: int, /) -> TileLook | None:
        """Return one tile; None if the mosaic has no such tile."""
        tiles = self.project.layout.tiles(tile_mosaic)
        return self._looks.of(tiles[tile_id - 1]) if 1 <= tile_id <= len(tiles) else None

    def refresh(self) -> bool:
        """Read what has changed, and return whether the page shows anything else now.

        Of a project that was not read before, each call reads some slices, the latest first.
        """
        found = self.watch.look(self._next_unread)  # before the lock, so that no page waits for the disk
        with self.lock:
            judging = self.judging
            changes = self.watch.take(found)
            self.touched.update(dict.fromkeys(changes.mosaics, self.version + 1))
            due = self._due_slices(changes)
            for one in due:
                self._update(one)
            if SampleId() in changes.above:  # the quality of every slice in the sample may have changed
                self._unjudged.extend(self.slices)
            changed = bool(due) or SampleId() in changes.above
            reading = self._how_far()
            changed |= reading != self.reading
            self.reading = reading
            if reading is None:  # the rest can wait until all slices are there
                changed |= self._read_flags() or judging != self.judging
                now = time.monotonic()
                if changed or now - self._vitals_s >= _VITALS_EVERY_S:
                    self._vitals_s = now
                    changed |= self._measure()
            self.version += changed
            return changed

    def read_first(self, slice_id: SliceId, /) -> bool:
        """Ask for a slice to be read before the others; return whether it was read already."""
        self._asked_for = slice_id
        return self.reading is None or self.watch.unread.isdisjoint(self.project.layout.mosaics(slice_id))

    def _next_unread(self, unread: frozenset[MosaicId]) -> Iterator[MosaicId]:
        """Yield the mosaics to read now, slice by slice until the time is over: the latest slices first."""
        layout = self.project.layout
        asked, is_first = self._asked_for, self.reading is not None and not self.reading.of
        end = time.monotonic() + (_FIRST_READING_S if is_first else _READING_S)
        slices: dict[SliceId, list[MosaicId]] = {}
        for mosaic in sorted(unread):
            slices.setdefault(layout.slice_of(mosaic), []).append(mosaic)
        for slice_id in sorted(slices, key=lambda one: (one == asked, one), reverse=True):
            yield from slices[slice_id]
            if time.monotonic() > end:
                return

    def _due_slices(self, changes: Changes) -> list[SliceId]:
        """Return the slices that differ and of which every mosaic was read, the latest first; keep the others."""
        layout = self.project.layout
        known = frozenset(self.watch.mosaics)  # a folder may be there before anything is recorded, or without that
        shown = {mosaic for mosaic in changes.mosaics - known if layout.slice_of(mosaic) in self.slices}
        self._touched |= {layout.slice_of(mosaic) for mosaic in (changes.mosaics & known) | shown}
        for item in changes.above:
            if isinstance(item, MosaicId):
                self._touched.add(layout.slice_of(item))
            elif isinstance(item, SliceId):
                self._touched.add(item)
        waiting = {layout.slice_of(mosaic) for mosaic in self.watch.unread}
        due = sorted(self._touched - waiting, reverse=True)
        self._touched &= waiting
        return due

    def _how_far(self) -> Reading | None:
        """Return how far the first look at the facts is; None when it is done."""
        unread = self.watch.unread
        if self.reading is None or not unread:
            return None
        slices = {self.project.layout.slice_of(mosaic) for mosaic in unread}
        return Reading(self.watch.folders - len(unread), self.watch.folders, len(slices))

    def note_problem(self, problem: str, /) -> bool:
        """Keep why the facts cannot be read, empty if they can; return whether that is new."""
        with self.lock:
            changed = problem != self.problem
            self.problem = problem
            self.version += changed
            return changed

    def _update(self, slice_id: SliceId) -> None:
        mosaics = self.project.layout.mosaics(slice_id)
        snapshot = self.watch.snapshot(mosaics, [slice_id])
        progress = project_progress(self.project, snapshot)
        if progress.slices:
            self.slices[slice_id] = progress
        else:  # everything was withdrawn, or something is recorded of the slice alone
            self.slices.pop(slice_id, None)
        stitched = [(mosaic, self._stamp(mosaic)) for mosaic in mosaics if snapshot.has(mosaic, "stitched")]
        if stitched:
            self.previews[slice_id] = stitched[0]
        else:
            self.previews.pop(slice_id, None)
        judged = [item for kind in ("batch", "mosaic", "slice") for item in snapshot.items(kind)]
        judged += [item for item, (_, results) in self._flagged.items() if results and self._lies_in(item, slice_id)]
        if self.reading is None:
            self._unjudged.extendleft(judged)
        else:  # the latest slice comes first
            self._unjudged.extend(judged)

    def _lies_in(self, item: ItemId, slice_id: SliceId) -> bool:
        if isinstance(item, MosaicId):
            return self.project.layout.slice_of(item) == slice_id
        return item == slice_id or (isinstance(item, BatchId) and self._lies_in(item.mosaic, slice_id))

    def _read_flags(self) -> bool:
        """Read quality flags of some results that have changed; return whether another result is flagged."""
        due: dict[ItemId, int] = {}
        while self._unjudged and len(due) < _FLAGS_AT_ONCE:
            item = self._unjudged.popleft()
            stamp = self._stamp(item)
            if self._flagged.get(item, (0, ()))[0] != stamp:
                due[item] = stamp
        if not due:
            return False
        found: dict[ItemId, list[FlaggedResult]] = {item: [] for item in due}
        for one in flagged_results(self.project, FactsSnapshot({item: self.watch.facts_of(item) for item in due})):
            place = self.project.layout.batch_of(one.item) if isinstance(one.item, TileId) else one.item
            found[place].append(one)
        changed = any(tuple(found[item]) != self._flagged.get(item, (0, ()))[1] for item in due)
        self._flagged.update({item: (stamp, tuple(found[item])) for item, stamp in due.items()})
        return changed

    def _stamp(self, item: ItemId) -> int:
        fact = {"batch": "processed", "mosaic": "stitched", "slice": "registered"}[item.hierarchy]
        paths = [self.project.facts.path(item, fact)]
        if isinstance(item, SliceId):  # its quality in the sample is in the sample's record
            paths.append(self.project.facts.path(SampleId(), "updated"))
        stamp = 0
        for path in paths:
            with contextlib.suppress(OSError):
                stamp = max(stamp, path.stat().st_mtime_ns)
        return stamp

    def _measure(self) -> bool:
        self._journal.refresh()
        before = (self.vitals, self.disks, self.uploads)
        self.vitals = self._vitals()
        self.disks = tuple(self._disks())
        self.uploads = tuple(uploads_under_way(self.project))
        return before != (self.vitals, self.disks, self.uploads)

    def _vitals(self) -> Vitals:
        rate = self._journal.per_minute()
        current = self.current_slice
        lag_s, waiting, left, size = None, 0, 0, 0
        tiles = waiting_tiles(self.project)
        if current is not None:
            mosaics = self.project.layout.mosaics(current)
            ended = sum(m.tiles_processed + m.tiles_failed for m in self.slices[current].mosaics)
            left = sum(self.project.layout.illumination_of(mosaic).tiles for mosaic in mosaics) - ended
            columns = [batch for mosaic in mosaics for batch in self.project.layout.batches(mosaic)]
            late = [batch for batch in columns if self._waits(batch)]
            waiting = len(late)
            times = [stamp for batch in late if (stamp := self._time_of(batch, "ready"))]
            times += [since for since, _, _ in tiles]
            lag_s = max(0.0, time.time() - min(times)) if times else None
            size = self._raw_bytes(mosaics)
        last = self._journal.last_s()
        return Vitals(
            per_minute=round(rate, 1),
            megabytes_per_s=round(rate / 60 * size / 1e6, 1),
            lag_s=_coarse(lag_s),
            waiting_columns=waiting,
            waiting_tiles=len(tiles),
            finish_s=_coarse(60 * left / rate) if rate and left else None,
            last_tile_s=_coarse(last),
            histogram=tuple(self._journal.histogram()),
        )

    def _waits(self, batch: BatchId) -> bool:
        known = self.watch.facts_of(batch)
        return "ready" in known and known.isdisjoint(BATCH_ENDED)

    def _time_of(self, item: ItemId, fact: str) -> float | None:
        try:
            return self.project.facts.path(item, fact).stat().st_mtime
        except OSError:
            return None

    def _raw_bytes(self, mosaics: Sequence[MosaicId]) -> int:
        """Return the size of a raw tile: that of the first processed one of a slice."""
        for mosaic in mosaics:
            if mosaic in self._tile_bytes:
                return self._tile_bytes[mosaic]
            for tile in self.project.layout.tiles(mosaic):
                if "processed" in self.watch.facts_of(tile):
                    return self._tile_bytes.setdefault(mosaic, self._looks.raw_bytes(tile))
        return 0

    def _disks(self) -> Iterable[Disk]:
        folders = {"project": self.project.paths.base, "archive": self.project.paths.archive_root}
        seen: set[int] = set()
        for name, folder in folders.items():
            place = _existing(folder)
            try:
                usage, device = shutil.disk_usage(place), place.stat().st_dev
            except OSError:
                continue
            if device in seen:
                continue
            seen.add(device)
            yield Disk(name, usage.total, _rounded(usage.free), self._hours_left(name, usage.free))

    def _hours_left(self, name: str, free: int) -> float | None:
        """Return the time until a disk is full, from how it filled in the last half hour."""
        history = self._free.setdefault(name, deque())
        now = time.monotonic()
        if not history or now - history[-1][0] >= 60:
            history.append((now, free))
        while history and now - history[0][0] > 1800:
            history.popleft()
        began, then = history[0] if history else (now, free)
        if now - began < 300 or then <= free:
            return None
        hours = free / ((then - free) / (now - began)) / 3600
        return float(f"{hours:.1g}") if hours < 1000 else None


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _rounded(size: int) -> int:
    """Return a size in steps that are worth a line on the page."""
    step = 10**9 if size > 10**11 else 10**8
    return size // step * step


def _coarse(seconds: float | None) -> float | None:
    """Return a duration in steps of five seconds, and of a minute from ten minutes up, so that pages rarely change."""
    if seconds is None:
        return None
    step = 60 if seconds >= 600 else 5
    return float(seconds // step * step)

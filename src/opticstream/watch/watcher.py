"""Find batches in the raw folder by polling, because network shares send no notifications.

A file is complete when its size and time have not changed for a while and its content matches the scan settings.
A batch is ready when each of its tiles has a complete file (two if the rig writes spectra beside complex tiles, with
`scan.spectral_file_name`). A file that stays wrong is reported as a problem of its tile, so that one bad file
never holds up a column. So is a missing file, once the column has waited long enough:

* nothing in it has changed for `stall_s`, or
* while the rig is working (`live`), later columns of its mosaic, or a later slice, are complete and nothing in it
  has changed for a minute (longer if the rig pauses longer between its tiles).

A column without any file is missing in the second case, or, without `live`, if its slice has started and nothing in the
folder has changed for `stall_s`. Files that arrive later are found: see `whole_files`.

Tiles of a column that is not complete yet are told of as soon as their files have the right size and have not changed
for a moment: see `arriving`. What is made of them is checked against the files again when the column is ready. That a
file has the size of those before it is told even before it has stood still, if its writer was seen to append to it: a
writer that reserves the size first, and fills the file then, has written nothing by that time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from opticstream.config import ScanSettings
from opticstream.io.packed import is_packed
from opticstream.io.raw import ComplexTile, SpectralShape, SpectralTile
from opticstream.io.raw_folder import RawNames, raw_files_below
from opticstream.model.errors import FileNameError, InputError
from opticstream.model.ids import BatchId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.model.tile_problem import TileProblem

_OVERTAKEN_S = 60.0
"""How long a column that the rig has left must not have changed before it is reported as it is, in seconds."""


@dataclass(slots=True)
class RawFile:
    """One raw file as it was last seen."""

    name: str
    """Path relative to the raw folder."""
    tile: TileId
    batch: BatchId
    size: int
    mtime_ns: int
    since_s: float
    """When it was first seen with this size and time, by the watcher's clock."""
    is_spectra: bool = False
    """Whether it holds the spectra beside a complex tile."""
    complete: bool = False
    full: bool = False
    """Whether it has the right size and header."""
    looked_at: bool = False
    """Whether that has been found out for its present size and time."""
    whole: bool = False
    """Whether it is full and has stood still for `tile_stable_s`."""
    problem: str | None = None
    """Why it cannot be processed, if it is stable and wrong."""
    judged_s: float = 0.0
    """When that was found, by the watcher's clock."""
    grows: bool = False
    """Whether it has changed since it was found."""
    appended: bool = False
    """Whether it was seen to grow when it was half written, so that its writer does not reserve the size first; and
    whether its time would show that it is written to later."""


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """A batch that is complete, or that will not be waited for any longer."""

    batch: BatchId
    files: dict[int, str]
    """Name of the file of each tile number."""
    spectra: dict[int, str]
    """Name of the spectral file of each tile number, if the rig writes it beside a complex tile."""
    problems: dict[int, TileProblem]
    """Tiles that cannot be processed, and why."""
    unsettled: frozenset[int] = frozenset()
    """Tiles whose files have their size, but have not stood still yet."""


@dataclass(frozen=True, slots=True)
class IncompleteBatch:
    """A batch with missing or unfinished tiles."""

    batch: BatchId
    missing: tuple[int, ...]
    """Tiles without a file, or without one of two files."""
    unfinished: tuple[str, ...]
    """Files that are still growing, or are wrong."""
    waiting_s: float
    """Time since anything in the batch has changed, in seconds."""

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"no file for tile{'s' * (len(self.missing) > 1)} {', '.join(map(str, self.missing))}")
        if self.unfinished:
            parts.append(f"not complete: {', '.join(self.unfinished)}")
        return f"{self.batch}: {'; '.join(parts)} (nothing new for {self.waiting_s:.0f} s)"


class Watcher:
    """Finds batches in a folder of raw files.

    Parameters
    ----------
    folder : Path
        The raw folder, including its subfolders.
    scan : ScanSettings
        Grid, file names and sizes.
    stable_s : float
        Time for which a file must not have changed, in seconds.
    stall_s : float
        Time after which an incomplete batch is reported as it is, in seconds.
    unfinished_s : float, optional
        Time after which a file of the wrong size is a problem of its tile, in seconds; `stall_s` by default.
    tile_stable_s : float
        Time for which a file must not have changed before its tile is told of by `arriving`, in seconds.
    live : bool
        Files may still be written to the folder: a column without any file is missing only once later ones are
        complete.
    settled : callable
        Returns whether a batch was announced before (when a watcher is started again, from the facts).
    clock : callable
        Monotonic time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        scan: ScanSettings,
        /,
        *,
        stable_s: float = 5.0,
        stall_s: float = 600.0,
        unfinished_s: float | None = None,
        tile_stable_s: float = 0.5,
        live: bool = True,
        settled: Callable[[BatchId], bool] = lambda _batch: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(folder)
        self.layout: AcquisitionLayout = scan.layout
        self.rejected_names: dict[str, str] = {}
        """Files whose names match the template but contradict the settings, with the reason."""
        self._scan = scan
        self._names = RawNames(scan.file_name, scan.spectral_file_name, self.layout)
        self._stable_s = stable_s
        self._stall_s = stall_s
        self._unfinished_s = stall_s if unfinished_s is None else unfinished_s
        self._tile_stable_s = min(tile_stable_s, stable_s)
        self._live = live
        self._settled = settled
        self._clock = clock
        self._ignored: set[str] = set()
        self._files: dict[str, RawFile] = {}
        self._by_batch: dict[BatchId, dict[str, RawFile]] = {}
        self._done: set[BatchId] = set()
        self._last_slice = SliceId(1)
        """The last slice of which a batch is done."""
        self._whole_slices: set[SliceId] = set()
        """Slices of which every batch is done."""
        self._full_bytes: dict[tuple[int, bool], int] = {}
        """Size of the last full file of each illumination, with the key True of spectra beside complex tiles."""
        self._reopened: frozenset[TileId] = frozenset()
        self._changed_s: dict[BatchId, float] = {}
        self._longest_pause_s: dict[BatchId, float] = {}
        self._folder_changed_s = clock()
        self._overtaken_s: dict[BatchId, float] = {}
        self._warned: set[BatchId] = set()

    def poll(self) -> list[FoundBatch]:
        """Check the folder once and return the batches that have become ready since the last call.

        Raises
        ------
        MissingInputError, InputError
            The folder does not exist, or cannot be read.
        """
        now = self._clock()
        present = set()
        for name, entry in raw_files_below(self.folder, on_folder=self._refuse_folder):
            present.add(name)
            if name not in self._ignored:
                self._see(name, entry, now)
        for name in self._files.keys() - present:
            file = self._files.pop(name)
            self._by_batch.get(file.batch, {}).pop(name, None)
            self._has_changed(file.batch, now)
        found = [found for batch in sorted(self._by_batch) if (found := self._judge(batch, now)) is not None]
        for batch in self._absent():
            if self._ends_waiting(batch, now):
                if self._settled(batch):
                    self._end(batch)
                else:
                    found.append(self._finish(batch))
        return found

    def known_batches(self) -> set[BatchId]:
        """Return every batch of which at least one file was found."""
        return {batch for batch, files in self._by_batch.items() if files} | self._done

    def incomplete(self) -> list[IncompleteBatch]:
        """Return the batches of which only a part has arrived."""
        now = self._clock()
        begun = (batch for batch, files in sorted(self._by_batch.items()) if files)
        return [self._incomplete(batch, now) for batch in begun if batch not in self._done]

    def folder_quiet_s(self) -> float:
        """Return the time since a raw file appeared or grew, in seconds; without any, since the watcher began."""
        return self._clock() - self._folder_changed_s

    def arriving(self) -> list[FoundBatch]:
        """Return the batches that are not ready yet, each with the tiles that are there.

        A tile is left out while one of its files is missing, is there twice, or has not its size. It is `unsettled`
        while one of them has not stood still for `tile_stable_s`. Batches without such a tile are left out.
        """
        found = []
        for batch, files in sorted(self._by_batch.items()):
            if batch in self._done:
                continue
            by_tile: dict[int, list[RawFile]] = {}
            for file in files.values():
                by_tile.setdefault(file.tile.tile_id, []).append(file)
            there = {
                number: sorted(own, key=lambda file: file.is_spectra)
                for number, own in sorted(by_tile.items())
                if sorted(file.is_spectra for file in own) == sorted(self._names.grammars)
                and all(file.full or file.complete for file in own)
            }
            if there:
                names = {number: own[0].name for number, own in there.items()}
                spectra = {number: own[1].name for number, own in there.items() if len(own) > 1}
                unsettled = {n for n, own in there.items() if not all(file.whole or file.complete for file in own)}
                found.append(FoundBatch(batch, names, spectra, {}, frozenset(unsettled)))
        return found

    def beginning(self) -> list[TileId]:
        """Return the tiles that are half written of batches of which no tile is whole, one for each batch.

        A file counts that was seen to grow and is half written.
        """
        now, found = self._clock(), []
        for batch, files in sorted(self._by_batch.items()):
            if batch in self._done or any(file.whole or file.complete for file in files.values()):
                continue
            growing = [f for f in files.values() if f.grows and now - f.since_s <= self._tile_stable_s]
            found += sorted(file.tile for file in growing if self._is_half_written(file))[:1]
        return found

    def longest_pause_s(self) -> float:
        """Return the longest time without any change between two changes of one batch, in seconds."""
        return max(self._longest_pause_s.values(), default=0.0)

    def open_batches(self) -> list[BatchId]:
        """Return the batches that the rig has yet to finish: of the mosaics in progress in the last slice that began.

        A mosaic is in progress as soon as one of its batches has begun; a later mosaic that is complete tells that the
        rig has left the earlier ones.
        """
        begun = {batch for batch, files in self._by_batch.items() if files}
        if not begun:
            return []
        last = max(self.layout.slice_of(batch.mosaic) for batch in begun)
        mosaics = sorted({batch.mosaic for batch in begun if self.layout.slice_of(batch.mosaic) == last})
        return [
            batch
            for mosaic in mosaics
            for batch in self.layout.batches(mosaic)
            if batch not in self._done and (batch in begun or not self._is_overtaken(batch))
        ]

    def stalled(self) -> list[IncompleteBatch]:
        """Return the incomplete batches in which nothing has changed for a while, each one once.

        That is a minute, or half of `stall_s` if that is less, so that a warning comes before the batch is processed.
        """
        patience_s = min(_OVERTAKEN_S, self._stall_s / 2)
        found = [i for i in self.incomplete() if i.waiting_s >= patience_s and i.batch not in self._warned]
        self._warned.update(i.batch for i in found)
        return found

    def waits(self) -> bool:
        """Return whether files may still arrive: for a batch that has started, or for the slice that it is in.

        While the rig is working, only batches that have started count.
        """
        absent = () if self._live else self._absent()
        return any(batch not in self._done for batch, files in self._by_batch.items() if files) or any(absent)

    def give_up_waiting(self) -> list[FoundBatch]:
        """Return the incomplete batches as they are, with their missing and unfinished tiles as problems.

        For the end of an acquisition: nothing more will come.
        """
        return [self._finish(state.batch) for state in self.incomplete()]

    def look_again_at(self, tiles: Iterable[TileId], /) -> None:
        """Keep checking the files of these tiles of reported batches: they were bad, and may be replaced."""
        self._reopened = frozenset(tiles)

    def whole_files(self, tile: TileId, /) -> tuple[str, ...] | None:
        """Return the files of a tile if each exists once and is complete and stable; None otherwise.

        Up to date for tiles of batches that are waited for, and for those given to `look_again_at`.
        """
        files = [f for f in self._by_batch.get(self.layout.batch_of(tile), {}).values() if f.tile == tile]
        kinds = sorted(f.is_spectra for f in files)
        if kinds != sorted(self._names.grammars) or not all(f.complete for f in files):
            return None
        return tuple(f.name for f in sorted(files, key=lambda f: f.is_spectra))

    def quiet_s(self, batch: BatchId, /) -> float:
        """Return the time since anything in a batch has changed, in seconds; infinite if it has no file."""
        changed_s = self._changed_s.get(batch)
        return float("inf") if changed_s is None else self._clock() - changed_s

    def found_again(self, batch: BatchId, /) -> FoundBatch:
        """Return a batch that was reported before, as it is now."""
        return self._finish(batch)

    def _refuse_folder(self, name: str) -> None:
        """Reject a folder that has the name of a tile; its content is searched like that of any other folder."""
        if name not in self.rejected_names and self._meaning(name) is not None:
            self.rejected_names[name] = f"{name}: is a folder with the name of a tile, expected a file"

    def _see(self, name: str, entry: os.DirEntry[str], now: float) -> None:
        file = self._files.get(name)
        if file is not None and file.batch in self._done and file.tile not in self._reopened:
            return
        if file is None:
            meant = self._meaning(name)
            if meant is None:
                self._ignored.add(name)
                return
        try:
            status = entry.stat()
        except OSError:
            return
        if file is None:
            assert meant is not None
            tile, is_spectra = meant
            batch = self.layout.batch_of(tile)
            file = RawFile(name, tile, batch, status.st_size, status.st_mtime_ns, now, is_spectra)
            self._files[name] = file
            self._by_batch.setdefault(batch, {})[name] = file
            self._has_changed(batch, now)
        elif (file.size, file.mtime_ns) != (status.st_size, status.st_mtime_ns):
            if self._is_half_written(file) and status.st_size > file.size and not is_packed(Path(name)):
                # times in whole seconds would not show that it was written to after it had its size
                file.appended = status.st_mtime_ns % 1_000_000_000 != 0
            file.size, file.mtime_ns, file.since_s = status.st_size, status.st_mtime_ns, now
            file.complete, file.problem = False, None
            file.full = file.looked_at = file.whole = False
            file.grows = True
            self._has_changed(file.batch, now)
        if file.complete or now - file.since_s < self._stable_s:
            stands = now - file.since_s >= self._tile_stable_s
            kind = (self.layout.illumination_index(file.tile.mosaic), file.is_spectra)
            # files are not opened while they are written: on some shares that makes their writer wait
            has_its_size = file.appended and file.size == self._full_bytes.get(kind)
            if self._live and not file.looked_at and (stands or has_its_size):
                file.full = self._problem(file) is None
                file.looked_at = file.full or stands  # its writer may keep it locked until it is closed
                if file.full:
                    self._full_bytes[kind] = file.size
            file.whole = file.full and stands
            return
        if file.full:  # it has not changed since it was opened
            file.complete = True
            return
        # A problem may go away without a change of the file (access, a share): check it again before reporting it.
        stalls_s = file.since_s + self._unfinished_s
        if file.problem is None or file.judged_s < stalls_s <= now:
            file.problem = self._problem(file)
            file.judged_s = now
            file.complete = file.problem is None

    def _is_half_written(self, file: RawFile) -> bool:
        """Return whether a file holds as many bytes as a tile has raw values: two make a value."""
        return file.size >= self._scan.raw_values_of_tile(self.layout.illumination_index(file.tile.mosaic))

    def _has_changed(self, batch: BatchId, now: float) -> None:
        pause_s = now - self._changed_s.get(batch, now)
        self._longest_pause_s[batch] = max(self._longest_pause_s.get(batch, 0.0), pause_s)
        self._changed_s[batch] = self._folder_changed_s = now

    def _meaning(self, name: str) -> tuple[TileId, bool] | None:
        """Return the meaning of a file name, or None for other files; names that contradict the settings are noted."""
        try:
            return self._names.meaning(name)
        except FileNameError as error:
            self.rejected_names[name] = str(error)
            return None

    def _problem(self, file: RawFile) -> str | None:
        """Return why a stable file cannot be processed; reads its header, and the end of a compressed file."""
        index = self.layout.illumination_index(file.tile.mosaic)
        a_lines, b_lines = self._scan.tile_shape(index)
        setting = f"scan.illuminations[{index}]"
        path = self.folder / file.name
        raw_format = self._scan.spectral_format if file.is_spectra else self._scan.raw_format
        try:
            if raw_format == "complex":
                channels = self._scan.channels
                with ComplexTile.open(path, a_lines=a_lines, b_lines=b_lines, channels=channels, setting=setting):
                    pass
            else:
                shape = SpectralShape(self._scan.samples, a_lines, self._scan.channels, b_lines, setting)
                with SpectralTile.open(path, shape, raw_format=raw_format) as tile:
                    tile.check_end()
        except (InputError, OSError) as error:
            return str(error)
        return None

    def _judge(self, batch: BatchId, now: float) -> FoundBatch | None:
        if batch in self._done:
            return None
        if self._settled(batch):
            self._end(batch)
            return None
        files = self._by_batch[batch].values()
        if not files:
            return None  # the files are gone, so the batch is absent
        # A file of the wrong size may be one that is still being written by a rig that pauses.
        if self._missing(batch) or any(
            not f.complete and (f.problem is None or now - f.since_s < self._unfinished_s) for f in files
        ):
            return self._finish(batch) if self._ends_waiting(batch, now) else None
        return self._finish(batch)

    def _ends_waiting(self, batch: BatchId, now: float) -> bool:
        """Return whether a batch that is incomplete, or has no file, has waited long enough."""
        begun = bool(self._by_batch.get(batch))
        changed_s = self._changed_s[batch] if begun else self._folder_changed_s
        if (begun or not self._live) and now - changed_s >= self._stall_s:
            return True
        if not self._live or not self._is_overtaken(batch):
            return False
        since_s = max(self._overtaken_s.setdefault(batch, now), self._changed_s.get(batch, 0.0))
        pause_s = 3 * self._longest_pause_s.get(batch, 0.0)
        return now - since_s >= min(self._stall_s, max(_OVERTAKEN_S, 4 * self._stable_s, pause_s))

    def _is_overtaken(self, batch: BatchId) -> bool:
        """Return whether the rig has moved on: batches that it acquires later are done.

        That is a later column of the same mosaic, or anything in a later slice. A rig that alternates between the
        illuminations of a slice is in the same column of each, so another mosaic of the slice counts only with a later
        column, or when it is complete.
        """
        mosaic, slice_id = batch.mosaic, self.layout.slice_of(batch.mosaic)
        if slice_id < self._last_slice:
            return True
        has_come = any(self._by_batch.get(b) for b in self.layout.batches(mosaic))
        for other in self.layout.mosaics(slice_id):
            if other < mosaic:
                continue
            columns = self.layout.batches(other)
            done = [b for b in columns if b in self._done]
            if other > mosaic and len(done) == len(columns):
                return True
            if has_come and any(b.batch_id > batch.batch_id for b in done):
                return True
        return False

    def _absent(self) -> list[BatchId]:
        """Return the batches without any file, in slices that have started."""
        begun = {self.layout.slice_of(batch.mosaic) for batch, files in self._by_batch.items() if files}
        absent = []
        for slice_id in sorted(begun - self._whole_slices):
            batches = [b for mosaic in self.layout.mosaics(slice_id) for b in self.layout.batches(mosaic)]
            for batch in batches:
                if batch in self._done or self._by_batch.get(batch):
                    continue
                if not self._live and self._settled(batch):
                    self._end(batch)  # an earlier run stopped waiting for it
                else:
                    absent.append(batch)
            if all(batch in self._done for batch in batches):
                self._whole_slices.add(slice_id)
        return absent

    def _missing(self, batch: BatchId) -> tuple[int, ...]:
        """Return the tiles for which a file is missing."""
        present = {(f.tile, f.is_spectra) for f in self._by_batch.get(batch, {}).values()}
        return tuple(
            tile.tile_id
            for tile in self.layout.tiles(batch)
            if not all((tile, is_spectra) in present for is_spectra in self._names.grammars)
        )

    def _end(self, batch: BatchId) -> None:
        self._done.add(batch)
        self._last_slice = max(self._last_slice, self.layout.slice_of(batch.mosaic))

    def _finish(self, batch: BatchId) -> FoundBatch:
        self._end(batch)
        named: dict[bool, dict[int, str]] = {False: {}, True: {}}
        for file in sorted(self._by_batch.get(batch, {}).values(), key=lambda f: f.tile.tile_id):
            named[file.is_spectra][file.tile.tile_id] = file.name
        wanted = "raw and spectral file" if len(self._names.grammars) > 1 else "raw file"
        problems = {
            tile: TileProblem(
                kind="missing", text=f"tile {tile} of mosaic {batch.mosaic_id}: no {wanted} arrived in {self.folder}"
            )
            for tile in self._missing(batch)
        }
        return FoundBatch(batch, named[False], named[True], dict(sorted((problems | self._duplicates(batch)).items())))

    def _duplicates(self, batch: BatchId) -> dict[int, TileProblem]:
        names: dict[tuple[int, bool], list[str]] = {}
        for file in self._by_batch.get(batch, {}).values():
            names.setdefault((file.tile.tile_id, file.is_spectra), []).append(file.name)
        setting = {False: "file_name", True: "spectral_file_name"}
        return {
            number: TileProblem.of_claimants(
                TileId(batch.mosaic_id, number),
                claimed,
                f"{self.folder} (scan.{setting[is_spectra]} = {self._names.grammars[is_spectra].template!r})",
            )
            for (number, is_spectra), claimed in names.items()
            if len(claimed) > 1
        }

    def _incomplete(self, batch: BatchId, now: float) -> IncompleteBatch:
        return IncompleteBatch(
            batch,
            self._missing(batch),
            tuple(f.problem or f.name for f in self._by_batch[batch].values() if not f.complete),
            now - self._changed_s.get(batch, now),
        )

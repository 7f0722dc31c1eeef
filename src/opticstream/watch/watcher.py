"""Looks at the raw folder again and again, because network shares give no notifications.

A file counts as complete when its size and time have stood still for a while and it holds what the scan settings say.
A batch is ready when each of its tiles has a complete file (two where the rig writes spectra beside complex tiles, with
`scan.spectral_file_name`). What is wrong and stays wrong is handed on as a problem of
its tile, so that one bad file never holds up a column.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from opticstream.config import ScanSettings
from opticstream.io.names import FileNameGrammar
from opticstream.io.raw import ComplexTile, SpectralShape, SpectralTile
from opticstream.model.errors import FileNameError, InputError, MissingInputError
from opticstream.model.ids import BatchId, TileId
from opticstream.model.layout import AcquisitionLayout


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
    companion: bool = False
    """Whether it holds the spectra beside a complex tile."""
    complete: bool = False
    problem: str | None = None
    """Why it cannot be processed, where it stands still and is not what it should be."""


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """A batch of which everything is known that will ever be."""

    batch: BatchId
    files: dict[int, str]
    """Name of the file of each tile number."""
    spectra: dict[int, str]
    """Name of the spectral file of each tile number, where the rig writes it beside a complex tile."""
    problems: dict[int, str]
    """Tiles that cannot be processed, and why."""


@dataclass(frozen=True, slots=True)
class IncompleteBatch:
    """A batch of which some tiles have not come."""

    batch: BatchId
    missing: tuple[int, ...]
    """Tiles without a file, or without one of two."""
    unfinished: tuple[str, ...]
    """Files that are still growing, or are not what they should be."""
    waiting_s: float
    """Time since anything of the batch has changed, in seconds."""

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
        Raw files, also in subfolders.
    scan : ScanSettings
        Grid, file names and sizes.
    stable_s : float
        Time that a file must have stood still, in seconds.
    stall_s : float
        Time after which a file of the wrong size is a problem, and an incomplete batch is worth a warning, in seconds.
    settled : callable
        Tells of a batch whether it was announced before (a watcher that is started again asks the facts).
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
        settled: Callable[[BatchId], bool] = lambda _batch: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(folder)
        self.layout: AcquisitionLayout = scan.layout
        self.strangers: dict[str, str] = {}
        """Files that follow the name template but say something impossible, with the reason."""
        self._scan = scan
        self._grammars = {False: FileNameGrammar(scan.file_name, self.layout)}
        if scan.spectral_file_name is not None:
            self._grammars[True] = FileNameGrammar(scan.spectral_file_name, self.layout)
        self._stable_s = stable_s
        self._stall_s = stall_s
        self._settled = settled
        self._clock = clock
        self._ignored: set[str] = set()
        self._files: dict[str, RawFile] = {}
        self._by_batch: dict[BatchId, dict[str, RawFile]] = {}
        self._done: set[BatchId] = set()
        self._changed_s: dict[BatchId, float] = {}
        self._warned: set[BatchId] = set()

    def poll(self) -> list[FoundBatch]:
        """Look at the folder once and return the batches that have become ready since the last look.

        Raises
        ------
        MissingInputError, InputError
            The folder is not there, or cannot be read.
        """
        now = self._clock()
        present = set()
        for name, entry in self._entries():
            present.add(name)
            if name not in self._ignored:
                self._see(name, entry, now)
        for name in self._files.keys() - present:
            file = self._files.pop(name)
            self._by_batch.get(file.batch, {}).pop(name, None)
        return [found for batch in sorted(self._by_batch) if (found := self._judge(batch, now)) is not None]

    def known_batches(self) -> set[BatchId]:
        """Return every batch of which at least one file was seen."""
        return {batch for batch, files in self._by_batch.items() if files} | self._done

    def incomplete(self) -> list[IncompleteBatch]:
        """Return the batches of which something has come and something has not."""
        now = self._clock()
        return [self._incomplete(batch, now) for batch in sorted(self._by_batch) if batch not in self._done]

    def stalled(self) -> list[IncompleteBatch]:
        """Return the incomplete batches in which nothing has changed for `stall_s` seconds, each one once."""
        found = [i for i in self.incomplete() if i.waiting_s >= self._stall_s and i.batch not in self._warned]
        self._warned.update(i.batch for i in found)
        return found

    def give_up_waiting(self) -> list[FoundBatch]:
        """Return the incomplete batches as they are, with their missing and unfinished tiles as problems.

        For the end of an acquisition: nothing more will come.
        """
        found = []
        for state in self.incomplete():
            batch = state.batch
            wanted = "raw and spectral file" if len(self._grammars) > 1 else "raw file"
            problems = {
                tile: f"tile {tile} of mosaic {batch.mosaic_id}: no {wanted} came in {self.folder}"
                for tile in state.missing
            }
            found.append(self._finish(batch, problems))
        return found

    def _entries(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield every file below the raw folder, also through links to folders: each folder once, loops or not."""
        folders = [("", str(self.folder))]
        seen: set[tuple[int, int]] = set()
        while folders:
            prefix, path = folders.pop()
            try:
                with os.scandir(path) as entries:
                    if _was_seen(path, seen):
                        continue
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir():
                            # Links come last: a folder is known by its own name rather than by a link to it.
                            place = 0 if entry.is_symlink() else len(folders)
                            folders.insert(place, (f"{prefix}{entry.name}/", entry.path))
                        else:
                            yield prefix + entry.name, entry
            except FileNotFoundError:
                if not prefix:
                    raise MissingInputError(f"{self.folder}: there is no such folder of raw files") from None
            except OSError as error:
                if not prefix:
                    raise InputError(f"{self.folder}: cannot be read: {error.strerror}") from error

    def _see(self, name: str, entry: os.DirEntry[str], now: float) -> None:
        file = self._files.get(name)
        if file is not None and file.batch in self._done:
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
            tile, companion = meant
            batch = self.layout.batch_of(tile)
            file = RawFile(name, tile, batch, status.st_size, status.st_mtime_ns, now, companion)
            self._files[name] = file
            self._by_batch.setdefault(batch, {})[name] = file
            self._changed_s[batch] = now
        elif (file.size, file.mtime_ns) != (status.st_size, status.st_mtime_ns):
            file.size, file.mtime_ns, file.since_s = status.st_size, status.st_mtime_ns, now
            file.complete, file.problem = False, None
            self._changed_s[file.batch] = now
        if file.complete or now - file.since_s < self._stable_s:
            return
        if file.problem is None:
            file.problem = self._problem(file)
            file.complete = file.problem is None

    def _meaning(self, name: str) -> tuple[TileId, bool] | None:
        """Return the tile that a file name means and whether it is the companion of a complex one; None for others."""
        for companion, grammar in self._grammars.items():
            try:
                tile = grammar.tile_from_name(name.rpartition("/")[2])
            except FileNameError as error:
                self.strangers[name] = str(error)
                return None
            if tile is not None and not _is_utf8(name):
                self.strangers[name] = "the name of its folder is not valid UTF-8, and events cannot hold it; rename it"
                return None
            if tile is not None:
                return tile, companion
        return None

    def _problem(self, file: RawFile) -> str | None:
        """Return why a file that stands still cannot be processed; reads its header only."""
        index = self.layout.illumination_index(file.tile.mosaic)
        a_lines, b_lines = self._scan.tile_shape(index)
        setting = f"scan.illuminations[{index}]"
        path = self.folder / file.name
        raw_format = self._scan.spectral_format if file.companion else self._scan.raw_format
        try:
            if raw_format == "complex":
                channels = self._scan.channels
                with ComplexTile.open(path, a_lines=a_lines, b_lines=b_lines, channels=channels, setting=setting):
                    pass
            else:
                shape = SpectralShape(self._scan.samples, a_lines, self._scan.channels, b_lines, setting)
                with SpectralTile.open(path, shape, raw_format=raw_format):
                    pass
        except (InputError, OSError) as error:
            return str(error)
        return None

    def _judge(self, batch: BatchId, now: float) -> FoundBatch | None:
        if batch in self._done:
            return None
        if self._settled(batch):
            self._done.add(batch)
            return None
        files = self._by_batch[batch].values()
        if len(files) < self.layout.illumination_of(batch.mosaic).rows * len(self._grammars):
            return None
        # A file of the wrong size may be one that is still being written by a rig that pauses.
        if any(not f.complete and (f.problem is None or now - f.since_s < self._stall_s) for f in files):
            return None
        if self._missing(batch):
            return None
        return self._finish(batch, {})

    def _missing(self, batch: BatchId) -> tuple[int, ...]:
        """Return the tiles for which a file is missing."""
        present = {(f.tile, f.companion) for f in self._by_batch[batch].values()}
        return tuple(
            tile.tile_id
            for tile in self.layout.tiles(batch)
            if not all((tile, companion) in present for companion in self._grammars)
        )

    def _finish(self, batch: BatchId, problems: dict[int, str]) -> FoundBatch:
        self._done.add(batch)
        named: dict[bool, dict[int, str]] = {False: {}, True: {}}
        for file in sorted(self._by_batch[batch].values(), key=lambda f: f.tile.tile_id):
            named[file.companion][file.tile.tile_id] = file.name
        return FoundBatch(batch, named[False], named[True], dict(sorted((problems | self._duplicates(batch)).items())))

    def _duplicates(self, batch: BatchId) -> dict[int, str]:
        names: dict[tuple[int, bool], list[str]] = {}
        for file in self._by_batch[batch].values():
            names.setdefault((file.tile.tile_id, file.companion), []).append(file.name)
        setting = {False: "file_name", True: "spectral_file_name"}
        return {
            number: f"tile {number} of mosaic {batch.mosaic_id}: {len(claimed)} files claim to be it: "
            f"{', '.join(sorted(claimed))}; keep one in {self.folder} "
            f"(scan.{setting[companion]} = {self._grammars[companion].template!r})"
            for (number, companion), claimed in names.items()
            if len(claimed) > 1
        }

    def _incomplete(self, batch: BatchId, now: float) -> IncompleteBatch:
        return IncompleteBatch(
            batch,
            self._missing(batch),
            tuple(f.problem or f.name for f in self._by_batch[batch].values() if not f.complete),
            now - self._changed_s.get(batch, now),
        )


def _was_seen(path: str, seen: set[tuple[int, int]]) -> bool:
    """Return whether a folder was searched already, by another name; note that it is."""
    status = os.stat(path)
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return status.st_ino != 0
    seen.add(key)
    return False


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Write OME-Zarr stores of multiscale volumes.

A store is written under a temporary name and renamed when it is complete. Finished blocks are noted
beside the data, so that a killed run can continue where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.atomic import TEMPORARY_MARK, replace_folder
from opticstream.io.disk_errors import disk_errors
from opticstream.io.flush_behind import FlushBehind
from opticstream.io.zarr._layout import StoreLayout, array_spec, multiscales_metadata
from opticstream.model.errors import StateError
from opticstream.system.disk import replace
from opticstream.system.locks import FileLock, has_locks, try_lock
from opticstream.system.temporary_names import shortened

_JOURNAL = "opticstream-journal"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _identity(layout: StoreLayout, name: str, provenance: Mapping[str, Any]) -> str:
    """Return a key that two runs share if they write the same store."""
    content = json.dumps([layout.__dict__, name, provenance], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _work_path(path: Path, key: str) -> Path:
    stem, dot, suffixes = path.name.partition(".")
    return path.with_name(f".{shortened(stem, 60)}{TEMPORARY_MARK}{key}{dot}{suffixes[-24:]}")


def _note_path(path: Path, key: str) -> Path:
    return path.with_name(f".{shortened(path.name.partition('.')[0], 60)}{TEMPORARY_MARK}{key}.finished")


def was_finished(path: Path, layout: StoreLayout, /, *, name: str, provenance: Mapping[str, Any]) -> bool:
    """Return whether an earlier run left a note that it finished this store."""
    return path.exists() and _note_path(path, _identity(layout, name, provenance)).exists()


def remove_notes(path: Path, /) -> None:
    """Remove the notes that a store was finished."""
    for note in _with_any_key(path, _note_path):
        note.unlink(missing_ok=True)


def _with_any_key(path: Path, named: Callable[[Path, str], Path]) -> list[Path]:
    """Return the existing temporary paths of a store, with any key."""
    before, _, after = named(path, "*").name.rpartition("*")
    return [p for p in path.parent.iterdir() if p.name.startswith(before) and p.name.endswith(after)]


def _lock_of(folder: Path) -> FileLock | None:
    """Return the lock on an unfinished store's folder, or None if another process holds it."""
    return try_lock(folder / f"{_JOURNAL}.lock")


class LevelArrays:
    """The arrays of a store's levels, open for reading and writing; other processes may hold them open too.

    Parameters
    ----------
    folder : Path
        Current folder of the store.
    layout : StoreLayout
        Geometry.
    threads : int
        Threads that compress and write.
    """

    def __init__(self, folder: Path, layout: StoreLayout, /, *, threads: int = 2) -> None:
        import tensorstore as ts

        self.folder, self.layout = folder, layout
        context = ts.Context(
            {
                # Data are synced before the store gets its name (`StoreWriter.finish`), not file by file.
                "file_io_sync": False,
                "cache_pool": {"total_bytes_limit": 0},
                "file_io_locking": {"mode": "os" if has_locks(folder) else "none"},
                "data_copy_concurrency": {"limit": threads},
                "file_io_concurrency": {"limit": max(threads, 2)},
            }
        )
        with disk_errors(folder):
            self._arrays = [
                ts.open(array_spec(folder, layout, level), create=True, open=True, context=context).result()
                for level in range(layout.levels)
            ]

    def write(self, level: int, corner: tuple[int, int, int], data: NDArray[np.float32], /) -> Any:
        """Start to write a block whose first voxel is `corner`; parts beyond the level's size are cut off.

        Returns
        -------
        pair of futures
            `data` may be reused when the first (``copy``) is done; the block is stored when the second is done.
        """
        shape = self.layout.level_shape(level)
        size = [min(n, s - c) for n, s, c in zip(data.shape, shape, corner, strict=True)]
        if min(size) <= 0:
            return None
        region = tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))
        return self._arrays[level][region].write(data[: size[0], : size[1], : size[2]])

    def settle(self, writes: Iterable[Any], /) -> None:
        """Wait until the data of `write` are stored; None counts as stored.

        Raises
        ------
        OSError
            The disk is full, or refuses otherwise.
        """
        with disk_errors(self.folder):
            for future in writes:
                if future is not None:
                    future.result()

    def read(self, level: int, region: tuple[slice, slice, slice], /) -> NDArray[np.float32]:
        """Return voxels that are already stored."""
        with disk_errors(self.folder):
            return np.asarray(self._arrays[level][region].read().result())


class StoreWriter:
    """A store being written. Use as a context manager; call `finish` when every block is written.

    Parameters
    ----------
    path : Path
        Final name, usually ``*.ome.zarr``.
    layout : StoreLayout
        Geometry.
    name : str
        Name of the image in the metadata.
    provenance : mapping
        Kept in the store's attributes under ``opticstream``. Two runs with the same layout, name and provenance write
        the same store: blocks that an earlier run finished are not written again.
    threads : int
        Threads that compress and write.

    Attributes
    ----------
    finished : set of int
        Blocks that are done.
    superseded : int
        Number of unfinished runs with other inputs or settings whose files were removed.

    Raises
    ------
    StateError
        Another process is writing this store.
    """

    def __init__(
        self, path: Path, layout: StoreLayout, /, *, name: str, provenance: Mapping[str, Any], threads: int = 2
    ) -> None:
        self.path, self.layout = path, layout
        self._attributes = {"multiscales": [multiscales_metadata(layout, name=name)]}
        key = _identity(layout, name, provenance)
        self._work = _work_path(path, key)
        self._note = _note_path(path, key)
        self._work.mkdir(parents=True, exist_ok=True)
        lock = _lock_of(self._work)
        if lock is None:
            raise StateError(f"{path}: another process is writing this store ({self._work.name} is locked)")
        self._lock = lock
        self.superseded = self._remove_others()
        remove_notes(path)
        self._journal_path = self._work / f"{_JOURNAL}.txt"
        self.finished = self._read_journal()
        self._journal = self._journal_path.open("a", encoding="utf-8")
        if not self.finished:
            self._journal.write(f"boot {_boot_id()}\n")
            self._journal.flush()
        self.levels = LevelArrays(self._work, layout, threads=threads)
        self._write_group(provenance)
        self._flush = FlushBehind(self._work)

    def _remove_others(self) -> int:
        """Remove the unfinished files of runs with other inputs or settings; return their number."""
        removed = 0
        for other in _with_any_key(self.path, _work_path):
            if other == self._work or not (other / f"{_JOURNAL}.txt").exists():
                continue
            lock = _lock_of(other)
            if lock is None:
                continue  # another process is writing it
            shutil.rmtree(other, ignore_errors=True)
            lock.release()
            removed += 1
        return removed

    def _read_journal(self) -> set[int]:
        """Return the blocks that an earlier run finished; none after the machine restarted, when data may be lost."""
        if not self._journal_path.exists():
            return set()
        lines = self._journal_path.read_text(encoding="utf-8").splitlines(keepends=True)
        if not lines or lines[0] != f"boot {_boot_id()}\n":
            self._journal_path.unlink()
            return set()
        # A line that was truncated when the process ended is ignored.
        return {
            int(line.removeprefix("block ")) for line in lines[1:] if line.startswith("block ") and line[-1] == "\n"
        }

    def _write_group(self, provenance: Mapping[str, Any]) -> None:
        attributes = self._attributes

        def dump(name: str, content: Mapping[str, Any]) -> None:
            text = json.dumps(content, indent=2, sort_keys=True, default=str, allow_nan=False) + "\n"
            temporary = self._work / f"{name}.new"
            temporary.write_text(text, encoding="utf-8")
            replace(temporary, self._work / name)

        plain = json.loads(json.dumps(dict(provenance), default=str))
        if self.layout.version == "0.5":
            ome = {"version": "0.5", **attributes}
            dump(
                "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome, "opticstream": plain}}
            )
        else:
            dump(".zgroup", {"zarr_format": 2})
            dump(".zattrs", {**attributes, "opticstream": plain})

    def note_finished(self, block: int, /) -> None:
        """Record that every level of a block is stored.

        Raises
        ------
        OSError
            The disk failed to store earlier data; a later run writes all blocks again.
        """
        self._journal.write(f"block {block}\n")
        self._journal.flush()
        self.finished.add(block)
        try:
            self._flush.start()
        except OSError:
            self._journal_path.unlink()  # lost data are no longer in memory either: no run may rely on them
            raise

    def finish(self, provenance: Mapping[str, Any] | None = None, /, *, leave_note: bool = False) -> Path:
        """Sync everything to the disk, rename the store and return it; an older store is replaced.

        `provenance` replaces that given at the start, if more is known at the end. With `leave_note`, a hidden file
        beside the store records this for `was_finished`, until `remove_notes`.
        """
        if provenance is not None:
            self._write_group(provenance)
        self._journal.close()
        for entry in self._work.glob(f"{_JOURNAL}.*"):
            entry.unlink(missing_ok=True)
        self._flush.finish()
        replace_folder(self._work, self.path)
        if leave_note:
            self._note.touch()
        return self.path

    def discard(self) -> None:
        """Remove what was written so far."""
        self._journal.close()
        self._flush.close()
        shutil.rmtree(self._work, ignore_errors=True)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._journal.closed:
            self._journal.close()
        self._flush.close()
        self._lock.release()

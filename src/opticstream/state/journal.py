"""The append-only log of a project: what happened to which item, when, where, for how long, and what was skipped.

One file per host and day under ``state/journal/``, one JSON object on a line. The processes of a host append to the
same file with one write per line; hosts never share one, because appending is only atomic on one host. The journal
is for information only: losing a line (full disk, power failure) must never stop the work.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from opticstream.model.ids import BatchId, ItemId, MosaicId, TileId, item_from_key
from opticstream.state.flags import JOURNAL_FOLDER, STATE_FOLDER
from opticstream.state.record import time_from_text, time_to_text
from opticstream.system.host import HostIdentity
from opticstream.system.spent import Spent

EVENTS = (
    "recorded", "replaced", "withdrawn", "renamed", "claimed", "taken over", "released", "lost", "skipped", "computed",
    "failed",
)  # fmt: skip
"""What a line can report; `computed` is a completed compute with its duration, `failed` an attempt with its error."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line of the journal."""

    time: datetime
    event: str
    item: ItemId
    host: str
    pid: int
    fact: str | None = None
    duration_s: float | None = None
    why: str | None = None
    flow_run_id: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> bytes:
        """Return the entry as a line of JSON without empty fields."""
        data = {
            "time": time_to_text(self.time),
            "event": self.event,
            "item": self.item.key,
            "fact": self.fact,
            "host": self.host,
            "pid": self.pid,
            "duration_s": self.duration_s,
            "why": self.why,
            "flow_run_id": self.flow_run_id,
            "detail": dict(self.detail) or None,
        }
        kept = {key: value for key, value in data.items() if value is not None}
        text = json.dumps(kept, ensure_ascii=False, default=str)
        return text.encode(errors="backslashreplace") + b"\n"  # a file name need not be UTF-8

    @classmethod
    def from_line(cls, line: bytes, /) -> JournalEntry:
        """Return the entry of a line; raise ValueError if it is damaged."""
        try:
            data = json.loads(line)
            return cls(
                time=time_from_text(data["time"]),
                event=data["event"],
                item=item_from_key(data["item"]),
                host=data["host"],
                pid=data["pid"],
                fact=data.get("fact"),
                duration_s=data.get("duration_s"),
                why=data.get("why"),
                flow_run_id=data.get("flow_run_id"),
                detail=MappingProxyType(data.get("detail") or {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{line!r} is not a line of a journal") from error


class Journal:
    """The journal of one project, written for one process."""

    def __init__(
        self, project_dir: Path, *, host: HostIdentity, clock: Callable[[], datetime], flow_run_id: str | None = None
    ) -> None:
        self.folder = project_dir / STATE_FOLDER / JOURNAL_FOLDER
        self._host = host
        self._clock = clock
        self._flow_run_id = flow_run_id
        self._healed: set[Path] = set()

    def write(
        self,
        event: str,
        item: ItemId,
        /,
        *,
        fact: str | None = None,
        duration_s: float | None = None,
        why: str | None = None,
        flow_run_id: str | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an entry. An unknown event is an error; failing to write is only logged."""
        if event not in EVENTS:
            raise ValueError(f"unknown event {event!r} for the journal; expected one of {', '.join(EVENTS)}")
        now = self._clock()
        entry = JournalEntry(
            now,
            event,
            item,
            self._host.host,
            self._host.pid,
            fact,
            None if duration_s is None else round(duration_s, 3),
            why,
            flow_run_id or self._flow_run_id,
            detail or {},
        )
        try:
            self._append(self._file_for(now), entry.to_line())
        except OSError as error:
            _log.warning("the journal of %s could not be written: %s", self.folder.parent.parent, error)

    def skipped(self, item: ItemId, fact: str, /, why: str) -> None:
        """Append that the work for `fact` was skipped, and why."""
        self.write("skipped", item, fact=fact, why=why)

    def computed(self, item: ItemId, fact: str, /, spent: Spent | float, **detail: Any) -> None:
        """Append that the compute that leads to `fact` was completed, and what it took: seconds if no more is known."""
        if isinstance(spent, Spent):
            detail["processor_s"] = round(spent.processor_s, 3)
        wall_s = spent.wall_s if isinstance(spent, Spent) else spent
        self.write("computed", item, fact=fact, duration_s=wall_s, detail=detail)

    def failed(self, item: ItemId, fact: str | None, /, *, why: str, kind: str, stage: str) -> None:
        """Append that an attempt failed: why, with which kind of error, and in which stage.

        `fact` is the one that parks the work, or None if it is tried again.
        """
        self.write("failed", item, fact=fact, why=why, detail={"kind": kind, "stage": stage})

    def entries(self, *, since: datetime | None = None) -> Iterator[JournalEntry]:
        """Yield the entries of all hosts in the order of their times; damaged lines are skipped.

        Entries of one file keep their order even if the host's clock was set back between them.

        Parameters
        ----------
        since : datetime, optional
            Omit entries before this time; the files of days before it are not opened.
        """
        files = sorted(self.folder.glob("*.jsonl")) if self.folder.is_dir() else []
        if since is not None:
            files = [file for file in files if file.stem[-8:] >= f"{since:%Y%m%d}"]
        streams = [_in_order(file) for file in files]
        for _, _, _, entry in heapq.merge(*streams, key=lambda keyed: keyed[:3]):
            if since is None or entry.time >= since:
                yield entry

    def history(self, item: ItemId, /, *, below: bool = False) -> list[JournalEntry]:
        """Return what happened to an item, oldest first.

        Parameters
        ----------
        item : ItemId
            The item.
        below : bool, default False
            For a mosaic: its batches and tiles too.
        """
        return [entry for entry in self.entries() if entry.item == item or (below and _lies_in(entry.item, item))]

    def _file_for(self, time: datetime) -> Path:
        boot = hashlib.sha256((self._host.boot_id or self._host.host).encode()).hexdigest()[:6]
        host = re.sub(r"[^A-Za-z0-9._-]+", "-", self._host.host)[:60]
        return self.folder / f"{host}-{boot}-{time:%Y%m%d}.jsonl"

    def _append(self, path: Path, line: bytes) -> None:
        try:
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if path not in self._healed:
                self._healed.add(path)
                if _is_cut(handle):  # a crash of the machine may have cut the last line; start a new one
                    line = b"\n" + line
            written = os.write(handle, line)
            if written < len(line):
                self._healed.discard(path)
                raise OSError(f"only {written} of {len(line)} bytes could be written to {path}")
        finally:
            os.close(handle)


def _is_cut(handle: int) -> bool:
    size = os.fstat(handle).st_size
    if not size:
        return False
    os.lseek(handle, size - 1, os.SEEK_SET)
    return os.read(handle, 1) != b"\n"


def _in_order(file: Path) -> Iterator[tuple[datetime, str, int, JournalEntry]]:
    latest: datetime | None = None
    damaged = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            try:
                entry = JournalEntry.from_line(line)
            except ValueError:
                damaged += bool(line.strip())
                continue
            latest = entry.time if latest is None else max(latest, entry.time)
            yield latest, file.name, number, entry
    if damaged:
        _log.warning("skipped %d damaged lines in %s", damaged, file)


def _lies_in(inner: ItemId, outer: ItemId) -> bool:
    return isinstance(outer, MosaicId) and isinstance(inner, BatchId | TileId) and inner.mosaic == outer

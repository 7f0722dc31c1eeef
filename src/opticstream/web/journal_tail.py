"""When tiles were processed: the end of the project's journal, read on as it grows."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from opticstream.model.ids import TileId
from opticstream.state.journal import JournalEntry

FIRST_READ_BYTES = 2_000_000
"""Bytes at the end of each file that are read at first."""
KEPT_S = 2 * 3600.0
_RECENT_S = 26 * 3600.0


class JournalTail:
    """Times of the tiles that were processed in the last two hours."""

    def __init__(self, folder: Path, /) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self._times: deque[float] = deque()

    def refresh(self) -> None:
        """Read what was appended."""
        found: list[float] = []
        for file in sorted(self._folder.glob("*.jsonl")):
            try:
                found += self._read(file)
            except OSError:  # the journal is for information only
                continue
        if found:
            self._times = deque(sorted([*self._times, *found]))
        while self._times and self._times[0] < time.time() - KEPT_S:
            self._times.popleft()

    def _read(self, file: Path) -> list[float]:
        status = file.stat()
        start = self._offsets.get(file)
        if start is None:
            recent = status.st_mtime > time.time() - _RECENT_S
            start = max(0, status.st_size - FIRST_READ_BYTES) if recent else status.st_size
        if status.st_size <= start:
            self._offsets[file] = min(start, status.st_size)
            return []
        with file.open("rb") as lines:
            lines.seek(start)
            content = lines.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be in the middle of being written
        self._offsets[file] = start + len(whole)
        found = []
        for line in whole.splitlines():
            if b'"computed"' not in line:
                continue
            try:
                entry = JournalEntry.from_line(line)
            except ValueError:  # cut by a crash, or by where the reading began
                continue
            if isinstance(entry.item, TileId) and entry.fact == "processed":
                found.append(entry.time.timestamp())
        return found

    def per_minute(self, *, window_s: float = 900.0) -> float:
        """Return the tiles per minute in the last minutes, or since the first tile if that is less."""
        now = time.time()
        recent = [one for one in self._times if one > now - window_s]
        if not recent:
            return 0.0
        span_s = max(60.0, now - (recent[0] if len(recent) == len(self._times) else now - window_s))
        return 60.0 * len(recent) / span_s

    def last_s(self) -> float | None:
        """Return the time since the last tile; None if none was processed in the last two hours."""
        return time.time() - self._times[-1] if self._times else None

    def histogram(self, *, bins: int = 60) -> list[int]:
        """Return the number of tiles in equal parts of the last two hours, the latest part last."""
        counts = [0] * bins
        now = time.time()
        for one in self._times:
            place = int((one - (now - KEPT_S)) / KEPT_S * bins)
            counts[min(max(place, 0), bins - 1)] += 1
        return counts

"""Append milestones as lines of JSON to a file, for programs that follow it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opticstream.config.notify_targets import FileTargetSettings
from opticstream.notify.milestone import Milestone
from opticstream.notify.target import Target, TargetContext
from opticstream.system.disk import sync_handle
from opticstream.system.locks import locked

_LOCK_WAIT_S = 30.0


class FileTarget:
    """Appends each milestone to a file as one whole line of JSON; see `Target`.

    Parameters
    ----------
    name : str
        Name of the target.
    path : Path
        The file; it and its folder are created if needed. Several projects and hosts may share it.
    """

    def __init__(self, name: str, path: Path, /) -> None:
        self.name = name
        self.path = path

    def tell(self, milestone: Milestone, /) -> None:
        """Append the line, unless the file already has one with the same `key`.

        A line that was cut by a power failure or a full disk is removed first: its milestone is sent again.

        Raises
        ------
        OSError
            The line cannot be written completely; what was written of it is removed.
        TimeoutError
            Another process holds the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path, timeout_s=_LOCK_WAIT_S) as lock:
            lines, end = _whole_lines(lock.handle)
            if milestone.idempotency_key in {_key_of(line) for line in lines}:
                return
            line = json.dumps(plain(milestone), ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
            if lines and not lines[-1].endswith(b"\n"):
                line = b"\n" + line
            os.ftruncate(lock.handle, end)
            os.lseek(lock.handle, end, os.SEEK_SET)
            try:
                written = os.write(lock.handle, line)
                if written < len(line):
                    raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written")
                sync_handle(lock.handle, self.path)
            except BaseException:
                os.ftruncate(lock.handle, end)
                raise


def plain(milestone: Milestone, /) -> dict[str, Any]:
    """Return a milestone as JSON values, with the time (UTC) at which it is sent."""
    return {
        "key": milestone.idempotency_key,
        "time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "project": milestone.project,
        "item": None if milestone.item is None else milestone.item.key,
        "fact": milestone.fact,
        "level": milestone.level,
        "title": milestone.title,
        "text": milestone.text,
        "pictures": [str(picture) for picture in milestone.pictures],
        "links": [{"title": link.title, "url": link.url} for link in milestone.links],
    }


def open_target(settings: FileTargetSettings, context: TargetContext, /) -> Target:
    """Return the target that settings of kind `file` name."""
    return FileTarget(settings.target_name, context.base / settings.path.expanduser())


def _whole_lines(handle: int) -> tuple[list[bytes], int]:
    """Return the lines of an open file without a cut one at its end, and where they end."""
    os.lseek(handle, 0, os.SEEK_SET)
    content = b"".join(iter(lambda: os.read(handle, 1 << 20), b""))
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n") and _key_of(lines[-1]) is None:
        lines.pop()
    return lines, sum(map(len, lines))


def _key_of(line: bytes) -> str | None:
    """Return the key in a line of the file; None if it has none or is damaged."""
    try:
        entry = json.loads(line)
        return str(entry["key"])
    except (ValueError, TypeError, KeyError):
        return None

"""Milestones as lines of a log, in the project folder and wherever the caller logs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol


class Told(Protocol):
    """What the log needs of a milestone."""

    @property
    def key(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def failure(self) -> bool: ...


class LogTarget:
    """Writes each milestone once to ``state/notified/{key}`` and says it.

    Parameters
    ----------
    base : Path
        The project's folder.
    say : callable
        Takes one line, for example a logger's `info`.
    """

    def __init__(self, base: Path, /, *, say: Callable[[str], object]) -> None:
        self.folder = base / "state" / "notified"
        self._say = say

    def was_told(self, key: str, /) -> bool:
        """Return whether a milestone was told already."""
        return (self.folder / key).exists()

    def tell(self, milestone: Told, /) -> bool:
        """Tell a milestone; False if somebody else has just told it."""
        from opticstream.state.durable import create_exclusively

        line = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {'FAILED ' if milestone.failure else ''}{milestone.text}\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not create_exclusively(self.folder / milestone.key, line.encode(errors="backslashreplace")):
            return False
        self._say(line.rstrip())
        return True

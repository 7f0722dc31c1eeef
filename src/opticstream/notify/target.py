"""What a target must do, and what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opticstream.notify.milestone import Milestone


class Target(Protocol):
    """Someone who is told: a log, a file, a channel of a chat."""

    @property
    def name(self) -> str:
        """Names the target among those of this host, as in its settings."""
        ...

    def tell(self, milestone: Milestone, /) -> None:
        """Tell a milestone and return when it has been told.

        It may come again with the same `idempotency_key` where the process was killed before that was recorded. A
        target that waits for a network ends the wait itself, within some seconds.

        Raises
        ------
        Exception
            It was not told, for whatever reason; the next look tries again.
        """
        ...


@dataclass(frozen=True)
class TargetContext:
    """What a target may need besides its settings.

    Attributes
    ----------
    base : Path
        Folder of the project.
    say : callable
        Takes one line, for example a logger's `info`.
    """

    base: Path
    say: Callable[[str], object]

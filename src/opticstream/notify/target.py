"""The interface of a target, and its context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opticstream.notify.milestone import Milestone


class RetryLater(Exception):
    """A target did not accept a message now, and has said when it will.

    Parameters
    ----------
    message : str
        What it said.
    wait_s : float
        Time until it accepts one, in seconds.
    """

    def __init__(self, message: str, /, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Target(Protocol):
    """A receiver of notifications: a log, a file, a chat channel."""

    @property
    def name(self) -> str:
        """Name of the target, unique on this host, as in its settings."""
        ...

    def tell(self, milestone: Milestone, /) -> None:
        """Send a milestone and return when it has been delivered.

        It may be sent again with the same `idempotency_key`, if the process was killed before this was recorded. A
        target that uses a network must return within a few seconds.

        Raises
        ------
        RetryLater
            The target has said when it will accept a message; until then it is sent nothing.
        Exception
            It was not delivered, for any other reason; the next check tries again.
        """
        ...


@dataclass(frozen=True)
class TargetContext:
    """What a target may need in addition to its settings.

    Attributes
    ----------
    base : Path
        Folder of the project.
    say : callable
        Takes one line, for example a logger's `info`.
    """

    base: Path
    say: Callable[[str], object]

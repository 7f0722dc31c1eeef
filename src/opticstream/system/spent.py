"""What a piece of work takes: wall time, and processor time of this process with the programs that it has run."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """Time that was spent, in seconds."""

    wall_s: float
    processor_s: float
    """Of all threads of this process, and of the programs that it has waited for."""


class Stopwatch:
    """Measures what is spent from now on.

    Examples
    --------
    >>> spent = Stopwatch().spent()
    >>> spent.wall_s >= 0 and spent.processor_s >= 0
    True
    """

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._used = _processor_s()

    def spent(self) -> Spent:
        """Return what was spent since this was made."""
        return Spent(time.monotonic() - self._begin, _processor_s() - self._used)


def _processor_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system

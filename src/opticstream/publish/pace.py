"""The bandwidth that uploads may use, by day and by night."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pace:
    """Keeps the bytes per second of all threads of a run below a limit, on average.

    Parameters
    ----------
    rate : callable
        Returns the present limit in bytes per second; None for no limit.
    clock, sleep : callable
        Time in seconds, and waiting for some; passed in for tests.

    Examples
    --------
    >>> waits = []
    >>> pace = Pace(lambda: 100.0, clock=lambda: 0.0, sleep=waits.append)
    >>> pace.take(200), pace.take(100), waits
    (None, None, [2.0])
    """

    def __init__(
        self,
        rate: Callable[[], float | None] = lambda: None,
        /,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = -1.0

    def take(self, size: int, /) -> None:
        """Wait until `size` more bytes may be sent."""
        rate = self._rate()
        if rate is None:
            return
        with self._lock:
            begin = max(self._clock(), self._free_at)
            self._free_at = begin + size / rate
            wait_s = begin - self._clock()
        if wait_s > 0:
            self._sleep(wait_s)

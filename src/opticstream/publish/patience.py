"""Repeats requests to a remote target that does not answer, with growing waits, until a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from opticstream.model.errors import TargetUnavailable

R = TypeVar("R")


@dataclass(frozen=True)
class Patience:
    """How long, and how often, a request is repeated.

    Attributes
    ----------
    total_s : float
        Time after which a request is given up, in seconds.
    first_s, longest_s : float
        First wait, doubled each time, and the longest one, in seconds; each is varied by half, so that many hosts do
        not come back at the same moment. A wait that the target asks for counts if it is longer.
    """

    total_s: float = 600.0
    first_s: float = 0.5
    longest_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def repeat(self, request: Callable[[], R], /) -> R:
        """Return the result of a request.

        Raises
        ------
        TargetUnavailable
            It still failed when the time was over, or the target asks for a wait beyond it.
        """
        end, wait_s = self.clock() + self.total_s, self.first_s
        while True:
            try:
                return request()
            except TargetUnavailable as error:
                pause_s = max(wait_s * random.uniform(0.5, 1.5), error.retry_after_s or 0.0)
                if self.clock() + pause_s > end:
                    raise TargetUnavailable(
                        f"{error}; given up after {self.total_s:g} s (OPTICSTREAM_UPLOAD_PATIENCE_S)",
                        retry_after_s=error.retry_after_s,
                    ) from error
            self.sleep(pause_s)
            wait_s = min(2 * wait_s, self.longest_s)

"""Hours of the day in settings, such as ``22:00-06:00``."""

from __future__ import annotations

from datetime import datetime
from datetime import time as time_of_day

HOURS = r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"
"""Pattern of a setting with hours."""


def is_within(hours: str, now: datetime, /) -> bool:
    """Return whether a time is within hours, the end excluded; hours may pass midnight.

    Examples
    --------
    >>> is_within("22:00-06:00", datetime(2026, 1, 1, 23, 30)), is_within("22:00-06:00", datetime(2026, 1, 1, 6, 0))
    (True, False)
    >>> is_within("01:00-05:00", datetime(2026, 1, 1, 5, 0))
    False
    """
    begin, end = (time_of_day.fromisoformat(text) for text in hours.split("-"))
    moment = now.time()
    return begin <= moment < end if begin <= end else moment >= begin or moment < end

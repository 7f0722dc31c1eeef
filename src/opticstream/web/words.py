"""Durations, sizes and times as the page shows them."""

from __future__ import annotations

from datetime import datetime, timedelta


def duration(seconds: float | None, /) -> str:
    """Return a duration in words.

    Examples
    --------
    >>> duration(42), duration(600), duration(3 * 3600 + 60), duration(None)
    ('42 s', '10 min', '3 h 1 min', 'unknown')
    """
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def size(number: float, /) -> str:
    """Return a number of bytes in words.

    Examples
    --------
    >>> size(999), size(2.5e12)
    ('999 B', '2.5 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def clock_in(seconds: float | None, /, *, now: datetime | None = None) -> str:
    """Return the local time of day in so many seconds, with the date where it is not today."""
    if seconds is None:
        return ""
    start = now or datetime.now().astimezone()
    then = start + timedelta(seconds=seconds)
    minute = then.replace(minute=then.minute // 5 * 5)
    return f"{minute:%H:%M}" if minute.date() == start.date() else f"{minute:%a %d %b, %H:%M}"

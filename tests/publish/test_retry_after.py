"""Both readers of Retry-After: that of S3, and that of the `dandi` client's process, which runs without our package."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from opticstream.publish import dandi_driver, s3

READERS = pytest.mark.parametrize("read", [s3._seconds_of, dandi_driver._seconds], ids=["s3", "dandi"])


@READERS
def test_seconds_and_dates_are_understood(read):
    assert read("7") == 7.0
    assert read("0.5") == 0.5
    assert read("-3") == 0.0
    now = datetime.now(UTC)
    assert read(format_datetime(now + timedelta(seconds=90), usegmt=True)) == pytest.approx(90, abs=30)
    assert read(format_datetime(now - timedelta(days=1), usegmt=True)) == 0.0


@READERS
@pytest.mark.parametrize(
    "header", [None, "", "soon", "Fri, 99 Nov 2026 25:00:00 GMT", "Fri, 27 Nov 2026 08:00:00 -0000"]
)
def test_what_is_neither_asks_for_nothing(read, header):
    """Also a date that says that its zone is not known."""
    assert read(header) is None

"""State runs look at the facts until the window of swallowed events is over, whatever the clocks of the hosts say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from opticstream.flows import oct as flows

NOW = datetime(2026, 1, 2, tzinfo=UTC)
WINDOW_S = 10.0


class Clock:
    """Time that passes only in sleep."""

    def __init__(self):
        self.passed_s = 0.0

    def time(self):
        return NOW.timestamp() + self.passed_s

    def monotonic(self):
        return self.passed_s

    def sleep(self, seconds):
        self.passed_s += seconds


@pytest.mark.parametrize(
    ("skew", "expected_s"),
    [
        (timedelta(0), WINDOW_S),
        (timedelta(seconds=-4), WINDOW_S - 4),
        (timedelta(days=1), WINDOW_S),
        (timedelta(days=-1), 0.0),
    ],
)
def test_a_window_lasts_no_longer_than_itself(monkeypatch, skew, expected_s):
    clock = Clock()
    monkeypatch.setattr(flows, "time", clock)
    looks = []
    flows._look_until(NOW + skew, WINDOW_S, lambda: looks.append(clock.passed_s) or [])
    assert looks[0] == 0
    assert expected_s < looks[-1] == clock.passed_s < expected_s + 3

"""A target is not flooded, not woken at night, and told everything once all the same."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from opticstream.model.ids import TileId
from opticstream.notify import Delivery, Milestone, Notifier
from opticstream.notify.collecting import MOST_LINES, collected

NOON = datetime(2026, 1, 1, 12, 0).astimezone()


class Channel:
    name = "channel"

    def __init__(self) -> None:
        self.messages: list[Milestone] = []

    def tell(self, milestone: Milestone, /) -> None:
        self.messages.append(milestone)

    @property
    def texts(self) -> str:
        return "\n".join(message.text for message in self.messages)


class Lab:
    """A channel with rules, and a clock."""

    def __init__(self, folder: Path, **rules) -> None:
        self.folder, self.channel, self.now = folder, Channel(), NOON
        self.rules = {"channel": Delivery(**rules)}

    def look(self, *milestones: Milestone, at_once: bool = False) -> int:
        """Tell what there is, as a process of its own would, and return the number of messages."""
        before = len(self.channel.messages)
        look = Notifier(
            self.folder,
            [self.channel],
            delivery=self.rules,
            at_once=at_once,
            now=lambda: self.now,
            on_failure=pytest.fail,
        )
        look.tell(milestones)
        return len(self.channel.messages) - before

    def later(self, **time) -> None:
        self.now += timedelta(**time)


def failed(number: int, reason: str = "is cut") -> Milestone:
    text = f"tile {number} of mosaic 1 failed: {reason}"
    return Milestone(f"tile-{number}.failed", "brain", TileId(1, number), "failed", "t", text, "failure")


def info(key: str) -> Milestone:
    return Milestone(key, "brain", None, "stitched", key, f"{key} is done")


def test_200_failing_tiles_are_one_message_of_one_line(tmp_path):
    lab = Lab(tmp_path, every_s=30)
    tiles = [failed(number, f"holds {1000 + number} bytes") for number in range(1, 201)]
    assert lab.look(*tiles) == 1
    (message,) = lab.channel.messages
    assert message.text.startswith("200 tiles failed (1, 2, 3, ")
    assert "such as: tile 1 of mosaic 1 failed: holds 1001 bytes" in message.text
    assert "\n" not in message.text
    assert (message.level, message.title) == ("failure", "200 failures")
    assert lab.look(*tiles) == 0


def test_failures_that_come_one_after_another_are_collected_until_the_time_has_passed(tmp_path):
    lab = Lab(tmp_path, every_s=30)
    count = 0
    for number in range(1, 201):
        count += lab.look(*(failed(n) for n in range(1, number + 1)))
        lab.later(seconds=0.5)
    lab.later(seconds=30)
    count += lab.look(*(failed(n) for n in range(1, 201)))
    assert count == 5, "100 s, a message at its beginning and after each 30 s"
    assert "1 of mosaic 1 failed" in lab.channel.messages[0].text
    assert lab.look(*(failed(n) for n in range(1, 201))) == 0


def test_a_failure_does_not_wait_for_the_time_after_a_milestone_and_takes_along_what_waits(tmp_path):
    lab = Lab(tmp_path, every_s=30)
    assert lab.look(info("a")) == 1
    lab.later(seconds=1)
    assert lab.look(info("a"), info("b")) == 0
    assert lab.look(info("a"), info("b"), failed(1)) == 1
    assert lab.channel.messages[-1].text.splitlines() == ["tile 1 of mosaic 1 failed: is cut", "b is done"]
    assert lab.look(info("c"), at_once=True) == 1, "the process ends"


def test_quiet_hours_hold_back_all_but_failures_and_then_come_together(tmp_path):
    lab = Lab(tmp_path, every_s=30, quiet_hours="22:00-07:00")
    lab.later(hours=11)
    assert lab.look(info("a")) == 0
    assert lab.look(info("a"), failed(1)) == 1
    assert "a is done" not in lab.channel.texts
    lab.later(hours=7, minutes=59)
    assert lab.look(info("a"), info("b"), failed(1), at_once=True) == 0
    lab.later(minutes=2)
    assert lab.look(info("a"), info("b"), failed(1)) == 1
    assert lab.channel.messages[-1].text == "a is done\nb is done"


def test_quiet_hours_can_hold_back_everything(tmp_path):
    lab = Lab(tmp_path, quiet_hours="11:00-13:00", quiet_level="none")
    assert lab.look(failed(1)) == 0
    lab.later(hours=2)
    assert lab.look(failed(1)) == 1


def test_a_target_may_want_failures_only(tmp_path):
    lab = Lab(tmp_path, level="failure")
    assert lab.look(info("a"), failed(1)) == 1


def test_a_clock_that_is_set_back_silences_nobody(tmp_path):
    lab = Lab(tmp_path, every_s=30)
    assert lab.look(info("a")) == 1
    lab.later(hours=-5)
    assert lab.look(info("a"), info("b")) == 1


def test_a_milestone_that_a_later_one_implies_is_no_news(tmp_path):
    lab = Lab(tmp_path)
    half = Milestone("tiles-50", "brain", None, "tiles-50", "t", "50 %", implied_by=("tiles-100",))
    whole = Milestone("tiles-100", "brain", None, "tiles-100", "t", "100 %")
    assert lab.look(whole) == 1
    assert lab.look(half) == 0


def test_a_message_has_a_limited_number_of_lines_and_says_how_many_are_left_out():
    lines = collected([info(f"mosaic {n}") for n in range(100)]).text.splitlines()
    assert len(lines) == MOST_LINES
    assert lines[-1] == "... and 81 more; `opticstream status` has all"


def test_different_reasons_are_told_apart():
    text = collected([*(failed(n) for n in range(1, 5)), *(failed(n, "disk full") for n in range(5, 9))]).text
    assert [line.rpartition(": ")[2] for line in text.splitlines()] == ["is cut", "disk full"]

"""When a target is sent what: how urgent, how often, and what waits during quiet hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from opticstream.config.hours import is_within
from opticstream.config.notify_targets import Level, NotifyTargetSettings
from opticstream.notify.milestone import Milestone

URGENCY: Mapping[str, int] = MappingProxyType({"info": 0, "warning": 1, "failure": 2, "none": 3})
"""Levels in order; `none` is more urgent than any."""


@dataclass(frozen=True)
class LastSent:
    """When a target was last sent something, and until when it accepts nothing.

    Attributes
    ----------
    any_s, failure_s : float
        Time of the last message, and of the last one with a failure, in seconds since 1970; 0: never.
    not_before_s : float
        Until when the target has asked to be left alone, in seconds since 1970.
    """

    any_s: float = 0.0
    failure_s: float = 0.0
    not_before_s: float = 0.0


@dataclass(frozen=True)
class Delivery:
    """Rules for one target; see `NotifyTargetSettings`."""

    level: Level = "info"
    every_s: float = 0.0
    quiet_hours: str = ""
    quiet_level: str = "failure"

    @classmethod
    def of(cls, settings: NotifyTargetSettings, /) -> Delivery:
        """Return the rules in the settings of a target."""
        return cls(settings.level, settings.every_s, settings.quiet_hours, settings.quiet_level)

    @property
    def collects(self) -> bool:
        """Whether what is sent at the same time is sent as one message."""
        return self.every_s > 0

    def sent_now(
        self, milestones: Sequence[Milestone], last: LastSent, /, *, now: datetime, at_once: bool = False
    ) -> list[Milestone]:
        """Return those milestones that are sent now; the others wait, or are not urgent enough for this target.

        Parameters
        ----------
        milestones : sequence of Milestone
            What the target has not received yet.
        last : LastSent
            What it was sent before.
        now : datetime
            The present time, with its time zone; quiet hours are those of the host.
        at_once : bool, default False
            Do not wait for the time between two messages, because this process ends.
        """
        if now.timestamp() < last.not_before_s:
            return []
        wanted = [one for one in milestones if URGENCY[one.level] >= URGENCY[self.level]]
        if self.quiet_hours and is_within(self.quiet_hours, now.astimezone()):
            wanted = [one for one in wanted if URGENCY[one.level] >= URGENCY[self.quiet_level]]
        if at_once or self._has_passed(last.any_s, now):
            return wanted
        if any(one.failure for one in wanted) and self._has_passed(last.failure_s, now):
            return wanted
        return []

    def _has_passed(self, since_s: float, now: datetime) -> bool:
        # A clock that was set back must not silence a target.
        return not 0 <= now.timestamp() - since_s < self.every_s


AT_ONCE = Delivery()
"""Everything at once, a message for each milestone."""


def utc_now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)

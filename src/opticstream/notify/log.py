"""Write milestones to the caller's log."""

from __future__ import annotations

from collections.abc import Callable

from opticstream.config.notify_targets import LogTargetSettings
from opticstream.notify.memory import line_of
from opticstream.notify.milestone import Milestone
from opticstream.notify.target import Target, TargetContext


class LogTarget:
    """Writes each milestone as one line; see `Target`."""

    def __init__(self, name: str, say: Callable[[str], object], /) -> None:
        self.name = name
        self._say = say

    def tell(self, milestone: Milestone, /) -> None:
        """Write the line."""
        self._say(line_of(milestone))


def open_target(settings: LogTargetSettings, context: TargetContext, /) -> Target:
    """Return the target that settings of kind `log` name."""
    return LogTarget(settings.target_name, context.say)

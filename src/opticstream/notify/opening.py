"""Open targets from their settings; the module of a kind is imported only if that kind is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from opticstream.config.notify_targets import NotifyTargetSettings
from opticstream.notify.milestone import Milestone
from opticstream.notify.target import Target, TargetContext


@dataclass(frozen=True)
class _UnusableTarget:
    """Replaces a target that cannot be opened; each attempt to send it something fails with the reason."""

    name: str
    problem: Exception

    def tell(self, milestone: Milestone, /) -> None:
        raise self.problem


def open_targets(settings: Sequence[NotifyTargetSettings], context: TargetContext, /) -> list[Target]:
    """Return the targets of the settings, in order; one that cannot be opened fails when something is sent to it."""
    return [_opened(one, context) for one in settings]


def _opened(settings: NotifyTargetSettings, context: TargetContext) -> Target:
    try:
        target: Target = import_module(f"opticstream.notify.{settings.kind}").open_target(settings, context)
    except Exception as problem:  # whatever the error, the other targets still work
        return _UnusableTarget(settings.target_name, problem)
    return target

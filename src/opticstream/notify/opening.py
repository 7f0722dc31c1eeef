"""From the settings of targets to targets: the module of a kind is loaded where that kind is used, and only there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from opticstream.config.notify_targets import NotifyTargetSettings
from opticstream.notify.milestone import Milestone
from opticstream.notify.target import Target, TargetContext


@dataclass(frozen=True)
class _UnusableTarget:
    """Stands for a target that cannot be opened; each attempt to tell it something fails with the reason."""

    name: str
    problem: Exception

    def tell(self, milestone: Milestone, /) -> None:
        raise self.problem


def open_targets(settings: Sequence[NotifyTargetSettings], context: TargetContext, /) -> list[Target]:
    """Return the targets that settings name, in their order; one that cannot be opened fails when it is told."""
    return [_opened(one, context) for one in settings]


def _opened(settings: NotifyTargetSettings, context: TargetContext) -> Target:
    try:
        target: Target = import_module(f"opticstream.notify.{settings.kind}").open_target(settings, context)
    except Exception as problem:  # whatever it is, the other targets are told
        return _UnusableTarget(settings.target_name, problem)
    return target

"""Send each milestone to each target once, and record what could not be sent for the next check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opticstream.notify.memory import Memory
from opticstream.notify.milestone import Milestone
from opticstream.notify.target import Target
from opticstream.system.locks import locked

_GIVE_UP_AFTER = 5
"""Number of failures in a row after which a target is skipped until the next check."""
_LOCK_WAIT_S = 60.0
"""Longest wait for another process that sends to the same target, in seconds."""


@dataclass(frozen=True)
class NotTold:
    """A milestone that could not be sent to a target.

    Attributes
    ----------
    target : str
        Name of the target.
    milestone : Milestone
        The milestone.
    problem : Exception
        The reason.
    is_new : bool
        Whether this is the first failure with this milestone and target.
    """

    target: str
    milestone: Milestone
    problem: Exception
    is_new: bool

    def __str__(self) -> str:
        why = " ".join(f"{type(self.problem).__name__}: {self.problem}".split())
        return f"target {self.target}: could not send {self.milestone.key} ({self.milestone.text}): {why}"


class Notifier:
    """Sends milestones to the targets of a project, during one check of it: a flow run or a sweep.

    A target that fails does not affect the others. What could not be sent is recorded, and sent by the next check with
    another notifier: this one tries each milestone and target once.

    Parameters
    ----------
    base : Path
        Folder of the project.
    targets : sequence of Target
        The targets.
    on_failure : callable
        Takes what could not be sent, as `NotTold`.
    """

    def __init__(
        self, base: Path, targets: Sequence[Target], /, *, on_failure: Callable[[NotTold], object] = lambda _one: None
    ) -> None:
        self.targets = tuple(targets)
        self.memory = Memory(base)
        self._on_failure = on_failure
        self._tried: set[tuple[str, str]] = set()
        self._failures_in_a_row: dict[str, int] = {}

    def never_told(self, milestones: Sequence[Milestone], /) -> list[Milestone]:
        """Return the milestones that were sent to no target."""
        told = frozenset().union(*(self.memory.told(target.name) for target in self.targets))
        return [one for one in milestones if one.key not in told]

    def tell(self, milestones: Sequence[Milestone], /) -> int:
        """Send each target what it has not received yet, and return the number sent."""
        return sum(self._tell_target(target, milestones) for target in self.targets)

    def has_untold(self) -> bool:
        """Return whether something could not be sent to a target earlier."""
        return any(self.memory.untold(target.name) for target in self.targets)

    def tell_again(self, milestones: Sequence[Milestone], /) -> int:
        """Send targets what could not be sent earlier, and return the number sent.

        Parameters
        ----------
        milestones : sequence of Milestone
            Every milestone that is still true. Others that could not be sent are dropped.
        """
        told = 0
        for target in self.targets:
            untold = self.memory.untold(target.name)
            told += self._tell_target(target, [one for one in milestones if one.key in untold])
            for key in untold - {one.key for one in milestones}:
                self.memory.forget_untold(target.name, key)
        return told

    def _tell_target(self, target: Target, milestones: Sequence[Milestone]) -> int:
        told = self.memory.told(target.name) if milestones else frozenset()
        return sum(self._tell_one(target, one) for one in milestones if one.key not in told)

    def _tell_one(self, target: Target, milestone: Milestone) -> bool:
        """Send a milestone to a target, unless it was sent in the meantime; errors are recorded, not raised."""
        attempt = (target.name, milestone.key)
        if attempt in self._tried or self._failures_in_a_row.get(target.name, 0) >= _GIVE_UP_AFTER:
            return False
        self._tried.add(attempt)
        try:
            with locked(self.memory.lock_file(target.name), timeout_s=_LOCK_WAIT_S):
                if self.memory.was_told(target.name, milestone.key):
                    return False
                target.tell(milestone)
                self.memory.record_told(target.name, milestone)
        except Exception as problem:  # a target may raise any error, which must not stop others or park work
            self._failures_in_a_row[target.name] = self._failures_in_a_row.get(target.name, 0) + 1
            self._has_failed(target, milestone, problem)
            return False
        self._failures_in_a_row[target.name] = 0
        return True

    def _has_failed(self, target: Target, milestone: Milestone, problem: Exception) -> None:
        is_new = milestone.key not in self.memory.untold(target.name)
        try:
            self.memory.record_untold(target.name, milestone, str(NotTold(target.name, milestone, problem, is_new)))
        except OSError:  # sent again by the next check of all milestones instead of by the sweep
            pass
        self._on_failure(NotTold(target.name, milestone, problem, is_new))

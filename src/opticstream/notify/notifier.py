"""Send each milestone to each target once, and record what could not be sent for the next check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from opticstream.notify.collecting import collected
from opticstream.notify.delivery import AT_ONCE, Delivery, utc_now
from opticstream.notify.memory import Memory
from opticstream.notify.milestone import Milestone
from opticstream.notify.target import RetryLater, Target
from opticstream.system.locks import locked

_GIVE_UP_AFTER = 5
"""Number of failures in a row after which a target is skipped until the next check."""
_LOCK_WAIT_S = 60.0
"""Longest wait for another process that sends to the same target, in seconds."""
_LONGEST_WAIT_S = 3600.0
"""Longest time for which a target is left alone when it asks for that, in seconds."""


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

    A target that fails does not affect the others. What could not be sent, or has to wait, is sent by the next check
    with another notifier: this one tries each milestone and target once.

    Parameters
    ----------
    base : Path
        Folder of the project.
    targets : sequence of Target
        The targets.
    on_failure : callable
        Takes what could not be sent, as `NotTold`.
    delivery : mapping of Delivery
        When each target, by its name, is sent what; others are sent everything at once.
    at_once : bool
        Do not wait for the time between two messages, because this process ends.
    now : callable
        Returns the present time with its time zone.
    """

    def __init__(
        self,
        base: Path,
        targets: Sequence[Target],
        /,
        *,
        on_failure: Callable[[NotTold], object] = lambda _one: None,
        delivery: Mapping[str, Delivery] = MappingProxyType({}),
        at_once: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.targets = tuple(targets)
        self.memory = Memory(base)
        self._on_failure = on_failure
        self._delivery = delivery
        self._at_once = at_once
        self._now = now
        self._tried: set[tuple[str, str]] = set()
        self._failures_in_a_row: dict[str, int] = {}

    def never_told(self, milestones: Sequence[Milestone], /) -> list[Milestone]:
        """Return the milestones that were sent to no target."""
        told = frozenset().union(*(self.memory.told(target.name) for target in self.targets))
        return [one for one in milestones if one.key not in told]

    def tell(self, milestones: Sequence[Milestone], /) -> int:
        """Send each target what it has not received yet, and return the number of milestones that were sent."""
        return sum(self._tell_target(target, milestones) for target in self.targets)

    def drop_untold(self, milestones: Sequence[Milestone], /) -> None:
        """Forget what could not be sent to a target earlier and is not among the milestones that are still true."""
        for target in self.targets:
            for key in self.memory.untold(target.name) - {one.key for one in milestones}:
                self.memory.forget_untold(target.name, key)

    def _tell_target(self, target: Target, milestones: Sequence[Milestone]) -> int:
        told = self.memory.told(target.name) if milestones else frozenset()
        due = [
            one
            for one in milestones
            if one.key not in told and told.isdisjoint(one.implied_by) and (target.name, one.key) not in self._tried
        ]
        rules = self._delivery.get(target.name, AT_ONCE)
        due = rules.sent_now(due, self.memory.last_sent(target.name), now=self._now(), at_once=self._at_once)
        if rules.collects:
            return self._tell_one(target, due) if due else 0
        return sum(self._tell_one(target, [one]) for one in due)

    def _tell_one(self, target: Target, milestones: Sequence[Milestone]) -> int:
        """Send milestones to a target as one message, without those that were sent in the meantime, and return how many
        were sent; errors are recorded, not raised.
        """
        if self._failures_in_a_row.get(target.name, 0) >= _GIVE_UP_AFTER:
            return 0
        self._tried |= {(target.name, one.key) for one in milestones}
        try:
            with locked(self.memory.lock_file(target.name), timeout_s=_LOCK_WAIT_S):
                milestones = [one for one in milestones if not self.memory.was_told(target.name, one.key)]
                if not milestones:
                    return 0
                target.tell(collected(milestones))
                self._note_time(target, milestones)
                for one in milestones:
                    self.memory.record_told(target.name, one)
        except Exception as problem:  # a target may raise any error, which must not stop others or park work
            self._failures_in_a_row[target.name] = self._failures_in_a_row.get(target.name, 0) + 1
            if isinstance(problem, RetryLater):
                self._leave_alone(target, problem.wait_s)
            self._has_failed(target, milestones, problem)
            return 0
        self._failures_in_a_row[target.name] = 0
        return len(milestones)

    def _note_time(self, target: Target, milestones: Sequence[Milestone]) -> None:
        """Record when a target that has a time between messages was sent something."""
        if not self._delivery.get(target.name, AT_ONCE).collects:
            return
        last, now_s = self.memory.last_sent(target.name), self._now().timestamp()
        failure_s = now_s if any(one.failure for one in milestones) else last.failure_s
        self.memory.record_last_sent(target.name, replace(last, any_s=now_s, failure_s=failure_s))

    def _leave_alone(self, target: Target, wait_s: float) -> None:
        self._failures_in_a_row[target.name] = _GIVE_UP_AFTER
        try:
            last = self.memory.last_sent(target.name)
            self.memory.record_last_sent(
                target.name, replace(last, not_before_s=self._now().timestamp() + min(wait_s, _LONGEST_WAIT_S))
            )
        except OSError:  # it is asked again too early, and says so again
            pass

    def _has_failed(self, target: Target, milestones: Sequence[Milestone], problem: Exception) -> None:
        if not milestones:
            return
        known = self.memory.untold(target.name)
        is_new = any(one.key not in known for one in milestones)
        try:
            for one in milestones:
                why = str(NotTold(target.name, one, problem, one.key not in known))
                self.memory.record_untold(target.name, one, why)
        except OSError:  # sent again by the next check of all milestones all the same
            pass
        self._on_failure(NotTold(target.name, collected(milestones), problem, is_new))

"""Tells each target each milestone once, and keeps what could not be told for the next look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opticstream.notify.memory import Memory
from opticstream.notify.milestone import Milestone
from opticstream.notify.target import Target
from opticstream.system.locks import locked

_GIVE_UP_AFTER = 5
"""Failures in a row after which a target is left alone until the next look: it can hardly be reached."""
_LOCK_WAIT_S = 60.0
"""Longest wait for another process that tells the same target, in seconds."""


@dataclass(frozen=True)
class NotTold:
    """A milestone that a target could not be told.

    Attributes
    ----------
    target : str
        Name of the target.
    milestone : Milestone
        What was to be told.
    problem : Exception
        Why it could not.
    is_new : bool
        Whether this is the first failure with this milestone and target.
    """

    target: str
    milestone: Milestone
    problem: Exception
    is_new: bool

    def __str__(self) -> str:
        why = " ".join(f"{type(self.problem).__name__}: {self.problem}".split())
        return f"target {self.target}: could not be told {self.milestone.key} ({self.milestone.text}): {why}"


class Notifier:
    """Tells the targets of a project, for the time of one look at it: a flow run, a sweep.

    A target that fails stops no other one. What it could not be told is recorded, and is told again by the next look,
    which is another notifier: this one tries a milestone and a target once.

    Parameters
    ----------
    base : Path
        Folder of the project.
    targets : sequence of Target
        Who is told.
    on_failure : callable
        Takes what could not be told, as `NotTold`.
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
        """Return the milestones that no target was told."""
        told = frozenset().union(*(self.memory.told(target.name) for target in self.targets))
        return [one for one in milestones if one.key not in told]

    def tell(self, milestones: Sequence[Milestone], /) -> int:
        """Tell each target what it was not told before, and return how often something was told."""
        return sum(self._tell_target(target, milestones) for target in self.targets)

    def has_untold(self) -> bool:
        """Return whether some target could not be told something earlier."""
        return any(self.memory.untold(target.name) for target in self.targets)

    def tell_again(self, milestones: Sequence[Milestone], /) -> int:
        """Tell targets what they could not be told earlier, and return how often something was told.

        Parameters
        ----------
        milestones : sequence of Milestone
            Every milestone that stands. What could not be told and stands no longer is forgotten.
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
        """Tell a target a milestone, unless it was told meanwhile; what goes wrong is recorded and raises nothing."""
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
        except Exception as problem:  # a target may raise anything, and none of it may stop others or park work
            self._failures_in_a_row[target.name] = self._failures_in_a_row.get(target.name, 0) + 1
            self._has_failed(target, milestone, problem)
            return False
        self._failures_in_a_row[target.name] = 0
        return True

    def _has_failed(self, target: Target, milestone: Milestone, problem: Exception) -> None:
        is_new = milestone.key not in self.memory.untold(target.name)
        try:
            self.memory.record_untold(target.name, milestone, str(NotTold(target.name, milestone, problem, is_new)))
        except OSError:  # told again by the next look at all milestones instead of by the sweep
            pass
        self._on_failure(NotTold(target.name, milestone, problem, is_new))

"""The verdict of quality control: one grade, with its reasons in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Grade = Literal["ok", "look", "bad"]
"""`look`: somebody should look at the pictures; `bad`: the result is probably of no use."""
_ORDER: tuple[Grade, ...] = ("ok", "look", "bad")


@dataclass(frozen=True)
class Verdict:
    """What quality control says of a result; it never stops anything.

    Attributes
    ----------
    grade : {"ok", "look", "bad"}
        The worst grade of its reasons; `ok` without any.
    reasons : tuple of str
        What exceeds which limit, with the figure and the setting.
    """

    grade: Grade = "ok"
    reasons: tuple[str, ...] = ()

    def joined(self, other: Verdict, /) -> Verdict:
        """Return the verdict of the reasons of both.

        Examples
        --------
        >>> Verdict("look", ("weak signal",)).joined(Verdict())
        Verdict(grade='look', reasons=('weak signal',))
        """
        worst = max(_ORDER.index(self.grade), _ORDER.index(other.grade))
        return Verdict(_ORDER[worst], (*self.reasons, *other.reasons))

    @classmethod
    def of(cls, found: Iterable[tuple[Grade, str]], /) -> Verdict:
        """Return the verdict of reasons, each with its grade.

        Examples
        --------
        >>> Verdict.of([("look", "weak signal"), ("bad", "empty mask")])
        Verdict(grade='bad', reasons=('weak signal', 'empty mask'))
        >>> Verdict.of([])
        Verdict(grade='ok', reasons=())
        """
        graded = list(found)
        worst = max((_ORDER.index(grade) for grade, _ in graded), default=0)
        return cls(_ORDER[worst], tuple(reason for _, reason in graded))

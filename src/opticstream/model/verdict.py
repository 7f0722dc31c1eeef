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
        What exceeds which limit, with the figure and the setting, the worst first.
    """

    grade: Grade = "ok"
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Iterable[tuple[Grade, str]], /) -> Verdict:
        """Return the verdict of reasons, each with its grade.

        Examples
        --------
        >>> Verdict.of([("look", "weak signal"), ("bad", "empty mask")])
        Verdict(grade='bad', reasons=('empty mask', 'weak signal'))
        """
        ordered = sorted(found, key=lambda one: -_ORDER.index(one[0]))
        return cls(ordered[0][0] if ordered else "ok", tuple(reason for _, reason in ordered))

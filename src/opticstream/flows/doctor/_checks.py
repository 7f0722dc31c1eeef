"""A check, what it finds, and how checks are run: each within its time, and each whatever the others do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from opticstream.flows.doctor._scene import Need, Scene
from opticstream.model.errors import OpticStreamError
from opticstream.system.time_limit import within

Result = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What a check has found, and what to do about it, a line each."""

    result: Result
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """One line of the table of checks.

    Attributes
    ----------
    name : str
        What is looked at, in a word or two.
    look : callable
        Yields the findings.
    needs : tuple of str
        What has to be there: ``"server"``: one that answers and takes this host; ``"project"``: one that was named and
        can be read. Without it the check is left out, as another one tells what is missing.
    limit_s : float
        Time after which the check is given up, in seconds.
    """

    name: str
    look: Callable[[Scene], Iterable[Finding]]
    needs: tuple[Need, ...] = ()
    limit_s: float = 20.0


@dataclass(frozen=True)
class CheckResult:
    """A finding, with the name of its check."""

    name: str
    result: Result
    found: str
    advice: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def run_checks(checks: Sequence[Check], scene: Scene, /) -> Iterator[CheckResult]:
    """Yield the findings of checks, in their order. A check that fails or takes too long is a problem itself."""
    lacking: set[Need] = set()
    for check in checks:
        if not _is_possible(check, scene, lacking):
            continue
        for finding in _findings(check, scene):
            yield CheckResult(check.name, finding.result, _one_line(finding.found), _one_line(finding.advice))


def _is_possible(check: Check, scene: Scene, lacking: set[Need]) -> bool:
    """Return whether what a check needs is there; what is not, or cannot be told, is put into `lacking`."""
    for need in check.needs:
        if need not in lacking:
            try:
                is_there = within(check.limit_s, lambda need=need: scene.has(need))  # type: ignore[misc]
            except Exception:  # the check of that part itself tells why
                is_there = False
            if not is_there:
                lacking.add(need)
    return lacking.isdisjoint(check.needs)


def _findings(check: Check, scene: Scene) -> list[Finding]:
    try:
        return within(check.limit_s, lambda: list(check.look(scene)))
    except TimeoutError as error:
        return [Finding("problem", f"the check did not end: {error}", "what it looks at does not answer; see the log")]
    except OpticStreamError as error:
        return [Finding("problem", f"the check could not be done: {error}", "see the message")]
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return [Finding("problem", f"the check could not be done ({said})", "see the message; it may be a bug")]


def _one_line(text: str) -> str:
    return " ".join(text.split())

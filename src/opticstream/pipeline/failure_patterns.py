"""Group the failures of a project by kind, stage and host, from its journal and facts.

The journal records every failure, including those that a later attempt resolved. If it was lost, what is still
parked is read from the facts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from opticstream.model.ids import ItemId
from opticstream.pipeline.failures import PROCESS_DIED, SUGGESTIONS
from opticstream.pipeline.project import Project
from opticstream.state.journal import JournalEntry
from opticstream.state.vocabulary import is_failure

_STAGES = {
    ("tile", "failed"): "process batch",
    ("batch", "started"): "process batch",
    ("mosaic", "started"): "stitch mosaic",
    ("mosaic", "failed"): "stitch mosaic",
    ("mosaic", "volume_started"): "stitch volume",
    ("mosaic", "volume_failed"): "stitch volume",
    ("slice", "started"): "register slice",
    ("slice", "failed"): "register slice",
    ("slice", "stack_failed"): "update sample",
    ("sample", "started"): "update sample",
}


@dataclass(frozen=True)
class FailurePattern:
    """Failures of one kind, in one stage, on one host.

    Attributes
    ----------
    kind : str
        One of `opticstream.pipeline.failures.SUGGESTIONS`.
    stage, host : str
        Where they happened.
    count : int
        How often.
    items : tuple of str
        Keys of the items concerned, each once.
    parked : int
        How many of the items are parked as failed now.
    first, last : datetime
        When it happened first and last.
    per_day : dict
        How often on each day (UTC) on which it happened.
    message : str
        The last message.
    suggestion : str
        What to do.
    """

    kind: str
    stage: str
    host: str
    count: int
    items: tuple[str, ...]
    parked: int
    first: datetime
    last: datetime
    per_day: dict[str, int]
    message: str
    suggestion: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"first": self.first.isoformat(), "last": self.last.isoformat()}


@dataclass(frozen=True)
class _Occurrence:
    kind: str
    stage: str
    host: str
    item: ItemId
    time: datetime
    message: str


def failure_patterns(project: Project, /, *, since: datetime | None = None) -> list[FailurePattern]:
    """Return the failures of a project in groups, those that happen most often first.

    Parameters
    ----------
    project : Project
        The project.
    since : datetime, optional
        Omit failures before this time.
    """
    parked = _parked(project)
    told = list(_from_journal(project))
    known = {occurrence.item for occurrence in told}
    occurrences = told + [occurrence for item, occurrence in parked.items() if item not in known]
    groups: dict[tuple[str, str, str], list[_Occurrence]] = {}
    for one in sorted(occurrences, key=lambda occurrence: occurrence.time):
        if since is None or one.time >= since:
            groups.setdefault((one.kind, one.stage, one.host), []).append(one)
    patterns = [_pattern(group, parked.keys()) for group in groups.values()]
    return sorted(patterns, key=lambda pattern: (-pattern.count, pattern.kind, pattern.stage, pattern.host))


def _pattern(group: list[_Occurrence], parked: Any) -> FailurePattern:
    last = group[-1]
    items = dict.fromkeys(occurrence.item for occurrence in group)
    return FailurePattern(
        kind=last.kind,
        stage=last.stage,
        host=last.host,
        count=len(group),
        items=tuple(item.key for item in items),
        parked=sum(item in parked for item in items),
        first=group[0].time,
        last=last.time,
        per_day=dict(Counter(f"{occurrence.time:%Y-%m-%d}" for occurrence in group)),
        message=last.message,
        suggestion=SUGGESTIONS.get(last.kind, SUGGESTIONS["unknown"]),
    )


def _from_journal(project: Project) -> Iterator[_Occurrence]:
    for entry in project.facts.journal.entries():
        detail = entry.detail
        stage = str(detail.get("stage", _STAGES.get((entry.item.hierarchy, entry.fact or ""), entry.fact or "unknown")))
        match entry.event:
            case "failed":
                kind = str(detail.get("kind", "unknown"))
                yield _Occurrence(kind, stage, entry.host, entry.item, entry.time, entry.why or "")
            case "taken over":
                yield _Occurrence(PROCESS_DIED, stage, _dead_host(entry), entry.item, entry.time, entry.why or "")
            case "lost":
                yield _Occurrence("claim lost", stage, entry.host, entry.item, entry.time, entry.why or "taken over")


def _dead_host(entry: JournalEntry) -> str:
    return str(entry.detail.get("from_host", entry.host))


def _parked(project: Project) -> dict[ItemId, _Occurrence]:
    found: dict[ItemId, _Occurrence] = {}
    snapshot = project.facts.snapshot()
    for item, fact in snapshot:
        if not is_failure(fact) or (item.hierarchy == "tile" and snapshot.has(item, "processed")):
            continue
        record = project.facts.read_whole(item, fact)
        if record is None:
            continue
        detail = record.detail
        stage = str(detail.get("stage", _STAGES.get((item.hierarchy, fact), fact)))
        kind, reason = str(detail.get("kind", "unknown")), str(detail.get("reason", "unknown"))
        found[item] = _Occurrence(kind, stage, record.host, item, record.time, reason)
    return found

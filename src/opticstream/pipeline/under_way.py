"""Uploads that are under way, for `status` and artifacts: ``state/uploads/under-way/{item}.{step}.json``."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opticstream.model.chain import Step, chain
from opticstream.model.ids import ItemId, item_from_key
from opticstream.pipeline.project import Project
from opticstream.publish.ledger import FOLDER
from opticstream.state.durable import replace_whole

_EVERY_S = 2.0


@dataclass(frozen=True)
class UnderWay:
    """How far an upload is."""

    item: str
    step: str
    target: str
    total_bytes: int
    done_bytes: int
    since: float
    """Time at which the upload to this target began, in seconds since 1970."""
    updated: float

    @property
    def percent(self) -> float:
        """Bytes that the target holds, in percent."""
        return 100.0 * self.done_bytes / self.total_bytes if self.total_bytes else 100.0

    def __str__(self) -> str:
        rate = self.done_bytes / max(self.updated - self.since, 1.0) / 1e6
        return (
            f"{self.done_bytes / 1e6:.0f} of {self.total_bytes / 1e6:.0f} MB ({self.percent:.0f} %) at {self.target}, "
            f"{rate:.1f} MB/s"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"percent": round(self.percent, 1)}


@contextlib.contextmanager
def shown_under_way(
    project: Project, item: ItemId, step: Step, target: str, total_bytes: int, /
) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told the bytes that are done; the upload is shown until the block ends."""
    path = _folder(project) / f"{item.key.replace('/', '.')}.{step.done}.json"
    since, done, written = time.time(), 0, 0.0

    def passed(size: int) -> None:
        nonlocal done, written
        done += size
        if time.monotonic() - written >= _EVERY_S:
            written = time.monotonic()
            shown = UnderWay(item.key, step.name, target, total_bytes, done, since, time.time())
            replace_whole(path, json.dumps(asdict(shown)).encode(), fsync=False)

    passed(0)
    try:
        yield passed
    finally:
        path.unlink(missing_ok=True)


def uploads_under_way(project: Project, /) -> list[UnderWay]:
    """Return the uploads on which a living process works, in the order of items."""
    found = []
    for path in sorted(_folder(project).glob("*.json")):
        try:
            one = UnderWay(**json.loads(path.read_bytes()))
            item = item_from_key(one.item)
            claim = chain().named(one.step, item.hierarchy).claim
        except (OSError, ValueError, TypeError, StopIteration):  # just removed, or cut by a crash
            continue
        if project.facts.is_worked_on(item, claim):
            found.append(one)
    return found


def _folder(project: Project) -> Path:
    return project.paths.base / FOLDER / "under-way"

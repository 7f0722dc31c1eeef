"""The outcome of a run, and its differences from an undisturbed one."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opticstream.io.atomic import TEMPORARY_MARK
from opticstream.model.ids import ItemId
from opticstream.pipeline.progress import is_finished, project_progress
from opticstream.pipeline.project import Project
from opticstream.state.verify import verify

_NOT_RESULTS = {"state", "validation", "intensity"}
"""Folders of a project whose content depends on when things happened; what the sample's brightness keeps of slices and
pairs (`sample/intensity/`) is made where it is needed."""


@dataclass(frozen=True)
class Outcome:
    """What is the same in every run on the same raw tiles, however often it was disturbed."""

    checksums: dict[str, str]
    """SHA-256 of every result, by path in the project."""
    facts: frozenset[tuple[ItemId, str]]
    computed: dict[str, int]
    """How often each piece of work was completed, by item and fact, as the journal tells."""

    @classmethod
    def of(cls, project: Project) -> Outcome:
        """Return the outcome of a project as it stands."""
        return cls(checksums(project.paths.base), frozenset(project.facts.snapshot()), computed(project))


def checksums(base: Path, /) -> dict[str, str]:
    """Return the SHA-256 of everything under a final name in a project, the facts apart, by path."""
    sums: dict[str, str] = {}
    for path in _results(base):
        with contextlib.suppress(FileNotFoundError):  # replaced meanwhile
            sums[path.relative_to(base).as_posix()] = _sha256(path)
    return sums


def temporaries(base: Path, /) -> list[Path]:
    """Return what killed writers have left in a project under temporary names."""
    return sorted(path for path in base.rglob(f"*{TEMPORARY_MARK}*"))


def computed(project: Project, /) -> dict[str, int]:
    """Return how often each piece of work was completed, by item and fact."""
    return dict(Counter(f"{e.item.key} {e.fact}" for e in project.facts.journal.entries() if e.event == "computed"))


def differences(project: Project, calm: Outcome, /, *, unwritten: int = 0) -> list[str]:
    """Return in what a finished project differs from an undisturbed run; empty when it is as good.

    Parameters
    ----------
    project : Project
        The project that was disturbed; nobody works on it any more.
    calm : Outcome
        Of an undisturbed run on the same raw tiles and parameters.
    unwritten : int
        Lines that the journal may lack: a kill can fall between a record and the line on it, and on a full disk no
        line can be written.
    """
    return [*_unfinished(project), *_wrong_files(project, calm), *_wrong_facts(project, calm, unwritten)]


def _unfinished(project: Project) -> Iterator[str]:
    snapshot = project.facts.snapshot()
    if not is_finished(project, snapshot):
        yield "the project is not finished"
    for failure in project_progress(project, snapshot).failures:
        yield f"{failure.item} {failure.fact}: {failure.reason}"
    for finding in verify(project.facts, layout=project.layout):
        yield f"verify: {finding}"


def _wrong_files(project: Project, calm: Outcome) -> Iterator[str]:
    found = checksums(project.paths.base)
    for path in sorted(calm.checksums.keys() | found.keys()):
        if path not in found:
            yield f"{path} is missing"
        elif path not in calm.checksums:
            yield f"{path} is too many"
        elif found[path] != calm.checksums[path]:
            yield f"{path} has other bytes"


def _wrong_facts(project: Project, calm: Outcome, unwritten: int) -> Iterator[str]:
    for item, fact in sorted(frozenset(project.facts.snapshot()) ^ calm.facts, key=str):
        yield f"{item} {fact}: recorded in one of the two runs only"
    lines = Counter((e.event, f"{e.item.key} {e.fact}") for e in project.facts.journal.entries())
    for (event, work), count in lines.items():
        if event in ("computed", "recorded") and count > 1 + lines["withdrawn", work] + lines["replaced", work]:
            yield f"{work}: {event} {count} times"
    done = {work for event, work in lines if event == "computed"}
    for work in sorted(done - calm.computed.keys()):
        if not lines["withdrawn", work]:
            yield f"{work}: the undisturbed run has no such work"
    if len(missing := sorted(calm.computed.keys() - done)) > unwritten:
        yield f"the journal lacks {len(missing)} lines, at most {unwritten} may be missing: {missing}"


def _results(base: Path) -> Iterator[Path]:
    # Results are links into the archive. What vanishes meanwhile is passed over.
    for root, folders, files in os.walk(base, followlinks=True):
        folders[:] = [f for f in folders if f not in _NOT_RESULTS and TEMPORARY_MARK not in f]
        yield from (Path(root, file) for file in files if TEMPORARY_MARK not in file)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

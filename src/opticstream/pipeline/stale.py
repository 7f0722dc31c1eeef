"""Find results that are out of date because settings, raw files or earlier results changed, and plan to redo them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from opticstream.model.chain import chain
from opticstream.model.ids import BatchId, ItemId, MosaicId
from opticstream.pipeline.cleaned import missing_raw_file
from opticstream.pipeline.dependencies import changed_settings, inputs_hash, settings_of
from opticstream.pipeline.parameters import shared_part
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import RedoPlan
from opticstream.state import FactsSnapshot, FileRecord, RecordedHashes
from opticstream.state.raw_files import ChangedRawFile, changed_raw_files
from opticstream.state.record import file_from_name, sha256_of_path

_MAX_FILES_NAMED = 3
"""Largest number of raw files that are named for a batch."""


@dataclass(frozen=True)
class Stale:
    """A result that would be different if it were made now.

    Attributes
    ----------
    item : ItemId
        The item of the result.
    fact : str
        The fact that records it.
    why : tuple of str
        What has changed: settings as ``name: old -> new``, or other causes.
    alone : bool
        No later result depends on what has changed.
    raw_files_changed : bool
        The raw files of a batch have changed.
    """

    item: ItemId
    fact: str
    why: tuple[str, ...]
    alone: bool = False
    raw_files_changed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"item": self.item.key, "fact": self.fact, "why": list(self.why)}


def stale_results(project: Project, snapshot: FactsSnapshot | None = None, /) -> list[Stale]:
    """Return the results that are out of date themselves, in the order of the chain.

    Results that depend on them are not listed; `stale_plan` includes them. Records without hashes (made by hand, or by
    an earlier version) count as up to date.
    """
    snapshot = project.facts.snapshot() if snapshot is None else snapshot
    check = _StaleCheck(project, snapshot)
    return [
        stale
        for step in chain().steps
        for item in snapshot.items(step.hierarchy)
        for fact in ((step.done,) if step.publishes or step.failed is None else (step.done, step.failed))
        if snapshot.has(item, fact) and (stale := check.at(item, fact)) is not None
    ]


def stale_by_raw_files(batch: BatchId, files: Sequence[ChangedRawFile], /) -> Stale:
    """Return a processed batch as stale because raw files have changed."""
    told = tuple(map(str, files[:_MAX_FILES_NAMED]))
    more = len(files) - len(told)
    why = (*told, f"and {more} more raw files of {batch}") if more else told
    return Stale(batch, "processed", why, raw_files_changed=True)


class _StaleCheck:
    """One pass over all results, which reads nothing twice."""

    def __init__(self, project: Project, snapshot: FactsSnapshot) -> None:
        self._project = project
        self._snapshot = snapshot
        self._known: dict[tuple[ItemId, str], RecordedHashes | None] = {}
        self._digest = cache(self._read_digest)

    def at(self, item: ItemId, fact: str) -> Stale | None:
        """Return why a result is out of date, or None if it is not."""
        stale = self._by_hashes(item, fact)
        if isinstance(item, BatchId) and fact == "processed":
            changed = changed_raw_files(self._project.facts, item)
            by_files = stale_by_raw_files(item, changed) if changed else None
            if stale is None or by_files is None:
                return stale or by_files
            return replace(by_files, why=(*stale.why, *by_files.why))
        return stale

    def _by_hashes(self, item: ItemId, fact: str) -> Stale | None:
        recorded = self._hashes(item, fact)
        if recorded is None:
            return None
        settings = self._settings(item, fact)
        if settings is not None and recorded.parameters_hash not in (None, settings.hash):
            assert recorded.parameters_hash is not None
            why = changed_settings(self._project, recorded.parameters_hash, settings)
            alone = shared_part(recorded.parameters_hash) == shared_part(settings.hash)
            return Stale(item, fact, why or ("settings have changed; it is not known which",), alone)
        if recorded.inputs_hash is not None and not isinstance(item, BatchId):
            if inputs_hash(self._project, item, fact, read=self._hashes) != recorded.inputs_hash:
                return Stale(item, fact, ("its inputs have been made again since",))
            if isinstance(item, MosaicId) and fact in ("stitched", "volume_stitched"):
                changed = tuple(f"{file.path} has changed since" for file in self._changed_files(item, fact))
                return Stale(item, fact, changed) if changed else None
        return None

    def _settings(self, item: ItemId, fact: str) -> Any:
        return settings_of(self._project, item, fact, facts=self._snapshot)

    def _hashes(self, item: ItemId, fact: str) -> RecordedHashes | None:
        key = (item, fact)
        if key not in self._known:
            has = self._snapshot.has(item, fact)
            self._known[key] = self._project.facts.hashes(item, fact) if has else None
        return self._known[key]

    def _changed_files(self, item: ItemId, fact: str) -> Iterator[FileRecord]:
        record = self._project.facts.read(item, fact)
        for file in record.inputs if record else ():
            if file.sha256 is not None and self._digest(file.path) not in (None, file.sha256):
                yield file

    def _read_digest(self, name: str) -> str | None:
        try:
            return sha256_of_path(file_from_name(name, self._project.facts.roots))
        except OSError:
            return None  # `state verify` reports missing files


def stale_plan(project: Project, stale: Iterable[Stale], /) -> RedoPlan:
    """Return what to withdraw so that stale results, and what depends on them, are done again.

    A batch whose raw files are gone is not changed; the plan says so.
    """
    plan = RedoPlan(project)
    for one in stale:
        step = chain().step_of(one.item, one.fact)
        if step is None:
            continue
        changes_archive = False
        if isinstance(one.item, BatchId) and not step.publishes:
            if missing := _missing_raw_file(project, one.item):
                plan.refused.append(
                    f"{one.item}: cannot be made again, because its raw file {missing} no longer exists"
                )
                continue
            has_failures = one.fact == "failed" or bool(_failed_tiles(project, one.item))
            changes_archive = has_failures or one.raw_files_changed
        plan.redo(step, one.item, alone=one.alone, side_results=changes_archive)
    return plan


def _failed_tiles(project: Project, batch: BatchId) -> list[int]:
    record = project.facts.read(batch, "processed")
    return list(record.detail.get("failed_tiles", ())) if record else []


def _missing_raw_file(project: Project, batch: BatchId) -> str | None:
    return missing_raw_file(ready_event(project, batch))  # without an announcement, the plan refuses it

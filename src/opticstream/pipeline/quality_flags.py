"""Finished results that quality control flagged for review, with a verdict and its reasons in words.

What was read from the flag files is kept in ``state/quality.json``, so that a look at a project of thousands of batches
reads only the flags that have changed since.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from opticstream.config import parameters_hash
from opticstream.model.ids import BatchId, ItemId, SliceId, TileId, item_from_key
from opticstream.model.verdict import Grade
from opticstream.pipeline.judging import judged
from opticstream.pipeline.progress import detail_of
from opticstream.pipeline.project import Project
from opticstream.pipeline.sample_quality import quality_of_sample, verdict_in_sample
from opticstream.state import FactsSnapshot
from opticstream.state.durable import replace_whole

_LIMITS = "limits"
"""Where the file of what was read has the hash of the limits that it was judged by."""
_KEPT_IN = {"batch": "processed", "mosaic": "stitched", "slice": "registered"}
"""The fact whose detail holds the flags of an item, by hierarchy; that of a batch holds those of its tiles."""


@dataclass(frozen=True)
class FlaggedResult:
    """One result that quality control flagged for review."""

    item: ItemId
    reasons: tuple[str, ...]
    grade: Grade = "look"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"item": self.item.key, "verdict": self.grade, "reasons": list(self.reasons)}


def flagged_results(project: Project, snapshot: FactsSnapshot, /, *, keep: bool = False) -> Iterator[FlaggedResult]:
    """Yield the finished tiles, mosaics and slices that quality control flagged, as recorded in the flag files.

    Parameters
    ----------
    project : Project
        The project.
    snapshot : FactsSnapshot
        Its facts.
    keep : bool, default False
        Keep what is read for the next call.
    """
    limits = parameters_hash(project.config.processing.quality.model_dump(mode="json"))
    known = _known(project, limits)
    now: dict[str, list[Any]] = {_LIMITS: [limits]}
    in_sample = quality_of_sample(project)
    for item in snapshot.items():
        fact = _KEPT_IN.get(item.hierarchy)
        figures = in_sample.get(item.slice_id, {}) if isinstance(item, SliceId) else {}
        has_record = fact is not None and snapshot.has(item, fact)
        if fact is None or not (has_record or figures):
            continue
        stamp = [_stamp(project.facts.path(item, fact)) if has_record else 0, dict(figures)]
        before = known.get(item.key)
        if before is None or stamp[0] is None or before[0] != stamp:
            detail = detail_of(project, item, fact) if has_record else {}
            before = [stamp, [_plain(one) for one in _in_record(project, item, detail, figures)]]
        now[item.key] = before
        for key, grade, reasons in before[1]:
            yield FlaggedResult(item_from_key(key), tuple(reasons), grade)
    if keep and now != known:
        with contextlib.suppress(OSError):  # the next call reads the flags again
            replace_whole(_path(project), json.dumps(now, ensure_ascii=False).encode(errors="backslashreplace"))


def flagged_in_batch(project: Project, batch: BatchId, /) -> list[FlaggedResult]:
    """Return the tiles of a processed batch that quality control flagged."""
    return list(_in_record(project, batch, detail_of(project, batch, "processed")))


def _in_record(
    project: Project, item: ItemId, detail: Mapping[str, Any], in_sample: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[FlaggedResult]:
    """Yield what today's limits say of the tiles in a record of a batch, or of the mosaic or slice of a record.

    Of a slice, its figures in the sample count, too.
    """
    found: list[tuple[ItemId, Mapping[str, Any]]] = [(item, detail)]
    if isinstance(item, BatchId):
        notes = sorted(detail.get("tiles", {}).items(), key=lambda entry: int(entry[0]))
        found = [(TileId(item.mosaic_id, int(number)), note) for number, note in notes]
    for one, its in found:
        verdict = judged(project, one, its)
        if in_sample:
            verdict = verdict.joined(verdict_in_sample(in_sample, project.config.processing.quality))
        if verdict.reasons:
            yield FlaggedResult(one, verdict.reasons, verdict.grade)


def _plain(one: FlaggedResult) -> list[Any]:
    return [one.item.key, one.grade, list(one.reasons)]


def _known(project: Project, limits: str) -> dict[str, list[Any]]:
    """Return what was read before, unless it was judged by other limits."""
    try:
        known = json.loads(_path(project).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and known.get(_LIMITS) == [limits] else {}


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def _path(project: Project) -> Path:
    return project.paths.base / "state" / "quality.json"

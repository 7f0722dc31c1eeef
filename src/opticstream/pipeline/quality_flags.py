"""Finished results that quality control flagged for review."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opticstream.model.ids import BatchId, ItemId, TileId
from opticstream.pipeline.progress import detail_of
from opticstream.pipeline.project import Project
from opticstream.state import FactsSnapshot

_KEPT_IN = {"batch": "processed", "mosaic": "stitched", "slice": "registered"}
"""The fact whose detail holds the flags of an item, by hierarchy; that of a batch holds those of its tiles."""


@dataclass(frozen=True)
class FlaggedResult:
    """One result that quality control flagged for review."""

    item: ItemId
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"item": self.item.key, "reasons": list(self.reasons)}


def flagged_results(project: Project, snapshot: FactsSnapshot, /) -> Iterator[FlaggedResult]:
    """Yield the finished tiles, mosaics and slices that quality control flagged, as recorded in the flag files."""
    for item in snapshot.items():
        fact = _KEPT_IN.get(item.hierarchy)
        if fact is None or not snapshot.has(item, fact):
            continue
        detail = detail_of(project, item, fact)
        if isinstance(item, BatchId):
            for number, note in sorted(detail.get("tiles", {}).items(), key=lambda entry: int(entry[0])):
                if note.get("flags"):
                    yield FlaggedResult(TileId(item.mosaic_id, int(number)), tuple(note["flags"]))
        elif reasons := detail.get("doubts"):
            yield FlaggedResult(item, tuple(reasons))

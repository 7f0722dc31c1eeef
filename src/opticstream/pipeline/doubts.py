"""What quality control found in finished work: results that are there, and that people should look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.pipeline.project import Project
from opticstream.state import FactsSnapshot

_KEPT_IN = {"mosaic": "stitched", "slice": "registered"}
"""The fact that holds the doubts of an item in its detail, by hierarchy. Those of tiles stand in their batch's."""


@dataclass(frozen=True)
class Doubt:
    """One result that quality control doubts."""

    item: ItemId
    reasons: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {"item": self.item.key, "reasons": list(self.reasons)}


def doubts(project: Project, snapshot: FactsSnapshot, /) -> Iterator[Doubt]:
    """Yield the finished tiles, mosaics and slices that were flagged, as the flag files tell."""
    for item in snapshot.items():
        match item:
            case BatchId() if snapshot.has(item, "processed"):
                tiles = _detail(project, item, "processed").get("tiles", {})
                for number, note in sorted(tiles.items(), key=lambda entry: int(entry[0])):
                    if note.get("flags"):
                        yield Doubt(TileId(item.mosaic_id, int(number)), tuple(note["flags"]))
            case MosaicId() | SliceId() if snapshot.has(item, fact := _KEPT_IN[item.hierarchy]):
                if reasons := _detail(project, item, fact).get("doubts"):
                    yield Doubt(item, tuple(reasons))


def _detail(project: Project, item: ItemId, fact: str) -> dict[str, Any]:
    try:
        record = project.facts.read(item, fact)
    except StateError:
        return {}  # a damaged flag; `state verify` tells
    return dict(record.detail) if record else {}

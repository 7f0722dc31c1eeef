"""Verdicts by the limits of today: figures are recorded, and what is worth a look follows from them.

Whoever changes a limit of ``processing.quality`` sees other verdicts at once, also of results that were made long ago;
nothing is computed or recorded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from opticstream.config.tile_figures import TileFigures
from opticstream.model.ids import ItemId, MosaicId, SliceId, TileId
from opticstream.model.verdict import Grade, Verdict
from opticstream.pipeline.mosaics import graded_by_limits
from opticstream.pipeline.project import Project
from opticstream.pipeline.slices import verdict_of_slice

_OF_A_LIMIT = "(processing.quality."
_OF_A_MOSAIC = ("stitched without tiles", "overlaps: ", "the mask ", "focus: ")
"""Beginnings of the reasons that `graded_by_limits` gives; some name no limit."""


def judged(project: Project, item: ItemId, detail: Mapping[str, Any], /) -> Verdict:
    """Return the verdict on a result by the limits of its project as they are now.

    Parameters
    ----------
    project : Project
        The project.
    item : TileId, MosaicId or SliceId
        What was made.
    detail : mapping
        The detail of its record, or for a tile its note in the record of its batch. Without figures, as earlier
        versions wrote it, the recorded verdict holds.
    """
    recorded = tuple(map(str, detail.get("flags" if isinstance(item, TileId) else "doubts") or ()))
    grade = _recorded_grade(detail) if recorded else "ok"
    found = _by_figures(project, item, detail)
    if found is None:
        return Verdict(grade, recorded)
    kept = [reason for reason in recorded if not _follows_from_figures(item, reason)]
    if {reason for _, reason in found} == set(recorded) - set(kept):
        return Verdict(grade, recorded)
    kept_grade: Grade = grade if len(kept) == len(recorded) else "look"
    return Verdict.of([*((kept_grade, reason) for reason in kept), *found])


def _by_figures(project: Project, item: ItemId, detail: Mapping[str, Any]) -> list[tuple[Grade, str]] | None:
    """Return what is worth a look by the figures of a record; None where there are none."""
    limits = project.config.processing.quality
    figures = detail.get("figures")
    match item:
        case TileId():
            return _of_tile(figures, project) if figures else None
        case MosaicId():
            if not figures:
                return None
            focus = detail.get("focus") or {}
            before, after = focus.get("residual_before_px"), focus.get("residual_after_px")
            measured = None if focus.get("reused", True) or before is None or after is None else (before, after)
            missing, tiles = detail.get("missing_tiles") or (), len(project.layout.tiles(item))
            return list(graded_by_limits(missing, figures, measured, limits=limits, tiles=tiles))
        case SliceId() if detail.get("summary"):
            return _pairs(verdict_of_slice((), detail["summary"], limits))
    return None


def _of_tile(figures: Mapping[str, Any], project: Project) -> list[tuple[Grade, str]] | None:
    try:
        known = TileFigures(**{name: float("nan") if value is None else value for name, value in figures.items()})
    except TypeError:  # of another version
        return None
    return _pairs(known.verdict(project.config.processing.quality))


def _pairs(verdict: Verdict) -> list[tuple[Grade, str]]:
    return [(verdict.grade, reason) for reason in verdict.reasons]


def _follows_from_figures(item: ItemId, reason: str) -> bool:
    return _OF_A_LIMIT in reason or (isinstance(item, MosaicId) and reason.startswith(_OF_A_MOSAIC))


def _recorded_grade(detail: Mapping[str, Any]) -> Grade:
    """Return the verdict in a record; those of earlier versions only tell that somebody should look."""
    grade: Any = detail.get("verdict")
    return grade if grade in get_args(Grade) else "look"

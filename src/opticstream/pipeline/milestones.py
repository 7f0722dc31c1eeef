"""Milestones: the facts that people are told, each exactly once, whoever looks first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opticstream.model.errors import StateError
from opticstream.model.ids import MosaicId, SliceId
from opticstream.pipeline.products import recorded_products
from opticstream.pipeline.progress import MILESTONES_PERCENT, ProjectProgress, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.refused import RefusedEvent, refused_events


@dataclass(frozen=True)
class Milestone:
    """Something that people are told."""

    key: str
    """Names the milestone; one key is told once."""
    text: str
    picture: Path | None = None
    failure: bool = False
    sample: bool = False
    """Whether it tells of the sample's stacks."""


class Target(Protocol):
    """Someone who is told."""

    def was_told(self, key: str, /) -> bool:
        """Return whether a milestone was told already."""
        ...

    def tell(self, milestone: Milestone, /) -> bool:
        """Tell a milestone; False if somebody else has just told it."""
        ...


def milestones(project: Project, progress: ProjectProgress, /) -> list[Milestone]:
    """Return every milestone that a project has reached, oldest kind first."""
    reached: list[Milestone] = []
    for mosaic in progress.mosaics:
        where = f"mosaic {mosaic.mosaic_id} (slice {mosaic.slice_id}, {mosaic.illumination})"
        done = mosaic.tiles_processed + mosaic.tiles_failed
        passed = [percent for percent in MILESTONES_PERCENT if mosaic.percent >= percent]
        reached += [
            Milestone(
                f"mosaic-{mosaic.mosaic_id:03d}.tiles-{percent}",
                f"{where}: {percent} % of tiles processed ({done} of {mosaic.total_tiles})",
            )
            for percent in passed[-1:]
        ]
        if mosaic.state == "stitched":
            preview = project.paths.mosaic_product(MosaicId(mosaic.mosaic_id), "aip", ".jpg")
            reached.append(Milestone(f"mosaic-{mosaic.mosaic_id:03d}.stitched", f"{where}: stitched", preview))
    for slice_ in progress.slices:
        if slice_.state == "registered":
            picture = _axis_picture(project, SliceId(slice_.slice_id))
            key = f"slice-{slice_.slice_id:03d}.registered"
            reached.append(Milestone(key, f"slice {slice_.slice_id}: registered", picture))
        elif slice_.state == "skipped":
            key = f"slice-{slice_.slice_id:03d}.skipped"
            reached.append(Milestone(key, f"slice {slice_.slice_id}: not registered: {slice_.reason}"))
        if slice_.stacked:
            preview = project.paths.sample_preview
            key = f"slice-{slice_.slice_id:03d}.stacked"
            reached.append(Milestone(key, f"slice {slice_.slice_id}: in the sample's stacks", preview, sample=True))
    reached += [
        Milestone(
            f"{failure.item.key.replace('/', '.')}.{failure.fact}-{failure.attempts}",
            f"{failure.item} {failure.fact}: {failure.reason}",
            failure=True,
        )
        for failure in progress.failures
    ]
    reached += [refusal(refused) for refused in refused_events(project)]
    return reached


def _axis_picture(project: Project, slice_id: SliceId) -> Path | None:
    try:
        return recorded_products(project, slice_id, "registered").get("axis_jpeg")
    except StateError:  # a damaged flag costs its picture, and no other milestone
        return None


def refusal(refused: RefusedEvent, /) -> Milestone:
    """Return what people are told of an announcement that could not be understood."""
    return Milestone(refused.key, f"event not understood: {refused.why}", failure=True)


def untold_milestones(project: Project, target: Target, /) -> list[Milestone]:
    """Return every milestone that was not told before."""
    return [each for each in milestones(project, project_progress(project)) if not target.was_told(each.key)]


def tell_milestones(project: Project, target: Target, /) -> int:
    """Tell every milestone that was not told before, and return how many that were; raises as `tell_all`."""
    return tell_all(untold_milestones(project, target), target)


def tell_all(due: Sequence[Milestone], target: Target, /) -> int:
    """Tell some milestones and return how many were not told by somebody else meanwhile.

    Raises
    ------
    ExceptionGroup
        Some could not be told; all others were, and the next look tries these again.
    """
    told, problems = 0, []
    for milestone in due:
        try:
            told += target.tell(milestone)
        except Exception as error:
            problems.append(error)
    if problems:
        raise ExceptionGroup(f"{len(problems)} of {len(due)} milestones could not be told", problems)
    return told

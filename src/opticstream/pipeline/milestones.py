"""Milestones: facts that are reported, exactly once to each target, by whichever process finds them first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from opticstream.model.errors import StateError
from opticstream.model.ids import ItemId, MosaicId, SampleId, SliceId
from opticstream.notify import Level, Milestone, Notifier, NotTold, TargetContext, open_targets
from opticstream.pipeline.failures import NOT_TOLD
from opticstream.pipeline.products import recorded_products
from opticstream.pipeline.progress import (
    MILESTONES_PERCENT,
    Failure,
    MosaicProgress,
    ProjectProgress,
    SliceProgress,
    project_progress,
)
from opticstream.pipeline.project import Project
from opticstream.pipeline.refused import RefusedEvent, refused_events

Say = Callable[[str], object]


def milestones(project: Project, progress: ProjectProgress, /) -> list[Milestone]:
    """Return every milestone that a project has reached, oldest kind first."""
    return [
        *(one for mosaic in progress.mosaics for one in _of_mosaic(project, mosaic)),
        *(one for slice_ in progress.slices for one in _of_slice(project, slice_)),
        *(_of_failure(project, failure) for failure in progress.failures),
        *(refusal(project, refused) for refused in refused_events(project)),
    ]


def _of_mosaic(project: Project, mosaic: MosaicProgress) -> Iterator[Milestone]:
    item = MosaicId(mosaic.mosaic_id)
    where = f"mosaic {mosaic.mosaic_id} (slice {mosaic.slice_id}, {mosaic.illumination})"
    done = mosaic.tiles_processed + mosaic.tiles_failed
    passed = [percent for percent in MILESTONES_PERCENT if mosaic.percent >= percent]
    for percent in passed[-1:]:
        text = f"{where}: {percent} % of tiles processed ({done} of {mosaic.total_tiles})"
        yield _milestone(project, item, f"tiles-{percent}", text, title=f"{item}: {percent} % of tiles")
    if mosaic.state == "stitched":
        preview = project.paths.readable(project.paths.mosaic_product(item, "aip", ".jpg"))
        yield _milestone(project, item, "stitched", f"{where}: stitched", picture=preview)
    if mosaic.uploaded:
        yield _milestone(project, item, "uploaded", f"{where}: maps are held, verified, by every remote target")


def _of_slice(project: Project, slice_: SliceProgress) -> Iterator[Milestone]:
    item = SliceId(slice_.slice_id)
    if slice_.state == "registered":
        picture = _axis_picture(project, item)
        yield _milestone(project, item, "registered", f"slice {slice_.slice_id}: registered", picture=picture)
    elif slice_.state == "skipped":
        text = f"slice {slice_.slice_id}: not registered: {slice_.reason}"
        yield _milestone(project, item, "skipped", text, title=f"{item}: not registered", level="warning")
    if slice_.stacked:
        text = f"slice {slice_.slice_id}: in the sample's stacks"
        yield _milestone(project, item, "stacked", text, picture=project.paths.sample_preview)
    if slice_.uploaded:
        text = f"slice {slice_.slice_id}: results are held, verified, by every remote target"
        yield _milestone(project, item, "uploaded", text)


def _of_failure(project: Project, failure: Failure) -> Milestone:
    return Milestone(
        key=f"{failure.item.key.replace('/', '.')}.{failure.fact}-{failure.attempts}",
        project=project.config.name,
        item=failure.item,
        fact=failure.fact,
        title=f"{failure.item}: {failure.fact}",
        text=f"{failure.item} {failure.fact}: {failure.reason}",
        level="failure",
    )


def _milestone(
    project: Project,
    item: ItemId,
    fact: str,
    text: str,
    *,
    title: str | None = None,
    level: Level = "info",
    picture: Path | None = None,
) -> Milestone:
    pictures = () if picture is None else (picture,)
    return Milestone(f"{item.key}.{fact}", project.config.name, item, fact, title or text, text, level, pictures)


def _axis_picture(project: Project, slice_id: SliceId) -> Path | None:
    try:
        return recorded_products(project, slice_id, "registered").get("axis_jpeg")
    except StateError:  # with a damaged flag only the picture is missing
        return None


def refusal(project: Project, refused: RefusedEvent, /) -> Milestone:
    """Return the milestone that reports an event that could not be understood."""
    return Milestone(
        key=refused.key,
        project=project.config.name,
        item=None,
        fact="refused",
        title=f"event {refused.name} not understood",
        text=f"event not understood: {refused.why}",
        level="failure",
    )


def notifier(project: Project, /, *, say: Say, warn: Say) -> Notifier:
    """Return a notifier for the targets in this host's settings, for one check of the project.

    Parameters
    ----------
    project : Project
        The project to report on.
    say : callable
        Takes the lines of the target `log`.
    warn : callable
        Takes a line about each milestone that could not be sent to a target. The first failure of each is also written
        to the journal.
    """

    def on_failure(failure: NotTold) -> None:
        warn(f"{failure}; the next check tries again")
        if failure.is_new:
            # Recorded for the sample, because the item itself has not failed.
            stage = f"notify {failure.target}"
            project.facts.journal.failed(SampleId(), None, why=str(failure), kind=NOT_TOLD, stage=stage)

    targets = open_targets(project.deployment.notify_targets, TargetContext(project.paths.base, say))
    return Notifier(project.paths.base, targets, on_failure=on_failure)


def tell_milestones(project: Project, notifier: Notifier, /) -> int:
    """Send each target every milestone that it has not received yet, and return the number sent."""
    return notifier.tell(milestones(project, project_progress(project)))


def tell_again(project: Project, notifier: Notifier, /) -> int:
    """Send targets what could not be sent earlier, and return the number sent."""
    if not notifier.has_untold():
        return 0
    return notifier.tell_again(milestones(project, project_progress(project)))

"""Milestones: facts that are reported, exactly once to each target, by whichever process finds them first."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from opticstream.model.errors import StateError
from opticstream.model.ids import ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.notify import Delivery, Level, Link, Milestone, Notifier, NotTold, TargetContext, open_targets
from opticstream.notify.delivery import utc_now
from opticstream.pipeline.acquisition import acquisitions
from opticstream.pipeline.failures import NOT_TOLD
from opticstream.pipeline.payloads import mosaic_progress_key, project_progress_key
from opticstream.pipeline.products import recorded_products
from opticstream.pipeline.progress import (
    MILESTONES_PERCENT,
    Failure,
    MosaicProgress,
    ProjectProgress,
    SliceProgress,
    detail_of,
    is_finished,
    project_progress,
)
from opticstream.pipeline.project import Project
from opticstream.pipeline.quality_flags import FlaggedResult, flagged_results
from opticstream.pipeline.refused import RefusedEvent, refused_events
from opticstream.pipeline.rules import has_all_batches
from opticstream.state import FactsSnapshot

Say = Callable[[str], object]


def milestones(
    project: Project, progress: ProjectProgress, /, snapshot: FactsSnapshot | None = None
) -> list[Milestone]:
    """Return every milestone that a project has reached, oldest kind first.

    Parameters
    ----------
    project : Project
        The project.
    progress : ProjectProgress
        Its progress.
    snapshot : FactsSnapshot, optional
        The facts behind that; read by default.
    """
    snapshot = project.facts.snapshot() if snapshot is None else snapshot
    return [
        *(one for mosaic in progress.mosaics for one in _of_mosaic(project, mosaic)),
        *(one for slice_ in progress.slices for one in _of_slice(project, slice_)),
        *(_of_flag(project, flagged) for flagged in flagged_results(project, snapshot, keep=True)),
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
        later = tuple(f"{item.key}.tiles-{more}" for more in MILESTONES_PERCENT if more > percent)
        yield _milestone(project, item, f"tiles-{percent}", text, title=f"{item}: {percent} % of tiles", after=later)
    if mosaic.state == "stitched":
        preview = project.paths.readable(project.paths.mosaic_product(item, "aip", ".jpg"))
        yield _milestone(project, item, "stitched", f"{where}: stitched", picture=preview)
    if mosaic.uploaded:
        text = f"{where}: maps are held, verified, by every remote target"
        yield _milestone(project, item, "uploaded", text, links=_addresses(project, item))


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
        yield _milestone(project, item, "uploaded", text, links=_addresses(project, item))


def _of_flag(project: Project, flagged: FlaggedResult) -> Milestone:
    """Return the milestone that reports a verdict of quality control."""
    item, reasons = flagged.item, "; ".join(flagged.reasons)
    mark = hashlib.sha256(reasons.encode(errors="backslashreplace")).hexdigest()[:8]
    is_bad = flagged.grade == "bad"
    return Milestone(
        key=f"{item.key.replace('/', '.')}.flagged-{mark}",
        project=project.config.name,
        item=item,
        fact="bad" if is_bad else "to check",
        title=f"{item}: {'bad' if is_bad else 'to check'}",
        text=f"{item} is {'bad' if is_bad else 'to be checked'}: {reasons}",
        level="failure" if is_bad else "warning",
        pictures=_quality_pictures(project, item),
        links=_page_links(project, item),
    )


def _quality_pictures(project: Project, item: ItemId) -> tuple[Path, ...]:
    match item:
        case MosaicId():
            return (project.paths.mosaic_product(item, "qc_overlap", ".jpg"),)
        case SliceId():
            picture = _axis_picture(project, item)
            return () if picture is None else (picture,)
        case TileId():
            picture = project.paths.tile_product(item, "qc").with_suffix(".jpg")
            return (picture,) if picture.exists() else ()
    return ()


def _of_failure(project: Project, failure: Failure) -> Milestone:
    return Milestone(
        key=f"{failure.item.key.replace('/', '.')}.{failure.fact}-{failure.attempts}{_earlier(project, failure)}",
        project=project.config.name,
        item=failure.item,
        fact=failure.fact,
        title=f"{failure.item}: {failure.fact}",
        text=f"{failure.item} {failure.fact}: {failure.reason}",
        level="failure",
        links=_page_links(project, failure.item),
    )


def _earlier(project: Project, failure: Failure) -> str:
    """Return the end of a key that tells how often the same failure was taken back; empty where it never was.

    What fails again after a retry is reported again.
    """
    count = project.facts.times_withdrawn(failure.item, failure.fact)
    return f".{count}" if count else ""


def finished_by_now(
    project: Project, progress: ProjectProgress, snapshot: FactsSnapshot, /, *, now: float | None = None
) -> Milestone | None:
    """Return the milestone that sums up a project that seems to be over; None as long as it goes on.

    It is over if every slice that was begun is whole, nothing is left to do, and nothing new has come or was done for
    `OPTICSTREAM_FINISHED_AFTER_S`: whether the rig goes on with another slice, nobody knows.
    """
    now = time.time() if now is None else now
    if now - _last_sign_of_work(project) < project.deployment.finished_after_s:
        return None
    slices = {project.layout.slice_of(MosaicId(one.mosaic_id)) for one in progress.mosaics}
    begun = [mosaic for one in slices for mosaic in project.layout.mosaics(one)]
    if not all(has_all_batches(project, mosaic, snapshot) for mosaic in begun) or not is_finished(project, snapshot):
        return None
    return finished(project, progress, snapshot)


def _last_sign_of_work(project: Project) -> float:
    """Return when something was last done, or a raw file came, in seconds since 1970."""
    times = [seen.last_data for seen in acquisitions(project)]
    for path in project.facts.journal.folder.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=time.time())


def finished(project: Project, progress: ProjectProgress, /, snapshot: FactsSnapshot | None = None) -> Milestone | None:
    """Return the milestone that sums up a project of which nothing is left to do; None if nothing was found."""
    if not progress.mosaics:
        return None
    snapshot = project.facts.snapshot() if snapshot is None else snapshot
    tiles = sum(mosaic.tiles_processed for mosaic in progress.mosaics)
    registered = sum(slice_.state == "registered" for slice_ in progress.slices)
    stitched = sum(mosaic.state == "stitched" for mosaic in progress.mosaics)
    parts = [
        f"{tiles} of {sum(mosaic.total_tiles for mosaic in progress.mosaics)} tiles processed",
        f"{stitched} of {len(progress.mosaics)} mosaics stitched",
        f"{registered} of {len(progress.slices)} slices registered",
    ]
    flagged = sum(1 for _ in flagged_results(project, snapshot))
    parts += [f"{len(progress.failures)} failed"] * bool(progress.failures) + [f"{flagged} to check"] * bool(flagged)
    text = f"finished: {', '.join(parts)}"
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Milestone(
        key=f"finished-{mark}",
        project=project.config.name,
        item=SampleId(),
        fact="finished",
        title="finished",
        text=text,
        level="warning" if progress.failures else "info",
        pictures=(project.paths.sample_preview,),
        links=_page_links(project, SampleId()),
    )


def _page_links(project: Project, item: ItemId) -> tuple[Link, ...]:
    """Return the address of the progress of an item on Prefect's page; none where that page has no known address."""
    page = project.deployment.page
    if page is None:
        return ()
    name = project.config.name
    mosaic = item if isinstance(item, MosaicId) else item.mosaic if isinstance(item, TileId) else None
    key = project_progress_key(name) if mosaic is None else mosaic_progress_key(name, mosaic)
    return (Link("progress", f"{page}/artifacts/key/{quote(key)}"),)


def _addresses(project: Project, item: ItemId) -> tuple[Link, ...]:
    """Return where the remote targets hold an item."""
    targets = detail_of(project, item, "uploaded").get("targets", {})
    places = {str(name): str(held.get("place", "")) for name, held in targets.items() if isinstance(held, dict)}
    return tuple(Link(name, place) for name, place in places.items() if "://" in place)


def _milestone(
    project: Project,
    item: ItemId,
    fact: str,
    text: str,
    *,
    title: str | None = None,
    level: Level = "info",
    picture: Path | None = None,
    links: tuple[Link, ...] = (),
    after: tuple[str, ...] = (),
) -> Milestone:
    pictures = () if picture is None else (picture,)
    links = (*_page_links(project, item), *links)
    name = project.config.name
    return Milestone(f"{item.key}.{fact}", name, item, fact, title or text, text, level, pictures, links, after)


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


def notifier(
    project: Project, /, *, say: Say, warn: Say, at_once: bool = False, now: Callable[[], datetime] = utc_now
) -> Notifier:
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
    at_once : bool, default False
        Do not wait for the time between two messages, because this process ends.
    now : callable
        Returns the present time with its time zone.
    """

    def on_failure(failure: NotTold) -> None:
        warn(f"{failure}; the next check tries again")
        if failure.is_new:
            # Recorded for the sample, because the item itself has not failed.
            stage = f"notify {failure.target}"
            project.facts.journal.failed(SampleId(), None, why=str(failure), kind=NOT_TOLD, stage=stage)

    wanted = project.deployment.notify_targets
    targets = open_targets(wanted, TargetContext(project.paths.base, say))
    rules = {settings.target_name: Delivery.of(settings) for settings in wanted}
    base = project.paths.base
    return Notifier(base, targets, on_failure=on_failure, delivery=rules, at_once=at_once, now=now)


def tell_milestones(
    project: Project, notifier: Notifier, /, *, also: Iterable[Milestone] = (), progress: ProjectProgress | None = None
) -> int:
    """Send each target every milestone that it has not received yet, and return the number sent.

    Parameters
    ----------
    project : Project
        The project.
    notifier : Notifier
        Its targets.
    also : iterable of Milestone
        What is to be told besides, such as `opticstream.pipeline.conditions`.
    progress : ProjectProgress, optional
        The progress of the project; read by default.
    """
    snapshot = project.facts.snapshot()
    progress = progress or project_progress(project, snapshot)
    summary = finished_by_now(project, progress, snapshot)
    reached = [*milestones(project, progress, snapshot), *([] if summary is None else [summary]), *also]
    notifier.drop_untold(reached)
    return notifier.tell(reached)

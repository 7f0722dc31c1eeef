"""Publication: archive copies are linked from their mosaic, results are put into the archive's derivative tree.

The queue is what the facts say: everything that is archived, stitched or registered and not yet uploaded. A run takes
the whole queue, so that a burst of announcements costs one run and a lost one costs nothing but time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from opticstream.model.errors import StateError
from opticstream.model.events import (
    BatchFailed,
    BatchUploaded,
    Event,
    MosaicFailed,
    MosaicUploaded,
    MosaicVolumeUploaded,
    SliceFailed,
    SliceUploaded,
)
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId
from opticstream.pipeline.jobs import UPLOAD, UPLOAD_VOLUME, Attempt, Done, Failed, Job, Result, once, perform
from opticstream.pipeline.project import Project
from opticstream.publish.local import link_into_mosaic, publish_locally
from opticstream.state import Claim, FactsSnapshot, FileRecord

_QUEUES: tuple[tuple[str, str, Job, type[Event]], ...] = (
    ("batch", "archived", UPLOAD, BatchUploaded),
    ("mosaic", "stitched", UPLOAD, MosaicUploaded),
    ("mosaic", "volume_stitched", UPLOAD_VOLUME, MosaicVolumeUploaded),
    ("slice", "registered", UPLOAD, SliceUploaded),
)


def upload_queue(snapshot: FactsSnapshot, /) -> list[tuple[ItemId, str, Job, type[Event]]]:
    """Return what waits for publication: (item, fact that made it ready, job, event that announces the end)."""
    return [
        (item, fact, job, event)
        for hierarchy, fact, job, event in _QUEUES
        for item in snapshot.items(hierarchy)
        if snapshot.has(item, fact) and not snapshot.facts_of(item) & {job.done, job.failed}
    ]


def upload_pending(project: Project, /, *, attempt: Attempt = once) -> Iterator[Event]:
    """Publish everything that waits, and yield what is to be announced as it happens."""
    for item, fact, job, event in upload_queue(project.facts.snapshot()):
        if not project.facts.has(item, fact):  # withdrawn meanwhile
            continue
        work = partial(_upload, project, item, fact, attempt)
        outcome = perform(project, item, job, work)
        if isinstance(outcome, Done):
            yield project.event(event, item)
        elif isinstance(outcome, Failed):
            yield _failure(project, item, job, outcome.reason)


def _failure(project: Project, item: ItemId, job: Job, reason: str) -> Event:
    if isinstance(item, BatchId):
        return project.event(BatchFailed, item, reason=f"{job.name}: {reason}")
    kind = MosaicFailed if isinstance(item, MosaicId) else SliceFailed
    return project.event(kind, item, stage=job.name, reason=reason)


def _upload(project: Project, item: ItemId, fact: str, attempt: Attempt, _claim: Claim) -> Result:
    record = project.facts.read(item, fact)
    if record is None:
        raise StateError(f"{item} is not {fact} any longer")
    published = attempt(f"publish {item}", lambda: _publish(project, item, record.outputs))
    return Result(
        outputs=[project.facts.file_record(path, checksum=False) for path in published],
    )


def _publish(project: Project, item: ItemId, files: tuple[FileRecord, ...]) -> list[Path]:
    sources = [project.paths.absolute(file.path) for file in files]
    if isinstance(item, BatchId):
        return [link_into_mosaic(source, project.paths.archived_folder(item.mosaic)) for source in sources]
    assert isinstance(item, MosaicId | SliceId)
    return [publish_locally(source, project.paths.published(source)) for source in sources]

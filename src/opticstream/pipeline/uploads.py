"""Publish results: link archive copies from their mosaic, and copy other results to the archive's derivative tree.

The queue follows from the facts: everything that is archived, stitched or registered and not yet published. A run
handles the whole queue, so that a burst of events costs one run and a lost event only costs time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from opticstream.model.chain import Step, chain
from opticstream.model.errors import StateError
from opticstream.model.events import Event
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId
from opticstream.pipeline.bindings import due_items
from opticstream.pipeline.jobs import Attempt, Result, announcements, once, perform
from opticstream.pipeline.project import Project
from opticstream.publish.local import link_into_mosaic, publish_locally
from opticstream.state import Claim, FactsSnapshot, FileRecord


def upload_queue(project: Project, snapshot: FactsSnapshot, /) -> list[tuple[ItemId, Step]]:
    """Return what waits for publication, with the step that publishes it."""
    return [
        (item, step)
        for step in chain().steps
        if step.publishes
        for item in due_items(project, step, snapshot, snapshot.items(step.hierarchy))
    ]


def upload_pending(project: Project, /, *, attempt: Attempt = once) -> Iterator[Event]:
    """Publish everything that waits, and yield the events to announce as it happens."""
    for item, step in upload_queue(project, project.facts.snapshot()):
        if not project.facts.has(item, step.after):  # withdrawn in the meantime
            continue
        work = partial(_publish, project, item, step.after, attempt)
        yield from announcements(project, item, step, perform(project, item, step, work))


def _publish(project: Project, item: ItemId, fact: str, attempt: Attempt, _claim: Claim) -> Result:
    record = project.facts.read(item, fact)
    if record is None:
        raise StateError(f"{item} is no longer {fact}")
    published = attempt(f"publish {item}", lambda: _publish_files(project, item, record.outputs))
    return Result(outputs=[project.facts.file_record(path, checksum=False) for path in published])


def _publish_files(project: Project, item: ItemId, files: tuple[FileRecord, ...]) -> list[Path]:
    sources = [project.paths.absolute(file.path) for file in files]
    if isinstance(item, BatchId):
        return [link_into_mosaic(source, project.paths.archived_folder(item.mosaic)) for source in sources]
    assert isinstance(item, MosaicId | SliceId)
    return [publish_locally(source, project.paths.published(source)) for source in sources]

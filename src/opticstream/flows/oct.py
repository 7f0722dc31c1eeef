"""The flows of the OCT pipeline: each opens the project of its event, lets a rule or a job do the work, and announces.

No flow calls another one: what comes next is started by the event. The pipeline is imported inside the flows, so that
a run loads only what its own stage needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.tasks import exponential_backoff

from opticstream.flows.events import announce, event_from_trigger
from opticstream.flows.parameters import keep_parameters, load_parameters
from opticstream.model.events import BatchReady, Event, MosaicReady, MosaicStitched, SampleUpdated, SliceReady
from opticstream.model.ids import ItemId, SampleId
from opticstream.pipeline.failures import describe, is_transient, kind_of
from opticstream.pipeline.jobs import (
    PROCESS_BATCH,
    REGISTER_SLICE,
    STITCH_MOSAIC,
    STITCH_VOLUME,
    UPDATE_SAMPLE,
    UPLOAD,
    Attempt,
)
from opticstream.pipeline.project import Project

R = TypeVar("R")
_LOOK_S = 1.0
"""Time between two looks at the facts within a window, in seconds."""
_WINDOW_MARGIN_S = 1.5
"""How much later than the window the last look begins, for events that were on their way."""


@contextmanager
def _opened(event: Event, overrides: dict[str, Any] | None = None) -> Iterator[Project]:
    """Yield the project of an event with the registered parameters, those of the event and of the run on top.

    They are kept as an artifact of the run, for the flows that compute; those that only look would keep the same ones
    over and over.
    """
    with _seen(event, overrides) as project:
        keep_parameters(project.config)
        yield project


@contextmanager
def _seen(event: Event, overrides: dict[str, Any] | None = None) -> Iterator[Project]:
    """Yield the project of an event for a flow that looks at the facts."""
    resolved = {**event.parameters, **(overrides or {})}
    config = load_parameters(event.project_name, overrides=resolved)
    yield Project.open(config, flow_run_id=flow_run.id, parameters=resolved)


def _attempt(project: Project, item: ItemId, stage: str) -> Attempt:
    """Return a runner of steps as Prefect tasks, which tries again after transient errors with growing waits.

    Tries that are to be repeated stand in the journal, too: a share that stumbles again and again shows there.
    """
    settings = project.deployment

    def attempt(name: str, step: Callable[[], R], /) -> R:
        def is_tried_again(_task: object, _run: object, state: State[R]) -> bool:
            error = state.result(raise_on_failure=False)
            if not isinstance(error, BaseException) or not is_transient(error):
                return False
            why = f"{name}: {describe(error)}"
            project.facts.journal.failed(item, None, why=why, kind=kind_of(error), stage=stage)
            return True

        decorated = task(
            name=name,
            task_run_name=name,
            retries=settings.attempts - 1,
            retry_delay_seconds=exponential_backoff(settings.retry_delay_s),
            retry_jitter_factor=0.5,
            retry_condition_fn=is_tried_again,
            cache_policy=NO_CACHE,
            persist_result=False,
        )(step)
        return decorated()

    return attempt


@flow(name="process-batch", flow_run_name="{event.project_name} mosaic {event.mosaic_id} batch {event.batch_id}")
def process_batch(event: BatchReady, overrides: dict[str, Any] | None = None) -> None:
    """Reconstruct and archive the tiles of a batch."""
    from opticstream.pipeline.batches import process_batch as work

    with _opened(event, overrides) as project:
        announce(work(project, event, attempt=_attempt(project, event.item, PROCESS_BATCH.name)))


@flow(name="stitch-mosaic", flow_run_name="{event.project_name} mosaic {event.mosaic_id}")
def stitch_mosaic(event: MosaicReady, overrides: dict[str, Any] | None = None) -> None:
    """Find or reuse the coordinates of a mosaic and stitch its en face maps."""
    from opticstream.flows.picture import publish_mosaic_quality
    from opticstream.pipeline.mosaics import stitch_mosaic as work

    with _opened(event, overrides) as project:
        events = work(project, event, attempt=_attempt(project, event.item, STITCH_MOSAIC.name))
        announce(events)
        for happened in events:
            if isinstance(happened, MosaicStitched):
                publish_mosaic_quality(project, happened)


@flow(name="stitch-volume", flow_run_name="{event.project_name} mosaic {event.mosaic_id}")
def stitch_volume(event: MosaicStitched, overrides: dict[str, Any] | None = None) -> None:
    """Stitch the volumes of a mosaic."""
    from opticstream.pipeline.mosaics import stitch_volume as work

    with _opened(event, overrides) as project:
        announce(work(project, event, attempt=_attempt(project, event.item, STITCH_VOLUME.name)))


@flow(name="register-slice", flow_run_name="{event.project_name} slice {event.slice_id}")
def register_slice(event: SliceReady, overrides: dict[str, Any] | None = None) -> None:
    """Register the illuminations of a slice and find its fibre axes."""
    from opticstream.pipeline.slices import register_slice as work

    with _opened(event, overrides) as project:
        announce(work(project, event, attempt=_attempt(project, event.item, REGISTER_SLICE.name)))


@flow(name="update-sample", flow_run_name="{payload[project_name]} sample")
def update_sample(event_name: str, payload: dict[str, Any], occurred: datetime, window_s: float = 0.0) -> None:
    """Add the slices that wait for it, and volumes that came later, to the sample's stacks."""
    from opticstream.flows.picture import publish_sample_preview
    from opticstream.pipeline.stacking import update_sample as work

    with _seen(event_from_trigger(event_name, payload)) as project:

        def look() -> Iterator[Event]:
            for happened in work(project, attempt=_attempt(project, SampleId(), UPDATE_SAMPLE.name)):
                yield happened
                if isinstance(happened, SampleUpdated):
                    publish_sample_preview(project, happened)

        _look_until(occurred, window_s, look)


@flow(name="batch-state")
def batch_state(event_name: str, payload: dict[str, Any], occurred: datetime, window_s: float = 0.0) -> None:
    """Count the batches of the project's mosaics and announce the mosaics that are ready."""
    from opticstream.flows.picture import publish_picture
    from opticstream.pipeline.looks import look_at_batches

    with _seen(event_from_trigger(event_name, payload)) as project:
        _look_until(occurred, window_s, lambda: look_at_batches(project))
        publish_picture(project)


@flow(name="slice-state")
def slice_state(event_name: str, payload: dict[str, Any], occurred: datetime, window_s: float = 0.0) -> None:
    """Look at the mosaics of the project's slices and announce the slices that are ready."""
    from opticstream.flows.picture import publish_picture
    from opticstream.pipeline.looks import look_at_mosaics

    with _seen(event_from_trigger(event_name, payload)) as project:
        _look_until(occurred, window_s, lambda: look_at_mosaics(project))
        publish_picture(project)


@flow(name="upload")
def upload(event_name: str, payload: dict[str, Any], occurred: datetime, window_s: float = 0.0) -> None:
    """Publish everything of the project that waits for publication."""
    from opticstream.pipeline.uploads import upload_pending

    event = event_from_trigger(event_name, payload)
    with _seen(event) as project:
        _look_until(
            occurred, window_s, lambda: upload_pending(project, attempt=_attempt(project, event.item, UPLOAD.name))
        )


@flow(name="notify")
def notify(event_name: str, payload: dict[str, Any], occurred: datetime, window_s: float = 0.0) -> None:
    """Tell people of milestones and failures, each once."""
    from opticstream.notify.log import LogTarget
    from opticstream.pipeline.milestones import tell_milestones

    logger = get_run_logger()
    event = event_from_trigger(event_name, payload)
    with _seen(event) as project:
        target = LogTarget(project.paths.base, say=logger.info)

        def look() -> Iterable[Event]:
            tell_milestones(project, target)
            return ()

        _look_until(occurred, window_s, look)


def _look_until(occurred: datetime, window_s: float, look: Callable[[], Iterable[Event]]) -> None:
    """Look at the facts, announce what follows, and look again until the window of swallowed events is over.

    Facts are recorded before they are announced; so a look that begins after the window sees what every swallowed event
    told of. The time of the event is another host's: whatever that clock says, the window is over when it has passed
    once from now. If it ends too soon by such a clock, the sweep makes up for it.
    """
    left_s = min(max(occurred.timestamp() + window_s - time.time(), 0.0), window_s)
    end = time.monotonic() + left_s + _WINDOW_MARGIN_S
    while True:
        begin = time.monotonic()
        for event in look():
            announce([event])
        if begin >= end:
            return
        time.sleep(min(_LOOK_S, max(0.05, end - time.monotonic())))

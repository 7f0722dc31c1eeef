"""The flows of the OCT pipeline: each opens the project of its event, lets a rule or a job do the work, and announces.

No flow calls another one: what comes next is started by the event. The pipeline is imported inside the flows, so that
a run loads only what its own stage needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL
from prefect.tasks import exponential_backoff

from opticstream.config import DeploymentSettings
from opticstream.flows.engine_output import engine_output_logged
from opticstream.flows.events import announce_automatically
from opticstream.flows.incoming import (
    Taken,
    concerned,
    received_from,
    refusals_told,
    run_name,
    swallowed_by_window,
    take,
)
from opticstream.flows.parameters import keep_parameters
from opticstream.model.chain import Step
from opticstream.model.errors import OpticStreamError
from opticstream.model.events import (
    BatchProcessed,
    Event,
    MosaicStitched,
    SampleUpdated,
    SliceReady,
    SliceRegistered,
    TileBegun,
)
from opticstream.model.ids import ItemId, SampleId, TileId
from opticstream.pipeline.failures import describe, is_transient, kind_of
from opticstream.pipeline.jobs import (
    PROCESS_BATCH,
    REGISTER_SLICE,
    STITCH_MOSAIC,
    STITCH_VOLUME,
    UPDATE_SAMPLE,
    Attempt,
)
from opticstream.pipeline.project import Project

if TYPE_CHECKING:
    from opticstream.notify import Notifier

R = TypeVar("R")
E = TypeVar("E", bound=Event)
_SHARED_KINDS: tuple[type[Event], ...] = (MosaicStitched, SliceReady)
"""Kinds of events that start further flows besides the one that computes."""
_LOOK_S = 1.0
"""Time between two looks at the facts within a window, in seconds."""
_WINDOW_MARGIN_S = 1.5
"""How much later than the window the last look begins, for events that were on their way."""


def _taken(kind: type[E], event: Any, source: Any, overrides: dict[str, Any] | None) -> tuple[Project, E]:
    """Return the open project and the event of a flow that computes, once the event has been understood.

    What was parked and is to be tried again is taken back, and the parameters are kept as an artifact of the run; flows
    that only look would keep the same ones over and over.
    """
    taken = take(received_from(kind.event_name(), event, source), overrides=overrides)
    assert isinstance(taken.event, kind)
    keep_parameters(taken.project.config)
    again = taken.release()
    # This run does itself what its own event stands for; what else the event stands for is started by another one.
    announce_automatically([one for one in again if one.event_name() != kind.event_name() or kind in _SHARED_KINDS])
    return taken.project, taken.event


def _looked_at(event_name: str, payload: Any, source: Any, occurred: datetime) -> Taken:
    """Return the event of a flow that several kinds of events start."""
    return take(received_from(event_name, payload, source, occurred))


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


def _compute(
    step: Step, work: Callable[..., Iterable[Event]], event: Any, overrides: dict[str, Any] | None, source: Any
) -> tuple[Project, list[Event]]:
    """Do a step of the chain on the item of an event, announce what comes of it, and return that with the project."""
    project, taken = _taken(step.started_by[0], event, source, overrides)
    with engine_output_logged():
        events = list(work(project, taken, attempt=_attempt(project, taken.item, step.name)))
    announce_automatically(events)
    return project, events


@flow(name="process-batch", flow_run_name=run_name)
@refusals_told
def process_batch(event: Any = None, overrides: dict[str, Any] | None = None, source: Any = None) -> None:
    """Reconstruct and archive the tiles of a batch."""
    from opticstream.pipeline import batches

    project, events = _compute(PROCESS_BATCH, batches.process_batch, event, overrides, source)
    _show_tiles(project, events)


@flow(name="process-tiles", flow_run_name=run_name)
@refusals_told
def process_tiles(event: Any = None, overrides: dict[str, Any] | None = None, source: Any = None) -> None:
    """Reconstruct and archive the tiles of a column as they come, before it is complete."""
    from opticstream.flows.queues import PlaceInPool
    from opticstream.pipeline import columns

    project, taken = _taken(TileBegun, event, source, overrides)
    assert isinstance(taken.item, TileId)
    batch = project.layout.batch_of(taken.item)
    place = PlaceInPool(PROCESS_BATCH.pool, project.config.name, batch)
    with engine_output_logged():
        attempt = _attempt(project, batch, PROCESS_BATCH.name)
        events = columns.process_tiles(project, batch, attempt=attempt, place_is_wanted=place.is_wanted)
    announce_automatically(events)
    _show_tiles(project, events)


@flow(name="stitch-mosaic", flow_run_name=run_name)
@refusals_told
def stitch_mosaic(event: Any = None, overrides: dict[str, Any] | None = None, source: Any = None) -> None:
    """Find or reuse the coordinates of a mosaic and stitch its en face maps."""
    from opticstream.flows.picture import publish_mosaic_quality
    from opticstream.pipeline import mosaics

    project, events = _compute(STITCH_MOSAIC, mosaics.stitch_mosaic, event, overrides, source)
    for happened in events:
        if isinstance(happened, MosaicStitched):
            _show(partial(publish_mosaic_quality, project, happened))


@flow(name="stitch-volume", flow_run_name=run_name)
@refusals_told
def stitch_volume(event: Any = None, overrides: dict[str, Any] | None = None, source: Any = None) -> None:
    """Stitch the volumes of a mosaic."""
    from opticstream.pipeline import mosaics

    _compute(STITCH_VOLUME, mosaics.stitch_volume, event, overrides, source)


@flow(name="register-slice", flow_run_name=run_name)
@refusals_told
def register_slice(event: Any = None, overrides: dict[str, Any] | None = None, source: Any = None) -> None:
    """Register the illuminations of a slice and find its fibre axes."""
    from opticstream.flows.picture import publish_slice_quality
    from opticstream.pipeline import slices

    project, events = _compute(REGISTER_SLICE, slices.register_slice, event, overrides, source)
    for happened in events:
        if isinstance(happened, SliceRegistered):
            _show(partial(publish_slice_quality, project, happened))


@flow(name="update-sample", flow_run_name=run_name)
@refusals_told
def update_sample(
    event_name: str, occurred: datetime, payload: Any = None, window_s: float = 0.0, source: Any = None
) -> None:
    """Add the slices that wait for it, and volumes that came later, to the sample's stacks."""
    from opticstream.flows.picture import publish_sample_preview
    from opticstream.pipeline import stacking

    taken = _looked_at(event_name, payload, source, occurred)
    project = taken.project
    announce_automatically(taken.release())

    def look() -> Iterator[Event]:
        for happened in stacking.update_sample(project, attempt=_attempt(project, SampleId(), UPDATE_SAMPLE.name)):
            yield happened
            if isinstance(happened, SampleUpdated):
                _show(partial(publish_sample_preview, project, happened))

    _look_until(occurred, window_s, look)


@flow(name="batch-state")
@refusals_told
def batch_state(
    event_name: str, occurred: datetime, payload: Any = None, window_s: float = 0.0, source: Any = None
) -> None:
    """Count the batches of the project's mosaics and announce the mosaics that are ready."""
    from opticstream.flows.picture import publish_picture
    from opticstream.pipeline.fan_in import look_at_batches

    for project in concerned(_looked_at(event_name, payload, source, occurred)):
        _look_until(occurred, window_s, partial(look_at_batches, project))
        publish_picture(project)


@flow(name="slice-state")
@refusals_told
def slice_state(
    event_name: str, occurred: datetime, payload: Any = None, window_s: float = 0.0, source: Any = None
) -> None:
    """Look at the mosaics of the project's slices and announce the slices that are ready."""
    from opticstream.flows.picture import publish_picture
    from opticstream.pipeline.fan_in import look_at_mosaics

    for project in concerned(_looked_at(event_name, payload, source, occurred)):
        _look_until(occurred, window_s, partial(look_at_mosaics, project))
        publish_picture(project)


@flow(name="upload")
@refusals_told
def upload(event_name: str, occurred: datetime, payload: Any = None, window_s: float = 0.0, source: Any = None) -> None:
    """Publish everything of the project that waits in its archive tree, and upload it to its remote targets."""
    from opticstream.flows.queues import credentials
    from opticstream.flows.secrets import secret_of
    from opticstream.flows.transfer_slots import TransferSlots
    from opticstream.flows.upload_picture import UploadPicture
    from opticstream.pipeline.uploads import upload_pending

    taken = _looked_at(event_name, payload, source, occurred)
    announce_automatically(taken.release())
    wait_s = DeploymentSettings().upload_patience_s

    def look(project: Project) -> Iterable[Event]:
        attempt = _attempt(project, taken.event.item, "upload")
        with UploadPicture(project) as picture:
            yield from upload_pending(project, attempt=attempt, secrets=secret_of, show=picture.show, slots=slots)
        if project.config.publish.clean_up:
            _clean_up(project)

    with TransferSlots(str(PREFECT_API_URL.value()), headers=credentials(), wait_s=wait_s) as slots:
        for project in concerned(taken):
            _look_until(occurred, window_s, partial(look, project))
        if released := [event for other in swallowed_by_window(taken, window_s) for event in other.release()]:
            announce_automatically(released)
            _look_until(occurred, 0.0, partial(look, taken.project))


def _clean_up(project: Project) -> None:
    """Remove intermediate files whose results every target holds; what cannot be verified now keeps its files."""
    from opticstream.flows.secrets import secret_of
    from opticstream.pipeline.clean_up import clean_up

    logger = get_run_logger()
    try:
        for one in clean_up(project, secret_of, show_kept=False):
            logger.info("%s: removed %d intermediate files, %.1f MB", one.mosaic, len(one.files), one.size / 1e6)
    except (OpticStreamError, OSError) as error:
        logger.warning("intermediate files were not removed: %s", describe(error))


@flow(name="notify")
@refusals_told
def notify(event_name: str, occurred: datetime, payload: Any = None, window_s: float = 0.0, source: Any = None) -> None:
    """Tell people of milestones and failures, each target once."""
    from opticstream.pipeline.milestones import notifier

    logger = get_run_logger()
    for project in concerned(_looked_at(event_name, payload, source, occurred)):
        look = notifier(project, say=logger.info, warn=logger.warning)
        _look_until(occurred, window_s, partial(_told, project, look))


def _show(publish: Callable[[], object]) -> None:
    """Show pictures of a result; that they cannot be shown is no failure of the work, which is recorded by then."""
    try:
        publish()
    except (OpticStreamError, OSError, httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("pictures could not be shown: %s", describe(error))


def _show_tiles(project: Project, events: Iterable[Event]) -> None:
    """Show the pictures of the batches that are processed."""
    from opticstream.flows.picture import publish_tile_pictures

    for happened in events:
        if isinstance(happened, BatchProcessed):
            _show(partial(publish_tile_pictures, project, happened.batch))


def _told(project: Project, notifier: Notifier) -> Iterable[Event]:
    from opticstream.pipeline.milestones import tell_milestones

    tell_milestones(project, notifier)
    return ()


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
            announce_automatically([event])
        if begin >= end:
            return
        time.sleep(min(_LOOK_S, max(0.05, end - time.monotonic())))

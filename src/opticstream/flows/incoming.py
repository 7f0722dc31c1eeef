"""From a trigger to an open project and a typed event; what cannot be understood is told to people.

A trigger hands a flow the payload as it came, with the id, time and resource of the event, so a run is made of every
event and can say what is wrong with it. A run whose event cannot be understood ends as Failed with one line.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Failed

from opticstream.config import DeploymentSettings
from opticstream.flows.host_memory import memory_budget
from opticstream.flows.parameters import registered_parameters, registered_projects
from opticstream.flows.prefect_state import PrefectApi
from opticstream.model.errors import ConfigurationError, EventError
from opticstream.model.events import PREFIX, BatchReady, Event
from opticstream.pipeline.failures import SUGGESTIONS, describe, is_of_surroundings, kind_of
from opticstream.pipeline.incoming import Received, event_from_received, kind_of_event
from opticstream.pipeline.milestones import notifier, refusal
from opticstream.pipeline.project import Project
from opticstream.pipeline.project_folder import config_of_received
from opticstream.pipeline.reemission import release, remember_batch
from opticstream.pipeline.refused import refuse
from opticstream.state.slugs import artifact_key
from opticstream.system.folders import folder_trouble

P = ParamSpec("P")
R = TypeVar("R")
_ARTIFACT = "event-not-understood"


@dataclass(frozen=True)
class Taken:
    """An event that was understood, with the project that it is about."""

    project: Project
    event: Event
    received: Received

    def release(self) -> list[Event]:
        """Take back what the event is to have tried again, and return what is to be announced for it."""
        logger = get_run_logger()
        if isinstance(self.event, BatchReady):
            remember_batch(self.project, self.event, received=self.received)
        released = release(self.project, self.event, self.received)
        if released:
            logger.info("%s: %s was sent again; what was parked is tried again", self.event.item, self.received)
        return released


def concerned(taken: Taken, /) -> Iterator[Project]:
    """Yield the projects whose facts a run that shares a window with other events has to look at.

    That is the project of the event. Where the resource does not name it, events of all projects have shared the
    window, and every registered project that this host can see is looked at.
    """
    yield taken.project
    if not taken.received.id or taken.received.labels.get("project"):
        return
    for config in registered_projects():
        if config.name != taken.project.config.name and folder_trouble(config.base_path, writes=True) is None:
            yield Project.open(config, flow_run_id=flow_run.id)


def swallowed_by_window(taken: Taken, window_s: float, /) -> Iterator[Taken]:
    """Yield the events of other programs and people that came in the window of a run with the one that started it.

    The server makes no runs of them. Those that cannot be understood are told of and passed over. Of two events that
    come at once, either may start the run, and clocks of hosts differ: events from before the first one are looked at,
    too. One that has started a run of its own is known, and changes nothing.
    """
    first = taken.received
    if not window_s or first.id is None or first.occurred is None or first.is_automatic:
        return
    window = timedelta(seconds=window_s)
    for found in _events_between(first.occurred - window, first.occurred + window):
        received = received_from(found["event"], found["payload"], found)
        about_it = received.labels.get("project") == first.labels.get("project")
        if not about_it or received.id == first.id or received.is_automatic:
            continue
        try:
            yield take(received)
        except RefusedEventError as refused:
            get_run_logger().error("event not understood: %s", refused)


def _events_between(since: datetime, until: datetime) -> Iterator[dict[str, Any]]:
    """Yield our events as the server keeps them."""
    api = PrefectApi()
    chosen = {
        "occurred": {"since": since.isoformat(), "until": until.isoformat()},
        "event": {"prefix": [f"{PREFIX}."]},
    }
    answer = api.call("POST", "/events/filter", {"filter": chosen, "limit": 50}).json()
    while True:
        yield from answer["events"]
        following = answer.get("next_page")
        if not following:
            return
        answer = api.call("GET", f"/events/filter/next?{following.partition('?')[2]}").json()


def received_from(name: str, payload: Any, source: Any, occurred: datetime | None = None, /) -> Received:
    """Return the announcement that a run was started with.

    Parameters
    ----------
    name : str
        Name of the event.
    payload
        Its payload, or the typed event in a run that is called directly.
    source
        What the trigger tells of the event: ``id``, ``occurred`` and ``resource``; None in a run that is started by
        hand.
    occurred : datetime, optional
        When it happened, where `source` does not say.
    """
    told = source if isinstance(source, Mapping) else {}
    labels = told.get("resource")
    when = told.get("occurred")
    return Received(
        name,
        payload.payload() if isinstance(payload, Event) else payload,
        {str(key): str(value) for key, value in labels.items()} if isinstance(labels, Mapping) else {},
        None if told.get("id") is None else str(told["id"]),
        datetime.fromisoformat(when) if isinstance(when, str) else occurred if told else None,
    )


def take(received: Received, /, *, overrides: Mapping[str, Any] | None = None) -> Taken:
    """Return the event of a run and its open project, with the registered parameters, those of the event and of the
    run on top, and with its folder where this host sees the one that the event names.

    Raises
    ------
    RefusedEventError
        It cannot be understood; people have been told.
    """
    project: Project | None = None
    try:
        project = _open(received, {})
        kind_of_event(received)
        if parameters := {**_parameters(received), **(overrides or {})}:
            project = _open(received, parameters)
        return Taken(project, event_from_received(project, received), received)
    except (EventError, ConfigurationError) as error:
        told = error if isinstance(error, EventError) else EventError(f"{received}: {error}")
        _tell(received, told, project)
        raise RefusedEventError(str(told)) from None


def refusals_told(work: Callable[P, R], /) -> Callable[P, R | State[Any]]:
    """Return a flow's function that ends as Failed, with one line and no traceback, where its event is refused or its
    disk is full.
    """

    @functools.wraps(work)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R | State[Any]:
        try:
            return work(*args, **kwargs)
        except RefusedEventError as refused:
            get_run_logger().error("event not understood: %s", refused)
            return Failed(message=str(refused))
        except (OSError, ExceptionGroup) as error:
            if not is_of_surroundings(error):
                raise
            line = f"{describe(error)}; nothing is parked as failed: {SUGGESTIONS[kind_of(error)]}"
            get_run_logger().error(line)
            return Failed(message=line)

    return guarded


class RefusedEventError(EventError):
    """The event of a run cannot be understood, and people have been told."""


def run_name() -> str:
    """Return the name of the current run, from its event as far as that can be read."""
    parameters = flow_run.parameters or {}
    payload = parameters.get("event", parameters.get("payload"))
    fields: Any = payload.payload() if isinstance(payload, Event) else payload
    if not isinstance(fields, Mapping):
        return "event not understood"
    source = parameters.get("source")
    labels = source.get("resource", {}) if isinstance(source, Mapping) else {}
    project = fields.get("project_name") or (labels.get("project") if isinstance(labels, Mapping) else None)
    parts = [str(project or "unknown project")]
    if "payload" in parameters:
        parts.append("sample")
    elif fields.get("mosaic_id") is not None:
        parts.append(f"mosaic {fields['mosaic_id']}")
        if fields.get("batch_id") is not None:
            parts.append(f"batch {fields['batch_id']}")
    elif fields.get("slice_id") is not None:
        parts.append(f"slice {fields['slice_id']}")
    return " ".join(parts)


def _open(received: Received, parameters: Mapping[str, Any]) -> Project:
    settings = DeploymentSettings()
    registered = registered_parameters(received.project_name, overrides=parameters)
    config = config_of_received(received, registered, path_map=settings.path_map, overrides=parameters)
    return Project.open(
        config,
        deployment=settings,
        flow_run_id=flow_run.id,
        parameters=parameters,
        memory=memory_budget(settings),
    )


def _parameters(received: Received) -> Mapping[str, Any]:
    said = received.payload.get("parameters")
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise EventError(f"{received}: parameters: expected an object of project parameters, got {said!r}")
    return said


def _tell(received: Received, error: EventError, project: Project | None) -> None:
    """Tell people of an announcement that was refused: in the project where it is known, and at the server."""
    if project is not None:
        refused = refuse(project, received, error)
        logger = get_run_logger()
        notifier(project, say=logger.error, warn=logger.warning).tell([refusal(project, refused)])
    text = f"The event **{received.name}** (id `{received.id}`) could not be understood:\n\n> {error}\n"
    key = f"opticstream--{_ARTIFACT}" if project is None else artifact_key(project.config.name, _ARTIFACT)
    create_markdown_artifact(key=key, markdown=text, description=str(error))

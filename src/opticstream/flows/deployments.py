"""Which flow runs in which pool, and the deployments and triggers that follow; `started_by` has the events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.types.entrypoint import EntrypointType

from opticstream.flows import oct as flows
from opticstream.flows.events import SENDER
from opticstream.flows.started_by import STARTED_BY
from opticstream.flows.sweep import sweep
from opticstream.flows.vacuum import EVERY_S, vacuum
from opticstream.model.chain import STEPS
from opticstream.model.events import Event
from opticstream.pipeline.jobs import PROCESS_BATCH

TAG = "opticstream"
"""Tag by which deployments of this package are known at a server."""


@dataclass(frozen=True)
class Deployment:
    """One arrow of the event chain."""

    flow: Flow[..., Any]
    pool: str
    collapse: bool = False
    """Events of a project within the window share one run, which looks at the facts until the window has passed."""
    periodic: bool = False
    """Started every so often instead, where the worker is to sweep."""
    every_s: float | None = None
    """Time between two starts of a periodic one, in seconds; default: that between sweeps."""

    @property
    def name(self) -> str:
        return str(self.flow.name)

    @property
    def events(self) -> tuple[type[Event], ...]:
        """Events that start it."""
        return STARTED_BY.get(self.name, ())


def _computing(flow: Flow[..., Any], *, collapse: bool = False) -> Deployment:
    """Return the deployment of a flow that does steps of the chain, in their pool."""
    (pool,) = {step.pool for step in STEPS if step.flow == flow.name}
    return Deployment(flow, pool, collapse=collapse)


DEPLOYMENTS: tuple[Deployment, ...] = (
    _computing(flows.process_batch),
    Deployment(flows.process_tiles, PROCESS_BATCH.pool),
    Deployment(flows.batch_state, "state", collapse=True),
    _computing(flows.stitch_mosaic),
    _computing(flows.stitch_volume),
    Deployment(flows.slice_state, "state", collapse=True),
    _computing(flows.register_slice),
    _computing(flows.update_sample),
    _computing(flows.upload, collapse=True),
    Deployment(flows.notify, "state", collapse=True),
    Deployment(sweep, "state", periodic=True),
    Deployment(vacuum, "state", periodic=True, every_s=EVERY_S),
)

_ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)


def _as_json(expression: str) -> dict[str, Any]:
    """Return a parameter that the server fills with a part of the event, whatever is in it."""
    return {
        "__prefect_kind": "json",
        "value": {"__prefect_kind": "jinja", "template": f"{{{{ {expression} | tojson }}}}"},
    }


# A parameter that cannot be filled would make no run at all, and nobody would hear of the event: the flows look at the
# payload themselves, and find ids in the resource where the payload has none.
_PAYLOAD = _as_json("event.payload | default({}, true)")
_SOURCE = {
    "id": _as_json("event.id | string"),
    "occurred": "{{ event.occurred.isoformat() }}",
    "resource": _as_json("event.resource.root | default({}, true)"),
}


def trigger_of(deployment: Deployment, /, *, collapse_s: float) -> DeploymentEventTrigger:
    """Return the event trigger of a deployment, with the event mapped to the flow's parameters.

    A flow that one kind of event starts takes that event; one that several kinds start takes its name and payload.
    """
    names = {kind.event_name() for kind in deployment.events}
    window_s = collapse_s if deployment.collapse else 0.0
    shared = {
        "event_name": "{{ event.event }}",
        "payload": _PAYLOAD,
        "occurred": "{{ event.occurred.isoformat() }}",
        "window_s": window_s,
        "source": _SOURCE,
    }
    return DeploymentEventTrigger(
        name=f"{deployment.name} on {', '.join(sorted(names)) if len(names) < 2 else f'{len(names)} kinds of events'}",
        expect=names,
        # With a window, the first event starts a run at once and the others of the same project within the window are
        # swallowed; the run therefore looks again until the window is over. Events of other programs have windows of
        # their own, so that one that cannot be understood swallows none of ours.
        for_each={"project", SENDER} if deployment.collapse else set(),
        threshold=1,
        within=timedelta(seconds=window_s),
        parameters={"event": _PAYLOAD, "source": _SOURCE} if len(names) == 1 else shared,
    )


async def runner_deployments(*, collapse_s: float, sweep_s: float | None = None) -> list[RunnerDeployment]:
    """Return the Prefect deployments of all flows, each in its work pool.

    Parameters
    ----------
    collapse_s : float
        Window in which events share a run, in seconds.
    sweep_s : float, optional
        Time between two sweeps, in seconds; without it none are scheduled, because the process that feeds the project
        sweeps itself.
    """
    return [
        await deployment.flow.ato_deployment(
            name=deployment.name,
            description=(deployment.flow.description or "").split("\n")[0],
            triggers=[] if deployment.periodic else [trigger_of(deployment, collapse_s=collapse_s)],
            interval=(deployment.every_s or sweep_s) if deployment.periodic and sweep_s is not None else None,
            # A sweep that takes longer than the time between two: the next one would find the same.
            concurrency_limit=_ONE_AT_A_TIME if deployment.periodic else None,
            tags=[TAG],
            work_pool_name=deployment.pool,
            # A module path, not a file path: the flow is found wherever the package is installed.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        for deployment in DEPLOYMENTS
    ]


__all__ = ["DEPLOYMENTS", "TAG", "Deployment", "runner_deployments", "trigger_of"]

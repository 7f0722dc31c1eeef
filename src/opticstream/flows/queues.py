"""What waits or runs at the server: so that nothing is announced twice, and nobody leaves before the last run ends."""

from __future__ import annotations

import httpx
from prefect.settings import PREFECT_API_URL

from opticstream.flows.leftovers import queued_deployments, runs_of_project
from opticstream.model.events import Event


def is_queued(event: Event, /) -> bool:
    """Return whether a run of a flow that the event starts waits in the server's queue."""
    from opticstream.flows.deployments import DEPLOYMENTS

    started = {deployment.name for deployment in DEPLOYMENTS if type(event) in deployment.events}
    try:
        return bool(started & queued_deployments(str(PREFECT_API_URL.value())))
    except httpx.HTTPError:
        return True  # the server is busy or away; announcing would not reach it either


def unfinished_runs(project_name: str, /) -> list[str]:
    """Return the names of the flow runs of a project that wait or run; empty where the server does not answer."""
    try:
        return runs_of_project(str(PREFECT_API_URL.value()), project_name)
    except httpx.HTTPError:
        return []

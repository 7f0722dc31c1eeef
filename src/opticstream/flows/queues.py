"""Whether a run waits in the server's queue already, so that announcing its event again would only make another one."""

from __future__ import annotations

import httpx
from prefect.settings import PREFECT_API_URL

from opticstream.flows.leftovers import queued_deployments
from opticstream.model.events import Event


def is_queued(event: Event, /) -> bool:
    """Return whether a run of a flow that the event starts waits in the server's queue."""
    from opticstream.flows.deployments import DEPLOYMENTS

    started = {deployment.name for deployment in DEPLOYMENTS if type(event) in deployment.events}
    try:
        return bool(started & queued_deployments(str(PREFECT_API_URL.value())))
    except httpx.HTTPError:
        return True  # the server is busy or away; announcing would not reach it either

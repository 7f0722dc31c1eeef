"""Whether a run waits in the server's queue already, so that announcing its event again would only make another one."""

from __future__ import annotations

import base64

import httpx
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

from opticstream.flows.leftovers import queued_deployments
from opticstream.model.events import Event


def is_queued(event: Event, /) -> bool:
    """Return whether a run of a flow that the event starts waits in the server's queue."""
    from opticstream.flows.deployments import DEPLOYMENTS

    started = {deployment.name for deployment in DEPLOYMENTS if type(event) in deployment.events}
    try:
        return bool(started & queued_deployments(str(PREFECT_API_URL.value()), headers=_credentials()))
    except httpx.HTTPError:
        return True  # the server is busy or away; announcing would not reach it either


def _credentials() -> dict[str, str]:
    """Return the header by which a server that asks for it knows us, as Prefect's own clients send it."""
    if key := PREFECT_API_KEY.value():
        return {"Authorization": f"Bearer {_plain(key)}"}
    if password := PREFECT_API_AUTH_STRING.value():
        return {"Authorization": f"Basic {base64.b64encode(_plain(password).encode()).decode()}"}
    return {}


def _plain(secret: object) -> str:
    reveal = getattr(secret, "get_secret_value", None)
    return str(reveal() if reveal is not None else secret)

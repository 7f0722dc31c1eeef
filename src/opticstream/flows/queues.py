"""What waits or runs at the server: so that nothing is announced twice, and nobody leaves before the last run ends."""

from __future__ import annotations

import httpx
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

from opticstream.flows.leftovers import queued_deployments, runs_of_project
from opticstream.flows.started_by import flows_started_by
from opticstream.flows.surroundings import header_of
from opticstream.model.events import Event


def is_queued(event: Event, /) -> bool:
    """Return whether a run of a flow that the event starts waits in the server's queue."""
    try:
        queued = queued_deployments(str(PREFECT_API_URL.value()), headers=credentials())
    except httpx.HTTPError:
        return True  # the server is busy or away; announcing would not reach it either
    return not flows_started_by(type(event)).isdisjoint(queued)


def unfinished_runs(project_name: str, /) -> list[str]:
    """Return the names of the flow runs of a project that wait or run; empty where the server does not answer."""
    try:
        return runs_of_project(str(PREFECT_API_URL.value()), project_name, headers=credentials())
    except httpx.HTTPError:
        return []


def credentials() -> dict[str, str]:
    """Return the header by which a server that asks for it knows us, as Prefect's settings say."""
    return header_of(_plain(PREFECT_API_AUTH_STRING.value()), _plain(PREFECT_API_KEY.value()))


def _plain(secret: object) -> str | None:
    reveal = getattr(secret, "get_secret_value", None)
    value = reveal() if reveal is not None else secret
    return str(value) if value else None

"""Flow runs that an earlier life of a server or a worker has left: dead ones that look alive, and stale queue entries.

After a crash of an embedded server the flag files tell what is to be done, and the first sweep announces it. What the
old queue holds would only do the same again, so it is cancelled. Does not import Prefect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import httpx

from opticstream.flows.pool_state import api_client

_PAGE = 200
_OPEN_STATES = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]


def cancel_leftovers(api_url: str, /) -> int:
    """Mark every unfinished flow run of a server as cancelled and return how many there were.

    Only for a server without workers that belongs to this process alone.
    """
    cancelled = 0
    with api_client(api_url) as client:
        while True:
            query = {"flow_runs": {"state": {"type": {"any_": _OPEN_STATES}}}, "limit": 200}
            runs = client.post("/flow_runs/filter", json=query).raise_for_status().json()
            if not runs:
                return cancelled
            for run in runs:
                state = {"type": "CANCELLED", "message": "left over from a server that was stopped"}
                body = {"state": state, "force": True}
                client.post(f"/flow_runs/{run['id']}/set_state", json=body).raise_for_status()
                cancelled += 1


def crash_runs_of_workers(
    api_url: str,
    names: Collection[str],
    /,
    *,
    is_alive: Callable[[int], bool] | None = None,
    headers: Mapping[str, str] | None = None,
) -> list[str]:
    """Mark the unfinished flow runs of workers that have ended as crashed, and return their names.

    A worker that was killed cannot say so itself: without this its runs would stay ``Running`` for ever. What they were
    for goes on meanwhile, because leases of claims decide, not states of flow runs.

    Parameters
    ----------
    api_url : str
        The server.
    names : collection of str
        Names of the workers.
    is_alive : callable, optional
        Says of a process id whether that process lives, so that its run is left alone; by default none does.
    headers : mapping, optional
        Say who asks, where that matters.
    """
    crashed: list[str] = []
    if not names:
        return crashed
    with api_client(api_url, headers) as client:
        for run in list(_unfinished(client, ["PENDING", "RUNNING", "CANCELLING"])):
            worker = (run.get("labels") or {}).get("prefect.worker.name")
            pid = run.get("infrastructure_pid") or ""
            if worker not in names or (is_alive is not None and pid.isdigit() and is_alive(int(pid))):
                continue
            message = f"its worker {worker} has ended; another run takes the work up"
            body = {"state": {"type": "CRASHED", "message": message}, "force": True}
            client.post(f"/flow_runs/{run['id']}/set_state", json=body).raise_for_status()
            crashed.append(run["name"])
    return crashed


def lost_workers(api_url: str, pools: Iterable[str], /, *, headers: Mapping[str, str] | None = None) -> set[str]:
    """Return the names of the workers of some pools from which the server has heard nothing for a while."""
    with api_client(api_url, headers) as client:
        lost: set[str] = set()
        for pool in pools:
            query = {"workers": {"status": {"any_": ["OFFLINE"]}}}
            answer = client.post(f"/work_pools/{pool}/workers/filter", json=query)
            if answer.status_code != httpx.codes.NOT_FOUND:
                lost.update(worker["name"] for worker in answer.raise_for_status().json())
    return lost


def queued_deployments(api_url: str, /, *, headers: Mapping[str, str] | None = None) -> set[str]:
    """Return the names of deployments for which runs wait to be started; `headers` say who asks, where that matters."""
    with api_client(api_url, headers) as client:
        query = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "limit": 200}
        runs = client.post("/flow_runs/filter", json=query).raise_for_status().json()
        ids = sorted({run["deployment_id"] for run in runs if run.get("deployment_id")})
        if not ids:
            return set()
        query = {"deployments": {"id": {"any_": ids}}}
        found = client.post("/deployments/filter", json=query).raise_for_status().json()
        return {deployment["name"] for deployment in found}


def waiting_runs(
    api_url: str, pool: str, /, *, headers: Mapping[str, str] | None = None
) -> dict[str, tuple[object, ...]]:
    """Return the flow runs that wait to be started in a pool, by id, each with its project, mosaic and column.

    Project, mosaic and column are those that the event of the run names; None where it names none.
    """
    with api_client(api_url, headers) as client:
        query = {
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            "work_pools": {"name": {"any_": [pool]}},
            "limit": 50,
        }
        runs = client.post("/flow_runs/filter", json=query).raise_for_status().json()
    found: dict[str, tuple[object, ...]] = {}
    for run in runs:
        event = (run.get("parameters") or {}).get("event") or {}
        named = event if isinstance(event, dict) else {}
        found[str(run["id"])] = (project_of(run), named.get("mosaic_id"), named.get("batch_id"))
    return found


def runs_of_project(api_url: str, project_name: str, /, *, headers: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of the flow runs that events of a project have started and that have not ended."""
    with api_client(api_url, headers) as client:
        return [run["name"] for run in _unfinished(client, _OPEN_STATES) if project_of(run) == project_name]


def project_of(run: Mapping[str, Any], /) -> object:
    """Return the name of the project whose event has started a flow run; None where it names none."""
    parameters = run.get("parameters") or {}
    payload = parameters.get("payload") or parameters.get("event") or {}
    return payload.get("project_name") if isinstance(payload, dict) else None


def _unfinished(client: httpx.Client, states: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the flow runs in some states."""
    for offset in range(0, 100_000, _PAGE):
        query = {"flow_runs": {"state": {"type": {"any_": states}}}, "limit": _PAGE, "offset": offset}
        runs = client.post("/flow_runs/filter", json=query).raise_for_status().json()
        yield from runs
        if len(runs) < _PAGE:
            return

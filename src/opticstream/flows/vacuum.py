"""What a server keeps too long is removed: earlier versions of artifacts, and on demand whatever is old.

Prefect's own background service removes old flow runs, their logs and artifacts, and old events, every hour
(`server.settings_of_retention`). It leaves earlier versions of artifacts, artifacts that were made outside a flow run,
and the runs of sweeps, of which there is one a minute. These are removed here, through the server's API. Variables,
which hold the state of projects, and runs that have not ended are not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, get_run_logger

from opticstream.config import DeploymentSettings
from opticstream.flows.prefect_state import PrefectApi

EVERY_S = 3600.0
"""Time between two vacuums by a flow run, in seconds."""
ROUTINE_DAYS = 1.0
"""How long the runs of sweeps and vacuums are kept, in days; those that have failed are kept as long as any other."""
_ROUTINE = ("sweep", "vacuum")
_LAST = "opticstream--vacuum"
"""Variable that holds when the last vacuum began, so that the next one looks at newer artifacts only."""
_RUNS_AT_A_TIME = 50
_ARTIFACTS_AT_A_TIME = 20  # each may hold a picture
_OVERLAP = timedelta(minutes=5)
_ENDED = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


@dataclass(frozen=True)
class Vacuumed:
    """How much a vacuum has removed."""

    flow_runs: int
    artifacts: int
    artifact_versions: int

    def as_dict(self) -> dict[str, int]:
        """Return it for `--json`."""
        return asdict(self)


@flow(name="vacuum")
def vacuum() -> None:
    """Remove earlier versions of artifacts, and what is older than the server's retention."""
    settings = DeploymentSettings()
    done = vacuum_server(days=settings.retention_days, versions=settings.artifact_versions, since_last=True)
    if any(done.as_dict().values()):
        get_run_logger().info(
            "removed %d flow runs, %d artifacts and %d earlier versions of artifacts",
            done.flow_runs,
            done.artifacts,
            done.artifact_versions,
        )


def vacuum_server(*, days: float, versions: int, since_last: bool = False, api: PrefectApi | None = None) -> Vacuumed:
    """Remove from the server what is old, and say how much.

    Parameters
    ----------
    days : float
        Flow runs that ended, and artifacts that were made, longer ago are removed. Logs go with their runs.
    versions : int
        Versions of an artifact that stay: the latest ones.
    since_last : bool
        Look for earlier versions only of artifacts that were made since the last vacuum.

    api : PrefectApi, optional
        Where the server is.

    Raises
    ------
    ServerError
        The server did not answer. What was removed stays removed; the next vacuum goes on.
    """
    api = api or PrefectApi()
    began = datetime.now(UTC)
    before = began - timedelta(days=days)
    runs = _remove_runs(api, {"end_time": {"before_": before.isoformat()}, "state": {"type": {"any_": _ENDED}}})
    routine = (began - timedelta(days=min(days, ROUTINE_DAYS))).isoformat()
    runs += _remove_runs(
        api,
        {"end_time": {"before_": routine}, "state": {"type": {"any_": ["COMPLETED", "CANCELLED"]}}},
        {"name": {"any_": list(_ROUTINE)}},
    )
    last = _last(api) if since_last else None
    earlier = _remove_versions(api, versions, None if last is None else last - _OVERLAP)
    old = _remove_artifacts(api, before)
    _remember(api, began)
    return Vacuumed(runs, old, earlier)


def _remove_runs(api: PrefectApi, which: dict[str, Any], flows: dict[str, Any] | None = None) -> int:
    removed = 0
    while True:
        chosen = which
        if flows is not None:
            body = {"flow_runs": which, "flows": flows, "limit": _RUNS_AT_A_TIME}
            ids = [run["id"] for run in api.call("POST", "/flow_runs/filter", body).json()]
            if not ids:
                return removed
            chosen = which | {"id": {"any_": ids}}
        answer = api.call("POST", "/flow_runs/bulk_delete", {"flow_runs": chosen, "limit": _RUNS_AT_A_TIME}).json()
        if not answer["deleted"]:
            return removed
        removed += len(answer["deleted"])


def _remove_versions(api: PrefectApi, versions: int, since: datetime | None) -> int:
    """Remove all but the latest versions of artifacts of which one was made since some time."""
    removed = 0
    for key in _keys(api, since):
        which = {"artifacts": {"key": {"any_": [key]}}}
        count = api.call("POST", "/artifacts/count", which).json()
        while count > versions:
            page = {**which, "sort": "CREATED_DESC", "offset": versions, "limit": _ARTIFACTS_AT_A_TIME}
            found = api.call("POST", "/artifacts/filter", page).json()
            removed += _delete(api, found)
            count -= len(found)
            if not found:
                break
    return removed


def _keys(api: PrefectApi, since: datetime | None) -> list[str]:
    """Return the keys of the artifacts that were made since some time, of all where it is None."""
    keys: dict[str, None] = {}
    for artifact in _latest_first(api, "/artifacts/latest/filter"):
        if since is not None and _made(artifact, "updated") < since and _made(artifact, "created") < since:
            break
        if artifact.get("key"):
            keys[artifact["key"]] = None
    return list(keys)


def _remove_artifacts(api: PrefectApi, before: datetime) -> int:
    """Remove artifacts that were made before some time, the oldest first, unless their run has not ended."""
    removed, kept = 0, 0
    while True:
        count = api.call("POST", "/artifacts/count", {"artifacts": {}}).json() - kept
        offset = max(0, count - _ARTIFACTS_AT_A_TIME)
        if count <= 0:
            return removed
        page = {"sort": "CREATED_DESC", "offset": offset, "limit": count - offset}
        found = api.call("POST", "/artifacts/filter", page).json()
        old = [artifact for artifact in found if _made(artifact, "created") < before]
        running = _running(api, {artifact["flow_run_id"] for artifact in old if artifact.get("flow_run_id")})
        gone = [artifact for artifact in old if artifact.get("flow_run_id") not in running]
        removed += _delete(api, gone)
        kept += len(old) - len(gone)
        if len(old) < len(found) or not found:
            return removed


def _running(api: PrefectApi, ids: set[str]) -> set[str]:
    """Return which flow runs have not ended."""
    if not ids:
        return set()
    body = {"flow_runs": {"id": {"any_": sorted(ids)}, "state": {"type": {"not_any_": _ENDED}}}}
    return {run["id"] for run in api.call("POST", "/flow_runs/filter", body).json()}


def _latest_first(api: PrefectApi, path: str) -> Iterator[dict[str, Any]]:
    offset = 0
    while True:
        body = {"sort": "UPDATED_DESC", "offset": offset, "limit": _ARTIFACTS_AT_A_TIME}
        found = api.call("POST", path, body).json()
        yield from found
        if len(found) < _ARTIFACTS_AT_A_TIME:
            return
        offset += len(found)


def _delete(api: PrefectApi, artifacts: list[dict[str, Any]]) -> int:
    for artifact in artifacts:
        api.call("DELETE", f"/artifacts/{artifact['id']}", also={404})
    return len(artifacts)


def _made(artifact: dict[str, Any], what: str) -> datetime:
    return datetime.fromisoformat(artifact[what])


def _last(api: PrefectApi) -> datetime | None:
    answer = api.call("GET", f"/variables/name/{_LAST}", also={404})
    try:
        return datetime.fromisoformat(answer.json()["value"]) if answer.status_code != 404 else None
    except (KeyError, TypeError, ValueError):
        return None


def _remember(api: PrefectApi, when: datetime) -> None:
    value = {"value": when.isoformat()}
    if api.call("PATCH", f"/variables/name/{_LAST}", value, also={404}).status_code == 404:
        api.call("POST", "/variables/", {"name": _LAST, **value}, also={409})

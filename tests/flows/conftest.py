"""A worker that runs flow runs in threads of its own process, for tests.

Server, triggers and flows are the real ones; only the seconds that a fresh interpreter costs are saved.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from opticstream.config import DeploymentSettings
from opticstream.flows.deploying import deploy
from opticstream.flows.deployments import DEPLOYMENTS
from opticstream.flows.events import announce_automatically
from opticstream.flows.queues import is_queued
from opticstream.pipeline.project import Project
from opticstream.pipeline.sweep import Sweeper


def ask_again_if_busy(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask a server, again if it is too busy: on SQLite it says 503 now and then."""
    for attempt in range(10):
        try:
            answer = http.request(method, path, json=body)
            if answer.status_code < 500:
                return answer.raise_for_status().json() if answer.content else None
        except httpx.TransportError:
            if attempt == 9:
                raise
        time.sleep(0.3 * (attempt + 1))
    raise AssertionError(f"{method} {path}: the server stayed busy")


class InlineWorker:
    """Registers all deployments at a server and runs what their triggers schedule, until it is stopped.

    Parameters
    ----------
    api_url : str
        The server.
    collapse_s : float
        Window in which state runs share a run, in seconds.
    """

    def __init__(self, api_url: str, /, *, collapse_s: float = 3.0) -> None:
        self.api_url = api_url
        self.collapse_s = collapse_s
        self.errors: list[str] = []
        self._deployments: dict[str, uuid.UUID] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._taken: set[uuid.UUID] = set()
        self._http = httpx.Client(base_url=api_url, timeout=30)

    def __enter__(self) -> InlineWorker:
        import asyncio

        async def register() -> None:
            settings = DeploymentSettings(collapse_s=self.collapse_s)
            self._deployments.update((await deploy(settings, sweeps=False)).ids)

        with temporary_settings({PREFECT_API_URL: self.api_url}):
            asyncio.run(register())
        self._poller = threading.Thread(target=self._poll, daemon=True)
        self._poller.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._poller.join()
        for thread in self._threads:
            thread.join()
        self._http.close()

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """Ask the server."""
        return ask_again_if_busy(self._http, method, path, body)

    def set_enabled(self, deployment: str, enabled: bool, /) -> None:
        """Turn the trigger of a deployment on or off."""
        for automation in self._ask("POST", "/automations/filter", {}):
            if automation["actions"][0].get("deployment_id") == str(self._deployments[deployment]):
                body = {"enabled": enabled}
                self._ask("PATCH", f"/automations/{automation['id']}", body)
                return
        raise AssertionError(f"{deployment} has no trigger")

    def triggered_deployments(self) -> set[str]:
        """Return the ids of the deployments that have a trigger."""
        return {str(self._deployments[deployment.name]) for deployment in DEPLOYMENTS if deployment.events}

    def flow_runs(self) -> list[dict[str, Any]]:
        """Return all flow runs that the server knows."""
        return self._all("/flow_runs/filter")

    def artifacts(self, *, of: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """Return all artifacts that the server knows, or those of some flow runs; the oldest first."""
        found = self._all("/artifacts/filter")
        own = None if of is None else {run["id"] for run in of}
        chosen = [artifact for artifact in found if own is None or artifact["flow_run_id"] in own]
        return sorted(chosen, key=lambda artifact: str(artifact["created"]))

    def logs(self) -> list[dict[str, Any]]:
        """Return all lines of the logs that the server keeps."""
        return self._all("/logs/filter", sort="TIMESTAMP_ASC")

    def events(self, name: str, /, *, project: str) -> list[dict[str, Any]]:
        """Return the latest events of a name and a project."""
        chosen = {"event": {"name": [name]}, "resource": {"labels": {"project": [project]}}}
        found: list[dict[str, Any]] = self._ask("POST", "/events/filter", {"filter": chosen, "limit": 50})["events"]
        return found

    def _all(self, path: str, sort: str = "ID_DESC") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while page := self._ask("POST", path, {"limit": 200, "offset": len(found), "sort": sort}):
            found += page
        return found

    def wait_until(
        self, done: Callable[[], bool], /, *, sweeps: Project | None = None, timeout_s: float = 900.0
    ) -> None:
        """Wait until something has come true.

        Parameters
        ----------
        done : callable
            Returns whether it has.
        sweeps : Project, optional
            Swept meanwhile, as by who feeds it: a server that is too busy to start the run of a trigger loses it.
        timeout_s : float
            How long to wait at most, in seconds.

        Raises
        ------
        AssertionError
            It did not in time.
        """
        end = time.monotonic() + timeout_s
        sweeper = None if sweeps is None else Sweeper(sweeps, 30.0, announce_automatically, is_queued)
        while not done():
            if sweeper is not None:
                with temporary_settings({PREFECT_API_URL: self.api_url}):
                    sweeper.sweep()
            if time.monotonic() > end:
                raise AssertionError(f"not within {timeout_s:g} s; errors: {self.errors}")
            time.sleep(0.5)

    def wait_until_quiet(self, *, quiet_s: float = 2.5, timeout_s: float = 900.0) -> None:
        """Wait until nothing has run or waited for some seconds."""
        since = [time.monotonic()]

        def quiet() -> bool:
            # Counted at the server: to send all runs of all tests before, twice a second, keeps it from anything else.
            unfinished = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}}
            if self._ask("POST", "/flow_runs/count", unfinished) or any(thread.is_alive() for thread in self._threads):
                since[0] = time.monotonic()
            return time.monotonic() - since[0] > quiet_s

        self.wait_until(quiet, timeout_s=timeout_s)

    def _poll(self) -> None:
        flows = {deployment.name: deployment.flow for deployment in DEPLOYMENTS}
        with temporary_settings({PREFECT_API_URL: self.api_url}), get_client(sync_client=True) as client:
            names = {id_: name for name, id_ in self._deployments.items()}
            while not self._stop.wait(0.4):
                try:
                    self._start_scheduled(client, flows, names)
                except (httpx.HTTPError, AssertionError):
                    continue  # a busy server; the next round asks again

    def _start_scheduled(self, client: Any, flows: dict[str, Any], names: dict[uuid.UUID, str]) -> None:
        body = {"deployment_ids": [str(id_) for id_ in names], "limit": 50}
        for found in self._ask("POST", "/deployments/get_scheduled_flow_runs", body):
            run = client.read_flow_run(uuid.UUID(found["id"]))
            if run.id in self._taken or run.deployment_id is None:
                continue
            self._taken.add(run.id)
            flow = flows[names[run.deployment_id]]
            thread = threading.Thread(target=self._run, args=(flow, run), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, flow: Any, run: Any) -> None:
        try:
            with temporary_settings({PREFECT_API_URL: self.api_url}):
                run_flow(flow, flow_run=run, parameters=run.parameters)
        except Exception as error:
            self.errors.append(f"{flow.name}: {type(error).__name__}: {error}")


@pytest.fixture(scope="module")
def worker(prefect_server: str) -> Iterator[InlineWorker]:
    """A worker for all pools of the tests' own server."""
    with InlineWorker(prefect_server) as worker:
        yield worker

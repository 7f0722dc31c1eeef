"""The worker type of our pools: Prefect's process worker, with flow runs forked from a warm process.

Prefect finds it by the entry point group ``prefect.collections``. Polling, logs, heartbeats, cancellation, exit codes,
environment and working folder are Prefect's own: only the command that a flow run begins with is ours, and that is part
of the job configuration of a process worker. Where there is no warm process, the command is that of a process worker.
"""

from __future__ import annotations

import os
import shlex
from typing import Any

import anyio
import httpx
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from opticstream.flows.pools import POOL_TYPE
from opticstream.flows.surroundings import refusal
from opticstream.flows.warm import LAUNCHER_VARIABLE
from opticstream.model.errors import ServerError

_WAIT_S = 5.0
"""Wait after the server has not answered, in seconds."""
_ASK_ANYWAY_S = 5.0
"""Time between two queries for runs of which no event told: scheduled for a time that has come, or lost, in seconds."""


class WarmJobConfiguration(ProcessJobConfiguration):
    """What a flow run starts with."""

    def prepare_for_flow_run(self, *run: Any, **related: Any) -> None:
        """Fill in what depends on the run, as a process worker does; the command first, unless the pool names one."""
        launcher = os.environ.get(LAUNCHER_VARIABLE)
        if self.command is None and launcher:
            self.command = shlex.join([launcher, "-m", "prefect.engine"])
        super().prepare_for_flow_run(*run, **related)


class WarmWorker(ProcessWorker):
    """A process worker of which flow runs start without importing anything.

    It waits for a server that is away, however long: Prefect's ends after a minute and a half, and its runs with it.
    """

    type = POOL_TYPE
    job_configuration = WarmJobConfiguration
    _description = "Runs flow runs as processes that are forked from one that has everything imported and compiled."
    _display_name = "OpticStream"
    _is_cut_off = False
    is_told = False
    """Whether somebody says when there is something to ask for (`announced_runs.py`)."""
    poll_s = 0.0
    """Wait between two queries for runs while nobody does, beside that of `PREFECT_WORKER_QUERY_SECONDS`, in s."""
    _told: anyio.Event | None = None

    async def _worker_metadata(self) -> None:
        """Say nothing of the packages that are installed here, which only Prefect's cloud shows.

        Prefect reads the metadata of every installed package for it, for each worker that connects: of five workers in
        one process, 1 to 2 s of processor time before the first of them asks for a run. Where another Prefect does not
        ask this method, it is as slow as by itself.
        """

    def tell(self) -> None:
        """Let the next query for runs be now."""
        if self._told is not None:
            self._told.set()

    async def _wait_for_runs(self) -> None:
        if self._told is not None:
            with anyio.move_on_after(max(self.poll_s, _ASK_ANYWAY_S) if self.is_told else self.poll_s):
                await self._told.wait()
        self._told = anyio.Event()  # what is told from now on calls for another query

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Start what is scheduled; nothing while the server does not answer."""
        await self._wait_for_runs()
        try:
            found = await super().get_and_submit_flow_runs()
        except httpx.HTTPError as error:
            await self._wait(error)
            return []
        if self._is_cut_off:
            self._is_cut_off = False
            self._logger.info("the server answers again")
        return found

    async def sync_with_backend(self) -> None:
        """Tell the server that this worker lives, when it answers."""
        try:
            await super().sync_with_backend()
        except httpx.HTTPError as error:
            await self._wait(error)

    async def _wait(self, error: httpx.HTTPError) -> None:
        if isinstance(error, httpx.HTTPStatusError):
            url = str(error.request.url.copy_with(path="/api", query=None))
            if message := refusal(error.response.status_code, url):
                raise ServerError(message) from None  # waiting cannot help
        if not self._is_cut_off:
            self._is_cut_off = True
            self._logger.warning("the server does not answer (%s: %s); waiting", type(error).__name__, error)
        await anyio.sleep(_WAIT_S)

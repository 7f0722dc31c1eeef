"""The worker type of our pools: Prefect's process worker, with flow runs forked from a warm process.

Prefect finds it by the entry point group ``prefect.collections``. Polling, logs, heartbeats, cancellation, exit codes,
environment and working folder are Prefect's own: only the command that a flow run begins with is ours, and that is part
of the job configuration of a process worker. Where there is no warm process, the command is that of a process worker.
"""

from __future__ import annotations

import os
import shlex
from typing import Any

from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

LAUNCHER_VARIABLE = "OPTICSTREAM_WARM_LAUNCHER"
"""Set in the process of a worker that has a warm process: the program that stands in for an interpreter."""


class WarmJobConfiguration(ProcessJobConfiguration):
    """What a flow run starts with."""

    def prepare_for_flow_run(self, *run: Any, **related: Any) -> None:
        """Fill in what depends on the run, as a process worker does; the command first, unless the pool names one."""
        launcher = os.environ.get(LAUNCHER_VARIABLE)
        if self.command is None and launcher:
            self.command = shlex.join([launcher, "-m", "prefect.engine"])
        super().prepare_for_flow_run(*run, **related)


class WarmWorker(ProcessWorker):
    """A process worker of which flow runs start without importing anything."""

    type = "opticstream"
    job_configuration = WarmJobConfiguration
    _description = "Runs flow runs as processes that are forked from one that has everything imported and compiled."
    _display_name = "OpticStream"

"""Workers: one process that serves the flows of some pools, each pool with its own limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from prefect.runner import Runner

from opticstream.config import DeploymentSettings
from opticstream.flows.deployments import POOLS, runner_deployments
from opticstream.flows.warm import warm_starts
from opticstream.system.places import can_run_programs

NO_SWEEP = "--no-sweep"
"""Argument of the process that says that its starter sweeps itself."""
_QUERY_S = 1.0
"""Time between two questions for scheduled runs, in seconds."""


def pool_limits(settings: DeploymentSettings, /) -> dict[str, int]:
    """Return how many runs of each pool this host takes at a time."""
    return {pool: int(getattr(settings, f"{pool}_limit")) for pool in POOLS}


async def serve_pools(pools: Iterable[str], settings: DeploymentSettings, /, *, sweeps: bool = True) -> None:
    """Register the deployments of some pools and run what is scheduled for them, until cancelled.

    Without `sweeps` none are scheduled: the process that feeds the project sweeps itself.
    """
    sweep_s = settings.sweep_s if sweeps else None
    limits = pool_limits(settings)
    runners = []
    for pool in pools:
        runner = Runner(name=f"opticstream-{pool}", limit=limits[pool], query_seconds=_QUERY_S, pause_on_shutdown=False)
        for deployment in await runner_deployments(pool, collapse_s=settings.collapse_s, sweep_s=sweep_s):
            await runner.aadd_deployment(deployment)
        runners.append(runner)
    _say("ready")
    await asyncio.gather(*(runner.start() for runner in runners))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _launcher_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the launcher of warm starts: one where programs may run, with a short path for a socket."""
    for parent in (None, os.getcwd()):
        try:
            folder = tempfile.TemporaryDirectory(prefix="opticstream-", dir=parent)
        except OSError:
            continue
        if can_run_programs(Path(folder.name)):
            return folder
        folder.cleanup()
    return tempfile.TemporaryDirectory(prefix="opticstream-", dir=os.getcwd())


def main(pools: Sequence[str] = (), *, sweeps: bool = True) -> None:
    """Serve pools, all of them if none is named, until the process is told to end."""
    chosen = list(pools or POOLS)
    if unknown := sorted(set(chosen) - set(POOLS)):
        raise SystemExit(f"there is no pool {unknown}; pools are {', '.join(POOLS)}")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with (
        contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError),
        _launcher_folder() as folder,
        warm_starts(Path(folder)),
    ):
        asyncio.run(serve_pools(chosen, DeploymentSettings(), sweeps=sweeps))


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != NO_SWEEP], sweeps=NO_SWEEP not in sys.argv)

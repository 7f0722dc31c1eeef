"""Workers: one process that serves some work pools, each as a Prefect worker of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from prefect.logging import get_logger
from prefect.settings import PREFECT_API_URL, PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect.workers.process import ProcessWorker

from opticstream.config import DeploymentSettings
from opticstream.flows.announced_runs import tell_workers
from opticstream.flows.deploying import deploy
from opticstream.flows.leftovers import crash_runs_of_workers
from opticstream.flows.pool_state import check_pools, tell_of_pauses, until_answered
from opticstream.flows.pools import POOLS
from opticstream.flows.queues import credentials
from opticstream.flows.server import HOME_VARIABLE
from opticstream.flows.session import GO
from opticstream.flows.vacuum import EVERY_S, vacuum_server
from opticstream.flows.warm import warm_starts
from opticstream.flows.worker_type import WarmWorker
from opticstream.model.errors import ConfigurationError, ServerError
from opticstream.system.cores import start_with_one_blas_thread
from opticstream.system.host import HostIdentity, process_exists
from opticstream.system.locks import FileLock, try_lock
from opticstream.system.memory import start_with_few_arenas
from opticstream.system.places import can_run_programs

_LEAST_WAIT_S = 0.1
"""Least wait between two queries for runs of one pool, in seconds, however many runs are announced."""
NO_SWEEP = "--no-sweep"
"""Argument of the process that says that its starter sweeps itself."""


def checked_pools(names: Sequence[str], /) -> list[str]:
    """Return the pools that are named, also several in one word with commas between them; all where none is named.

    Raises
    ------
    ConfigurationError
        There is no pool of such a name.

    Examples
    --------
    >>> checked_pools(["tile,stitch", "upload"])
    ['tile', 'stitch', 'upload']
    """
    chosen = [name.strip() for names_ in names for name in names_.split(",") if name.strip()] or list(POOLS)
    if unknown := sorted(set(chosen) - set(POOLS)):
        raise ConfigurationError(f"--pool {', '.join(unknown)}: no such pool; pools are {', '.join(POOLS)}")
    return list(dict.fromkeys(chosen))


def worker_name(pool: str, home: Path, /) -> str:
    """Return the name by which people know the worker of a pool, of a home on this host.

    Two homes on one host have workers of two names: Prefect would take workers of one name for one.
    """
    mark = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:4]
    return f"{HostIdentity.current().host} {pool} {mark}".replace("/", "-").replace("%", "-")


async def serve_pools(
    pools: Sequence[str], settings: DeploymentSettings, /, *, home: Path, limit: int | None = None
) -> None:
    """Run what is scheduled in some pools, until this is cancelled or the process is told to end.

    Parameters
    ----------
    pools : sequence of str
        Of `POOLS`.
    settings : DeploymentSettings
        Whether starts are warm.
    home : Path
        Folder of our settings on this host.
    limit : int, optional
        Flow runs of each pool at a time on this host; by default only the pool's own limit holds.

    Raises
    ------
    ServerError
        The server has no such pool, or one of another type.
    """
    api_url, say = str(PREFECT_API_URL.value()), get_logger("opticstream").warning
    check_pools(pools, api_url, headers=credentials(), say=say)
    kind = WarmWorker if settings.warm_starts else ProcessWorker
    workers = [
        kind(pool, name=worker_name(pool, home), limit=limit, prefetch_seconds=0, create_pool_if_not_found=False)
        for pool in pools
    ]
    names = {worker.name for worker in workers}
    crash = partial(crash_runs_of_workers, api_url, names, is_alive=process_exists, headers=credentials())
    until_answered(crash, api_url, headers=credentials(), say=say)
    _say("ready")
    warm = {pool: worker for pool, worker in zip(pools, workers, strict=True) if isinstance(worker, WarmWorker)}
    for worker in warm.values():
        worker.poll_s = PREFECT_WORKER_QUERY_SECONDS.value()
    pauses = asyncio.create_task(tell_of_pauses(pools, api_url, headers=credentials(), say=say))
    with temporary_settings({PREFECT_WORKER_QUERY_SECONDS: _LEAST_WAIT_S}) if warm else nullcontext():
        task = asyncio.gather(
            *(worker.start(printer=_ignored) for worker in workers), *([tell_workers(warm)] if warm else [])
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await task
        finally:
            pauses.cancel()


def _ignored(*_words: object) -> None:
    pass


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


@contextmanager
def _started_warm(settings: DeploymentSettings) -> Iterator[None]:
    if not settings.warm_starts:
        yield
        return
    with _launcher_folder() as folder, warm_starts(Path(folder)):
        yield


@contextmanager
def _only_worker_of(pools: Sequence[str], home: Path) -> Iterator[None]:
    """Keep a second worker of this home off the same pools: Prefect would take the two for one.

    Other hosts may share the home, as where accounts have one home folder on all of them.

    Raises
    ------
    ServerError
        Another process serves one of the pools.
    """
    locks: list[FileLock] = []
    try:
        for pool in pools:
            lock = try_lock(home / f"worker-{socket.gethostname()}-{pool}.lock".replace("/", "-"))
            if lock is None:
                raise ServerError(
                    f"pool {pool} is served by another worker of {home} on this host; end that one first, or give this "
                    "one another OPTICSTREAM_HOME"
                )
            locks.append(lock)
        yield
    finally:
        for lock in locks:
            lock.release()


def _poll_setting(settings: DeploymentSettings) -> AbstractContextManager[object]:
    """Let workers ask for runs as often as our settings say, unless Prefect's own variable is set."""
    if "PREFECT_WORKER_QUERY_SECONDS" in os.environ:
        return nullcontext()
    return temporary_settings({PREFECT_WORKER_QUERY_SECONDS: settings.worker_poll_s})


@contextmanager
def _prepared(pools: Sequence[str], settings: DeploymentSettings, home: Path) -> Iterator[None]:
    """Let this process, and no other of this home, be the worker of some pools; flow runs begin to load meanwhile."""
    start_with_one_blas_thread()
    start_with_few_arenas()
    with _only_worker_of(pools, home), _started_warm(settings), _poll_setting(settings):
        yield


def serve(pools: Sequence[str], settings: DeploymentSettings, /, *, home: Path, limit: int | None = None) -> None:
    """Serve pools until the process is told to end; `limit` as in `serve_pools`.

    Raises
    ------
    ServerError
        A pool is missing at the server, or another worker of this home serves it.
    """
    with _until_ended(), _prepared(pools, settings, home):
        asyncio.run(serve_pools(pools, settings, home=home, limit=limit))


@contextmanager
def _until_ended() -> Iterator[None]:
    """Let a process end quietly when it is told to, and with what ended its workers otherwise."""
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        try:
            yield
        except BaseExceptionGroup as group:
            raise first_server_error(group) or group from None


def first_server_error(error: BaseException, /) -> ServerError | None:
    """Return what ended the workers, from among what ended with it."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := first_server_error(inner))), None)
    return error if isinstance(error, ServerError) else None


def _vacuum_now_and_then(settings: DeploymentSettings) -> None:
    """Remove what the embedded server keeps too long, where no schedule does it."""
    while True:
        time.sleep(EVERY_S)
        with contextlib.suppress(ServerError):
            vacuum_server(days=settings.retention_days, versions=settings.artifact_versions, since_last=True)


def main() -> None:
    """Deploy to an embedded server and serve all its pools, when the session that starts this process lets it."""
    settings, home = DeploymentSettings(), Path(os.environ[HOME_VARIABLE])
    sweeps = NO_SWEEP not in sys.argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # what was begun is put away
    with _until_ended(), _prepared(POOLS, settings, home):
        if sys.stdin.buffer.readline() != GO:  # the session has ended
            return
        asyncio.run(deploy(settings, sweeps=sweeps))
        if not sweeps:
            threading.Thread(target=_vacuum_now_and_then, args=(settings,), daemon=True).start()
        asyncio.run(serve_pools(POOLS, settings, home=home))


if __name__ == "__main__":
    main()

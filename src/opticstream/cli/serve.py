"""`up`, `server` and `worker`: the long-running processes, on one machine or on several."""

from __future__ import annotations

import os
import sys
import time
from typing import Annotated

import typer

from opticstream.cli.console import err, errors_shown, out, styled
from opticstream.cli.run import HomeOption
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ServerError


def up(home: HomeOption = None) -> None:
    """Run a server with its web page, and workers for all pools, on this machine until Ctrl-C.

    Set OPTICSTREAM_API_URL to the address that is printed, so that other commands use this server.
    """
    from opticstream.flows.session import local_session

    with errors_shown():
        settings = DeploymentSettings()

        def say(line: str) -> None:
            err.print(styled(line, "dim"))

        with local_session(home or settings.home, ui=True, sweeps=True, say=say) as session:
            out.print(f"web page  {session.api_url.removesuffix('/api')}")
            out.print(f"address   OPTICSTREAM_API_URL={session.api_url}")
            out.print("Ctrl-C stops everything")
            while True:
                session.check()
                time.sleep(1)


def server(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 4200,
) -> None:
    """Run a Prefect server in the foreground, for workers on several hosts.

    The database and the message broker are set with Prefect's own environment variables; see Prefect's documentation.
    """
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", str(port)]
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED", "false")
    os.execv(sys.executable, command)


def worker(
    pools: Annotated[
        list[str], typer.Option("--pool", help="Pool to serve, may be repeated. Default: all pools.")
    ] = [],  # noqa: B006
) -> None:
    """Run flows on this host for the server at OPTICSTREAM_API_URL, from all pools or those that are named.

    Pools: tile, stitch, register, upload, state.
    """
    from opticstream.flows.server import is_healthy
    from opticstream.flows.surroundings import client_environment, keep_off_proxies, prepared_home

    with errors_shown():
        settings = DeploymentSettings()
        if not settings.api_url or not is_healthy(settings.api_url):
            raise ServerError(
                f"OPTICSTREAM_API_URL = {settings.api_url}: no Prefect server answers there; "
                "start one with `opticstream server`"
            )
        home = prepared_home(settings.home)
        keep_off_proxies(os.environ, settings.api_url)
        os.environ.update(client_environment(home, settings.api_url))
        from opticstream.flows.workers import main

        main(pools)

"""`up`, `deploy` and `worker`: the long-running processes, on one machine or on several."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from opticstream.cli.connecting import check_configured_server, connect, point_at_server
from opticstream.cli.console import JsonOption, err, errors_shown, out, print_json, styled
from opticstream.cli.dashboard import PORT, TokenOption, dashboard_beside
from opticstream.cli.figures import metrics_shown, registered
from opticstream.cli.run import HomeOption
from opticstream.config import DeploymentSettings
from opticstream.config.deployment import variable_of
from opticstream.model.errors import ConfigurationError


def up(
    project: Annotated[
        str | None,
        typer.Argument(help="Project file (TOML) to show in the dashboard; default: no dashboard.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option("--dashboard-port", min=0, max=65535, help="Port of the dashboard.")] = PORT,
    token_file: TokenOption = None,
    home: HomeOption = None,
) -> None:
    """Run a server with its web page, workers for all pools, and a project's dashboard on this machine until Ctrl-C.

    Set OPTICSTREAM_API_URL to the address that is printed, so that other commands use this server.
    """
    from opticstream.flows.session import local_session

    with errors_shown():
        settings = DeploymentSettings()

        def say(line: str) -> None:
            err.print(styled(line, "dim"))

        with (
            local_session(home or settings.home, ui=True, sweeps=True, say=say) as session,
            metrics_shown(settings, registered),
        ):
            out.print(f"web page  {session.api_url.removesuffix('/api')}")
            out.print(f"address   OPTICSTREAM_API_URL={session.api_url}")
            if project is None:
                out.print("dashboard  opticstream dashboard PROJECT")
            out.print("Ctrl-C stops everything")
            with dashboard_beside(project, port, token_file, api_url=session.api_url):
                while True:
                    session.check()
                    time.sleep(1)


def deploy(
    as_json: JsonOption = False,
    yaml: Annotated[
        Path | None,
        typer.Option("--yaml", help="Write a file for `prefect deploy --all` instead, and touch no server."),
    ] = None,
) -> None:
    """Bring work pools, deployments and triggers of the server at OPTICSTREAM_API_URL up to date with this package.

    Once after each installation of another version; it may be repeated at any time. Workers need the package and no
    source code. A limit that was changed in Prefect's page stays, unless OPTICSTREAM_TILE_LIMIT and others are set.
    """
    with errors_shown():
        settings = DeploymentSettings()
        if yaml is not None:
            from opticstream.flows.prefect_yaml import write_prefect_yaml

            write_prefect_yaml(yaml, settings)
            if as_json:
                print_json({"file": str(yaml)})
            else:
                out.print(f"wrote {yaml}")
            return
        connect(settings)
        import asyncio

        from opticstream.flows.deploying import deploy as deploy_to_server

        done = asyncio.run(deploy_to_server(settings))
        if as_json:
            changed = {"pools": done.pools, "limits": done.limits, "deployments": done.deployments}
            print_json({**changed, "removed": list(done.removed)})
            return
        rows = [("pool", *row) for row in done.pools.items()]
        rows += [("limit", *row) for row in done.limits.items()]
        rows += [("deployment", *row) for row in done.deployments.items()]
        rows += [("deployment", name, "removed") for name in done.removed]
        for kind, name, state in rows:
            out.print(f"{kind:10}  {name:16}  {state}")


def worker(
    pools: Annotated[
        list[str],
        typer.Option("--pool", help="Pools to serve, with commas between them or several times. Default: all."),
    ] = [],  # noqa: B006
    limit: Annotated[
        int | None, typer.Option(min=1, help="Flow runs of a pool at a time on this host. Default: the pool's limit.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that flow runs may use together on this host, such as 24GiB; heavy ones wait for each other. "
            "Default: OPTICSTREAM_MEMORY_BUDGET, else three quarters of this host's."
        ),
    ] = None,
    cpus: Annotated[
        str | None, typer.Option(help="Processors that this host gives to the pools, such as 0-7,16. Default: all.")
    ] = None,
) -> None:
    """Run flows on this host for the server at OPTICSTREAM_API_URL, from all pools or the named ones, until Ctrl-C.

    Pools: tile, stitch, register, upload, state. `opticstream deploy` makes them, once. A server that does not answer
    is waited for; `opticstream doctor` tells what else may be wrong.
    """
    with errors_shown(), contextlib.ExitStack() as stack:
        if memory is not None:  # by the environment, because flow runs are processes of their own
            os.environ[variable_of("memory_budget")] = memory
        settings = DeploymentSettings()
        home = point_at_server(settings)
        from opticstream.flows.workers import checked_pools, serve
        from opticstream.system.cores import keep_to_processors

        chosen = checked_pools(pools)
        if cpus is not None:
            try:
                keep_to_processors(cpus)
            except ValueError as error:
                raise ConfigurationError(f"--cpus {cpus}: {error}") from error
        check_configured_server(settings, waits=True)
        stack.enter_context(metrics_shown(settings, registered))
        serve(chosen, settings, home=home, limit=limit)

"""`server`: a Prefect server for several hosts, its tables brought up to date, and what is old in it removed."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import SecretStr

from opticstream.cli.console import JsonOption, err, errors_shown, out, print_json, styled
from opticstream.cli.run import server_session
from opticstream.config import DeploymentSettings
from opticstream.config.secrets import has_password
from opticstream.flows.surroundings import prepared_home
from opticstream.model.errors import ConfigurationError

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


class Part(StrEnum):
    """Which part of a server a process is."""

    ALL = "all"
    API = "api"
    SERVICES = "services"


DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="PostgreSQL (postgresql://user@host/prefect) or SQLite (sqlite:///FILE). Default: "
        "OPTICSTREAM_DATABASE_URL, else SQLite in OPTICSTREAM_HOME. A password belongs into the variable.",
        show_default=False,
    ),
]
RedisOption = Annotated[
    str | None,
    typer.Option(
        "--redis",
        help="Redis for events, leases and several API replicas (redis://host:6379). Default: OPTICSTREAM_REDIS_URL.",
        show_default=False,
    ),
]


@app.callback()
def server(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; no other is listened on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 4200,
    database: DatabaseOption = None,
    redis: RedisOption = None,
    role: Annotated[
        Part, typer.Option(help="The API (several may run), the background services (one at a time), or both.")
    ] = Part.ALL,
) -> None:
    """Run a Prefect server in the foreground, for workers on several hosts, until Ctrl-C.

    It keeps its database in OPTICSTREAM_HOME, or in PostgreSQL. Role `all` brings the database up to date when it
    starts; `api` and `services` wait for `opticstream server upgrade`. With OPTICSTREAM_API_AUTH=user:password it asks
    for them. PREFECT_SERVER_... variables of the environment win.
    """
    if context.invoked_subcommand is not None:
        return
    from opticstream.flows.shared_server import address_of_api

    with errors_shown():
        address = address_of_api(host, port)
        _become_server(role.value, _settings(database, redis), host=host, port=port, address=address)


@app.command("upgrade")
def upgrade(database: DatabaseOption = None) -> None:
    """Bring the tables of the server's database up to date with this Prefect, once for all replicas, and end.

    It may be repeated at any time; two at once do not disturb each other.
    """
    with errors_shown():
        _become_server("upgrade", _settings(database, None))


@app.command("vacuum")
def vacuum(
    days: Annotated[
        float | None,
        typer.Option(help="Remove what ended longer ago. Default: OPTICSTREAM_RETENTION_DAYS.", min=0.0),
    ] = None,
    versions: Annotated[
        int | None,
        typer.Option(help="Versions of an artifact to keep. Default: OPTICSTREAM_ARTIFACT_VERSIONS.", min=1),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove old flow runs, logs and artifacts from the server at OPTICSTREAM_API_URL now.

    The server does this by itself: runs, logs, artifacts and events every hour, old versions of artifacts by a flow
    run every hour. Runs that have not ended, and the state of projects, are never removed.
    """
    with errors_shown():
        settings = DeploymentSettings()
        if not settings.api_url:
            raise ConfigurationError("OPTICSTREAM_API_URL is not set; set it to the address of a server's API")
        with server_session(settings, None, say=lambda _line: None):
            from opticstream.flows.vacuum import vacuum_server

            done = vacuum_server(
                days=settings.retention_days if days is None else days,
                versions=versions or settings.artifact_versions,
            )
        if as_json:
            print_json(done.as_dict())
            return
        out.print(
            f"removed {done.flow_runs} flow runs with their logs, {done.artifacts} artifacts and "
            f"{done.artifact_versions} earlier versions of artifacts; the server removes events itself, every hour"
        )


def _settings(database: str | None, redis: str | None) -> DeploymentSettings:
    """Return the settings of this host, with the addresses of the command line."""
    given = {"database": database, "redis": redis}
    for name, url in given.items():
        if url and has_password(url):
            variable = f"OPTICSTREAM_{name.upper()}_URL"
            err.print(
                styled("warning:", "bold yellow"),
                f"--{name}: others of this host can read the password in the list of processes until the server "
                f"starts; set {variable} or {variable}_FILE instead",
            )
    chosen = {f"{name}_url": SecretStr(url) for name, url in given.items() if url}
    unset: dict[str, None] = {f"{name}_file": None for name in chosen}
    return DeploymentSettings(**chosen, **unset)


def _become_server(
    role: str, settings: DeploymentSettings, *, host: str = "", port: int = 0, address: str = ""
) -> None:
    """Say what is set, and let a server process take the place of this one."""
    from opticstream.flows.shared_server import (
        check_role,
        environment_of,
        settings_of_shared_server,
        warning_of_open_address,
    )

    home = prepared_home(settings.home)
    chosen = settings_of_shared_server(home, os.environ, settings)
    environment = environment_of(chosen)
    check_role(role, environment)
    arguments = ["--role", role]
    if role in ("all", "api"):
        arguments += ["--host", host, "--port", str(port)]
        if warning := warning_of_open_address(host, environment):
            err.print(styled("warning:", "bold yellow"), warning)
    for name, setting in chosen.items() if role != "upgrade" else ():
        err.print(styled(f"{name}={setting.shown}  {setting.why}", "dim"))
    if role in ("all", "api"):
        out.print(f"address   OPTICSTREAM_API_URL={address}")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "opticstream.flows.server_process", *arguments], environment)

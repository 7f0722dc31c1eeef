"""`dashboard`: a page that shows a project live; also a part of `up`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opticstream.cli.connecting import warn
from opticstream.cli.console import ProjectArgument, err, errors_shown, out, styled
from opticstream.cli.run import server_session
from opticstream.cli.status import open_project
from opticstream.model.ids import ItemId

if TYPE_CHECKING:
    from opticstream.pipeline.project import Project

PORT = 8088

PortOption = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any free one.")]
TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        help="File with a token of 16 or more characters on its only line, readable by you alone. It is asked for once "
        "in each browser, and allows to retry what has failed. Default: no token, and read-only.",
        show_default=False,
    ),
]


def dashboard(
    project: ProjectArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Another one than this host's own needs --token-file.")
    ] = "127.0.0.1",
    port: PortOption = PORT,
    token_file: TokenOption = None,
) -> None:
    """Show a project live in a browser, until Ctrl-C: tiles as they are processed, failures, throughput, disk.

    Needs no server and no internet. Nothing can be changed from the page without --token-file.
    """
    with errors_shown():
        from opticstream.web import Access, serve_dashboard, token_from_file

        access = Access(host, port, token_from_file(token_file) if token_file else None)
        opened = open_project(project)
        if access.warning:
            warn(access.warning)

        def retry(items: Sequence[ItemId] | None) -> list[str]:
            return _retried(opened, items)

        def tell(address: str) -> None:
            out.print(f"dashboard  {address}", "" if access.token else "(read-only; --token-file allows to retry)")
            out.print("Ctrl-C stops it")

        serve_dashboard(opened, access=access, retry=retry, ready=tell)


def _retried(project: Project, items: Sequence[ItemId] | None) -> list[str]:
    """Retry parked items, or all of them, as `opticstream retry` does, and return what was done."""
    from opticstream.pipeline.retry import apply_plan, retry_plan

    settings = project.deployment
    plan = retry_plan(project, only=items)
    apply_plan(project, plan, reason="retried from the dashboard")
    lines = [f"{event.item} will be done again" for event in plan.announce] + plan.refused
    if not plan.announce:
        return lines
    if not settings.api_url:
        return [*lines, "the next `opticstream run` or `opticstream watch` does the work"]
    try:
        with server_session(settings, None, say=lambda _line: None):
            from opticstream.flows.events import announce

            announce(plan.announce)
    except Exception as error:  # the facts are withdrawn; the sweep announces what is due
        return [*lines, f"the server could not be told ({error}); its next sweep starts the work"]
    return lines


@contextlib.contextmanager
def dashboard_beside(project: str | None, port: int, token_file: Path | None, /, *, api_url: str) -> Iterator[None]:
    """Run a dashboard of a project, if one is named, as a process of its own until the block ends."""
    if project is None:
        yield
        return
    command = [sys.executable, "-m", "opticstream", "dashboard", project, "--port", str(port)]
    if token_file is not None:
        command += ["--token-file", str(token_file)]
    process = subprocess.Popen(command, env=os.environ | {"OPTICSTREAM_API_URL": api_url})
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode not in (0, -15, 130):
            err.print(styled("dashboard:", "yellow"), f"ended with status {process.returncode}")

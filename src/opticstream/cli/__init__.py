"""The `opticstream` command. Commands load what they need when they are called, so that help is quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import opticstream
from opticstream.cli.streams import escape_unencodable_text, ignore_warnings_as_errors

ignore_warnings_as_errors()

from opticstream.cli import (  # noqa: E402  (libraries warn while they are imported)
    dandi_client,
    dashboard,
    demo,
    doctor,
    engines,
    importing,
    notify,
    project,
    register,
    run,
    sample,
    secrets,
    serve,
    server,
    sim,
    state,
    status,
    stitch,
    tile,
    upload,
)
from opticstream.cli.console import misuse_as_json, note_json  # noqa: E402
from opticstream.system.cores import start_with_one_blas_thread  # noqa: E402
from opticstream.system.memory import start_with_few_arenas  # noqa: E402


class _Commands(TyperGroup):
    """The commands, whose errors about arguments are JSON where JSON is asked for."""

    _arguments: Sequence[str] = ()

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        self._arguments = tuple(args)  # what follows takes them out of the list
        with misuse_as_json(self._arguments):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with misuse_as_json(self._arguments):
            return super().invoke(ctx)


app = typer.Typer(
    name="opticstream",
    cls=_Commands,
    help="Turn the raw tiles of a polarization-sensitive OCT microscope into registered brain volumes, "
    "while the microscope is running.\n\n"
    "Start with [bold]opticstream demo[/]. Then write a project file with [bold]opticstream project init[/], and use "
    "[bold]opticstream run PROJECT DIR[/] for a folder that is complete, or [bold]opticstream watch PROJECT DIR[/] "
    "next to the rig.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PIPELINE = "The pipeline"
_FILES = "On files, without a server"
_HOSTS = "Hosts"

app.command("demo", rich_help_panel=_PIPELINE)(demo.demo)
app.command("run", rich_help_panel=_PIPELINE)(run.run)
app.command("watch", rich_help_panel=_PIPELINE)(run.watch)
app.command("status", rich_help_panel=_PIPELINE)(status.status)
app.command("dashboard", rich_help_panel=_PIPELINE)(dashboard.dashboard)
app.command("retry", rich_help_panel=_PIPELINE)(status.retry)
app.command("failures", rich_help_panel=_PIPELINE)(status.failures)
app.command("history", rich_help_panel=_PIPELINE)(status.history)
app.command("upload", rich_help_panel=_PIPELINE)(upload.upload)
app.add_typer(notify.app, name="notify", rich_help_panel=_PIPELINE)
app.add_typer(secrets.app, name="secrets", rich_help_panel=_PIPELINE)
app.add_typer(state.app, name="state", rich_help_panel=_PIPELINE)
app.add_typer(project.app, name="project", rich_help_panel=_PIPELINE)
app.command("validate", rich_help_panel=_PIPELINE)(sim.validate)
app.add_typer(sim.app, name="sim", rich_help_panel=_FILES)
app.command("tile", rich_help_panel=_FILES)(tile.tile)
app.add_typer(tile.archive_app, name="archive", rich_help_panel=_FILES)
app.add_typer(tile.calibrate_app, name="calibrate", rich_help_panel=_FILES)
app.command("import", rich_help_panel=_FILES)(importing.import_array)
app.add_typer(stitch.app, name="stitch", rich_help_panel=_FILES)
app.command("register", rich_help_panel=_FILES)(register.register)
app.add_typer(sample.app, name="sample", rich_help_panel=_FILES)
app.command("up", rich_help_panel=_HOSTS)(serve.up)
app.add_typer(server.app, name="server", rich_help_panel=_HOSTS)
app.command("deploy", rich_help_panel=_HOSTS)(serve.deploy)
app.command("worker", rich_help_panel=_HOSTS)(serve.worker)
app.add_typer(engines.app, name="engines", rich_help_panel=_HOSTS)
app.add_typer(dandi_client.app, name="dandi-client", rich_help_panel=_HOSTS)
app.command("doctor", rich_help_panel=_HOSTS)(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opticstream {opticstream.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    note_json(False)


def main() -> None:
    """Run the command line."""
    escape_unencodable_text()
    start_with_one_blas_thread()
    start_with_few_arenas()
    app()

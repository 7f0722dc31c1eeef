"""`dandi-client install`: make an environment with the `dandi` client, for targets of kind `dandi` and `linc`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from opticstream.cli.console import errors_shown, out
from opticstream.config import DeploymentSettings

app = typer.Typer(help="The `dandi` client, which uploads to DANDI and LINC.", no_args_is_help=True)


class Archive(StrEnum):
    """Kinds of targets that the client serves."""

    dandi = "dandi"
    linc = "linc"


@app.command("install")
def install(
    archive: Annotated[Archive, typer.Argument(help="Kind of target that will use it.", show_default=False)],
    schema: Annotated[
        str | None,
        typer.Option(
            help="Schema of the archive's metadata, as `opticstream secrets check` shows if the client does not fit.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Install the client in an environment of its own in the home folder of this host, with pip.

    Each host whose workers serve the pool `upload` needs one.
    """
    from opticstream.publish.dandi_environment import install_client, requirements_of

    with errors_shown():
        python = install_client(archive.value, DeploymentSettings(), schema=schema)
    out.print(f"{python}: installed {' and '.join(requirements_of(schema))}")


@app.callback()
def _group() -> None:
    pass

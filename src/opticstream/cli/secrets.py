"""`secrets set|list|check`: credentials of remote targets, kept by the Prefect server or given by the environment."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from opticstream.cli.console import (
    JsonOption,
    ProjectArgument,
    end_with_outcomes,
    errors_shown,
    out,
    print_json,
)
from opticstream.cli.run import HomeOption, server_session
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError, OpticStreamError

app = typer.Typer(help="Keep, list or check the credentials of remote targets.", no_args_is_help=True)
_NAME = re.compile(r"[a-z0-9-]+")
SecretName = Annotated[str, typer.Argument(help="Name: lower-case letters, digits and -.", show_default=False)]


@app.command("set")
def set_secret(name: SecretName, home: HomeOption = None) -> None:
    """Keep a secret in an encrypted Secret block of the server; it is typed, or read from standard input.

    Of an S3 target it is ACCESS_KEY:SECRET_KEY, of DANDI and LINC the key of a user. It is never an argument, because
    others can see those.
    """
    with errors_shown():
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r}: the name of a secret has lower-case letters, digits and - only")
        value = typer.prompt("Secret", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
        if not (value := value.strip()):
            raise ConfigurationError(f"the secret {name!r} is empty; type it, or give it on standard input")
        with server_session(DeploymentSettings(), home, say=lambda _line: None, workers=False):
            from opticstream.flows.secrets import keep_secret

            keep_secret(name, value)
    out.print(f"kept the secret {name} ({len(value)} characters)")


@app.command("list")
def list_secrets(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the names of the secrets that the server keeps; never their values."""
    with errors_shown(), server_session(DeploymentSettings(), home, say=lambda _line: None, workers=False):
        from opticstream.flows.secrets import secret_names

        names = secret_names()
    if as_json:
        print_json(names)
        return
    for name in names:
        out.print(name)
    if not names:
        out.print("the server keeps no secret")


@app.command("check")
def check_secrets(project: ProjectArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check that every remote target of a project has its credentials, answers, and accepts them.

    The exit status is 1 if one does not.
    """
    from opticstream.cli.status import open_project
    from opticstream.cli.upload import reachable_secrets
    from opticstream.publish.opening import open_remote_target
    from opticstream.publish.patience import Patience

    with errors_shown():
        opened = open_project(project)
        found: dict[str, str] = {}
        with reachable_secrets(opened.config, home) as secrets:
            for settings in opened.config.publish.targets:
                try:
                    open_remote_target(settings, secrets, Patience(total_s=10.0)).check()
                    found[settings.target_name] = ""
                except OpticStreamError as error:
                    found[settings.target_name] = str(error)
    end_with_outcomes(found, good="ok", bad="refused", nothing="the project has no remote target", as_json=as_json)

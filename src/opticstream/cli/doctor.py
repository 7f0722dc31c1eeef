"""`doctor`: look at this host, its server and a project, and say what is wrong and what to do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opticstream.cli.console import (
    DONE,
    FAILED,
    JsonOption,
    errors_shown,
    is_project_file,
    out,
    print_json,
    styled,
)
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError

if TYPE_CHECKING:  # loaded when the command is called
    from opticstream.flows.doctor import CheckResult

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    project: Annotated[
        str | None,
        typer.Argument(help="Project file (TOML), or the name of a registered project.", show_default=False),
    ] = None,
    pools: Annotated[
        list[str],
        typer.Option("--pool", help="Pools that this host is to serve, as for `opticstream worker`. Default: all."),
    ] = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Look for what may be wrong with this host, its server and a project, and say what to do about it.

    Run it first when something does not work, on the host where it does not work, with the same OPTICSTREAM_...
    variables as the command that does not work. Each line is a check: ok, warning (it works, but
    look at it) or problem (it cannot work), what was found, and what to do.

    Without PROJECT it looks at the host (packages, home folder, memory) and at the server of OPTICSTREAM_API_URL
    (reached, credentials, version, clock, pools, workers, deployments, triggers, locks). With PROJECT also at its
    folders as this host sees them, its free space, its registration and its stuck work.

    Nothing is changed: it only writes a file into OPTICSTREAM_HOME and into the project's folder to see whether it can,
    and removes it at once. It never writes into the folder of raw tiles. Each check ends by itself after a while, also
    where a server or a network share does not answer.

    Exit status: 0 if there is no problem, 1 otherwise.
    """
    with errors_shown():
        found = _found(project, pools, as_json)
    problems = sum(one.result == "problem" for one in found)
    warnings = sum(one.result == "warning" for one in found)
    if as_json:
        print_json({"problems": problems, "warnings": warnings, "checks": [one.as_dict() for one in found]})
    else:
        out.print(f"{_number(problems, 'problem')}, {_number(warnings, 'warning')}")
    raise typer.Exit(FAILED if problems else DONE)


def _found(project: str | None, pools: list[str], quiet: bool) -> list[CheckResult]:
    from opticstream.flows.doctor import CheckResult

    try:
        settings = DeploymentSettings()
    except ConfigurationError as error:  # without settings there is nothing to look at
        refused = CheckResult(
            "settings", "problem", str(error), "correct the variable; docs/reference/deployment.md lists all"
        )
        _show(refused, quiet)
        return [refused]
    with _apart_from_home(settings):
        return list(_results(settings, project, pools, quiet))


def _show(one: CheckResult, quiet: bool) -> None:
    if quiet:
        return
    out.print(styled(f"{one.result:8}", _STYLES[one.result]), f"{one.name}: {one.found}")
    if one.advice:
        out.print(styled(f"{'':9}{one.advice}", "dim" if one.result == "ok" else ""))


def _results(settings: DeploymentSettings, project: str | None, pools: list[str], quiet: bool) -> Iterator[CheckResult]:
    from opticstream.flows.doctor import CHECKS, Scene, run_checks
    from opticstream.flows.pools import POOLS
    from opticstream.flows.surroundings import use_credentials

    chosen = [name.strip() for names in pools for name in names.split(",") if name.strip()] or list(POOLS)
    if unknown := sorted(set(chosen) - set(POOLS)):
        raise ConfigurationError(f"--pool {', '.join(unknown)}: no such pool; pools are {', '.join(POOLS)}")
    is_file = project is not None and is_project_file(project)
    use_credentials(settings)
    scene = Scene(settings, project=project, is_file=is_file, pools=tuple(dict.fromkeys(chosen)))
    for one in run_checks(CHECKS, scene):
        _show(one, quiet)
        yield one


@contextmanager
def _apart_from_home(settings: DeploymentSettings) -> Iterator[None]:
    """Let Prefect, where a check loads it, make its files elsewhere than in the home folder, which is looked at."""
    from opticstream.flows.surroundings import keep_off_proxies

    with tempfile.TemporaryDirectory(prefix="opticstream-", ignore_cleanup_errors=True) as folder:
        os.environ.update({"PREFECT_HOME": folder, "PREFECT_PROFILES_PATH": str(Path(folder) / "profiles.toml")})
        if settings.api_url:
            os.environ["PREFECT_API_URL"] = settings.api_url
        keep_off_proxies(os.environ, settings.api_url)
        yield


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'s' * (count != 1)}"

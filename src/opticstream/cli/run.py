"""`run` and `watch`: feed a project from a folder of raw tiles."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opticstream.cli.console import (
    DONE,
    FAILED,
    FolderArgument,
    JsonOption,
    ProjectArgument,
    err,
    errors_shown,
    is_project_file,
    out,
    print_json,
)
from opticstream.config import DeploymentSettings, ProjectConfig, load_project
from opticstream.model.errors import ConfigurationError

if TYPE_CHECKING:  # brings Prefect, which reads its settings when it is imported
    from opticstream.flows.driver import Driver

SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a parameter for this run, e.g. --set processing.enface.depth=60 "
        "or --set mask_threshold_normal=58.",
    ),
]
HomeOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the embedded server's database (default: OPTICSTREAM_HOME or ~/.opticstream)."),
]


def overrides_from_options(options: list[str], /) -> dict[str, object]:
    """Return the parameters of `--set KEY=VALUE` options; values are TOML, or plain text.

    Examples
    --------
    >>> overrides_from_options(["processing.enface.depth=60", "surface=find"])
    {'processing.enface.depth': 60, 'surface': 'find'}
    """
    import tomllib

    values: dict[str, object] = {}
    for option in options:
        key, mark, text = option.partition("=")
        if not mark:
            raise ConfigurationError(f"--set {option}: expected KEY=VALUE")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    return values


@contextlib.contextmanager
def server_session(
    settings: DeploymentSettings, home: Path | None, *, say: Callable[[str], object], workers: bool = True
) -> Iterator[Callable[[], None]]:
    """Point this process at the configured server, or run an embedded one for the time being, with workers if wanted.

    Yields a check that raises ServerError once what was started here has ended.
    """
    from opticstream.flows.server import client_environment, is_healthy
    from opticstream.flows.session import local_session

    if settings.api_url:
        if not is_healthy(settings.api_url):
            raise ConfigurationError(f"OPTICSTREAM_API_URL = {settings.api_url}: no Prefect server answers there")
        os.environ.update(client_environment(settings.home.expanduser(), settings.api_url))
        yield lambda: None
        return
    with local_session(home or settings.home, workers=workers, say=say) as session:
        yield session.check


def config_of(project: str, options: list[str]) -> ProjectConfig:
    """Return the configuration that a PROJECT argument names; a registered name needs the server to be reachable."""
    overrides = overrides_from_options(options)
    if is_project_file(project):
        return load_project(project, overrides=overrides)
    from opticstream.flows.parameters import load_parameters

    return load_parameters(project, overrides=overrides)


def _feed(project: str, folder: Path, options: list[str], home: Path | None, as_json: bool, *, live: bool,
          accept_incomplete: bool) -> None:  # fmt: skip
    with errors_shown():
        settings = DeploymentSettings()
        if is_project_file(project):
            config_of(project, options)  # refuse bad settings before anything is started
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: there is no such folder of raw tiles")

        def say(line: str) -> None:
            if not as_json:
                err.print(f"[dim]{line}[/]")

        with server_session(settings, home, say=say) as check:
            from opticstream.cli.following import Follower, follow
            from opticstream.flows.driver import Driver
            from opticstream.flows.parameters import save_parameters
            from opticstream.pipeline.project import Project

            config = config_of(project, options)
            save_parameters(config)
            opened = Project.open(config, deployment=settings)
            driver = Driver.on_folder(opened, folder, live=live)
            with Follower(live=out.is_terminal, quiet=as_json) as follower:
                over = _Acquired(driver, accept_incomplete) if not live else (lambda: False)
                progress = follow(driver, follower, is_over=over, poll_s=settings.poll_s if live else 0.5, check=check)
        incomplete = driver.incomplete()
        strangers = driver.watcher.strangers
        failed = bool(progress.failures or incomplete or strangers or not progress.mosaics)
        if as_json:
            print_json(
                progress.as_dict()
                | {"incomplete": [str(i) for i in incomplete], "refused_names": strangers, "failed": failed}
            )
        else:
            _report(config, driver, len(progress.failures))
        raise typer.Exit(FAILED if failed else DONE)


class _Acquired:
    """Whether everything that lies in the folder has been announced, or will never be complete."""

    def __init__(self, driver: Driver, accept_incomplete: bool) -> None:
        self._driver = driver
        self._accept = accept_incomplete

    def __call__(self) -> bool:
        driver = self._driver
        patience_s = 2 * driver.project.deployment.stable_s + 1.0
        waiting = driver.incomplete()
        if any(state.waiting_s < patience_s for state in waiting):
            return False
        if self._accept:
            for found in driver.watcher.give_up_waiting():
                driver.ready(found)
        return True


def _report(config: ProjectConfig, driver: Driver, failures: int) -> None:
    for state in driver.incomplete():
        err.print(f"[yellow]incomplete[/] {state}")
    if driver.incomplete():
        err.print("  columns that are not complete are not processed; --accept-incomplete takes them as they are")
    for name, reason in sorted(driver.watcher.strangers.items()):
        err.print(f"[yellow]refused[/] {name}: {reason}")
    if not driver.watcher.known_batches():
        err.print(
            f"[red]nothing to do:[/] no file in {driver.watcher.folder} follows "
            f"scan.file_name = {config.scan.file_name!r}"
        )
    if failures:
        err.print(f"[red]{failures} failed[/]; `opticstream status` lists them, `opticstream retry` tries again")
    out.print(f"results in {config.base_path}")


def run(
    project: ProjectArgument,
    folder: FolderArgument,
    options: SetOption = [],  # noqa: B006  (typer reads the default, nobody changes it)
    home: HomeOption = None,
    accept_incomplete: Annotated[
        bool,
        typer.Option(
            help="Process columns with missing or damaged tiles as they are, with those tiles recorded as failed."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Process what lies in a folder and stop.

    The project is registered with its file's parameters, every complete column of tiles goes through the whole
    pipeline, and the exit status tells whether all succeeded: 0 all done, 1 something failed or was incomplete,
    2 wrong settings. A second run finds everything done and changes nothing.
    """
    _feed(project, folder, options, home, as_json, live=False, accept_incomplete=accept_incomplete)


def watch(
    project: ProjectArgument,
    folder: FolderArgument,
    options: SetOption = [],  # noqa: B006
    home: HomeOption = None,
) -> None:
    """Process tiles while the microscope writes them, until Ctrl-C.

    Looks at the folder every few seconds (network shares give no notifications), waits until files have stood still,
    and warns once of columns that stall. It can be stopped and started again at any time.
    """
    _feed(project, folder, options, home, False, live=True, accept_incomplete=False)

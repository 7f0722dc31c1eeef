"""`run` and `watch`: feed a project from a folder of raw tiles."""

from __future__ import annotations

import contextlib
import os
import tempfile
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
    styled,
)
from opticstream.cli.run_parameters import RunParameters, parameters_for_run
from opticstream.config import DeploymentSettings, OptionText, ProjectConfig, load_project
from opticstream.model.errors import ConfigurationError
from opticstream.system.survey import missing_features

if TYPE_CHECKING:  # brings Prefect, which reads its settings when it is imported
    from opticstream.flows.driver import Driver
    from opticstream.pipeline.project import Project

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


def overrides_from_options(options: list[str], /) -> dict[str, OptionText]:
    """Return the parameters of `--set KEY=VALUE` options, as typed: the settings decide what the texts mean.

    Raises
    ------
    ConfigurationError
        An option is not of the form KEY=VALUE.

    Examples
    --------
    >>> overrides_from_options(["processing.enface.depth=60", "surface=find"])
    {'processing.enface.depth': '60', 'surface': 'find'}
    """
    values: dict[str, OptionText] = {}
    for option in options:
        key, mark, text = option.partition("=")
        if not mark or not key.strip():
            raise ConfigurationError(f"--set {option}: expected KEY=VALUE")
        values[key.strip()] = OptionText(text)
    return values


@contextlib.contextmanager
def server_session(
    settings: DeploymentSettings, home: Path | None, *, say: Callable[[str], object], workers: bool = True
) -> Iterator[Callable[[], bool]]:
    """Point this process at the configured server, or run an embedded one for the time being, with workers if wanted.

    Yields a check that raises ServerError once what was started here has ended, and is True when this process has just
    taken over a server that it shared, so that everything under way is to be announced again.
    """
    from opticstream.flows.server import is_healthy
    from opticstream.flows.session import local_session
    from opticstream.flows.surroundings import client_environment, keep_off_proxies, prepared_home

    if settings.api_url:
        if not is_healthy(settings.api_url):
            raise ConfigurationError(f"OPTICSTREAM_API_URL = {settings.api_url}: no Prefect server answers there")
        keep_off_proxies(os.environ, settings.api_url)
        os.environ.update(client_environment(prepared_home(settings.home), settings.api_url))
        yield lambda: False
        return
    with local_session(home or settings.home, workers=workers, say=say) as session:
        yield session.check


def run_parameters_of(project: str, options: list[str], /, *, register: bool = True) -> RunParameters:
    """Return the parameters that a run of a PROJECT argument uses, and tell where they differ from the registered ones.

    Needs the server to be reachable. With `register` a project that is not registered yet is registered.
    """
    config = config_of(project, options)
    chosen = parameters_for_run(project, config, config_of(project, []) if options else config, register=register)
    chosen.tell()
    return chosen


def config_of(project: str, options: list[str]) -> ProjectConfig:
    """Return the configuration that a PROJECT argument names; a registered name needs the server to be reachable."""
    overrides = overrides_from_options(options)
    if is_project_file(project):
        return load_project(project, overrides=overrides, path_map=DeploymentSettings().path_map)
    from opticstream.flows.parameters import load_parameters

    return load_parameters(project, overrides=overrides)


def _feed(project: str, folder: Path, options: list[str], home: Path | None, as_json: bool, *, live: bool,
          accept_incomplete: bool, stale: bool = False) -> None:  # fmt: skip
    with errors_shown():
        settings = DeploymentSettings()
        if is_project_file(project):
            config_of(project, options)  # refuse bad settings before anything is started
        if not folder.is_dir():
            raise ConfigurationError(f"{folder}: there is no such folder of raw tiles")
        _check_is_utf8(folder.absolute(), "folder of raw tiles")

        def say(line: str) -> None:
            if not as_json:
                err.print(styled(line, "dim"))

        with server_session(settings, home, say=say) as check:
            from opticstream.cli.following import Follower, follow
            from opticstream.flows.driver import Driver
            from opticstream.pipeline.project import Project

            chosen = run_parameters_of(project, options)
            config = chosen.config
            _check_is_utf8(config.base_path, "project.project_base_path")
            opened = Project.open(config, deployment=settings, parameters=chosen.overrides)
            if lacking := missing_features(config.base_path):
                say(f"the file system of {config.base_path} lacks {'; '.join(lacking)}")
            driver = Driver.on_folder(opened, folder, live=live)
            _take_back_changed(opened, say)
            if stale:
                _take_back_stale(opened, say)
            with Follower(live=out.is_terminal, quiet=as_json) as follower:
                over = _Acquired(driver, accept_incomplete) if not live else (lambda: False)
                progress = follow(driver, follower, is_over=over, poll_s=settings.poll_s if live else 0.5, check=check)
        incomplete = driver.incomplete()
        rejected_names = driver.watcher.rejected_names
        undone = driver.undone
        failed = bool(progress.failures or incomplete or rejected_names or undone or not progress.mosaics)
        if as_json:
            print_json(
                progress.as_dict()
                | {
                    "incomplete": [str(i) for i in incomplete],
                    "refused_names": rejected_names,
                    "undone": undone,
                    "parameters": dict(chosen.overrides),
                    "failed": failed,
                }
            )
        else:
            _report(config, driver, len(progress.failures), undone, found_before=stale)
        raise typer.Exit(FAILED if failed else DONE)


def _take_back_changed(project: Project, say: Callable[[str], object]) -> None:
    """Take back what was made from raw files that have changed since, so that the driver announces it."""
    from opticstream.pipeline.raw_changes import take_back_changed

    plan = take_back_changed(project, say=say)
    for refused in plan.refused:
        err.print(styled("left alone", "yellow"), refused)


def _check_is_utf8(path: Path, what: str) -> None:
    """Raise ConfigurationError where events, which are JSON, could not name a path."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{what} {path}: its name is not valid UTF-8; rename it") from error


def _take_back_stale(project: Project, say: Callable[[str], object]) -> None:
    """Take back what is out of date, so that the driver announces it; the old outputs stay until they are replaced."""
    from opticstream.pipeline.redo import apply_plan
    from opticstream.pipeline.stale import stale_plan, stale_results

    stale = stale_results(project)
    plan = stale_plan(project, stale)
    apply_plan(project, plan, reason="opticstream run --stale")
    for why in sorted({why for one in stale for why in one.why}):
        say(f"out of date: {why}")
    for refused in plan.refused:
        err.print(styled("left alone", "yellow"), refused)
    say(f"doing {len({item for item, _ in plan.withdraw})} items again" if plan.withdraw else "nothing is out of date")


class _Acquired:
    """Whether everything that lies in the folder has been announced, and nothing more is waited for."""

    def __init__(self, driver: Driver, accept_incomplete: bool) -> None:
        self._driver = driver
        self._accept = accept_incomplete

    def __call__(self) -> bool:
        driver = self._driver
        patience_s = 2 * driver.project.deployment.stable_s + 1.0
        if self._accept and all(state.waiting_s >= patience_s for state in driver.incomplete()):
            for found in driver.watcher.give_up_waiting():
                driver.ready(found)
        return not driver.waits_for_files()


def _report(config: ProjectConfig, driver: Driver, failures: int, undone: list[str], *, found_before: bool) -> None:
    for state in driver.incomplete():
        err.print(styled("incomplete", "yellow"), str(state))
    for line in undone:
        err.print(styled("not done", "red"), line)
    for name, reason in sorted(driver.watcher.rejected_names.items()):
        err.print(styled("refused", "yellow"), f"{name}: {reason}")
    if not driver.watcher.known_batches() and not found_before:
        err.print(
            styled("nothing to do:", "red"),
            f"no file in {driver.watcher.folder} follows scan.file_name = {config.scan.file_name!r}",
        )
    if failures:
        err.print(
            styled(f"{failures} failed:", "red"), "`opticstream status` lists them, `opticstream retry` tries again"
        )
    out.print(f"results in {config.base_path}")


def run(
    project: ProjectArgument,
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of raw tiles; only read. Not needed with --stale.", show_default=False)
    ] = None,
    options: SetOption = [],  # noqa: B006  (typer reads the default, nobody changes it)
    home: HomeOption = None,
    stale: Annotated[
        bool,
        typer.Option("--stale", help="Also do again what is out of date after a change of settings, see `status`."),
    ] = False,
    accept_incomplete: Annotated[
        bool,
        typer.Option(
            help="Do not wait for missing or unfinished tiles: process their columns as they are at once, with those "
            "tiles recorded as failed."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Process what lies in a folder and stop.

    A project that is not registered yet is registered with its file's parameters. Where they differ from the
    registered ones, as with --set, the run uses its own and the registered ones stay. Every column of tiles goes
    through the whole pipeline, and the exit status tells whether all succeeded: 0 all done, 1 something failed or was
    missing, 2 wrong settings.

    A column with missing tiles is worked on without them once nothing has changed for OPTICSTREAM_STALL_S, a minute at
    most; a later run takes them when they are there, and does again what rests on them.

    A second run finds everything done and changes nothing, but for tiles whose raw files have changed since they were
    archived; with --stale it does again what other settings have put out of date, and what rests on that. The old
    outputs stay until the new ones replace them.
    """
    with errors_shown(), contextlib.ExitStack() as stack:
        if folder is None and not stale:
            raise ConfigurationError("run needs the folder of raw tiles (or --stale, to do again what is out of date)")
        if folder is None:  # nothing new to find; what was found before says itself where it lies
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opticstream-")))
        _feed(project, folder, options, home, as_json, live=False, accept_incomplete=accept_incomplete, stale=stale)


def watch(
    project: ProjectArgument,
    folder: FolderArgument,
    options: SetOption = [],  # noqa: B006
    home: HomeOption = None,
) -> None:
    """Process tiles while the microscope writes them, until Ctrl-C.

    Looks at the folder every few seconds (network shares give no notifications), waits until files have stood still,
    and warns once of columns that stall. A column with missing tiles is worked on without them once the microscope has
    gone past it, or after OPTICSTREAM_STALL_S without anything new; tiles that come later are taken, and what rests on
    them is done again. It can be stopped and started again at any time.
    """
    _feed(project, folder, options, home, False, live=True, accept_incomplete=False)

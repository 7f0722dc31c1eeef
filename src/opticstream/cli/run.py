"""`run` and `watch`: process the raw tiles in a folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opticstream.cli.connecting import connect
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
from opticstream.cli.figures import metrics_shown
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
    typer.Option(help="Folder for the embedded server's database (default: OPTICSTREAM_HOME or ~/.opticstream)."),
]


def overrides_from_options(options: list[str], /) -> dict[str, OptionText]:
    """Return the parameters of `--set KEY=VALUE` options as text; each setting decides how to read its own.

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
    settings: DeploymentSettings,
    home: Path | None,
    *,
    say: Callable[[str], object],
    workers: bool = True,
    waits: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
) -> Iterator[Callable[[], bool]]:
    """Connect this process to the configured server, or run an embedded one in this context, with workers if wanted.

    Yields a check. It raises ServerError when the server or a worker that was started here has ended, and returns True
    when this process has just taken over a shared server, so that all unfinished work has to be announced again.
    With `waits` a configured server that is away is waited for. `meanwhile` is called while an embedded server starts.
    """
    from opticstream.flows.session import local_session

    if settings.api_url:
        connect(settings, waits=waits)
        yield lambda: False
        return
    with local_session(home or settings.home, workers=workers, say=say, meanwhile=meanwhile) as session:
        yield session.check


def load_what_feeds() -> None:
    """Import what feeds a project, which takes a second; it brings Prefect, so the server's address must be set."""
    import opticstream.cli.following
    import opticstream.flows.driver
    import opticstream.flows.parameters  # noqa: F401


def run_parameters_of(project: str, options: list[str], /, *, register: bool = True) -> RunParameters:
    """Return the parameters that a run of a PROJECT argument uses, and print how they differ from the registered ones.

    The server must be reachable. With `register`, a project that is not yet registered is registered.
    """
    config = config_of(project, options)
    chosen = parameters_for_run(project, config, config_of(project, []) if options else config, register=register)
    chosen.tell()
    return chosen


def config_of(project: str, options: list[str]) -> ProjectConfig:
    """Return the configuration that a PROJECT argument names; for a registered name the server must be reachable."""
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
            raise ConfigurationError(f"{folder}: no such folder; expected the folder of the raw tiles")
        _check_is_utf8(folder.absolute(), "folder of raw tiles")

        def say(line: str) -> None:
            if not as_json:
                err.print(styled(line, "dim"))

        with server_session(settings, home, say=say, waits=live, meanwhile=load_what_feeds) as check:
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
            with Follower(live=out.is_terminal, quiet=as_json) as follower, contextlib.ExitStack() as leaving:
                leaving.callback(driver.leave)
                if live:
                    leaving.enter_context(metrics_shown(settings, lambda: [opened], folders=[folder]))
                over = _EverythingAnnounced(driver, accept_incomplete) if not live else (lambda: False)
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
    """Withdraw the results of raw files that have changed since, so that the driver announces them again."""
    from opticstream.pipeline.raw_changes import take_back_changed

    plan = take_back_changed(project, say=say)
    for refused in plan.refused:
        err.print(styled("not changed", "yellow"), refused)


def _check_is_utf8(path: Path, what: str) -> None:
    """Raise ConfigurationError if events, which are JSON, could not contain a path."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(f"{what} {path}: its name is not valid UTF-8; rename it") from error


def _take_back_stale(project: Project, say: Callable[[str], object]) -> None:
    """Withdraw what is out of date, so that the driver announces it; old outputs stay until they are replaced."""
    from opticstream.pipeline.redo import apply_plan
    from opticstream.pipeline.stale import stale_plan, stale_results

    stale = stale_results(project)
    plan = stale_plan(project, stale)
    apply_plan(project, plan, reason="opticstream run --stale")
    for why in sorted({why for one in stale for why in one.why}):
        say(f"out of date: {why}")
    for refused in plan.refused:
        err.print(styled("not changed", "yellow"), refused)
    count = len({item for item, _ in plan.withdraw})
    say(f"redoing {count} item{'s' * (count > 1)}" if count else "nothing is out of date")


class _EverythingAnnounced:
    """Whether everything in the folder has been announced and no file is waited for."""

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
            styled(f"{failures} failed:", "red"),
            "`opticstream status` lists them, `opticstream retry` tries them again",
        )
    out.print(f"results in {config.base_path}")


def run(
    project: ProjectArgument,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of raw tiles, which are never changed. Not needed with --stale.", show_default=False
        ),
    ] = None,
    options: SetOption = [],  # noqa: B006  (typer reads the default, which is never changed)
    home: HomeOption = None,
    stale: Annotated[
        bool,
        typer.Option(
            "--stale", help="Also redo results that are out of date because settings changed; `status` lists them."
        ),
    ] = False,
    accept_incomplete: Annotated[
        bool,
        typer.Option(
            help="Do not wait for missing or unfinished tiles: process their columns at once and record those tiles "
            "as failed."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Process the raw tiles in a folder and stop.

    Every column of tiles goes through the whole pipeline. Exit status: 0 if everything succeeded, 1 if something
    failed or was missing, 2 for wrong settings.

    A project that is not yet registered is registered with the parameters of its file. If a run has other parameters
    than those registered, for example with --set, it uses its own and the registered ones stay as they are.

    A column with missing tiles is processed without them once nothing has changed for OPTICSTREAM_STALL_S, at most a
    minute. If the tiles turn up later, the next run processes them and redoes what depends on them.

    A second run finds everything done and changes nothing, except for tiles whose raw files have changed since they
    were archived. With --stale it also redoes what is out of date because settings changed, and what depends on that.
    Old outputs stay until the new ones replace them.
    """
    with errors_shown(), contextlib.ExitStack() as stack:
        if folder is None and not stale:
            raise ConfigurationError(
                "the folder of raw tiles is missing; name it, or redo what is out of date with --stale"
            )
        if folder is None:  # there is nothing new to find; recorded batches name their own folders
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="opticstream-")))
        _feed(project, folder, options, home, as_json, live=False, accept_incomplete=accept_incomplete, stale=stale)


def watch(
    project: ProjectArgument,
    folder: FolderArgument,
    options: SetOption = [],  # noqa: B006
    home: HomeOption = None,
) -> None:
    """Process tiles while the microscope writes them, until Ctrl-C.

    Checks the folder every few seconds (network shares send no notifications), waits until files have stopped
    changing, and warns once about columns that stall. A column with missing tiles is processed without them once the
    microscope has moved on, or after OPTICSTREAM_STALL_S without anything new. Tiles that arrive later are processed,
    and what depends on them is redone. The command can be stopped and started again at any time. A server that does not
    answer at OPTICSTREAM_API_URL is waited for.
    """
    _feed(project, folder, options, home, False, live=True, accept_incomplete=False)

"""`status`, `retry`, `failures` and `history`: the progress of a project, what failed and why, from the flag files."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opticstream.cli.connecting import check_configured_server, warn
from opticstream.cli.console import (
    DONE,
    FAILED,
    JsonOption,
    ProjectArgument,
    err,
    errors_shown,
    escaped,
    is_project_file,
    out,
    print_json,
    styled,
)
from opticstream.cli.run import HomeOption, config_of, run_parameters_of, server_session
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError, OpticStreamError
from opticstream.model.ids import ItemId, item_from_key
from opticstream.pipeline.project import Project

if TYPE_CHECKING:
    from opticstream.pipeline.progress import ProjectProgress
    from opticstream.pipeline.quality_flags import FlaggedResult
    from opticstream.pipeline.refused import RefusedEvent
    from opticstream.pipeline.stale import Stale
    from opticstream.pipeline.stuck import Stuck
    from opticstream.pipeline.under_way import UnderWay
    from opticstream.state import FactsSnapshot

MAX_DOUBTFUL_LINES = 20
"""Largest number of lines that `status` prints on doubtful results."""
MAX_STALE_LINES = 20
"""Largest number of lines that `status` prints on results that are out of date."""

ItemsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Items, e.g. slice-001, mosaic-003, mosaic-003/batch-002 or mosaic-003/tile-0012; default: all.",
        show_default=False,
    ),
]


def open_project(project: str, *, tell: bool = False) -> Project:
    """Return the project that a PROJECT argument names, with its facts; a registered name needs the server.

    With `tell`, and if a server answers at OPTICSTREAM_API_URL, a file is compared with the registered parameters and
    the differences are printed; events of the project then carry them.
    """
    settings = DeploymentSettings()
    if is_project_file(project):
        if not (tell and settings.api_url and _answers(settings)):
            return Project.open(config_of(project, []))
        with server_session(settings, None, say=lambda _line: None):
            chosen = run_parameters_of(project, [], register=False)
            return Project.open(chosen.config, parameters=chosen.overrides)
    if not settings.api_url:
        raise ConfigurationError(
            f"{project!r} is not a file, and registered projects need a server; name the project file, or set "
            "OPTICSTREAM_API_URL"
        )
    with server_session(settings, None, say=lambda _line: None):
        return Project.open(config_of(project, []))


def _answers(settings: DeploymentSettings) -> bool:
    """Return whether the configured server can be asked, and warn if not: what follows does without it."""
    try:
        check_configured_server(settings, once=True)
    except OpticStreamError as error:
        warn(f"{error}; the file is not compared with the registered parameters")
        return False
    return True


def item_of(key: str) -> ItemId:
    """Return the item that an argument names; raise ConfigurationError, which is exit status 2, if there is none."""
    try:
        return item_from_key(key)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


@dataclass(frozen=True)
class ProjectStatus:
    """What `status` shows of a project."""

    progress: ProjectProgress
    base_path: Path
    uploads: list[UnderWay]
    refused: list[RefusedEvent]
    stale: list[Stale]
    stuck: list[Stuck]
    doubtful: list[FlaggedResult]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return self.progress.as_dict() | {
            "uploads": [one.as_dict() for one in self.uploads],
            "refused_events": [one.as_dict() for one in self.refused],
            "stale": [one.as_dict() for one in self.stale],
            "stuck": [one.as_dict() for one in self.stuck],
            "doubtful": [one.as_dict() for one in self.doubtful],
        }

    @property
    def exit_status(self) -> int:
        """1 if anything is parked as failed."""
        return FAILED if self.progress.failures else DONE


def status_of(project: Project, snapshot: FactsSnapshot, /) -> ProjectStatus:
    """Return what `status` shows of a project."""
    from opticstream.pipeline.progress import project_progress
    from opticstream.pipeline.quality_flags import flagged_results
    from opticstream.pipeline.refused import SHOWN_FOR, refused_events
    from opticstream.pipeline.stale import stale_results
    from opticstream.pipeline.stuck import stuck_items
    from opticstream.pipeline.under_way import uploads_under_way

    return ProjectStatus(
        progress=project_progress(project, snapshot),
        base_path=project.config.base_path,
        uploads=uploads_under_way(project),
        refused=refused_events(project, since=datetime.now(UTC) - SHOWN_FOR),
        stale=stale_results(project, snapshot),
        stuck=stuck_items(project, snapshot),
        doubtful=list(flagged_results(project, snapshot)),
    )


def status(
    project: ProjectArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again whenever it changes, until Ctrl-C.")] = False,
    every_s: Annotated[float, typer.Option("--every", min=0.2, help="Seconds between two looks with --watch.")] = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Show the progress of a project, and what has failed, is doubtful, is stuck or is out of date.

    Needs no server. The exit status is 1 if anything is parked as failed. With --watch and --json each change is a line
    of JSON.
    """
    with errors_shown():
        opened = open_project(project, tell=True)
        if watch:
            _watch(opened, every_s, as_json)
            return
        found = status_of(opened, opened.facts.snapshot())
    if as_json:
        print_json(found.as_dict())
    else:
        for part in _shown(found):
            out.print(part)
    raise typer.Exit(found.exit_status)


def _watch(project: Project, every_s: float, as_json: bool) -> None:
    """Show a project again and again, until Ctrl-C: in place on a terminal, otherwise whenever it has changed."""
    in_place = not as_json and out.is_terminal
    screen = Live(console=out, auto_refresh=False, vertical_overflow="visible") if in_place else None
    shown: dict[str, Any] | None = None
    with contextlib.suppress(KeyboardInterrupt), screen or contextlib.nullcontext():
        while True:
            found = status_of(project, project.facts.snapshot())
            if (now := found.as_dict()) != shown:
                shown = now
                if as_json:
                    print_json(now, one_line=True)
                elif screen is None:
                    out.print(f"{datetime.now():%Y-%m-%d %H:%M:%S}")
                    for part in _shown(found):
                        out.print(part)
            if screen is not None:
                screen.update(
                    Group(*_shown(found), styled(f"{datetime.now():%H:%M:%S}  Ctrl-C ends", "dim")), refresh=True
                )
            time.sleep(every_s)


def _shown(found: ProjectStatus) -> Iterator[Table | Text]:
    """Yield the table of the mosaics, and a line for everything else."""
    progress = found.progress
    table = Table(
        title=Text.assemble(escaped(progress.project_name), "   ", styled(found.base_path, "dim")),
        title_justify="left",
    )
    columns = (
        "slice", "mosaic", "illumination", "tiles", "failed", "batches", "state", "volumes", "published", "uploaded",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right" if column in ("slice", "mosaic", "tiles", "failed") else "left")
    for mosaic in progress.mosaics:
        table.add_row(
            str(mosaic.slice_id),
            str(mosaic.mosaic_id),
            escaped(mosaic.illumination),
            f"{mosaic.tiles_processed}/{mosaic.total_tiles}",
            styled(mosaic.tiles_failed, "red") if mosaic.tiles_failed else "",
            f"{mosaic.batches['processed']}/{mosaic.total_batches}",
            mosaic.state,
            mosaic.volume,
            "yes" if mosaic.published else "",
            "yes" if mosaic.uploaded else "",
        )
    yield table
    for slice_ in progress.slices:
        stacked = ", in the sample" if slice_.stacked else ""
        reason = f": {slice_.reason}" if slice_.reason else ""
        yield _line("", "", f"slice {slice_.slice_id}: {slice_.state}{stacked}{reason}")
    for upload in found.uploads:
        yield _line("uploading", "blue", f"{item_of(upload.item)}: {upload}")
    for failure in progress.failures:
        tries = f" after {failure.attempts} attempts" if failure.attempts > 1 else ""
        yield _line(failure.fact, "red", f"{failure.item}{tries}: {failure.reason}")
    if progress.failures:
        yield _line("", "", "`opticstream retry` tries everything that is parked as failed again")
    for one in sorted(found.doubtful, key=lambda one: one.grade != "bad")[:MAX_DOUBTFUL_LINES]:
        is_bad = one.grade == "bad"
        yield _line(
            "bad" if is_bad else "doubtful", "red" if is_bad else "yellow", f"{one.item}: {'; '.join(one.reasons)}"
        )
    if len(found.doubtful) > MAX_DOUBTFUL_LINES:
        yield _line("doubtful", "yellow", f"and {len(found.doubtful) - MAX_DOUBTFUL_LINES} more; --json lists all")
    for event in found.refused:
        yield _line("event not understood", "yellow", f"{event.time:%Y-%m-%d %H:%M}: {event.why}")
    for waiting in found.stuck:
        yield _line(waiting.what, "yellow", f"{waiting.item}: {waiting.why}")
    yield from stale_lines(found.stale)
    if not progress.mosaics:
        yield _line("", "", "no tile has been found yet; start `opticstream run` or `opticstream watch`")


def _line(mark: str, style: str, text: str) -> Text:
    return Text.assemble(styled(mark, style), " " if mark else "", escaped(text))


def stale_lines(stale: list[Stale]) -> Iterator[Text]:
    """Yield a line for each cause of results that are out of date, with their number by kind, and what to do."""
    causes: dict[str, dict[str, int]] = {}
    for one in stale:
        counts = causes.setdefault("; ".join(one.why), {})
        what = f"{one.item.hierarchy} {one.fact.replace('_', ' ')}"
        counts[what] = counts.get(what, 0) + 1
    for why, counts in itertools.islice(causes.items(), MAX_STALE_LINES):
        what = ", ".join(f"{number} x {kind}" for kind, number in counts.items())
        yield Text.assemble(styled("out of date", "yellow"), f" {what}: {escaped(why)}")
    if len(causes) > MAX_STALE_LINES:
        more = f" for {len(causes) - MAX_STALE_LINES} more reasons; --json lists all"
        yield Text.assemble(styled("out of date", "yellow"), more)
    if any(one.raw_files_changed for one in stale):
        yield Text("`opticstream run` compares the changed raw files with the archive, and redoes those that differ")
    if not all(one.raw_files_changed for one in stale):
        yield Text("`opticstream run PROJECT --stale` redoes these and what depends on them, and nothing else")


def failures(
    project: ProjectArgument,
    days: Annotated[
        float | None, typer.Option(help="Only failures of the last DAYS days; default: all.", min=0)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the failures of a project by kind, stage and host, with their number and times, and what to do.

    Failures that a later attempt has resolved are counted too. Needs no server.
    """
    from opticstream.pipeline.failure_patterns import failure_patterns

    with errors_shown():
        opened = open_project(project)
        since = None if days is None else datetime.now(UTC) - timedelta(days=days)
        patterns = failure_patterns(opened, since=since)
    if as_json:
        print_json([pattern.as_dict() for pattern in patterns])
        return
    if not patterns:
        out.print("nothing has failed" if days is None else f"nothing has failed in the last {days:g} days")
        return
    table = Table(title=f"Failures of {opened.config.name}", title_justify="left")
    for column in ("times", "kind", "stage", "host", "items", "parked", "first", "last", "busiest day"):
        table.add_column(column, justify="right" if column in ("times", "items", "parked") else "left")
    for p in patterns:
        day, most = max(p.per_day.items(), key=lambda entry: entry[1])
        table.add_row(
            str(p.count), p.kind, p.stage, p.host, str(len(p.items)), styled(p.parked, "red") if p.parked else "",
            f"{p.first:%Y-%m-%d %H:%M}", f"{p.last:%Y-%m-%d %H:%M}", f"{day} ({most})",
        )  # fmt: skip
    out.print(table)
    for p in patterns:
        out.print(styled(p.kind, "bold"), f"in {p.stage} on {p.host}: {p.message}")
        out.print(f"  {p.suggestion}")


def retry(
    project: ProjectArgument,
    items: ItemsArgument = None,
    dry_run: Annotated[bool, typer.Option(help="Only show what would be done.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Retry what is parked as failed, and redo what depends on it.

    The facts of the failed items, and of the mosaics and slices that depend on them, are withdrawn (and kept in
    state/withdrawn); then the items are announced again. Good tiles are not computed again. With a server at
    OPTICSTREAM_API_URL its workers do the work; otherwise the next `opticstream run` or `watch` does.
    """
    from opticstream.pipeline.retry import apply_plan, retry_plan

    with errors_shown():
        settings = DeploymentSettings()
        opened = open_project(project, tell=True)
        plan = retry_plan(opened, only=[item_of(key) for key in items] if items else None)
        if not dry_run:
            apply_plan(opened, plan, reason="opticstream retry")
            if settings.api_url and plan.announce:
                with server_session(settings, home, say=lambda _line: None):
                    from opticstream.flows.events import announce

                    announce(plan.announce)
    if as_json:
        print_json(
            {
                "withdrawn": [f"{item.key}.{fact}" for item, fact in plan.withdraw],
                "announced": [{"event": e.event_name(), "item": e.item.key} for e in plan.announce],
                "refused": plan.refused,
            }
        )
        return
    verb = "would withdraw" if dry_run else "withdrew"
    for item, fact in plan.withdraw:
        out.print(f"{verb} {item} {fact}")
    for event in plan.announce:
        out.print(f"{'would announce' if dry_run else 'announced' if settings.api_url else 'released'} {event.item}")
    for reason in plan.refused:
        err.print(styled("not changed", "yellow"), reason)
    if not plan.announce and not plan.refused:
        out.print("nothing is parked as failed")
    elif not settings.api_url and not dry_run:
        out.print("the next `opticstream run` or `opticstream watch` does the work")


def history(
    project: ProjectArgument,
    item: Annotated[str, typer.Argument(help="For example mosaic-003 or mosaic-003/tile-0012.")],
    below: Annotated[bool, typer.Option(help="Include everything inside the item.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what happened to an item: when, on which host, how long it took, and why it was skipped."""
    with errors_shown():
        opened = open_project(project)
        chosen = item_of(item)
        entries = opened.facts.journal.history(chosen, below=below)
    if as_json:
        print_json(
            [
                {
                    "time": e.time.isoformat(), "event": e.event, "item": e.item.key, "fact": e.fact, "host": e.host,
                    "duration_s": e.duration_s, "why": e.why,
                }
                for e in entries
            ]
        )  # fmt: skip
        return
    for e in entries:
        took = f" in {e.duration_s:.1f} s" if e.duration_s is not None else ""
        why = f": {e.why}" if e.why else ""
        out.print(f"{e.time:%Y-%m-%d %H:%M:%S}  {e.host}  {e.item}  {e.event} {e.fact or ''}{took}{why}")
    if not entries:
        out.print(f"nothing is recorded about {chosen}")

"""`status`, `retry` and `history`: how far a project is, what failed, what happened to an item. From the flag files."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from opticstream.cli.console import (
    DONE,
    FAILED,
    JsonOption,
    ProjectArgument,
    err,
    errors_shown,
    is_project_file,
    out,
    print_json,
)
from opticstream.cli.run import HomeOption, config_of, server_session
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import ItemId, item_from_key
from opticstream.pipeline.project import Project

ItemsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Items such as slice-001, mosaic-003, mosaic-003/batch-002, mosaic-003/tile-0012; default: all.",
        show_default=False,
    ),
]


def open_project(project: str) -> Project:
    """Return the project that a PROJECT argument names, with its facts; a registered name needs the server."""
    if is_project_file(project):
        return Project.open(config_of(project, []))
    settings = DeploymentSettings()
    if not settings.api_url:
        raise ConfigurationError(
            f"{project!r} is no file, and registered projects need a server; set OPTICSTREAM_API_URL or name the file"
        )
    with server_session(settings, None, say=lambda _line: None):
        return Project.open(config_of(project, []))


def item_of(key: str) -> ItemId:
    """Return the item that an argument names; ConfigurationError, which is exit status 2, when it names none."""
    try:
        return item_from_key(key)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def status(project: ProjectArgument, as_json: JsonOption = False) -> None:
    """Show how far a project is and what failed. Needs no server. Exit status 1 if anything is parked as failed."""
    from opticstream.pipeline.progress import project_progress

    with errors_shown():
        opened = open_project(project)
        progress = project_progress(opened)
    if as_json:
        print_json(progress.as_dict())
        raise typer.Exit(FAILED if progress.failures else DONE)
    table = Table(title=f"{progress.project_name}   [dim]{opened.config.base_path}[/]", title_justify="left")
    for column in ("slice", "mosaic", "illumination", "tiles", "failed", "batches", "state", "volumes", "published"):
        table.add_column(column, justify="right" if column in ("slice", "mosaic", "tiles", "failed") else "left")
    slices = {s.slice_id: s for s in progress.slices}
    for mosaic in progress.mosaics:
        table.add_row(
            str(mosaic.slice_id),
            str(mosaic.mosaic_id),
            mosaic.illumination,
            f"{mosaic.tiles_processed}/{mosaic.total_tiles}",
            f"[red]{mosaic.tiles_failed}[/]" if mosaic.tiles_failed else "",
            f"{mosaic.batches['processed']}/{mosaic.total_batches}",
            mosaic.state,
            mosaic.volume,
            "yes" if mosaic.uploaded else "",
        )
    out.print(table)
    for slice_ in slices.values():
        stacked = ", in the sample" if slice_.stacked else ""
        reason = f": {escape(slice_.reason)}" if slice_.reason else ""
        out.print(f"slice {slice_.slice_id}: {slice_.state}{stacked}{reason}")
    for failure in progress.failures:
        tries = f" after {failure.attempts} attempts" if failure.attempts > 1 else ""
        out.print(f"[red]{failure.fact}[/] {failure.item}{tries}: {escape(failure.reason)}")
    if progress.failures:
        out.print("`opticstream retry` tries again what is parked as failed")
    if not progress.mosaics:
        out.print("nothing has been found yet; `opticstream run` or `opticstream watch` starts it")
    raise typer.Exit(FAILED if progress.failures else DONE)


def retry(
    project: ProjectArgument,
    items: ItemsArgument = None,
    dry_run: Annotated[bool, typer.Option(help="Only say what would be done.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try again what is parked as failed, and do anew what rests on it.

    The failed items' facts, and those of the mosaics and slices that rest on them, are taken back (and kept in
    state/withdrawn), then the items are announced again. Good tiles are not computed again. With a server at
    OPTICSTREAM_API_URL its workers do the work; otherwise the next `opticstream run` or `watch` does.
    """
    from opticstream.pipeline.retry import apply_plan, retry_plan

    with errors_shown():
        settings = DeploymentSettings()
        opened = open_project(project)
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
    verb = "would take back" if dry_run else "took back"
    for item, fact in plan.withdraw:
        out.print(f"{verb} {item} {fact}")
    for event in plan.announce:
        out.print(f"{'would announce' if dry_run else 'announced' if settings.api_url else 'released'} {event.item}")
    for reason in plan.refused:
        err.print(f"[yellow]left alone[/] {reason}")
    if not plan.announce and not plan.refused:
        out.print("nothing is parked as failed")
    elif not settings.api_url and not dry_run:
        out.print("`opticstream run` or `opticstream watch` takes it up")


def history(
    project: ProjectArgument,
    item: Annotated[str, typer.Argument(help="For example mosaic-003 or mosaic-003/tile-0012.")],
    below: Annotated[bool, typer.Option(help="With everything inside the item.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what happened to an item: when, where, how long it took, why it was skipped."""
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
        why = f": {escape(e.why)}" if e.why else ""
        out.print(f"{e.time:%Y-%m-%d %H:%M:%S}  {e.host}  {e.item}  {e.event} {e.fact or ''}{took}{why}")
    if not entries:
        out.print(f"nothing is known of {chosen}")

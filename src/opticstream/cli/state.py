"""`state show|verify|reset|rebuild`: show what the flag files record, check it against the files, and undo it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from opticstream.cli.console import (
    DONE,
    FAILED,
    JsonOption,
    ProjectArgument,
    err,
    errors_shown,
    out,
    print_json,
    styled,
    text_column,
)
from opticstream.cli.run import HomeOption, run_parameters_of, server_session
from opticstream.cli.status import item_of, open_project
from opticstream.config import DeploymentSettings
from opticstream.model.errors import ConfigurationError, StateError
from opticstream.state.vocabulary import is_claim

if TYPE_CHECKING:
    from opticstream.pipeline.project import Project
    from opticstream.state.oct_state import OCTBatchStateView, OCTMosaicStateView, OCTProjectStateView
    from opticstream.state.reset import ResetPlan
    from opticstream.state.tree import StateView

app = typer.Typer(
    help="Show or verify what is recorded as done, undo it, or restore the server's copy.", no_args_is_help=True
)

ItemArgument = Annotated[
    str, typer.Argument(help="For example slice-001, mosaic-003, mosaic-003/batch-002 or mosaic-003/tile-0012.")
]
_COLOURS = {"failed": "red", "skipped": "yellow", "waiting": "yellow", "started": "cyan", "ready": "cyan"}


@app.command("show")
def show(
    project: ProjectArgument,
    from_server: Annotated[
        bool, typer.Option("--server", help="Show the server's copy (Prefect Variables) instead of the flag files.")
    ] = False,
    batches: Annotated[bool, typer.Option(help="List every batch, not only unfinished ones.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the recorded facts of each slice, mosaic and batch as a tree."""
    with errors_shown():
        opened = open_project(project)
        view = _from_server(opened, home) if from_server else _from_flags(opened)
    if as_json:
        print_json(view.model_dump(mode="json", exclude_defaults=True))
        return
    tree = Tree(Text.assemble(styled(view.project_name, "bold"), "  ", _facts(view)))
    for slice_ in view.slices.values():
        branch = tree.add(Text.assemble(f"slice {slice_.slice_id}  ", _facts(slice_), _why(slice_.failure)))
        for mosaic in slice_.mosaics.values():
            _add_mosaic(branch, mosaic, batches=batches)
    out.print(tree)


def _from_flags(project: Project) -> OCTProjectStateView:
    from opticstream.state.mirror import oct_state_from_facts

    return oct_state_from_facts(project.config.name, project.facts, project.layout).to_view()


def _from_server(project: Project, home: Path | None) -> OCTProjectStateView:
    with server_session(DeploymentSettings(), home, say=lambda _line: None, workers=False):
        from opticstream.flows.prefect_state import OCT_STATE_SERVICE

        view = OCT_STATE_SERVICE.peek_project(project.config.name)
    if view is None:
        raise StateError(
            f"the server has no state of {project.config.name!r}; restore it with `opticstream state rebuild`"
        )
    return view


def _add_mosaic(branch: Tree, mosaic: OCTMosaicStateView, *, batches: bool) -> None:
    done = sum(batch.finished for batch in mosaic.batches.values())
    counts = f"{done} of {len(mosaic.batches)} batches done"
    node = branch.add(
        Text.assemble(f"mosaic {mosaic.mosaic_id}  ", _facts(mosaic), "  ", styled(counts, "dim"), _why(mosaic.failure))
    )
    for batch in mosaic.batches.values():
        if batches or not batch.finished or batch.failed_tiles:
            node.add(Text.assemble(f"batch {batch.batch_id}  ", _facts(batch), _tiles(batch), _why(batch.failure)))


def _tiles(batch: OCTBatchStateView) -> Text:
    return styled(f"  failed tiles {', '.join(map(str, batch.failed_tiles))}" if batch.failed_tiles else "", "red")


def _why(failure: str | None) -> Text:
    return Text.assemble(": ", styled(failure, "red")) if failure else Text()


def _facts(view: StateView) -> Text:
    """Return the facts of an item, each in the colour of its kind; claims on finished work are left out."""
    known = [fact for fact in view.facts() if view.has(fact)]
    shown = [styled(fact, _colour(fact)) for fact in known if not (is_claim(fact) and len(known) > 1)]
    return Text(" ").join(shown) if shown else styled("nothing yet", "dim")


def _colour(fact: str) -> str:
    return _COLOURS.get(fact.rpartition("_")[2], "green")


@app.command("verify")
def verify(
    project: ProjectArgument,
    checksums: Annotated[
        bool, typer.Option(help="Also read every file and compare its checksum, rather than only its size.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Check that the facts are true: outputs exist, sizes and checksums agree, and no two facts contradict each other.

    The exit status is 1 if anything is wrong. Nothing is changed.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from opticstream.state.verify import verify as findings_of

    with errors_shown():
        opened = open_project(project)
        columns = (text_column("files"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        files = 0
        with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
            task = bar.add_task("files", total=None)

            def count(done: int, total: int) -> None:
                nonlocal files
                files = total
                bar.update(task, completed=done, total=total)

            findings = findings_of(opened.facts, layout=opened.layout, checksums=checksums, progress=count)
    if as_json:
        print_json(
            {
                "files": files,
                "findings": [
                    {"item": f.item.key, "fact": f.fact, "problem": f.problem, "message": f.message, "path": f.path}
                    for f in findings
                ],
            }
        )
    else:
        for finding in findings:
            out.print(styled(finding.problem, "red"), str(finding))
        compared = "existence, size and checksum" if checksums else "existence and size"
        out.print(f"compared {files} files ({compared}): {len(findings) or 'no'} problem{'s' * (len(findings) != 1)}")
        if findings:
            out.print("`opticstream state reset PROJECT ITEM --downstream` undoes an item, so that it is done again")
    raise typer.Exit(FAILED if findings else DONE)


@app.command("reset")
def reset(
    project: ProjectArgument,
    item: ItemArgument,
    downstream: Annotated[bool, typer.Option(help="Also undo everything that depends on it.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only show what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Undo the work on an item, so that it is done again.

    Shows what will be undone and asks for confirmation. Facts are moved to state/withdrawn and outputs are removed; raw
    tiles, archive copies and published files are never touched. The next `opticstream run` or `watch`, or the server's
    sweep, does the work again.
    """
    from opticstream.state.reset import apply_reset, plan_reset

    with errors_shown():
        opened = open_project(project)
        plan = plan_reset(opened.facts, item_of(item), opened.layout, downstream=downstream)
        if not as_json:
            for line in plan.lines():
                out.print(line)
        do = bool(plan.withdraw) and not dry_run and (yes or _agreed())
        if do:
            apply_reset(
                opened.facts, plan, opened.layout, reason="opticstream state reset", lease_s=opened.deployment.lease_s
            )
    if as_json:
        print_json(_plain_plan(plan) | {"done": do})
    elif not plan.withdraw:
        out.print(f"there is nothing to undo for {plan.target}")
    elif do:
        out.print(f"withdrew {len(plan.withdraw)} facts; `opticstream run` or `watch` does the work again")
    elif not dry_run:
        out.print("nothing was changed")


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _agreed() -> bool:
    if not _has_terminal():
        raise ConfigurationError(
            "cannot ask for confirmation without a terminal; give --yes, or --dry-run to look only"
        )
    return typer.confirm("Continue?")


def _plain_plan(plan: ResetPlan) -> dict[str, object]:
    return {
        "item": plan.target.key,
        "withdraw": [f"{item.key}.{fact}" for item, fact in plan.withdraw],
        "remove": list(plan.remove),
        "keep": list(plan.keep),
        "published": list(plan.published),
        "left_behind": [f"{item.key}.{fact}" for item, fact in plan.left_behind],
    }


@app.command("rebuild")
def rebuild(project: ProjectArgument, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Restore the server's copy of the state (Prefect Variables) from the flag files, after its database was lost.

    A project file that is no longer registered is registered again; otherwise the registered parameters stay as they
    are.
    """
    with errors_shown():
        opened = open_project(project)
        with server_session(DeploymentSettings(), home, say=lambda line: err.print(styled(line, "dim")), workers=False):
            from opticstream.flows.parameters import parameters_variable
            from opticstream.flows.prefect_state import OCT_STATE_SERVICE
            from opticstream.state.mirror import rebuild_oct_state

            run_parameters_of(project, [])
            name = parameters_variable(opened.config.name)
            state = rebuild_oct_state(OCT_STATE_SERVICE, opened.config.name, opened.facts, opened.layout)
    mosaics = list(state.to_view().mosaics())
    counts = {
        "slices": len(state.slices),
        "mosaics": len(mosaics),
        "batches": sum(len(mosaic.batches) for mosaic in mosaics),
    }
    if as_json:
        print_json({"project": opened.config.name, "parameters": name, **counts})
        return
    told = ", ".join(f"{number} {what}" for what, number in counts.items())
    out.print(f"restored the state of {opened.config.name} ({told}) and its parameters ({name})")


@app.command("unlock")
def unlock(
    project: ProjectArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Free the lock on the server's copy of the state by hand, when no writer lives that could hold it.

    Needed only where a server lost its leases: those of `opticstream server` and of embedded ones survive a restart,
    and a lock whose holder was killed is free after a minute.
    """
    with errors_shown():
        opened = open_project(project)
        with server_session(DeploymentSettings(), home, say=lambda line: err.print(styled(line, "dim")), workers=False):
            from opticstream.flows.prefect_state import PrefectProjectLock

            lock, name = PrefectProjectLock(pipeline="oct"), opened.config.name
            holder = lock.holder(name)
            if not yes:
                held = f"held by {holder}" if holder else "free, or held by a writer that has not given its name"
                typer.confirm(f"The lock of {name} is {held}. Free it?", abort=True)
            lock.free(name)
    if as_json:
        print_json({"project": name, "holder": holder})
        return
    out.print(f"freed the lock of {name}")

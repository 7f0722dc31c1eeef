"""`upload`: upload results to the remote targets by hand, and compare what these hold with what was uploaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opticstream.cli.console import FAILED, JsonOption, errors_shown, out, print_json, styled
from opticstream.cli.run import HomeOption, server_session
from opticstream.cli.status import ItemsArgument, item_of, open_project
from opticstream.config import DeploymentSettings, ProjectConfig
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import ItemId

if TYPE_CHECKING:
    from opticstream.pipeline.project import Project
    from opticstream.publish.opening import ReadSecret


def upload(
    project: Annotated[
        str,
        typer.Argument(
            help="Project file (TOML), or the name of a registered project. `verify PROJECT` is --verify.",
            show_default=False,
        ),
    ],
    items: ItemsArgument = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Only this target; may be repeated. Default: all.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Upload nothing; compare what the targets hold with what was uploaded.")
    ] = False,
    read: Annotated[bool, typer.Option("--read", help="With --verify: also read single files back.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload what is published and not yet uploaded, to the remote targets of a project, and wait for it.

    Failed uploads are tried again, and results go to targets that were added since. What a target holds already is
    not sent again. Workers that upload the same project share the work. The exit status is 1 if something failed,
    waits for a target that does not answer, or differs.
    """
    with errors_shown():
        if project == "verify" and items and not Path(project).exists():
            verify, project, items = True, items[0], items[1:]
        opened = open_project(project)
        names = [settings.target_name for settings in opened.config.publish.targets]
        if not names:
            raise ConfigurationError(f"{opened.config.name} has no remote target; add one under [[publish.targets]]")
        if unknown := sorted(set(target or ()) - set(names)):
            raise ConfigurationError(f"--target {unknown[0]}: no such target; expected one of {', '.join(names)}")
        chosen = _choice(opened, [item_of(key) for key in items or ()])
        targets = set(target or names)
        if dry_run and not verify:
            _print_plan(_plan(opened, chosen, targets), as_json=as_json)
            return
        with reachable_secrets(opened.config, home) as secrets:
            if verify:
                found = _differences(opened, chosen, targets, secrets, contents=read)
                _print_differences(found, as_json=as_json)
                failed = any(one.problem for one in found)
            else:
                failed = _upload(opened, chosen, targets, secrets, as_json=as_json)
    if failed:
        raise typer.Exit(FAILED)


@contextlib.contextmanager
def reachable_secrets(config: ProjectConfig, home: Path | None, /) -> Iterator[ReadSecret]:
    """Yield a reader of secrets; the server is asked only for those that the environment does not have."""
    from opticstream.publish.opening import key_from_environment
    from opticstream.publish.secrets import secret_from_environment

    needed = {
        target.credentials
        for target in config.publish.targets
        if target.credentials and not key_from_environment(target)
    }
    if all(secret_from_environment(name) for name in needed):
        yield secret_from_environment
        return
    with server_session(DeploymentSettings(), home, say=lambda _line: None, workers=False):
        from opticstream.flows.secrets import secret_of

        yield secret_of


def _choice(project: Project, items: list[ItemId], /) -> Callable[[ItemId], bool]:
    """Return whether an item was chosen, or is part of one that was."""
    from opticstream.model.chain import whole_of

    def chosen(item: ItemId) -> bool:
        one: ItemId | None = item
        while one is not None and one not in items:
            one = whole_of(one, project.layout)
        return one is not None

    return chosen if items else lambda _item: True


def _plan(project: Project, chosen: Callable[[ItemId], bool], targets: set[str]) -> list[dict[str, Any]]:
    """Return the files that would be uploaded, with the targets that the ledger does not know to hold them."""
    from opticstream.pipeline.uploads import files_to_upload, upload_queue, what_of
    from opticstream.publish.ledger import Ledger

    ledgers = {name: Ledger(project.paths.base, name).assets() for name in targets}
    planned = []
    for item, step in upload_queue(project, project.facts.snapshot()):
        if not step.uploads or not chosen(item):
            continue
        receiving = [one.target_name for one in project.config.publish.receiving(what_of(item))]
        for file in files_to_upload(project, item, step):
            to = [
                name
                for name in receiving
                if name in targets and (file.key not in ledgers[name] or ledgers[name][file.key].sha256 != file.sha256)
            ]
            planned.append({"item": item.key, "key": file.key, "size": file.size, "targets": to})
    return planned


def _print_plan(planned: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(planned)
        return
    for one in planned:
        where = ", ".join(one["targets"]) or "nowhere: the targets hold it already"
        out.print(f"would upload {one['key']} ({one['size'] / 1e6:.1f} MB) to {where}")
    if not planned:
        out.print("nothing waits for upload")


def _upload(
    project: Project, chosen: Callable[[ItemId], bool], targets: set[str], secrets: ReadSecret, *, as_json: bool
) -> bool:
    """Upload, print what happens, and return whether something failed or still waits."""
    from opticstream.pipeline.progress import detail_of
    from opticstream.pipeline.uploads import release_uploads, upload_pending, upload_queue, what_of

    release_uploads(project, chosen)
    events = []
    for event in upload_pending(project, secrets=secrets, only=chosen, targets=targets):
        events.append(event)
        if not as_json:
            out.print(f"{event.item}: {event.state.replace('_', ' ')}")
    snapshot = project.facts.snapshot()
    waiting = [
        (item, step)
        for item, step in upload_queue(project, snapshot)
        if step.uploads
        and chosen(item)
        and {one.target_name for one in project.config.publish.receiving(what_of(item))} <= targets
    ]
    failed = [
        (item, fact, str(detail_of(project, item, fact).get("reason", "")))
        for item, fact in sorted(snapshot, key=lambda key: (key[0].key, key[1]))
        if fact.endswith("upload_failed") and chosen(item)
    ]
    if as_json:
        print_json(
            {
                "events": [{"event": event.event_name(), "item": event.item.key} for event in events],
                "waiting": [{"item": item.key, "step": step.name} for item, step in waiting],
                "failed": [{"item": item.key, "fact": fact, "reason": reason} for item, fact, reason in failed],
            }
        )
    else:
        for item, fact, reason in failed:
            out.print(styled(fact, "red"), f"{item}: {reason}")
        for item, step in waiting:
            out.print(styled("waiting", "yellow"), f"{item}: {step.name}; see `opticstream failures`")
        if not (events or failed or waiting):
            out.print("nothing waits for upload")
    return bool(failed or waiting)


@dataclass(frozen=True)
class _Checked:
    """What a target was asked about, and how its answer differs; no problem if it does not."""

    item: str
    target: str
    key: str
    problem: str


def _differences(
    project: Project, chosen: Callable[[ItemId], bool], targets: set[str], secrets: ReadSecret, *, contents: bool
) -> list[_Checked]:
    from opticstream.pipeline.verify_uploads import verified_uploads

    return [
        _Checked(one.item.key, one.target, one.key, one.problem or "")
        for one in verified_uploads(project, chosen, targets, secrets, contents=contents)
    ]


def _print_differences(found: list[_Checked], *, as_json: bool) -> None:
    if as_json:
        print_json([vars(one) for one in found])
        return
    wrong = [one for one in found if one.problem]
    for one in wrong:
        out.print(styled("differs", "red"), f"{one.item}: {one.target}: {one.key} {one.problem}")
    out.print(f"{len(found) - len(wrong)} of {len(found)} files and stores are as they were uploaded")
    if wrong:
        out.print("`opticstream state reset` or `opticstream retry` do not touch the targets; upload these items again")


__all__ = ["reachable_secrets", "upload"]

"""`upload`: upload results to the remote targets by hand, and compare what these hold with what was uploaded."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opticstream.cli.console import FAILED, JsonOption, errors_shown, out, print_json, styled
from opticstream.cli.run import HomeOption, server_session
from opticstream.cli.status import ItemsArgument, item_of, open_project
from opticstream.config import DeploymentSettings, ProjectConfig
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import ItemId

if TYPE_CHECKING:
    from opticstream.pipeline.project import Project
    from opticstream.pipeline.upload_plan import Planned
    from opticstream.pipeline.uploads import TakeSlots
    from opticstream.publish.opening import ReadSecret

_AWAY_S = 5.0
"""Time for which a server that does not answer is asked for transfer slots, in seconds."""


def upload(
    project: Annotated[
        str,
        typer.Argument(
            help="Project file (TOML), or the name of a registered project. `verify PROJECT` is --verify, and "
            "`clean-up PROJECT` is --clean-up.",
            show_default=False,
        ),
    ],
    items: ItemsArgument = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Only this target; may be repeated. Default: all.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be uploaded.")] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Upload nothing; compare what the targets hold with what was uploaded. What they do not hold any more "
            "waits for upload again, except with --dry-run.",
        ),
    ] = False,
    clean_up: Annotated[
        bool,
        typer.Option(
            "--clean-up",
            help="Upload nothing; remove maps, volumes and complex data of tiles, never raw tiles, where every target "
            "holds the mosaic and its raw tiles, verified now.",
        ),
    ] = False,
    read: Annotated[bool, typer.Option("--read", help="With --verify: also read single files back.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload what is published and not yet uploaded, to the remote targets of a project, and wait for it.

    Batches that were finished while archiving was off are archived first. Failed uploads are tried again, and results
    go to targets that were added since. What a target holds already is
    not sent again. Workers that upload the same project share the work. The exit status is 1 if something failed,
    waits for a target that does not answer, or differs.
    """
    with errors_shown():
        if project in ("verify", "clean-up") and items and not Path(project).exists():
            verify, clean_up = verify or project == "verify", clean_up or project == "clean-up"
            project, items = items[0], items[1:]
        if clean_up and (verify or target or read):
            raise ConfigurationError("clean-up asks every target; --verify, --read and --target do not go with it")
        opened = open_project(project)
        names = [settings.target_name for settings in opened.config.publish.targets]
        if not names:
            raise ConfigurationError(f"{opened.config.name} has no remote target; add one under [[publish.targets]]")
        if unknown := sorted(set(target or ()) - set(names)):
            raise ConfigurationError(f"--target {unknown[0]}: no such target; expected one of {', '.join(names)}")
        chosen = _choice(opened, [item_of(key) for key in items or ()])
        targets = set(target or names)
        if clean_up:
            with reachable_secrets(opened.config, home) as secrets:
                _clean_up(opened, chosen, secrets, dry_run=dry_run, as_json=as_json)
            return
        if dry_run and not verify:
            from opticstream.pipeline.upload_plan import planned_uploads

            _print_plan(planned_uploads(opened, chosen, targets), as_json=as_json)
            return
        with reachable_secrets(opened.config, home) as secrets:
            if verify:
                found = _differences(opened, chosen, targets, secrets, contents=read, dry_run=dry_run)
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


def _print_plan(planned: Iterable[Planned], *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {"item": one.item.key, "key": one.key, "size": one.size, "targets": list(one.targets)}
                | ({"before": one.before} if one.before else {})
                for one in planned
            ]
        )
        return
    planned = list(planned)
    for one in planned:
        before = f"{one.before} and " if one.before else ""
        size = "" if one.size is None else f" ({one.size / 1e6:.1f} MB)"
        where = ", ".join(one.targets) or "nowhere: the targets hold it already"
        out.print(f"would {before}upload {one.key}{size} to {where}")
    if not planned:
        out.print("nothing waits for upload")


def _upload(
    project: Project, chosen: Callable[[ItemId], bool], targets: set[str], secrets: ReadSecret, *, as_json: bool
) -> bool:
    """Upload, print what happens, and return whether something failed or still waits."""
    from opticstream.pipeline.late_archive import archive_finished_batches
    from opticstream.pipeline.progress import detail_of
    from opticstream.pipeline.uploads import release_uploads, upload_pending, upload_queue, what_of

    release_uploads(project, chosen)
    events = []
    archived = archive_finished_batches(project, only=chosen)
    with _slots() as slots:
        uploaded = upload_pending(project, secrets=secrets, only=chosen, targets=targets, slots=slots)
        for event in itertools.chain(archived, uploaded):
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
        if fact.endswith(("upload_failed", "archive_failed")) and chosen(item)
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


@contextlib.contextmanager
def _slots() -> Iterator[TakeSlots]:
    """Yield what keeps the transfers of all hosts within the limit of the server, if there is one."""
    settings = DeploymentSettings()
    if not settings.api_url:
        yield lambda wanted, _meanwhile: contextlib.nullcontext(wanted)
        return
    from opticstream.flows.surroundings import credentials_header, use_credentials
    from opticstream.flows.transfer_slots import TransferSlots

    use_credentials(settings)
    headers = credentials_header()
    with TransferSlots(settings.api_url, headers=headers, wait_s=settings.upload_patience_s, away_s=_AWAY_S) as slots:
        yield slots


def _clean_up(
    project: Project, chosen: Callable[[ItemId], bool], secrets: ReadSecret, *, dry_run: bool, as_json: bool
) -> None:
    """Remove intermediate files, and print how much of each mosaic, or why nothing."""
    from opticstream.pipeline.clean_up import clean_up

    done = []
    for one in clean_up(project, secrets, chosen=chosen, dry_run=dry_run):
        done.append(one)
        if as_json:
            continue
        if one.kept:
            out.print(styled("kept", "yellow"), f"{one.mosaic}: {one.kept}")
        else:
            verb = "would remove" if dry_run else "removed"
            out.print(f"{one.mosaic}: {verb} {len(one.files)} intermediate files, {one.size / 1e6:.1f} MB")
    freed = sum(one.size for one in done if not one.kept)
    if as_json:
        print_json({"dry_run": dry_run, "bytes": freed, "mosaics": [one.as_dict() for one in done]})
    else:
        out.print(f"{freed / 1e6:.1f} MB {'would be' if dry_run else 'are'} free" if freed else "nothing to clean up")


@dataclass(frozen=True)
class _Checked:
    """What a target was asked about, and how its answer differs; no problem if it does not."""

    item: str
    target: str
    key: str
    problem: str
    withdrawn: bool
    """Whether it waits for upload again."""


def _differences(
    project: Project,
    chosen: Callable[[ItemId], bool],
    targets: set[str],
    secrets: ReadSecret,
    *,
    contents: bool,
    dry_run: bool,
) -> list[_Checked]:
    from opticstream.pipeline.verify_uploads import OpenTargets, verified_uploads, withdraw_lost_uploads

    compare = verified_uploads if dry_run else withdraw_lost_uploads
    return [
        _Checked(one.item.key, one.target, one.key, one.problem or "", one.is_withdrawn)
        for one in compare(project, chosen, targets, OpenTargets(project, secrets), contents=contents)
    ]


def _print_differences(found: list[_Checked], *, as_json: bool) -> None:
    if as_json:
        print_json([vars(one) for one in found])
        return
    wrong = [one for one in found if one.problem]
    for one in wrong:
        out.print(styled("differs", "red"), f"{one.item}: {one.target}: {one.key} {one.problem}")
    out.print(f"{len(found) - len(wrong)} of {len(found)} files and stores are as they were uploaded")
    if items := len({one.item for one in wrong if one.withdrawn}):
        out.print(f"no longer uploaded: {items} items; the next sweep, or `opticstream upload`, sends them again")


__all__ = ["reachable_secrets", "upload"]

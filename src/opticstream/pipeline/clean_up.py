"""Remove the tiles' maps, volumes and complex data of mosaics whose results, and raw tiles, every target holds.

Only files that were computed here are removed: never raw tiles, nor links to them, nor anything in the archive tree.
What is removed can be computed again from the raw tiles, or from their archive copies. The batch's fact `cleaned` names
the files; it is recorded before the first one is removed, so a run that is killed can be repeated.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticstream.model.chain import chain
from opticstream.model.ids import BatchId, ItemId, MosaicId
from opticstream.pipeline.cleaned import CLEANED
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.project import Project
from opticstream.pipeline.stale import stale_results
from opticstream.pipeline.verify_uploads import OpenTargets, verified_uploads
from opticstream.publish.opening import ReadSecret
from opticstream.state import FactsView
from opticstream.system.disk import sync_path


@dataclass(frozen=True)
class CleanUp:
    """What a clean-up removes of one mosaic, or why it removes nothing."""

    mosaic: MosaicId
    files: tuple[Path, ...] = ()
    size: int = 0
    """Bytes of the files."""
    kept: str = ""
    """Why nothing is removed; empty if the files are removed."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"item": self.mosaic.key, "files": len(self.files), "bytes": self.size, "kept": self.kept}


def clean_up(
    project: Project,
    secrets: ReadSecret,
    /,
    *,
    chosen: Callable[[ItemId], bool] = lambda _item: True,
    dry_run: bool = False,
    show_kept: bool = True,
) -> Iterator[CleanUp]:
    """Remove the intermediate files of every mosaic that may be cleaned, and yield what was removed of each.

    A mosaic may be cleaned if its results and the archive copies of all its raw tiles are uploaded, and if every target
    says now that it holds them as they were uploaded.

    Parameters
    ----------
    project : Project
        The project.
    secrets : callable
        Finds the credentials of the targets.
    chosen : callable
        Whether an item is to be looked at.
    dry_run : bool
        Remove nothing.
    show_kept : bool
        Also yield mosaics that keep their files, with the reason.
    """
    opened = OpenTargets(project, secrets)
    snapshot = project.facts.snapshot()
    stale = {_mosaic_of(one.item) for one in stale_results(project, snapshot)}
    mosaics = sorted({mosaic for item in snapshot.items() if (mosaic := _mosaic_of(item)) is not None})
    for mosaic in filter(chosen, mosaics):
        plan = _planned(project, mosaic, snapshot, is_stale=mosaic in stale)
        if plan.files and not plan.kept:
            if differs := _first_difference(project, mosaic, opened):
                plan = CleanUp(mosaic, kept=differs)
            elif not dry_run:
                plan = _removed(project, plan)
        if plan.files or (plan.kept and show_kept):
            yield plan


def _mosaic_of(item: ItemId) -> MosaicId | None:
    return item if isinstance(item, MosaicId) else getattr(item, "mosaic", None)


def _planned(project: Project, mosaic: MosaicId, facts: FactsView, *, is_stale: bool) -> CleanUp:
    files = list(_files(project, mosaic))
    found = CleanUp(mosaic, tuple(path for path, _ in files), sum(size for _, size in files))
    if not files:
        return CleanUp(mosaic)
    wanted: list[tuple[ItemId, str]] = [(mosaic, "stitched"), (mosaic, "uploaded")]
    if project.config.stitches_volumes:
        wanted += [(mosaic, "volume_stitched"), (mosaic, "volume_uploaded")]
    for batch in project.layout.batches(mosaic):
        wanted += [(batch, "processed"), (batch, "archived"), (batch, "uploaded")]
    for item, fact in wanted:
        if not facts.has(item, fact):
            return CleanUp(mosaic, kept=f"{item} is not {fact.replace('_', ' ')}")
    if is_stale:
        return CleanUp(mosaic, kept="its results are out of date, and its tiles will be needed")
    return found


def _files(project: Project, mosaic: MosaicId) -> Iterator[tuple[Path, int]]:
    """Yield the files that were computed for the tiles of a mosaic, with their sizes; no links, and no raw files."""
    folders = (project.paths.processed_folder(mosaic), project.paths.complex_folder(mosaic))
    raw = {identity for batch in project.layout.batches(mosaic) for identity in _raw_identities(project, batch)}
    for tile in project.layout.tiles(mosaic):
        record = project.facts.read_whole(tile, "processed")
        for file in record.outputs if record else ():
            path = project.paths.base / file.path
            if ":" in file.path or path.parent not in folders:
                continue
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in raw:
                    yield path, status.st_size


def _raw_identities(project: Project, batch: BatchId) -> Iterator[tuple[int, int]]:
    event = ready_event(project, batch)
    if event is None:
        return
    for name in (*event.files.values(), *event.spectra.values()):
        with contextlib.suppress(OSError):
            status = Path(event.raw_folder, name).stat()
            yield status.st_dev, status.st_ino


def _first_difference(project: Project, mosaic: MosaicId, opened: OpenTargets) -> str:
    """Return how a target differs from what was uploaded of a mosaic and its batches; empty if none does."""
    names = {target.target_name for target in project.config.publish.targets}
    checked: set[ItemId] = set()
    for one in verified_uploads(project, lambda item: _mosaic_of(item) == mosaic, names, opened):
        if one.problem:
            return f"{one.item}: {one.target}: {one.key} {one.problem}"
        checked.add(one.item)
    items: tuple[ItemId, ...] = (mosaic, *project.layout.batches(mosaic))
    for item in items:
        if item not in checked and not _is_empty(project, item):
            return f"{item}: no target vouches for it"
    return ""


def _is_empty(project: Project, item: ItemId) -> bool:
    """Return whether nothing was uploaded because there is nothing: a batch of which every tile has failed."""
    record = project.facts.read(item, "archived") if isinstance(item, BatchId) else None
    return record is not None and not record.outputs


def _removed(project: Project, plan: CleanUp) -> CleanUp:
    """Remove the files of a plan while nothing else works on the mosaic, and return what was removed."""
    facts, mosaic = project.facts, plan.mosaic
    batches = project.layout.batches(mosaic)
    works: list[tuple[ItemId, str]] = [(mosaic, work) for work in chain().claims("mosaic")]
    works += [(batch, work) for batch in batches for work in chain().claims("batch")]
    with contextlib.ExitStack() as claims:
        for item, work in works:
            claim = facts.claim(item, work, lease_s=project.deployment.lease_s)
            if claim is None:
                return CleanUp(mosaic, kept=f"{item} is being worked on: {facts.holder(item, work)}")
            claims.enter_context(claim)
        now = _planned(project, mosaic, facts, is_stale=False)
        if now.kept:
            return now
        for batch in batches:
            _record(project, batch, now.files)
        freed, removed = 0, []
        for path in now.files:
            size = path.lstat().st_size
            path.unlink(missing_ok=True)
            removed.append(path)
            freed += size
        for folder in {path.parent for path in removed}:
            sync_path(folder)
        return CleanUp(mosaic, tuple(removed), freed)


def _record(project: Project, batch: BatchId, files: Iterable[Path]) -> None:
    """Record which files of a batch are removed, before they are."""
    going = {project.paths.relative(path) for path in files}
    names: list[str] = []
    for tile in project.layout.tiles(batch):
        record = project.facts.read(tile, "processed")
        names += [file.path for file in record.outputs if file.path in going] if record else []
    if not names:
        return
    known = project.facts.read(batch, CLEANED)
    listed = [*(known.detail.get("files", ()) if known else ()), *names]
    content = {"detail": {"files": list(dict.fromkeys(listed))}}
    if not project.facts.record(batch, CLEANED, content):
        project.facts.replace(batch, CLEANED, content, why="the clean-up goes on")

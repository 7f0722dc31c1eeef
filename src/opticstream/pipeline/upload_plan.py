"""What an upload would send where, without doing anything."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from opticstream.model.chain import Step, chain
from opticstream.model.ids import ItemId, SampleId
from opticstream.pipeline.bindings import binding_of
from opticstream.pipeline.late_archive import archive_suffix, batches_without_archive
from opticstream.pipeline.project import Project
from opticstream.pipeline.uploads import dataset_files, files_to_upload, upload_queue, what_of
from opticstream.publish.ledger import Asset, Ledger
from opticstream.publish.transfer import Published
from opticstream.state.record import sha256_of_path


@dataclass(frozen=True, slots=True)
class Planned:
    """A file or store that would be uploaded.

    Attributes
    ----------
    item : ItemId
        The item that it belongs to; the sample for files of the whole data set.
    key : str
        Its name at the targets.
    size : int or None
        Bytes; None if that is not known before it is archived.
    targets : tuple of str
        Targets that are not known to hold it.
    before : str
        What has to be done first: ``"archive"``, ``"publish"`` or nothing.
    """

    item: ItemId
    key: str
    size: int | None
    targets: tuple[str, ...]
    before: str = ""


def planned_uploads(
    project: Project, chosen: Callable[[ItemId], bool], targets: Collection[str], /
) -> Iterator[Planned]:
    """Yield the files that an upload would send, in its order, and last those that would have to be archived first.

    Sidecars and tables that publication has yet to write are not known before.
    """
    held = {name: Ledger(project.paths.base, name).assets() for name in targets}

    def lacking(item: ItemId, file: Published) -> tuple[str, ...]:
        return tuple(
            name
            for name in receiving(item)
            if (known := held[name].get(file.key)) is None or known.sha256 != file.sha256
        )

    def receiving(item: ItemId) -> tuple[str, ...]:
        names = (one.target_name for one in project.config.publish.receiving(what_of(item)))
        return tuple(name for name in names if name in targets)

    found: list[Planned] = []
    for item, step in upload_queue(project, project.facts.snapshot()):
        if not chosen(item):
            continue
        if step.uploads:
            found += [
                Planned(item, file.key, file.size, lacking(item, file)) for file in files_to_upload(project, item, step)
            ]
        elif _uploading(project, item, step):
            found += [
                Planned(item, key, size, receiving(item), "publish") for key, size in _unpublished(project, item, step)
            ]
    late = [
        Planned(batch, project.paths.archived_tile(tile, archive_suffix(project))
                .relative_to(project.paths.archive_root).as_posix(), None, receiving(batch), "archive")
        for batch in filter(chosen, batches_without_archive(project))
        for tile in project.layout.tiles(batch)
        if project.facts.has(tile, "processed")
    ]  # fmt: skip
    yield from _tables(project, sorted(targets), held, goes={name for one in (*found, *late) for name in one.targets})
    yield from found
    yield from late


def _uploading(project: Project, item: ItemId, publishing: Step) -> bool:
    """Return whether what a step publishes is uploaded then."""
    return any(
        step.uploads and step.after == publishing.done and binding_of(step).wanted(project)
        for step in chain().steps
        if step.hierarchy == item.hierarchy
    )


def _unpublished(project: Project, item: ItemId, step: Step) -> Iterator[tuple[str, int]]:
    """Yield the keys and sizes of the files of an item that is not yet published."""
    record = project.facts.read(item, step.after)
    root = project.paths.archive_root
    for file in () if record is None else record.outputs:
        source = project.paths.absolute(file.path)
        path = source if source.is_relative_to(root) else project.paths.published(item, source)
        yield path.relative_to(root).as_posix(), file.size


def _tables(
    project: Project, targets: Collection[str], held: Mapping[str, Mapping[str, Asset]], goes: set[str]
) -> Iterator[Planned]:
    """Yield the files of the whole data set that a target lacks, if anything is sent there or they are lost there."""
    lacking: dict[Path, tuple[Published, list[str]]] = {}
    for name in targets:
        for file in dataset_files(project, name):
            known = held[name].get(file.key)
            is_sent = name in goes or (known is None and bool(held[name]))
            if is_sent and (known is None or known.sha256 != sha256_of_path(file.path)):
                lacking.setdefault(file.path, (file, []))[1].append(name)
    for file, names in lacking.values():
        yield Planned(SampleId(), file.key, file.size, tuple(names))

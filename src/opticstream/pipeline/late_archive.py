"""Archive copies of batches that were finished while archiving was off. The raw tiles are only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from opticstream.io.packed import PACKED_SUFFIXES, unpacked_name
from opticstream.io.raw import SpectralShape
from opticstream.io.spectra_zarr import ZARR_SUFFIX
from opticstream.model.errors import ChangingInputError, InputError, MissingInputError, StateError
from opticstream.model.events import BatchReady, Event
from opticstream.model.ids import BatchId, ItemId, TileId
from opticstream.pipeline.bindings import due_items
from opticstream.pipeline.jobs import ARCHIVE_BATCH, Attempt, Done, Result, announcements, once, perform
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.project import Project
from opticstream.state import Claim, FileRecord
from opticstream.state.raw_files import identity_of, is_known

if TYPE_CHECKING:
    from opticstream.stages.tile import SpectraContent


def archive_finished_batches(
    project: Project, /, *, only: Callable[[ItemId], bool] = lambda _item: True, attempt: Attempt = once
) -> Iterator[Event]:
    """Archive every batch that was finished without archive copies, and yield what is to be announced."""
    for batch in filter(only, batches_without_archive(project)):
        event = ready_event(project, batch)
        if event is not None:
            yield from archive_batch(project, event, attempt=attempt)


def batches_without_archive(project: Project, /) -> list[BatchId]:
    """Return the finished batches that are to be archived now."""
    snapshot = project.facts.snapshot()
    due = due_items(project, ARCHIVE_BATCH, snapshot, snapshot.items("batch"))
    return [item for item in due if isinstance(item, BatchId)]


def archive_batch(project: Project, event: BatchReady, /, *, attempt: Attempt = once) -> list[Event]:
    """Archive the raw tiles of a batch that was finished without it, and return what is to be announced.

    Tiles that are gone, or are not those that the results were made from, park the archiving of the batch with a reason
    that names them; the other tiles are archived all the same.
    """
    batch = event.batch

    def compute(claim: Claim) -> Result:
        outputs: list[FileRecord] = []
        lost: list[str] = []
        failed: list[int] = []
        for tile in project.layout.tiles(batch):
            if not project.facts.has(tile, "processed"):
                failed.append(tile.tile_id)
                continue
            try:
                outputs += attempt(f"archive tile {tile.tile_id}", partial(_archive, project, event, tile))
            except MissingInputError as error:
                lost.append(str(error))
            claim.ensure_mine()
        if lost:
            raise MissingInputError(
                f"{len(lost)} of {len(outputs) // 2 + len(lost)} raw tiles cannot be archived: {lost[0]}; "
                "put them back and use `opticstream retry`"
            )
        return Result(outputs=outputs, detail={"failed_tiles": failed})

    outcome = perform(project, batch, ARCHIVE_BATCH, compute)
    files = tuple(file.path for file in outcome.result.outputs) if isinstance(outcome, Done) else ()
    return announcements(project, batch, ARCHIVE_BATCH, outcome, **({"files": files} if files else {}))


def _archive(project: Project, event: BatchReady, tile: TileId) -> list[FileRecord]:
    """Write the archive copy of a tile from the very file that its results were made from."""
    from opticstream.stages.tile import archive_tile, available_threads, checksum_path

    record = project.facts.read(tile, "processed")
    if record is None:
        raise StateError(f"{tile} is no longer processed")
    source, spectra = raw_files_of_tile(event, tile)
    sources = (source,) if spectra is None else (source, spectra)
    for file in sources:
        if not file.exists():
            raise MissingInputError(f"{file} is gone")
    identity = identity_of(*sources)
    if not is_known(record, identity):
        raise InputError(
            f"{source} is not the file that {tile} was made from; `opticstream run` processes it again, and archives it"
        )
    archive = archive_tile(
        spectra or source,
        project.paths.archived_tile(tile, archive_suffix(project)),
        content=_spectra_in(project, tile, spectra or source),
        level=project.config.processing.archive.level,
        threads=available_threads(project.config.processing.reconstruction.threads),
    )
    if identity_of(*sources) != identity:
        raise ChangingInputError(f"{source} changed while it was archived")
    remove_other_forms(project, tile, archive.archive)
    copy = project.facts.file_record(archive.archive, checksum=False)
    return [
        FileRecord(copy.path, copy.size, archive.archive_sha256),
        project.facts.file_record(checksum_path(archive.archive)),
    ]


def raw_files_of_tile(event: BatchReady, tile: TileId, /) -> tuple[Path, Path | None]:
    """Return the raw file of a tile, and the spectra that lie beside it, if any.

    Raises
    ------
    InputError
        No raw file of the tile was found, or what was found is none.
    """
    if problem := event.problems.get(tile.tile_id):
        raise problem.error()
    if tile.tile_id not in event.files:
        raise MissingInputError(f"{tile}: no raw file was found in {event.raw_folder}")
    spectra = event.spectra.get(tile.tile_id)
    source = Path(event.raw_folder, event.files[tile.tile_id])
    return source, None if spectra is None else Path(event.raw_folder, spectra)


def remove_other_forms(project: Project, tile: TileId, archive: Path, /) -> None:
    """Remove the copies of a tile in other forms, and the links to them, now that there is a new one.

    It takes their place, as it does in the same form; they have the same checksum file.
    """
    for suffix in PACKED_SUFFIXES:
        name = unpacked_name(archive.name) + suffix
        if name != archive.name:
            archive.with_name(name).unlink(missing_ok=True)
            (project.paths.archived_folder(tile.mosaic) / name).unlink(missing_ok=True)


def archive_suffix(project: Project, /) -> str:
    """Return the end of the names of new archive copies."""
    raw = ".raw" if project.config.scan.archived_format == "packed12" else ".nii"
    return raw + (ZARR_SUFFIX if project.config.processing.archive.format == "zarr" else ".gz")


def _spectra_in(project: Project, tile: TileId, source: Path) -> SpectraContent | None:
    """Return what a raw file holds; None where that is no spectra."""
    from opticstream.stages.tile import SpectraContent

    scan, index = project.config.scan, project.layout.illumination_index(tile.mosaic)
    if scan.archived_format == "complex":
        return None
    shape = SpectralShape(
        scan.samples, scan.tile_shape(index)[0], scan.channels, scan.b_lines, f"scan.illuminations[{index}] and scan"
    )
    return SpectraContent(shape, scan.archived_format, str(source))

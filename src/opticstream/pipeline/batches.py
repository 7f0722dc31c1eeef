"""The work on one batch: process or park every tile, write the archive copies, announce both."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opticstream.config import parameters_hash
from opticstream.io.packed import PACKED_SUFFIXES, unpacked_name
from opticstream.io.tile_thumbnail import thumbnail_size, write_strips
from opticstream.model.errors import ChangingInputError, InputError, MissingInputError
from opticstream.model.events import (
    BatchArchived,
    BatchProcessed,
    BatchReady,
    Event,
    TileFailed,
    TileFlagged,
)
from opticstream.model.ids import BatchId, TileId
from opticstream.pipeline.arriving import forget_arriving
from opticstream.pipeline.bindings import is_due
from opticstream.pipeline.first_looks import (
    is_looked_at_first,
    is_of_matlab,
    look_at,
    look_at_newest_tile,
    look_key,
    show_look,
)
from opticstream.pipeline.host_memory import within_memory
from opticstream.pipeline.jobs import (
    ARCHIVE_BATCH,
    PROCESS_BATCH,
    Attempt,
    Done,
    Failed,
    Part,
    Result,
    Skipped,
    announcements,
    failure_event,
    once,
    perform,
    perform_part,
)
from opticstream.pipeline.late_archive import archive_batch, archive_suffix, raw_files_of_tile, remove_other_forms
from opticstream.pipeline.parameters import tile_hash
from opticstream.pipeline.project import Project
from opticstream.pipeline.settled_files import result_of_settled_files
from opticstream.stages.tile import (
    FirstLook,
    TileResult,
    checksum_path,
    drop_look,
    process_tile,
    products,
    read_look,
)
from opticstream.state import Claim, FactRecord, FileRecord
from opticstream.state.flags import WITHDRAWN_FOLDER
from opticstream.state.raw_files import KNOWN_AS, identity_of, is_known
from opticstream.system.spent import Spent

if TYPE_CHECKING:
    from opticstream.stages.tile import MatlabTiles

_log = logging.getLogger(__name__)


def process_batch(project: Project, event: BatchReady, /, *, attempt: Attempt = once) -> list[Event]:
    """Process the tiles of a batch and return what is to be announced.

    Tiles that an earlier, interrupted run has finished are taken as they are. A tile that fails for good is recorded
    with its reason and does not stop the others. A batch that was finished while archiving was off is archived.
    """
    batch = event.batch
    flagged: list[Event] = []

    def compute(claim: Claim) -> Result:
        outputs: list[FileRecord] = []
        tiles: dict[str, dict[str, object]] = {}
        archives: list[FileRecord] = []
        rests_on: dict[str, str | None] = {}
        with contextlib.ExitStack() as stack:
            matlab = _matlab_call(project, event, stack)
            for tile in project.layout.tiles(batch):
                look_at_newest_tile(project, next_one=tile)
                record, note = TileWork(project, event, tile, attempt, matlab).perform(claim)
                tiles[str(tile.tile_id)] = note
                rests_on[str(tile.tile_id)] = None if record is None else record.inputs_hash
                if record is None:
                    continue
                outputs += record.outputs
                names = _archive_names(project, tile)
                archives += [file for file in record.outputs if Path(file.path).name in names]
                if note.get("flags"):
                    flagged.append(
                        project.event(TileFlagged, tile, reasons=note["flags"], verdict=note.get("verdict", "look"))
                    )
        failed = sorted(int(number) for number, note in tiles.items() if note["outcome"] == "failed")
        if project.config.processing.archive.enabled:
            claim.ensure_mine()
            project.facts.record(batch, "archived", {"outputs": archives, "detail": {"failed_tiles": failed}})
            project.facts.withdraw(batch, "archive_failed", reason="archived as it was processed again")
        project.facts.withdraw(batch, "cleaned", reason="its tiles were made again")
        _write_strips(project, batch)
        return Result(
            outputs=outputs,
            inputs_hash=parameters_hash(rests_on),
            detail={"tiles": tiles, "failed_tiles": failed, "raw_folder": event.raw_folder, "files": event.files},
        )

    outcome = perform(project, batch, PROCESS_BATCH, compute)
    if isinstance(outcome, Done | Failed):
        forget_arriving(project, batch)
        for tile in project.layout.tiles(batch):  # of tiles that are parked
            drop_look(project.paths.base, tile)
    if isinstance(outcome, Skipped) and is_due(project, ARCHIVE_BATCH, batch):
        return archive_batch(project, event, attempt=attempt)
    if not isinstance(outcome, Done):
        return announcements(project, batch, PROCESS_BATCH, outcome)
    return [*_announcements_of_result(project, event, outcome.result), *flagged]


def _announcements_of_result(project: Project, event: BatchReady, result: Result, /) -> list[Event]:
    """Return the events that announce a processed batch."""
    batch, detail = event.batch, result.detail
    events: list[Event] = []
    archived = project.facts.read(batch, "archived")
    if archived is not None:
        names = tuple(file.path for file in archived.outputs)
        events.append(project.event(BatchArchived, batch, files=names))
    events.append(project.event(BatchProcessed, batch, failed_tiles=tuple(detail["failed_tiles"])))
    reasons = {number: detail["tiles"][str(number)]["reason"] for number in detail["failed_tiles"]}
    events += [
        project.event(TileFailed, TileId(batch.mosaic_id, number), reason=reason) for number, reason in reasons.items()
    ]
    if len(reasons) == len(detail["tiles"]):
        events.append(
            failure_event(project, batch, PROCESS_BATCH, f"every tile failed; first: {next(iter(reasons.values()))}")
        )
    return events


def _write_strips(project: Project, batch: BatchId, /) -> None:
    """Write the small pictures of a column for the dashboard; without them it makes its own from those of the tiles."""
    layout = project.layout
    tiles = sorted(layout.tiles(batch), key=lambda tile: layout.grid_position(tile)[1])
    size = thumbnail_size(*project.config.scan.tile_shape(layout.illumination_index(batch.mosaic)))
    try:
        write_strips(project.paths.base, batch, tiles, size)
    except OSError as error:
        _log.warning("%s has no small pictures: %s", batch, error)


def _matlab_call(project: Project, event: BatchReady, stack: contextlib.ExitStack) -> MatlabTiles | None:
    """Return the call of MATLAB for the tiles of a batch that are not done; None where our own code processes them."""
    if not is_of_matlab(project):
        return None
    from opticstream.stages.tile import MatlabTiles

    processing = within_memory(project).processing
    tiles: dict[TileId, Path] = {}
    for tile in project.layout.tiles(event.batch):
        with contextlib.suppress(InputError, OSError):  # said when the tile's turn comes
            source = raw_files_of_tile(event, tile)[0]
            if not is_done(project, event, tile):
                tiles[tile] = source
    call = MatlabTiles(
        tiles,
        scan=project.config.scan,
        processing=processing,
        deployment=project.deployment,
        folder=project.paths.processed_folder(event.batch.mosaic),
    )
    return stack.enter_context(call)


def is_done(project: Project, event: BatchReady, tile: TileId, /) -> bool:
    """Return whether a tile has been processed from the same file with the same settings.

    Raises
    ------
    InputError
        The announcement names no raw file of the tile, or none that can be used.
    """
    record = project.facts.read(tile, "processed")
    parameters = tile_hash(project.config, project.layout.illumination_index(tile.mosaic))
    if record is None or not _still_good(project, record, parameters):
        return False
    source, spectra = raw_files_of_tile(event, tile)
    return not source.exists() or is_known(record, identity_of(*((source,) if spectra is None else (source, spectra))))


def _archive_names(project: Project, tile: TileId) -> list[str]:
    """Return the names that an archive copy of a tile may have: copies keep their form when the setting changes."""
    raw = unpacked_name(project.paths.archived_tile(tile, archive_suffix(project)).name)
    return [raw + suffix for suffix in PACKED_SUFFIXES]


@dataclass
class TileWork:
    """The work on one tile of a batch, under the batch's claim."""

    project: Project
    event: BatchReady
    tile: TileId
    attempt: Attempt
    matlab: MatlabTiles | None = None
    """The call that processes the tiles of the batch, where MATLAB is their engine."""
    identity: str | None = None
    """Identity of the raw files that the tile is made from, as soon as it is known."""
    attempts: int = 0
    """How many attempts have failed, this one included; 0 where it has not failed."""

    def perform(self, claim: Claim) -> tuple[FactRecord | None, dict[str, object]]:
        """Return the record of the processed tile and its line in the batch's record; None where the tile is parked."""
        facts, tile = self.project.facts, self.tile
        part = Part(tile, self.record, self._failure)
        outcome = perform_part(self.project, part, PROCESS_BATCH, claim, self.compute)
        if isinstance(outcome, Failed):
            _set_aside(self.project, tile)
            if isinstance(outcome.error, ChangingInputError):
                _set_aside_products(self.project, tile)
            return None, {"outcome": "failed", "reason": outcome.reason, "attempts": self.attempts}
        facts.withdraw(tile, "failed", reason="processed by a later attempt")
        record = facts.read(tile, "processed")
        assert record is not None
        return record, {"outcome": "ok", **_note(record)}

    def compute(self, _claim: Claim) -> Result | Skipped:
        """Process the tile unless that is done, and return what is to be recorded."""
        try:
            return self._processed()
        except MissingInputError:
            raise
        except FileNotFoundError as error:
            name = self.event.files.get(self.tile.tile_id)
            raise MissingInputError(f"{self.tile}: {name} vanished from {self.event.raw_folder}") from error

    def _processed(self) -> Result | Skipped:
        """Process the tile, unless its record and products are good."""
        project, tile = self.project, self.tile
        record = project.facts.read(tile, "processed")
        source, spectra = raw_files_of_tile(self.event, tile)
        sources = (source,) if spectra is None else (source, spectra)
        parameters = tile_hash(project.config, project.layout.illumination_index(tile.mosaic))
        if record is not None and not source.exists() and _still_good(project, record, parameters):
            return Skipped("already processed with the same parameters; its raw file is gone")
        self.identity = identity_of(*sources)
        if record is not None and is_known(record, self.identity) and _still_good(project, record, parameters):
            return Skipped("already processed from the same file and parameters")
        archive = project.paths.archived_tile(tile, archive_suffix(project))

        def process(identity: str) -> tuple[TileResult, tuple[FileRecord, ...]]:
            kept = _kept_archive(project, record, identity, tile)
            result = self.attempt(
                f"tile {tile.tile_id}",
                lambda: process_tile(
                    source,
                    tile,
                    scan=project.config.scan,
                    processing=within_memory(project).processing,
                    out_dir=project.paths.base,
                    archive_to=archive if project.config.processing.archive.enabled and not kept else None,
                    spectra=spectra,
                    matlab=self.matlab,
                    look=self._first_look(source, identity),
                ),
            )
            if "archive" in result.outputs:
                remove_other_forms(project, tile, archive)
            return result, kept

        (result, kept), self.identity = result_of_settled_files(project, tile, sources, process)
        same = record if record is not None and is_known(record, self.identity) else None
        return Result(
            outputs=[*(_file_record(project, o.path, o.sha256) for o in result.outputs.values()), *kept],
            inputs_hash=self.identity if same is None else same.inputs_hash,
            detail={
                "source": source.name,
                "raw_bytes": result.raw_bytes,
                "raw_sha256": record.detail.get("raw_sha256") if record is not None and kept else result.raw_sha256,
                "figures": result.figures,
                "flags": list(result.flags),
                "engine": result.engine,
                **({"engine_note": result.engine_note} if result.engine_note else {}),
                **({"verdict": result.verdict} if result.flags else {}),
                **({} if same is None or KNOWN_AS not in same.detail else {KNOWN_AS: same.detail[KNOWN_AS]}),
            },
        )

    def _first_look(self, source: Path, identity: str) -> FirstLook | None:
        """Return the first look at the tile: one that was taken before, or now where somebody waits for it."""
        key = look_key(self.project, self.tile, identity)
        look = read_look(self.project.paths.base, self.tile, key=key)
        if look is None and is_looked_at_first(self.project, source, self.tile):
            look = look_at(self.project, source, self.tile, key)
            show_look(self.project, self.tile, look)
        return look

    def record(self, content: Mapping[str, Any], spent: Spent) -> None:
        """Record that the tile is processed."""
        self.project.facts.replace(self.tile, "processed", content, why="computed")
        self.project.facts.journal.computed(self.tile, "processed", spent)
        drop_look(self.project.paths.base, self.tile)

    def _failure(self) -> dict[str, Any]:
        """Return the identity of the raw files, so that others in their place are noticed, and the attempts."""
        earlier = self.project.facts.read(self.tile, "failed")
        self.attempts = 1 + (int(earlier.detail.get("attempts", 0)) if earlier else 0)
        return {"inputs_hash": self.identity, "detail": {"attempts": self.attempts}}


def _kept_archive(
    project: Project, record: FactRecord | None, inputs_hash: str, tile: TileId
) -> tuple[FileRecord, ...]:
    """Return the archive copy and its checksum file if they exist already and were made from the same raw file."""
    if record is None or not is_known(record, inputs_hash):
        return ()
    for name in _archive_names(project, tile):
        names = {name, checksum_path(Path(name)).name}
        kept = tuple(file for file in record.outputs if Path(file.path).name in names and _intact(project, file))
        if len(kept) == len(names):
            return kept
    return ()


def _set_aside(project: Project, tile: TileId) -> None:
    """Move the products of an earlier attempt out of the way, so that nothing is stitched from other settings."""
    record = project.facts.read(tile, "processed")
    if record is None:
        return
    project.facts.withdraw(tile, "processed", reason="a later attempt with other settings or another file failed")
    for file in record.outputs:
        if ":" not in file.path:
            _move_aside(project.facts.project_dir / file.path)


def _set_aside_products(project: Project, tile: TileId) -> None:
    """Move the products of a tile that are in no record out of the way, so that nothing is stitched from them."""
    for name in products(project.config.scan, project.config.processing):
        paths = project.paths
        _move_aside(paths.complex_tile(tile) if name == "complex" else paths.tile_product(tile, name))


def _move_aside(path: Path) -> None:
    if os.path.lexists(path):
        aside = path.parent / WITHDRAWN_FOLDER / path.name
        aside.parent.mkdir(exist_ok=True)
        path.replace(aside)


def _note(record: FactRecord) -> dict[str, object]:
    keys = ("raw_sha256", "figures", "flags", "verdict", "engine_note")
    return {key: record.detail[key] for key in keys if record.detail.get(key)}


def _still_good(project: Project, record: FactRecord, parameters: str) -> bool:
    return record.parameters_hash == parameters and all(_intact(project, file) for file in record.outputs)


def _intact(project: Project, file: FileRecord) -> bool:
    try:
        return project.paths.absolute(file.path).stat().st_size == file.size
    except OSError:
        return False


def _file_record(project: Project, path: Path, sha256: str | None) -> FileRecord:
    bare = project.facts.file_record(path, checksum=False)
    return FileRecord(bare.path, bare.size, sha256)

"""Check that the facts are true: records are readable, files exist unchanged, facts do not contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opticstream.model.errors import FileFormatError, StateError
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.state.facts import Facts, FactsSnapshot
from opticstream.state.manifest import differences_from_manifest, manifest_path, read_manifest
from opticstream.state.raw_files import changed_raw_files
from opticstream.state.record import FactRecord, FileRecord, file_from_name, sha256_of_path, size_of_path

Problem = Literal[
    "unreadable", "missing", "size", "checksum", "contradiction", "outside the layout", "raw file changed"
]

CONTRADICTIONS = {
    "tile": (("processed", "failed"),),
    "batch": (("processed", "failed"),),
    "mosaic": (("stitched", "failed"), ("volume_stitched", "volume_failed")),
    "slice": tuple(("registered", other) for other in ("axis_failed", "skipped", "failed")),
}
"""Facts of one item that cannot both be true."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference between a fact and what is found."""

    item: ItemId
    fact: str
    problem: Problem
    message: str
    path: Path | None = None

    def __str__(self) -> str:
        return f"{self.item} {self.fact}: {self.message}"


def verify(
    facts: Facts,
    /,
    *,
    layout: AcquisitionLayout | None = None,
    checksums: bool = True,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Return what is wrong with the facts of a project, in the order of items; an empty list if nothing is.

    Parameters
    ----------
    facts : Facts
        The facts of the project.
    layout : AcquisitionLayout, optional
        If given, also report items that the layout does not have, and results whose parts are not done.
    checksums : bool, default True
        Also read every file and compare its checksum; otherwise compare only existence and size, and for raw files
        size and time.
    threads : int, default 4
        Number of files to read at the same time.
    progress : callable, optional
        Called after each file with the number of files done and their total.
    """
    snapshot = facts.snapshot()
    findings: list[Finding] = list(_contradictions(snapshot))
    if layout is not None:
        findings += _against_layout(snapshot, layout)
    claims: list[tuple[FactRecord, FileRecord]] = []
    cleaned: set[str] = set()
    for item, fact in snapshot:
        try:
            record = facts.read(item, fact)
        except StateError as error:
            findings.append(Finding(item, fact, "unreadable", str(error), facts.path(item, fact)))
            continue
        if record is not None and fact == "cleaned":
            cleaned.update(map(str, record.detail.get("files", ())))
        if record is not None:
            claims += [(record, file) for file in record.outputs]
    distinct = sorted({file for _, file in claims}, key=lambda file: file.path)
    found: dict[FileRecord, tuple[Problem, str, Path | None] | None] = {}
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        results = pool.map(lambda file: _compare(facts, file, checksums=checksums), distinct)
        for number, (file, result) in enumerate(zip(distinct, results, strict=True), 1):
            found[file] = result
            if progress is not None:
                progress(number, len(distinct))
    for record, file in claims:
        if (result := found[file]) is not None:
            problem, message, path = result
            if problem == "missing" and file.path in cleaned:
                continue  # removed on purpose
            findings.append(Finding(record.item, record.fact, problem, message, path))
    findings += _changed_raw_files(facts, snapshot, checksums=checksums)
    return sorted(findings, key=lambda finding: (finding.item.key, finding.fact, finding.message))


def _compare(facts: Facts, file: FileRecord, *, checksums: bool) -> tuple[Problem, str, Path | None] | None:
    try:
        path = file_from_name(file.path, facts.roots)
    except StateError as error:
        return "missing", str(error), None
    try:
        size = size_of_path(path)
        if size != file.size:
            return "size", f"{path} holds {size} bytes, expected {file.size}{_which(path, checksums)}", path
        if checksums and file.sha256 is not None and (found := sha256_of_path(path)) != file.sha256:
            told = f"{path} has the SHA-256 {found[:12]}…, expected {file.sha256[:12]}…{_which(path, checksums)}"
            return "checksum", told, path
    except FileNotFoundError:
        return "missing", f"{path} does not exist", path
    except OSError as error:
        return "unreadable", f"{path} cannot be read: {error}", path
    return None


def _changed_raw_files(facts: Facts, snapshot: FactsSnapshot, *, checksums: bool) -> Iterator[Finding]:
    """Yield the raw files that differ from what was archived; files that are not accessible are skipped."""
    for item in snapshot.items("batch"):
        if isinstance(item, BatchId) and snapshot.has(item, "processed"):
            for changed in changed_raw_files(facts, item):
                if not (checksums and changed.has_same_content()):
                    yield Finding(changed.tile, changed.fact, "raw file changed", str(changed), changed.path)


def _which(path: Path, checksums: bool) -> str:
    """Return which files of a store differ from its manifest, or nothing if it has no readable manifest."""
    manifest = manifest_path(path)
    if not (path.is_dir() and manifest.is_file()):
        return ""
    try:
        found = differences_from_manifest(path, read_manifest(manifest), contents=checksums)
    except (FileFormatError, OSError):
        return ""  # the manifest is an output itself and is reported as such
    return f" ({found})" if found else ""


def _contradictions(snapshot: FactsSnapshot) -> Iterator[Finding]:
    for item in snapshot.items():
        for one, other in CONTRADICTIONS.get(item.hierarchy, ()):
            if snapshot.has(item, one) and snapshot.has(item, other):
                yield Finding(item, one, "contradiction", f"is recorded as {one} and as {other}")


def _against_layout(snapshot: FactsSnapshot, layout: AcquisitionLayout) -> Iterator[Finding]:
    for item in snapshot.items():
        if not _exists(item, layout):
            fact = min(snapshot.facts_of(item))
            yield Finding(item, fact, "outside the layout", "is outside the layout in the project's settings")
    needs: list[tuple[ItemId, tuple[str, ...], Sequence[ItemId], tuple[str, ...]]] = []
    for item in snapshot.items():
        if isinstance(item, MosaicId):
            needs.append((item, ("ready", "stitched"), layout.batches(item), ("processed", "failed")))
        elif isinstance(item, SliceId):
            needs.append((item, ("ready", "registered"), layout.mosaics(item), ("stitched", "failed")))
    for item, results, parts, done in needs:
        undone = [part for part in parts if not snapshot.reached([part], *done)]
        for fact in results:
            if undone and snapshot.has(item, fact):
                what = " nor ".join(done)
                yield Finding(item, fact, "contradiction", f"is recorded, but {undone[0]} is neither {what}")


def _exists(item: ItemId, layout: AcquisitionLayout) -> bool:
    if isinstance(item, BatchId):
        return item.batch_id <= layout.illumination_of(item.mosaic).columns
    if isinstance(item, TileId):
        return item.tile_id <= layout.illumination_of(item.mosaic).tiles
    return True

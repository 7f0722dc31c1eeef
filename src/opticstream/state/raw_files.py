"""Check whether raw files are still those that tiles were made from.

A tile's record names its raw file (and the spectra beside it, if any) with size and modification time, as
``name:size:mtime_ns``, joined by ``+``. A check costs one `stat` per file. The time alone proves nothing: a copy of the
raw folder, a restored backup or a file system with coarse times shows other ones for the same bytes. So a file that
differs in its time only can be compared with the checksum that was taken when it was read; identities of the same
content are added to the record under `KNOWN_AS`, and nothing has to be made again.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opticstream.config import parameters_hash
from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, TileId
from opticstream.state.facts import Facts
from opticstream.state.raw_folders import position_in_record
from opticstream.state.record import FactRecord

KNOWN_AS = "known_as"
"""Key of a tile's record for further identities of the same content."""
_IDENTITY = re.compile(r"(?:^|\+)(?P<name>.+?):(?P<size>\d+):(?P<mtime_ns>-?\d+)(?=\+|$)")
_SAME_TIME_NS = 1000
"""Times closer than this are equal: some shares store 100 ns, and show more digits while the file is in their cache."""


@dataclass(frozen=True, slots=True)
class RawIdentity:
    """Identifies a raw file without reading it."""

    name: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, /) -> RawIdentity:
        """Return the current identity of a file; raise OSError if it is not accessible."""
        status = path.stat()
        return cls(path.name, status.st_size, status.st_mtime_ns)

    def __str__(self) -> str:
        return f"{self.name}:{self.size}:{self.mtime_ns}"

    def is_same(self, other: RawIdentity, /) -> bool:
        """Return whether size and time equal those of another identity, ignoring names."""
        return self.size == other.size and abs(self.mtime_ns - other.mtime_ns) < _SAME_TIME_NS


def identity_of(*paths: Path) -> str:
    """Return the identity of the raw file of a tile, and of the spectra beside it, as its record keeps it."""
    return "+".join(str(RawIdentity.of(path)) for path in paths)


def identities_from_text(text: str, /) -> tuple[RawIdentity, ...]:
    """Return the identities that `identity_of` wrote; empty if the text is something else.

    Examples
    --------
    >>> [i.name for i in identities_from_text("a+b.nii:10:-5+c:1.nii:20:7")]
    ['a+b.nii', 'c:1.nii']
    """
    return tuple(RawIdentity(m["name"], int(m["size"]), int(m["mtime_ns"])) for m in _IDENTITY.finditer(text))


def is_known(record: FactRecord, identity: str, /) -> bool:
    """Return whether a tile's record was made from files of this identity, or of one with the same content."""
    return identity in (record.inputs_hash, *record.detail.get(KNOWN_AS, ()))


@dataclass(frozen=True, slots=True)
class ChangedRawFile:
    """A raw file that has changed since its tile was processed, or parked as failed."""

    tile: TileId
    fact: str
    path: Path
    then: RawIdentity
    now: RawIdentity
    sha256: str | None
    """Checksum of its (uncompressed) content at that time, if it was computed."""
    identity: str
    """Identity of all raw files of the tile now."""

    def __str__(self) -> str:
        since = "since it was archived" if self.fact == "processed" else "since its tile failed"
        return f"raw file changed {since}: {self.path} ({self.difference})"

    @property
    def difference(self) -> str:
        """The difference, in words."""
        if self.then.size != self.now.size:
            return f"{self.then.size} bytes then, {self.now.size} now"
        return f"last written {_time(self.then)} then, {_time(self.now)} now"

    def has_same_content(self) -> bool:
        """Read the file and return whether its content is unchanged; False if that is unknown."""
        if self.sha256 is None or (self.path.suffix != ".gz" and self.then.size != self.now.size):
            return False
        try:
            return _content_sha256(self.path) == self.sha256
        except (OSError, EOFError, zlib.error):
            return False


def _time(identity: RawIdentity) -> str:
    return f"{datetime.fromtimestamp(identity.mtime_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _content_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as plain, gzip.open(plain) if path.suffix == ".gz" else plain as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def changed_raw_files(facts: Facts, batch: BatchId, /) -> list[ChangedRawFile]:
    """Return the raw files of a processed batch that have changed since, by size and time.

    Files that are not accessible (the raw folder is unavailable) and records without an identity are left out.
    """
    try:
        record, ready = facts.read(batch, "processed"), facts.read(batch, "ready")
    except StateError:
        return []  # `state verify` reports damaged flags
    event = ready.detail.get("event") if ready else None
    if record is None or ready is None or not isinstance(event, Mapping):
        return []
    folder, files = _files_here(facts, ready.detail, event, record.detail.get("tiles", ()))
    failed = {str(number) for number in record.detail.get("failed_tiles", ())}
    now = {number: _identity_or_none(folder, names) for number, names in files.items()}
    rests_on = {number: None if number in failed else identity for number, identity in now.items()}
    looked_at = failed if parameters_hash(rests_on) == record.inputs_hash else set(files)
    return [
        changed
        for number in sorted(looked_at, key=int)
        if (identity := now[number]) is not None
        for changed in changes_of(
            facts, TileId(batch.mosaic_id, int(number)), tuple(Path(folder, name) for name in files[number]), identity
        )
    ]


def _files_here(
    facts: Facts, detail: Mapping[str, Any], event: Mapping[str, Any], numbers: Iterable[str]
) -> tuple[str, dict[str, tuple[str, ...]]]:
    """Return the raw folder of a batch as this host sees it, and the names of the files of its tiles."""
    named = {number: _names(event, number) for number in numbers}
    names = (name for some in named.values() for name in some)
    folder = facts.raw_folders.find(str(event.get("raw_folder", "")), names, position=position_in_record(detail))
    here = {number: tuple(facts.raw_folders.name_here(folder, name) for name in some) for number, some in named.items()}
    return str(folder), here


def _names(event: Mapping[str, Any], number: str) -> tuple[str, ...]:
    """Return the raw file of a tile, and the spectra beside it, as they were announced."""
    named = [(event.get(kind) or {}).get(number) for kind in ("files", "spectra")]
    return tuple(name for name in named if name) if named[0] else ()


def _identity_or_none(folder: str, names: tuple[str, ...]) -> str | None:
    """Return what `identity_of` returns, or None if a file is not accessible; fast, as `status` needs it."""
    parts = []
    for name in names:
        try:
            status = os.stat(os.path.join(folder, name))
        except OSError:
            return None
        parts.append(f"{name.rpartition('/')[2]}:{status.st_size}:{status.st_mtime_ns}")
    return "+".join(parts) or None


def changes_of(facts: Facts, tile: TileId, paths: tuple[Path, ...], identity: str, /) -> Iterator[ChangedRawFile]:
    """Yield the raw files of a tile that differ from those in its record; `identity` is their current one."""
    for fact in ("processed", "failed"):
        try:
            record = facts.read(tile, fact)
        except StateError:
            return
        if record is None:
            continue
        if record.inputs_hash is None:
            return
        now = identities_from_text(identity)
        known = [identities_from_text(text) for text in (record.inputs_hash, *record.detail.get(KNOWN_AS, ()))]
        if len(known[0]) != len(paths) or len(now) != len(paths) or any(_are_same(one, now) for one in known):
            return
        for path, before, after in zip(paths, known[0], now, strict=True):
            if not before.is_same(after):
                # The archived files have a checksum: the spectra, if there are any.
                sha256 = record.detail.get("raw_sha256") if path == paths[-1] else None
                yield ChangedRawFile(tile, fact, path, before, after, sha256, identity)
        return


def _are_same(known: tuple[RawIdentity, ...], now: tuple[RawIdentity, ...]) -> bool:
    return len(known) == len(now) and all(one.is_same(other) for one, other in zip(known, now, strict=True))


def remember_same_content(facts: Facts, changed: ChangedRawFile, /) -> None:
    """Note in a tile's record that its raw files, as they are now, have the same content."""
    record = facts.read(changed.tile, changed.fact)
    if record is None:
        return
    content = {
        "code_version": record.code_version,
        "flow_run_id": record.flow_run_id,
        "parameters_hash": record.parameters_hash,
        "inputs_hash": record.inputs_hash,
        "inputs": record.inputs,
        "outputs": record.outputs,
        "detail": {**record.detail, KNOWN_AS: [*record.detail.get(KNOWN_AS, ()), changed.identity]},
    }
    facts.replace(changed.tile, changed.fact, content, why="its raw file has another time and the same content")

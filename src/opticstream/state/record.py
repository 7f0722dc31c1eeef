"""The content of a flag file: who recorded the fact, when, from what, and with which files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from opticstream.model.errors import StateError
from opticstream.model.ids import ItemId, item_from_key
from opticstream.state.earlier_words import EARLIER
from opticstream.system.disk import reachable

PROJECT_ROOT = "project"
HEAD_BYTES = 1024
"""Number of bytes at the start of a flag that contain its hashes."""
_HASH_LINE = re.compile(rb'^ "(parameters_hash|inputs_hash)": "([^"]*)"', re.MULTILINE)
_CONTENT_KEYS = frozenset(
    {"flow_run_id", "code_version", "parameters_hash", "inputs_hash", "inputs", "outputs", "detail"}
)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file or folder as it was when a fact was recorded.

    Attributes
    ----------
    path : str
        Relative to the project, or to a further root as ``archive:rawdata/...``, with forward slashes, so that hosts
        may mount the folders in different places.
    size : int
        Bytes; of a folder the sum over its files.
    sha256 : str or None
        Hexadecimal; of a folder see `sha256_of_path`. None if it was not computed.
    """

    path: str
    size: int
    sha256: str | None = None

    @classmethod
    def from_path(cls, path: Path, roots: Mapping[str, Path], /, *, checksum: bool = True) -> FileRecord:
        """Return the record of the file or folder at `path`.

        Raises
        ------
        ValueError
            `path` is in none of the roots.
        FileNotFoundError
            There is nothing at `path`.
        """
        name = name_in_roots(path, roots)
        return cls(name, size_of_path(path), sha256_of_path(path) if checksum else None)

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | FileRecord, /) -> FileRecord:
        """Return the record that `to_json` wrote; a FileRecord is returned unchanged."""
        if isinstance(data, FileRecord):
            return data
        sha256 = data.get("sha256")
        return cls(str(data["path"]), int(data["size"]), None if sha256 is None else str(sha256))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; a missing checksum is left out."""
        data: dict[str, Any] = {"path": self.path, "size": self.size}
        return data if self.sha256 is None else data | {"sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class FactRecord:
    """The content of one flag."""

    item: ItemId
    fact: str
    time: datetime
    host: str = "unknown"
    pid: int = 0
    code_version: str = ""
    flow_run_id: str | None = None
    parameters_hash: str | None = None
    inputs_hash: str | None = None
    inputs: tuple[FileRecord, ...] = ()
    outputs: tuple[FileRecord, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the JSON text of the flag, one field per line, without empty fields."""
        data: dict[str, Any] = {
            "fact": self.fact,
            "item": self.item.key,
            "time": time_to_text(self.time),
            "host": self.host,
            "pid": self.pid,
            "code_version": self.code_version,
            "flow_run_id": self.flow_run_id,
            "parameters_hash": self.parameters_hash,
            "inputs_hash": self.inputs_hash,
            "inputs": [file.to_json() for file in self.inputs],
            "outputs": [file.to_json() for file in self.outputs],
            "detail": dict(self.detail),
        }
        kept = {key: value for key, value in data.items() if value not in (None, [], {})}
        return (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")

    @classmethod
    def from_bytes(cls, text: bytes, item: ItemId, fact: str, /, *, path: Path, modified: datetime) -> FactRecord:
        """Return the record in a flag.

        A flag without content, as ``touch`` makes, is a fact with its file's time and no further information.

        Raises
        ------
        StateError
            The text is not a record, or is the record of another item or fact.
        """
        if not text.strip():
            return cls(item, fact, modified)
        try:
            data = json.loads(text)
            record = cls(
                item=item_from_key(data["item"]),
                fact=data["fact"],
                time=time_from_text(data["time"]),
                host=data.get("host", "unknown"),
                pid=data.get("pid", 0),
                code_version=data.get("code_version", ""),
                flow_run_id=data.get("flow_run_id"),
                parameters_hash=data.get("parameters_hash"),
                inputs_hash=data.get("inputs_hash"),
                inputs=tuple(map(FileRecord.from_json, data.get("inputs", ()))),
                outputs=tuple(map(FileRecord.from_json, data.get("outputs", ()))),
                detail=MappingProxyType(dict(data.get("detail", {}))),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise StateError(f"{path} is not the record of a fact ({error!r}); withdraw it or restore it") from error
        if record.item == item and EARLIER.get(record.fact) == fact:
            record = replace(record, fact=fact)
        if (record.item, record.fact) != (item, fact):
            raise StateError(f"{path} holds the record of {record.item} {record.fact!r}, expected {item} {fact!r}")
        return record


class RecordedHashes(NamedTuple):
    """Hashes of the settings and inputs that a fact depends on; None if its record has none."""

    parameters_hash: str | None = None
    inputs_hash: str | None = None


def hashes_from_head(head: bytes, /) -> RecordedHashes:
    """Return the hashes in the first bytes of a flag, without reading its lists of files.

    Examples
    --------
    >>> record = FactRecord(item_from_key("slice-001"), "registered", datetime.now(UTC), parameters_hash="abc")
    >>> hashes_from_head(record.to_bytes()[:HEAD_BYTES])
    RecordedHashes(parameters_hash='abc', inputs_hash=None)
    """
    found = {key.decode(): value.decode() for key, value in _HASH_LINE.findall(head)}
    return RecordedHashes(**found)


def checked_content(content: Mapping[str, Any] | None, /) -> dict[str, Any]:
    """Return the caller's part of a record in its final types.

    Raises
    ------
    ValueError
        A key is unknown; free information belongs under ``detail``.
    """
    given = dict(content or {})
    if unknown := sorted(given.keys() - _CONTENT_KEYS):
        known = ", ".join(sorted(_CONTENT_KEYS))
        raise ValueError(
            f"unknown keys of a record: {', '.join(unknown)}; expected {known}; anything else belongs in 'detail'"
        )
    for key in ("inputs", "outputs"):
        if key in given:
            given[key] = tuple(map(FileRecord.from_json, given[key]))
    return given


def name_in_roots(path: Path, roots: Mapping[str, Path], /) -> str:
    """Return the name of a path in records: relative to the innermost root that contains it.

    Links are not followed: a folder of the project may be a link to another disk.

    Examples
    --------
    >>> roots = {"project": Path("/data/i80"), "archive": Path("/dandi/000123")}
    >>> name_in_roots(Path("/data/i80/mosaic-01/stitched/a.nii.gz"), roots)
    'mosaic-01/stitched/a.nii.gz'
    >>> name_in_roots(Path("/dandi/000123/rawdata/b.nii.gz"), roots)
    'archive:rawdata/b.nii.gz'
    """
    absolute = _absolute(path)
    holding = [(name, base) for name, folder in roots.items() if absolute.is_relative_to(base := _absolute(folder))]
    if not holding:
        raise ValueError(
            f"{path} is in none of the folders {', '.join(f'{name} ({base})' for name, base in roots.items())}"
        )
    name, base = max(holding, key=lambda held: len(held[1].parts))
    relative = absolute.relative_to(base).as_posix()
    return relative if name == PROJECT_ROOT and ":" not in relative else f"{name}:{relative}"


def path_from_name(name: str, roots: Mapping[str, Path], /) -> Path:
    """Return the path on this host of a name that `name_in_roots` made.

    Raises
    ------
    StateError
        The name's root is unknown.
    """
    root, colon, relative = name.partition(":")
    if not colon:
        return roots[PROJECT_ROOT] / name
    if root not in roots:
        known = ", ".join(roots)
        raise StateError(f"{name!r}: unknown root {root!r} on this host; expected one of {known}")
    return roots[root] / relative


def file_from_name(name: str, roots: Mapping[str, Path], /) -> Path:
    """Return where the bytes of a recorded file are on this host: a result may be a link to its copy in the archive.

    Raises
    ------
    StateError
        The name's root is unknown.
    """
    path = path_from_name(name, roots)
    return reachable(path, roots["archive"]) if "archive" in roots else path


def time_to_text(time: datetime, /) -> str:
    """Return a time as ISO 8601 text in UTC.

    Examples
    --------
    >>> time_to_text(datetime(2026, 1, 2, 3, 4, 5, 600000, UTC))
    '2026-01-02T03:04:05.600000Z'
    """
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def time_from_text(text: str, /) -> datetime:
    """Return the time that `time_to_text` wrote."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"time {text!r} has no time zone")
    return time.astimezone(UTC)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def size_of_path(path: Path, /) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in files_below(path))


def sha256_of_path(path: Path, /) -> str:
    r"""Return the checksum of a file, or of a folder.

    Notes
    -----
    A folder's checksum is that of the text ``sha256  relative/path\n`` over its files in the order of their paths:
    what ``sha256sum`` prints for them, hashed once more.
    """
    if not path.is_dir():
        return _sha256_of_file(path)
    lines = (f"{_sha256_of_file(file)}  {file.relative_to(path).as_posix()}\n" for file in files_below(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def files_below(folder: Path, /) -> Iterator[Path]:
    """Yield every file below a folder, in the order of their paths in it."""
    files = (Path(base, name) for base, _, names in os.walk(folder) for name in names)
    yield from sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The checksums of a store of many files: one text file beside it, which `sha256sum -c` reads inside the store.

The manifest of `a.ome.zarr` is `a.ome.zarr.sha256`, with a line ``sha256  relative/path`` for each file in the order
of their paths. Its own SHA-256 is the checksum of the folder (`sha256_of_path`), so a record of the one also covers the
other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from opticstream.model.errors import FileFormatError
from opticstream.state.durable import replace_whole
from opticstream.state.record import FileRecord, files_below, sha256_of_path

SUFFIX = ".sha256"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_NAMED = 5
"""Largest number of files that a message names for each kind of difference."""


def manifest_path(folder: Path, /) -> Path:
    """Return the manifest of a store, beside it.

    Examples
    --------
    >>> manifest_path(Path("mosaic_001_dBI.ome.zarr")).name
    'mosaic_001_dBI.ome.zarr.sha256'
    """
    return folder.with_name(folder.name + SUFFIX)


def write_manifest(folder: Path, /, *, threads: int = 4) -> Path:
    """Read every file of a store once, write its manifest atomically, and return the manifest's path."""
    target = manifest_path(folder)
    lines = (f"{digest}  {name}\n" for name, digest in _digests(folder, threads).items())
    replace_whole(target, "".join(lines).encode())
    return target


def read_manifest(path: Path, /) -> dict[str, str]:
    """Return the SHA-256 of each file that a manifest lists, by its path in the store.

    Raises
    ------
    FileFormatError
        A line is not in the format of sha256sum; the message names it.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: a manifest is UTF-8 text, this file is not: {error}") from error
    listed: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise FileFormatError(f"{path}, line {number}: expected 'sha256  path', got {line[:90]!r}")
        listed[match[2]] = match[1]
    return listed


@dataclass(frozen=True, slots=True)
class StoreDifferences:
    """How the files of a store differ from its manifest, by path in the store."""

    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.changed)

    def __str__(self) -> str:
        kinds = (("missing", self.missing), ("not in the manifest", self.extra), ("changed", self.changed))
        return "; ".join(f"{kind}: {_named(names)}" for kind, names in kinds if names)


def differences_from_manifest(
    folder: Path, listed: Mapping[str, str], /, *, contents: bool = True, threads: int = 4
) -> StoreDifferences:
    """Return which files of a store are missing, unexpected, or changed since its manifest was written.

    Without `contents` no file is read: only names are compared.
    """
    if contents:
        found: Mapping[str, str] = _digests(folder, threads)
    else:
        names = {file.relative_to(folder).as_posix() for file in files_below(folder)}
        found = {name: listed.get(name, "") for name in sorted(names)}
    return StoreDifferences(
        missing=tuple(name for name in listed if name not in found),
        extra=tuple(name for name in found if name not in listed),
        changed=tuple(name for name, digest in found.items() if listed.get(name, digest) != digest),
    )


def records_of_store(record: Callable[..., FileRecord], folder: Path, /) -> list[FileRecord]:
    """Return the records of a store and its manifest, or of the store alone, without a checksum, if it has no manifest.

    Parameters
    ----------
    record : callable
        `Facts.file_record`.
    folder : Path
        The store.
    """
    store, manifest = record(folder, checksum=False), manifest_path(folder)
    if not manifest.is_file():
        return [store]
    listed = record(manifest)
    return [FileRecord(store.path, store.size, listed.sha256), listed]


def _digests(folder: Path, threads: int) -> dict[str, str]:
    files = list(files_below(folder))
    with ThreadPoolExecutor(max(1, threads)) as pool:  # hashing releases the interpreter's lock
        digests = pool.map(sha256_of_path, files)
        return {file.relative_to(folder).as_posix(): digest for file, digest in zip(files, digests, strict=True)}


def _named(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

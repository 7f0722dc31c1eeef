"""The interface of a remote target: where the files of the archive tree are sent, under the same relative names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opticstream.model.errors import InputError, UploadError
from opticstream.publish.pace import Pace

Passed = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of the local archive tree that is to be sent."""

    path: Path
    key: str
    """Its name at the target: its path in the archive tree."""
    size: int
    sha256: str
    """Checksum from its record."""


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A store (OME-Zarr) of the local archive tree that is to be sent: a folder with many small files."""

    path: Path
    key: str
    """Its name at the target: its path in the archive tree."""
    size: int
    """Bytes, of all files together."""
    sha256: str
    """Checksum of its manifest."""
    files: tuple[LocalFile, ...]
    """Its files; their keys begin with that of the store."""

    def name_of(self, file: LocalFile, /) -> str:
        """Return the path of one of its files in the store."""
        return file.key.removeprefix(f"{self.key}/")


@dataclass(frozen=True, slots=True)
class Held:
    """What a target says that it holds under a key."""

    size: int
    """Bytes; of a store, of all files together."""
    mark: str
    """The target's own digest of the bytes, in its own form; empty if it has none."""
    files: int = 1
    """Number of files; more than one only for a store."""


class RemoteTarget(Protocol):
    """A place on the network that holds copies of results.

    Every method repeats its requests while the target does not answer, as long as its patience lasts, and then raises
    TargetUnavailable. What cannot become better by waiting (permissions, quota, a missing bucket) is an UploadError at
    once. No message contains a secret.
    """

    @property
    def name(self) -> str:
        """Name of the target, unique in the project, as in its settings."""
        ...

    @property
    def place(self) -> str:
        """Where it puts the files, without secrets, such as `s3://bucket/prefix at https://s3.example.org`."""
        ...

    def look(self, key: str, /) -> Held | None:
        """Return what the target holds under the key of a file, or None if there is no such file."""
        ...

    def put(self, file: LocalFile, /, *, pace: Pace, threads: int, passed: Passed) -> frozenset[str]:
        """Send a file and return the marks of which the target gives one to exactly these bytes.

        An interrupted transfer continues where it was, where the target can do that. The file appears whole or not at
        all. `passed` is told, in the calling thread, the bytes that are done; it may raise an error to stop.

        Raises
        ------
        InputError
            The file is not the one that its record describes.
        """
        ...

    def marks(self, file: LocalFile, /) -> frozenset[str]:
        """Return the marks that `put` would return, without sending anything; reads the file."""
        ...

    def read_sha256(self, key: str, /) -> str:
        """Read what the target holds under a key, and return its SHA-256."""
        ...

    def look_store(self, key: str, /) -> Held | None:
        """Return what the target holds under the key of a store, or None if there is no such store."""
        ...

    def put_store(self, store: LocalStore, /, *, pace: Pace, threads: int, passed: Passed) -> Held:
        """Have the target hold exactly the files of a store, and return what it then says that it holds, verified.

        Files that it holds already are not sent again. `passed` is as for `put`.

        Raises
        ------
        InputError
            A file is not the one that its record describes.
        UploadError
            What the target holds now is not what was sent.
        """
        ...

    def check(self) -> None:
        """Return if the target answers and accepts the credentials; raise an UploadError that says why if not."""
        ...


def ensure_is_the_file(file: LocalFile, size: int, sha256: str, /) -> None:
    """Raise InputError if size and SHA-256, as they were read, are not those of the record of a file."""
    if (size, sha256) != (file.size, file.sha256):
        raise InputError(
            f"{file.path}: holds {size} bytes with the SHA-256 {sha256[:12]}…, but its record says {file.size} bytes "
            f"with {file.sha256[:12]}…; `opticstream state verify` lists such files"
        )


def ensure_holds(target: RemoteTarget, file: LocalFile, held: Held | None, marks: frozenset[str], /) -> None:
    """Compare what a target says that it holds with the file that was sent, and the marks of its bytes.

    A target that encrypts, or repacks, has marks of its own: then the bytes are read back.

    Raises
    ------
    UploadError
        They differ.
    """
    where = f"{target.name} ({target.place})"
    if held is None:
        raise UploadError(f"{where} does not hold {file.key} although it accepted it")
    if held.size != file.size:
        raise UploadError(f"{where} holds {held.size} bytes of {file.key}, expected {file.size}")
    if held.mark not in marks and (found := target.read_sha256(file.key)) != file.sha256:
        raise UploadError(f"{where} holds {file.key} with the SHA-256 {found[:12]}…, expected {file.sha256[:12]}…")

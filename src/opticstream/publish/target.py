"""The interface of a remote target: where the files of the archive tree are sent, under the same relative names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
class Held:
    """What a target says that it holds under a key."""

    size: int
    mark: str
    """The target's own digest of the bytes, in its own form; empty if it has none."""


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
        """Return what the target holds under a key, or None if there is nothing."""
        ...

    def look_below(self, folder: str, /) -> Mapping[str, Held]:
        """Return what the target holds below a folder, by the path in it."""
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

    def remove(self, key: str, /) -> None:
        """Remove a file that no longer belongs to its store."""
        ...

    def check(self) -> None:
        """Return if the target answers and accepts the credentials; raise an UploadError that says why if not."""
        ...

"""Send files and stores to a remote target, and compare what it then holds with the records.

What the target holds already is not sent again: because the ledger says so and its mark is unchanged, or because
its mark is that of the local bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from opticstream.model.errors import MissingInputError, UploadError
from opticstream.publish.ledger import Asset, Ledger
from opticstream.publish.pace import Pace
from opticstream.publish.target import Held, LocalFile, LocalStore, Passed, RemoteTarget, ensure_holds
from opticstream.state.manifest import manifest_path, read_manifest
from opticstream.state.record import files_below, sha256_of_path, time_to_text


@dataclass(frozen=True, slots=True)
class Published:
    """A file or store of the local archive tree."""

    path: Path
    key: str
    """Its path in the archive tree, which is its name at every target."""
    size: int
    sha256: str | None = None
    """Checksum from its record; None if it has to be read for it."""


@dataclass
class Transfer:
    """Sends files to one target.

    Attributes
    ----------
    target, ledger
        Where to, and what it is known to hold.
    pace : Pace
        Limit of the bandwidth.
    threads : int
        Files, or parts of large files, that are sent at the same time. The memory needed is that many parts.
    passed : callable
        Told the bytes that are done, sent or not; may raise an error to stop.
    """

    target: RemoteTarget
    ledger: Ledger
    pace: Pace = field(default_factory=Pace)
    threads: int = 5
    passed: Passed = lambda _size: None

    def send(self, published: Published, /) -> Asset:
        """Have the target hold a file or store, verified, and return it as the ledger knows it now.

        Raises
        ------
        UploadError
            The target refused, or holds other bytes than were sent; TargetUnavailable if it did not answer.
        InputError
            The file is missing, or is not the one that its record describes.
        """
        if not published.path.exists():
            raise MissingInputError(f"{published.path}: does not exist and cannot be uploaded to {self.target.name}")
        known = self.ledger.asset(published.key, place=self.target.place)
        asset = self._send_store(published, known) if published.path.is_dir() else self._send_file(published, known)
        if known is None or (known.mark, known.sha256, known.size) != (asset.mark, asset.sha256, asset.size):
            self.ledger.add(asset)
        return asset

    def _send_file(self, published: Published, known: Asset | None) -> Asset:
        sha256 = published.sha256 or sha256_of_path(published.path)
        file = LocalFile(published.path, published.key, published.path.stat().st_size, sha256)
        held = self.target.look(file.key)
        if held is not None and self._holds(file, held, known):
            self.passed(file.size)
        else:
            marks = self.target.put(file, pace=self.pace, threads=self.threads, passed=self.passed)
            held = self.target.look(file.key)
            ensure_holds(self.target, file, held, marks)
        assert held is not None
        return self._asset(file.key, file.size, sha256, held.mark)

    def _send_store(self, published: Published, known: Asset | None) -> Asset:
        store = store_of(published)
        held = self.target.look_store(store.key)
        expected = (store.size, store.sha256)
        if known is not None and held is not None and (known.size, known.sha256) == expected and _same(held, known):
            self.passed(store.size)
        else:
            held = self.target.put_store(store, pace=self.pace, threads=self.threads, passed=self.passed)
        return self._asset(store.key, store.size, store.sha256, held.mark, len(store.files))

    def _holds(self, file: LocalFile, held: Held, known: Asset | None) -> bool:
        """Return whether what the target holds is the file."""
        if held.size != file.size:
            return False
        if known is not None and known.sha256 == file.sha256 and _same(held, known):
            return True
        return held.mark in self.target.marks(file)

    def _asset(self, key: str, size: int, sha256: str, mark: str, files: int = 1) -> Asset:
        now = time_to_text(datetime.now(UTC))
        return Asset(key, size, sha256, mark, self.target.place, now, files)


def _same(held: Held, known: Asset) -> bool:
    """Return whether a target holds what it held when that was last verified."""
    return bool(held.mark) and (held.size, held.files, held.mark) == (known.size, known.files, known.mark)


def differences(target: RemoteTarget, asset: Asset, /, *, contents: bool = False) -> str | None:
    """Return how what a target holds now differs from what was verified when it was uploaded; None if it does not.

    A file whose mark has changed, because the target has copied or encrypted it anew, is read back and its SHA-256 is
    compared. With `contents`, every single file is.

    Raises
    ------
    UploadError
        The target gives no digest at present; TargetUnavailable if it does not answer.
    """
    found = target.look(asset.key) if asset.files == 1 else None
    held = target.look_store(asset.key) if found is None else found
    if held is None:
        return "is not there"
    if held.files != asset.files:
        return f"has {held.files} files, expected {asset.files}"
    if held.size != asset.size:
        return f"holds {held.size} bytes, expected {asset.size}"
    if found is not None and (contents or held.mark != asset.mark):
        sha256 = target.read_sha256(asset.key)
        if sha256 != asset.sha256:
            return f"holds other bytes: their SHA-256 is {sha256[:12]}…, expected {asset.sha256[:12]}…"
    elif held.mark != asset.mark:
        if not held.mark:
            raise UploadError(f"{target.name} ({target.place}): gives no digest of {asset.key} at present")
        return f"holds other bytes: its mark is {held.mark[:16]}…, expected {asset.mark[:16]}…"
    return None


def store_of(published: Published, /) -> LocalStore:
    """Return a store with its files and their checksums, from its manifest or else by reading them.

    Raises
    ------
    UploadError
        The manifest does not list exactly the files of the store.
    """
    files = list(files_below(published.path))
    manifest = manifest_path(published.path)
    listed = read_manifest(manifest) if manifest.is_file() else {}
    names = [file.relative_to(published.path).as_posix() for file in files]
    if listed and listed.keys() != set(names):
        different = sorted(listed.keys() ^ set(names))
        raise UploadError(
            f"{published.path}: {len(different)} files are not both in the store and in its manifest, such as "
            f"{different[0]}; `opticstream state verify` lists them"
        )
    found = tuple(
        LocalFile(file, f"{published.key}/{name}", file.stat().st_size, listed.get(name) or sha256_of_path(file))
        for file, name in zip(files, names, strict=True)
    )
    lines = (f"{file.sha256}  {name}\n" for file, name in zip(found, names, strict=True))  # as `sha256_of_path` does
    sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
    return LocalStore(published.path, published.key, sum(file.size for file in found), sha256, found)

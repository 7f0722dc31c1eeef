"""Send files and stores to a remote target, and compare what it then holds with the records.

What the target holds already is not sent again: because the ledger says so and its mark is unchanged, or because
its mark is that of the local bytes. A store (OME-Zarr) is many small files, compared by one listing.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from opticstream.model.errors import MissingInputError, UploadError
from opticstream.publish.ledger import Asset, Ledger
from opticstream.publish.pace import Pace
from opticstream.publish.target import Held, LocalFile, Passed, RemoteTarget
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
            self._verify(file, held, marks)
        assert held is not None
        return self._asset(file.key, file.size, sha256, held.mark)

    def _send_store(self, published: Published, known: Asset | None) -> Asset:
        files = files_of_store(published)
        sha256 = sha256_of_files(files, published.key)
        size = sum(file.size for file in files)
        held = self.target.look_below(published.key)
        mark = mark_of_store(held)
        if known is not None and (known.sha256, known.mark, known.size) == (sha256, mark, size) and mark:
            self.passed(size)
            return self._asset(published.key, size, sha256, mark, len(files))
        names = {file.key.removeprefix(published.key + "/"): file for file in files}
        marks = {}
        for name, found in self._in_parallel(names, held):
            marks[name] = found
            self.passed(names[name].size)
        for name in held.keys() - names.keys():  # of an earlier store of the same name
            self.target.remove(f"{published.key}/{name}")
        held = self.target.look_below(published.key)
        for name, file in names.items():
            self._verify(file, held.get(name), marks[name])
        return self._asset(published.key, size, sha256, mark_of_store(held), len(files))

    def _in_parallel(
        self, names: Mapping[str, LocalFile], held: Mapping[str, Held]
    ) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield the marks of each file once the target holds it; few files wait in memory at any time."""

        def have(file: LocalFile, found: Held | None) -> frozenset[str]:
            if found is not None and found.size == file.size:
                marks = self.target.marks(file)
                if found.mark in marks:
                    return marks
            return self.target.put(file, pace=self.pace, threads=1, passed=lambda _size: None)

        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[tuple[str, Future[frozenset[str]]]] = deque()
            try:
                for name, file in names.items():
                    if len(waiting) >= 4 * self.threads:
                        first, future = waiting.popleft()
                        yield first, future.result()
                    waiting.append((name, pool.submit(have, file, held.get(name))))
                while waiting:
                    first, future = waiting.popleft()
                    yield first, future.result()
            finally:
                for _, future in waiting:
                    future.cancel()

    def _holds(self, file: LocalFile, held: Held, known: Asset | None) -> bool:
        """Return whether what the target holds is the file."""
        if held.size != file.size:
            return False
        if known is not None and known.sha256 == file.sha256 and held.mark and known.mark == held.mark:
            return True
        return held.mark in self.target.marks(file)

    def _verify(self, file: LocalFile, held: Held | None, marks: frozenset[str]) -> None:
        """Compare what the target says that it holds with what was sent.

        Raises
        ------
        UploadError
            They differ.
        """
        where = f"{self.target.name} ({self.target.place})"
        if held is None:
            raise UploadError(f"{where} does not hold {file.key} although it accepted it")
        if held.size != file.size:
            raise UploadError(f"{where} holds {held.size} bytes of {file.key}, expected {file.size}")
        # A target that encrypts, or repacks, has marks of its own: then the bytes are read back.
        if held.mark not in marks and (found := self.target.read_sha256(file.key)) != file.sha256:
            raise UploadError(f"{where} holds {file.key} with the SHA-256 {found[:12]}…, expected {file.sha256[:12]}…")

    def _asset(self, key: str, size: int, sha256: str, mark: str, files: int = 1) -> Asset:
        now = time_to_text(datetime.now(UTC))
        return Asset(key, size, sha256, mark, self.target.place, now, files)


def differences(target: RemoteTarget, asset: Asset, /, *, contents: bool = False) -> str | None:
    """Return how what a target holds now differs from what was verified when it was uploaded; None if it does not.

    With `contents`, single files are read back and their SHA-256 is compared, too.
    """
    if asset.files > 1 or (found := target.look(asset.key)) is None:
        held = target.look_below(asset.key)
        if not held:
            return "is not there"
        size, mark = sum(one.size for one in held.values()), mark_of_store(held)
        if len(held) != asset.files:
            return f"has {len(held)} files, expected {asset.files}"
    else:
        size, mark = found.size, found.mark
    if size != asset.size:
        return f"holds {size} bytes, expected {asset.size}"
    if mark != asset.mark:
        return f"holds other bytes: its mark is {mark[:16]}…, expected {asset.mark[:16]}…"
    if contents and asset.files == 1 and target.look(asset.key) is not None:
        sha256 = target.read_sha256(asset.key)
        if sha256 != asset.sha256:
            return f"has the SHA-256 {sha256[:12]}…, expected {asset.sha256[:12]}…"
    return None


def files_of_store(store: Published, /) -> list[LocalFile]:
    """Return the files of a store with their checksums, from its manifest or else by reading them.

    Raises
    ------
    UploadError
        The manifest does not list exactly the files of the store.
    """
    files = list(files_below(store.path))
    manifest = manifest_path(store.path)
    listed = read_manifest(manifest) if manifest.is_file() else {}
    names = [file.relative_to(store.path).as_posix() for file in files]
    if listed and listed.keys() != set(names):
        different = sorted(listed.keys() ^ set(names))
        raise UploadError(
            f"{store.path}: {len(different)} files are not both in the store and in its manifest, such as "
            f"{different[0]}; `opticstream state verify` lists them"
        )
    return [
        LocalFile(file, f"{store.key}/{name}", file.stat().st_size, listed.get(name) or sha256_of_path(file))
        for file, name in zip(files, names, strict=True)
    ]


def sha256_of_files(files: Iterable[LocalFile], key: str, /) -> str:
    """Return the checksum of the store under a key, as `sha256_of_path` computes it, without reading it."""
    lines = (f"{file.sha256}  {file.key.removeprefix(f'{key}/')}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def mark_of_store(held: Mapping[str, Held], /) -> str:
    """Return one mark for all files of a store; empty if one of them has none."""
    if not held or not all(one.mark for one in held.values()):
        return ""
    lines = (f"{name} {one.size} {one.mark}\n" for name, one in sorted(held.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()

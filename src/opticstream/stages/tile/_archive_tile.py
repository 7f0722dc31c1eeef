"""The archive copy of a raw tile: SHA-256 and gzip in the one pass in which the tile is read.

`ArchiveWriter` takes the bytes as they come from the reader. The stream is cut at fixed places into chunks that are
deflated on their own, on several threads, and joined into one ordinary gzip member; its bytes depend neither on the
number of threads nor on how the reader cut the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from opticstream.io.atomic import TEMPORARY_MARK, atomic_path, write_text
from opticstream.io.raw import gzip_reader
from opticstream.io.reading import check_regular_file, error_of_system
from opticstream.model.errors import FileFormatError
from opticstream.state.manifest import SUFFIX, differences_from_manifest, manifest_path, read_manifest
from opticstream.state.record import sha256_of_path, size_of_path

CHUNK_BYTES = 1 << 20
_STORE = ".zarr"
"""End of the name of a folder that counts as one: a store of chunks."""
_READ_BYTES = 1 << 22
_IGZIP_LEVEL = {0: 1, 1: 2, 2: 3, 3: 3}
"""igzip's own level by ours. Its level 0 makes noisy spectra larger than they were; its level 2 comes within 8 % of
`gzip -3` at eight times the speed, which makes it our default."""


def _isal() -> Any:
    from isal import isal_zlib

    return isal_zlib


def _deflate(pieces: list[memoryview], level: int) -> bytes:
    """Deflate one chunk on its own, ended by a flush so that the next one can follow."""
    library, effort = (_isal(), _IGZIP_LEVEL[level]) if level in _IGZIP_LEVEL else (zlib, level)
    packer = library.compressobj(effort, zlib.DEFLATED, -15)
    # in one piece: the output depends on how the input is cut
    whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    packed: bytes = packer.compress(whole) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed


_LAST_BLOCK = b"\x03\x00"  # an empty final deflate block


class ArchiveDigests(NamedTuple):
    """SHA-256 of a raw file and of its archive copy, both computed while the copy is written."""

    raw: str
    archive: str


class ArchiveWriter:
    """Compresses and hashes the bytes of one raw tile; `tap` is what a reader calls.

    Parameters
    ----------
    file : binary file
        Where the gzip member goes.
    level : int
        0 to 3: igzip, fastest first; 4 to 9: zlib, several times slower and a few percent smaller.
    pool : executor, optional
        Threads that deflate; without it everything happens in the caller's thread.
    """

    def __init__(self, file: IO[bytes], /, *, level: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self._file = file
        self._level = level
        self._pool = pool
        self._queue: deque[Future[bytes]] = deque()
        self._hash = hashlib.sha256()
        self._crc = 0
        self._pieces: list[memoryview] = []
        self._pending = 0
        self._hashing: Future[None] | None = None
        self._archive_hash = hashlib.sha256()
        self._archive_hashing: Future[None] | None = None
        self._finished = False
        self.raw_bytes = 0
        self.archive_bytes = 0
        self._write(
            struct.pack("<4BIBB", 0x1F, 0x8B, 8, 0, 0, 0, 255)
        )  # without name and time: the same bytes every time

    def tap(self, data: memoryview, /) -> None:
        """Take the next bytes of the file; the memory must stay as it is until `finish`."""
        self.raw_bytes += len(data)
        if self._hashing is not None:
            self._hashing.result()
        if self._pool is None:
            self._digest(data)
        else:
            self._hashing = self._pool.submit(self._digest, data)
        while len(data):
            take = data[: CHUNK_BYTES - self._pending]
            self._pieces.append(take)
            self._pending += len(take)
            data = data[len(take) :]
            if self._pending == CHUNK_BYTES:
                self._end_chunk()

    def _digest(self, data: memoryview) -> None:
        self._hash.update(data)
        self._crc = _isal().crc32(data, self._crc)

    def _end_chunk(self) -> None:
        pieces, self._pieces, self._pending = self._pieces, [], 0
        if self._pool is None:
            self._write(_deflate(pieces, self._level))
            return
        self._queue.append(self._pool.submit(_deflate, pieces, self._level))
        while self._queue and (self._queue[0].done() or len(self._queue) > 64):
            self._write(self._queue.popleft().result())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.archive_bytes += len(data)
        if self._pool is None:
            self._archive_hash.update(data)
            return
        if self._archive_hashing is not None:
            self._archive_hashing.result()
        self._archive_hashing = self._pool.submit(self._archive_hash.update, data)

    def finish(self) -> ArchiveDigests:
        """Write what is left and the trailer, and return the checksums; a second call only returns them."""
        if not self._finished:
            self._finished = True
            self._end()
        return ArchiveDigests(self._hash.hexdigest(), self._archive_hash.hexdigest())

    def _end(self) -> None:
        if self._pieces:
            self._end_chunk()
        while self._queue:
            self._write(self._queue.popleft().result())
        if self._hashing is not None:
            self._hashing.result()
        self._write(_LAST_BLOCK + struct.pack("<II", self._crc, self.raw_bytes & 0xFFFFFFFF))
        if self._archive_hashing is not None:
            self._archive_hashing.result()


def checksum_path(archive: Path, /) -> Path:
    """Return the checksum file of an archive copy; it holds name and SHA-256 of the uncompressed file.

    Examples
    --------
    >>> checksum_path(Path("a_OCT.nii.gz")).name
    'a_OCT.nii.sha256'
    """
    return archive.with_name(archive.name.removesuffix(".gz") + ".sha256")


@contextlib.contextmanager
def open_archive(
    archive: Path, /, *, level: int = 1, pool: ThreadPoolExecutor | None = None
) -> Iterator[ArchiveWriter]:
    """Yield a writer for `archive`; both the copy and its checksum file appear when the block ends without an error.

    The block calls `finish` itself or leaves it to the context manager.
    """
    with atomic_path(archive) as temporary:
        with temporary.open("wb") as file:
            writer = ArchiveWriter(file, level=level, pool=pool)
            yield writer
            digest = writer.finish().raw
        checksum = checksum_path(archive)
        write_text(checksum, f"{digest}  {checksum.name.removesuffix('.sha256')}\n")


@dataclass(frozen=True, slots=True)
class ArchiveResult:
    """One archive copy."""

    archive: Path
    raw_bytes: int
    archive_bytes: int
    sha256: str
    """Of the raw file."""
    archive_sha256: str


def archive_tile(source: Path, archive: Path, /, *, level: int = 1, threads: int = 1) -> ArchiveResult:
    """Write the archive copy of a raw file by itself, without reconstructing it, and return what was written.

    Raises
    ------
    MissingInputError, InputError
        The source is absent or cannot be read.
    """
    try:
        check_regular_file(source)
        file = source.open("rb", buffering=0)
    except OSError as error:
        raise error_of_system(source, error) from error
    with file, _threads(threads) as pool, open_archive(archive, level=level, pool=pool) as writer:
        while True:
            try:
                data = file.read(_READ_BYTES)
            except OSError as error:
                raise error_of_system(source, error) from error
            if not data:
                break
            writer.tap(memoryview(data))
        digests = writer.finish()
    return ArchiveResult(archive, writer.raw_bytes, writer.archive_bytes, digests.raw, digests.archive)


@dataclass(frozen=True, slots=True)
class Verification:
    """What re-reading an archive copy, or any other file or store of an archive, showed."""

    archive: Path
    problem: str | None
    """None where it holds the bytes that its checksums vouch for."""
    raw_bytes: int = 0
    judged: bool = True
    """False where it has no checksum: nothing is known of it."""


def verify_archive(archive: Path, /) -> Verification:
    """Inflate an archive copy, compare its SHA-256 with the checksum file beside it, and return the outcome."""
    checksum = checksum_path(archive)
    expected = _checksum_in(checksum)
    if isinstance(expected, Verification):
        return Verification(archive, expected.problem)
    digest, size = hashlib.sha256(), 0
    try:
        with gzip_reader(archive) as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
                size += len(data)
    except Exception as error:  # every gzip library raises other errors
        return Verification(archive, f"damaged: {error}", size)
    if digest.hexdigest() != expected:
        return Verification(archive, f"holds SHA-256 {digest.hexdigest()}, {checksum.name} says {expected}", size)
    return Verification(archive, None, size)


def verify_archives(folder: Path, /) -> Iterator[Verification]:
    """Yield the outcome for everything in an archive, in the order of names: copies, other files, and stores.

    A checksum file vouches for the file or store that it is named after, or for what is in that file's `.gz`; without
    either it is a problem. What has no checksum is yielded without being judged; a store counts as one.
    """
    for path, verify in sorted(_entries(folder), key=lambda entry: entry[0]):
        yield verify(path)


def _entries(folder: Path) -> Iterator[tuple[Path, Callable[[Path], Verification]]]:
    """Yield every file and store below a folder, with what judges it; checksum files stand for what they vouch for."""
    for base, folders, names in os.walk(folder):
        stores = {name for name in folders if name.endswith(_STORE)}
        folders[:] = [name for name in folders if name not in stores and TEMPORARY_MARK not in name]
        present = {name for name in names if TEMPORARY_MARK not in name} | stores
        vouched = {name.removesuffix(SUFFIX) for name in present if name.endswith(SUFFIX)}
        for name in vouched:
            if name.endswith(_STORE):
                yield Path(base, name), _verify_store
            elif name in present:
                yield Path(base, name), _verify_file
            else:
                yield Path(base, f"{name}.gz"), verify_archive
        for name in present:
            if not (name in vouched or name.endswith(SUFFIX) or name.removesuffix(".gz") in vouched):
                yield Path(base, name), _without_checksum


def _without_checksum(path: Path) -> Verification:
    return Verification(path, None, judged=False)


def _verify_file(path: Path) -> Verification:
    expected = _checksum_in(path.with_name(path.name + SUFFIX))
    if isinstance(expected, Verification):
        return Verification(path, expected.problem)
    try:
        size, found = path.stat().st_size, sha256_of_path(path)
    except OSError as error:
        return Verification(path, f"cannot be read: {error.strerror or error}")
    problem = None if found == expected else f"holds SHA-256 {found}, {path.name}{SUFFIX} says {expected}"
    return Verification(path, problem, size)


def _verify_store(path: Path) -> Verification:
    manifest = manifest_path(path)
    if not path.is_dir():
        return Verification(path, f"is gone, and {manifest.name} vouches for it")
    try:
        found = differences_from_manifest(path, read_manifest(manifest))
        return Verification(path, str(found) if found else None, size_of_path(path))
    except (OSError, FileFormatError) as error:
        return Verification(path, f"{manifest.name} or the store cannot be read: {error}")


def _checksum_in(checksum: Path) -> str | Verification:
    """Return the SHA-256 in a checksum file of one line, or what is wrong with that file."""
    try:
        match = re.match(r"^([0-9a-f]{64}) [ *](.+)\n?$", checksum.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return Verification(checksum, f"{checksum.name} cannot be read: {error}")
    return match[1] if match is not None else Verification(checksum, f"{checksum.name} is no line of sha256sum")


def _threads(n: int) -> contextlib.AbstractContextManager[ThreadPoolExecutor | None]:
    return ThreadPoolExecutor(n, thread_name_prefix="archive") if n > 1 else contextlib.nullcontext()

"""Writers of archive copies: they take the bytes of a raw file as it is read, pack and hash them, and write the copy.

`GzipWriter` cuts the stream at fixed places into chunks that are deflated on their own and joined into one ordinary
gzip member. `SpectraZarrWriter` cuts it into B-lines, which are packed without loss, and unpacked again and compared
before they are written. Both use several threads; the bytes of a copy depend neither on their number nor on how the
reader cut the file.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Generic, NamedTuple, TypeVar

from opticstream.io.nifti_header import HEADER_BYTES
from opticstream.io.raw import SpectralShape
from opticstream.io.spectra_zarr import (
    PackedBLine,
    RawFormat,
    SpectraLayout,
    SpectraZarrStore,
    layout_from_head,
    pack_b_line,
)

CHUNK_BYTES = 1 << 20
_IGZIP_LEVEL = {0: 1, 1: 2, 2: 3, 3: 3}
"""igzip's own level by ours. Its level 0 makes noisy spectra larger than they were; its level 2 comes within 8 % of
`gzip -3` at eight times the speed, which makes it our default."""
_LAST_BLOCK = b"\x03\x00"  # an empty final deflate block
_WAITING_BYTES = 64 << 20
"""Raw bytes that may wait to be packed."""


class ArchiveDigests(NamedTuple):
    """SHA-256 of a raw file and of its archive copy, both computed while the copy is written."""

    raw: str
    archive: str


@dataclass(frozen=True, slots=True)
class SpectraContent:
    """What a raw file of spectra holds, which the form `zarr` must know."""

    shape: SpectralShape
    raw_format: RawFormat
    name: str = "raw file"
    """The file, for messages."""


Packed = TypeVar("Packed")


class ArchiveWriter(ABC, Generic[Packed]):
    """Packs and hashes the bytes of one raw file; `tap` is what a reader calls.

    Parameters
    ----------
    file : binary file
        Where the copy goes.
    level : int
        As in `processing.archive.level`.
    pool : executor, optional
        Threads that pack; without it everything happens in the caller's thread.
    """

    most_waiting = 64
    """Pieces that may wait to be packed."""

    def __init__(self, file: IO[bytes], /, *, level: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        self._file = file
        self._level = level
        self._pool = pool
        self._queue: deque[Future[Packed]] = deque()
        self._hash = hashlib.sha256()
        self._pieces: deque[memoryview] = deque()
        self._pending = 0
        self._hashing: Future[None] | None = None
        self._archive_hash = hashlib.sha256()
        self._archive_hashing: Future[None] | None = None
        self._finished = False
        self.raw_bytes = 0
        self.archive_bytes = 0

    def tap(self, data: memoryview, /) -> None:
        """Take the next bytes of the file; the memory must stay as it is until `finish`."""
        self.raw_bytes += len(data)
        if self._hashing is not None:
            self._hashing.result()
        if self._pool is None:
            self._digest(data)
        else:
            self._hashing = self._pool.submit(self._digest, data)
        if len(data):
            self._pieces.append(data)
            self._pending += len(data)
        self._cut()

    def finish(self) -> ArchiveDigests:
        """Write what is left, and return the checksums; a second call only returns them."""
        if not self._finished:
            self._finished = True
            self._cut_rest()
            while self._queue:
                self._store(self._queue.popleft().result())
            if self._hashing is not None:
                self._hashing.result()
            self._end()
            if self._archive_hashing is not None:
                self._archive_hashing.result()
        return ArchiveDigests(self._hash.hexdigest(), self._archive_hash.hexdigest())

    def abandon(self) -> None:
        """Pack and write nothing more, after an error."""
        while self._queue:
            self._queue.popleft().cancel()

    @abstractmethod
    def _cut(self) -> None:
        """Begin to pack what is complete among the bytes that wait."""

    @abstractmethod
    def _cut_rest(self) -> None:
        """Begin to pack the rest, after the last byte of the file."""

    @abstractmethod
    def _pack(self, piece: memoryview) -> Packed: ...

    @abstractmethod
    def _store(self, packed: Packed) -> None:
        """Write a piece; pieces come in order."""

    @abstractmethod
    def _end(self) -> None:
        """Write what ends the copy; all pieces and the checksum of the raw file are complete."""

    def _digest(self, data: memoryview) -> None:
        self._hash.update(data)

    def _begin(self, piece: memoryview) -> None:
        if self._pool is None:
            self._store(self._pack(piece))
            return
        self._queue.append(self._pool.submit(self._pack, piece))
        while self._queue and (self._queue[0].done() or len(self._queue) > self.most_waiting):
            self._store(self._queue.popleft().result())

    def _taken(self, size: int) -> memoryview:
        """Return the next bytes that wait, in one piece."""
        self._pending -= size
        first = self._pieces[0] if self._pieces else memoryview(b"")
        if len(first) > size:
            self._pieces[0] = first[size:]
            return first[:size]
        parts = []
        while size:
            part = self._pieces.popleft()
            if len(part) > size:
                self._pieces.appendleft(part[size:])
                part = part[:size]
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.archive_bytes += len(data)
        if self._pool is None:
            self._archive_hash.update(data)
            return
        if self._archive_hashing is not None:
            self._archive_hashing.result()
        self._archive_hashing = self._pool.submit(self._archive_hash.update, data)


class GzipWriter(ArchiveWriter[bytes]):
    """Writes one gzip member.

    Levels 0 to 3: igzip, fastest first; 4 to 9: zlib, several times slower and a few percent smaller.
    """

    def __init__(self, file: IO[bytes], /, *, level: int = 1, pool: ThreadPoolExecutor | None = None) -> None:
        super().__init__(file, level=level, pool=pool)
        self._crc = 0
        # without name and time: the same bytes every time
        self._write(struct.pack("<4BIBB", 0x1F, 0x8B, 8, 0, 0, 0, 255))

    def _digest(self, data: memoryview) -> None:
        super()._digest(data)
        self._crc = _isal().crc32(data, self._crc)

    def _cut(self) -> None:
        while self._pending >= CHUNK_BYTES:
            self._begin(self._taken(CHUNK_BYTES))

    def _cut_rest(self) -> None:
        if self._pending:
            self._begin(self._taken(self._pending))

    def _pack(self, piece: memoryview) -> bytes:
        """Deflate a chunk on its own, ended by a flush so that the next one can follow."""
        library, effort = (_isal(), _IGZIP_LEVEL[self._level]) if self._level in _IGZIP_LEVEL else (zlib, self._level)
        packer = library.compressobj(effort, zlib.DEFLATED, -15)
        packed: bytes = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
        return packed

    def _store(self, packed: bytes) -> None:
        self._write(packed)

    def _end(self) -> None:
        self._write(_LAST_BLOCK + struct.pack("<II", self._crc, self.raw_bytes & 0xFFFFFFFF))


class SpectraZarrWriter(ArchiveWriter[PackedBLine]):
    """Writes the form `zarr` (`opticstream.io.spectra_zarr`).

    Raises, while it is used, FileFormatError where the raw file does not hold 16-bit counts, and ProcessingError where
    a packed B-line does not give the raw bytes back.
    """

    def __init__(
        self, file: IO[bytes], content: SpectraContent, /, *, level: int = 1, pool: ThreadPoolExecutor | None = None
    ) -> None:
        super().__init__(file, level=level, pool=pool)
        self._content = content
        self._layout: SpectraLayout | None = None
        self._opened: SpectraZarrStore | None = None
        self._head = b""
        self._rest = b""

    def abandon(self) -> None:
        super().abandon()
        if self._opened is not None:
            self._opened.abandon()

    def _cut(self) -> None:
        if self._layout is None and self._pending >= HEADER_BYTES:
            self._look_at_head()
        layout = self._layout
        if layout is None:
            return
        if self._opened is None and self._pending >= layout.head_bytes:
            self._open(layout)
        while self._opened is not None and self._pending >= layout.b_line_bytes:
            self._begin(self._taken(layout.b_line_bytes))

    def _cut_rest(self) -> None:
        if self._layout is None:
            self._look_at_head()
            self._cut()
        assert self._layout is not None
        if self._opened is None:
            self._open(self._layout)
        self._rest = bytes(self._taken(self._pending))

    def _look_at_head(self) -> None:
        size = min(self._pending, HEADER_BYTES)
        head = self._taken(size)
        self._pieces.appendleft(head)
        self._pending += size
        shape, raw_format = self._content.shape, self._content.raw_format
        self._layout = layout_from_head(
            bytes(head),
            samples=shape.samples,
            a_lines=shape.a_lines,
            channels=shape.channels,
            raw_format=raw_format,
            name=self._content.name,
        )
        self.most_waiting = max(2, _WAITING_BYTES // self._layout.b_line_bytes)

    def _open(self, layout: SpectraLayout) -> None:
        self._head = bytes(self._taken(min(layout.head_bytes, self._pending)))
        self._opened = SpectraZarrStore(self._write, layout, level=self._level)

    def _pack(self, piece: memoryview) -> PackedBLine:
        assert self._layout is not None
        return pack_b_line(piece, self._layout, level=self._level)

    def _store(self, packed: PackedBLine) -> None:
        assert self._opened is not None
        self._opened.add(packed)

    def _end(self) -> None:
        assert self._opened is not None
        self._opened.finish(head=self._head, rest=self._rest, sha256=self._hash.hexdigest())


def _isal() -> Any:
    from isal import isal_zlib

    return isal_zlib

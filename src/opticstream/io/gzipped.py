"""Reading gzip files, by the fast library where there is one."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any, cast

_PIECE = 4 << 20


def open_gzip(path: Path, /) -> IO[bytes]:
    """Open a gzip file to read what is in it, front to back.

    Raises
    ------
    OSError, EOFError, zlib.error
        Now or later: there is no such file, or it is damaged.
    """
    try:
        from isal import igzip
    except ImportError:
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return cast("IO[bytes]", igzip.open(path, "rb"))  # type: ignore[no-untyped-call]


def gzip_in_pieces(path: Path, /) -> io.BufferedReader:
    """Open a gzip file to read large arrays into memory once; its readers by themselves hold them twice.

    Raises
    ------
    OSError, EOFError, zlib.error
        As `open_gzip`.
    """
    return io.BufferedReader(_InPieces(open_gzip(path)), _PIECE)


class _InPieces(io.RawIOBase):
    """A stream that hands on no more than a piece at a time."""

    def __init__(self, source: IO[bytes], /) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        piece = self._source.read(min(len(buffer), _PIECE))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._source.close()
        super().close()

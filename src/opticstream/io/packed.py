"""Packed copies of raw files, gzip or the Zarr form of spectra: their names, and reading them like plain files."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any, cast

from opticstream.io.spectra_zarr import ZARR_SUFFIX, SpectraZarrReader

PACKED_SUFFIXES = (".gz", ZARR_SUFFIX)
"""Ends of the names of packed copies."""
_PIECE = 4 << 20


def is_packed(path: Path, /) -> bool:
    """Return whether a name is that of a packed copy.

    Examples
    --------
    >>> is_packed(Path("a.nii.zarr.zip")), is_packed(Path("a.nii.gz")), is_packed(Path("a.nii"))
    (True, True, False)
    """
    return path.name.endswith(PACKED_SUFFIXES)


def unpacked_name(name: str, /) -> str:
    """Return the name of the raw file in a packed copy; other names are returned as they are.

    Examples
    --------
    >>> unpacked_name("a_OCT.nii.gz"), unpacked_name("a_OCT.raw.zarr.zip"), unpacked_name("a_OCT.nii")
    ('a_OCT.nii', 'a_OCT.raw', 'a_OCT.nii')
    """
    suffix = next((suffix for suffix in PACKED_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def packed_reader(path: Path, /) -> IO[bytes]:
    """Open a packed copy to read the raw file in it, front to back.

    Raises
    ------
    MissingInputError, FileFormatError, InputError, OSError
        A copy in Zarr form is absent, damaged or cannot be read; gzip raises its own errors.
    """
    if path.name.endswith(ZARR_SUFFIX):
        return cast("IO[bytes]", SpectraZarrReader.open(path))
    try:
        from isal import igzip
    except ImportError:
        return cast("IO[bytes]", gzip.open(path, "rb"))
    return cast("IO[bytes]", igzip.open(path, "rb"))  # type: ignore[no-untyped-call]


def unpacked_stream(path: Path, /) -> io.BufferedReader:
    """Open a packed copy to read large arrays into memory once; readers of gzip by themselves hold them twice.

    Raises
    ------
    MissingInputError, FileFormatError, InputError, OSError
        As `packed_reader`.
    """
    return io.BufferedReader(_InPieces(packed_reader(path)), _PIECE)


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

"""Packed copies of raw files, gzip or the Zarr form of spectra: their names, and reading them like plain files."""

from __future__ import annotations

from pathlib import Path
from typing import IO, cast

from opticstream.io.gzipped import open_gzip
from opticstream.io.spectra_zarr import ZARR_SUFFIX, SpectraZarrReader

PACKED_SUFFIXES = (".gz", ZARR_SUFFIX)
"""Ends of the names of packed copies."""


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
    return open_gzip(path)

"""Read numeric arrays from a MATLAB file (level 5, `-v6` and `-v7`), checking every length.

SciPy's reader ends the whole process on some damaged files, which no handler can catch. A calibration needs only
plain arrays of numbers, for which the format is simple; older files (level 4) are left to SciPy.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.reading import check_regular_file, reading_errors
from opticstream.model.errors import FileFormatError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""How numbers are stored; MATLAB picks the smallest type that holds them."""
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
"""What the numbers are in MATLAB; other classes (text, cells, structures) are skipped."""
_COMPLEX = 0x0800
_MOST_BYTES = 1 << 30
"""Largest file that is read; calibrations are smaller."""


def arrays_from_matlab(path: Path, /) -> dict[str, NDArray[Any]]:
    """Return the numeric arrays of a MATLAB file by name, in the shapes that MATLAB gives them.

    Raises
    ------
    MissingInputError, FileFormatError, InputError
        The file is absent, damaged, or one of level 7.3 (HDF5), which has to be saved with ``-v7``.
    """
    check_regular_file(path)
    with reading_errors(path, "MATLAB file"):
        content = path.read_bytes()
        if content.startswith((b"MATLAB 7.3", b"\x89HDF")):
            raise FileFormatError(f"{path}: is a MATLAB 7.3 file, which cannot be read; save it with -v7 (or as .npz)")
        if 0 in content[:4] or not content.startswith(b"MATLAB"):
            return _level_4(path, content)
        order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
        if order is None:
            raise FileFormatError(f"{path}: is not a MATLAB level 5 file: its header ends in {content[126:128]!r}")
        return dict(_arrays(content[_HEADER:], order))


def _level_4(path: Path, content: bytes) -> dict[str, NDArray[Any]]:
    kind = struct.unpack_from("<i", content)[0] if len(content) >= 20 else -1
    if not 0 <= kind <= 4052 and not content.startswith(b"\0\0"):
        raise FileFormatError(f"{path}: is not a MATLAB file")
    from scipy.io.matlab import loadmat  # only where needed: it is slow to import

    return {key: value for key, value in loadmat(path).items() if isinstance(value, np.ndarray)}


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield (type, data) of the elements that follow each other in some bytes."""
    at = 0
    while at + 8 <= len(content):
        kind, length = struct.unpack_from(order + "II", content, at)
        if kind >> 16:  # a short element: its length and up to four bytes of data in one tag
            kind, length, begin, step = kind & 0xFFFF, kind >> 16, at + 4, 8
            if length > 4:
                raise ValueError(f"a short element of {length} bytes")
        else:
            begin = at + 8
            step = 8 + length + (0 if kind == _COMPRESSED else -length % 8)
        if begin + length > len(content):
            raise EOFError(f"an element of {length} bytes, {len(content) - begin} are left")
        yield kind, content[begin : begin + length]
        at += step


def _arrays(content: bytes, order: str) -> Iterator[tuple[str, NDArray[Any]]]:
    for kind, data in _elements(content, order):
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(data, _MOST_BYTES)
            if not unpacker.eof:
                raise EOFError("compressed data end early, or are far too long")
            yield from _arrays(unpacked, order)
        elif kind == _MATRIX and (named := _named_array(data, order)) is not None:
            yield named


def _named_array(data: bytes, order: str) -> tuple[str, NDArray[Any]] | None:
    parts = list(_elements(data, order))
    if len(parts) < 3:
        raise ValueError("an array without flags, lengths and name")
    flags = struct.unpack_from(order + "I", parts[0][1])[0]
    dtype = _CLASSES.get(flags & 0xFF)
    if dtype is None:
        return None
    shape = tuple(int(n) for n in np.frombuffer(parts[1][1], order + "i4"))
    name = parts[2][1].decode("latin-1")
    real = _numbers(parts, 3, order, shape, dtype)
    if flags & _COMPLEX:
        return name, real + 1j * _numbers(parts, 4, order, shape, dtype)
    return name, real


def _numbers(
    parts: list[tuple[int, bytes]], index: int, order: str, shape: tuple[int, ...], dtype: str
) -> NDArray[Any]:
    kind, data = parts[index] if index < len(parts) else (0, b"")
    if kind not in _STORED:
        raise ValueError(f"numbers of type {kind}")
    values = np.frombuffer(data, order + _STORED[kind])
    if min(shape, default=0) < 0 or math.prod(shape) != values.size:
        raise ValueError(f"{values.size} numbers for the shape {shape}")
    return values.astype(dtype).reshape(shape, order="F")

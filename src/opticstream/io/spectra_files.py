"""Read raw spectra from one array, or from a folder with an array for each B-scan. Only reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.model.errors import FileFormatError, MissingInputError, TileSizeError

ARRAYS = (".npy",)
TEXTS = (".txt", ".csv", ".tsv", ".asc")
BINARIES = (".raw", ".bin", ".dat")
SUFFIXES = (*ARRAYS, *TEXTS, *BINARIES)
"""Files that are read: NumPy arrays, tables of numbers, and plain little-endian values without a header."""


@dataclass(frozen=True, slots=True)
class BinaryShape:
    """Type and B-scan shape of a file of plain values, which has no header."""

    dtype: str
    """`uint16`, `int16` or `float32`, little-endian."""
    shape: tuple[int, ...]
    """(channels, A-lines, samples), or (A-lines, samples) for one channel."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording of B-scans; `b_scans` reads them one after the other."""

    source: Path
    files: tuple[Path, ...]
    """The file, or the file of each B-scan in order."""
    transpose: bool = False
    """B-scans are stored as (..., samples, A-lines)."""
    binary: BinaryShape | None = None

    def b_scans(self) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Yield each B-scan with a name for messages; its shape is (channels, A-lines, samples).

        Raises
        ------
        FileFormatError
            A file cannot be read, or does not contain real numbers.
        TileSizeError
            A B-scan has another shape than the first one.
        """
        first: tuple[int, ...] | None = None
        for path in self.files:
            array = _array(path, self.binary)
            whole = len(self.files) == 1 and self.source.is_file()
            scans = array if whole else array[np.newaxis]
            if scans.ndim not in (3, 4):
                expected = "(B-scans, [channels,] A-lines, samples)" if whole else "([channels,] A-lines, samples)"
                raise FileFormatError(f"{path}: holds an array of shape {array.shape}, expected {expected}")
            for number, scan in enumerate(scans):
                name = f"{path}, B-scan {number}" if whole else str(path)
                scan = scan.swapaxes(-1, -2) if self.transpose else scan
                scan = scan if scan.ndim == 3 else scan[np.newaxis]
                first = first or scan.shape
                if scan.shape != first:
                    raise TileSizeError(
                        f"{name}: a B-scan of shape {scan.shape} (channels, A-lines, samples), the first has {first}"
                    )
                yield name, scan


def recording_at(source: Path, /, *, transpose: bool = False, binary: BinaryShape | None = None) -> Recording:
    """Return the recording in a file or folder; the B-scans of a folder are ordered by the last number in their names.

    Raises
    ------
    MissingInputError
        `source` does not exist, or the folder has no array.
    FileFormatError
        The folder has several kinds of files, two names have the same number, or a number is missing.
    """
    if source.is_file():
        return Recording(source, (source,), transpose, binary)
    if not source.is_dir():
        raise MissingInputError(f"{source}: no such file or folder")
    files = [p for p in source.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not files:
        raise MissingInputError(f"{source}: has no array; expected one per B-scan ({', '.join(SUFFIXES)})")
    kinds = sorted({path.suffix.lower() for path in files})
    if len(kinds) > 1:
        raise FileFormatError(f"{source}: holds files of several kinds ({', '.join(kinds)}); keep one kind in it")
    numbered: dict[int, Path] = {}
    for path in sorted(files):
        number = re.findall(r"\d+", path.stem)
        if not number:
            raise FileFormatError(f"{path}: its name has no number; expected the number of the B-scan")
        if int(number[-1]) in numbered:
            raise FileFormatError(f"{path} and {numbered[int(number[-1])].name} are both B-scan {int(number[-1])}")
        numbered[int(number[-1])] = path
    order = sorted(numbered)
    absent = sorted(set(range(order[0], order[-1] + 1)) - set(order))
    if absent:
        told = ", ".join(map(str, absent[:5])) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        raise FileFormatError(f"{source}: holds B-scans {order[0]} to {order[-1]}, missing {told}")
    return Recording(source, tuple(numbered[number] for number in order), transpose, binary)


def _array(path: Path, binary: BinaryShape | None) -> NDArray[np.generic]:
    suffix = path.suffix.lower()
    try:
        if suffix in ARRAYS:
            array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
        elif suffix in TEXTS:
            array = _table(path)
        elif suffix in BINARIES:
            array = _plain(path, binary)
        else:
            raise FileFormatError(f"{path}: expected one of {', '.join(SUFFIXES)}")
    except FileFormatError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise FileFormatError(f"{path}: cannot be read as an array: {error}") from error
    if array.dtype.kind not in "fiu":
        raise FileFormatError(f"{path}: holds {array.dtype} values, expected real numbers")
    return array


def _table(path: Path) -> NDArray[np.generic]:
    """Return a table of numbers; columns are separated by blanks, tabs, commas or semicolons."""
    text = path.read_text(encoding="utf-8-sig")
    lines = [re.split(r"[,;\s]+", line.strip().strip(",;")) for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line[0].startswith("#")]
    if len({len(line) for line in lines}) != 1:
        raise FileFormatError(f"{path}: its lines hold different numbers of values")
    return np.array(lines, dtype=np.float64)


def _plain(path: Path, binary: BinaryShape | None) -> NDArray[np.generic]:
    if binary is None:
        raise FileFormatError(
            f"{path}: plain values have no shape; write the project file first, from which the shape follows"
        )
    values: NDArray[np.generic] = np.memmap(path, dtype=np.dtype(binary.dtype).newbyteorder("<"), mode="r")
    scan = int(np.prod(binary.shape))
    if values.size % scan:
        raise FileFormatError(
            f"{path}: holds {values.size} {binary.dtype} values, expected whole B-scans of {binary.shape}"
        )
    scans = values.reshape(-1, *binary.shape)
    return scans[0] if len(scans) == 1 else scans

"""Read raw tiles of the rigs: spectra in a NIfTI file with any header, 12-bit packed spectra, complex tiles.

A spectral tile is read once, front to back: `SpectralTile.blocks` yields whole B-lines, and every byte of the file,
including the header, is also passed to a `tap` (checksum, compressor).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from opticstream.io.nifti_header import HEADER_BYTES, nifti_layout_from_bytes
from opticstream.io.packed import is_packed, packed_reader
from opticstream.io.packed12 import samples_from_packed12
from opticstream.io.reading import check_regular_file, error_of_system
from opticstream.io.spectra_zarr import SpectraZarrReader
from opticstream.model.errors import FileFormatError, OpticStreamError, TileSizeError
from opticstream.system.disk import read_at

Tap = Callable[[memoryview], None]
Room = Callable[[int], NDArray[np.uint8]]
"""Returns memory of so many bytes."""


@dataclass(frozen=True, slots=True)
class SpectralShape:
    """The expected content of a spectral tile."""

    samples: int
    a_lines: int
    channels: int
    b_lines: int
    setting: str = "scan"
    """The setting of these numbers, for messages."""

    @property
    def count(self) -> int:
        return self.samples * self.a_lines * self.channels * self.b_lines

    def __str__(self) -> str:
        return (
            f"samples={self.samples}, a_lines={self.a_lines}, channels={self.channels}, b_lines={self.b_lines} "
            f"({self.setting})"
        )


def _open(path: Path) -> IO[bytes]:
    check_regular_file(path)
    try:
        return packed_reader(path) if is_packed(path) else path.open("rb", buffering=0)
    except OSError as error:
        raise error_of_system(path, error) from error


class SpectralTile:
    """A spectral tile that is open to be read once, front to back.

    Use as a context manager. Opening checks header and size, so that a wrong file is refused before any work.
    """

    def __init__(
        self, path: Path, file: IO[bytes], shape: SpectralShape, dtype: np.dtype[Any] | None, head: bytes
    ) -> None:
        self.path = path
        self.shape = shape
        self._file = file
        self._dtype = dtype
        self._head = head

    @classmethod
    def open(cls, path: Path, shape: SpectralShape, /, *, raw_format: Literal["nifti", "packed12"] = "nifti") -> Self:
        """Open a raw file.

        Parameters
        ----------
        path : Path
            `.nii` or `.raw`, or a packed copy of either, as in the archive: with `.gz`, or `.zarr.zip`.
        shape : SpectralShape
            The expected content.
        raw_format : "nifti" or "packed12"
            As in `scan.raw_format`.

        Raises
        ------
        MissingInputError, TileSizeError, FileFormatError, InputError
            The file is absent, of another size, not a NIfTI file, or cannot be read.
        """
        file = _open(path)
        packed = is_packed(path)
        try:
            if raw_format == "packed12":
                dtype, head, payload = None, b"", shape.count * 3 // 2
            else:
                head = _read_exactly(file, 352, path, strict=False, whole=packed)
                if len(head) == 352 and head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
                    head += _read_exactly(file, HEADER_BYTES - 352, path, strict=False, whole=packed)
                layout = nifti_layout_from_bytes(head, name=str(path))
                dtype, payload = layout.dtype, shape.count * layout.dtype.itemsize
                if layout.offset > len(head):
                    head += _read_exactly(file, layout.offset - len(head), path, strict=False, whole=packed)
                surplus = head[layout.offset :]  # an offset of 348..351: the data start within the bytes that were read
                if math.prod(layout.shape) != shape.count and not _is_overflown(layout.shape):
                    raise TileSizeError(
                        f"{path}: its header gives {' x '.join(map(str, layout.shape))} = {math.prod(layout.shape)} "
                        f"samples, expected {shape.count} for {shape}"
                    )
                if surplus:
                    raise FileFormatError(f"{path}: vox_offset {layout.offset} lies inside the header")
            if not packed:
                size = os.fstat(file.fileno()).st_size
                if size != len(head) + payload:
                    raise TileSizeError(f"{path}: holds {size} bytes, expected {len(head) + payload} for {shape}")
        except BaseException:
            file.close()
            raise
        return cls(path, file, shape, dtype, head)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def file_bytes(self) -> int:
        """Size of the (uncompressed) file."""
        return len(self._head) + self.shape.b_lines * self.bytes_per_b_line

    @property
    def bytes_per_b_line(self) -> int:
        """Size of one B-line of all channels in the file."""
        values = self.shape.samples * self.shape.a_lines * self.shape.channels
        return values * 3 // 2 if self._dtype is None else values * self._dtype.itemsize

    def blocks(
        self, b_lines: int, /, *, tap: Tap | None = None, reuse: bool = False, room: Room | None = None
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (first B-line, counts) with counts of shape (b, channels, A-lines, samples), in order.

        Parameters
        ----------
        b_lines : int
            Largest number of B-lines in a block.
        tap : callable, optional
            Takes every byte of the file once, in order, as memory views that must be used before it returns or be kept
            alive (each block has its own memory).
        reuse : bool
            Reuse memory for every other block: a block is valid until the next but one is requested.
        room : callable, optional
            Makes the memory of blocks, from which a graphics card copies faster.

        Raises
        ------
        TileSizeError
            The file ends early, or (compressed) holds more than it should.
        FileFormatError
            Damaged compressed data.
        """
        if tap is not None:
            tap(memoryview(self._head))
        s = self.shape
        spare: list[NDArray[np.uint8]] = []
        make = room or (lambda size: np.empty(size, np.uint8))
        for first in range(0, s.b_lines, b_lines):
            n = min(b_lines, s.b_lines - first)
            size = n * self.bytes_per_b_line
            buffer = spare.pop(0)[:size] if len(spare) == 2 else make(size)
            if reuse and n == b_lines:
                spare.append(buffer)
            read = _read_into(self._file, memoryview(buffer.data), self.path)
            if read != buffer.size:
                have = len(self._head) + first * self.bytes_per_b_line + read
                want = len(self._head) + s.b_lines * self.bytes_per_b_line
                raise TileSizeError(f"{self.path}: ended after {have} bytes, expected {want} for {s}")
            if tap is not None:
                tap(buffer.data)
            counts = samples_from_packed12(buffer) if self._dtype is None else buffer.view(self._dtype)
            counts = counts.reshape(n, s.channels, s.a_lines, s.samples)
            if counts.dtype.kind == "f" and not np.isfinite(counts).all():
                raise FileFormatError(
                    f"{self.path}: holds values that are not finite in B-lines {first}..{first + n - 1}"
                )
            yield first, counts
        if is_packed(self.path) and _read_into(self._file, memoryview(bytearray(1)), self.path, whole=True):
            raise TileSizeError(f"{self.path}: holds more samples than expected for {s}")

    def b_line(self, number: int, /) -> NDArray[Any]:
        """Return one B-line of a file that is not compressed, counted from 0; shape (channels, A-lines, samples).

        Raises
        ------
        TileSizeError, InputError
            The file has become shorter, or cannot be read.
        """
        s, buffer = self.shape, np.empty(self.bytes_per_b_line, np.uint8)
        at = len(self._head) + number * self.bytes_per_b_line
        try:
            read = read_at(self._file.fileno(), memoryview(buffer.data), at)
        except OSError as error:
            raise error_of_system(self.path, error) from error
        if read != buffer.size:
            raise TileSizeError(f"{self.path}: ended after {at + read} bytes while it was read")
        counts = samples_from_packed12(buffer) if self._dtype is None else buffer.view(self._dtype)
        return counts.reshape(s.channels, s.a_lines, s.samples)

    def check_end(self) -> None:
        """Check cheaply that a compressed file is complete; plain files are checked by their size.

        The last four bytes of a gzip file give the length of its data, so that a complete file is recognised at once,
        and an unfinished one practically never passes. If they do not match (an unfinished file, several members,
        padding), the stream is decompressed to its end, which takes about two seconds per gigabyte. Damage inside is
        found when the tile is read.

        Raises
        ------
        TileSizeError, FileFormatError
            The compressed data end too early or hold more than they should, or are damaged.
        """
        if not is_packed(self.path) or _length_in_trailer(self.path) == self.file_bytes & 0xFFFFFFFF:
            return
        view, total = memoryview(bytearray(_PIECE_BYTES)), len(self._head)
        while n := _read_into(self._file, view, self.path, whole=True):
            total += n
            if total > self.file_bytes:
                break
        if total != self.file_bytes:
            found = f"{total}" if total < self.file_bytes else f"more than {self.file_bytes}"
            raise TileSizeError(f"{self.path}: holds {found} bytes, expected {self.file_bytes} for {self.shape}")


def _check_depth(path: Path, shape: tuple[int, ...], depth: int, expected: str) -> None:
    """Raise an error if a complex tile's header has more than one volume, or another depth than the file."""
    for axis, length in enumerate(shape[3:], start=4):
        if length > 1:
            raise FileFormatError(f"{path}: axis {axis} has {length} entries in the shape {shape}, expected {expected}")
    if math.prod(shape[2:]) != depth:
        raise TileSizeError(
            f"{path}: holds {depth} planes, its header gives {math.prod(shape[2:])}; expected {expected}"
        )


def _is_overflown(shape: tuple[int, ...]) -> bool:
    """Whether a length did not fit the header's 16 bits; the size of the file then decides."""
    return any(n <= 0 for n in shape)


def _read_exactly(file: IO[bytes], n: int, path: Path, *, strict: bool = True, whole: bool = False) -> bytes:
    buffer = bytearray(n)
    read = _read_into(file, memoryview(buffer), path, whole=whole)
    if strict and read != n:
        raise TileSizeError(f"{path}: ended after {read} bytes of {n}")
    return bytes(buffer[:read])


def _length_in_trailer(path: Path) -> int | None:
    """Return the length (modulo 2**32) in the last bytes of a gzip file; of the Zarr form, that in its description."""
    if path.suffix != ".gz":
        with packed_reader(path) as file:
            return cast("SpectraZarrReader", file).raw_bytes & 0xFFFFFFFF
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(-4, os.SEEK_END)
            return int.from_bytes(file.read(4), "little")
    except OSError:
        return None


def _read_into(file: IO[bytes], view: memoryview, path: Path, *, whole: bool = False) -> int:
    """Fill a buffer and return the number of bytes read: fewer if compressed data end early, or an error if `whole`."""
    done = 0
    try:
        while done < len(view):
            n = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not n:
                break
            done += n
    except EOFError as error:
        if whole:
            raise TileSizeError(f"{path}: its compressed data end early; it is unfinished or was cut") from error
        return done
    except OSError as error:
        raise error_of_system(path, error, "gzip" if path.suffix == ".gz" else "") from error
    except OpticStreamError:
        raise
    except Exception as error:  # each gzip library has its own errors
        raise FileFormatError(f"{path}: damaged gzip data: {error}") from error
    return done


_PIECE_BYTES = 1 << 22


class ComplexTile:
    """A complex tile, read in blocks of B-lines: float32 NIfTI of shape (2 * channels * A-lines, B-lines, Z).

    Use as a context manager. Depth varies slowest, so a block is one short run per depth.
    """

    def __init__(
        self, path: Path, file: IO[bytes], dtype: np.dtype[Any], offset: int, shape: tuple[int, int, int]
    ) -> None:
        self.path = path
        self.depth = shape[2]
        self._file = file
        self._dtype = dtype
        self._offset = offset
        self._width, self._b_lines, _ = shape

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        a_lines: int,
        b_lines: int,
        channels: int = 2,
        setting: str = "scan",
        tap: Tap | None = None,
        copy_to: Path | None = None,
    ) -> Self:
        """Open a complex tile and check its size; the depth follows from the file.

        Parameters
        ----------
        path : Path
            The file.
        a_lines, b_lines, channels : int
            The expected content.
        setting : str
            The setting of these numbers, for messages.
        tap : callable, optional
            Takes every byte of the file once, in order; pieces stay valid. The file is then
            read here, once, into an unnamed copy in `copy_to`, from which the blocks are read.
        copy_to : Path, optional
            Folder for that copy, which needs as much space as the file; created if needed.

        Raises
        ------
        MissingInputError, TileSizeError, FileFormatError, InputError
            The file is absent, of another size, not float32, or cannot be read.
        """
        if is_packed(path):
            raise FileFormatError(f"{path}: is a compressed complex tile; expected an uncompressed one: unpack it")
        file = _open(path)
        try:
            head = _read_exactly(file, HEADER_BYTES, path, strict=False)
            size = os.fstat(file.fileno()).st_size
            layout = nifti_layout_from_bytes(head, name=str(path))
            if layout.dtype.kind != "f" or layout.dtype.itemsize != 4:
                raise FileFormatError(f"{path}: holds {layout.dtype}, expected float32 for a complex tile")
            width = 2 * channels * a_lines
            depth, rest = divmod(size - layout.offset, width * b_lines * 4)
            expected = (
                f"({width}, {b_lines}, Z) for a_lines={a_lines}, b_lines={b_lines}, channels={channels} ({setting})"
            )
            if rest or depth < 1:
                raise TileSizeError(f"{path}: holds {size} bytes, expected whole planes {expected}")
            if layout.shape[:2] != (width, b_lines) and not _is_overflown(layout.shape):
                raise TileSizeError(f"{path}: has shape {layout.shape}, expected {expected}")
            if not _is_overflown(layout.shape):
                _check_depth(path, layout.shape, depth, expected)
            if tap is not None:
                if copy_to is not None:
                    copy_to.mkdir(parents=True, exist_ok=True)
                copy = cast("IO[bytes]", tempfile.TemporaryFile(dir=copy_to, buffering=0))  # noqa: SIM115  # kept open
                try:
                    _copy_through(file, path, tap, copy, head)
                except BaseException:
                    copy.close()
                    raise
                file.close()
                file = copy
        except BaseException:
            file.close()
            raise
        return cls(path, file, layout.dtype, layout.offset, (width, b_lines, depth))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def block(self, first: int, b_lines: int, /) -> NDArray[np.float32]:
        """Return B-lines `first` to `first + b_lines`, shape (2 * channels * A-lines, b, Z), as in the file.

        Raises
        ------
        FileFormatError
            The block contains NaN or infinity; the message says where.
        InputError
            The file cannot be read.
        """
        n = min(b_lines, self._b_lines - first)
        planes = np.empty((self.depth, n, self._width), self._dtype)
        plane_bytes = 4 * self._width * self._b_lines
        start = self._offset + 4 * self._width * first
        for z in range(self.depth):
            view, at = memoryview(planes[z]).cast("B"), start + z * plane_bytes
            try:
                read = read_at(self._file.fileno(), view, at)
            except OSError as error:
                raise error_of_system(self.path, error) from error
            if read != len(view):
                raise TileSizeError(f"{self.path}: ended after {at + read} bytes while it was read")
        part = planes.astype(np.float32, copy=False).transpose(2, 1, 0)
        finite = np.isfinite(part)
        if not finite.all():
            x, y, z = (int(i) for i in np.argwhere(~finite)[0])
            raise FileFormatError(
                f"{self.path}: holds {part[x, y, z]} at [{x}, {first + y}, {z}] "
                f"({np.count_nonzero(~finite)} such values in B-lines {first}..{first + part.shape[1] - 1})"
            )
        return part


def _copy_through(file: IO[bytes], path: Path, tap: Tap, copy: IO[bytes], head: bytes) -> None:
    """Read the rest of a file once, for a tap and into a copy; `head` has been read already."""
    piece = head
    while piece:
        tap(memoryview(piece))
        copy.write(piece)
        piece = _read_exactly(file, _PIECE_BYTES, path, strict=False)

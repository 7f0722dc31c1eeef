"""The lossless archive form of a spectral tile: Zarr v3 arrays in one zip file, read with `zarr` and NumPy alone.

::

    zarr.json        group; its attributes give the raw file's format, size and SHA-256, and how to read it
    head, rest       bytes before the first and after the last whole B-line (header, padding)
    mean             (B-lines, channels, samples): mean spectra, rounded
    differences      (B-lines, channels): how many times differences were taken along the spectrum
    residual         (B-lines, channels, A-lines, samples): what is left, see `opticstream.compute.spectral_residual`

A chunk is one B-line of one channel; the directory of the zip file is its index. All codecs are those of the Zarr v3
specification (bytes, blosc). The zip file is written front to back, and its bytes depend on nothing but the raw file.
"""

from __future__ import annotations

import io
import json
import math
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.spectral_residual import counts_from_residual, residual_from_counts
from opticstream.io.nifti_header import nifti_layout_from_bytes
from opticstream.io.packed12 import packed12_from_samples, samples_from_packed12
from opticstream.io.reading import check_regular_file, reading_errors
from opticstream.model.errors import FileFormatError, ProcessingError

ZARR_SUFFIX = ".zarr.zip"
VERSION = 1
RawFormat = Literal["nifti", "packed12"]
HOW_TO_READ = (
    "z = group['residual'][b, channel]; d = (z >> 1) ^ -(z & 1); "
    "d = numpy.cumsum(d, axis=-1, dtype='uint16') where differences[b, channel] is 1; "
    "counts = d + group['mean'][b, channel], all in uint16"
)
_KEY = "opticstream"
_DIMENSIONS = ("b_line", "channel", "a_line", "sample")


@dataclass(frozen=True, slots=True)
class SpectraLayout:
    """How the spectra lie in a raw file: B-lines of channels of A-lines of samples, after `head_bytes`."""

    samples: int
    a_lines: int
    channels: int
    raw_format: RawFormat
    head_bytes: int = 0
    dtype: str = "<u2"
    """Of the counts in the file, with byte order; of no meaning for `packed12`."""

    @property
    def b_line_bytes(self) -> int:
        """Size of a B-line of all channels in the raw file."""
        count = self.samples * self.a_lines * self.channels
        return count * 3 // 2 if self.raw_format == "packed12" else count * 2

    def counts(self, raw: memoryview | bytes) -> NDArray[np.uint16]:
        """Return the counts of a B-line of the raw file, shape (channels, A-lines, samples)."""
        if self.raw_format == "packed12":
            counts = samples_from_packed12(np.frombuffer(raw, np.uint8))
        else:
            counts = np.frombuffer(raw, np.dtype(self.dtype)).astype(f"={self.dtype[1:]}", copy=False).view(np.uint16)
        return counts.reshape(self.channels, self.a_lines, self.samples)

    def raw(self, counts: NDArray[np.uint16]) -> memoryview:
        """Return the bytes of a B-line in the raw file."""
        if self.raw_format == "packed12":
            return packed12_from_samples(counts).data
        in_order = counts.view(f"={self.dtype[1:]}").astype(self.dtype, copy=False)
        return in_order.reshape(-1).view(np.uint8).data


def layout_from_head(
    head: bytes, /, *, samples: int, a_lines: int, channels: int, raw_format: RawFormat, name: str
) -> SpectraLayout:
    """Return the layout of a raw file of known dimensions, from its first bytes (544 if it has as many).

    Raises
    ------
    FileFormatError
        It is no NIfTI file, or does not hold 16-bit counts.
    """
    if raw_format == "packed12":
        return SpectraLayout(samples, a_lines, channels, raw_format)
    layout = nifti_layout_from_bytes(head, name=name)
    if layout.dtype.kind not in "iu" or layout.dtype.itemsize != 2:
        raise FileFormatError(
            f'{name}: holds {layout.dtype}, but processing.archive.format = "zarr" is for 16-bit counts; '
            'set it to "nii.gz"'
        )
    order = ">" if layout.dtype.newbyteorder("=").str[0] != layout.dtype.str[0] else layout.dtype.str[0]
    return SpectraLayout(
        samples, a_lines, channels, raw_format, layout.offset, f"{order}{layout.dtype.kind}{layout.dtype.itemsize}"
    )


class PackedBLine(NamedTuple):
    """A B-line as it is stored: chunks of the arrays."""

    mean: bytes
    differences: tuple[int, ...]
    """Of each channel."""
    residual: tuple[bytes, ...]
    """Of each channel."""


def pack_b_line(raw: memoryview, layout: SpectraLayout, /, *, level: int) -> PackedBLine:
    """Return the stored form of a B-line, after it was decoded again and compared with the raw bytes.

    Raises
    ------
    ProcessingError
        The stored form does not give the raw bytes back: a fault of this computer or its libraries.
    """
    means, differences, chunks = [], [], []
    for counts in layout.counts(raw):
        mean, order, residual = residual_from_counts(counts)
        means.append(mean)
        differences.append(order)
        chunks.append(_compressed(residual, level))
    packed = PackedBLine(_compressed(np.stack(means), level, bits=False), tuple(differences), tuple(chunks))
    counts = _reused("counts", (layout.channels, layout.a_lines, layout.samples))
    if not _same(layout.raw(counts_of_b_line(packed, layout, out=counts)), raw):
        raise ProcessingError("a B-line that was compressed for the archive does not give the raw bytes back")
    return packed


def _same(one: memoryview, other: memoryview) -> bool:
    words = np.dtype(np.uint16 if len(one) % 2 == 0 else np.uint8)
    return np.array_equal(np.frombuffer(one, words), np.frombuffer(other, words))


def unpack_b_line(packed: PackedBLine, layout: SpectraLayout, /) -> memoryview:
    """Return the raw bytes of a B-line from its stored form.

    Raises
    ------
    ValueError
        A chunk is damaged.
    """
    return layout.raw(counts_of_b_line(packed, layout))


def counts_of_b_line(
    packed: PackedBLine, layout: SpectraLayout, /, *, out: NDArray[np.uint16] | None = None
) -> NDArray[np.uint16]:
    """Return the counts of a B-line from its stored form, shape (channels, A-lines, samples)."""
    shape = (layout.a_lines, layout.samples)
    means = _decompressed(packed.mean, (layout.channels, layout.samples)).copy()
    counts = np.empty((layout.channels, *shape), np.uint16) if out is None else out
    for channel, (chunk, order) in enumerate(zip(packed.residual, packed.differences, strict=True)):
        counts_from_residual(_decompressed(chunk, shape), means[channel], order, out=counts[channel])
    return counts


_BLOSC_LEVELS = {0: 1, 1: 9}
"""Of lz4, by the level of the archive; higher levels use zstd, half as fast and 4 % smaller."""


def _compressed(values: NDArray[np.uint16], level: int, *, bits: bool = True) -> bytes:
    import imagecodecs

    return bytes(
        imagecodecs.blosc_encode(
            values.astype("<u2", copy=False),  # type: ignore[arg-type]
            level=_BLOSC_LEVELS.get(level, level - 1),
            compressor="lz4" if level in _BLOSC_LEVELS else "zstd",
            shuffle=2 if bits else 1,
            typesize=2,
            numthreads=1,
        )
    )


def _decompressed(data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    import imagecodecs

    wanted = 2 * math.prod(shape)
    if len(data) < 16 or int.from_bytes(data[4:8], "little") != wanted:
        raise ValueError(f"a chunk does not hold {wanted} bytes")
    decoded = _reused(f"decoded, {shape[0]} rows", shape)
    imagecodecs.blosc_decode(data, numthreads=1, out=decoded.data.cast("B"))
    return decoded if sys.byteorder == "little" else decoded.byteswap()


def _reused(name: str, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Return an array of this thread that every call uses again: fresh memory takes longer than the arithmetic."""
    arrays: dict[str, NDArray[np.uint16]] = _OF_THREAD.__dict__
    if name not in arrays or arrays[name].shape != shape:
        arrays[name] = np.empty(shape, np.uint16)
    return arrays[name]


_OF_THREAD = threading.local()


class SpectraZarrStore:
    """Writes the zip file, front to back.

    Parameters
    ----------
    write : callable
        Takes the bytes of the zip file, in order.
    layout : SpectraLayout
        Of the raw file.
    level : int
        As in `processing.archive.level`.
    """

    def __init__(self, write: Callable[[bytes], None], layout: SpectraLayout, /, *, level: int) -> None:
        self._tail = _Tail(write)
        self._zip = zipfile.ZipFile(self._tail, "w", zipfile.ZIP_STORED)
        self._layout = layout
        self._level = level
        self._differences: list[tuple[int, ...]] = []

    def add(self, packed: PackedBLine) -> None:
        """Write the next B-line."""
        b_line = len(self._differences)
        for channel, chunk in enumerate(packed.residual):
            self._entry(f"residual/c/{b_line}/{channel}/0/0", chunk)
        self._entry(f"mean/c/{b_line}/0/0", packed.mean)
        self._differences.append(packed.differences)

    def finish(self, *, head: bytes, rest: bytes, sha256: str) -> None:
        """Write everything else; `rest` follows the last whole B-line, and `sha256` is that of the raw file."""
        layout, n = self._layout, len(self._differences)
        channels, a_lines, samples = layout.channels, layout.a_lines, layout.samples
        for name, data in (("head", head), ("rest", rest)):
            if data:
                self._entry(f"{name}/c/0", data)
            self._array(name, (len(data),), (max(1, len(data)),), ("byte",), "uint8", blosc=None)
        orders = np.array(self._differences, np.uint8).reshape(n, channels)
        if n:
            self._entry("differences/c/0/0", orders.tobytes())
        self._array("differences", orders.shape, (max(1, n), channels), _DIMENSIONS[:2], "uint8", blosc=None)
        dimensions = (*_DIMENSIONS[:2], _DIMENSIONS[3])
        self._array("mean", (n, channels, samples), (1, channels, samples), dimensions, "uint16", blosc="shuffle")
        shape, chunk = (n, channels, a_lines, samples), (1, 1, a_lines, samples)
        self._array("residual", shape, chunk, _DIMENSIONS, "uint16", blosc="bitshuffle")
        about = {
            "version": VERSION,
            "raw_format": layout.raw_format,
            "dtype": layout.dtype,
            "raw_bytes": len(head) + n * layout.b_line_bytes + len(rest),
            "sha256": sha256,
            "counts": HOW_TO_READ,
        }
        self._json("zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": {_KEY: about}})
        self._zip.close()
        self._tail.drain()

    def abandon(self) -> None:
        """Write nothing more."""
        self._tail.drop()
        self._zip.close()

    def _array(
        self,
        name: str,
        shape: tuple[int, ...],
        chunk: tuple[int, ...],
        dimensions: tuple[str, ...],
        data_type: str,
        *,
        blosc: str | None,
    ) -> None:
        codecs: list[dict[str, Any]] = [{"name": "bytes"} if blosc is None else _LITTLE]
        if blosc is not None:
            configuration = {"typesize": 2, "cname": "lz4", "clevel": 9, "shuffle": blosc, "blocksize": 0}
            codecs.append({"name": "blosc", "configuration": configuration})
        self._json(
            f"{name}/zarr.json",
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": shape,
                "data_type": data_type,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": 0,
                "codecs": codecs,
                "dimension_names": dimensions,
                "attributes": {},
            },
        )

    def _json(self, name: str, content: Mapping[str, Any]) -> None:
        self._entry(name, json.dumps(content, indent=1).encode())

    def _entry(self, name: str, data: bytes) -> None:
        self._zip.writestr(zipfile.ZipInfo(name), data)  # without a time: the same bytes every time
        self._tail.drain()


_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


class _Tail(io.RawIOBase):
    """What `zipfile` writes to: it goes back to the start of an entry, and no further."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._start = 0
        self._held = io.BytesIO()

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._start + self._held.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET or offset < self._start:
            raise io.UnsupportedOperation("only within the entry that is being written")
        self._held.seek(offset - self._start)
        return offset

    def write(self, data: Any, /) -> int:
        return self._held.write(data)

    def drain(self) -> None:
        """Pass on what is held."""
        data = self._held.getvalue()
        self._write(data)
        self._start += len(data)
        self._held = io.BytesIO()

    def drop(self) -> None:
        """Pass on nothing more, whatever is written."""
        self._write = lambda _data: None


class SpectraZarrReader(io.RawIOBase):
    """The raw file in an archive of this form, to be read front to back, or by B-lines.

    Opening reads the directory and the description only. A damaged chunk raises an error when it is read.
    """

    def __init__(self, path: Path, file: Any, store: zipfile.ZipFile) -> None:
        self.path = path
        self._file = file
        self._zip = store
        about = _json_of(store, "zarr.json")["attributes"][_KEY]
        if about["version"] != VERSION:
            raise ValueError(f"written in version {about['version']} of this form, expected {VERSION}")
        shape = _json_of(store, "residual/zarr.json")["shape"]
        self.b_lines, channels, a_lines, samples = (int(n) for n in shape)
        self._head, self._rest = (self._bytes(name) for name in ("head", "rest"))
        self.layout = SpectraLayout(samples, a_lines, channels, about["raw_format"], len(self._head), about["dtype"])
        if self.layout.raw_format not in ("nifti", "packed12") or self.layout.dtype not in ("<u2", ">u2", "<i2", ">i2"):
            raise ValueError(f"holds {self.layout.raw_format} of {self.layout.dtype}")
        self.raw_bytes = int(about["raw_bytes"])
        """Size of the raw file."""
        self.sha256 = str(about["sha256"])
        """Of the raw file."""
        if self.raw_bytes != len(self._head) + self.b_lines * self.layout.b_line_bytes + len(self._rest):
            raise ValueError("its arrays do not have the size of the raw file")
        orders = store.read("differences/c/0/0") if self.b_lines else b""
        self._differences = np.frombuffer(orders, np.uint8).reshape(self.b_lines, channels)
        self._next = -1
        self._left = memoryview(b"")

    @classmethod
    def open(cls, path: Path, /) -> Self:
        """Open an archive.

        Raises
        ------
        MissingInputError, FileFormatError, InputError, OSError
            There is no such file, it is damaged or of another form, or cannot be read.
        """
        check_regular_file(path)
        with reading_errors(path, "an archive of spectra"):
            file = path.open("rb")
            try:
                return cls(path, file, zipfile.ZipFile(file))
            except BaseException:
                file.close()
                raise

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def b_line(self, number: int, /) -> memoryview:
        """Return the raw bytes of a B-line, counted from 0.

        Raises
        ------
        FileFormatError
            They are damaged.
        """
        with reading_errors(self.path, f"an archive of spectra (B-line {number})"):
            return unpack_b_line(self._packed(number), self.layout)

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer with what follows, and return the number of bytes; 0 at the end."""
        while not self._left:
            if self._next > self.b_lines:
                return 0
            if self._next == -1:
                self._left = memoryview(self._head)
            elif self._next == self.b_lines:
                self._left = memoryview(self._rest)
            else:
                self._left = self.b_line(self._next)
            self._next += 1
        view = memoryview(buffer).cast("B")
        n = min(len(view), len(self._left))
        view[:n] = self._left[:n]
        self._left = self._left[n:]
        return n

    def _packed(self, number: int) -> PackedBLine:
        chunks = tuple(self._zip.read(f"residual/c/{number}/{c}/0/0") for c in range(self.layout.channels))
        orders = tuple(int(n) for n in self._differences[number])
        return PackedBLine(self._zip.read(f"mean/c/{number}/0/0"), orders, chunks)

    def _bytes(self, name: str) -> bytes:
        size = int(_json_of(self._zip, f"{name}/zarr.json")["shape"][0])
        data = self._zip.read(f"{name}/c/0") if size else b""
        if len(data) != size:
            raise ValueError(f"{name} has {len(data)} bytes, expected {size}")
        return data


def _json_of(store: zipfile.ZipFile, name: str) -> Any:
    return json.loads(store.read(name))

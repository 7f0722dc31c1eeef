"""Read one grey image or volume from a TIFF file of any program of the field.

The format is read by tifffile (and imagecodecs for what is compressed). Decided here: only pages of the file itself
are read, although its metadata may describe a series of files; there must be one channel, one time point and one
series, otherwise an error names the axis; and an incomplete file is refused, where the library would fill in zeros.
"""

from __future__ import annotations

import contextlib
import logging
import math
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.io.reading import check_regular_file, reading_errors
from opticstream.model.errors import FileFormatError

_AXES = {
    "T": "time points",
    "C": "channels",
    "S": "samples of a pixel",
    "Z": "planes",
    "R": "tiles",
    "P": "positions",
    "M": "mosaic tiles",
    "E": "wavelengths",
    "A": "angles",
    "H": "phases",
    "V": "views",
    "Q": "pages that do not say what they are",
    "I": "pages that do not say what they are",
}
_PAGES = "QI"
_GREY = (0, 1)  # MINISWHITE, MINISBLACK
_WHITE_IS_ZERO = 0
_MOST_PACKED = 20_000
"""Largest ratio of compression; only damaged headers have larger ones."""
_ALWAYS_POSSIBLE = 1 << 28
"""Size up to which any header is accepted, in bytes."""


def read_tiff(path: Path, /, *, pages_are_depth: bool = False) -> NDArray[Any]:
    """Return the image of a TIFF file, shape (y, x) or (z, y, x); a pyramid's finest level.

    Parameters
    ----------
    path : Path
        The file; compressed, tiled, BigTIFF, big-endian, ImageJ, OME and others.
    pages_are_depth : bool, default False
        Read several pages of unknown kind as planes of a volume; pages that are marked as planes always are.

    Raises
    ------
    MissingInputError, FileFormatError, InputError
        The file is absent, damaged, unfinished, not TIFF, a colour picture, or has more than one image: several
        channels, time points or series. The message names the axis.
    """
    import tifffile

    check_regular_file(path)
    with reading_errors(path, "TIFF"), _quiet.reading(), tifffile.TiffFile(path, _multifile=False) as tiff:
        _check_chain(path)
        series = _only_series(path, tiff)
        page = series.keyframe
        _check_grey(path, page)
        _check_whole(path, series)
        data = np.asarray(series.asarray())
        if page.photometric == _WHITE_IS_ZERO:
            data = _with_white_at_the_top(path, data, int(page.bitspersample))
        data = _without_single_axes(path, data, series.axes, pages_are_depth=pages_are_depth)
    if data.dtype == np.float16:
        return data.astype(np.float32)
    return data.view(np.uint8) if data.dtype == bool else data


class _QuietReading(logging.Filter):
    """Stops the library from logging, in this thread, what is checked here."""

    def __init__(self) -> None:
        super().__init__()
        self._threads: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return threading.get_ident() not in self._threads

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        logging.getLogger("tifffile").addFilter(self)  # which adds it once
        self._threads.add(threading.get_ident())
        try:
            yield
        finally:
            self._threads.discard(threading.get_ident())


_quiet = _QuietReading()


def _only_series(path: Path, tiff: Any) -> Any:
    """Return the one series of a file, made of its own pages."""
    try:
        found = list(tiff.series)
    except Exception:  # metadata that name missing files, or contradict the pages
        found = []
    if tiff.is_ome and any(series.kind != "ome" for series in found):
        found = []
    own = [s for s in found if all(page is not None and page.parent is tiff for page in s.pages)]
    if not found or len(own) != len(found):
        own = _plain_series(path, tiff)
    images = [series for series in own if not (series.keyframe.is_reduced or series.keyframe.is_mask)]
    if len(images) != 1:
        shapes = ", ".join(str(series.shape) for series in images)
        raise FileFormatError(f"{path}: holds {len(images)} images (series) of the shapes {shapes}, expected one")
    return images[0]


def _plain_series(path: Path, tiff: Any) -> list[Any]:
    """Return the pages of a file itself, if its metadata also describe other files."""
    import tifffile

    pages = [page for page in tiff.pages if not page.aspage().is_reduced]
    if len(pages) != 1:
        raise FileFormatError(
            f"{path}: is one of several files of a data set and holds {len(pages)} of its pages along an unknown axis; "
            f"save each image as a separate file"
        )
    page = pages[0].aspage()
    return [tifffile.TiffPageSeries([page], shape=page.shape, dtype=page.dtype, axes=page.axes, kind="generic")]


def _check_grey(path: Path, page: Any) -> None:
    if page.photometric not in _GREY:
        name = getattr(page.photometric, "name", page.photometric)
        what = "a picture of palette colours" if name == "PALETTE" else f"a colour picture ({name})"
        raise FileFormatError(f"{path}: is {what} of shape {page.shape}; expected grey values")
    if page.samplesperpixel > 1:
        raise FileFormatError(
            f"{path}: holds {page.samplesperpixel} samples of a pixel (axis S of {page.axes}); expected grey values"
        )
    if page.dtype is None:
        raise FileFormatError(f"{path}: holds values of {page.bitspersample} bits, which cannot be read")


def _check_whole(path: Path, series: Any) -> None:
    """Refuse a file with missing parts, or with a header that does not fit its size."""
    size = path.stat().st_size
    wanted = math.prod(series.shape) * series.dtype.itemsize
    if wanted > max(_ALWAYS_POSSIBLE, size * _MOST_PACKED):
        raise FileFormatError(
            f"{path}: its header gives {series.shape} ({series.axes}), which {size} bytes cannot hold"
        )
    for number, page in enumerate(series.pages):
        if page is None:
            raise FileFormatError(f"{path}: page {number + 1} of {len(series.pages)} is missing")
        segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
        expected = math.prod(page.chunked)
        missing = sum(1 for offset, count in segments if not offset or not count)
        if missing or len(segments) < expected:
            raise FileFormatError(
                f"{path}: {missing or expected - len(segments)} of {expected} strips or tiles of page {number + 1} are "
                "missing; it is unfinished or was cut"
            )
        end = max(offset + count for offset, count in segments)
        if end > size:
            raise FileFormatError(f"{path}: holds {size} bytes, expected at least {end}; it is unfinished or was cut")


def _without_single_axes(path: Path, data: NDArray[Any], axes: str, *, pages_are_depth: bool) -> NDArray[Any]:
    """Return the data without axes of length 1; refuse an axis with more than one image."""
    if axes.find("Y") > axes.find("X"):
        raise FileFormatError(f"{path}: has the axes {axes}, expected rows (Y) before columns (X)")
    depth = 0
    for axis, length in zip(axes, data.shape, strict=True):
        if axis in "XY" or length == 1:
            continue
        depth += 1
        if axis == "Z" or (axis in _PAGES and pages_are_depth):
            continue
        words = _AXES.get(axis, "images")
        hint = "; save it as a stack of planes (axis Z)" if axis in _PAGES else ""
        raise FileFormatError(f"{path}: holds {length} {words} (axis {axis} of {axes}), expected one{hint}")
    if depth > 1:
        raise FileFormatError(f"{path}: has the axes {axes} of lengths {data.shape}, expected one image or one volume")
    kept = [n for n, (axis, length) in enumerate(zip(axes, data.shape, strict=True)) if axis in "XY" or length > 1]
    return data.reshape([data.shape[n] for n in kept])


def _with_white_at_the_top(path: Path, data: NDArray[Any], bits: int) -> NDArray[Any]:
    """Return inverted values, so that the largest is white."""
    if data.dtype == bool:
        return ~data
    if data.dtype.kind != "u":
        raise FileFormatError(f"{path}: holds {data.dtype} values with zero as white; expected whole numbers")
    return np.asarray(((1 << bits) - 1) - data, data.dtype)


def _check_chain(path: Path) -> None:
    """Refuse a file whose list of pages points outside it: the library would read fewer pages."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        version = struct.unpack_from(order + "H", head, 2)[0] if order and len(head) >= 8 else 0
        if order is None or version not in (42, 43):
            return  # the library handles other formats
        big = version == 43
        offset_code, count_code, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
        offset = struct.unpack_from(order + offset_code, head, 8 if big else 4)[0]
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise FileFormatError(f"{path}: its list of pages is a loop")
            seen.add(offset)
            number = _unpack(file, order + count_code, offset, size, path)
            offset = _unpack(
                file, order + offset_code, offset + struct.calcsize(count_code) + number * entry, size, path
            )


def _unpack(file: Any, code: str, at: int, size: int, path: Path) -> int:
    length = struct.calcsize(code)
    if at + length > size:
        raise FileFormatError(
            f"{path}: holds {size} bytes, but a page begins at byte {at}; it is unfinished or was cut"
        )
    file.seek(at)
    return int(struct.unpack(code, file.read(length))[0])

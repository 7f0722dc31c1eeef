"""Pictures for deep zoom: all resolutions in tiles, in one file that is read part by part.

The file is a Smart Zoom Image (``.szi``): a Deep Zoom Image (DZI) in a ZIP archive without further compression. It is
made strip by strip, so that the whole picture is never in memory.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.io.atomic import atomic_path
from opticstream.io.encoded_pictures import encoded_picture
from opticstream.model.errors import FileFormatError

Picture = NDArray[np.uint8]

TILE_PX = 256
_DZI = (
    '<?xml version="1.0" encoding="UTF-8"?><Image xmlns="http://schemas.microsoft.com/deepzoom/2008" '
    'TileSize="{tile}" Overlap="0" Format="jpg"><Size Width="{width}" Height="{height}"/></Image>'
)
_FIRST_DATE = (1980, 1, 1, 0, 0, 0)
"""Date of all parts, so that the same picture is the same file."""


def write_zoom(path: Path, size: tuple[int, int], strips: Iterable[Picture], /, *, quality: int = 88) -> Path:
    """Write a picture with all its resolutions, atomically; return the path.

    Parameters
    ----------
    path : Path
        The file, ``*.szi``.
    size : tuple of int
        Width and height in pixels.
    strips : iterable of arrays, shape (rows, width, 3)
        The picture from the top; each strip but the last has an even number of rows.
    quality : int
        Quality of the JPEG tiles.
    """
    width, height = size
    finest = max(width, height, 1)
    levels = (finest - 1).bit_length()
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.writestr(_entry(f"{path.stem}.dzi"), _DZI.format(tile=TILE_PX, width=width, height=height))
        pyramid = _Pyramid(archive, f"{path.stem}_files", levels, quality)
        for strip in strips:
            pyramid.add(strip)
        pyramid.finish()
    return path


def size_of_zoom(path: Path, /) -> tuple[int, int]:
    """Return width and height of the picture in a file.

    Raises
    ------
    FileFormatError
        It is no such file.
    """
    text = ZoomFile(path).read(f"{path.stem}.dzi").decode()
    found = re.search(r'Width="(\d+)" Height="(\d+)"', text)
    if found is None:
        raise FileFormatError(f"{path}: is not a picture for deep zoom")
    return int(found[1]), int(found[2])


class ZoomFile:
    """The parts of a file that `write_zoom` made.

    Raises
    ------
    FileFormatError
        It is no such file.
    """

    def __init__(self, path: Path, /) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise FileFormatError(f"{path}: cannot be read as a picture for deep zoom: {error}") from error

    def read(self, name: str, /) -> bytes:
        """Return a part: the description ``*.dzi`` or a tile ``*_files/LEVEL/COLUMN_ROW.jpg``.

        Raises
        ------
        FileFormatError
            There is no such part.
        """
        try:
            return self._archive.read(f"{self._path.stem}/{name}")
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise FileFormatError(f"{self._path}: has no part {name}") from error


def _entry(name: str) -> zipfile.ZipInfo:
    stem = name.removesuffix(".dzi").partition("_files/")[0]
    return zipfile.ZipInfo(f"{stem}/{name}", _FIRST_DATE)


class _Pyramid:
    """Cuts strips into tiles at every level; a level holds the rows that do not make up a row of tiles yet."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, levels: int, quality: int) -> None:
        self._archive = archive
        self._folder = folder
        self._quality = quality
        self._waiting: dict[int, list[Picture]] = {level: [] for level in range(levels + 1)}
        self._rows = dict.fromkeys(self._waiting, 0)
        self._written = dict.fromkeys(self._waiting, 0)
        self._finest = levels

    def add(self, rows: Picture) -> None:
        self._add(self._finest, rows)

    def finish(self) -> None:
        for level in range(self._finest, -1, -1):
            rest = self._taken(level)
            if rest is not None:
                self._emit(level, rest)

    def _add(self, level: int, rows: Picture) -> None:
        self._waiting[level].append(rows)
        self._rows[level] += len(rows)
        while self._rows[level] >= TILE_PX:
            whole = self._taken(level)
            assert whole is not None
            if len(whole) > TILE_PX:
                self._waiting[level] = [whole[TILE_PX:]]
                self._rows[level] = len(whole) - TILE_PX
            self._emit(level, whole[:TILE_PX])

    def _taken(self, level: int) -> Picture | None:
        parts, self._waiting[level], self._rows[level] = self._waiting[level], [], 0
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _emit(self, level: int, strip: Picture) -> None:
        row = self._written[level]
        self._written[level] += 1
        for column in range(-(-strip.shape[1] // TILE_PX)):
            tile = np.ascontiguousarray(strip[:, column * TILE_PX : (column + 1) * TILE_PX])
            name = f"{self._folder}/{level}/{column}_{row}.jpg"
            self._archive.writestr(_entry(name), encoded_picture(tile, "JPEG", quality=self._quality))
        if level:
            self._add(level - 1, _halved(strip))


def _halved(picture: Picture) -> Picture:
    rows, columns = picture.shape[:2]
    even = np.pad(picture, ((0, rows % 2), (0, columns % 2), (0, 0)), mode="edge").astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)

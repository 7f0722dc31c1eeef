"""Small pictures for the live mosaic: one strip for each column, put together from the thumbnails of its tiles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from opticstream.io.encoded_pictures import SMALL_PX, small_picture
from opticstream.io.nifti import read_nifti
from opticstream.io.pictures import display_range
from opticstream.io.tile_thumbnail import (
    fixed_range,
    maps_in_thumbnail,
    small_map,
    strip_of_column,
    thumbnail_path,
    thumbnail_size,
)
from opticstream.io.zoom import ZoomFile
from opticstream.model.errors import FileFormatError, InputError, OpticStreamError
from opticstream.model.ids import MosaicId, TileId
from opticstream.model.modalities import described
from opticstream.pipeline.project import Project
from opticstream.web.tiles import TileLook

Picture = NDArray[np.uint8]
V = TypeVar("V")


class _Kept(Generic[V]):
    """The values that were used last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


class Thumbnails:
    """Strips of columns and previews of mosaics, each made once."""

    def __init__(self, project: Project, /) -> None:
        self._project = project
        self._tiles: _Kept[Picture | None] = _Kept(3000)
        self._strips: _Kept[bytes] = _Kept(600)
        self._previews: _Kept[bytes] = _Kept(1000)
        self._limits: dict[tuple[MosaicId, str], tuple[float, float]] = {}

    def strip(self, looks: Sequence[TileLook], modality: str, /) -> bytes:
        """Return a JPEG of the tiles of a column, from the top; black where a tile has no such map."""
        key = (modality, *((look.tile, look.stamp) for look in looks))
        return self._strips.get(key, lambda: self._strip(looks, modality))

    def preview(self, picture: Path, /) -> bytes:
        """Return a small JPEG of a picture of the pipeline, of a version that made none itself."""
        return self._previews.get((picture, picture.stat().st_mtime_ns), lambda: _reduced(picture))

    def _strip(self, looks: Sequence[TileLook], modality: str) -> bytes:
        ordered = sorted(looks, key=lambda look: look.row)
        return strip_of_column([self._tile(look, modality) for look in ordered], self._size(ordered[0].tile.mosaic))

    def _size(self, mosaic: MosaicId) -> tuple[int, int]:
        a_lines, b_lines = self._project.config.scan.tile_shape(self._project.layout.illumination_index(mosaic))
        return thumbnail_size(a_lines, b_lines)

    def _tile(self, look: TileLook, modality: str) -> Picture | None:
        if look.state not in ("done", "look"):
            return None
        return self._tiles.get((look.tile, look.stamp, modality), lambda: self._drawn(look, modality))

    def _drawn(self, look: TileLook, modality: str) -> Picture | None:
        path = thumbnail_path(self._project.paths.base, look.tile)
        made = maps_in_thumbnail(path, self._size(look.tile.mosaic)).get(modality)
        return made if made is not None else self._from_maps(look, modality)

    def _from_maps(self, look: TileLook, modality: str) -> Picture | None:
        """Return the picture of a map that is in no thumbnail: of an earlier version, or without a fixed range."""
        image = self._map(look.tile, modality)
        if image is None:
            return None
        noise_db = float(look.figures.get("noise_db", float("nan")))
        limits = fixed_range(modality, noise_db=noise_db)
        if limits is None:
            # The first tile that is seen decides, so that neighbouring columns have the same colours.
            limits = self._limits.setdefault((look.tile.mosaic, modality), display_range(modality, image))
        intensity = self._map(look.tile, "aip") if described(modality).is_axial else None
        return small_map(modality, image, noise_db=noise_db, limits=limits, intensity=intensity)

    def _map(self, tile: TileId, modality: str) -> NDArray[np.float32] | None:
        try:
            image = read_nifti(self._project.paths.tile_product(tile, modality), mmap=True)
        except (OpticStreamError, OSError):  # not made, or just being replaced
            return None
        return np.asarray(image.reshape(image.shape[:2]), np.float32)


class ZoomFiles:
    """Pictures at full size that are being looked at."""

    def __init__(self) -> None:
        self._open: _Kept[ZoomFile] = _Kept(16)

    def read(self, path: Path, part: str, /) -> bytes:
        """Return a part of a picture at full size.

        Raises
        ------
        InputError
            There is no such picture or part.
        """
        try:
            stamp = path.stat().st_mtime_ns
            return self._open.get((path, stamp), lambda: ZoomFile(path)).read(part)
        except (OSError, FileFormatError) as error:
            raise InputError(f"{path.name} has no part {part}") from error


def _reduced(picture: Path) -> bytes:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is for pictures of strangers
    with Image.open(picture) as image:
        image.draft("RGB", (SMALL_PX * 2, SMALL_PX * 2))
        return small_picture(np.asarray(image.convert("RGB")))

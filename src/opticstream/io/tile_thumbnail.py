"""The thumbnail of a tile: its maps side by side, as small as the dashboard shows them; and strips of whole columns.

Only maps whose colours mean the same in every tile are in it. One file for each tile, because a sample has 100,000.
When a column is done, a strip of each map is put together from its thumbnails, which the dashboard sends as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.io.atomic import write_bytes
from opticstream.io.encoded_pictures import encoded_picture
from opticstream.io.orientation_pictures import hue_colours
from opticstream.io.paths import THUMBNAIL_FOLDER, THUMBNAIL_PX, strip_path, tile_product_name
from opticstream.io.pictures import picture_of_map
from opticstream.model.ids import BatchId, TileId
from opticstream.model.modalities import described, enface_names

INTENSITY_RANGE_DB = 45.0
"""Levels above the noise at which pictures of tiles are white."""
TISSUE_ABOVE_NOISE_DB = 3.0
"""Average intensity above the noise from which a pixel of a tile counts as tissue."""

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]


def thumbnail_path(out_dir: Path, tile: TileId, /) -> Path:
    """Return where the thumbnail of a tile is, in the project's folder.

    Examples
    --------
    >>> thumbnail_path(Path("out"), TileId(3, 12)).as_posix()
    'out/mosaic-03/thumbnails/mosaic_003_image_0012_maps.jpg'
    """
    name = tile_product_name(tile, "maps")
    return (out_dir / tile.mosaic.folder / THUMBNAIL_FOLDER / name).with_suffix(".jpg")


def thumbnail_size(a_lines: int, b_lines: int, /) -> tuple[int, int]:
    """Return width and height of one map of a thumbnail, in pixels.

    Examples
    --------
    >>> thumbnail_size(200, 350), thumbnail_size(350, 350)
    ((41, 72), (72, 72))
    """
    shrink = THUMBNAIL_PX / max(a_lines, b_lines)
    return max(1, round(a_lines * shrink)), max(1, round(b_lines * shrink))


def fixed_range(modality: str, /, *, noise_db: float) -> tuple[float, float] | None:
    """Return the values of the darkest and the brightest colour; None if they differ from tile to tile."""
    known = described(modality)
    if isinstance(known.tile_range, tuple):
        return known.tile_range
    if known.in_db and np.isfinite(noise_db):
        return noise_db, noise_db + INTENSITY_RANGE_DB
    return None


def small_map(
    modality: str,
    image: Floats,
    /,
    *,
    noise_db: float,
    limits: tuple[float, float] | None = None,
    intensity: Floats | None = None,
) -> Picture:
    """Return a map as it is in a thumbnail, shape (rows, columns, 3).

    Parameters
    ----------
    modality : str
        Name of the map.
    image : ndarray, shape (x, y)
        Values; NaN is black.
    noise_db : float
        Noise of the tile, where grey begins.
    limits : tuple of float, optional
        Values of the darkest and the brightest colour of a map without a fixed range.
    intensity : ndarray, shape (x, y), optional
        Average intensity in dB: axes are dim where it shows no tissue.
    """
    width, height = thumbnail_size(*image.shape)
    thin = _thin(image, width, height)
    if described(modality).is_axial:
        level = np.ones(thin.shape, np.float32)
        if intensity is not None and intensity.shape == image.shape and np.isfinite(noise_db):
            tissue = _thin(intensity, width, height) >= noise_db + TISSUE_ABOVE_NOISE_DB
            level = np.where(tissue, 1.0, 0.25).astype(np.float32)
        colours = np.rint(255 * hue_colours(thin, brightness=level)).astype(np.uint8)
        return np.ascontiguousarray(colours.swapaxes(0, 1))
    return picture_of_map(modality, thin, limits=limits or fixed_range(modality, noise_db=noise_db))


def tile_thumbnail(maps: Mapping[str, Floats], /, *, noise_db: float) -> bytes:
    """Return the thumbnail of a tile as JPEG, with the names of its maps as the comment; empty if there is none.

    Parameters
    ----------
    maps : mapping of arrays, shape (x, y)
        The maps by name.
    noise_db : float
        Noise of the tile.
    """
    known = enface_names()
    names = [name for name in maps if name in known and fixed_range(name, noise_db=noise_db) is not None]
    if not names:
        return b""
    panels = [small_map(name, maps[name], noise_db=noise_db, intensity=maps.get("aip")) for name in names]
    wide = [np.pad(one, ((0, 0), (0, -one.shape[1] % 8), (0, 0)), mode="edge") for one in panels]
    return encoded_picture(
        np.concatenate(wide, axis=1), "JPEG", quality=88, subsampling=0, comment=",".join(names).encode()
    )


def maps_in_thumbnail(path: Path, size: tuple[int, int], /) -> dict[str, Picture]:
    """Return the maps of a thumbnail by their names, shape (height, width, 3); none if there is no thumbnail."""
    from PIL import Image

    width, height = size
    try:
        with Image.open(path) as picture:
            names = [name for name in picture.info.get("comment", b"").decode().split(",") if name]
            if not names or picture.height != height:
                return {}
            pixels, step = np.asarray(picture.convert("RGB")), picture.width // len(names)
    except (OSError, ValueError):
        return {}
    return {name: pixels[:, k * step : k * step + width] for k, name in enumerate(names)}


def strip_of_column(pictures: Sequence[Picture | None], size: tuple[int, int], /) -> bytes:
    """Return the pictures of the tiles of a column, from the top, as one JPEG; black where there is none."""
    width, height = size
    strip = np.zeros((height * len(pictures), width, 3), np.uint8)
    for row, picture in enumerate(pictures):
        if picture is not None:
            strip[row * height : (row + 1) * height] = picture
    return encoded_picture(strip, "JPEG", quality=85)


def write_strips(out_dir: Path, batch: BatchId, tiles: Sequence[TileId], size: tuple[int, int], /) -> list[Path]:
    """Write a strip of each map of a column from the thumbnails of its tiles; return the paths.

    Parameters
    ----------
    out_dir : Path
        Folder of the project.
    batch : BatchId
        The column.
    tiles : sequence of TileId
        Its tiles, from the top of the picture.
    size : tuple of int
        Width and height of a map in a thumbnail.
    """
    known = [maps_in_thumbnail(thumbnail_path(out_dir, tile), size) for tile in tiles]
    names = dict.fromkeys(name for maps in known for name in maps)
    return [
        write_bytes(strip_path(out_dir, batch, name), strip_of_column([maps.get(name) for maps in known], size))
        for name in names
    ]


def _thin(image: Floats, width: int, height: int) -> Floats:
    columns, rows = image.shape
    x = np.linspace(0, columns - 1, width).round().astype(np.intp)
    y = np.linspace(0, rows - 1, height).round().astype(np.intp)
    return np.asarray(image[np.ix_(x, y)], np.float32)

"""The thumbnail of a tile: its maps side by side, as small as the dashboard shows them.

Only maps whose colours mean the same in every tile are in it. One file for each tile, because a sample has 100,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.io.encoded_pictures import encoded_picture
from opticstream.io.orientation_pictures import hue_colours
from opticstream.io.paths import tile_product_name
from opticstream.io.pictures import picture_of_map
from opticstream.model.ids import TileId
from opticstream.model.modalities import described, enface_names

INTENSITY_RANGE_DB = 45.0
"""Levels above the noise at which pictures of tiles are white."""
TISSUE_ABOVE_NOISE_DB = 3.0
"""Average intensity above the noise from which a pixel of a tile counts as tissue."""
THUMBNAIL_PX = 72
"""Longer side of one map; a multiple of 8, so that neighbours do not share blocks of the JPEG."""
_FOLDER = "thumbnails"
"""Folder of a mosaic; a clean-up of what was computed for its tiles leaves it."""

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
    return (out_dir / tile.mosaic.folder / _FOLDER / name).with_suffix(".jpg")


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


def map_in_thumbnail(path: Path, modality: str, size: tuple[int, int], /) -> Picture | None:
    """Return one map of a thumbnail, shape (height, width, 3); None if it is not in it, or there is no thumbnail."""
    from PIL import Image

    width, height = size
    try:
        with Image.open(path) as picture:
            names = picture.info.get("comment", b"").decode().split(",")
            if modality not in names or picture.height != height:
                return None
            step = picture.width // len(names)
            left = names.index(modality) * step
            return np.asarray(picture.convert("RGB"))[:, left : left + width]
    except (OSError, ValueError):
        return None


def _thin(image: Floats, width: int, height: int) -> Floats:
    columns, rows = image.shape
    x = np.linspace(0, columns - 1, width).round().astype(np.intp)
    y = np.linspace(0, rows - 1, height).round().astype(np.intp)
    return np.asarray(image[np.ix_(x, y)], np.float32)

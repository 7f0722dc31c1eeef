"""The quality picture of a tile: cross-sections with the surface drawn over them, and the maps in fixed colours.

Drawn pixel by pixel with NumPy and packed by Pillow, in some ten milliseconds; a plotting library would take longer
than the tile itself. Colours mean the same in every tile: intensity from the noise up to 45 dB above it, orientation on
the colour wheel of all pictures, dim where no tissue is, other maps in the range that the table of modalities gives.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opticstream.io.encoded_pictures import encoded_picture
from opticstream.io.orientation_pictures import hue_colours
from opticstream.io.tile_thumbnail import INTENSITY_RANGE_DB, TISSUE_ABOVE_NOISE_DB
from opticstream.model.modalities import MODALITIES, Modality, described

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]

LARGEST_SIDE_PX = 400
_GAP = 6
_SURFACE_COLOUR = (255, 80, 40)


def _scaled(values: Floats, low: float, high: float) -> Floats:
    return np.asarray(np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1), dtype=np.float32)


def grey(values: Floats, low: float, high: float, /) -> Picture:
    """Return a grey picture, shape (..., 3), black at `low` and white at `high`."""
    level = (255 * _scaled(values, low, high)).astype(np.uint8)
    return np.repeat(level[..., np.newaxis], 3, axis=-1)


def heat(values: Floats, low: float, high: float, /) -> Picture:
    """Return a picture from black over red and yellow to white; brightness rises all the way."""
    t = _scaled(values, low, high)[..., np.newaxis]
    return (255 * np.clip(3 * t - np.array([0, 1, 2], np.float32), 0, 1)).astype(np.uint8)


def hue(orientation_deg: Floats, brightness: Floats, /) -> Picture:
    """Return axes in the colours of every other picture of axes: red along x, once round the wheel for 180 degrees.

    Examples
    --------
    >>> same = hue(np.array([-90.0, 90.0], np.float32), np.ones(2, np.float32))
    >>> bool((same[0] == same[1]).all())
    True
    """
    return np.rint(255 * hue_colours(orientation_deg, brightness=brightness)).astype(np.uint8)


def _shrunk(image: NDArray[np.float32]) -> NDArray[np.float32]:
    step = max(1, -(-max(image.shape[:2]) // LARGEST_SIDE_PX))
    return image[::step, ::step]


def _section(intensity: Floats, surface: Floats, low: float, high: float) -> Picture:
    picture = grey(intensity, low, high)
    columns = np.arange(len(surface))
    for shift in (0, 1):
        z = np.clip(np.rint(surface).astype(np.intp) + shift, 0, intensity.shape[1] - 1)
        picture[columns, z] = _SURFACE_COLOUR
    step = max(1, -(-len(surface) // LARGEST_SIDE_PX))
    deep = max(1, -(-intensity.shape[1] // (LARGEST_SIDE_PX * 2)))
    return picture[::step, ::deep].swapaxes(0, 1)


def _row(panels: list[Picture]) -> Picture:
    height = max(panel.shape[0] for panel in panels)
    parts = []
    for panel in panels:
        padded = np.full((height, panel.shape[1] + _GAP, 3), 24, np.uint8)
        padded[: panel.shape[0], : panel.shape[1]] = panel
        parts.append(padded)
    return np.concatenate(parts, axis=1)


def _panel(known: Modality, image: Floats, noise_db: float, bright_db: float, tissue: Floats) -> Picture:
    if known.is_axial:
        return hue(image, tissue)
    match known.tile_range:
        case "above noise":
            low, high = noise_db, bright_db
        case (low, high):
            pass
        case _:
            finite = image[np.isfinite(image)]
            low, high = (float(finite.min()) - 1, float(finite.max()) + 1) if finite.size else (0.0, 1.0)
    return (grey if known.intensity else heat)(image, low, high)


def tile_picture(maps: dict[str, Floats], section_x: Floats, section_y: Floats, /, *, noise_db: float) -> bytes:
    """Return the quality picture of a tile as JPEG.

    Top: intensity along the middle B-line and across it (depth downwards) with the surface in orange. Below, x to the
    right and y downwards: the maps that the table of modalities gives a `tile_range`, as far as they were made.

    Parameters
    ----------
    maps : dict of arrays, shape (x, y)
        `surf` and any others.
    section_x, section_y : arrays, shape (x, z) and (y, z)
        Intensity in dB.
    noise_db : float
        Where black begins.
    """
    low, high = noise_db, noise_db + INTENSITY_RANGE_DB
    surface = maps["surf"]
    x, y = surface.shape
    sections = [
        _section(section_x, surface[:, y // 2], low, high),
        _section(section_y, surface[x // 2], low, high),
    ]
    small = {name: _shrunk(np.asarray(image, np.float32)) for name, image in maps.items()}
    tissue = np.ones(small["surf"].shape, np.float32)
    if "aip" in small:
        tissue = np.where(small["aip"] >= noise_db + TISSUE_ABOVE_NOISE_DB, 1, 0.25).astype(np.float32)
    panels = [
        _panel(described(name), small[name], low, high, tissue)
        for name in MODALITIES
        if name in small and described(name).tile_range is not None
    ]
    rows = [_row(sections), _row([panel.swapaxes(0, 1) for panel in panels])]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, _GAP), (0, width - row.shape[1]), (0, 0)), constant_values=24) for row in rows]
    return encoded_picture(np.concatenate(padded), "JPEG", quality=88)

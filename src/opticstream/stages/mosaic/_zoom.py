"""Pictures of stitched maps at full size, for deep zoom: in the same colours as the reduced ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.io.pictures import Picture, brightness_range, display_range, picture_of_map
from opticstream.io.zoom import TILE_PX, write_zoom

Floats = NDArray[np.float32]


def write_zoom_of_map(path: Path, modality: str, image: Floats, /, *, small: Floats, light: Floats | None) -> Path:
    """Write the picture of a map at full size; return the path.

    Parameters
    ----------
    path : Path
        The file, ``*.szi``.
    modality : str
        Name of the map.
    image : ndarray, shape (x, y)
        Values; NaN is black.
    small : ndarray
        The same, thinned by whole steps, from which the colours are chosen.
    light : ndarray, shape of `small`, optional
        Brightness of a map of axes.
    """
    limits = display_range(modality, small)
    light_limits = None if light is None else brightness_range(small, light)
    step = -(-image.shape[0] // small.shape[0])
    columns = np.arange(image.shape[0]) // step

    def strips() -> Iterator[Picture]:
        for top in range(0, image.shape[1], TILE_PX):
            rows = np.arange(top, min(top + TILE_PX, image.shape[1]))
            bright = None if light is None else light[np.ix_(columns, rows // step)]
            yield picture_of_map(
                modality, image[:, rows], brightness=bright, limits=limits, light_limits=light_limits
            )  # fmt: skip

    return write_zoom(path, (image.shape[0], image.shape[1]), strips())

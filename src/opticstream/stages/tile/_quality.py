"""Quality figures of a tile, measured; `opticstream.config.tile_figures` has the limits beyond which it is flagged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config.tile_figures import TileFigures
from opticstream.io.tile_thumbnail import TISSUE_ABOVE_NOISE_DB

FULL_SCALES = (255, 1023, 4095, 16383, 65535)
"""Largest count of cameras with 8, 10, 12, 14 and 16 bits."""


class Saturation:
    """Counts samples at the camera's full scale, which it takes from the largest count of the tile."""

    def __init__(self) -> None:
        self._largest = 0
        self._at_largest = 0
        self._seen = 0

    def add(self, counts: NDArray[Any], /) -> None:
        """Take in a block of raw counts."""
        self._seen += counts.size
        largest = int(counts.max())
        if largest not in FULL_SCALES:
            self._largest, self._at_largest = (
                (largest, 0) if largest > self._largest else (self._largest, self._at_largest)
            )
            return
        if largest > self._largest:
            self._largest, self._at_largest = largest, 0
        if largest == self._largest:
            self._at_largest += int(np.count_nonzero(counts == largest))

    @property
    def fraction(self) -> float:
        """Fraction of samples at full scale; 0 where the largest count is no full scale."""
        return self._at_largest / self._seen if self._seen else 0.0


def figures_from_maps(
    maps: Mapping[str, NDArray[np.float32]],
    confidence: NDArray[np.float32],
    /,
    *,
    noise_db: float,
    saturated_fraction: float,
) -> TileFigures:
    """Return the figures of a tile.

    Parameters
    ----------
    maps : mapping of arrays, shape (x, y)
        `surfraw` and any others; without `aip` nothing counts as tissue.
    confidence : array, shape (x, y)
        Confidence of the surface, 0..1.
    noise_db, saturated_fraction : float
        As in `TileFigures`.
    """
    surface, aip = maps["surfraw"], maps.get("aip")
    tissue = np.zeros(surface.shape, bool) if aip is None else aip >= noise_db + TISSUE_ABOVE_NOISE_DB
    seen = bool(tissue.any())
    steps = np.abs(np.diff(surface, axis=0))[tissue[1:] & tissue[:-1]]
    if aip is None:
        signal_db = float("nan")
    else:
        signal_db = float(np.median(aip[tissue] if seen else aip))
    return TileFigures(
        signal_db=signal_db,
        noise_db=noise_db,
        tissue_fraction=float(tissue.mean()),
        nan_fraction=max(float(np.isnan(image[tissue]).mean()) for image in maps.values()) if seen else 0.0,
        saturated_fraction=saturated_fraction,
        surface_roughness_px=float(np.median(steps)) if steps.size else 0.0,
        surface_confidence=float(np.median(confidence[tissue])) if seen else 1.0,
    )

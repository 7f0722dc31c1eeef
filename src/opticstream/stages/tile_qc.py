"""Quality figures of a tile and the limits beyond which people are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True, slots=True)
class TileLimits:
    """Limits of the figures."""

    saturated_fraction: float = 1e-3
    """More samples at full scale than this distort the spectra."""
    surface_roughness_px: float = 20.0
    """Median step of the surface between neighbouring A-lines of tissue."""


@dataclass(frozen=True, slots=True)
class TileFigures:
    """Quality figures of one tile."""

    signal_db: float
    """Median of the average intensity projection."""
    noise_db: float
    """Median intensity of the deepest twentieth of the A-lines."""
    tissue_fraction: float
    """Fraction of A-lines whose average intensity is at least 3 dB above the noise; 0 for a blank tile."""
    saturated_fraction: float
    """Fraction of raw samples at the camera's full scale."""
    surface_roughness_px: float
    """Median step of the unfiltered surface between neighbours; 0 for a blank tile."""
    surface_confidence: float
    """Median confidence of the surface over tissue, 0..1; 1 for a blank tile and for methods that give none."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def flags(self, limits: TileLimits | None = None, /) -> tuple[str, ...]:
        """Return a sentence for each limit that is exceeded. A blank tile is a good tile."""
        limits = limits or TileLimits()
        found = []
        if self.saturated_fraction > limits.saturated_fraction:
            found.append(
                f"saturated: {self.saturated_fraction:.2%} of the samples at full scale, "
                f"limit {limits.saturated_fraction:.2%}"
            )
        if self.tissue_fraction > 0.05 and self.surface_roughness_px > limits.surface_roughness_px:
            found.append(
                f"surface: median step {self.surface_roughness_px:.1f} px, limit {limits.surface_roughness_px:.1f} px"
            )
        return tuple(found)


TISSUE_ABOVE_NOISE_DB = 3.0


def figures_from_maps(
    aip: NDArray[np.float32] | None,
    surfraw: NDArray[np.float32],
    confidence: NDArray[np.float32],
    /,
    *,
    noise_db: float,
    saturated_fraction: float,
) -> TileFigures:
    """Return the figures of a tile from its maps, shape (x, y)."""
    tissue = np.zeros(surfraw.shape, bool) if aip is None else aip >= noise_db + TISSUE_ABOVE_NOISE_DB
    both = tissue[1:] & tissue[:-1]
    steps = np.abs(np.diff(surfraw, axis=0))[both]
    return TileFigures(
        signal_db=float("nan") if aip is None else float(np.median(aip)),
        noise_db=noise_db,
        tissue_fraction=float(tissue.mean()),
        saturated_fraction=saturated_fraction,
        surface_roughness_px=float(np.median(steps)) if steps.size else 0.0,
        surface_confidence=float(np.median(confidence[tissue])) if tissue.any() else 1.0,
    )

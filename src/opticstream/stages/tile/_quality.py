"""Quality figures of a tile, and the limits beyond which it is flagged for review."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config.processing import QualitySettings
from opticstream.io.tile_thumbnail import TISSUE_ABOVE_NOISE_DB
from opticstream.model.verdict import Grade, Verdict

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
class TileFigures:
    """Quality figures of one tile."""

    signal_db: float
    """Median of the average intensity projection over tissue; over everything where there is no tissue."""
    noise_db: float
    """Median intensity of the deepest twentieth of the A-lines."""
    tissue_fraction: float
    """Share of A-lines whose average intensity is at least 3 dB above the noise; 0 for a blank tile."""
    nan_fraction: float
    """Largest share of A-lines of tissue at which one of the maps has no value."""
    saturated_fraction: float
    """Share of raw samples at the camera's full scale."""
    surface_roughness_px: float
    """Median step of the unfiltered surface between neighbours; 0 for a blank tile."""
    surface_confidence: float
    """Median confidence of the surface over tissue, 0..1; 1 for a blank tile and for methods that give none."""

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def flags(self, limits: QualitySettings, /) -> tuple[str, ...]:
        """Return a sentence for each limit that is exceeded, with the setting that holds it."""
        return self.verdict(limits).reasons

    def verdict(self, limits: QualitySettings, /) -> Verdict:
        """Return the verdict, with a sentence for each limit that is exceeded and the setting that holds it.

        What tissue shows is judged only where more than a twentieth of the tile is tissue.
        """
        return Verdict.of(self._graded(limits))

    def _graded(self, limits: QualitySettings) -> list[tuple[Grade, str]]:
        found: list[tuple[Grade, str]] = []
        if self.saturated_fraction > limits.saturated_fraction:
            reason = (
                f"saturated: {self.saturated_fraction:.2%} of the samples at full scale, "
                f"limit {limits.saturated_fraction:.2%} (processing.quality.saturated_fraction)"
            )
            found.append((grade_above(self.saturated_fraction, limits.saturated_fraction, limits), reason))
        if 1 - self.tissue_fraction > limits.blank_fraction:
            reason = (
                f"blank: {1 - self.tissue_fraction:.0%} of the A-lines without tissue, "
                f"limit {limits.blank_fraction:.0%} (processing.quality.blank_fraction)"
            )
            found.append(("look", reason))
        if self.tissue_fraction <= LEAST_TISSUE:
            return found
        if limits.signal_db is not None and self.signal_db < limits.signal_db:
            reason = (
                f"weak: average intensity {self.signal_db:.1f} dB over tissue, "
                f"limit {limits.signal_db:.1f} dB (processing.quality.signal_db)"
            )
            found.append(("look", reason))
        if self.surface_roughness_px > limits.surface_roughness_px:
            reason = (
                f"surface: median step {self.surface_roughness_px:.1f} px, "
                f"limit {limits.surface_roughness_px:.1f} px (processing.quality.surface_roughness_px)"
            )
            found.append((grade_above(self.surface_roughness_px, limits.surface_roughness_px, limits), reason))
        if self.surface_confidence < limits.surface_confidence:
            reason = (
                f"surface: median confidence {self.surface_confidence:.2f}, "
                f"limit {limits.surface_confidence:.2f} (processing.quality.surface_confidence)"
            )
            found.append(("look", reason))
        if self.nan_fraction > limits.nan_fraction:
            reason = (
                f"no value: {self.nan_fraction:.1%} of the tissue in one of the maps, "
                f"limit {limits.nan_fraction:.1%} (processing.quality.nan_fraction)"
            )
            found.append((grade_above(self.nan_fraction, limits.nan_fraction, limits), reason))
        return found


def grade_above(figure: float, limit: float, limits: QualitySettings, /) -> Grade:
    """Return the grade of a figure that exceeds its limit.

    Examples
    --------
    >>> grade_above(0.002, 0.001, QualitySettings()), grade_above(0.02, 0.001, QualitySettings())
    ('look', 'bad')
    """
    return "bad" if figure > limits.bad_factor * limit else "look"


LEAST_TISSUE = 0.05
"""Share of tissue below which a tile has too little for figures about tissue."""


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

"""Quality figures of a tile, and the limits beyond which it is flagged for review.

They are here, and not with what measures them, so that who only judges loads nothing that computes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from opticstream.config.processing import QualitySettings
from opticstream.model.verdict import Grade, Verdict

LEAST_TISSUE = 0.05
"""Share of tissue below which a tile has too little for figures about tissue."""


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

"""Quality of slices against their neighbours: focus, signal, and agreement of places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_NEIGHBOURS = 3
_AGREES = 0.25
_FINE_PX = (1.0, 2.0)
_COARSE_PX = (4.0, 8.0)


@dataclass(frozen=True)
class SliceFigures:
    """Quality figures of a slice; None where there is nothing to compare with."""

    focus_db: float | None
    """Fine against coarse structure, less the median of that of its neighbours; negative: blurred."""
    signal_db: float | None
    """Median level over the tissue, less the median of that of its neighbours."""
    agreement: float | None
    """Confidence of its best comparison with a neighbour that agrees with its place, 0..1; 0 where none of two or more
    agrees."""


def sharpness_db(image: ArrayLike, tissue: ArrayLike, /) -> float:
    """Return the power of structures of about 2 to 4 px against that of 8 to 16 px, in dB; NaN without tissue.

    Parameters
    ----------
    image : array_like, shape (x, y)
        Intensity in dB; NaN marks missing values.
    tissue : array_like of bool, shape (x, y)
        Where it counts.

    Examples
    --------
    >>> noise = np.random.default_rng(1).normal(size=(64, 64))
    >>> everywhere = np.ones((64, 64), bool)
    >>> from scipy.ndimage import gaussian_filter
    >>> sharpness_db(noise, everywhere) > 6 + sharpness_db(gaussian_filter(noise, 2.0), everywhere)
    True
    """
    from scipy import ndimage

    values = np.asarray(image, np.float32)
    good = np.asarray(tissue, bool) & np.isfinite(values)
    if good.sum() < 100:
        return float("nan")
    filled = np.where(good, values - np.median(values[good]), 0).astype(np.float32)
    share = good.astype(np.float32)

    def blurred(sigma: float) -> np.ndarray:
        return np.asarray(
            ndimage.gaussian_filter(filled, sigma) / np.maximum(ndimage.gaussian_filter(share, sigma), 1e-3)
        )

    powers = []
    for low, high in (_FINE_PX, _COARSE_PX):
        powers.append(float(np.mean((blurred(low) - blurred(high))[good] ** 2)))
    return float(10 * np.log10(max(powers[0], 1e-12) / max(powers[1], 1e-12)))


def slice_figures(
    sharpness: Mapping[int, float], level_db: Mapping[int, float], edges: Iterable[tuple[int, int, float, float]], /
) -> dict[int, SliceFigures]:
    """Return the quality figures of all slices.

    Parameters
    ----------
    sharpness, level_db : mapping of int to float
        `sharpness_db` and median level of each slice; NaN where unknown.
    edges : iterable of (int, int, float, float)
        Comparisons: two slices, the weight in the solve, and the confidence.

    Examples
    --------
    Slice 3 shows nothing that its neighbours show, which does not count against them:

    >>> edges = [(1, 2, 1.0, 0.9), (2, 3, 0.0, 0.1), (1, 3, 0.0, 0.1), (3, 4, 0.0, 0.1), (2, 4, 0.9, 0.8)]
    >>> levels = {1: 60.0, 2: 60.5, 3: 48.0, 4: 60.0}
    >>> slice_figures({}, levels, edges)[3]
    SliceFigures(focus_db=None, signal_db=-12.0, agreement=0.0)
    >>> slice_figures({}, levels, edges)[4].agreement
    0.8
    """
    agreeing: dict[int, list[float]] = {}
    for first, second, weight, confidence in edges:
        for n in (first, second):
            agreeing.setdefault(n, []).append(confidence if weight > _AGREES else 0.0)
    found = {}
    for n in sorted({*sharpness, *level_db, *agreeing}):
        # Of one comparison alone nobody knows which of the two slices is wrong.
        agreement = round(max(agreeing[n]), 3) if len(agreeing.get(n, ())) > 1 else None
        found[n] = SliceFigures(_against_neighbours(sharpness, n), _against_neighbours(level_db, n), agreement)
    return found


def _against_neighbours(values: Mapping[int, float], n: int) -> float | None:
    near = [v for k, v in values.items() if k != n and abs(k - n) <= _NEIGHBOURS and np.isfinite(v)]
    if len(near) < 2 or not np.isfinite(values.get(n, np.nan)):
        return None
    return round(float(values[n] - np.median(near)), 2)

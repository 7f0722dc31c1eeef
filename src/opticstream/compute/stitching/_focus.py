"""The depth shift that bends every tile alike, from where neighbouring tiles disagree about one and the same surface.

Two tiles see a tissue point at different places of their field of view. The difference of the depths that they give it
holds the difference of the field's bending between these places, and nothing of the tissue itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FocusFit:
    """Bending of the field of view.

    Attributes
    ----------
    surface_px : ndarray, shape (x, y), float32
        Depth shift of every A-line in samples, with mean 0 (the constant is not seen by overlaps).
    coefficients : ndarray
        Of the monomials ``u^i v^j`` with ``u, v`` from -1 to 1 over the tile, in the order of `exponents`.
    exponents : tuple of (int, int)
        Powers of u and v, without the constant.
    residual_before_px, residual_after_px : float
        Robust scatter (1.4826 x median absolute value) of the disagreement of neighbouring tiles.
    samples : int
        Number of patches of overlap that took part.
    """

    surface_px: NDArray[np.float32]
    coefficients: Array
    exponents: tuple[tuple[int, int], ...]
    residual_before_px: float
    residual_after_px: float
    samples: int


def monomials(degree: int, /) -> tuple[tuple[int, int], ...]:
    """Return the powers (i, j) with 1 <= i + j <= degree.

    Examples
    --------
    >>> monomials(2)
    ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2))
    """
    return tuple((total - j, j) for total in range(1, degree + 1) for j in range(total + 1))


def polynomial_surface(coefficients: Array, exponents: Sequence[tuple[int, int]], shape: tuple[int, int], /) -> Array:
    """Return the polynomial on a tile's pixels, shape (x, y), mean removed.

    Examples
    --------
    >>> polynomial_surface(np.array([2.0]), [(1, 0)], (3, 2)).tolist()
    [[-2.0, -2.0], [0.0, 0.0], [2.0, 2.0]]
    """
    u = np.linspace(-1, 1, shape[0])[:, None]
    v = np.linspace(-1, 1, shape[1])[None, :]
    surface = sum((c * u**i * v**j for c, (i, j) in zip(coefficients, exponents, strict=True)), start=np.zeros(shape))
    return np.asarray(surface - surface.mean())


def focus_from_overlaps(
    surfaces: Sequence[NDArray[np.floating]],
    offset: NDArray[np.intp],
    pairs: NDArray[np.intp],
    /,
    *,
    signal: Sequence[NDArray[np.bool_]] | None = None,
    degree: int = 2,
    patch_px: int = 6,
) -> FocusFit:
    """Return the polynomial depth shift of the field of view.

    Parameters
    ----------
    surfaces : sequence of ndarray, shape (x, y)
        Unfiltered surface of every tile, in depth samples. NaN and values of 0 or less mean "not found".
    offset : ndarray of int, shape (tiles, 2)
        Pixel position of every tile.
    pairs : ndarray of int, shape (links, 2)
        Neighbours.
    signal : sequence of ndarray of bool, optional
        Pixels that hold tissue.
    degree : int
        Degree of the polynomial, 1 to 3.
    patch_px : int
        Differences are condensed to the median over patches of this size before the fit.

    Raises
    ------
    ValueError
        The overlaps hold fewer surface points than the polynomial has coefficients.

    Notes
    -----
    Minimises Huber's function of ``s_i(p) - s_j(q) - (f(p) - f(q))`` over all overlaps, with weights from the scatter
    within each patch (iteratively re-weighted least squares).
    """
    if degree not in (1, 2, 3):
        raise ValueError(f"the degree of the focus polynomial must be 1, 2 or 3, got {degree}")
    exponents = monomials(degree)
    shape = surfaces[0].shape
    rows: list[Array] = []
    values: list[Array] = []
    for a, b in pairs:
        rows_here, values_here = _patches(surfaces, offset, int(a), int(b), signal, exponents, patch_px)
        rows.append(rows_here)
        values.append(values_here)
    design = np.concatenate(rows) if rows else np.zeros((0, len(exponents)))
    value = np.concatenate(values) if values else np.zeros(0)
    if len(value) < 3 * len(exponents):
        raise ValueError(
            f"a focus polynomial of degree {degree} needs at least {3 * len(exponents)} patches of overlapping "
            f"surface, found {len(value)}"
        )
    coefficients = np.zeros(len(exponents))
    before = 1.4826 * float(np.median(np.abs(value)))
    # Start from the least absolute residuals, which half of the points cannot spoil, then Huber for efficiency.
    ridge = 1e-6 * len(value) * np.eye(len(exponents))
    for step in range(60):
        residual = value - design @ coefficients
        scale = max(1.4826 * float(np.median(np.abs(residual))), 0.05)
        size = np.abs(residual)
        if step < 30:
            weight = 1 / np.maximum(size, 0.05 * scale + 0.02)
        else:
            weight = np.where(size < 1.345 * scale, 1.0, 1.345 * scale / np.maximum(size, 1e-12))
            weight[size > 6 * scale] = 0
        gram = (design * weight[:, None]).T @ design
        updated = np.linalg.solve(gram + ridge * weight.mean(), (design * weight[:, None]).T @ value)
        done = step > 30 and np.abs(updated - coefficients).max() < 1e-6
        coefficients = updated
        if done:
            break
    after = 1.4826 * float(np.median(np.abs(value - design @ coefficients)))
    surface = polynomial_surface(coefficients, exponents, (shape[0], shape[1])).astype(np.float32)
    return FocusFit(surface, coefficients, exponents, before, after, len(value))


def _patches(
    surfaces: Sequence[NDArray[np.floating]],
    offset: NDArray[np.intp],
    a: int,
    b: int,
    signal: Sequence[NDArray[np.bool_]] | None,
    exponents: Sequence[tuple[int, int]],
    patch: int,
) -> tuple[Array, Array]:
    """Return the polynomial's differences and the surface's differences on patches of one overlap."""
    shape = np.array(surfaces[a].shape)
    step = offset[b] - offset[a]
    low, high = np.maximum(step, 0), np.minimum(shape + step, shape)
    if np.any(high - low < 2):
        return np.zeros((0, len(exponents))), np.zeros(0)
    in_a = (slice(low[0], high[0]), slice(low[1], high[1]))
    in_b = (slice(low[0] - step[0], high[0] - step[0]), slice(low[1] - step[1], high[1] - step[1]))
    first, second = np.asarray(surfaces[a][in_a], float), np.asarray(surfaces[b][in_b], float)
    good = np.isfinite(first) & np.isfinite(second) & (first > 0) & (second > 0)
    if signal is not None:
        good &= signal[a][in_a] & signal[b][in_b]
    difference = np.where(good, first - second, np.nan)
    size = tuple(int(min(patch, n)) for n in difference.shape)
    counts = (difference.shape[0] // size[0], difference.shape[1] // size[1])
    cut = difference[: counts[0] * size[0], : counts[1] * size[1]]
    blocks = cut.reshape(counts[0], size[0], counts[1], size[1]).transpose(0, 2, 1, 3).reshape(-1, size[0] * size[1])
    enough = np.isfinite(blocks).sum(axis=1) >= 0.5 * blocks.shape[1]
    if not enough.any():
        return np.zeros((0, len(exponents))), np.zeros(0)
    value = np.nanmedian(blocks[enough], axis=1)
    x, y = np.divmod(np.flatnonzero(enough), counts[1])
    centre = np.stack([x * size[0] + (size[0] - 1) / 2, y * size[1] + (size[1] - 1) / 2], axis=1)
    scale = 2 / np.maximum(shape - 1, 1)
    p = (centre + low) * scale - 1
    q = (centre + low - step) * scale - 1
    design = np.stack([p[:, 0] ** i * p[:, 1] ** j - q[:, 0] ** i * q[:, 1] ** j for i, j in exponents], axis=1)
    return design, value


@dataclass(frozen=True)
class ConfocalPeak:
    """Depth at which the beam is focused.

    Attributes
    ----------
    depth_px : float
        Depth of focus in samples, at the mean of the field of view; NaN where no peak is seen.
    confidence : float
        0 (the profile is as well explained without a confocal gate) to 1.
    rayleigh_px : float
        Half width of the gate at half maximum.
    attenuation_db_per_px : float
        Decay of the signal with depth below the surface.
    """

    depth_px: float
    confidence: float
    rayleigh_px: float
    attenuation_db_per_px: float


def confocal_peak(
    level_db: NDArray[np.floating], count: NDArray[np.floating], below_px: NDArray[np.floating], /
) -> ConfocalPeak:
    """Return the depth of focus from how bright tissue is by depth and by distance below its surface.

    Parameters
    ----------
    level_db : ndarray, shape (depth, bins)
        Mean level of tissue at a depth (after the field's bending is taken out) and a distance below the surface.
    count : ndarray, shape (depth, bins)
        Number of voxels in each mean; 0 where there were none.
    below_px : ndarray, shape (bins,)
        Distance below the surface of every bin, in samples.

    Notes
    -----
    Fits ``level = c - m * below - 10 log10(1 + ((z - z0) / zr)^2)``, the Lorentzian confocal gate, over all depths and
    gate widths on a grid; the rest is linear. A gate is believed where the Bayesian information criterion prefers it.
    The slope of the surface over the sample distinguishes attenuation from the gate.
    """
    depth, bins = np.nonzero(count > 0)
    if len(depth) < 12:
        return ConfocalPeak(float("nan"), 0.0, float("nan"), float("nan"))
    value = np.asarray(level_db, float)[depth, bins]
    weight = np.asarray(count, float)[depth, bins]
    weight = weight / weight.mean()
    below = np.asarray(below_px, float)[bins]
    design = np.stack([np.ones_like(below), -below], axis=1)
    root = np.sqrt(weight)

    def fitted(target: Array) -> tuple[float, Array]:
        solution, *_ = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)
        return float((weight * (target - design @ solution) ** 2).sum()), solution

    plain, plain_solution = fitted(value)
    best = (plain, float("nan"), float("nan"), plain_solution)
    low, high = float(depth.min()), float(depth.max())
    span = max(high - low, 1.0)
    for width in np.geomspace(max(span / 16, 3.0), 4 * span, 17):
        for centre in np.linspace(low - 0.25 * span, high + 0.25 * span, 61):
            gate = 10 * np.log10(1 + ((depth - centre) / width) ** 2)
            error, solution = fitted(value + gate)
            if error < best[0]:
                best = (error, float(centre), float(width), solution)
    error, centre, width, solution = best
    if not np.isfinite(centre):
        return ConfocalPeak(float("nan"), 0.0, float("nan"), float(plain_solution[1]))
    # Neighbouring depths share speckle: count a fraction of the cells as independent.
    independent = max(len(value) / 8, 4.0)
    evidence = 0.5 * (independent * np.log(plain / max(error, 1e-12)) - 2 * np.log(independent))
    confidence = float(1 / (1 + np.exp(-np.clip(evidence, -40, 40))))
    if not low <= centre <= high:  # a peak outside the measured range is an extrapolation of the decay
        confidence = min(confidence, 0.2)
    return ConfocalPeak(centre, confidence, width, float(solution[1]))

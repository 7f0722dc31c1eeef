"""A rough mapping between two images from nothing: every shift at several rotations, by masked normalised correlation.

Works on small copies, by Fourier transforms, after Padfield (2012): the correlation of every overlap is normalised by
the values in that overlap alone, so that masks, missing tiles and different sizes do not bias it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration._planar_transform import PlanarTransform
from opticstream.compute.registration._resampling import resample_image

Image = NDArray[np.float32]


def shrunk(image: Image, valid: NDArray[np.bool_], factor: int) -> tuple[Image, NDArray[np.bool_]]:
    """Return block means over valid pixels; a block is valid where half of it is.

    Examples
    --------
    >>> image, valid = np.array([[1.0, 3.0], [5.0, 9.0]]), np.array([[True, True], [True, False]])
    >>> [part.tolist() for part in shrunk(image, valid, 2)]
    [[[3.0]], [[True]]]
    """
    if factor == 1:
        return image, valid
    shape = tuple(size // factor for size in image.shape)
    if min(shape) < 1:
        raise ValueError(f"an image of {image.shape} px is too small to be shrunk {factor} times")
    crop = np.s_[: shape[0] * factor, : shape[1] * factor]
    weight = valid[crop].reshape(shape[0], factor, shape[1], factor).sum((1, 3))
    total = np.where(valid, image, 0)[crop].reshape(shape[0], factor, shape[1], factor).sum((1, 3))
    good = weight * 2 >= factor * factor
    return np.where(good, total / np.maximum(weight, 1), 0).astype(np.float32), good


def rough_mappings(
    fixed: Image,
    fixed_valid: NDArray[np.bool_],
    moving: Image,
    moving_valid: NDArray[np.bool_],
    *,
    scale_guess: tuple[float, float],
    max_rotation_deg: float,
    keep: int = 3,
) -> list[PlanarTransform]:
    """Return the best few mappings among all shifts at some rotations, on copies of about 96 pixels."""
    factor = max(1, round(max(*fixed.shape, *moving.shape) / 96))
    small_fixed, small_fixed_valid = shrunk(fixed, fixed_valid, factor)
    small_moving, small_moving_valid = shrunk(moving, moving_valid, factor)
    steps = max(1, round(max_rotation_deg / 2.0))
    scales = {(1.0, 1.0), scale_guess}
    candidates: list[tuple[float, PlanarTransform]] = []
    for scale in sorted(scales):
        for angle in np.linspace(-max_rotation_deg, max_rotation_deg, 2 * steps + 1):
            t = np.radians(angle)
            matrix = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.diag(scale)
            # The moving image turned and scaled about its centre, on a canvas that holds all of it.
            size = np.ceil(np.abs(np.linalg.inv(matrix)) @ np.array(small_moving.shape)).astype(int) + 1
            offset = (np.array(small_moving.shape) - 1) / 2 - matrix @ ((size - 1) / 2)
            turned = resample_image(
                np.where(small_moving_valid, small_moving, np.nan),
                PlanarTransform(matrix, offset),
                shape=(int(size[0]), int(size[1])),
            )
            for score, shift in correlation_peaks(small_fixed, small_fixed_valid, turned, count=2):
                # fixed pixel p lies at p - shift of the turned image
                candidates.append((score, PlanarTransform(matrix, offset - matrix @ shift)))
    candidates.sort(key=lambda item: -item[0])
    chosen: list[PlanarTransform] = []
    for _, mapping in candidates:
        centre = (np.array(small_fixed.shape) - 1) / 2
        if all(np.linalg.norm(mapping.points(centre) - other.points(centre)) > 4 for other in chosen):
            chosen.append(mapping)
        if len(chosen) == keep:
            break
    return [mapping.scaled(factor) for mapping in chosen]


def correlation_peaks(
    fixed: Image, fixed_valid: NDArray[np.bool_], turned: Image, *, count: int
) -> list[tuple[float, NDArray[np.float64]]]:
    """Return (significance, shift) of the highest peaks of the masked normalised correlation over all shifts.

    ``turned[p - shift]`` lies on ``fixed[p]``. The correlation is weighted by its number of pixels.
    """
    from scipy import fft

    size = [fft.next_fast_len(a + b, real=True) for a, b in zip(fixed.shape, turned.shape, strict=True)]
    valid = np.isfinite(turned)
    moved = np.where(valid, turned, 0).astype(np.float64)
    still = np.where(fixed_valid, fixed, 0).astype(np.float64)
    # Means are subtracted first: the remaining ones per shift are small, so that rounding does not matter.
    still = np.where(fixed_valid, still - still[fixed_valid].mean(), 0)
    moved = np.where(valid, moved - moved[valid].mean(), 0) if valid.any() else moved

    def forward(values: NDArray[Any]) -> NDArray[Any]:
        return fft.rfft2(values.astype(np.float64), size)

    f1, f2, fm = forward(still), forward(still**2), forward(fixed_valid)
    g1, g2, gm = (np.conj(forward(v)) for v in (moved, moved**2, valid))

    def back(product: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(fft.irfft2(product, size))

    n = np.maximum(np.round(back(fm * gm)), 0)
    n_safe = np.maximum(n, 1)
    sum_f, sum_g = back(f1 * gm), back(fm * g1)
    cross = back(f1 * g1) - sum_f * sum_g / n_safe
    power = np.maximum(back(f2 * gm) - sum_f**2 / n_safe, 0) * np.maximum(back(fm * g2) - sum_g**2 / n_safe, 0)
    smallest = min(int(fixed_valid.sum()), int(valid.sum()))
    allowed = (n > 0.15 * smallest) & (power > 1e-12 * max(float(power.max()), 1e-300))
    correlation = np.where(allowed, cross / np.sqrt(np.where(allowed, power, 1)), -1)
    score = np.where(allowed, np.arctanh(np.clip(correlation, -0.999, 0.999)) * np.sqrt(n), -np.inf)
    peaks = []
    for _ in range(count):
        at = np.unravel_index(int(np.argmax(score)), score.shape)
        if not np.isfinite(score[at]):
            break
        shift = np.array([i if i < limit else i - total for i, limit, total in zip(at, fixed.shape, size, strict=True)])
        peaks.append((float(score[at]), shift.astype(float)))
        near = [np.arange(i - 4, i + 5) % total for i, total in zip(at, size, strict=True)]
        score[np.ix_(*near)] = -np.inf
    return peaks

"""The last fraction of a pixel: least squares on locally normalised maps, for an affine mapping or a bent one.

Local mean and contrast are divided out, so that two beams that see the same structure with another brightness agree;
every map counts by how well it agrees, so that a map of noise does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration._planar_transform import Freedom, PlanarTransform
from opticstream.compute.registration._resampling import resample_image

Image = NDArray[np.float32]
DetailPair = tuple[Image, Image]
"""A locally normalised map of the fixed and of the moving image; NaN marks missing values."""

_STEPS = 15
_ENOUGH_PX = 5e-3


def locally_normalised(
    image: Image, valid: NDArray[np.bool_], /, *, sigma_px: float = 1.5, neighbourhood_px: float = 10.0
) -> Image:
    """Return an image with its local mean taken off and its local standard deviation divided out.

    Parameters
    ----------
    image : ndarray, shape (x, y)
        Values.
    valid : ndarray of bool, shape (x, y)
        Where they count.
    sigma_px, neighbourhood_px : float
        Gaussian smoothing against noise, and Gaussian neighbourhood.

    Returns
    -------
    ndarray of float32, shape (x, y)
        Values of order 1; NaN where not valid. Regions without structure stay near 0 instead of being blown up.
    """
    from scipy import ndimage

    def blur(values: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        blurred: NDArray[np.float32] = ndimage.gaussian_filter(values, sigma, mode="constant")
        return blurred

    weight = valid.astype(np.float32)
    filled = np.where(valid, image, 0).astype(np.float32)
    smooth: NDArray[Any] = blur(filled, sigma_px) / np.maximum(blur(weight, sigma_px), np.float32(1e-6))
    around = np.maximum(blur(weight, neighbourhood_px), 1e-6)
    smooth = np.where(valid, smooth, np.float32(0))
    difference = np.where(valid, smooth - blur(smooth, neighbourhood_px) / around, 0)
    spread = np.sqrt(blur(difference**2, neighbourhood_px) / around)
    floor = 0.1 * float(np.median(spread[valid])) if valid.any() else 0.0
    return np.where(valid, difference / np.maximum(spread + floor, 1e-12), np.nan).astype(np.float32)


def sharpened(
    pairs: Sequence[DetailPair], mapping: PlanarTransform, /, *, freedom: Freedom = "affine"
) -> PlanarTransform:
    """Return the mapping nearby that makes the pairs agree best; the given one where nothing better is found.

    Parameters
    ----------
    pairs : sequence of DetailPair
        All fixed ones of one shape, all moving ones of one shape.
    mapping : PlanarTransform
        Start, right within a few pixels.
    freedom : {"translation", "rigid", "affine"}
        What may change.
    """
    if not pairs:
        return mapping
    shape = (pairs[0][0].shape[0], pairs[0][0].shape[1])
    centre, reach = (np.array(shape) - 1) / 2, max(shape) / 2
    x = ((np.arange(shape[0]) - centre[0]) / reach)[:, None]
    y = ((np.arange(shape[1]) - centre[1]) / reach)[None, :]
    best, best_score = mapping, -np.inf
    for _ in range(_STEPS):
        size = 6
        normal, pull, score = np.zeros((size, size)), np.zeros(size), 0.0
        for fixed, moving in pairs:
            terms = _linearised(fixed, resample_image(moving, mapping, shape=shape))
            if terms is None:
                continue
            good, gx, gy, difference, weight, agreement = terms
            xs, ys = np.broadcast_to(x, shape)[good], np.broadcast_to(y, shape)[good]
            slopes = np.stack([gx, gx * xs, gx * ys, gy, gy * xs, gy * ys], axis=1)
            normal += weight * (slopes.T @ slopes)
            pull += weight * (slopes.T @ difference)
            score += agreement
        if score <= best_score + 1e-6 or not normal.any():  # nothing overlaps that could be compared
            break
        best, best_score = mapping, score
        free = _free_directions(freedom)
        inner = free.T @ normal @ free
        step = free @ np.linalg.solve(inner + 1e-9 * np.trace(inner) * np.eye(len(inner)), free.T @ pull)
        linear = np.eye(2) + np.array([[step[1], step[2]], [step[4], step[5]]]) / reach
        if freedom != "affine":
            u, _, v = np.linalg.svd(linear)
            linear = u @ v
        shift = np.array([step[0], step[3]])
        mapping = PlanarTransform(
            mapping.matrix @ linear, mapping.matrix @ (centre - linear @ centre + shift) + mapping.offset
        )
        if float(np.abs(step).max()) < _ENOUGH_PX:
            break
    moved = np.abs(best.points([[0, 0], shape]) - mapping.points([[0, 0], shape])).max()
    return mapping if moved < _ENOUGH_PX * 4 else best


def bent(
    pairs: Sequence[DetailPair], mapping: PlanarTransform, /, *, sigma_px: float, steps: int = 8
) -> PlanarTransform:
    """Return the mapping with a smooth displacement that makes the pairs agree better.

    Parameters
    ----------
    pairs : sequence of DetailPair
        All fixed ones of one shape, all moving ones of one shape.
    mapping : PlanarTransform
        Affine mapping, right within a few pixels.
    sigma_px : float
        Scale below which nothing bends.
    steps : int
        Rounds of local least squares.
    """
    from scipy import ndimage

    if not pairs:
        return mapping
    shape = (pairs[0][0].shape[0], pairs[0][0].shape[1])
    displacement = np.zeros((2, *shape), np.float32)
    for _ in range(steps):
        h = np.zeros((5, *shape), np.float32)
        for fixed, moving in pairs:
            current = PlanarTransform(mapping.matrix, mapping.offset, displacement)
            terms = _linearised(fixed, resample_image(moving, current, shape=shape))
            if terms is None:
                continue
            good, gx, gy, difference, weight, _ = terms
            for row, product in enumerate((gx * gx, gx * gy, gy * gy, gx * difference, gy * difference)):
                h[row][good] += weight * product
        h = np.stack([ndimage.gaussian_filter(row, sigma_px, mode="constant") for row in h])
        # Without data there is no deformation: a share of the typical information pulls towards no displacement.
        ridge = 0.05 * float(np.percentile(h[0] + h[2], 75)) + 1e-12
        a, b, c = h[0] + ridge, h[1], h[2] + ridge
        determinant = a * c - b * b
        step = np.stack([(c * h[3] - b * h[4]) / determinant, (a * h[4] - b * h[3]) / determinant])
        displacement += np.clip(step, -1.0, 1.0).astype(np.float32)
        displacement = np.stack([ndimage.gaussian_filter(d, 0.5 * sigma_px, mode="nearest") for d in displacement])
        if float(np.abs(step).max()) < 4 * _ENOUGH_PX:
            break
    return PlanarTransform(mapping.matrix, mapping.offset, displacement)


def _free_directions(freedom: Freedom) -> NDArray[np.float64]:
    """Return the directions in (shift x, x by x, x by y, shift y, y by x, y by y) that may change, as columns."""
    if freedom == "affine":
        return np.eye(6)
    shifts = [np.eye(6)[0], np.eye(6)[3]]
    turn = np.array([0.0, 0.0, -1.0, 0.0, 1.0, 0.0])
    return np.stack(shifts if freedom == "translation" else [*shifts, turn], axis=1)


def _linearised(fixed: Image, moved: Image) -> tuple[NDArray[np.bool_], Image, Image, Image, float, float] | None:
    """Return where both have values, slopes of the moved image, difference, weight and correlation of the pair."""
    gx, gy = (np.asarray(slope, np.float32) for slope in np.gradient(moved))
    good = np.isfinite(fixed) & np.isfinite(gx) & np.isfinite(gy) & np.isfinite(moved)
    count = int(good.sum())
    if count < 64:
        return None
    f, m = fixed[good] - fixed[good].mean(), moved[good] - moved[good].mean()
    ff, mm, fm = float(f @ f), float(m @ m), float(f @ m)
    if fm <= 0 or ff <= 0 or mm <= 0:
        return None
    correlation = min(fm / np.sqrt(ff * mm), 0.999)
    gain = fm / mm
    weight = correlation**2 / (1 - correlation**2) / (ff / count)
    return good, gain * gx[good], gain * gy[good], f - gain * m, weight, correlation

"""Check whether a registration is reliable, from the registered maps themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration._detail_alignment import DetailPair
from opticstream.compute.registration._planar_transform import PlanarTransform
from opticstream.compute.registration._resampling import resample_image


def significance(
    pairs: Sequence[DetailPair], mapping: PlanarTransform, /, *, away_px: tuple[int, ...] = (30, 45)
) -> float:
    """Return by how many standard deviations registered maps agree better than the same maps shifted far away.

    Unrelated images reach about 4, because the mapping was chosen among many; related ones 10 and more. NaN where there
    is too little overlap to tell.
    """
    if not pairs:
        return float("nan")
    shape = (pairs[0][0].shape[0], pairs[0][0].shape[1])
    moved = [(fixed, resample_image(moving, mapping, shape=shape)) for fixed, moving in pairs]

    def agreement(dx: int, dy: int) -> float:
        values = []
        here = np.s_[max(dx, 0) : shape[0] + min(dx, 0), max(dy, 0) : shape[1] + min(dy, 0)]
        there = np.s_[max(-dx, 0) : shape[0] + min(-dx, 0), max(-dy, 0) : shape[1] + min(-dy, 0)]
        for fixed, other in moved:
            a, b = fixed[here], other[there]
            good = np.isfinite(a) & np.isfinite(b)
            if good.sum() < 100:
                continue
            f, m = a[good] - a[good].mean(), b[good] - b[good].mean()
            values.append(float(f @ m) / max(float(np.sqrt(float(f @ f) * float(m @ m))), 1e-12))
        return float(np.mean(values)) if values else float("nan")

    turns = np.arange(12) * np.pi / 6
    far = [agreement(round(r * np.cos(t)), round(r * np.sin(t))) for r in away_px for t in turns]
    known = [value for value in far if np.isfinite(value)]
    if len(known) < 6:
        return float("nan")
    return float((agreement(0, 0) - np.mean(known)) / max(float(np.std(known)), 1e-6))


def block_residuals(
    pairs: Sequence[DetailPair], mapping: PlanarTransform, /, *, pixel_px: int = 1, blocks: int = 6, reach: int = 12
) -> tuple[float, float]:
    """Return the median leftover shift of blocks of registered images, and the share of blocks that agree.

    Parameters
    ----------
    pairs : sequence of (fixed, moving)
        Locally normalised maps.
    mapping : PlanarTransform
        From fixed to moving pixels of these maps.
    pixel_px : int
        Size of their pixels in px of the full images; the shift is returned in these.
    blocks : int
        Blocks along each side, at least 24 pixels wide.
    reach : int
        Shifts that are searched, in pixels. A block agrees where its correlation peaks within a quarter of it; by
        chance about one in twenty does.
    """
    from scipy import fft

    if not pairs:
        return float("nan"), 0.0
    full = pairs[0][0].shape
    moved = [(fixed, resample_image(moving, mapping, shape=(full[0], full[1]))) for fixed, moving in pairs]
    size = [max(24, -(-s // blocks)) for s in full]
    shifts = []
    for x in range(0, full[0], size[0]):
        for y in range(0, full[1], size[1]):
            part = np.s_[x : x + size[0], y : y + size[1]]
            surface: Any = 0.0
            for fixed, other in moved:
                a, b = fixed[part], other[part]
                good = np.isfinite(a) & np.isfinite(b)
                if min(good.shape) < 16 or good.mean() < 0.5:
                    continue
                a = np.where(good, a - a[good].mean(), 0).astype(np.float64)
                b = np.where(good, b - b[good].mean(), 0).astype(np.float64)
                norm = np.sqrt((a * a).sum() * (b * b).sum())
                if not norm > 1e-9:
                    continue
                window = np.hanning(a.shape[0] + 2)[1:-1, None] * np.hanning(a.shape[1] + 2)[None, 1:-1]
                padded = [s + 2 * reach for s in a.shape]
                product = fft.rfft2(a * window, padded) * np.conj(fft.rfft2(b * window, padded))
                surface = surface + np.asarray(fft.irfft2(product, padded)) / norm
            if np.ndim(surface) == 2:
                near = np.roll(surface, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
                shifts.append(_peak(near) - reach)
    if not shifts:
        return float("nan"), 0.0
    length = np.linalg.norm(shifts, axis=1)
    agreeing = float((length < reach / 4).mean()) if len(shifts) >= 3 else 0.0
    return float(np.median(length)) * pixel_px, agreeing


def _peak(surface: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the position of the maximum, refined by parabolas."""
    at = np.array(np.unravel_index(int(np.argmax(surface)), surface.shape))
    position = at.astype(float)
    for axis in range(2):
        if 0 < at[axis] < surface.shape[axis] - 1:
            line = surface[tuple(np.arange(at[axis] - 1, at[axis] + 2) if a == axis else at[a] for a in range(2))]
            bend = line[0] - 2 * line[1] + line[2]
            if bend < 0:
                position[axis] += 0.5 * (line[0] - line[2]) / bend
    return position

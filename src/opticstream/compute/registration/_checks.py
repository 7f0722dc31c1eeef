"""Check whether a registration is reliable, from the registered maps themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


class BlockShifts(NamedTuple):
    """What blocks of registered images are still shifted by."""

    middle: NDArray[np.float64]
    """Middle of each block in fixed pixels, (blocks, 2)."""
    shift: NDArray[np.float64]
    """By how much the fixed image lies further there than the moved one, in fixed pixels, (blocks, 2)."""
    likeness: NDArray[np.float64]
    """Correlation of the maps at that shift, 1 where they are the same."""
    near_px: float
    """A block agrees where its shift is smaller than this; by chance about one in twenty does."""


def block_residuals(
    pairs: Sequence[DetailPair], mapping: PlanarTransform, /, *, pixel_px: int = 1
) -> tuple[float, float]:
    """Return the median leftover shift of blocks of registered images, and the share of blocks that agree.

    Parameters
    ----------
    pairs, mapping
        As in `block_shifts`.
    pixel_px : int
        Size of their pixels in px of the full images; the shift is returned in these.
    """
    found = block_shifts(pairs, mapping)
    if not len(found.shift):
        return float("nan"), 0.0
    length = np.linalg.norm(found.shift, axis=1)
    agreeing = float((length < found.near_px).mean()) if len(length) >= 3 else 0.0
    return float(np.median(length)) * pixel_px, agreeing


def block_shifts(
    pairs: Sequence[DetailPair],
    mapping: PlanarTransform,
    /,
    *,
    blocks: int = 6,
    reach: int = 12,
    overlapping: bool = False,
) -> BlockShifts:
    """Return the leftover shifts of blocks of registered images.

    Parameters
    ----------
    pairs : sequence of (fixed, moving)
        Locally normalised maps.
    mapping : PlanarTransform
        From fixed to moving pixels of these maps.
    blocks : int
        Blocks along each side, at least 24 pixels wide.
    reach : int
        Shifts that are searched, in pixels. A block agrees where its correlation peaks within a quarter of it.
    overlapping : bool
        Blocks follow each other by half their width. Their rims hardly count, so these say almost twice as much.
    """
    from scipy import fft

    full = pairs[0][0].shape if pairs else (0, 0)
    moved = [(fixed, resample_image(moving, mapping, shape=(full[0], full[1]))) for fixed, moving in pairs]
    size = [max(24, -(-s // blocks)) for s in full]
    middles, shifts, heights = [], [], []
    step = [s // 2 for s in size] if overlapping else size
    for x in range(0, full[0], step[0]):
        for y in range(0, full[1], step[1]):
            part = np.s_[x : x + size[0], y : y + size[1]]
            surface: Any = 0.0
            best, shared = 0.0, np.zeros(2)
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
                near_a, near_b = a * window, b * window
                product = fft.rfft2(near_a, padded) * np.conj(fft.rfft2(near_b, padded))
                surface = surface + np.asarray(fft.irfft2(product, padded)) / norm
                best += float(np.sqrt((near_a**2).sum() * (near_b**2).sum()) / norm)
                shared = np.argwhere(good).mean(0)
            if np.ndim(surface) == 2:
                near = np.roll(surface, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
                middles.append(shared + np.array([x, y]))
                shifts.append(_peak(near) - reach)
                heights.append(near.max() / best)
    return BlockShifts(np.reshape(middles, (-1, 2)), np.reshape(shifts, (-1, 2)), np.array(heights, float), reach / 4)


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

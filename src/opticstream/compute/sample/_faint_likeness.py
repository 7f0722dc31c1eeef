"""How two faces lie to each other that share only large structures, and how well that can be known.

Over a missing section nothing fine is alike, and the largest structures are shaded by what lies above; in between there
is a weak likeness: tracts and regions that run on. No single place stands out, so the answer is the mean over all
places, each as probable as the likeness there makes it, and the spread of these is its uncertainty. How alike the faces
are at each size of structure is found from the faces themselves, together with the place.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import PlanarTransform, resample_image, rigid_map

Array = NDArray[np.float64]
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

_BLOCKS = 70
"""Blocks along the longer side; nothing smaller is compared."""
_REACH = 10
"""Largest shift, in blocks."""
_USUAL = 7.0
"""Standard deviation of shifts that are expected, in blocks, and of turns, in degrees."""
_USUAL_DEG = 2.0
_STEP = 1 / 3
_TURNS = np.arange(-3.0, 3.01, 0.5)
_BANDS = np.array([0.06, 0.18, 0.30, 0.42, 0.54, 0.72, 0.96])
"""Limits of the bands of spatial frequency, in radians a block."""
_DOUBT = 4.0
"""Waves by which each band is taken to be less alike than it seems, since the best place is always somewhat alike."""
_ROUNDS = 12


class FaintMatch(NamedTuple):
    """Where one face lies in another, as far as large structures tell."""

    mapping: PlanarTransform
    """From pixels of the first to pixels of the second face."""
    sigma_px: float
    """Standard deviation of each component of the shift."""


def in_blocks(face: Image, where: Mask, factor: int, /) -> tuple[Image, Mask]:
    """Return the means of blocks of `factor` x `factor` pixels, and which of them are more than half known.

    Examples
    --------
    >>> image, known = in_blocks(np.float32([[1, 3], [5, np.nan]]), np.ones((2, 2), bool), 2)
    >>> image.tolist(), known.tolist()
    ([[3.0]], [[True]])
    """
    size = face.shape[0] // factor, face.shape[1] // factor
    good = where & np.isfinite(face)
    squares = good[: size[0] * factor, : size[1] * factor].reshape(size[0], factor, size[1], factor)
    filled = np.where(good, face, 0)[: size[0] * factor, : size[1] * factor].reshape(squares.shape)
    mean = filled.sum((1, 3)) / np.maximum(squares.sum((1, 3)), 1)
    return mean.astype(np.float32), np.asarray(squares.sum((1, 3)) * 2 > factor**2)


def faint_match(faces: tuple[Image, Image], inside: tuple[Mask, Mask], /, *, turns: bool = True) -> FaintMatch | None:
    """Return where the second face lies in the first, by all that is alike in both; None where there is no tissue.

    Parameters
    ----------
    faces : (ndarray, ndarray), shape (x, y) each
        Intensity in dB, without its level.
    inside : (ndarray, ndarray) of bool
        Tissue of each.
    turns : bool
        Whether the second face may be turned.

    Notes
    -----
    Waves of both faces are taken to be complex Gaussian numbers with the coherence g of their band: the logarithm of
    the likelihood of a place is ``sum 2 g / (1 - g^2) Re(a conj(b))`` over independent waves, in units of their
    standard deviations (Carter 1987, "Coherence and time delay estimation"). Coherence and place are found in turns
    (expectation maximisation).
    """
    factor = max(1, round(max(*faces[0].shape, *faces[1].shape) / _BLOCKS))
    (one, known), (two, valid) = (_without_large(*in_blocks(*face, factor)) for face in zip(faces, inside, strict=True))
    share = min(known.sum(), valid.sum())
    if share < 100:
        return None
    angles = _TURNS if turns else np.zeros(1)
    shifts = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
    likeness, waves = _likeness(one, np.where(valid, two, np.nan).astype(np.float32), int(share), angles, shifts)
    usual = -0.5 * (
        (shifts[None, :, None] ** 2 + shifts[None, None, :] ** 2) / _USUAL**2
        + (angles[:, None, None] / _USUAL_DEG) ** 2
    )
    coherence = np.full(len(waves), 0.3)
    chance = np.zeros(())
    for _ in range(_ROUNDS):
        evidence = np.tensordot(2 * coherence / (1 - coherence**2), likeness, 1) + usual
        chance = np.exp(evidence - evidence.max())
        chance /= chance.sum()
        found = (likeness * chance).sum((1, 2, 3)) / (waves + _DOUBT)
        coherence = (coherence + np.clip(found, 0, 0.9)) / 2
    (x, y), variance = _without_usual(np.stack([chance.sum((0, 2)), chance.sum((0, 1))]), shifts)
    turn = float(chance.sum((1, 2)) @ angles)
    centre = (np.array(one.shape) - 1) / 2
    # the first face at p shows what the turned second face shows at p - (x, y)
    mapping = rigid_map(turn, -rigid_map(turn, (0, 0), (0, 0)).points((x, y)), centre)
    return FaintMatch(mapping.scaled(factor), float(np.sqrt(variance)) * factor)


def _without_usual(chances: Array, shifts: Array) -> tuple[Array, float]:
    """Return the shift and its variance along either axis, as the likeness alone tells them."""
    usual = np.exp(-0.5 * (shifts / _USUAL) ** 2)
    before = float(usual @ shifts**2 / usual.sum())
    middle = chances @ shifts
    after = float((chances @ shifts**2 - middle**2).mean())
    told = max(1 / after - 1 / before, 0.01 / before)
    return np.clip(middle / after / told, -_REACH, _REACH), 1 / told


def _without_large(image: Image, valid: Mask) -> tuple[Array, Mask]:
    """Return an image without what is larger than a third of the field: there only shadows are left."""
    from scipy import ndimage

    around = np.maximum(ndimage.gaussian_filter(valid.astype(float), _BLOCKS / 6), 1e-3)
    large = ndimage.gaussian_filter(np.where(valid, image, 0).astype(float), _BLOCKS / 6) / around
    return np.where(valid, image - large, 0), valid


def _likeness(one: Array, two: Image, area: int, angles: Array, shifts: Array) -> tuple[Array, Array]:
    """Return the likeness of two images for each band, turn and shift, (bands, turns, x, y), and the waves of bands."""
    shape = (one.shape[0], one.shape[1])
    size = [2 * max(n, m) for n, m in zip(shape, two.shape, strict=True)]
    kx, ky = (2 * np.pi * np.fft.fftfreq(n) for n in size)
    k = np.hypot(kx[:, None], ky[None, :])
    bands = [(k >= low) & (k < high) for low, high in pairwise(_BANDS)]
    bands = [band for band in bands if band.any()]
    # Of the waves on the padded grid, as many are independent as there is tissue, and half are the others' mirrors.
    share = area / (size[0] * size[1]) / 2
    fixed = np.fft.fft2(one, size)
    out = np.empty((len(bands), len(angles), len(shifts), len(shifts)))
    for a, angle in enumerate(angles):
        turn = rigid_map(float(angle), (0.0, 0.0), (np.array(shape) - 1) / 2)
        moving = np.fft.fft2(np.nan_to_num(resample_image(two, turn, shape=shape)), size)
        for b, band in enumerate(bands):
            rows, columns = (np.flatnonzero(band.any(axis)) for axis in (1, 0))
            power = (np.abs(fixed[band]) ** 2).mean() * (np.abs(moving[band]) ** 2).mean()
            cross = np.where(band, fixed * np.conj(moving), 0)[np.ix_(rows, columns)] / np.sqrt(max(power, 1e-30))
            along_x = np.exp(1j * np.outer(shifts, kx[rows]))
            along_y = np.exp(1j * np.outer(ky[columns], shifts))
            out[b, a] = (along_x @ cross @ along_y).real * share
    return out, np.array([band.sum() * share for band in bands])

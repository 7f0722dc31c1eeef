"""Find the affine mapping between two images of one slice, and decide whether it is reliable.

Every shift at several rotations is tried on small copies (masked normalised correlation, so large offsets, other sizes
and missing tiles do not matter); Mattes mutual information refines the best few, coarse to fine, all the way to an
affine mapping; least squares on the locally normalised maps, each weighted by how well it agrees, sharpens the result
(and bends it, where that is asked for); then blocks are compared on their own, whose leftover shifts are the residual
and whose agreement is the confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration._checks import BlockShifts, block_residuals, block_shifts, significance
from opticstream.compute.registration._detail_alignment import DetailPair, bent, locally_normalised, sharpened
from opticstream.compute.registration._mutual_information import mutual_information, refined_mapping
from opticstream.compute.registration._planar_transform import Freedom, PlanarTransform
from opticstream.compute.registration._resampling import resample_image
from opticstream.compute.registration._rough_search import rough_mappings, shrunk

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Registration:
    """A mapping from fixed to moving pixels and the evidence for it."""

    mapping: PlanarTransform
    """Mapping from fixed to moving pixel coordinates."""
    residual_px: float
    """Median leftover shift of the blocks that can be compared, in fixed px; NaN if there are none."""
    confidence: float
    """0..1: share of the comparable blocks whose leftover shift is small (0 where fewer than 3 can be compared), times
    how clearly the whole agrees better than by chance (0 up to 3 standard deviations, 1 from 8 on)."""
    overlap: float
    """Share of the smaller image's valid pixels that both images cover."""
    correlation: float
    """Normalised correlation of the smoothed images where both are valid; near 0 for contrasts that differ."""
    information_before: float
    """Mutual information at the coarse start (negative Mattes metric, nats)."""
    information: float
    """Mutual information at the end."""
    failures: tuple[str, ...] = field(default=())
    """Why the mapping is not to be used; empty: it can be."""

    @property
    def good(self) -> bool:
        return not self.failures


@dataclass(frozen=True)
class MappingTask:
    """Two illuminations and what their mapping may be, for another program that finds it."""

    fixed: tuple[Image, ...]
    """Maps of the fixed image, each of shape (x, y), the one that is compared first; NaN marks missing values."""
    moving: tuple[Image, ...]
    """The same maps of the moving image."""
    fixed_valid: NDArray[np.bool_]
    """Where the fixed image has tissue, shape (x, y)."""
    moving_valid: NDArray[np.bool_]
    """Where the moving image has tissue."""
    freedom: Freedom
    """Freedom of the mapping."""
    bend_sigma_px: float
    """Scale of a displacement that is to be found as well; 0: none."""
    sigma_px: float
    """Smoothing of the first maps."""
    scale_guess: tuple[float, float]
    """Expected scale of the moving over the fixed image along x and y."""
    max_rotation_deg: float
    """Largest rotation that is expected."""
    max_pixels: int
    """Larger images may be halved until they are smaller."""


MappingFinder = Callable[[MappingTask], PlanarTransform]
"""Finds the mapping of two illuminations in place of our own code."""


def registration_image(
    image: ArrayLike, /, *, mask: ArrayLike | None = None, sigma_px: float = 3.0
) -> tuple[Image, NDArray[np.bool_]]:
    """Return a smoothed image scaled to 0..1 between its 1st and 99th percentile, and where it is valid.

    Parameters
    ----------
    image : array_like, shape (x, y)
        Values; NaN marks missing values.
    mask : array_like, shape (x, y), optional
        Tissue (non-zero).
    sigma_px : float
        Gaussian smoothing; pixels without value take no part in it.

    Raises
    ------
    ValueError
        Nothing is valid, the mask has another shape, or the image is constant.
    """
    from scipy import ndimage

    values = np.asarray(image, np.float32)
    if values.ndim != 2:
        raise ValueError(f"expected an image (x, y), got the shape {values.shape}")
    valid = np.isfinite(values)
    if not valid.any():
        raise ValueError("the image has no finite value")
    if mask is not None:
        inside = np.asarray(mask)
        if inside.shape != values.shape:
            raise ValueError(f"the mask has the shape {inside.shape}, the image {values.shape}")
        inside = np.nan_to_num(inside) != 0
        if not inside.any():
            raise ValueError("the mask is empty")
        valid &= inside
        if not valid.any():
            raise ValueError("the image has no finite value inside the mask")
    filled = np.where(valid, values, 0)
    if sigma_px > 0:
        weight = ndimage.gaussian_filter(valid.astype(np.float32), sigma_px, mode="constant")
        filled = ndimage.gaussian_filter(filled, sigma_px, mode="constant") / np.maximum(weight, 1e-6)
    low, high = np.percentile(filled[valid], [1, 99])
    if not high > low:
        raise ValueError(f"the image is constant ({low:g}); there is nothing to register")
    return np.where(valid, np.clip((filled - low) / (high - low), 0, 1), 0).astype(np.float32), valid


def register_images(
    fixed: ArrayLike,
    moving: ArrayLike,
    /,
    *,
    fixed_mask: ArrayLike | None = None,
    moving_mask: ArrayLike | None = None,
    details: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    freedom: Freedom = "affine",
    bend_sigma_px: float = 0.0,
    sigma_px: float = 3.0,
    scale_guess: tuple[float, float] = (1.0, 1.0),
    max_rotation_deg: float = 8.0,
    min_overlap: float = 0.25,
    min_confidence: float = 0.5,
    max_residual_px: float = 3.0,
    max_pixels: int = 1_500_000,
    start: PlanarTransform | None = None,
    finder: MappingFinder | None = None,
) -> Registration:
    """Return the mapping from `fixed` to `moving` that makes them one image.

    Parameters
    ----------
    fixed, moving : array_like, shape (x, y)
        Images of the same quantity; they may differ in size and in contrast. NaN marks missing values.
    fixed_mask, moving_mask : array_like, optional
        Tissue (non-zero) of each.
    details : sequence of (fixed, moving)
        Further maps of the same pixels, e.g. intensity, that sharpen the result.
    freedom : {"translation", "rigid", "affine"}
        Freedom of the mapping.
    bend_sigma_px : float
        Also bend the mapping, no finer than this; 0: no bending.
    sigma_px : float
        Gaussian smoothing before the comparison.
    scale_guess : (float, float)
        Expected scale of the moving over the fixed image along x and y.
    max_rotation_deg : float
        Rotations that are tried at the start.
    min_overlap, min_confidence, max_residual_px : float
        Limits of the verdict.
    max_pixels : int
        Larger images are halved until they are smaller; the mapping is in pixels of the full size all the same.
    start : PlanarTransform, optional
        A known rough mapping; replaces the search.
    finder : MappingFinder, optional
        Finds the mapping in place of our own code, which judges it all the same. The information at the start is then
        that of the images with their centres on each other.

    Returns
    -------
    Registration
        Also if it failed, with the reasons in `failures`.

    Raises
    ------
    ValueError
        An image without values, an empty mask, shapes that differ, or an unknown freedom.
    """
    if freedom not in get_args(Freedom):
        raise ValueError(f"unknown freedom {freedom!r}; expected one of {', '.join(get_args(Freedom))}")
    pair = []
    for name, image, mask in (("fixed", fixed, fixed_mask), ("moving", moving, moving_mask)):
        try:
            pair.append(registration_image(image, mask=mask, sigma_px=sigma_px))
        except ValueError as error:
            raise ValueError(f"{name} image: {error}") from None
    (fixed_image, fixed_valid), (moving_image, moving_valid) = pair
    halvings = 0
    while max(fixed_image.size, moving_image.size) / 4**halvings > max_pixels:
        halvings += 1
    shrink = 2**halvings
    small = [shrunk(fixed_image, fixed_valid, shrink), shrunk(moving_image, moving_valid, shrink)]
    maps = [(fixed, moving), *details]
    pairs = _detail_pairs(maps, fixed_valid, moving_valid, shrink)
    shape = (fixed_image.shape[0], fixed_image.shape[1])
    if finder is not None:
        task = MappingTask(
            tuple(np.asarray(one, np.float32) for one, _ in maps),
            tuple(np.asarray(other, np.float32) for _, other in maps),
            fixed_valid,
            moving_valid,
            freedom,
            bend_sigma_px,
            sigma_px,
            scale_guess,
            max_rotation_deg,
            max_pixels,
        )
        mapping = finder(task).scaled(1 / shrink, shape=(small[0][0].shape[0], small[0][0].shape[1]))
        before = mutual_information(*small[0], *small[1], _centred(small[0][0].shape, small[1][0].shape))
        after = mutual_information(*small[0], *small[1], mapping)
    else:
        starts = (
            [start.scaled(1 / shrink)]
            if start is not None
            else rough_mappings(*small[0], *small[1], scale_guess=scale_guess, max_rotation_deg=max_rotation_deg)
        )
        mapping, before, after = refined_mapping(*small[0], *small[1], starts, freedom)
        if np.isfinite(after) and mapping.is_plausible:
            mapping = sharpened(pairs, mapping, freedom=freedom)
            if bend_sigma_px > 0:
                mapping = bent(pairs, mapping, sigma_px=max(bend_sigma_px / shrink, 4.0))
    residual, confidence = float("nan"), 0.0
    if mapping.is_plausible:
        residual, confidence = block_residuals(pairs, mapping, pixel_px=shrink)
        confidence *= float(np.clip((np.nan_to_num(significance(pairs, mapping)) - 3) / 5, 0, 1))
    return _judge(
        fixed_image,
        fixed_valid,
        moving_image,
        moving_valid,
        _rounded(mapping.scaled(shrink, shape=shape)),
        residual=residual,
        confidence=confidence,
        before=before,
        after=after,
        min_overlap=min_overlap,
        min_confidence=min_confidence,
        max_residual_px=max_residual_px,
    )


def _centred(fixed: tuple[int, ...], moving: tuple[int, ...]) -> PlanarTransform:
    """Return the mapping that lays the centres of two images on each other."""
    return PlanarTransform(np.eye(2), (np.array(moving, float) - np.array(fixed, float)) / 2)


def sharpened_by_details(
    details: Sequence[tuple[ArrayLike, ArrayLike]],
    mapping: PlanarTransform,
    /,
    *,
    fixed_mask: ArrayLike,
    moving_mask: ArrayLike,
    freedom: Freedom = "rigid",
) -> tuple[PlanarTransform, float, float]:
    """Return the mapping nearby at which maps agree best, without any search, and how well they agree.

    Parameters
    ----------
    details : sequence of (fixed, moving)
        Maps of one quantity each, shape (x, y); NaN marks missing values.
    mapping : PlanarTransform
        Start, right within a few pixels.
    fixed_mask, moving_mask : array_like of bool, shape (x, y)
        Where they count.
    freedom : {"translation", "rigid", "affine"}
        What may change.

    Returns
    -------
    mapping : PlanarTransform
        From fixed to moving pixels; the given one where nothing can be compared.
    residual_px : float
        Median leftover shift of blocks; NaN if none can be compared.
    agreeing : float
        Share of the blocks whose leftover shift is small.
    """
    pairs = _detail_pairs(details, np.asarray(fixed_mask, bool), np.asarray(moving_mask, bool), 1)
    found = _rounded(sharpened(pairs, mapping, freedom=freedom))
    residual, agreeing = block_residuals(pairs, found)
    return found, residual, agreeing


def shifts_of_blocks(
    details: Sequence[tuple[ArrayLike, ArrayLike]],
    mapping: PlanarTransform,
    /,
    *,
    fixed_mask: ArrayLike,
    moving_mask: ArrayLike,
    blocks: int = 6,
    overlapping: bool = False,
) -> BlockShifts:
    """Return the shifts that blocks of registered maps are left with.

    Parameters
    ----------
    details, fixed_mask, moving_mask
        As in `sharpened_by_details`.
    mapping : PlanarTransform
        From fixed to moving pixels.
    blocks : int
        Blocks along each side, at least 24 pixels wide.
    overlapping : bool
        Blocks follow each other by half their width.
    """
    pairs = _detail_pairs(details, np.asarray(fixed_mask, bool), np.asarray(moving_mask, bool), 1)
    return block_shifts(pairs, mapping, blocks=blocks, overlapping=overlapping)


def _rounded(mapping: PlanarTransform) -> PlanarTransform:
    """Return the mapping to a millionth of a pixel, so that the last bits of a sum do not reach any file."""
    displacement = mapping.displacement
    return PlanarTransform(
        np.round(mapping.matrix, 9),
        np.round(mapping.offset, 6),
        None if displacement is None else np.round(displacement, 4),
    )


def _detail_pairs(
    maps: Sequence[tuple[ArrayLike, ArrayLike]],
    fixed_valid: NDArray[np.bool_],
    moving_valid: NDArray[np.bool_],
    shrink: int,
) -> list[DetailPair]:
    """Return locally normalised copies of all maps, shrunk as the registration is."""
    pairs: list[DetailPair] = []
    for index, both in enumerate(maps):
        made = []
        for image, valid in zip(both, (fixed_valid, moving_valid), strict=True):
            values = np.asarray(image, np.float32)
            if values.shape != valid.shape:
                raise ValueError(f"detail map {index} has the shape {values.shape}, expected {valid.shape}")
            good = valid & np.isfinite(values)
            if not good.any():
                break
            made.append(locally_normalised(*shrunk(np.where(good, values, 0), good, shrink)))
        if len(made) == 2:
            pairs.append((made[0], made[1]))
    return pairs


def _judge(
    fixed: Image,
    fixed_valid: NDArray[np.bool_],
    moving: Image,
    moving_valid: NDArray[np.bool_],
    mapping: PlanarTransform,
    *,
    residual: float,
    confidence: float,
    before: float,
    after: float,
    min_overlap: float,
    min_confidence: float,
    max_residual_px: float,
) -> Registration:
    """Return the registration with its residual, confidence and verdict."""
    failures = []
    overlap, correlation = 0.0, 0.0
    if not mapping.is_plausible:
        scale = np.linalg.svd(mapping.matrix, compute_uv=False)
        failures.append(f"the mapping stretches by {scale[0]:.2f} and {scale[1]:.2f}, which no slice does")
    else:
        shape = (fixed.shape[0], fixed.shape[1])
        moved = resample_image(np.where(moving_valid, moving, np.nan), mapping, shape=shape)
        both = fixed_valid & np.isfinite(moved)
        overlap = float(both.sum() / max(1, min(fixed_valid.sum(), moving_valid.sum())))
        if both.sum() > 16:
            a, b = fixed[both] - fixed[both].mean(), moved[both] - moved[both].mean()
            correlation = float((a * b).sum() / np.sqrt(max(float((a * a).sum() * (b * b).sum()), 1e-30)))
        if overlap < min_overlap:
            failures.append(
                f"the images share {100 * overlap:.0f} % of their area, {100 * min_overlap:.0f} % are needed"
            )
        if confidence < min_confidence:
            failures.append(f"confidence {confidence:.2f} is below {min_confidence:g}: parts of the images disagree")
        if not residual <= max_residual_px:
            failures.append(f"residual {residual:.2f} px exceeds {max_residual_px:g} px")
    if not np.isfinite(after):
        failures.append("mutual information could not be computed: the images hardly overlap")
    return Registration(
        mapping=mapping,
        residual_px=residual,
        confidence=confidence,
        overlap=overlap,
        correlation=correlation,
        information_before=before,
        information=after,
        failures=tuple(failures),
    )

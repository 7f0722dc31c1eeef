"""The edge between two slices: the rigid motion between them, from the depths that both of them saw.

Slice i sees below its face what slice j, cut later, has at its own face: depth ``d_i = d_j + k``, k being the thickness
of the sections between the two. Where hardly any depth is common, the deepest planes of the one are compared with the
first planes of the other. Every result is kept, with its uncertainty; whether it is believed is for the solve to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration import (
    PlanarTransform,
    Registration,
    register_images,
    resample_image,
    rigid_map,
    sharpened_by_details,
    shifts_of_blocks,
)
from opticstream.compute.sample._bends import EdgeBend, NearestRigid, bend_between, nearest_rigid
from opticstream.compute.sample._faint_likeness import faint_match, in_blocks
from opticstream.compute.sample._poses import Edge, Pose

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

REACH = 3
"""Sections to which edges are made."""
BAND = 12
"""Planes that are compared."""
FEWEST = 6
"""Common planes below which facing planes are compared instead."""
SEARCH = 10
"""Planes by which the true thickness of a section may differ from the nominal one."""

# Edges of synthetic samples were off by 0.15 of the residual where slices were clearly alike, and by the residual, or
# some pixels, where no likeness was found. There more is stated, since noise may be alike anywhere by chance.
_FLOOR_PX = 0.06
_RESIDUAL_SHARE = 0.15
_FEWEST_CONFIDENCE = 0.05
_SURE = 0.4
_UNSURE_PX = 10.0
_THICKER = 2


class Depths(NamedTuple):
    """Which planes of two slices are compared."""

    first: slice
    """Planes of the earlier slice."""
    second: slice
    """Planes of the later slice."""
    common: bool
    """Whether they are the same tissue; otherwise they only face each other."""


def depths_to_compare(apart_planes: float, planes: tuple[int, int], /) -> Depths:
    """Return the planes that two slices have in common, or else those that face each other.

    Parameters
    ----------
    apart_planes : float
        Distance between the two faces, in depth samples.
    planes : (int, int)
        Depth samples of the earlier and of the later slice.

    Examples
    --------
    Sections of 20 planes of which 60 are imaged have much in common, sections of 40 of which 44 are imaged too little:

    >>> depths_to_compare(20, (60, 60))
    Depths(first=slice(20, 32, None), second=slice(0, 12, None), common=True)
    >>> depths_to_compare(40, (44, 44))
    Depths(first=slice(32, 44, None), second=slice(0, 12, None), common=False)
    """
    below = round(apart_planes)
    common = min(planes[0] - below, planes[1], BAND)
    if common >= FEWEST:
        return Depths(slice(below, below + common), slice(0, common), True)
    return Depths(slice(max(0, planes[0] - BAND), planes[0]), slice(0, min(BAND, planes[1])), False)


def depths_to_read(depths: Depths, planes: int, /) -> slice:
    """Return the planes of the earlier slice that `edge_between` needs: the band, and what the search goes through."""
    if not depths.common:
        return depths.first
    return slice(max(0, depths.first.start - SEARCH), min(planes, depths.first.stop + SEARCH))


@dataclass(frozen=True)
class MeasuredEdge:
    """An edge and the evidence for it."""

    edge: Edge
    residual_px: float
    """Median leftover shift of parts of the slices; NaN if none could be compared."""
    confidence: float
    """0..1, as in `register_images`."""
    deeper_planes: float
    """By how many planes more than nominal the faces are apart, by the tissue; 0 where that could not be measured."""
    wedge_planes: tuple[float, float]
    """By how many planes more at the far end of the field than at the near end, along x and y."""
    failure: str = ""
    """Why the slices could not be compared; the edge then says nothing."""
    common: bool = False
    """Whether both saw the same tissue, in the depths that were compared."""
    bend: EdgeBend | None = None
    """What the edge lacks of the true motion where the slices are bent against each other; None where none is seen."""


def band_image(planes: ArrayLike, /, *, tissue: ArrayLike | None = None) -> Image:
    """Return the mean of planes, each less its own median over the tissue.

    Parameters
    ----------
    planes : array_like, shape (x, y, planes)
        Intensity in dB; NaN marks missing values.
    tissue : array_like of bool, shape (x, y), optional
        Where the median is taken; default: everywhere.

    Returns
    -------
    ndarray of float32, shape (x, y)
        NaN where every plane is missing.

    Examples
    --------
    Attenuation, which is another level in every plane, does not remain:

    >>> band_image([[[1.0, -9.0], [3.0, -7.0], [5.0, -5.0]]]).tolist()
    [[-2.0, 0.0, 2.0]]
    """
    stack = np.array(planes, np.float32)
    where = np.ones(stack.shape[:2], bool) if tissue is None else np.asarray(tissue, bool)
    known = np.isfinite(stack)
    total, count = np.zeros(stack.shape[:2], np.float32), known.sum(2)
    for z in range(stack.shape[2]):
        good = known[:, :, z]
        inside = stack[:, :, z][good & where]
        if inside.size:
            total += np.where(good, stack[:, :, z] - np.median(inside), 0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def tissue_mask(planes: ArrayLike, /, *, min_step_db: float = 6.0) -> Mask:
    """Return where there is tissue, by Otsu's threshold on the mean of planes in dB, shape (x, y).

    Where the two classes lie less than `min_step_db` apart, everything that has a value counts as tissue.
    """
    from scipy import ndimage

    stack = np.asarray(planes, np.float32)
    known: Mask = np.asarray(np.isfinite(stack).any(2))
    if not known.any():
        return known
    mean = np.where(np.isfinite(stack), stack, 0).sum(2) / np.maximum(np.isfinite(stack).sum(2), 1)
    weight = np.maximum(ndimage.gaussian_filter(known.astype(np.float32), 3.0), 1e-3)
    smooth = ndimage.gaussian_filter(np.where(known, mean, 0), 3.0) / weight
    values = smooth[known]
    counts, borders = np.histogram(values, 128)
    middles = (borders[:-1] + borders[1:]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * middles)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = total / below, (total[-1] - total) / above
        between = below * above * (high - low) ** 2
    best = int(np.nanargmax(np.where((below > 0) & (above > 0), between, -1)))
    if not high[best] - low[best] > min_step_db:
        return known
    inside: Mask = np.asarray(ndimage.binary_opening(known & (smooth > borders[best + 1]), iterations=2))
    return inside if inside.sum() > 100 else known


def edge_between(
    first: int,
    second: int,
    first_planes: ArrayLike,
    second_planes: ArrayLike,
    depths: Depths,
    /,
    *,
    starts: tuple[tuple[Pose, Pose], ...] = (),
    centre_px: ArrayLike = (0.0, 0.0),
    freedom: str = "rigid",
    pixel_px: int = 1,
) -> MeasuredEdge:
    """Return the motion from one slice to a later one.

    Parameters
    ----------
    first, second : int
        Numbers of the slices.
    first_planes : array_like, shape (x, y, planes)
        The planes `depths_to_read` of the earlier slice, intensity in dB; NaN marks missing values.
    second_planes : array_like, shape (x, y, planes)
        The planes `depths.second` of the later slice.
    depths : Depths
        From `depths_to_compare`.
    starts : tuple of (Pose, Pose)
        Poses of the two from which the search starts; from nothing where there are none, or all of them fail.
    centre_px : array_like, shape (2,)
        The fixed point of the poses.
    freedom : {"translation", "rigid"}
        Freedom of the motion.
    pixel_px : int
        Size of the given pixels in px of the slices; poses and the edge are in the latter.

    Returns
    -------
    MeasuredEdge
        Also where the slices cannot be compared: then with an uncertainty of the size of the slice, and the reason.
    """
    one, two = np.asarray(first_planes, np.float32), np.asarray(second_planes, np.float32)
    read = depths_to_read(depths, depths.first.start + one.shape[2])
    band = slice(depths.first.start - read.start, depths.first.stop - read.start)
    inside = tissue_mask(one[:, :, band]), tissue_mask(two)
    faces = band_image(one[:, :, band], tissue=inside[0]), band_image(two, tissue=inside[1])
    centre = np.asarray(centre_px, float)
    known = [_between(a, b, centre).scaled(1 / pixel_px) for a, b in starts]
    found, failure = _registered(faces, inside, known, freedom)
    deeper, wedge, bend_px = 0.0, (0.0, 0.0), 0.0
    details = [faces]
    bend: EdgeBend | None = None
    if found is not None and depths.common and found.confidence > 0.1:
        deeper, wedge = _true_distance(one, two, band.start, found.mapping)
        moved = int(np.clip(round(deeper), -band.start, one.shape[2] - band.stop))
        if abs(moved) < _THICKER:
            moved = 0
        same = one[:, :, band.start + moved : band.stop + moved]
        details = _thirds(same, two, inside) or details
        found = _sharpened_along_depth(found, details, inside, freedom)
    if found is not None and freedom != "translation":
        found, bend_px = _nearest_to_bent(found, details, inside)
        if depths.common and bend_px > 0:
            bend = bend_between(details, found.mapping, fixed_mask=inside[0], moving_mask=inside[1])
    if found is not None and bend is not None:
        found, bend, bend_px = _nearest_to_measured(found, bend, inside)
    mapping, sigma = None, float(max(one.shape))
    if found is not None:
        share = _share_imaged_twice(faces, inside, found.mapping)
        mapping, sigma = found.mapping, float(np.hypot(_sigma_px(found) / np.sqrt(share), bend_px))
    if found is None or found.confidence < _SURE:
        faint = faint_match(faces, inside, turns=freedom != "translation")
        if faint is not None and faint.sigma_px < sigma:
            (mapping, sigma), bend = faint, None
    about, lever = _middle(inside[0] if mapping is None else _seen_by_both(inside, mapping), pixel_px)
    shift, turn = np.zeros(2), 0.0
    if mapping is not None:
        mapping = mapping.scaled(pixel_px)
        shift, turn = mapping.points(about) - about, mapping.rotation_deg
    edge = Edge(first, second, turn, (float(shift[0]), float(shift[1])), sigma * pixel_px, about, lever)
    if found is None:
        return MeasuredEdge(edge, float("nan"), 0.0, 0.0, (0.0, 0.0), failure)
    bend = None if bend is None else bend.scaled(pixel_px)
    return MeasuredEdge(
        edge, found.residual_px * pixel_px, found.confidence, deeper, wedge, common=depths.common, bend=bend
    )


def _sigma_px(found: Registration) -> float:
    """Return the standard deviation of a registration, in pixels of its images."""
    sigma = np.hypot(_FLOOR_PX, _RESIDUAL_SHARE * np.nan_to_num(found.residual_px, nan=10.0))
    sigma /= max(found.confidence, _FEWEST_CONFIDENCE)
    return float(np.hypot(sigma, _UNSURE_PX * max(0.0, 1 - found.confidence / _SURE)))


def _moved_mask(mask: Mask, mapping: PlanarTransform, shape: tuple[int, ...]) -> Mask:
    """Return a mask on the pixels that a mapping takes to its own; False beyond it."""
    moved = resample_image(mask.astype(np.float32), mapping, shape=(shape[0], shape[1]))
    return np.asarray(np.nan_to_num(moved) > 0.5)


def _seen_by_both(inside: tuple[Mask, Mask], mapping: PlanarTransform) -> Mask:
    """Return where the first slice has tissue that the second one has, too; all of the first if that is nothing."""
    both: Mask = inside[0] & _moved_mask(inside[1], mapping, inside[0].shape)
    return both if both.any() else inside[0]


def _share_imaged_twice(faces: tuple[Image, Image], inside: tuple[Mask, Mask], mapping: PlanarTransform) -> float:
    """Return which share of the tissue of either slice was imaged in the other one, too: less where one is incomplete.

    What a residual says about the error holds for a whole slice; of independent parts, fewer average out.
    """
    known = [np.isfinite(face) for face in faces]
    mine = inside[0] & _moved_mask(known[1], mapping, inside[0].shape)
    theirs = inside[1] & _moved_mask(known[0], mapping.inverse(), inside[1].shape)
    shares = [part.sum() / max(where.sum(), 1) for part, where in zip((mine, theirs), inside, strict=True)]
    return max(float(min(shares)), 0.01)


def _between(one: Pose, two: Pose, centre: NDArray[np.float64]) -> PlanarTransform:
    """Return the mapping from pixels of one slice to those of another, from their poses."""
    turn = two.turn_deg - one.turn_deg
    return rigid_map(turn, np.asarray(two.shift_px) - rigid_map(turn, (0, 0), (0, 0)).points(one.shift_px), centre)


def _registered(
    faces: tuple[Image, Image], inside: tuple[Mask, Mask], starts: list[PlanarTransform], freedom: str
) -> tuple[Registration | None, str]:
    """Return the most confident registration from several starts, and why it is not sure.

    Later starts are tried only while no earlier one gave a sure result: those given, then the best match of fine
    structure, then the search of `register_images`.
    """
    best: Registration | None = None
    failure = ""
    ways: list[Callable[[], PlanarTransform | None]] = [
        *(partial(_same, start) for start in starts),
        partial(_rough_match, faces, inside, freedom),
        lambda: None,
    ]
    for way in ways:
        if best is not None and best.confidence >= _SURE:
            break
        try:
            found = register_images(
                *faces,
                fixed_mask=inside[0],
                moving_mask=inside[1],
                freedom="translation" if freedom == "translation" else "rigid",
                sigma_px=2.0,
                start=way(),
            )
        except (ValueError, np.linalg.LinAlgError) as error:
            failure = str(error)
            continue
        if found.mapping.is_plausible and (best is None or found.confidence > best.confidence):
            best = found
        failure = "; ".join(found.failures)
    return best, failure


def _thirds(one: Image, two: Image, inside: tuple[Mask, Mask]) -> list[tuple[Image, Image]]:
    """Return how the thirds of the common planes differ from their mean, in both slices.

    Deep planes carry the shadows of all that lies above them, which lie beside the structure of the planes themselves
    and draw a comparison of means to one side, by up to a third of a pixel here. Shadows are the same in all planes of
    the band, so that differences between its thirds are free of them.
    """
    third = one.shape[2] // 3
    if third == 0 or one.shape != (*one.shape[:2], two.shape[2]):
        return []
    details = []
    means = [band_image(planes, tissue=where) for planes, where in zip((one, two), inside, strict=True)]
    for k in range(3):
        part = slice(k * third, (k + 1) * third)
        bands = [band_image(planes[:, :, part], tissue=where) for planes, where in zip((one, two), inside, strict=True)]
        details.append((bands[0] - means[0], bands[1] - means[1]))
    return details


def _sharpened_along_depth(
    found: Registration, details: list[tuple[Image, Image]], inside: tuple[Mask, Mask], freedom: str
) -> Registration:
    """Return a registration sharpened by what changes along the common depth, where that is sure."""
    mapping, residual, agreeing = sharpened_by_details(
        details,
        found.mapping,
        fixed_mask=inside[0],
        moving_mask=inside[1],
        freedom="translation" if freedom == "translation" else "rigid",
    )
    corners = np.array([[x, y] for x in (0, inside[0].shape[0]) for y in (0, inside[0].shape[1])], float)
    moved = float(np.abs(mapping.points(corners) - found.mapping.points(corners)).max())
    if agreeing < 0.5 or moved > 3.0:
        return found
    return replace(found, mapping=mapping, residual_px=residual, confidence=max(agreeing, found.confidence))


def _nearest_to_bent(
    found: Registration, details: list[tuple[Image, Image]], inside: tuple[Mask, Mask]
) -> tuple[Registration, float]:
    """Return the registration nearest to slices that are bent against each other, and its uncertainty by the bend."""
    blocks = shifts_of_blocks(details, found.mapping, fixed_mask=inside[0], moving_mask=inside[1])
    motion = nearest_rigid(blocks, _seen_by_both(inside, found.mapping))
    if motion is None:
        return found, 0.0
    return _moved_by(found, motion)[0], motion.sigma_px


def _moved_by(found: Registration, motion: NearestRigid) -> tuple[Registration, PlanarTransform]:
    """Return a registration that takes over a motion, and the mapping that leads it back, on the fixed pixels."""
    back = rigid_map(-float(np.degrees(motion.turn_rad)), np.negative(motion.shift_px), motion.middle_px)
    mapping = PlanarTransform(found.mapping.matrix @ back.matrix, found.mapping.points(back.offset))
    confidence = max(found.confidence, motion.agreeing)
    return replace(found, mapping=mapping, residual_px=motion.residual_px, confidence=confidence), back


def _nearest_to_measured(
    found: Registration, bend: EdgeBend, inside: tuple[Mask, Mask]
) -> tuple[Registration, EdgeBend, float]:
    """Return the registration nearest to a bend that was measured, what the bend is beside it, and its uncertainty."""
    motion = nearest_rigid(bend.blocks, _seen_by_both(inside, found.mapping))
    if motion is None:
        return found, bend, 0.0
    better, back = _moved_by(found, motion)
    moved = back.inverse().points(bend.at_px + bend.moved_px) - bend.at_px
    return better, bend._replace(moved_px=moved), motion.sigma_px


def _same(mapping: PlanarTransform) -> PlanarTransform:
    return mapping


def _rough_match(faces: tuple[Image, Image], inside: tuple[Mask, Mask], freedom: str) -> PlanarTransform:
    """Return the rigid mapping at which the fine structure of two faces agrees best, among all shifts and some angles.

    Brightness over more than a millimetre or so tells little here: deep planes lie in the shadow of what is above them,
    which the other face does not have. So only fine structure is compared, at angles close enough for it.
    """
    from scipy import fft, ndimage

    factor = max(1, round(max(*faces[0].shape, *faces[1].shape) / 256))
    details = []
    for face, where in zip(faces, inside, strict=True):
        image, valid = in_blocks(face, where, factor)
        if not valid.any():
            raise ValueError("there is no tissue to compare")
        near, wide = (
            ndimage.gaussian_filter(image, sigma)
            / np.maximum(ndimage.gaussian_filter(valid.astype(np.float32), sigma), 0.05)
            for sigma in (1.0, 8.0)
        )
        detail = np.where(valid, near - wide, 0)
        details.append((np.clip(detail / max(float(detail[valid].std()), 1e-9), -3, 3).astype(np.float32), valid))
    (fixed, fixed_valid), (moving, moving_valid) = details
    canvas = [fft.next_fast_len(a + b, real=True) for a, b in zip(fixed.shape, moving.shape, strict=True)]
    fixed_parts = [fft.rfft2(part, canvas) for part in (fixed, fixed**2, fixed_valid.astype(np.float32))]
    fewest = 0.2 * min(fixed_valid.sum(), moving_valid.sum())
    centre = (np.array(fixed.shape) - 1) / 2
    best: tuple[float, PlanarTransform] = (-np.inf, PlanarTransform.identity())
    for angle in np.arange(-6.0, 6.01, 0.75) if freedom != "translation" else (0.0,):
        turn = rigid_map(float(angle), (0.0, 0.0), centre)
        shape = (fixed.shape[0], fixed.shape[1])
        moved = resample_image(np.where(moving_valid, moving, np.nan), turn, shape=shape)
        known = np.isfinite(moved)
        filled = np.where(known, moved, 0)
        parts = [np.conj(fft.rfft2(part, canvas)) for part in (filled, filled**2, known.astype(np.float32))]
        cross = fft.irfft2(fixed_parts[0] * parts[0], canvas)
        count = fft.irfft2(fixed_parts[2] * parts[2], canvas)
        power = fft.irfft2(fixed_parts[1] * parts[2], canvas) * fft.irfft2(fixed_parts[2] * parts[1], canvas)
        allowed = (count > fewest) & (power > 1e-6 * power.max())
        score = np.where(allowed, cross / np.sqrt(np.where(allowed, power, 1)) * np.sqrt(np.maximum(count, 0)), -np.inf)
        at = np.unravel_index(int(np.argmax(score)), score.shape)
        if score[at] > best[0]:
            shift = [i if i < n else i - total for i, n, total in zip(at, fixed.shape, canvas, strict=True)]
            # fixed pixel p shows what lies at p - shift of the turned picture
            best = (
                float(score[at]),
                PlanarTransform(turn.matrix, turn.offset - turn.matrix @ np.array(shift, float)),
            )
    return best[1].scaled(factor)


def _middle(inside: Mask, pixel_px: int) -> tuple[tuple[float, float], float]:
    """Return the middle of the tissue, and the root mean square distance of the tissue from it, in px."""
    points = np.argwhere(inside) if inside.any() else np.argwhere(np.ones_like(inside))
    middle = points.mean(0)
    lever = float(np.sqrt(((points - middle) ** 2).sum(1).mean()))
    x, y = (float(m * pixel_px + (pixel_px - 1) / 2) for m in middle)
    return (x, y), max(lever * pixel_px, 1.0)


def _true_distance(
    one: Image, two: Image, band_start: int, mapping: PlanarTransform
) -> tuple[float, tuple[float, float]]:
    """Return by how much deeper than nominal the second face lies in the first slice: at the middle, and its slopes.

    Only changes along depth are compared: shadows of what lies above, and brighter shallow planes, would else draw the
    result upwards.
    """
    block, shape = 4, (two.shape[0], two.shape[1])
    small = tuple(n // block for n in shape)
    if min(small) < 12:
        return 0.0, (0.0, 0.0)

    def coarse(image: Image) -> Image:
        cut = image[: small[0] * block, : small[1] * block].reshape(small[0], block, small[1], block)
        return np.asarray(cut.mean((1, 3)), np.float32)

    def along_depth(planes: Image) -> Image:
        less_level = planes - np.nanmedian(planes, axis=(0, 1))
        return np.asarray(less_level - less_level.mean(2, keepdims=True), np.float32)

    depth = two.shape[2]
    offsets = range(one.shape[2] - depth + 1)
    if len(offsets) < 5:
        return 0.0, (0.0, 0.0)
    back = mapping.inverse()
    moved = np.stack([coarse(resample_image(one[:, :, z], back, shape=shape)) for z in range(one.shape[2])], axis=2)
    still = np.stack([coarse(two[:, :, z]) for z in range(depth)], axis=2)
    if not (np.isfinite(moved).all(2) & np.isfinite(still).all(2)).any():
        return 0.0, (0.0, 0.0)
    face, bands = along_depth(still), [along_depth(moved[:, :, k : k + depth]) for k in offsets]
    xs, ys = (np.linspace(0, n, 4).astype(int) for n in small)
    found, weights, where = [], [], []
    for x0, x1 in pairwise(xs):
        for y0, y1 in pairwise(ys):
            part = np.s_[x0:x1, y0:y1]
            peak = _peak(np.array([_correlation(face[part], band[part]) for band in bands]))
            if peak is not None:
                found.append(peak[0] - band_start)
                weights.append(peak[1])
                where.append([(x0 + x1) / 2 / small[0] - 0.5, (y0 + y1) / 2 / small[1] - 0.5])
    total = _peak(np.array([_correlation(face, band) for band in bands]))
    if total is None:
        return 0.0, (0.0, 0.0)
    if len(found) < 5:
        return float(total[0] - band_start), (0.0, 0.0)
    design = np.column_stack([np.ones(len(found)), where])
    value, weight = np.array(found), np.array(weights)
    fit = np.array([total[0] - band_start, 0.0, 0.0])
    for _ in range(5):
        off = value - design @ fit
        robust = weight / (1 + (off / max(1.0, float(np.median(np.abs(off))))) ** 2)
        fit = np.linalg.lstsq(design * np.sqrt(robust)[:, None], value * np.sqrt(robust), rcond=None)[0]
    return float(fit[0]), (float(fit[1]), float(fit[2]))


def _correlation(a: Image, b: Image) -> float:
    good = np.isfinite(a) & np.isfinite(b)
    if good.sum() < 50:
        return float("nan")
    x, y = a[good] - a[good].mean(), b[good] - b[good].mean()
    return float((x @ y) / np.sqrt(max(float(x @ x) * float(y @ y), 1e-20)))


def _peak(scores: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the place of the highest score, refined by a parabola, and its height; None where it is not clear."""
    if not np.isfinite(scores).all():
        return None
    k = int(np.argmax(scores))
    if scores[k] < max(0.1, scores.mean() + scores.std()) or k in (0, len(scores) - 1):
        return None
    before, at, after = scores[k - 1 : k + 2]
    bend = before - 2 * at + after
    return k + (0.5 * (before - after) / bend if bend < 0 else 0.0), float(at)

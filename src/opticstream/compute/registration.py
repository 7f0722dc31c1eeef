"""Finding the affine mapping between two images of one slice, and saying whether it can be believed.

Three steps: every shift at several rotations is tried on small copies (masked normalised correlation, so large offsets,
other sizes and missing tiles do not matter); Mattes mutual information refines the best few, coarse to fine, all the
way to an affine mapping; then blocks of the result are compared on their own, whose leftover shifts are the residual
and whose agreement is the confidence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.orientation_field import PlaneMap, resample_image, rotation_from_matrix

Freedom = Literal["translation", "rigid", "affine"]
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Registration:
    """A mapping from fixed to moving pixels and what speaks for it."""

    mapping: PlaneMap
    """Mapping from fixed to moving pixel coordinates."""
    residual_px: float
    """Median leftover shift of the blocks that can be compared, in fixed px; NaN if there are none."""
    confidence: float
    """Share of the comparable blocks whose leftover shift is small, in 0..1; 0 where fewer than 3 can be compared."""
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


def registration_image(
    image: ArrayLike, /, *, mask: ArrayLike | None = None, sigma_px: float = 3.0
) -> tuple[Image, NDArray[np.bool_]]:
    """Return a smoothed image scaled to 0..1 between its 1st and 99th percentile, and where it is valid.

    Parameters
    ----------
    image : array_like, shape (x, y)
        Values; NaN is no value.
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
        raise ValueError("the image holds no finite value")
    if mask is not None:
        inside = np.asarray(mask)
        if inside.shape != values.shape:
            raise ValueError(f"the mask has the shape {inside.shape}, the image {values.shape}")
        inside = np.nan_to_num(inside) != 0
        if not inside.any():
            raise ValueError("the mask is empty")
        valid &= inside
        if not valid.any():
            raise ValueError("the image holds no finite value inside the mask")
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
    freedom: Freedom = "affine",
    sigma_px: float = 3.0,
    scale_guess: tuple[float, float] = (1.0, 1.0),
    max_rotation_deg: float = 8.0,
    min_overlap: float = 0.25,
    min_confidence: float = 0.5,
    max_residual_px: float = 3.0,
    max_pixels: int = 1_500_000,
    start: PlaneMap | None = None,
) -> Registration:
    """Return the mapping from `fixed` to `moving` that makes them one image.

    Parameters
    ----------
    fixed, moving : array_like, shape (x, y)
        Images of the same quantity; they may differ in size and in contrast. NaN is no value.
    fixed_mask, moving_mask : array_like, optional
        Tissue (non-zero) of each.
    freedom : {"translation", "rigid", "affine"}
        Freedom of the mapping.
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
    start : PlaneMap, optional
        A known rough mapping; replaces the search.

    Returns
    -------
    Registration
        Also if it failed, with the reasons in `failures`.

    Raises
    ------
    ValueError
        An image without values, an empty mask, or shapes that differ.
    """
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
    small = [_shrink(fixed_image, fixed_valid, shrink), _shrink(moving_image, moving_valid, shrink)]
    starts = (
        [_scaled(start, 1 / shrink)]
        if start is not None
        else _starts(*small[0], *small[1], scale_guess=scale_guess, max_rotation_deg=max_rotation_deg)
    )
    mapping, before, after = _refine(*small[0], *small[1], starts, freedom)
    mapping = _scaled(mapping, shrink)
    return _judge(
        fixed_image,
        fixed_valid,
        moving_image,
        moving_valid,
        mapping,
        before=before,
        after=after,
        min_overlap=min_overlap,
        min_confidence=min_confidence,
        max_residual_px=max_residual_px,
    )


def _scaled(mapping: PlaneMap, factor: float) -> PlaneMap:
    """Return a mapping in pixels that are `factor` times smaller; pixel centres stay centres."""
    shift = (factor - 1) / 2
    one = np.ones(2)
    return PlaneMap(mapping.matrix, mapping.offset * factor - mapping.matrix @ (shift * one) + shift * one)


def _shrink(image: Image, valid: NDArray[np.bool_], factor: int) -> tuple[Image, NDArray[np.bool_]]:
    """Return block means over valid pixels; a block is valid where half of it is."""
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


def _starts(
    fixed: Image,
    fixed_valid: NDArray[np.bool_],
    moving: Image,
    moving_valid: NDArray[np.bool_],
    *,
    scale_guess: tuple[float, float],
    max_rotation_deg: float,
    keep: int = 3,
) -> list[PlaneMap]:
    """Return the best few mappings among all shifts at some rotations, on copies of about 96 pixels."""
    factor = max(1, round(max(*fixed.shape, *moving.shape) / 96))
    small_fixed, small_fixed_valid = _shrink(fixed, fixed_valid, factor)
    small_moving, small_moving_valid = _shrink(moving, moving_valid, factor)
    steps = max(1, round(max_rotation_deg / 2.0))
    scales = {(1.0, 1.0), scale_guess}
    candidates: list[tuple[float, PlaneMap]] = []
    for scale in sorted(scales):
        for angle in np.linspace(-max_rotation_deg, max_rotation_deg, 2 * steps + 1):
            t = np.radians(angle)
            matrix = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]) @ np.diag(scale)
            # The moving image turned and scaled about its centre, on a canvas that holds all of it.
            size = np.ceil(np.abs(np.linalg.inv(matrix)) @ np.array(small_moving.shape)).astype(int) + 1
            offset = (np.array(small_moving.shape) - 1) / 2 - matrix @ ((size - 1) / 2)
            turned = resample_image(
                np.where(small_moving_valid, small_moving, np.nan),
                PlaneMap(matrix, offset),
                shape=(int(size[0]), int(size[1])),
            )
            for score, shift in _correlation_peaks(small_fixed, small_fixed_valid, turned, count=2):
                # fixed pixel p lies at p - shift of the turned image
                candidates.append((score, PlaneMap(matrix, offset - matrix @ shift)))
    candidates.sort(key=lambda item: -item[0])
    chosen: list[PlaneMap] = []
    for _, mapping in candidates:
        centre = (np.array(small_fixed.shape) - 1) / 2
        if all(np.linalg.norm(mapping.points(centre) - other.points(centre)) > 4 for other in chosen):
            chosen.append(mapping)
        if len(chosen) == keep:
            break
    return [_scaled(mapping, factor) for mapping in chosen]


def _correlation_peaks(
    fixed: Image, fixed_valid: NDArray[np.bool_], turned: Image, *, count: int
) -> list[tuple[float, NDArray[np.float64]]]:
    """Return (significance, shift) of the highest peaks of the masked normalised correlation over all shifts.

    ``turned[p - shift]`` lies on ``fixed[p]``. The correlation counts by the number of pixels it rests on.
    """
    from scipy import fft

    size = [fft.next_fast_len(a + b, real=True) for a, b in zip(fixed.shape, turned.shape, strict=True)]
    valid = np.isfinite(turned)
    moved = np.where(valid, turned, 0).astype(np.float64)
    still = np.where(fixed_valid, fixed, 0).astype(np.float64)
    # Means are taken off first: what is left of them per shift is small, so that rounding does not matter.
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


def _refine(
    fixed: Image,
    fixed_valid: NDArray[np.bool_],
    moving: Image,
    moving_valid: NDArray[np.bool_],
    starts: list[PlaneMap],
    freedom: Freedom,
) -> tuple[PlaneMap, float, float]:
    """Return the mapping of highest mutual information, and the information before and after."""
    import SimpleITK as sitk  # noqa: N813  (the name its users know)

    def image(values: NDArray[Any]) -> Any:
        return sitk.GetImageFromArray(np.ascontiguousarray(values.T))

    images = image(fixed), image(moving)
    masks = image(fixed_valid.astype(np.uint8)), image(moving_valid.astype(np.uint8))
    centre = (np.array(fixed.shape) - 1) / 2
    largest = max(*fixed.shape, *moving.shape)

    def run(mapping: PlaneMap, kind: Freedom, shrinks: list[int], steps: int) -> tuple[PlaneMap, float]:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)  # sums in a fixed order: the same input gives the same bytes
        method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
        method.SetMetricSamplingStrategy(method.NONE)
        method.SetMetricFixedMask(masks[0])
        method.SetMetricMovingMask(masks[1])
        method.SetInterpolator(sitk.sitkLinear)
        method.SetShrinkFactorsPerLevel(shrinks)
        method.SetSmoothingSigmasPerLevel([0.5 * s if s > 1 else 0.0 for s in shrinks])
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=1.0,
            minStep=2e-3,
            numberOfIterations=steps,
            relaxationFactor=0.5,
            gradientMagnitudeTolerance=1e-6,
        )
        method.SetOptimizerScalesFromPhysicalShift()
        transform = _to_itk(sitk, mapping, kind, centre)
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(*images)
        return _from_itk(transform, kind, centre), -float(method.GetMetricValue())

    def information(mapping: PlaneMap) -> float:
        method = sitk.ImageRegistrationMethod()
        method.SetNumberOfThreads(1)
        method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
        method.SetMetricFixedMask(masks[0])
        method.SetMetricMovingMask(masks[1])
        method.SetInterpolator(sitk.sitkLinear)
        method.SetInitialTransform(_to_itk(sitk, mapping, "affine", centre))
        return -float(method.MetricEvaluate(*images))

    coarse = [s for s in (16, 8, 4) if largest / s >= 40] or [2 if largest >= 80 else 1]
    tried: list[tuple[float, PlaneMap]] = []
    for mapping in starts:
        try:
            found, value = run(mapping, freedom, coarse[-1:], 60)
        except RuntimeError:  # ITK: too few samples overlap
            continue
        tried.append((value, found))
    if not tried:
        best = starts[0] if starts else PlaneMap.identity()
        return best, float("nan"), float("nan")
    value, best = max(tried, key=lambda item: item[0])
    try:
        before = information(starts[0])
        fine = [s for s in (4, 2, 1) if s == 1 or largest / s >= 60]
        best, _ = run(best, freedom, fine, 80)
        return best, before, information(best)
    except RuntimeError:
        return best, float("nan"), value


def _to_itk(sitk: Any, mapping: PlaneMap, kind: Freedom, centre: NDArray[np.float64]) -> Any:
    """Return the mapping as an ITK transform about `centre`; freedom that the kind lacks is kept as a fixed part."""
    if kind == "affine":
        transform = sitk.AffineTransform(2)
        transform.SetCenter(centre.tolist())
        transform.SetMatrix(mapping.matrix.ravel().tolist())
        transform.SetTranslation((mapping.points(centre) - centre).tolist())
        return transform
    if kind == "rigid":
        transform = sitk.Euler2DTransform()
        transform.SetCenter(centre.tolist())
        transform.SetAngle(float(np.radians(rotation_from_matrix(mapping.matrix))))
        transform.SetTranslation((mapping.points(centre) - centre).tolist())
        return transform
    transform = sitk.TranslationTransform(2)
    transform.SetOffset((mapping.points(centre) - centre).tolist())
    return transform


def _from_itk(transform: Any, kind: Freedom, centre: NDArray[np.float64]) -> PlaneMap:
    """Return an ITK transform as a mapping."""
    if kind == "translation":
        return PlaneMap(np.eye(2), np.array(transform.GetOffset(), float))
    matrix = np.array(transform.GetMatrix(), float).reshape(2, 2)
    return PlaneMap(matrix, centre + np.array(transform.GetTranslation(), float) - matrix @ centre)


def _judge(
    fixed: Image,
    fixed_valid: NDArray[np.bool_],
    moving: Image,
    moving_valid: NDArray[np.bool_],
    mapping: PlaneMap,
    *,
    before: float,
    after: float,
    min_overlap: float,
    min_confidence: float,
    max_residual_px: float,
) -> Registration:
    """Return the registration with its residual, confidence and verdict."""
    failures = []
    scale = np.linalg.svd(mapping.matrix, compute_uv=False)
    plausible = bool(np.linalg.det(mapping.matrix) > 0 and scale[1] > 0.6 and scale[0] < 1.7)
    residual, confidence, overlap, correlation = float("nan"), 0.0, 0.0, 0.0
    if not plausible:
        failures.append(f"the mapping stretches by {scale[0]:.2f} and {scale[1]:.2f}, which no slice does")
    else:
        shape = (fixed.shape[0], fixed.shape[1])
        moved = resample_image(np.where(moving_valid, moving, np.nan), mapping, shape=shape)
        both = fixed_valid & np.isfinite(moved)
        moved = np.where(both, moved, 0).astype(np.float32)
        overlap = float(both.sum() / max(1, min(fixed_valid.sum(), moving_valid.sum())))
        if both.sum() > 16:
            a, b = fixed[both] - fixed[both].mean(), moved[both] - moved[both].mean()
            correlation = float((a * b).sum() / np.sqrt(max(float((a * a).sum() * (b * b).sum()), 1e-30)))
        residual, confidence = block_residuals(fixed, moved, both)
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


def block_residuals(
    fixed: Image, moved: Image, valid: NDArray[np.bool_], /, *, blocks: int = 6, reach_px: int = 12
) -> tuple[float, float]:
    """Return the median leftover shift in px of blocks of two registered images, and the share of blocks that agree.

    A block agrees where its correlation peaks within a quarter of `reach_px`; by chance about one in twenty does.
    """
    from scipy import fft

    shifts = []
    size = [max(24, -(-s // blocks)) for s in fixed.shape]
    for x in range(0, fixed.shape[0], size[0]):
        for y in range(0, fixed.shape[1], size[1]):
            part = np.s_[x : x + size[0], y : y + size[1]]
            good = valid[part]
            if good.shape[0] < 16 or good.shape[1] < 16 or good.mean() < 0.5:
                continue
            a = np.where(good, fixed[part] - fixed[part][good].mean(), 0).astype(np.float64)
            b = np.where(good, moved[part] - moved[part][good].mean(), 0).astype(np.float64)
            if not (a.std() > 1e-6 and b.std() > 1e-6):
                continue
            window = np.hanning(good.shape[0] + 2)[1:-1, None] * np.hanning(good.shape[1] + 2)[None, 1:-1]
            padded = [s + 2 * reach_px for s in good.shape]
            spectrum = fft.rfft2(a * window, padded) * np.conj(fft.rfft2(b * window, padded))
            surface = np.asarray(fft.irfft2(spectrum, padded))
            near = np.roll(surface, (reach_px, reach_px), (0, 1))[: 2 * reach_px + 1, : 2 * reach_px + 1]
            shifts.append(_peak(near) - reach_px)
    if len(shifts) < 3:
        return (float(np.median(np.linalg.norm(shifts, axis=1))) if shifts else float("nan")), 0.0
    length = np.linalg.norm(shifts, axis=1)
    return float(np.median(length)), float((length < reach_px / 4).mean())


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

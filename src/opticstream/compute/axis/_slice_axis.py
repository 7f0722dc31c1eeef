"""One slice from arrays: register every illumination to the first one, then solve for the fibre axis.

The first illumination is the fixed one, whatever its tilt. An illumination whose registration failed is left out; with
fewer than two left there is no axis, but the registrations are still returned, with their reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.axis._axis import AxisField, AxisSolver, axis_from_projections
from opticstream.compute.registration import (
    Freedom,
    MappingFinder,
    PlanarTransform,
    Registration,
    register_images,
    resample_image,
    resample_orientation,
    resampled,
    smooth_orientation,
)
from opticstream.model.modalities import described


@dataclass(frozen=True)
class IlluminationImages:
    """En face maps of one illumination, all of shape (x, y); NaN marks missing values."""

    name: str
    """Name used in messages."""
    orientation_deg: NDArray[np.float32]
    """Orientation in the axes of this illumination's image, in degrees."""
    birefringence: NDArray[np.float32]
    """Apparent birefringence."""
    tilt_deg: float
    """Tilt of the beam inside the tissue, in degrees."""
    tilt_axis_deg: float = 90.0
    """Direction of the axis it is tilted about, in degrees in the image plane."""
    mask: NDArray[np.bool_] | None = None
    """Tissue."""
    details: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Further maps by name, e.g. intensity; those that both illuminations have make the registration more precise."""


@dataclass(frozen=True)
class AlignedIllumination:
    """Orientation and birefringence of one illumination on the pixels, and in the axes, of the fixed one."""

    name: str
    orientation_deg: NDArray[np.float32]
    birefringence: NDArray[np.float32]
    registration: Registration | None
    """None for the fixed illumination."""


@dataclass(frozen=True)
class SliceAxis:
    """Result for one slice."""

    aligned: tuple[AlignedIllumination, ...]
    """The fixed illumination and every other one, failed ones included."""
    axes: AxisField | None
    """Fibre axes; None where fewer than two illuminations are registered."""
    failures: tuple[str, ...]
    """Why illuminations were left out."""


def slice_axis_from_illuminations(
    illuminations: Sequence[IlluminationImages],
    /,
    *,
    freedom: Freedom = "affine",
    bend_sigma_px: float = 0.0,
    sigma_px: float = 3.0,
    axis_sigma_px: float = 0.0,
    use_mask: bool = True,
    min_birefringence: float = 0.0,
    branch_sigma: float = 2.0,
    max_uncertainty_deg: float = 30.0,
    min_overlap: float = 0.25,
    min_confidence: float = 0.5,
    max_residual_px: float = 3.0,
    threads: int = 0,
    finder: MappingFinder | None = None,
    solver: AxisSolver | None = None,
) -> SliceAxis:
    """Return the registrations and the fibre axes of one slice.

    Parameters
    ----------
    illuminations : sequence of IlluminationImages
        Two or more; the first one is the fixed one, on whose pixels everything is returned.
    freedom, bend_sigma_px, sigma_px, min_overlap, min_confidence, max_residual_px, finder
        Registration, as in `register_images`; the images compared are the birefringence maps.
    axis_sigma_px : float
        Gaussian average of orientation and birefringence before the axis is solved; 0: none.
    use_mask : bool
        Register, and give axes, only inside the masks, where there are masks.
    min_birefringence, branch_sigma, max_uncertainty_deg, threads, solver
        Axis, as in `axis_from_projections`.

    Raises
    ------
    ValueError
        Fewer than two illuminations, maps of one illumination that differ in shape, maps without values, empty masks.
    """
    if len(illuminations) < 2:
        raise ValueError(f"the fibre axis needs at least two illuminations, got {[i.name for i in illuminations]}")
    for item in illuminations:
        _check(item)
    fixed = illuminations[0]
    shape = (fixed.birefringence.shape[0], fixed.birefringence.shape[1])
    aligned = [AlignedIllumination(fixed.name, fixed.orientation_deg, fixed.birefringence, None)]
    failures: list[str] = []
    for item in illuminations[1:]:
        try:
            registration = register_images(
                fixed.birefringence,
                item.birefringence,
                fixed_mask=fixed.mask if use_mask else None,
                moving_mask=item.mask if use_mask else None,
                details=[(fixed.details[n], item.details[n]) for n in sorted(fixed.details) if n in item.details],
                freedom=freedom,
                bend_sigma_px=bend_sigma_px,
                sigma_px=sigma_px,
                scale_guess=_foreshortening(fixed, item),
                min_overlap=min_overlap,
                min_confidence=min_confidence,
                max_residual_px=max_residual_px,
                finder=finder,
            )
        except ValueError as error:
            raise ValueError(f"{item.name} onto {fixed.name}: {error}") from None
        aligned.append(_align(item, registration, shape, use_mask=use_mask))
        failures += [f"{item.name} onto {fixed.name}: {reason}" for reason in registration.failures]
    good = [
        (item, image)
        for item, image in zip(illuminations, aligned, strict=True)
        if image.registration is None or image.registration.good
    ]
    if len(good) < 2:
        return SliceAxis(tuple(aligned), None, tuple(failures))
    inside = np.nan_to_num(fixed.mask) != 0 if use_mask and fixed.mask is not None else np.ones(shape, bool)
    angles, amounts = [], []
    for _, image in good:
        angle, amount = smooth_orientation(
            np.where(inside, image.orientation_deg, np.nan), image.birefringence, sigma_px=axis_sigma_px
        )
        angles.append(angle)
        amounts.append(amount)
    axes = axis_from_projections(
        np.stack(angles),
        np.stack(amounts),
        tilt_deg=[item.tilt_deg for item, _ in good],
        tilt_axis_deg=[item.tilt_axis_deg for item, _ in good],
        min_birefringence=min_birefringence,
        branch_sigma=branch_sigma,
        max_uncertainty_deg=max_uncertainty_deg,
        threads=threads,
        solver=solver,
    )
    return SliceAxis(tuple(aligned), axes, tuple(failures))


def aligned_map(
    modality: str,
    image: ArrayLike,
    mapping: PlanarTransform,
    /,
    *,
    shape: tuple[int, int],
    weight: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """Return a moving map on the fixed pixels, resampled according to the table of modalities.

    Examples
    --------
    Half a pixel further, an orientation is interpolated across the wrap, a retardance is not:

    >>> half = PlanarTransform(np.eye(2), np.array([0.0, 0.5]))
    >>> [float(aligned_map(name, [[80.0, -80.0]], half, shape=(1, 1))[0, 0].round(3)) for name in ("ori", "ret")]
    [90.0, 0.0]
    """
    return resampled(image, mapping, how=described(modality).resampling, shape=shape, weight=weight)


def _check(item: IlluminationImages) -> None:
    images: dict[str, NDArray[Any]] = {"orientation": item.orientation_deg, "birefringence": item.birefringence}
    images |= {f"map {name}": image for name, image in item.details.items()}
    if item.mask is not None:
        images["mask"] = item.mask
        if not np.any(np.nan_to_num(item.mask)):
            raise ValueError(f"{item.name}: the mask is empty")
    for name, image in images.items():
        if image.ndim != 2 or image.shape != item.birefringence.shape:
            raise ValueError(
                f"{item.name}: {name} has the shape {image.shape}, birefringence {item.birefringence.shape}; "
                "all maps of an illumination must be images of one size"
            )
        if name != "mask" and not np.isfinite(image).any():
            raise ValueError(f"{item.name}: {name} has no finite value")


def _foreshortening(fixed: IlluminationImages, moving: IlluminationImages) -> tuple[float, float]:
    """Return the expected scale of moving over fixed along x and y; a tilted beam sees the sample foreshortened."""

    def scale(item: IlluminationImages) -> NDArray[np.float64]:
        axis, tilt = np.radians(item.tilt_axis_deg), np.radians(item.tilt_deg)
        across = 1 - np.cos(tilt)
        return np.array([1 - across * np.sin(axis) ** 2, 1 - across * np.cos(axis) ** 2])

    ratio = scale(moving) / scale(fixed)
    return float(ratio[0]), float(ratio[1])


def _align(
    item: IlluminationImages, registration: Registration, shape: tuple[int, int], *, use_mask: bool
) -> AlignedIllumination:
    if registration.failures and not np.linalg.det(registration.mapping.matrix) > 0:
        empty = np.full(shape, np.nan, np.float32)
        return AlignedIllumination(item.name, empty, empty, registration)
    blank = np.zeros(item.birefringence.shape, bool)
    if use_mask and item.mask is not None:
        blank = ~(np.nan_to_num(item.mask) != 0)
    seen = np.where(blank, np.nan, item.birefringence)
    angle = np.where(blank, np.nan, item.orientation_deg)
    # A small minimum weight: pixels without birefringence still have a value, dominated by their neighbours.
    floor = 1e-3 * float(np.nanmax(np.abs(item.birefringence)))
    weight = np.maximum(np.nan_to_num(seen), floor)
    return AlignedIllumination(
        item.name,
        resample_orientation(angle, registration.mapping, shape=shape, weight=weight),
        resample_image(seen, registration.mapping, shape=shape),
        registration,
    )

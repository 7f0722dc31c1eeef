"""Refining a mapping by Mattes mutual information, coarse to fine, with SimpleITK on one thread.

One thread, because sums over several come in any order: the same input must give the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration._planar_transform import Freedom, PlanarTransform, rotation_from_matrix

Image = NDArray[np.float32]


@contextlib.contextmanager
def _one_thread(sitk: Any) -> Iterator[None]:
    """Let ITK work on one thread; the metric follows only the process-wide number, which is put back afterwards."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def refined_mapping(
    fixed: Image,
    fixed_valid: NDArray[np.bool_],
    moving: Image,
    moving_valid: NDArray[np.bool_],
    starts: list[PlanarTransform],
    freedom: Freedom,
) -> tuple[PlanarTransform, float, float]:
    """Return the mapping of highest mutual information, and the information before and after."""
    import SimpleITK as sitk  # noqa: N813  (the name its users know)

    images = _image(sitk, fixed), _image(sitk, moving)
    masks = _image(sitk, fixed_valid.astype(np.uint8)), _image(sitk, moving_valid.astype(np.uint8))
    centre = (np.array(fixed.shape) - 1) / 2
    largest = max(*fixed.shape, *moving.shape)

    def run(mapping: PlanarTransform, kind: Freedom, shrinks: list[int], steps: int) -> tuple[PlanarTransform, float]:
        method = _method(sitk, *masks)
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

    def information(mapping: PlanarTransform) -> float:
        return _information(sitk, fixed, fixed_valid, moving, moving_valid, mapping)

    with _one_thread(sitk):
        return _best(run, information, starts, freedom, largest)


def mutual_information(
    fixed: Image,
    fixed_valid: NDArray[np.bool_],
    moving: Image,
    moving_valid: NDArray[np.bool_],
    mapping: PlanarTransform,
) -> float:
    """Return the mutual information of two images under a mapping, its displacement left out; NaN: no overlap."""
    import SimpleITK as sitk  # noqa: N813  (the name its users know)

    with _one_thread(sitk):
        try:
            return _information(sitk, fixed, fixed_valid, moving, moving_valid, mapping)
        except RuntimeError:  # ITK: too few samples overlap
            return float("nan")


def _information(
    sitk: Any,
    fixed: Image,
    fixed_valid: NDArray[np.bool_],
    moving: Image,
    moving_valid: NDArray[np.bool_],
    mapping: PlanarTransform,
) -> float:
    method = _method(sitk, *(_image(sitk, valid.astype(np.uint8)) for valid in (fixed_valid, moving_valid)))
    centre = (np.array(fixed.shape) - 1) / 2
    method.SetInitialTransform(_to_itk(sitk, mapping, "affine", centre))
    return -float(method.MetricEvaluate(_image(sitk, fixed), _image(sitk, moving)))


def _method(sitk: Any, fixed_mask: Any, moving_mask: Any) -> Any:
    """Return a registration that looks at mutual information, at every pixel inside both masks."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetMetricFixedMask(fixed_mask)
    method.SetMetricMovingMask(moving_mask)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _image(sitk: Any, values: NDArray[Any]) -> Any:
    return sitk.GetImageFromArray(np.ascontiguousarray(values.T))


def _best(
    run: Any, information: Any, starts: list[PlanarTransform], freedom: Freedom, largest: int
) -> tuple[PlanarTransform, float, float]:
    """Refine every start on the coarsest copies, then the best one to the end."""
    coarse = [s for s in (16, 8, 4) if largest / s >= 40] or [2 if largest >= 80 else 1]
    tried: list[tuple[float, PlanarTransform]] = []
    for mapping in starts:
        try:
            found, value = run(mapping, freedom, coarse[-1:], 60)
        except RuntimeError:  # ITK: too few samples overlap
            continue
        tried.append((value, found))
    if not tried:
        best = starts[0] if starts else PlanarTransform.identity()
        return best, float("nan"), float("nan")
    value, best = max(tried, key=lambda item: item[0])
    try:
        before = information(starts[0])
        fine = [s for s in (4, 2, 1) if s == 1 or largest / s >= 60]
        best, _ = run(best, freedom, fine, 80)
        return best, before, information(best)
    except RuntimeError:
        return best, float("nan"), value


def _to_itk(sitk: Any, mapping: PlanarTransform, kind: Freedom, centre: NDArray[np.float64]) -> Any:
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


def _from_itk(transform: Any, kind: Freedom, centre: NDArray[np.float64]) -> PlanarTransform:
    """Return an ITK transform as a mapping."""
    if kind == "translation":
        return PlanarTransform(np.eye(2), np.array(transform.GetOffset(), float))
    matrix = np.array(transform.GetMatrix(), float).reshape(2, 2)
    return PlanarTransform(matrix, centre + np.array(transform.GetTranslation(), float) - matrix @ centre)

"""The 3-D fibre axis from measurements with two or more beams: direction and birefringence of all pixels at once.

A beam along `k` sees a fibre `r` (direction = axis, length = true birefringence) as the vector
``P(r; k) = (r - (k.r)k) sqrt(1 - (k.r)^2/|r|^2)``: its direction across the beam, and its birefringence times the
squared sine of the angle to the beam. The axis has no sign, so each measured vector may be reversed, which gives
several branches; the best solution over all of them and the best distinct alternative are both found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute import axial
from opticstream.system.cores import available_cores

Float = NDArray[np.float32]

_BLOCK = 16_384
_DISTINCT_COS = float(np.cos(np.radians(3.0)))
_MERGE_COS = float(np.cos(np.radians(4.0)))
_TOLERANCE = 1e-8


AxisSolver = Callable[[NDArray[Any], NDArray[Any], NDArray[np.float64]], tuple[ArrayLike, ArrayLike]]
"""Takes orientation (degrees) and birefringence of the beams, (beams, ...), and their frames as `beam_frames` gives
them; returns the vectors (..., 3) that fit best, and those of the next branch: axes, as long as the birefringence."""


class AxisFlag(IntFlag):
    """Reasons to check a pixel's axis; several can be set."""

    NO_DATA = 1
    """Fewer than two beams have a value; the axis is NaN."""
    LOW_BIREFRINGENCE = 2
    """The birefringence is below the limit or not above its noise; the axis is NaN."""
    AMBIGUOUS = 4
    """A distinct second axis (another branch) fits as well within the noise; that of lower birefringence is given."""
    NEAR_VERTICAL = 8
    """The axis is nearly along the normal, so the in-plane angle is uncertain."""
    UNCERTAIN = 16
    """The direction's standard deviation exceeds the limit."""


@dataclass(frozen=True)
class AxisField:
    """Fibre axes of an image; every array has the image's shape, `axis` and `alternative` with 3 components more.

    Angles are in degrees. NaN where there is no axis (`NO_DATA`, `LOW_BIREFRINGENCE`).
    """

    axis: Float
    """Unit vectors (x, y, z) with x >= 0 (y > 0 where x = 0)."""
    birefringence: Float
    """True birefringence; also where it is too low for an axis."""
    inplane_deg: Float
    """Direction in the image plane, from +x towards +y, in (-90, 90]."""
    thruplane_deg: Float
    """Inclination out of the image plane, in [-90, 90], positive towards +z along the direction `inplane_deg`."""
    uncertainty_deg: Float
    """Standard deviation of the direction (root of the summed variances of its two angles), at most 90."""
    birefringence_uncertainty: Float
    """Standard deviation of the birefringence."""
    residual: Float
    """Root of the misfit over the degrees of freedom, in birefringence."""
    noise: Float
    """Standard deviation of a measured component, from which flags and uncertainties follow, in birefringence."""
    flags: NDArray[np.uint8]
    """Sum of `AxisFlag` values."""
    alternative: Float
    """The axis that was not chosen, as unit vectors; NaN where there is no distinct second one."""


def beam_frames(tilt_deg: ArrayLike, /, *, tilt_axis_deg: ArrayLike = 90.0) -> NDArray[np.float64]:
    """Return the image axes and the direction of each beam, as rows of a rotation matrix.

    Parameters
    ----------
    tilt_deg : array_like, shape (beams,)
        Angle of each beam against the normal inside the tissue, in degrees; rotation about `tilt_axis_deg` by the right
        hand. Shape () gives one frame without the first axis.
    tilt_axis_deg : array_like, shape (beams,) or ()
        Direction of the rotation axis in the image plane, in degrees from +x towards +y; 90 is the y axis.

    Returns
    -------
    ndarray, shape (beams, 3, 3)
        Rows: the beam's x and y, in which it sees orientations, and its direction.

    Examples
    --------
    A beam tilted by g about y runs along (sin g, 0, cos g):

    >>> beam_frames(-30.0)[2].round(3) + 0.0
    array([-0.5  ,  0.   ,  0.866])
    """
    tilt, axis = np.broadcast_arrays(
        np.radians(np.asarray(tilt_deg, float)), np.radians(np.asarray(tilt_axis_deg, float))
    )
    zero = np.zeros_like(tilt)
    a = np.stack([np.cos(axis), np.sin(axis), zero], axis=-1)
    cross = np.stack(
        [
            np.stack([zero, zero, a[..., 1]], -1),
            np.stack([zero, zero, -a[..., 0]], -1),
            np.stack([-a[..., 1], a[..., 0], zero], -1),
        ],
        axis=-2,
    )
    turn = np.eye(3) + np.sin(tilt)[..., None, None] * cross + (1 - np.cos(tilt))[..., None, None] * (cross @ cross)
    return np.ascontiguousarray(np.swapaxes(turn, -1, -2))


def projections_from_axis(
    axis: ArrayLike, birefringence: ArrayLike, /, *, tilt_deg: ArrayLike, tilt_axis_deg: ArrayLike = 90.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the orientation in degrees and the apparent birefringence of fibre axes for each beam.

    Parameters
    ----------
    axis : array_like, shape (..., 3)
        Fibre directions, of any length above 0.
    birefringence : array_like, shape (...)
        True birefringence.
    tilt_deg, tilt_axis_deg : array_like, shape (beams,)
        Beams, as in `beam_frames`.

    Returns
    -------
    orientation_deg, birefringence : ndarray, shape (beams, ...)
        Orientation in (-90, 90], in the beam's own image axes (arbitrary for a fibre along the beam), and apparent
        birefringence, which is the true one times the squared sine of the angle to the beam.

    Examples
    --------
    >>> angle, seen = projections_from_axis([0.0, 1.0, 1.0], 2e-3, tilt_deg=[0.0, 45.0], tilt_axis_deg=0.0)
    >>> angle.round(3), seen.round(6)
    (array([90., 90.]), array([0.001, 0.002]))
    """
    r = np.asarray(axis, float)
    unit = r / np.linalg.norm(r, axis=-1, keepdims=True)
    frames = beam_frames(np.atleast_1d(tilt_deg), tilt_axis_deg=tilt_axis_deg)
    seen = np.einsum("nij,...j->n...i", frames[:, :2], unit)
    angle = axial.wrap(np.degrees(np.arctan2(seen[..., 1], seen[..., 0])))
    return angle, np.asarray(birefringence, float) * (seen**2).sum(-1)


def axis_from_projections(
    orientation_deg: ArrayLike,
    birefringence: ArrayLike,
    /,
    *,
    tilt_deg: ArrayLike,
    tilt_axis_deg: ArrayLike = 90.0,
    noise: ArrayLike | None = None,
    branch_sigma: float = 2.0,
    min_birefringence: float = 0.0,
    min_significance: float = 3.0,
    max_uncertainty_deg: float = 30.0,
    vertical_deg: float = 75.0,
    threads: int = 0,
    solver: AxisSolver | None = None,
) -> AxisField:
    """Return the fibre axis and true birefringence of every pixel from the measurements of two or more beams.

    Parameters
    ----------
    orientation_deg : array_like, shape (beams, ...)
        Orientation in each beam's own image axes, in degrees, any multiple of 180 added. NaN: this beam has no value.
    birefringence : array_like, shape (beams, ...)
        Apparent birefringence, any unit; below 0 counts as 0. NaN: this beam has no value.
    tilt_deg, tilt_axis_deg : array_like, shape (beams,)
        Directions of the beams, as in `beam_frames`.
    noise : array_like, optional
        Standard deviation of one component of a measured vector, one number or an image. Default: from the misfits of
        the pixel and its surroundings, which for two beams have one degree of freedom each.
    branch_sigma : float
        Two axes whose misfits differ by less than this many standard deviations are equally good: the one of lower
        birefringence is given and the pixel flagged.
    min_birefringence, min_significance : float
        The axis is left out where the birefringence is below the one, or below the other times its standard deviation.
    max_uncertainty_deg, vertical_deg : float
        Above these the pixel is flagged `UNCERTAIN`, `NEAR_VERTICAL`.
    threads : int
        Number of threads; 0: all cores that this process may use. The result does not depend on it.
    solver : callable, optional
        Finds the solutions instead; misfits, uncertainties and flags follow from them as for our own.

    Raises
    ------
    ValueError
        Fewer than two beams, shapes that differ, beams that all have (nearly) the same direction, or no pixel with
        values of two beams that differ.

    Notes
    -----
    For a given direction the best length and signs are known in closed form, so that the cost is a function on the
    half sphere. Local minima of a small table of it, and closed-form solutions for every pair of beams, are the
    starts of Newton descents over two angles. On random data no search from many random starts finds a lower cost.

    Examples
    --------
    >>> seen = projections_from_axis([[0.6, 0.48, 0.64]], [1e-3], tilt_deg=[0.0, -15.0])
    >>> field = axis_from_projections(*seen, tilt_deg=[0.0, -15.0], noise=0.0)
    >>> field.axis.round(3), round(float(field.birefringence[0]), 6)
    (array([[0.6 , 0.48, 0.64]], dtype=float32), 0.001)
    """
    angle = np.asarray(orientation_deg)
    seen = np.asarray(birefringence)
    tilts = np.atleast_1d(np.asarray(tilt_deg, float))
    frames = beam_frames(tilts, tilt_axis_deg=np.broadcast_to(np.asarray(tilt_axis_deg, float), tilts.shape))
    if angle.shape != seen.shape:
        raise ValueError(f"orientation has the shape {angle.shape} and birefringence {seen.shape}; they must agree")
    if angle.ndim < 1 or angle.shape[0] != len(frames):
        raise ValueError(f"got {angle.shape[:1]} images for {len(frames)} beams (tilt_deg = {tilts.tolist()})")
    _check_beams(frames, tilts)
    shape = angle.shape[1:]
    valid = np.isfinite(angle) & np.isfinite(seen)
    enough = valid.sum(0) >= 2
    if not enough.any():
        raise ValueError("no pixel has orientation and birefringence from two beams; are the masks disjoint?")
    flat = angle.reshape(len(frames), -1), seen.reshape(len(frames), -1), valid.reshape(len(frames), -1)
    if solver is None:
        solutions, costs, spread = _solve(*flat, frames, threads)
    else:
        found = solver(angle, np.maximum(seen, 0), frames)
        solutions = np.stack([np.asarray(one, np.float64).reshape(-1, 3) for one in found], axis=1)
        costs, spread = _assessed(solutions, *flat, frames)
    enough &= np.isfinite(costs[:, 0]).reshape(shape)  # two beams of one direction alone hold no axis
    if not enough.any():
        raise ValueError(f"no pixel has values from two beams that differ by more than 0.5 degrees: {tilts.tolist()}")
    freedom = np.maximum(2 * valid.sum(0) - 3, 1).astype(np.float32)
    sigma = (
        _noise_from_cost(costs[:, 0].reshape(shape), freedom, enough)
        if noise is None
        else np.broadcast_to(np.asarray(noise, np.float32), shape)
    )
    valid, seen = valid.reshape(len(frames), -1), seen.reshape(len(frames), -1)
    flat_sigma, flat_freedom, flat_enough = sigma.reshape(-1), freedom.reshape(-1), enough.reshape(-1)

    def select(block: slice) -> AxisField:
        return _select(
            solutions[block],
            costs[block],
            spread[block],
            sigma=flat_sigma[block],
            freedom=flat_freedom[block],
            enough=flat_enough[block],
            energy=np.where(valid[:, block], np.square(np.nan_to_num(np.maximum(seen[:, block], 0))), 0).sum(0),
            branch_sigma=branch_sigma,
            min_birefringence=min_birefringence,
            min_significance=min_significance,
            max_uncertainty_deg=max_uncertainty_deg,
            vertical_deg=vertical_deg,
        )

    blocks = [slice(first, first + _BLOCK) for first in range(0, len(costs), _BLOCK)]
    with ThreadPoolExecutor(threads or available_cores()) as pool:
        parts = list(pool.map(select, blocks))

    def joined(name: str) -> NDArray[Any]:
        values = np.concatenate([getattr(part, name) for part in parts])
        return values.reshape(*shape, *values.shape[1:])

    return AxisField(**{item.name: joined(item.name) for item in fields(AxisField)})


def _check_beams(frames: NDArray[np.float64], tilts: NDArray[np.float64]) -> None:
    if len(frames) < 2:
        raise ValueError(f"the axis needs at least two beams, got tilt_deg = {tilts.tolist()}")
    if len(frames) > 16:
        raise ValueError(f"at most 16 beams are supported, got {len(frames)}")
    between = np.abs(frames[:, 2] @ frames[:, 2].T)[~np.eye(len(frames), dtype=bool)]
    if between.min() > np.cos(np.radians(0.5)):
        raise ValueError(f"the beams must differ by more than 0.5 degrees, got tilt_deg = {tilts.tolist()}")


def _solve(
    angle: NDArray[Any], seen: NDArray[Any], valid: NDArray[np.bool_], frames: NDArray[np.float64], threads: int
) -> tuple[Float, Float, Float]:
    """Return solutions (pixels, 2, 3), costs (pixels, 2), spreads (pixels, 2, 2); NaN without values of two beams."""
    from opticstream.compute.axis import _kernels as kernels

    solve: Any = kernels.solve_pixels
    pixels = angle.shape[1]
    solutions = np.full((pixels, 2, 3), np.nan, np.float32)
    costs = np.full((pixels, 2), np.nan, np.float32)
    spread = np.full((pixels, 2, 2), np.inf, np.float32)
    code = (valid.astype(np.int64) << np.arange(len(frames))[:, None]).sum(0)
    jobs = []
    for pattern in np.unique(code):
        beams = np.flatnonzero(int(pattern) >> np.arange(len(frames)) & 1)
        if len(beams) < 2 or _largest_angle_deg(frames[beams]) < 0.5:
            continue
        members = np.flatnonzero(code == pattern)
        jobs += [(beams, members[i : i + _BLOCK]) for i in range(0, len(members), _BLOCK)]

    def work(job: tuple[NDArray[Any], NDArray[Any]]) -> None:
        beams, members = job
        turn = np.radians(angle[np.ix_(beams, members)].astype(np.float64))
        length = np.maximum(seen[np.ix_(beams, members)].astype(np.float64), 0.0)
        measured = np.ascontiguousarray(np.stack([length * np.cos(turn), length * np.sin(turn)], -1).swapaxes(0, 1))
        subset = np.ascontiguousarray(frames[beams])
        block = tuple(np.empty((len(members), *size)) for size in ((2, 3), (2,), (2, 2)))
        solve(measured, subset, *_table(subset.tobytes()), _TOLERANCE, _DISTINCT_COS, _MERGE_COS, *block)
        with np.errstate(over="ignore"):
            solutions[members], costs[members], spread[members] = block

    # Process one block alone first, so that the kernels are compiled once and not by every thread.
    for job in jobs[:1]:
        work(job)
    with ThreadPoolExecutor(threads or available_cores()) as pool:
        list(pool.map(work, jobs[1:]))
    return solutions, costs, spread


def _assessed(
    solutions: NDArray[Any],
    angle: NDArray[Any],
    seen: NDArray[Any],
    valid: NDArray[np.bool_],
    frames: NDArray[np.float64],
) -> tuple[Float, Float]:
    """Return costs (pixels, 2) and spreads (pixels, 2, 2) of solutions (pixels, 2, 3); NaN where there is none.

    A spread holds the variances of direction (rad^2) and length for a noise of 1.
    """
    square = np.maximum((solutions**2).sum(-1), 1e-300)
    costs = np.where(np.isfinite(solutions).all(-1), 0.0, np.nan)
    normal = np.zeros((*costs.shape, 3, 3))
    for beam, frame in enumerate(frames):
        turn, length = np.radians(angle[beam].astype(np.float64)), np.maximum(seen[beam].astype(np.float64), 0)
        measured = (np.stack([np.cos(turn), np.sin(turn)], -1) * length[:, None]) @ frame[:2]
        along = solutions @ frame[2]
        across = solutions - along[..., None] * frame[2]
        sine = np.sqrt(np.maximum(1 - along**2 / square, 1e-12))
        seen_now = across * sine[..., None]
        misfit = np.minimum(*(((sign * measured[:, None] - seen_now) ** 2).sum(-1) for sign in (1, -1)))
        slope = -(along / square / sine)[..., None] * (frame[2] - (along / square)[..., None] * solutions)
        jacobian = sine[..., None, None] * (np.eye(3) - np.outer(frame[2], frame[2])) + (
            across[..., :, None] * slope[..., None, :]
        )
        known = valid[beam][:, None]
        costs = costs + np.where(known, misfit, 0)
        normal += np.where(known[..., None, None], np.swapaxes(jacobian, -1, -2) @ jacobian, 0)
    fine = np.isfinite(costs)
    covariance = np.linalg.pinv(np.where(fine[..., None, None], np.nan_to_num(normal), 0), hermitian=True)
    unit = solutions / np.sqrt(square)[..., None]
    of_length = np.einsum("...i,...ij,...j->...", unit, covariance, unit)
    of_direction = np.maximum(np.trace(covariance, axis1=-2, axis2=-1) - of_length, 0) / square
    spread = np.where(fine[..., None], np.stack([of_direction, of_length], -1), np.inf)
    return costs.astype(np.float32), spread.astype(np.float32)


def _largest_angle_deg(frames: NDArray[np.float64]) -> float:
    """Return the largest angle between two of the lines along the beams, in degrees."""
    between = np.abs(frames[:, 2] @ frames[:, 2].T)[~np.eye(len(frames), dtype=bool)]
    return float(np.degrees(np.arccos(np.clip(between.min(), 0.0, 1.0))))


@functools.lru_cache(maxsize=64)
def _table(key: bytes) -> tuple[NDArray[Any], ...]:
    """Return trial directions (directions, 3), projections (beams, 2, directions), their energy, and neighbours.

    The half sphere is covered finely between and around the beams, where minima lie close together, coarsely elsewhere.
    """
    from scipy.spatial import cKDTree

    frames = np.frombuffer(key).reshape(-1, 3, 3)
    beams = frames[:, 2] * np.where(frames[:, 2, 2:] < 0, -1.0, 1.0)
    between = np.concatenate(
        [beams]
        + [
            np.linspace(0, 1, 9)[:, None] * beams[i] + np.linspace(1, 0, 9)[:, None] * beams[j]
            for i in range(len(beams))
            for j in range(i)
        ]
    )
    between /= np.linalg.norm(between, axis=1, keepdims=True)
    gap = max(_largest_angle_deg(frames), 3.0)
    coarse = 15.0
    zones = ((0.0, 0.9 * gap, gap / 3), (0.9 * gap, 2.2 * gap, gap / 2), (2.2 * gap, 181.0, coarse))
    chosen = []
    for nearest, farthest, step in zones:
        points = _half_sphere(int(2 * np.pi / np.radians(min(step, coarse)) ** 2))
        away = np.degrees(np.arccos(np.clip(np.abs(points @ between.T).max(1), 0, 1)))
        chosen.append(points[(away >= nearest) & (away < farthest)])
    directions = np.ascontiguousarray(np.concatenate(chosen))
    _, nearest_ones = cKDTree(np.concatenate([directions, -directions])).query(directions, k=9)
    neighbours = np.ascontiguousarray(np.asarray(nearest_ones)[:, 1:] % len(directions))
    across = np.einsum("nij,tj->nit", frames[:, :2], directions)
    projections = np.ascontiguousarray(across * np.linalg.norm(across, axis=1, keepdims=True))
    return directions, projections, np.ascontiguousarray((projections**2).sum((0, 1))), neighbours


def _half_sphere(count: int) -> NDArray[np.float64]:
    """Return `count` evenly spread unit vectors with z > 0 (Fibonacci lattice)."""
    i = np.arange(count) + 0.5
    z = 1 - i / count
    turn = np.pi * (1 + 5**0.5) * i
    across = np.sqrt(1 - z * z)
    return np.stack([across * np.cos(turn), across * np.sin(turn), z], axis=1)


def _noise_from_cost(cost: Float, freedom: Float, enough: NDArray[np.bool_]) -> Float:
    """Return the noise per component from the misfits, pooled over the surroundings of each pixel.

    Half of the estimate comes from the neighbourhood and half from the whole image, so that a smooth patch that happens
    to fit well does not count as free of noise.
    """
    from scipy import ndimage

    per_freedom = np.where(enough, np.nan_to_num(cost) / freedom, 0).astype(np.float32)
    overall = float(np.median(per_freedom[enough])) / 0.455  # the median of chi-squared with one degree of freedom
    if cost.ndim != 2:
        return np.full(cost.shape, np.sqrt(overall), np.float32)
    capped = np.minimum(per_freedom, np.float32(50 * overall))
    weight = ndimage.uniform_filter(enough.astype(np.float32), 15, mode="constant")
    local = ndimage.uniform_filter(capped, 15, mode="constant") / np.maximum(weight, 1e-6)
    return np.sqrt(0.5 * np.maximum(local, 0) + 0.5 * overall).astype(np.float32)


def _select(
    solutions: Float,
    costs: Float,
    spread: Float,
    /,
    *,
    sigma: Float,
    freedom: Float,
    enough: NDArray[np.bool_],
    energy: Float,
    branch_sigma: float,
    min_birefringence: float,
    min_significance: float,
    max_uncertainty_deg: float,
    vertical_deg: float,
) -> AxisField:
    """Apply the branch rule and the limits to both solutions of every pixel."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        length = np.sqrt((solutions**2).sum(-1))
        # 1e-6 of the energy is the solver's own accuracy: without noise, exact solutions of both branches are equal.
        level = np.maximum(branch_sigma**2 * sigma**2, 1e-6 * energy)
        ambiguous = (costs[..., 1] - costs[..., 0] < level) & np.isfinite(costs[..., 1])
        swap = ambiguous & (length[..., 1] < length[..., 0])
        pick = swap[..., None, None].astype(np.intp)
        r = np.take_along_axis(solutions, pick, axis=-2)[..., 0, :]
        other = np.take_along_axis(solutions, 1 - pick, axis=-2)[..., 0, :]
        chosen_spread = np.take_along_axis(spread, pick, axis=-2)[..., 0, :]
        chosen_cost = np.take_along_axis(costs, swap[..., None].astype(np.intp), axis=-1)[..., 0]
        birefringence = np.sqrt((r**2).sum(-1))
        birefringence_sd = sigma * np.sqrt(chosen_spread[..., 1])
        birefringence_sd = np.where(np.isnan(birefringence_sd), 0, birefringence_sd)
        uncertainty = np.degrees(sigma * np.sqrt(chosen_spread[..., 0]))
        uncertainty = np.minimum(np.where(np.isnan(uncertainty), 0, uncertainty), 90.0)
        low = enough & (
            (birefringence <= 0)
            | (birefringence < min_birefringence)
            | (np.isfinite(birefringence_sd) & (birefringence < min_significance * birefringence_sd))
        )
        known = enough & ~low
        axis = axial.without_sign(np.where(known[..., None], r / birefringence[..., None], np.nan))
        inplane = axial.wrap(np.degrees(np.arctan2(axis[..., 1], axis[..., 0])))
        thruplane = np.degrees(np.arcsin(np.clip(axis[..., 2], -1, 1)))
        other_axis = axial.without_sign(
            np.where(known[..., None], other / np.sqrt((other**2).sum(-1))[..., None], np.nan)
        )
        flags = np.zeros(enough.shape, np.uint8)
        for flag, where in (
            (AxisFlag.NO_DATA, ~enough),
            (AxisFlag.LOW_BIREFRINGENCE, low),
            (AxisFlag.AMBIGUOUS, ambiguous & known),
            (AxisFlag.NEAR_VERTICAL, known & (np.abs(thruplane) > vertical_deg)),
            (AxisFlag.UNCERTAIN, known & (uncertainty > max_uncertainty_deg)),
        ):
            flags |= np.where(where, np.uint8(flag), np.uint8(0))

    def image(values: NDArray[Any], where: NDArray[np.bool_]) -> Float:
        return np.where(where, values, np.nan).astype(np.float32)

    return AxisField(
        axis=axis.astype(np.float32),
        birefringence=image(birefringence, enough),
        inplane_deg=image(inplane, known),
        thruplane_deg=image(thruplane, known),
        uncertainty_deg=image(uncertainty, known),
        birefringence_uncertainty=image(birefringence_sd, enough),
        residual=image(np.sqrt(np.maximum(chosen_cost, 0) / freedom), enough),
        noise=image(sigma, enough),
        flags=flags,
        alternative=other_axis.astype(np.float32),
    )

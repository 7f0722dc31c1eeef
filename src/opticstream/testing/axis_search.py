"""The per-pixel searches that the fibre-axis solver is measured against: slow, simple, from the formula alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def beam_directions(tilt_deg: ArrayLike, tilt_axis_deg: ArrayLike = 90.0, /) -> tuple[Array, Array]:
    """Return beam directions (beams, 3) and their image axes (beams, 2, 3), by Rodrigues' formula."""
    tilts, axes = np.broadcast_arrays(np.radians(np.atleast_1d(tilt_deg)), np.radians(np.asarray(tilt_axis_deg, float)))
    beams, images = [], []
    for tilt, axis in zip(tilts, axes, strict=True):
        a = np.array([np.cos(axis), np.sin(axis), 0.0])

        def turn(v: Array, a: Array = a, tilt: float = float(tilt)) -> Array:
            return np.asarray(
                v * np.cos(tilt) + np.cross(a, v) * np.sin(tilt) + a * (a @ v) * (1 - np.cos(tilt)), float
            )

        beams.append(turn(np.array([0.0, 0.0, 1.0])))
        images.append([turn(np.array([1.0, 0.0, 0.0])), turn(np.array([0.0, 1.0, 0.0]))])
    return np.array(beams), np.array(images)


def measured_vectors(orientation_deg: ArrayLike, birefringence: ArrayLike, images: Array, /) -> Array:
    """Return the measured vectors in space, shape (pixels, beams, 3), from maps of shape (beams, pixels)."""
    angle, length = np.radians(np.asarray(orientation_deg, float)), np.asarray(birefringence, float)
    along = np.cos(angle)[..., None] * images[:, None, 0] + np.sin(angle)[..., None] * images[:, None, 1]
    return np.asarray(np.swapaxes(length[..., None] * along, 0, 1))


def cost_of_axis(r: ArrayLike, measured: Array, beams: Array, /) -> Array:
    """Return the squared misfit of vectors r (..., 3) to measured vectors (..., beams, 3), best sign of each beam."""
    vector = np.asarray(r, float)
    along = np.einsum("...k,nk->...n", vector, beams)
    across = vector[..., None, :] - along[..., None] * beams
    norm2 = (vector**2).sum(-1)[..., None]
    seen = across * np.sqrt(np.clip(1 - along**2 / np.maximum(norm2, 1e-300), 0, None))[..., None]
    plus = ((measured - seen) ** 2).sum(-1)
    minus = ((measured + seen) ** 2).sum(-1)
    return np.asarray(np.minimum(plus, minus).sum(-1))


def best_of_searches(measured: Array, beams: Array, /, *, starts: int = 150, searches: int = 8) -> tuple[Array, Array]:
    """Return the best vectors (pixels, 3) and costs of compass searches from the best of many directions.

    For a direction the best length follows in closed form, so that each search is over two angles; steps shrink from
    12 degrees to a ten-millionth of one.
    """
    i = np.arange(starts) + 0.5
    z = 1 - i / starts
    spread = np.stack([np.sqrt(1 - z * z) * np.cos(np.pi * (1 + 5**0.5) * i), np.sqrt(1 - z * z)
                       * np.sin(np.pi * (1 + 5**0.5) * i), z], axis=1)  # fmt: skip
    # Between and close to the beams minima lie close together.
    extra = []
    for a in range(len(beams)):
        for b in range(a):
            for t in np.linspace(-1.0, 2.0, 13):
                v = (1 - t) * beams[a] + t * beams[b]
                extra.append(v / np.linalg.norm(v))
    candidates = np.array([*spread, *extra])
    rank = np.stack(
        [_direction_cost(np.broadcast_to(c, (len(measured), 3)), measured, beams)[0] for c in candidates], axis=1
    ).argsort(axis=1, kind="stable")
    best = np.full(len(measured), np.inf)
    result = np.zeros((len(measured), 3))
    for k in range(searches):
        direction, cost, length = _compass_search(candidates[rank[:, k]].copy(), measured, beams)
        better = cost < best
        best[better] = cost[better]
        result[better] = direction[better] * length[better, None]
    return result, best


def _direction_cost(direction: Array, measured: Array, beams: Array) -> tuple[Array, Array]:
    along = np.einsum("pk,nk->pn", direction, beams)
    across = direction[:, None, :] - along[..., None] * beams
    seen = across * np.sqrt(np.clip(1 - along**2, 0, None))[..., None]
    power = (seen**2).sum((1, 2))
    overlap = np.abs((seen * measured).sum(-1)).sum(-1)
    return (measured**2).sum((1, 2)) - overlap**2 / np.maximum(power, 1e-300), overlap / np.maximum(power, 1e-300)


def _compass_search(direction: Array, measured: Array, beams: Array) -> tuple[Array, Array, Array]:
    cost, length = _direction_cost(direction, measured, beams)
    step = np.full(len(direction), 0.2)
    for _ in range(160):
        helper = np.where(np.abs(direction[:, :1]) < 0.7, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
        first = np.cross(direction, helper)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        second = np.cross(direction, first)
        moved = np.zeros(len(direction), bool)
        for way in (first, -first, second, -second):
            trial = direction + step[:, None] * way
            trial /= np.linalg.norm(trial, axis=1, keepdims=True)
            trial_cost, trial_length = _direction_cost(trial, measured, beams)
            better = trial_cost < cost
            direction[better], cost[better], length[better] = trial[better], trial_cost[better], trial_length[better]
            moved |= better
        step[~moved] *= 0.5
        if step.max() < 2e-9:
            break
    return direction, cost, length


def nelder_mead(measured: Array, beams: Array, start: Array, /) -> tuple[Array, float]:
    """Return vector and cost that SciPy's Nelder-Mead finds for one pixel, as the prior art searched."""
    from scipy.optimize import minimize

    def cost(r: Any) -> float:
        return float(cost_of_axis(r, measured, beams))

    found = minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14, "maxiter": 2000})
    return np.asarray(found.x, float), float(found.fun)

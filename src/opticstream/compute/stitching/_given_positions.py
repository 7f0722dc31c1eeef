"""Positions that another program found, held against the stage, which places the tiles that it placed badly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.stitching._grid import neighbour_pairs
from opticstream.compute.stitching._stage_model import stage_features

Array = NDArray[np.float64]
_LEAST_SIGMA_PX = 0.5
_SIGMAS = 5.0
_LEAST_LIMIT_PX = 3.0


@dataclass(frozen=True, eq=False)
class CheckedPositions:
    """Positions after the check.

    Attributes
    ----------
    positions_px : ndarray, shape (tiles, 2)
        Given positions; where the stage put them for tiles in `by_stage_only`.
    by_stage_only : ndarray of bool, shape (tiles,)
        Tiles without a plausible link to a neighbour.
    island : ndarray of int, shape (tiles,)
        Number of the group of tiles that hang together by plausible links.
    pairs : ndarray of int, shape (links, 2)
        Neighbours.
    plausible : ndarray of bool, shape (links,)
        Links that agree with the stage.
    jitter_px : ndarray, shape (2,)
        Standard deviation of the plausible links about the stage model, along x and y.
    """

    positions_px: Array
    by_stage_only: NDArray[np.bool_]
    island: NDArray[np.intp]
    pairs: NDArray[np.intp]
    plausible: NDArray[np.bool_]
    jitter_px: Array


def positions_held_against_stage(
    given_px: ArrayLike,
    nominal_px: ArrayLike,
    /,
    *,
    tile_shape: tuple[int, int],
    margin_px: float,
    usable: ArrayLike | None = None,
    line_parity: ArrayLike | None = None,
) -> CheckedPositions:
    """Return given positions, with implausible tiles moved to where the stage put them.

    A link between neighbours is plausible if its step is within `margin_px` of the nominal one, and near that of a
    stage whose error is affine with a backlash, which is fitted to the links. Groups of tiles that hang together by
    such links keep their relative positions; each is put where the stage puts it as a whole, the largest one first. All
    other tiles are placed by the stage.

    Parameters
    ----------
    given_px : array_like, shape (tiles, 2)
        Positions from another program.
    nominal_px : array_like, shape (tiles, 2)
        Where the stage was sent.
    tile_shape : tuple of int
        Size of a tile.
    margin_px : float
        Largest error of the step between neighbours that is believed.
    usable : array_like of bool, shape (tiles,), optional
        Tiles that show anything; the others are placed by the stage.
    line_parity : array_like, shape (tiles,), optional
        -0.5 or +0.5 by the direction of travel.

    Examples
    --------
    The third tile was left at (0, 0); the stage takes steps of 82 instead of 80:

    >>> nominal = [(0, 0), (80, 0), (160, 0), (240, 0), (320, 0)]
    >>> given = [(5, 5), (87, 5), (0, 0), (251, 5), (333, 5)]
    >>> checked = positions_held_against_stage(given, nominal, tile_shape=(100, 100), margin_px=16)
    >>> checked.positions_px[:, 0].round(3).tolist(), checked.by_stage_only.tolist()
    ([5.0, 87.0, 169.0, 251.0, 333.0], [False, False, True, False, False])
    """
    given, nominal = (np.asarray(one, np.float64).reshape(-1, 2) for one in (given_px, nominal_px))
    shows = np.ones(len(given), bool) if usable is None else np.asarray(usable, bool)
    pairs, _ = neighbour_pairs(nominal, tile_shape=tile_shape)
    features = stage_features(nominal, line_parity)
    deviation = given - nominal
    step = deviation[pairs[:, 1]] - deviation[pairs[:, 0]]
    change = features[pairs[:, 1]] - features[pairs[:, 0]]
    candidate = shows[pairs].all(axis=1) & np.isfinite(step).all(axis=1) & (np.abs(step) <= margin_px).all(axis=1)
    parameters = _fitted(change[candidate], step[candidate])
    residual = step - change @ parameters
    sigma = np.full(2, _LEAST_SIGMA_PX)
    if candidate.any():
        sigma = np.maximum(1.4826 * np.median(np.abs(residual[candidate]), axis=0), _LEAST_SIGMA_PX)
    near = (np.abs(residual) <= np.maximum(_SIGMAS * sigma, _LEAST_LIMIT_PX)).all(axis=1)
    plausible = np.asarray(candidate & near, np.bool_)
    island = _islands(len(given), pairs[plausible])
    members = np.bincount(island, minlength=len(given))
    by_stage: NDArray[np.bool_] = np.asarray(members[island] == 1, bool)
    expected = nominal + features @ parameters
    positions = expected.copy()
    order = np.argsort(-members, kind="stable")
    origin = np.zeros(2)
    for rank, number in enumerate(order[members[order] > 1]):
        inside = island == number
        place = np.median(given[inside] - expected[inside], axis=0)
        if rank == 0:
            origin = place
        positions[inside] = given[inside] - place
    positions += origin
    if len(given) == 1:
        by_stage = np.zeros(1, bool)
        positions = given.copy()
    return CheckedPositions(positions, by_stage, island, pairs, plausible, sigma)


def _fitted(change: Array, step: Array) -> Array:
    """Return the parameters of the stage's error by least absolute residuals, shape (features, 2)."""
    k = change.shape[1]
    parameters = np.zeros((k, 2))
    if k == 0 or len(step) == 0:
        return parameters
    norm = np.maximum(np.abs(change).max(axis=0), 1e-12)
    design = change / norm
    ridge = 1e-6 * np.eye(k)
    for c in (0, 1):
        weight = np.ones(len(step))
        for _ in range(50):
            gram = (design * weight[:, None]).T @ design + ridge
            parameters[:, c] = np.linalg.solve(gram, (design * weight[:, None]).T @ step[:, c])
            weight = 1 / np.maximum(np.abs(step[:, c] - design @ parameters[:, c]), 0.1)
    return np.asarray(parameters / norm[:, None])


def _islands(tiles: int, links: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the number of the connected group of each tile."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(tiles, tiles))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)

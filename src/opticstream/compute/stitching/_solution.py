"""The positions of all tiles together: robust least squares over the links, and how well the result is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._evidence import Evidence, pick
from opticstream.compute.stitching._propagation import LinkBeliefs, beliefs_from_surfaces, limited_information
from opticstream.compute.stitching._ruler import FAR, Ruler
from opticstream.compute.stitching._solver import LinkSystem, Solution
from opticstream.compute.stitching._stage_model import StageModel, rounding_of

Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]

FLOOR_PX = 0.05
SHARP_PX2 = 0.5
"""A link whose belief varies by less than this has one narrow peak, to be measured to a fraction of a pixel."""
PREDICTION_PX2 = 0.5
"""Added to the variance of the expectation before peaks are chosen around it."""
ALIGNABLE_PX2 = 1.0
"""Variance of a link's shift along its worst direction up to which its overlap can be aligned to the nearest pixel."""
ROUNDS = 2
"""How often links without a clear shift are looked for where all others expect them."""
FINDABLE_PX2 = 36.0
"""Largest variance of the expectation of the other links up to which a link is searched."""
EXTRA_VARIANCE = 4.0
"""Factor on the first guess of the stage's variance: if that is too small, clear links look like outliers."""
OUTLIER_CHI2 = 9.21
"""Squared residual in sigmas, two dimensions, that one good link in a hundred exceeds."""


@dataclass(frozen=True)
class Links:
    """What was measured between neighbouring tiles.

    Attributes
    ----------
    pairs : ndarray of int, shape (links, 2)
        First and second tile; the second lies at the larger coordinate.
    axis : ndarray of int, shape (links,)
        0 where the second follows along x, 1 along y.
    displacement_px : ndarray, shape (links, 2)
        Measured position of the second tile minus that of the first. Meaningless where `weight` is 0.
    z : ndarray, shape (links,)
        Correlation at the chosen shift in units of its noise.
    information : ndarray, shape (links, 2, 2)
        Inverse covariance of the displacement, in 1/px^2.
    weight : ndarray, shape (links,)
        0 (no peak, or an outlier) to 1 (fully trusted) in the final solution.
    residual_px : ndarray, shape (links, 2)
        Measured displacement minus that of the final positions; NaN where there was no peak.
    """

    pairs: NDArray[np.intp]
    axis: NDArray[np.intp]
    displacement_px: Array
    z: Array
    information: Array
    weight: Array
    residual_px: Array

    @property
    def clear(self) -> NDArray[np.bool_]:
        """Links that hold and are known to about a pixel along both axes."""
        if not len(self.pairs):
            return np.zeros(0, bool)
        return np.asarray((self.weight > 0.5) & (np.linalg.eigvalsh(self.information)[:, 0] > 1))


@dataclass(frozen=True)
class TilePositions:
    """Positions of all tiles and how well they are known.

    Attributes
    ----------
    positions_px : ndarray, shape (tiles, 2)
        Position (x, y) of every tile's first pixel.
    uncertainty_px : ndarray, shape (tiles, 2)
        Standard error of the position within the mosaic (its mean is taken as known), along x and y.
    by_stage_only : ndarray of bool, shape (tiles,)
        True if no trusted link determines the tile, so that its position is that of the stage model.
    island : ndarray of int, shape (tiles,)
        Number of the connected group of trusted links that the tile belongs to; -1 where `by_stage_only`. Groups are
        tied to each other by the stage model only.
    jitter_px : ndarray, shape (2,)
        Standard deviation of the stage about its model, along x and y.
    lattice : ndarray, shape (2, 2)
        Row ``a`` is the displacement per nominal pixel along axis ``a`` (the identity for a perfect stage).
    links : Links
        The evidence.
    """

    positions_px: Array
    uncertainty_px: Array
    by_stage_only: NDArray[np.bool_]
    island: NDArray[np.intp]
    jitter_px: Array
    lattice: Array
    links: Links


def link_beliefs(evidence: Evidence, system: LinkSystem, nominal: Array, stage: StageModel) -> LinkBeliefs:
    expected, variance = stage.prediction(evidence)
    return beliefs_from_surfaces(
        evidence.surface,
        system,
        expected_px=expected,
        variance_px2=variance * EXTRA_VARIANCE,
        offset_px=rounding_of(evidence, nominal),
        jitter_px=np.clip(stage.link_sigma_px.mean(axis=0) / np.sqrt(2), 0.5, None),
    )


def is_sharp(beliefs: LinkBeliefs) -> NDArray[np.bool_]:
    return np.asarray(np.linalg.eigvalsh(beliefs.covariance_px2)[:, 1] < SHARP_PX2)


def says_something(beliefs: LinkBeliefs) -> NDArray[np.bool_]:
    """Return the links whose surface has, in one direction at least, half as much information as the stage model."""
    return np.asarray(np.linalg.eigvalsh(beliefs.information)[:, 1] * (beliefs.jitter_px**2).mean() > 0.5)


def solved(
    evidence: Evidence,
    nominal: Array,
    features: Array,
    system: LinkSystem,
    beliefs: LinkBeliefs,
    ruler: Ruler,
) -> TilePositions:
    pairs = evidence.pairs
    rounding = rounding_of(evidence, nominal)
    pick(evidence, beliefs.expected_px, np.einsum("lii->li", beliefs.expected_px2) + PREDICTION_PX2)
    sharp = evidence.accepted & is_sharp(beliefs)
    jitter = beliefs.jitter_px
    prior = np.tile(1 / jitter**2, (len(nominal), 1))
    # A link that is not sharp counts with the information that its surface adds to the expectation.
    shift = np.where(sharp[:, None], evidence.shift, beliefs.shift_px)
    information = np.where(sharp[:, None, None], evidence.information, beliefs.information)
    showing = ruler.showing(beliefs.expected_px + evidence.nominal)
    telling = says_something(beliefs) & showing
    sharp &= showing
    where = np.where(sharp[:, None], evidence.shift, beliefs.believed_px)
    spread = np.linalg.eigvalsh(beliefs.covariance_px2)[:, 1]
    measured = sharp.copy()
    chosen = np.flatnonzero(sharp | (telling & (spread < ALIGNABLE_PX2)))
    found = ruler.measure(chosen, where[chosen] + evidence.nominal[chosen], sharp[chosen])
    for step in range(ROUNDS + 1):
        at, found_information, good = found[0] - evidence.nominal[chosen], found[1], found[2]
        good = good & (np.abs(at - where[chosen]).max(axis=1, initial=0) < (2 if step == 0 else FAR))
        shift[chosen[good]], information[chosen[good]] = at[good], found_information[good]
        measured[chosen[good]] = True
        accepted = measured | telling
        limited = limited_information(information, FLOOR_PX**2)
        solution, weight = _robust(system, shift - rounding, limited, accepted, measured, prior)
        if step == ROUNDS:
            break
        final = system.solve(shift - rounding, limited * weight[:, None, None], prior, with_covariance=True)
        predicted = final.deviation_px[pairs[:, 1]] - final.deviation_px[pairs[:, 0]] + rounding
        expected, precision = _without_own(predicted, final.link_covariance_px2, shift, limited * weight[:, None, None])
        largest_variance = 1 / np.linalg.eigvalsh(precision)[:, 0]
        moved = np.abs(expected - where).max(axis=1, initial=0) > 1
        wanted = showing & (~measured | (weight < 0.5)) & (moved | (step == 0))
        chosen = np.flatnonzero(wanted & (largest_variance < FINDABLE_PX2))
        if len(chosen) == 0:
            break
        where[chosen] = expected[chosen]
        found = ruler.search(chosen, expected[chosen] + evidence.nominal[chosen], precision[chosen])
    evidence.accepted, evidence.shift, information = accepted, shift, limited
    held = np.zeros(len(nominal), bool)
    held[pairs[weight > 0.5].ravel()] = True
    shift = evidence.shift - rounding
    residual = _residual(system, solution, shift)
    information = information / _overrating(residual, information, weight, held)[:, None, None]
    final = system.solve(shift, information * weight[:, None, None], prior, with_covariance=True)
    # The position of the whole mosaic cannot be measured and does not matter: its variance is left out.
    covariance = final.covariance_px2 - np.diag(jitter**2) / len(nominal)
    island = _islands(len(nominal), pairs[weight > 0.1])
    links = Links(
        pairs=pairs,
        axis=evidence.axis,
        displacement_px=evidence.shift + evidence.nominal,
        z=evidence.z,
        information=information,
        weight=weight,
        residual_px=np.where(evidence.accepted[:, None], residual, np.nan),
    )
    lattice = np.eye(2)
    slope = _lattice_slope(nominal, features @ solution.stage)
    return TilePositions(
        positions_px=nominal + solution.deviation_px,
        uncertainty_px=np.sqrt(np.maximum(np.einsum("tii->ti", covariance), FLOOR_PX**2)),
        by_stage_only=island < 0,
        island=island,
        jitter_px=jitter,
        lattice=lattice + slope,
        links=links,
    )


def _robust(
    system: LinkSystem,
    shift: Array,
    information: Array,
    accepted: NDArray[np.bool_],
    measured: NDArray[np.bool_],
    prior: Array,
) -> tuple[Solution, Array]:
    """Solve with graduated non-convexity (Geman-McClure): from all links trusted to outliers ignored.

    Only a `measured` link can be an outlier. What the others say was weighed against all the rest already, each with
    its chance of meaning nothing; what they leave as residuals is no reason to believe them less.
    """
    weight = accepted.astype(np.float64)
    solution = system.solve(shift, information * weight[:, None, None], prior)
    chi2 = _chi2(system, solution, shift, information)
    mu = max(2 * float(chi2[accepted & measured].max(initial=0)) / OUTLIER_CHI2, 1.0)
    while True:
        doubted = (mu * OUTLIER_CHI2 / (chi2 + mu * OUTLIER_CHI2)) ** 2
        weight = np.where(accepted, np.where(measured, doubted, 1.0), 0.0)
        solution = system.solve(shift, information * weight[:, None, None], prior)
        chi2 = _chi2(system, solution, shift, information)
        if mu <= 1.0:
            return solution, weight
        mu = max(mu / 1.6, 1.0)


def _chi2(system: LinkSystem, solution: Solution, shift: Array, information: Array) -> Array:
    residual = _residual(system, solution, shift)
    return np.asarray(np.einsum("li,lij,lj->l", residual, information, residual))


def _residual(system: LinkSystem, solution: Solution, shift: Array) -> Array:
    deviation = solution.deviation_px
    return shift - (deviation[system.pairs[:, 1]] - deviation[system.pairs[:, 0]])


def _without_own(predicted: Array, covariance: Array, shift: Array, information: Array) -> tuple[Array, Array]:
    """Return the expectation of all other links for each link, and its inverse covariance."""
    whole = np.linalg.inv(covariance)
    precision = whole - information
    value, vector = np.linalg.eigh(0.5 * (precision + precision.transpose(0, 2, 1)))
    precision = np.einsum("lij,lj,lkj->lik", vector, np.maximum(value, 1e-3), vector)
    force = np.einsum("lij,lj->li", whole, predicted) - np.einsum("lij,lj->li", information, shift)
    return np.linalg.solve(precision, force[..., None])[..., 0], np.asarray(precision, np.float64)


def _overrating(residual: Array, information: Array, weight: Array, held: NDArray[np.bool_]) -> Array:
    """Return the factor by which the information of every link is too large, from the residuals of clear links.

    The solution bends towards its links: of each residual's square only the share of redundant links is left. Faint
    links keep the information that their surfaces gave them.
    """
    clear = (weight > 0.5) & (np.linalg.eigvalsh(information)[:, 0] > 1)
    redundant = 1 - max(int(held.sum()) - 1, 0) / max(int((weight > 0.5).sum()), 1)
    factor = np.ones(len(weight))
    if clear.sum() >= 20 and redundant > 0.2:
        chi2 = np.einsum("li,lij,lj->l", residual, information, residual)[clear]
        # The median of chi-square with two degrees of freedom is 1.386.
        factor[clear] = max(float(np.median(chi2)) / (1.386 * redundant), 0.05)
    return factor


def _lattice_slope(nominal: Array, deviation: Array) -> Array:
    centred = nominal - nominal.mean(axis=0)
    return np.asarray(np.linalg.pinv(centred, rcond=1e-9) @ deviation)


def _islands(tiles: int, pairs: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the number of the connected group of every tile, -1 for tiles without a link."""
    group = np.arange(tiles)

    def root(tile: int) -> int:
        while group[tile] != tile:
            group[tile] = group[group[tile]]
            tile = int(group[tile])
        return tile

    for a, b in pairs:
        one, other = root(int(a)), root(int(b))
        group[max(one, other)] = min(one, other)
    roots = np.array([root(t) for t in range(tiles)], np.intp)
    linked = np.zeros(tiles, bool)
    linked[pairs.ravel()] = True
    names = {r: number for number, r in enumerate(sorted(set(roots[linked].tolist())))}
    return np.array([names[int(r)] if here else -1 for r, here in zip(roots, linked, strict=True)], np.intp)


def without_links(nominal: Array, pairs: NDArray[np.intp], axis: NDArray[np.intp], spread_px: float) -> TilePositions:
    empty = np.empty((0, 2))
    return TilePositions(
        positions_px=nominal.copy(),
        uncertainty_px=np.full_like(nominal, spread_px / 2 if len(nominal) > 1 else 0.0),
        by_stage_only=np.ones(len(nominal), bool),
        island=np.full(len(nominal), -1, np.intp),
        jitter_px=np.full(2, np.nan),
        lattice=np.eye(2),
        links=Links(pairs, axis, empty, np.empty(0), np.empty((0, 2, 2)), np.empty(0), empty),
    )

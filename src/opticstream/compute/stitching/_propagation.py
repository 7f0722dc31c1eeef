"""The shift of each link from all links together: expectation propagation over their correlation surfaces.

A faint overlap has several peaks, or one that is broad. Its surface is kept whole: seen from all other links (the
cavity) a shift is expected somewhere with some scatter; the surface times that expectation gives the link's belief, and
what the belief adds to the expectation is the link's message to the others. Clear links are certain at once, weak ones
become sure, or stay vague, as their neighbours decide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._solver import LinkSystem

Array = NDArray[np.float64]

OUTLIER_SHARE = 0.001
"""Prior share of links whose surface contains no information."""
GRID_VARIANCE_PX2 = 0.2
"""Surfaces are sampled at whole pixels: no message is taken to be sharper than that."""
NARROWER = 0.9
"""A belief contains information if its variance is less than this share of the expectation's."""
STEPS = 8
DAMPING = 0.6
SETTLED_PX = 0.02
LEAST_JITTER_PX = 0.5


@dataclass(frozen=True)
class LinkBeliefs:
    """Every link's shift as all evidence together sees it.

    Attributes
    ----------
    expected_px, expected_px2 : ndarray, shape (links, 2) and (links, 2, 2)
        Mean and covariance that all other links and the stage predict.
    believed_px, covariance_px2 : ndarray, shape (links, 2) and (links, 2, 2)
        Mean and covariance of the shift with the link's own surface.
    shift_px, information : ndarray, shape (links, 2) and (links, 2, 2)
        What the surface adds to the prediction: a measurement and its inverse covariance (zero: nothing).
    jitter_px : ndarray, shape (2,)
        Standard deviation of tiles about the stage model, along x and y.
    """

    expected_px: Array
    expected_px2: Array
    believed_px: Array
    covariance_px2: Array
    shift_px: Array
    information: Array
    jitter_px: Array


def beliefs_from_surfaces(
    surface: NDArray[np.float32],
    system: LinkSystem,
    /,
    *,
    expected_px: Array,
    variance_px2: Array,
    offset_px: Array,
    jitter_px: Array,
) -> LinkBeliefs:
    """Return the belief about each link's shift.

    Parameters
    ----------
    surface : ndarray, shape (links, 2*mx+1, 2*my+1)
        ``z`` at every shift: half its square is the log-likelihood ratio against chance. Not finite: not looked at.
    system : LinkSystem
        Which tiles the links tie, and what their stage may do.
    expected_px, variance_px2 : ndarray, shape (links, 2)
        First guess of every link's shift and its variance along x and y.
    offset_px : ndarray, shape (links, 2)
        What is added to the difference of two tiles' deviations to make a shift.
    jitter_px : ndarray, shape (2,)
        First guess of the stage's jitter; it is estimated again as tiles become known.

    Notes
    -----
    Minka, T. P. (2001), Expectation propagation for approximate Bayesian inference. The Gaussian marginals that the
    cavities need are exact (`LinkSystem`); only the beliefs' shape is approximated, by two moments.
    """
    evidence = _log_evidence(surface)
    mean, precision = expected_px, _diagonal(1 / variance_px2)
    information, pull = np.zeros_like(precision), np.zeros_like(mean)
    jitter = np.asarray(jitter_px, np.float64)
    first, second = system.pairs[:, 0], system.pairs[:, 1]
    believed = covariance = shift = np.empty(0)
    for step in range(STEPS):
        believed, covariance = _moments(evidence, mean, precision)
        said, said_pull = _message(believed, covariance, mean, precision)
        share = 1.0 if step == 0 else DAMPING
        information += share * (said - information)
        pull += share * (said_pull - pull)
        shift = _solved(information + 1e-6 * np.eye(2), pull)
        prior = np.tile(1 / jitter**2, (len(system.features), 1))
        solution = system.solve(shift - offset_px, information, prior, with_covariance=True)
        marginal = _inverse(solution.link_covariance_px2)
        difference = solution.deviation_px[second] - solution.deviation_px[first] + offset_px
        precision = _positive(marginal - information, least=1e-4)
        before = mean
        force = _times(marginal, difference) - _times(information, shift)
        mean = _solved(precision, force)
        jitter = _jitter(system, solution.deviation_px, solution.stage, solution.covariance_px2, jitter)
        if np.abs(mean - before).max(initial=0) < SETTLED_PX:
            break
    return LinkBeliefs(mean, _inverse(precision), believed, covariance, shift, information, jitter)


def _log_evidence(surface: NDArray[np.float32]) -> Array:
    """Return the logarithm of every shift's probability by the surface alone, floored by the share of outliers."""
    flat = surface.reshape(len(surface), -1).astype(np.float64)
    # A shift outside the surface is as likely as one that looks like chance.
    exponent = np.where(np.isfinite(flat), 0.5 * np.maximum(flat, 0) ** 2, 0.0)
    exponent -= exponent.max(axis=1, keepdims=True)
    probability = np.exp(exponent)
    probability *= (1 - OUTLIER_SHARE) / probability.sum(axis=1, keepdims=True)
    return np.asarray(np.log(probability + OUTLIER_SHARE / flat.shape[1]).reshape(surface.shape))


def _moments(evidence: Array, mean: Array, precision: Array) -> tuple[Array, Array]:
    """Return mean and covariance of surfaces times Gaussians."""
    mx, my = (n // 2 for n in evidence.shape[1:])
    x, y = np.arange(-mx, mx + 1.0), np.arange(-my, my + 1.0)
    dx, dy = x[None, :] - mean[:, :1], y[None, :] - mean[:, 1:]
    exponent = evidence - (precision[:, 0, 1, None] * dx)[:, :, None] * dy[:, None, :]
    exponent -= (0.5 * precision[:, 0, 0, None] * dx**2)[:, :, None]
    exponent -= (0.5 * precision[:, 1, 1, None] * dy**2)[:, None, :]
    exponent -= exponent.max(axis=(1, 2), keepdims=True)
    mass = np.exp(exponent)
    mass /= mass.sum(axis=(1, 2), keepdims=True)
    along_x, along_y = mass.sum(axis=2), mass.sum(axis=1)
    centre = np.stack([along_x @ x, along_y @ y], axis=1)
    cross = ((mass @ y) @ x) - centre[:, 0] * centre[:, 1]
    variance = np.stack([along_x @ x**2, along_y @ y**2], axis=1) - centre**2
    covariance = _diagonal(np.maximum(variance, 1e-3))
    covariance[:, 0, 1] = covariance[:, 1, 0] = cross
    return centre, covariance


def _message(believed: Array, covariance: Array, mean: Array, precision: Array) -> tuple[Array, Array]:
    """Return information, and information times shift, that turn an expectation into a belief.

    Along directions in which the belief is not narrower than the expectation (the surface has peaks on both sides) a
    Gaussian can say nothing, and does.
    """
    root = np.asarray(np.linalg.cholesky(precision), np.float64)  # makes the expectation round: variance 1 about 0
    narrow, axes = np.linalg.eigh(root.transpose(0, 2, 1) @ covariance @ root)
    direction = np.asarray(axes, np.float64)
    says = narrow < NARROWER
    share = np.where(says, 1 - np.maximum(narrow, 1e-6), 1)
    off = np.einsum("lji,lj->li", direction, _times(root.transpose(0, 2, 1), believed - mean)) / share
    turn = root @ direction
    gain = np.where(says, share / np.maximum(narrow, 1e-6), 0.0)
    information = np.asarray(np.einsum("lij,lj,lkj->lik", turn, gain, turn), np.float64)
    shift = mean + _solved(turn.transpose(0, 2, 1), np.where(says, off, 0))
    information = limited_information(information, GRID_VARIANCE_PX2)
    return information, _times(information, shift)


def _jitter(system: LinkSystem, deviation: Array, stage: Array, covariance: Array, before: Array) -> Array:
    """Return the likeliest jitter (one step of expectation maximisation over the tiles with precise links)."""
    variance = np.einsum("tii->ti", covariance)
    known = (variance < 0.5 * before**2).all(axis=1)
    if known.sum() < 6:
        return before
    square = (deviation - system.features @ stage)[known] ** 2 + variance[known]
    return np.asarray(np.maximum(np.sqrt(square.mean(axis=0)), LEAST_JITTER_PX))


def limited_information(information: Array, variance_px2: float, /) -> Array:
    """Return the information of shifts whose covariance is larger by `variance_px2` along both axes."""
    value, vector = np.linalg.eigh(information)
    value = np.maximum(value, 0)
    value = value / (1 + variance_px2 * value)
    return np.asarray(np.einsum("lij,lj,lkj->lik", vector, value, vector))


def _positive(matrix: Array, *, least: float = 0.0) -> Array:
    """Return symmetric matrices with their eigenvalues raised to at least `least`."""
    value, vector = np.linalg.eigh(matrix)
    return np.asarray(np.einsum("lij,lj,lkj->lik", vector, np.maximum(value, least), vector))


def _inverse(matrix: Array) -> Array:
    return np.asarray(np.linalg.inv(matrix), np.float64)


def _solved(matrix: Array, vector: Array) -> Array:
    return np.asarray(np.linalg.solve(matrix, vector[..., None])[..., 0], np.float64)


def _times(matrix: Array, vector: Array) -> Array:
    return np.asarray(np.einsum("lij,lj->li", matrix, vector))


def _diagonal(value: Array) -> Array:
    matrix = np.zeros((*value.shape, 2))
    matrix[:, 0, 0], matrix[:, 1, 1] = value[:, 0], value[:, 1]
    return matrix

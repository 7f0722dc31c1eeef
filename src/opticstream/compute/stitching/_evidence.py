"""Evidence from the overlaps of neighbouring tiles: a correlation surface per link, and the peak chosen from it.

Every link's surface is kept instead of its highest peak alone, until the stage and all other links have had their say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._correlation import CrossSpectra, cross_spectra, likelihood_surfaces, ring_frequency
from opticstream.compute.stitching._peaks import quadratic_peaks
from opticstream.compute.stitching._tilefilter import FilteredTiles

Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]

CLEAR_Z = 6.0
SMOOTH_SIGMA_PX = 2.0
EMPTY_SHARE = 0.03
"""A tile with much less than this share of the usual contrast counts as empty."""
FAINT_FLOOR = 0.1
"""An overlap with much less than this share of the usual contrast is not used: it shows the halo of a nearby edge."""


@dataclass
class Evidence:
    """Correlation surfaces of all links on a common window, and the peaks chosen from them."""

    pairs: NDArray[np.intp]
    axis: NDArray[np.intp]
    nominal: Array  # integer displacement that shift 0 stands for
    margin: tuple[int, int]
    surface: FloatArray
    coefficients: list[FloatArray]  # one per kind of image
    likelihoods: list[FloatArray]
    shift: Array = field(default_factory=lambda: np.empty((0, 2)))
    z: Array = field(default_factory=lambda: np.empty(0))
    information: Array = field(default_factory=lambda: np.empty((0, 2, 2)))
    accepted: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))


def empty_tiles(image: FilteredTiles, /) -> NDArray[np.bool_]:
    """Return which tiles, shape (tiles,), show much less contrast than the others."""
    shown = contrast(image.values)
    return np.asarray(shown <= _least_contrast(shown))


def contrast(image: FloatArray) -> Array:
    """Return the mean square of every tile, shape (tiles,)."""
    return np.einsum("txy,txy->t", image, image, optimize=True).astype(np.float64) / (image.shape[1] * image.shape[2])


def _least_contrast(shown: Array) -> float:
    return EMPTY_SHARE * float(np.percentile(shown[shown > 0], 75)) if (shown > 0).any() else 0.0


def link_spectra(
    image: FloatArray, nominal: Array, pairs: NDArray[np.intp], axis: NDArray[np.intp], margin_px: int, workers: int
) -> list[CrossSpectra]:
    size = np.array(image.shape[1:])
    noise_density = FAINT_FLOOR / EMPTY_SHARE * _least_contrast(contrast(image))
    displacement = np.rint(nominal[pairs[:, 1]] - nominal[pairs[:, 0]]).astype(np.intp)
    parts = []
    for direction in (0, 1):
        links = np.flatnonzero(axis == direction)
        if len(links) == 0:
            continue
        overlap = int((size[direction] - displacement[links, direction]).min())
        along = max(2, min(margin_px, overlap - 4))
        across = max(2, min(margin_px, int(size[1 - direction]) // 4))
        margin = (along, across) if direction == 0 else (across, along)
        parts.append(
            cross_spectra(
                image,
                pairs[links],
                displacement[links],
                links,
                axis=direction,
                margin_px=margin,
                noise_density=noise_density,
                workers=workers,
            )
        )
    return parts


def smooth() -> FloatArray:
    return np.asarray(np.exp(-2 * (np.pi * SMOOTH_SIGMA_PX * ring_frequency()) ** 2), np.float32)


def evidence_from_spectra(
    spectra: list[list[CrossSpectra]],
    pairs: NDArray[np.intp],
    axis: NDArray[np.intp],
    nominal: Array,
    weights: list[list[FloatArray]],
) -> Evidence:
    """Return one window of z per link; kinds of image are added as independent evidence."""
    margin = tuple(max(s.margin_px[c] for channel in spectra for s in channel) for c in (0, 1))
    window = (len(pairs), 2 * margin[0] + 1, 2 * margin[1] + 1)
    surface = np.full(window, -np.inf, np.float32)
    coefficients = [np.zeros(window, np.float32) for _ in spectra]
    likelihoods = [np.zeros(window, np.float32) for _ in spectra] if len(spectra) > 1 else [surface]
    for direction in range(len(spectra[0])):
        part = spectra[0][direction]
        mx, my = part.margin_px
        place = (
            part.links,
            slice(margin[0] - mx, margin[0] + mx + 1),
            slice(margin[1] - my, margin[1] + my + 1),
        )
        seen = [
            likelihood_surfaces(channel[direction], w[direction]) for channel, w in zip(spectra, weights, strict=True)
        ]
        surface[place] = seen[0][0] if len(seen) == 1 else np.sqrt(sum(np.maximum(z, 0) ** 2 for z, _ in seen))
        for number, (z, r) in enumerate(seen):
            coefficients[number][place] = r
            likelihoods[number][place] = z if len(seen) > 1 else surface[place]
    rounded = np.rint(nominal[pairs[:, 1]] - nominal[pairs[:, 0]])
    evidence = Evidence(pairs, axis, rounded, (margin[0], margin[1]), surface, coefficients, likelihoods)
    flat = surface.reshape(len(pairs), -1)
    best = flat.argmax(axis=1)
    evidence.shift = _offsets(best, evidence.margin)
    evidence.z = flat[np.arange(len(pairs)), best].astype(float)
    evidence.accepted = evidence.z > CLEAR_Z
    return evidence


def _offsets(index: NDArray[np.intp], margin: tuple[int, int]) -> Array:
    x, y = np.unravel_index(index, (2 * margin[0] + 1, 2 * margin[1] + 1))
    return np.stack([x - margin[0], y - margin[1]], axis=1).astype(float)


def pick(evidence: Evidence, centre: Array, variance: Array, /, *, min_z: float = 2.5) -> None:
    """Choose every link's shift by evidence and expectation, to sub-pixel, and decide whether it may be trusted.

    `centre` and `variance` (links, 2) describe the expected shift. A link is accepted where 90 % of the posterior lies
    within 2 px of its peak and the peak is not at the edge of the window.
    """
    mx, my = evidence.margin
    x = np.arange(-mx, mx + 1, dtype=np.float32)
    y = np.arange(-my, my + 1, dtype=np.float32)
    surface = evidence.surface
    n = len(surface)
    cost_x = ((x[None, :] - centre[:, :1]) ** 2 / (2 * variance[:, :1])).astype(np.float32)
    cost_y = ((y[None, :] - centre[:, 1:]) ** 2 / (2 * variance[:, 1:])).astype(np.float32)
    positive = np.maximum(surface, 0)
    posterior = 0.5 * positive * positive
    posterior -= cost_x[:, :, None]
    posterior -= cost_y[:, None, :]
    posterior[~np.isfinite(surface)] = -np.inf
    flat = posterior.reshape(n, -1)
    best = flat.argmax(axis=1)
    peak = flat[np.arange(n), best]
    mass = np.exp(flat - peak[:, None]).reshape(posterior.shape)
    px, py = np.unravel_index(best, posterior.shape[1:])
    near_x = np.abs(np.arange(2 * mx + 1)[None, :] - px[:, None]) <= 2
    near_y = np.abs(np.arange(2 * my + 1)[None, :] - py[:, None]) <= 2
    near = np.einsum("lxy,lx,ly->l", mass, near_x, near_y, optimize=True)
    certain = near > 0.9 * mass.sum(axis=(1, 2))
    evidence.z = surface.reshape(n, -1)[np.arange(n), best].astype(float)
    inside = (px > 0) & (px < 2 * mx) & (py > 0) & (py < 2 * my)
    shift, information, good = _refined(evidence, px, py)
    evidence.shift = shift - np.array([mx, my])
    evidence.information = information
    evidence.accepted = certain & inside & good & (evidence.z > min_z)


def _refined(evidence: Evidence, px: NDArray[np.intp], py: NDArray[np.intp]) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return sub-pixel peaks (in window indices), their Fisher information, and whether each is a proper peak."""
    rows = np.arange(len(px))
    samples = []
    for coefficient, likelihood in zip(evidence.coefficients, evidence.likelihoods, strict=True):
        r = np.clip(coefficient[rows, px, py].astype(float), 0, 0.995)
        z = np.maximum(np.nan_to_num(likelihood[rows, px, py].astype(float), neginf=0.0), 0)
        samples.append(z**2 / np.maximum(-np.log1p(-(r**2)), 1e-12))
    return quadratic_peaks(evidence.coefficients, samples, px, py)


def likelihood_weight(spectra: CrossSpectra, evidence: Evidence) -> FloatArray:
    """Return the maximum likelihood (Hannan-Thomson) frequency weight from the coherence of the accepted links."""
    trusted = np.flatnonzero(evidence.accepted[spectra.links])
    if len(trusted) < 3:
        return smooth()
    trusted = trusted[np.argsort(-evidence.z[spectra.links[trusted]], kind="stable")[:120]]
    nx, ny = spectra.shape
    fx = np.fft.fftfreq(nx)[:, None]
    fy = np.fft.rfftfreq(ny)[None, :]
    cross = np.zeros(spectra.ring.shape, np.float64)
    shared = 0.0
    for k in trusted:
        lag = spectra.lag_base[k] + evidence.shift[spectra.links[k]]
        turn_x = np.exp(2j * np.pi * fx * lag[0]).astype(np.complex64)
        turn_y = np.exp(2j * np.pi * fy * lag[1]).astype(np.complex64)
        cross += (spectra.spectrum[k] * turn_x * turn_y).real
        shared += float(np.prod(1 - np.abs(lag) / np.array(spectra.strip_shape)))
    columns = spectra.column_weight()[None, :]
    rings = spectra.radial_power.shape[2]
    flat = spectra.ring.ravel()
    kernel = np.array([1, 4, 6, 4, 1]) / 16

    def smoothed(values: NDArray[Any]) -> Array:
        return np.convolve(np.pad(values, 2, mode="edge"), kernel, "valid")

    count = smoothed(np.bincount(flat, np.broadcast_to(columns, cross.shape).ravel(), minlength=rings))
    matched = smoothed(np.bincount(flat, (cross * columns).ravel(), minlength=rings)) / (nx * ny)
    both = spectra.radial_power[trusted].astype(np.float64).sum(axis=0)
    power = smoothed(np.sqrt(both[0] * both[1]))
    coherence = np.clip(matched / np.maximum(power, 1e-30) / max(shared / len(trusted), 0.1), 0, 0.98)
    # Power within the scatter of independent noise is noise and would only whiten the spectrum.
    coherence = np.where(coherence > 2 / np.sqrt(np.maximum(count, 1) * len(trusted)), coherence, 0)
    psi = coherence / (1 - coherence**2) / np.maximum(power / np.maximum(count, 1), 1e-30)
    if not psi.max() > 0:
        return smooth()
    return np.asarray(psi / psi.max(), np.float32)

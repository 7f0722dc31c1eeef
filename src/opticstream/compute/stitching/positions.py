"""Positions of the tiles of a mosaic from what they show in their overlaps and from what a stage does.

Every link's correlation surface is kept as evidence instead of its highest peak alone. The stage model (a lattice and
its jitter, estimated from the clear links) says which peaks are plausible; the weighted correlation (maximum likelihood
for the coherence that the tiles really have) says where exactly; a robust least squares over all tiles decides, and
looks at every link again around the position that all others predict. Blank tiles end on the lattice by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.stitching.correlation import (
    NEAR,
    CrossSpectra,
    NoiseModel,
    aligned_likelihoods,
    aligned_overlaps,
    cross_spectra,
    likelihood_surfaces,
    noise_model,
    ring_frequency,
)
from opticstream.compute.stitching.grid import neighbour_pairs
from opticstream.compute.stitching.propagation import LinkBeliefs, beliefs_from_surfaces, limited_information
from opticstream.compute.stitching.solver import LinkSystem, Solution, lines_from_positions
from opticstream.compute.stitching.tilefilter import FilteredTiles
from opticstream.system.cores import one_blas_thread

Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]

CLEAR_Z = 6.0
SMOOTH_SIGMA_PX = 2.0
FLOOR_PX = 0.05
EMPTY_SHARE = 0.03
"""A tile with much less than this share of the usual contrast is empty, whatever its noise resembles."""
FAINT_FLOOR = 0.1
"""An overlap with much less than this share of the usual contrast says little: it shows the halo of an edge nearby."""
SHARP_PX2 = 0.5
"""A link whose belief varies by less than this has one narrow peak, to be measured to a fraction of a pixel."""
FAINT_SHARE = 0.5
"""Frequency weights are estimated again where more than this share of the links that say something are not sharp."""
PREDICTION_PX2 = 0.5
"""What is added to the expectation's variance before peaks are picked around it."""
LEAST_ALIGNED_Z = 3.0
"""An aligned overlap whose likelihood is not further above chance shows nothing."""
ALIGNABLE_PX2 = 1.0
"""Variance of a link's shift along its worst direction up to which its overlap can be aligned to the nearest pixel."""
ROUNDS = 2
"""How often links without a clear shift are looked for where all others expect them."""
FAR = 12
"""Lags that are looked at there."""
FINDABLE_PX2 = 36.0
"""Variance of what others expect of a link up to which it is looked for."""
FAR_TRUST = 0.7
"""Share of the log-likelihood that counts in the search: the noise of one link is not quite that of all."""
LEAST_FAR_Z = 4.0
"""Among so many lags chance reaches higher than `LEAST_ALIGNED_Z`."""
DOUBT = 4.0
"""Widens the first guess of the stage's variance: where that is too narrow, clear links look like outliers."""
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
        True where no trusted link holds the tile: it lies where the stage model puts it.
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


@dataclass
class _Evidence:
    """Correlation surfaces of all links on one common window, and what was picked from them."""

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


def positions_from_tiles(
    images: Sequence[FilteredTiles],
    nominal_px: ArrayLike,
    /,
    *,
    margin_px: int = 16,
    line_parity: ArrayLike | None = None,
    workers: int = 2,
) -> TilePositions:
    """Return the positions of tiles from their overlaps.

    Parameters
    ----------
    images : sequence of FilteredTiles
        One or more kinds of image of the same tiles; their evidence is added.
    nominal_px : array_like, shape (tiles, 2)
        Where the stage was sent.
    margin_px : int
        Largest error of the nominal displacement of two neighbours. It is cut to leave 4 px of the nominal overlap.
    line_parity : array_like, shape (tiles,), optional
        -0.5 or +0.5 by the direction of travel when the tile was taken; lets a backlash of the stage be recognised.
    workers : int
        Threads of the Fourier transforms.

    Returns
    -------
    TilePositions
        The mean deviation from `nominal_px`'s own frame is zero; without any link all tiles stay nominal.
    """
    with one_blas_thread():
        return _positions(images, nominal_px, margin_px, line_parity, workers)


def _positions(
    images: Sequence[FilteredTiles], nominal_px: ArrayLike, margin_px: int, line_parity: ArrayLike | None, workers: int
) -> TilePositions:
    nominal = np.asarray(nominal_px, np.float64).reshape(-1, 2)
    tile_shape = images[0].tile_shape
    pairs, axis = neighbour_pairs(nominal, tile_shape=tile_shape, min_overlap_px=5.0)
    features = _stage_features(nominal, line_parity)
    if len(pairs) == 0:
        return _without_links(nominal, pairs, axis, float(margin_px))
    spectra = [_spectra(image.values, nominal, pairs, axis, margin_px, workers) for image in images]
    evidence = _gathered(spectra, pairs, axis, nominal, [[_smooth() for _ in channel] for channel in spectra])
    stage = _StageModel.from_surfaces(evidence, nominal, features)
    for _ in range(2):
        _pick(evidence, *stage.prediction(evidence))
        stage = _StageModel.from_links(evidence, nominal, features, stage)
    weights = [[_likelihood_weight(s, evidence) for s in channel] for channel in spectra]
    evidence = _gathered(spectra, pairs, axis, nominal, weights)
    _pick(evidence, *stage.prediction(evidence))
    stage = _StageModel.from_links(evidence, nominal, features, stage)
    system = LinkSystem(pairs, features, lines_from_positions(nominal, pairs, tile_shape))
    beliefs = _beliefs(evidence, system, nominal, stage)
    telling = _says_something(beliefs)
    if (telling & ~_is_sharp(beliefs)).sum() > FAINT_SHARE * telling.sum():
        # The few links that were clear by themselves know the coherence badly; now all know where they are.
        evidence.shift, evidence.accepted = beliefs.believed_px, telling
        weights = [[_likelihood_weight(s, evidence) for s in channel] for channel in spectra]
        evidence = _gathered(spectra, pairs, axis, nominal, weights)
        beliefs = _beliefs(evidence, system, nominal, stage)
    del spectra

    ruler = _Ruler(images, pairs, axis, workers)
    return _solved(evidence, nominal, features, system, beliefs, ruler)


def empty_tiles(image: FilteredTiles, /) -> NDArray[np.bool_]:
    """Return which tiles, shape (tiles,), show much less contrast than the others."""
    contrast = _contrast(image.values)
    return np.asarray(contrast <= _least_contrast(contrast))


def _contrast(image: FloatArray) -> Array:
    return np.einsum("txy,txy->t", image, image, optimize=True).astype(np.float64) / (image.shape[1] * image.shape[2])


def _least_contrast(contrast: Array) -> float:
    return EMPTY_SHARE * float(np.percentile(contrast[contrast > 0], 75)) if (contrast > 0).any() else 0.0


# --- evidence -----------------------------------------------------------------------------------------------------


def _spectra(
    image: FloatArray, nominal: Array, pairs: NDArray[np.intp], axis: NDArray[np.intp], margin_px: int, workers: int
) -> list[CrossSpectra]:
    size = np.array(image.shape[1:])
    noise_density = FAINT_FLOOR / EMPTY_SHARE * _least_contrast(_contrast(image))
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


def _smooth() -> FloatArray:
    return np.asarray(np.exp(-2 * (np.pi * SMOOTH_SIGMA_PX * ring_frequency()) ** 2), np.float32)


def _gathered(
    spectra: list[list[CrossSpectra]],
    pairs: NDArray[np.intp],
    axis: NDArray[np.intp],
    nominal: Array,
    weights: list[list[FloatArray]],
) -> _Evidence:
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
    evidence = _Evidence(pairs, axis, rounded, (margin[0], margin[1]), surface, coefficients, likelihoods)
    flat = surface.reshape(len(pairs), -1)
    best = flat.argmax(axis=1)
    evidence.shift = _offsets(best, evidence.margin)
    evidence.z = flat[np.arange(len(pairs)), best].astype(float)
    evidence.accepted = evidence.z > CLEAR_Z
    return evidence


def _offsets(index: NDArray[np.intp], margin: tuple[int, int]) -> Array:
    x, y = np.unravel_index(index, (2 * margin[0] + 1, 2 * margin[1] + 1))
    return np.stack([x - margin[0], y - margin[1]], axis=1).astype(float)


def _pick(evidence: _Evidence, centre: Array, variance: Array, /, *, min_z: float = 2.5) -> None:
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


_GRID = np.array([(i, j) for i in range(-2, 3) for j in range(-2, 3)], float)
_DESIGN = np.stack(
    [np.ones(25), _GRID[:, 0], _GRID[:, 1], _GRID[:, 0] ** 2 / 2, _GRID[:, 0] * _GRID[:, 1], _GRID[:, 1] ** 2 / 2],
    axis=1,
)

_GRID_X, _GRID_Y = _GRID.T.astype(np.intp)
_NEAR_WEIGHT = np.exp(-(_GRID**2).sum(axis=1) / 2)
_QUADRATIC = np.linalg.solve((_DESIGN * _NEAR_WEIGHT[:, None]).T @ _DESIGN, (_DESIGN * _NEAR_WEIGHT[:, None]).T)
"""Coefficients of the quadratic through 5 x 5 values, near ones counting more."""


class _Ruler:
    """Measures overlaps that are known to about a pixel, to a fraction of one."""

    def __init__(
        self, images: Sequence[FilteredTiles], pairs: NDArray[np.intp], axis: NDArray[np.intp], workers: int
    ) -> None:
        self.images, self.pairs, self.axis, self.workers = images, pairs, axis, workers
        self.models: dict[tuple[int, int], NoiseModel | None] = {}
        self.usual = [float(np.percentile(_contrast(image.values[:, ::3, ::3]), 75)) for image in images]

    def showing(self, displacement_px: Array) -> NDArray[np.bool_]:
        """Return the links whose two tiles both show something where they overlap, in any image."""
        whole = np.rint(displacement_px).astype(np.intp)
        shown = np.zeros(len(self.pairs), bool)
        for link, ((one, other), step) in enumerate(zip(self.pairs, whole, strict=True)):
            for image, usual in zip(self.images, self.usual, strict=True):
                size = np.array(image.tile_shape)
                low, high = np.maximum(step, 0), np.minimum(size, size + step)
                first = image.values[one, low[0] : high[0] : 3, low[1] : high[1] : 3]
                low, high = low - step, high - step
                second = image.values[other, low[0] : high[0] : 3, low[1] : high[1] : 3]
                if min(first.size, second.size) and min((first**2).mean(), (second**2).mean()) > FAINT_FLOOR * usual:
                    shown[link] = True
        return shown

    def measure(
        self, chosen: NDArray[np.intp], displacement_px: Array, known: NDArray[np.bool_]
    ) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Return displacement, information and whether there is a proper peak, of the `chosen` links.

        `displacement_px` (chosen, 2) is where to look. What tiles share, and how loud they are, is estimated at the
        first call, from the links that are `known` (chosen,) to a fraction of a pixel.
        """
        if len(chosen) == 0:
            return np.empty((0, 2)), np.empty((0, 2, 2)), np.zeros(0, bool)
        found, information, good = self._measure(chosen, displacement_px, known)
        # Away from the lag that the overlap was cut for, a broad peak is drawn back to it.
        again = np.flatnonzero(good & (np.abs(found - np.rint(displacement_px)).max(axis=1, initial=0) > 0.6))
        if len(again):
            found[again], information[again], good[again] = self._measure(chosen[again], found[again], known[again])
        return found, information, good

    def search(
        self, chosen: NDArray[np.intp], expected_px: Array, precision: Array
    ) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Return the same for links that others expect at `expected_px` with that `precision` (inverse covariance).

        Good are those of which nearly all of the belief lies about one peak.
        """
        whole, surface, variance = self._surfaces(chosen, expected_px, np.zeros(len(chosen), bool), FAR)
        lags = np.arange(-FAR, FAR + 1.0)
        off = whole[:, None, :] + lags[None, :, None] - expected_px[:, None, :]
        x, y = off[:, :, 0], off[:, :, 1]
        belief = FAR_TRUST * surface - precision[:, 0, 1, None, None] * x[:, :, None] * y[:, None, :]
        belief -= 0.5 * precision[:, 0, 0, None, None] * (x**2)[:, :, None]
        belief -= 0.5 * precision[:, 1, 1, None, None] * (y**2)[:, None, :]
        flat = belief.reshape(len(chosen), -1)
        best = flat.argmax(axis=1)
        mass = np.exp(flat - flat.max(axis=1, keepdims=True)).reshape(belief.shape)
        px, py = np.unravel_index(best, belief.shape[1:])
        near_x = np.abs(np.arange(len(lags))[None, :] - px[:, None]) <= 2
        near_y = np.abs(np.arange(len(lags))[None, :] - py[:, None]) <= 2
        near = np.einsum("lxy,lx,ly->l", mass, near_x, near_y, optimize=True)
        height = surface.reshape(len(chosen), -1)[np.arange(len(chosen)), best]
        good = (near > 0.95 * mass.sum(axis=(1, 2))) & (height > LEAST_FAR_Z * np.sqrt(np.maximum(variance, 1e-30)))
        where = whole + np.stack([px, py], 1) - float(FAR)
        found, information = where.copy(), np.zeros((len(chosen), 2, 2))
        mine = np.flatnonzero(good)
        if len(mine):
            found[mine], information[mine], good[mine] = self.measure(chosen[mine], where[mine], good[mine] & False)
        return found, information, good

    def _measure(
        self, chosen: NDArray[np.intp], displacement_px: Array, known: NDArray[np.bool_]
    ) -> tuple[Array, Array, NDArray[np.bool_]]:
        whole, surface, variance = self._surfaces(chosen, displacement_px, known, NEAR)
        inner = surface[:, 1:-1, 1:-1].reshape(len(chosen), -1)
        px, py = np.unravel_index(inner.argmax(axis=1), (2 * NEAR - 1, 2 * NEAR - 1))
        px, py = np.clip(px + 1, NEAR - 1, NEAR + 1), np.clip(py + 1, NEAR - 1, NEAR + 1)
        peak, information, good = peaks_of_likelihoods(surface, px, py)
        good &= inner.max(axis=1) > LEAST_ALIGNED_Z * np.sqrt(np.maximum(variance, 1e-30))
        return whole + peak - NEAR, information, good

    def _surfaces(
        self, chosen: NDArray[np.intp], displacement_px: Array, known: NDArray[np.bool_], reach_px: int
    ) -> tuple[NDArray[np.intp], Array, Array]:
        """Return the whole displacements that overlaps were cut at, log-likelihoods about these, variance by chance."""
        whole = np.rint(displacement_px).astype(np.intp)
        surface = np.zeros((len(chosen), 2 * reach_px + 1, 2 * reach_px + 1))
        variance = np.zeros(len(chosen))
        for direction in (0, 1):
            mine = np.flatnonzero(self.axis[chosen] == direction)
            if len(mine) == 0:
                continue
            for number, image in enumerate(self.images):
                model = self.models.get((number, direction))
                if model is None and not known[mine].any():
                    continue
                overlaps = aligned_overlaps(
                    image, self.pairs[chosen[mine]], whole[mine], reach_px=reach_px, workers=self.workers
                )
                if model is None:
                    model = noise_model(overlaps, displacement_px[mine], known[mine])
                    self.models[number, direction] = model
                if model is None:
                    continue
                likelihood, chance = aligned_likelihoods(overlaps, model, reach_px=reach_px)
                surface[mine] += likelihood
                variance[mine] += chance.astype(np.float64) ** 2
        return whole, surface, variance


def peaks_of_likelihoods(
    surface: Array, px: NDArray[np.intp], py: NDArray[np.intp]
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return the peak of log-likelihoods near (px, py), its information, and whether it is one.

    Parameters
    ----------
    surface : ndarray, shape (n, width, height)
        Logarithms of likelihoods.
    px, py : ndarray of int, shape (n,)
        Their highest values, at least 2 from every edge.

    Returns
    -------
    peak : ndarray, shape (n, 2)
        Where the quadratic through 5 x 5 values is highest, in indices of `surface`.
    information : ndarray, shape (n, 2, 2)
        Its negative curvature, the inverse covariance; 0 where there is no proper peak.
    good : ndarray of bool, shape (n,)
        Where there is one.
    """
    values = surface[np.arange(len(px))[:, None], px[:, None] + _GRID_X, py[:, None] + _GRID_Y]
    _, gx, gy, hxx, hxy, hyy = (values @ _QUADRATIC.T).T
    information = -np.stack([np.stack([hxx, hxy], -1), np.stack([hxy, hyy], -1)], -2)
    good = (hxx < 0) & (hyy < 0) & (hxx * hyy - hxy**2 > 1e-9)
    information[~good] = np.eye(2)
    offset = np.linalg.solve(information, np.stack([gx, gy], -1)[..., None])[..., 0]
    good &= np.abs(offset).max(axis=1, initial=0) < 1.5
    information[~good] = 0
    return np.asarray(np.stack([px, py], 1) + offset, np.float64), information, np.asarray(good, bool)


def _refined(evidence: _Evidence, px: NDArray[np.intp], py: NDArray[np.intp]) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return sub-pixel peaks (in window indices), their Fisher information, and whether each is a proper peak."""
    rows = np.arange(len(px))
    samples = []
    for coefficient, likelihood in zip(evidence.coefficients, evidence.likelihoods, strict=True):
        r = np.clip(coefficient[rows, px, py].astype(float), 0, 0.995)
        z = np.maximum(np.nan_to_num(likelihood[rows, px, py].astype(float), neginf=0.0), 0)
        samples.append(z**2 / np.maximum(-np.log1p(-(r**2)), 1e-12))
    return _quadratic_peaks(evidence.coefficients, samples, px, py)


def _quadratic_peaks(
    coefficients: Sequence[NDArray[np.floating]],
    samples: Sequence[NDArray[np.floating]],
    px: NDArray[np.intp],
    py: NDArray[np.intp],
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return sub-pixel peaks, their Fisher information, and whether each is a proper peak.

    A quadratic is fitted to the 5 x 5 correlation coefficients r around the peak, near ones counting more. The
    log-likelihood of n independent samples is -n log(1 - r^2) / 2, whose curvature at the peak is n r / (1 - r^2) times
    that of r. Kinds of image are combined by their information.
    """
    weight = np.exp(-(_GRID**2).sum(axis=1) / 2)
    weighted = _DESIGN * weight[:, None]
    operator = np.linalg.solve(weighted.T @ _DESIGN, weighted.T)
    n = len(px)
    width, height = coefficients[0].shape[1:]
    ix = np.clip(px[:, None] + _GRID[None, :, 0].astype(int), 0, width - 1)
    iy = np.clip(py[:, None] + _GRID[None, :, 1].astype(int), 0, height - 1)
    rows = np.arange(n)
    total, pull = np.zeros((n, 2, 2)), np.zeros((n, 2))
    for coefficient, count in zip(coefficients, samples, strict=True):
        values = coefficient[rows[:, None], ix, iy].astype(float)
        _, gx, gy, hxx, hxy, hyy = (values @ operator.T).T
        hessian = np.stack([np.stack([hxx, hxy], -1), np.stack([hxy, hyy], -1)], -2)
        r = np.clip(coefficient[rows, px, py].astype(float), 0, 0.995)
        proper = (hxx < 0) & (hyy < 0) & (hxx * hyy - hxy**2 > 1e-12) & (r > 1e-3) & (count > 0)
        hessian[~proper] = -np.eye(2)
        offset = -np.linalg.solve(hessian, np.stack([gx, gy], -1)[..., None])[..., 0]
        # Along a ridge (a fibre) the vertex may lie far off; there the quadratic says little and is not followed.
        offset = np.clip(offset, -1.5, 1.5)
        information = -hessian * (proper * count * r / (1 - r**2))[:, None, None]
        total += information
        pull += np.einsum("lij,lj->li", information, offset)
    good = np.linalg.det(total) > 1e-12
    safe = np.where(good[:, None, None], total, np.eye(2))
    offset = np.clip(np.linalg.solve(safe, pull[..., None])[..., 0], -1.5, 1.5)
    return np.stack([px, py], 1) + offset, total, good


def _likelihood_weight(spectra: CrossSpectra, evidence: _Evidence) -> FloatArray:
    """Return the maximum likelihood (Hannan-Thomson) frequency weight from the coherence of the accepted links."""
    trusted = np.flatnonzero(evidence.accepted[spectra.links])
    if len(trusted) < 3:
        return _smooth()
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
    # What is within the scatter of independent noise is noise, and would only whiten.
    coherence = np.where(coherence > 2 / np.sqrt(np.maximum(count, 1) * len(trusted)), coherence, 0)
    psi = coherence / (1 - coherence**2) / np.maximum(power / np.maximum(count, 1), 1e-30)
    if not psi.max() > 0:
        return _smooth()
    return np.asarray(psi / psi.max(), np.float32)


# --- stage model --------------------------------------------------------------------------------------------------


def _stage_features(nominal: Array, line_parity: ArrayLike | None) -> Array:
    """Return what a stage's error may depend on: position (an affine error), and direction of travel (backlash)."""
    centred = nominal - nominal.mean(axis=0)
    scale = max(float(np.abs(centred).max(initial=0.0)), 1.0)
    columns = [centred[:, c] / scale for c in (0, 1) if np.ptp(centred[:, c]) > 0]
    if line_parity is not None:
        columns.append(np.asarray(line_parity, np.float64))
    return np.stack(columns, axis=1) if columns else np.zeros((len(nominal), 0))


def _rounding(evidence: _Evidence, nominal: Array) -> Array:
    return nominal[evidence.pairs[:, 1]] - nominal[evidence.pairs[:, 0]] - evidence.nominal


@dataclass(frozen=True)
class _StageModel:
    """Expected shift of every link, and the scatter about it."""

    features: Array
    parameters: Array
    link_sigma_px: Array  # (axis of link, component)
    rounding: Array  # what was rounded off the nominal displacement of each link

    def prediction(self, evidence: _Evidence) -> tuple[Array, Array]:
        step = self.features[evidence.pairs[:, 1]] - self.features[evidence.pairs[:, 0]]
        return step @ self.parameters + self.rounding, self.link_sigma_px[evidence.axis] ** 2

    @classmethod
    def from_surfaces(cls, evidence: _Evidence, nominal: Array, features: Array) -> _StageModel:
        """Find the step along each axis that all links' evidence together makes likeliest, and the scatter about it.

        No link needs to be clear on its own: a link says ``exp(z^2 / 2)`` of every shift, or nothing at all.
        """
        margin = np.array(evidence.margin, float)
        sigma = np.tile(np.maximum(margin / 2.5, 1.0), (2, 1))
        step = np.zeros((2, 2))
        x, y = (np.arange(-m, m + 1, dtype=float) for m in evidence.margin)
        for direction in (0, 1):
            mine = np.flatnonzero(evidence.axis == direction)
            if len(mine) == 0:
                continue
            z = np.maximum(evidence.surface[mine], 0).astype(np.float64)
            gain = np.exp(np.minimum(0.5 * z * z, 40.0))
            gain[~np.isfinite(evidence.surface[mine])] = 0
            best = -np.inf
            for spread in (1.0, 2.0, 3.5, 6.0):
                if spread > 1.0 and spread > margin.min():
                    break
                blur_x = np.exp(-0.5 * ((x[:, None] - x[None, :]) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
                blur_y = np.exp(-0.5 * ((y[:, None] - y[None, :]) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
                seen = blur_x @ gain @ blur_y
                # Half of the links may have nothing to say: their likelihood ratio is 1 wherever the lattice lies.
                score = np.log(0.5 + 0.5 * seen).sum(axis=0)
                top = np.unravel_index(int(score.argmax()), score.shape)
                if score[top] > best:
                    best = float(score[top])
                    step[direction] = x[top[0]], y[top[1]]
                    sigma[direction] = max(spread, 1.0)
        ahead = features[evidence.pairs[:, 1]] - features[evidence.pairs[:, 0]]
        parameters = np.asarray(np.linalg.lstsq(ahead, step[evidence.axis], rcond=1e-6)[0], np.float64)
        rounding = _rounding(evidence, nominal)
        return cls(features, parameters, sigma, rounding)

    @classmethod
    def from_links(
        cls, evidence: _Evidence, nominal: Array, features: Array, before: _StageModel | None = None
    ) -> _StageModel:
        """Fit the stage to the accepted links by least absolute residuals."""
        step = features[evidence.pairs[:, 1]] - features[evidence.pairs[:, 0]]
        rounding = _rounding(evidence, nominal)
        use = evidence.accepted
        k = features.shape[1]
        if before is not None:
            parameters = before.parameters.copy()
        else:
            parameters = np.zeros((k, 2))
        margin = np.array(evidence.margin, float)
        sigma = np.tile(np.maximum(margin / 2.5, 1.0), (2, 1))
        if use.sum() >= 3:
            design, target = step[use], evidence.shift[use] - rounding[use]
            norm = np.maximum(np.abs(design).max(axis=0), 1e-12)
            design = design / norm
            # A weak pull to "no error" decides only what no clear link decides, e.g. along y when there is one row.
            ridge = 1e-3 * np.eye(k)
            fitted = np.zeros((k, 2))
            for c in (0, 1):
                weight = np.ones(len(design))
                for _ in range(30):
                    gram = (design * weight[:, None]).T @ design + ridge
                    fitted[:, c] = np.linalg.solve(gram, (design * weight[:, None]).T @ target[:, c])
                    weight = 1 / np.maximum(np.abs(target[:, c] - design @ fitted[:, c]), 0.2)
            parameters = fitted / norm[:, None]
            residual = np.abs(target - design @ fitted)
            for direction in (0, 1):
                mine = evidence.axis[use] == direction
                chosen = residual[mine] if mine.sum() >= 4 else residual
                spread = 1.4826 * np.median(chosen, axis=0) * np.sqrt(len(chosen) / max(len(chosen) - k, 1))
                # Few links know their scatter badly: stay wide until there are more.
                spread = spread * (1 + 3 / len(chosen)) + 1.5 / np.sqrt(len(chosen))
                sigma[direction] = np.clip(spread, 0.5, margin / 2)
        return cls(features, parameters, sigma, rounding)


# --- global solution ----------------------------------------------------------------------------------------------


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


def _beliefs(evidence: _Evidence, system: LinkSystem, nominal: Array, stage: _StageModel) -> LinkBeliefs:
    expected, variance = stage.prediction(evidence)
    return beliefs_from_surfaces(
        evidence.surface,
        system,
        expected_px=expected,
        variance_px2=variance * DOUBT,
        offset_px=_rounding(evidence, nominal),
        jitter_px=np.clip(stage.link_sigma_px.mean(axis=0) / np.sqrt(2), 0.5, None),
    )


def _is_sharp(beliefs: LinkBeliefs) -> NDArray[np.bool_]:
    return np.asarray(np.linalg.eigvalsh(beliefs.covariance_px2)[:, 1] < SHARP_PX2)


def _says_something(beliefs: LinkBeliefs) -> NDArray[np.bool_]:
    """Return the links whose surface knows more, along one direction at least, than half of what the stage knows."""
    return np.asarray(np.linalg.eigvalsh(beliefs.information)[:, 1] * (beliefs.jitter_px**2).mean() > 0.5)


def _solved(
    evidence: _Evidence,
    nominal: Array,
    features: Array,
    system: LinkSystem,
    beliefs: LinkBeliefs,
    ruler: _Ruler,
) -> TilePositions:
    pairs = evidence.pairs
    rounding = _rounding(evidence, nominal)
    _pick(evidence, beliefs.expected_px, np.einsum("lii->li", beliefs.expected_px2) + PREDICTION_PX2)
    sharp = evidence.accepted & _is_sharp(beliefs)
    jitter = beliefs.jitter_px
    prior = np.tile(1 / jitter**2, (len(nominal), 1))
    # A link that is not sharp counts as what its surface says under the expectation: something, little, or nothing.
    shift = np.where(sharp[:, None], evidence.shift, beliefs.shift_px)
    information = np.where(sharp[:, None, None], evidence.information, beliefs.information)
    showing = ruler.showing(beliefs.expected_px + evidence.nominal)
    telling = _says_something(beliefs) & showing
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
        doubt = 1 / np.linalg.eigvalsh(precision)[:, 0]
        moved = np.abs(expected - where).max(axis=1, initial=0) > 1
        wanted = showing & (~measured | (weight < 0.5)) & (moved | (step == 0))
        chosen = np.flatnonzero(wanted & (doubt < FINDABLE_PX2))
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
    # Where the mosaic lies as a whole no overlap can tell, and nobody asks: that share of every variance is left out.
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


def _without_own(predicted: Array, covariance: Array, shift: Array, information: Array) -> tuple[Array, Array]:
    """Return what all others expect of each link, and how precisely (inverse covariance)."""
    whole = np.linalg.inv(covariance)
    precision = whole - information
    value, vector = np.linalg.eigh(0.5 * (precision + precision.transpose(0, 2, 1)))
    precision = np.einsum("lij,lj,lkj->lik", vector, np.maximum(value, 1e-3), vector)
    force = np.einsum("lij,lj->li", whole, predicted) - np.einsum("lij,lj->li", information, shift)
    return np.linalg.solve(precision, force[..., None])[..., 0], np.asarray(precision, np.float64)


def _overrating(residual: Array, information: Array, weight: Array, held: NDArray[np.bool_]) -> Array:
    """Return by how much the information of every link is too large, from what clear links leave as residuals.

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


def _without_links(nominal: Array, pairs: NDArray[np.intp], axis: NDArray[np.intp], spread_px: float) -> TilePositions:
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


def with_positions(positions: TilePositions, positions_px: ArrayLike, /) -> TilePositions:
    """Return a copy that holds other positions, e.g. after moving the whole mosaic."""
    return replace(positions, positions_px=np.asarray(positions_px, np.float64))

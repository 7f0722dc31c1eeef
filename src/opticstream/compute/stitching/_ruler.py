"""Measure overlaps that are known to about a pixel to a fraction of a pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._correlation import (
    NEAR,
    NoiseModel,
    aligned_likelihoods,
    aligned_overlaps,
    noise_model,
)
from opticstream.compute.stitching._evidence import FAINT_FLOOR, contrast
from opticstream.compute.stitching._peaks import peaks_of_likelihoods
from opticstream.compute.stitching._tilefilter import FilteredTiles

Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]

LEAST_ALIGNED_Z = 3.0
"""An aligned overlap whose likelihood is not further above chance has no information."""
FAR = 12
"""Lags that are looked at there."""
FAR_TRUST = 0.7
"""Share of the log-likelihood that counts in the search: the noise of one link is not quite that of all."""
LEAST_FAR_Z = 4.0
"""Among so many lags chance reaches higher than `LEAST_ALIGNED_Z`."""


class Ruler:
    """Measures overlaps that are known to about a pixel to a fraction of a pixel."""

    def __init__(
        self, images: Sequence[FilteredTiles], pairs: NDArray[np.intp], axis: NDArray[np.intp], workers: int
    ) -> None:
        self.images, self.pairs, self.axis, self.workers = images, pairs, axis, workers
        self.models: dict[tuple[int, int], NoiseModel | None] = {}
        self.usual = [float(np.percentile(contrast(image.values[:, ::3, ::3]), 75)) for image in images]

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

"""How near tile positions come to the Cramer-Rao bound, on mosaics of the second generator.

    python tests/compute/stitching/cramer_rao.py [--tissues fibres cortex] [--seeds 401 402] [--highest 0.3]

The generator makes every mosaic again without speckle, noise and pattern, so the powers S of what is shown and N of
what hides it are known in every overlap. For a Gaussian texture no unbiased estimator can know the shift of the overlap
better than ``J = sum (2 pi f)(2 pi f)^T S^2 / (N^2 + 2 S N)`` allows (one term for every independent frequency of the
full plane). Errors of that size are drawn for all links and solved with the true jitter of the stage: that is the
bound of the positions. It is told twice: with all that the clean tiles show as signal, and with the texture alone. The
edge of the tissue is in the first only: it looks different in tiles of different contrast and gain.

Beside it: the maximum likelihood estimator that knows S and N and starts at the truth, on the recorded tiles, on
the clean ones, on clean ones that all have the same contrast and gain (`alike`), and on these with Gaussian noise of
power N (`drawn`): there it reaches the bound, where links are full of tissue. `--highest` is the highest frequency that
counts, along x and y; the pipeline looks up to 0.3 cycles per pixel.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import (
    filtered_tiles,
    high_pass_for_overlap,
    positions_from_tiles,
    usual_overlap_px,
)
from opticstream.compute.stitching._correlation import _averages, _soft_edge
from opticstream.compute.stitching._instrument import instrument_gain
from opticstream.compute.stitching._solver import LinkSystem, lines_from_positions
from opticstream.compute.stitching._stage_model import stage_features
from opticstream.compute.stitching._tilefilter import (
    PATCH_SIGMA_PX,
    _blurred,
    cosine_blur_basis,
    soft_floor_of_tiles,
    tissue_level,
)
from opticstream.testing.tissue_mosaic import TEXTURES, TissueMosaic, placement_errors, tissue_mosaic

Array = NDArray[np.float64]
DRAWS = 60
JITTER_PX = 2.0
LEAST_INFORMATION = 1e-2
"""In 1/px^2: below, a link says no more than the stage."""
CLEAN: dict[str, Any] = {"speckle": 0.0, "floor_noise": 0.0, "column_pattern": 0.0, "pixel_pattern": 0.0}


class Spectrum:
    """The half spectrum of a rectangle: its frequencies, and the power averaged over neighbouring ones."""

    def __init__(self, shape: tuple[int, int], highest: float) -> None:
        self.shape = shape
        self.fx, self.fy = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
        self.ring = (np.hypot(self.fx, self.fy) * 200).astype(int)
        self.near = _averages(self.fx.ravel(), self.fy.ravel())
        self.opposite = -np.arange(shape[0]) % shape[0]
        self.doubled = np.where(self.fy > 0, 2.0, 1.0) * np.ones_like(self.fx)
        self.used = np.maximum(np.abs(self.fx), self.fy) <= highest

    def averaged(self, power: Array) -> Array:
        """Return the power averaged relative to its mean on rings: it falls steeply."""
        count = np.bincount(self.ring.ravel())
        mean = np.bincount(self.ring.ravel(), power.ravel()) / np.maximum(count, 1)
        usual = np.maximum(mean, 1e-30)[self.ring]
        along_x, along_y, mirrored = self.near
        ratio = power / usual
        return np.asarray(usual * (along_x @ (ratio @ along_y + ratio[self.opposite] @ mirrored)))

    def information(self, weight: Array, area: float) -> Array:
        told = weight * self.doubled * (2 * np.pi) ** 2 * area / (self.shape[0] * self.shape[1])
        xx, yy = (told * self.fx**2).sum(), (told * self.fy**2).sum()
        xy = (told * self.fx * self.fy).sum()
        return np.array([[xx, xy], [xy, yy]])

    def peak(self, first: NDArray[Any], second: NDArray[Any], weight: Array, start: Array) -> Array:
        """Return where the weighted correlation is highest, in px, from Newton steps off `start`."""
        wx, wy = 2 * np.pi * self.fx, 2 * np.pi * self.fy
        cross = first * second.conj() * weight * self.doubled
        lag = start.copy()
        for _ in range(30):
            turned = cross * np.exp(1j * (wx * lag[0] + wy * lag[1]))
            slope = -np.array([(turned.imag * wx).sum(), (turned.imag * wy).sum()])
            xy = (turned.real * wx * wy).sum()
            value, vector = np.linalg.eigh(
                np.array([[(turned.real * wx**2).sum(), xy], [xy, (turned.real * wy**2).sum()]])
            )
            step = vector @ ((vector.T @ slope) / np.maximum(np.abs(value), 1e-9 * np.abs(value).max() + 1e-30))
            step *= min(1.0, 0.3 / max(float(np.hypot(*step)), 1e-12))
            lag += step
            if np.hypot(*step) < 1e-4:
                break
        return lag


def views(tiles: Array, pair: NDArray[np.intp], step: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[Any], float]:
    """Return the spectra of a link's two views, cut and filtered as the estimator does, and the pixels that count."""
    size = np.array(tiles.shape[1:])
    low, high = np.maximum(step, 0), np.minimum(size, size + step)
    soft = (_soft_edge(high[0] - low[0])[:, None] * _soft_edge(high[1] - low[1])[None, :]).astype(np.float64)
    spectra = []
    for tile, first, last in ((pair[0], low, high), (pair[1], low - step, high - step)):
        patch = tiles[tile, first[0] : last[0], first[1] : last[1]]
        patch = patch - _blurred(patch, *(cosine_blur_basis(n, PATCH_SIGMA_PX) for n in patch.shape))
        spectra.append(np.fft.rfft2(patch * soft))
    return spectra[0], spectra[1], float((soft**2).sum())


def drawn_noise(rng: np.random.Generator, power: Array, shape: tuple[int, int]) -> NDArray[Any]:
    """Return the spectrum of Gaussian noise of that power per pixel under the soft edges of an overlap."""
    soft = _soft_edge(shape[0])[:, None] * _soft_edge(shape[1])[None, :]
    white = np.fft.rfft2(rng.standard_normal(shape))
    return np.asarray(np.fft.rfft2(np.fft.irfft2(white * np.sqrt(power), shape) * soft))


def usable(information: Array) -> tuple[Array, Array]:
    """Return the information without what the stage knows better, and a root of its inverse."""
    value, vector = np.linalg.eigh(information)
    value = np.where(value > LEAST_INFORMATION, value, 0)
    scatter = np.where(value > 0, 1 / np.sqrt(np.maximum(value, LEAST_INFORMATION)), 0)
    return np.einsum("lij,lj,lkj->lik", vector, value, vector), vector * scatter[:, None, :]


class Solver:
    """RMS position errors, in px, of a mosaic whose links err by given amounts."""

    def __init__(self, mosaic: TissueMosaic, pairs: NDArray[np.intp]) -> None:
        self.mosaic, self.pairs = mosaic, pairs
        lines = lines_from_positions(mosaic.nominal_px, pairs, mosaic.tiles.shape[1:])
        self.system = LinkSystem(pairs, stage_features(mosaic.nominal_px, None), lines)
        self.deviation = mosaic.true_px - mosaic.nominal_px

    def error_px(self, off_px: Array, information: Array) -> float:
        true = self.deviation[self.pairs[:, 1]] - self.deviation[self.pairs[:, 0]]
        prior = np.full(self.deviation.shape, JITTER_PX**-2)
        solution = self.system.solve(true + off_px, information, prior)
        return rms(placement_errors(self.mosaic.nominal_px + solution.deviation_px, self.mosaic)[:, None])

    def bound_px(self, information: Array) -> Array:
        rng = np.random.default_rng(0)
        information, root = usable(information)
        drawn = [np.einsum("lij,lj->li", root, rng.standard_normal((len(root), 2))) for _ in range(DRAWS)]
        return np.array([self.error_px(off, information) for off in drawn])


def rms(error: Array) -> float:
    return float(np.sqrt((error**2).sum(axis=1).mean())) if len(error) else float("nan")


def compared(tissue: str, seed: int, highest: float) -> str:
    mosaic = tissue_mosaic(tissue, seed=seed)
    size = mosaic.tiles.shape[1:]
    level = tissue_level(mosaic.tiles)
    floor = soft_floor_of_tiles(mosaic.tiles, level)
    gain = instrument_gain(mosaic.tiles, level, floor)

    def logarithm(tiles: NDArray[np.float32]) -> Array:
        return np.asarray(np.log(np.maximum(tiles, 0) * gain + floor), np.float64)

    noisy = logarithm(mosaic.tiles)
    clean = logarithm(tissue_mosaic(tissue, seed=seed, **CLEAN).tiles)
    texture = clean - logarithm(tissue_mosaic(tissue, seed=seed, contrast=0.0, **CLEAN).tiles)
    alike = logarithm(tissue_mosaic(tissue, seed=seed, tile_contrast=1.0, tile_gain=0.0, **CLEAN).tiles)
    sigma_px = high_pass_for_overlap(usual_overlap_px(mosaic.nominal_px, tile_shape=size))
    found = positions_from_tiles([filtered_tiles(mosaic.tiles, sigma_px=sigma_px)], mosaic.nominal_px)
    pairs = found.links.pairs
    tissue_of = dict(zip(map(tuple, mosaic.links.tolist()), mosaic.link_tissue_fraction, strict=True))
    share = np.array([tissue_of.get(tuple(pair), 0.0) for pair in pairs.tolist()])
    judged = found.links.clear & (share >= 0.3)
    true = mosaic.true_px[pairs[:, 1]] - mosaic.true_px[pairs[:, 0]]
    everything, textured = np.zeros((len(pairs), 2, 2)), np.zeros((len(pairs), 2, 2))
    off = {name: np.zeros((len(pairs), 2)) for name in ("recorded", "clean", "alike", "drawn")}
    rng = np.random.default_rng(seed)
    for k in np.flatnonzero(share > 0.003):
        step = np.rint(true[k]).astype(np.intp)
        shape = tuple(int(n) for n in np.array(size) - np.abs(step))
        if min(shape) < 16:
            continue
        spectrum = Spectrum((shape[0], shape[1]), highest)
        seen, shown, fine, same = (views(tiles, pairs[k], step) for tiles in (noisy, clean, texture, alike))
        area = seen[2]

        def power(
            first: NDArray[Any], second: NDArray[Any], spectrum: Spectrum = spectrum, area: float = area
        ) -> Array:
            one, other = (spectrum.averaged(np.abs(view) ** 2) for view in (first, second))
            return np.asarray(np.sqrt(one * other) / area)

        n = power(seen[0] - shown[0], seen[1] - shown[1])
        for signal, into in ((power(*shown[:2]), everything), (power(*fine[:2]), textured)):
            weight = np.where(spectrum.used, signal / np.maximum(n**2 + 2 * signal * n, 1e-30), 0)
            into[k] = spectrum.information(weight * signal, area)
            if judged[k] and into is everything:
                noise = [drawn_noise(rng, n, spectrum.shape) for _ in same[:2]]
                drawn = [one + other for one, other in zip(same[:2], noise, strict=True)]
                for name, view in (("recorded", seen), ("clean", shown), ("alike", same), ("drawn", drawn)):
                    off[name][k] = spectrum.peak(view[0], view[1], weight, true[k] - step) - (true[k] - step)
    solver = Solver(mosaic, pairs)
    weights = usable(everything * judged[:, None, None])[0]
    reached = rms(placement_errors(found.positions_px, mosaic)[:, None])
    told = [f"{tissue}, {seed}: reached {reached:.3f} px"]
    for name, information in (("all that is shown", everything), ("texture only", textured)):
        bound = solver.bound_px(information)
        told.append(f"bound, {name}: {bound.mean():.3f} (sd {bound.std():.3f}; {(bound < reached).mean():.0%} below)")
    ours = found.links.displacement_px - true
    told.append("; ".join(f"known spectra, {name}: {solver.error_px(o, weights):.3f}" for name, o in off.items()))
    for name, mine in (("full", judged & (share > 0.99)), ("partial", judged & (share <= 0.9)), ("all", judged)):
        bounds = [rms(np.sqrt(np.einsum("lii->li", np.linalg.inv(i[mine])))) for i in (everything, textured)]
        known = ", ".join(f"{rms(o[mine]):.3f} {n}" for n, o in off.items())
        told.append(
            f"links, {name} ({mine.sum()}): bounds {bounds[0]:.3f}, {bounds[1]:.3f}; known spectra {known}; "
            f"ours {rms(ours[mine]):.3f}"
        )
    return "\n  ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tissues", nargs="*", default=["fibres"], choices=list(TEXTURES), metavar="TISSUE")
    parser.add_argument("--seeds", nargs="*", type=int, default=[401])
    parser.add_argument("--highest", type=float, default=0.5, help="cycles per pixel")
    choices = parser.parse_args()
    for tissue in choices.tissues:
        for seed in choices.seeds:
            print(compared(tissue, seed, choices.highest), flush=True)


if __name__ == "__main__":
    main()

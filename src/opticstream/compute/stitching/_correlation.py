"""Normalised cross-correlation of overlapping tiles, for all shifts within a margin at once.

The part that two tiles share at a given shift is known, so the correlation is divided by the energies of exactly that
rectangle: no shift is favoured for overlapping more, and there is no wrap-around. A frequency weight enters as a factor
on the cross-spectrum, which is computed once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._tilefilter import FilteredTiles

FloatArray = NDArray[np.float32]
BATCH = 24


@dataclass
class CrossSpectra:
    """Cross-spectra and energies of all links that follow along one axis.

    Attributes
    ----------
    links : ndarray of int, shape (n,)
        Row of each link in the caller's table.
    nominal_px : ndarray of int, shape (n, 2)
        Displacement from the first tile to the second that shift (0, 0) stands for.
    margin_px : tuple of int
        Largest shift looked at, along x and y.
    spectrum : ndarray, shape (n, fx, fy), complex64
        Product of the first strip's spectrum and the conjugate of the second's, zero padded.
    energy : ndarray, shape (n, 2*mx+1, 2*my+1), float32
        Geometric mean of the two strips' energies over the rectangle shared at each shift.
    area : ndarray, shape (n, 2*mx+1, 2*my+1), float32
        Number of pixels in that rectangle.
    total_energy : ndarray, shape (n, 2)
        Energies of both whole strips.
    radial_power : ndarray, shape (n, 2, rings)
        Power of both strips by ring of frequency; sums to `total_energy`.
    ring : ndarray of int, shape (fx, fy)
        Ring of every bin of the spectrum.
    crowding : ndarray, shape (n,), float32
        Mean `crowding` of the two strips over the shifts.
    """

    links: NDArray[np.intp]
    nominal_px: NDArray[np.intp]
    margin_px: tuple[int, int]
    shape: tuple[int, int]
    strip_shape: tuple[int, int]
    lag_base: NDArray[np.intp]
    spectrum: NDArray[np.complex64]
    energy: FloatArray
    area: FloatArray
    total_energy: FloatArray
    radial_power: FloatArray
    ring: NDArray[np.intp]
    crowding: FloatArray

    def column_weight(self) -> FloatArray:
        """Return 2 for columns of the half spectrum that stand for two, else 1; shape (fy,)."""
        return _column_weight(self.shape[1])


LOUD_BLOCK_PX = 8
"""Size of the blocks in which energy is compared: larger than the grain of speckle, smaller than a corner of tissue."""


def crowding(first: FloatArray, second: FloatArray, /) -> FloatArray:
    """Return by which factor the structure of two views is crowded into a part of their overlap.

    Parameters
    ----------
    first, second : ndarray, shape (..., x, y)
        Local energies of the two views.

    Returns
    -------
    ndarray, shape (...,)
        The correlation of independent views scatters by this factor more, in variance, than it would if both had their
        energy everywhere. Where a tenth of the overlap is tissue, in both views, there is a tenth of the independent
        samples. 1 for blank views.

    Examples
    --------
    >>> corner = np.zeros((4, 5), np.float32)
    >>> corner[0, :2] = 3
    >>> [round(float(crowding(corner, other)), 3) for other in (corner, np.ones_like(corner))]
    [10.0, 1.0]
    """
    both = first.mean(axis=(-2, -1)) * second.mean(axis=(-2, -1))
    together = np.einsum("...xy,...xy->...", first, second) / max(first.shape[-2] * first.shape[-1], 1)
    return np.asarray(np.where(both > 0, together / np.where(both > 0, both, 1), 1), np.float32)


def _envelopes(image: FloatArray) -> FloatArray:
    """Return the local energy of what is coarser than speckle, on blocks of views, shape (.., x, y)."""
    (into_x, near_x), (into_y, near_y) = (_block_means(n) for n in image.shape[-2:])
    energy = (into_x @ image @ into_y.T) ** 2
    return np.asarray(near_x @ energy @ near_y, np.float32)


@lru_cache(maxsize=256)
def _block_means(length: int) -> tuple[FloatArray, FloatArray]:
    """Return the matrix of the means of equal blocks, and the one that averages every block with its neighbours.

    Equal blocks lie alike seen from either end: a scan that is turned upside down has the same ones.
    """
    count = max(length // LOUD_BLOCK_PX, 1)
    edges = np.arange(count + 1) * (length / count)
    pixel = np.arange(length)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    near = np.eye(count) + np.eye(count, k=1) + np.eye(count, k=-1)
    near[0, 0] += 1
    near[-1, -1] += 1
    return np.asarray(np.maximum(shared, 0) * (count / length), np.float32), np.asarray(near / 3, np.float32)


def _usual_crowding(
    first: FloatArray, second: FloatArray, lag_base: NDArray[np.intp], margin: NDArray[np.intp]
) -> FloatArray:
    """Return the mean `crowding` of strips, given as envelopes (n, x, y), over the shifts within `margin`.

    At the one shift at which they match the loud parts of two views coincide because they show the same.
    """
    result = np.ones(len(first), np.float32)
    ends = np.rint((lag_base[:, None, :] + np.stack([-margin, margin])) / LOUD_BLOCK_PX).astype(int)
    for reach in np.unique(ends, axis=0):
        mine = np.flatnonzero((ends == reach).all(axis=(1, 2)))
        one, other = first[mine], second[mine]
        width, height = first.shape[1:]
        found = []
        for dx in range(max(reach[0, 0], 1 - width), min(reach[1, 0], width - 1) + 1):
            for dy in range(max(reach[0, 1], 1 - height), min(reach[1, 1], height - 1) + 1):
                here = one[:, max(dx, 0) : width + min(dx, 0), max(dy, 0) : height + min(dy, 0)]
                there = other[:, max(-dx, 0) : width - max(dx, 0), max(-dy, 0) : height - max(dy, 0)]
                found.append(crowding(here, there))
        if found:
            result[mine] = np.maximum(np.mean(found, axis=0), 1)
    return result


RINGS = 128
"""Frequency weights are functions of the radius: 128 rings from 0 to the corner at 0.71 cycles per pixel."""


def ring_frequency() -> FloatArray:
    """Return the frequency of every ring's middle in cycles per pixel."""
    return np.asarray((np.arange(RINGS) + 0.5) * (np.sqrt(0.5) / RINGS), np.float32)


def _rings(shape: tuple[int, int]) -> NDArray[np.intp]:
    radius = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :])
    return np.asarray(np.minimum((radius * (RINGS / np.sqrt(0.5))).astype(np.intp), RINGS - 1))


def _column_weight(ny: int) -> FloatArray:
    weight = np.full(ny // 2 + 1, 2, np.float32)
    weight[0] = 1
    if ny % 2 == 0:
        weight[-1] = 1
    return weight


def cross_spectra(
    tiles: FloatArray,
    pairs: NDArray[np.intp],
    nominal_px: NDArray[np.intp],
    links: NDArray[np.intp],
    /,
    *,
    axis: int,
    margin_px: tuple[int, int],
    noise_density: float = 0.0,
    workers: int = 2,
) -> CrossSpectra:
    """Return the cross-spectra of links that all follow along `axis`.

    Parameters
    ----------
    tiles : ndarray, shape (tiles, x, y), float32
        Filtered tiles with zero mean.
    pairs : ndarray of int, shape (n, 2)
        First and second tile of each link.
    nominal_px : ndarray of int, shape (n, 2)
        Nominal displacement of the second tile against the first.
    links : ndarray of int, shape (n,)
        Names of the links in the caller's table.
    axis : int
        0 where the second tile follows along x, 1 along y.
    margin_px : tuple of int
        Largest shift to look at, along x and y.
    noise_density : float
        Energy per pixel that is added to every strip, uncorrelated: much weaker structure is ignored, however
        well it correlates.
    workers : int
        Threads of the Fourier transforms.
    """
    from scipy import fft

    size = np.array(tiles.shape[1:])
    margin = np.array(margin_px)
    strip = size.copy()
    strip[axis] = min(size[axis], size[axis] - int(nominal_px[:, axis].min()) + margin[axis])
    corner = size - strip  # of the first tile's strip; the second's starts at 0
    corner[1 - axis] = 0
    lag_base = nominal_px - corner
    reach = np.abs(lag_base).max(axis=0) + margin
    shape = tuple(int(fft.next_fast_len(int(n), real=True)) for n in strip + reach)
    n = len(links)
    window = tuple(2 * margin + 1)
    fx, fy = shape[0], shape[1] // 2 + 1
    spectrum = np.empty((n, fx, fy), np.complex64)
    ring = _rings((shape[0], shape[1]))
    radial_power = np.empty((n, 2, RINGS), np.float32)
    flat_ring = ring.ravel()
    columns = _column_weight(shape[1]) / np.float32(shape[0] * shape[1])
    energy = np.empty((n, *window), np.float32)
    area = np.empty((n, *window), np.float32)
    total = np.empty((n, 2), np.float32)
    loud_first: list[FloatArray] = []
    loud_second: list[FloatArray] = []
    masks = _shared_masks(lag_base, strip, margin)
    for start in range(0, n, BATCH):
        part = slice(start, min(start + BATCH, n))
        first = tiles[pairs[part, 0], corner[0] :, corner[1] :]
        second = tiles[pairs[part, 1], : strip[0], : strip[1]]
        spectrum_first = fft.rfft2(first, shape, workers=workers)
        spectrum_second = fft.rfft2(second, shape, workers=workers)
        np.multiply(spectrum_first, spectrum_second.conj(), out=spectrum[part])
        for side, one in enumerate((spectrum_first, spectrum_second)):
            power = (one.real**2 + one.imag**2) * columns
            for k in range(part.start, part.stop):
                radial_power[k, side] = np.bincount(flat_ring, power[k - start].ravel(), minlength=RINGS)
        loud_first.append(_envelopes(first))
        loud_second.append(_envelopes(second))
        first, second = first * first, second * second
        total[part, 0], total[part, 1] = first.sum(axis=(1, 2)), second.sum(axis=(1, 2))
        for k in range(part.start, part.stop):
            first_x, first_y, second_x, second_y = masks[tuple(lag_base[k])]
            a = first_x @ first[k - start] @ first_y.T
            b = second_x @ second[k - start] @ second_y.T
            area[k] = first_x.sum(axis=1)[:, None] * first_y.sum(axis=1)[None, :]
            added = np.float32(noise_density) * area[k]
            energy[k] = np.sqrt((a + added) * (b + added))
    return CrossSpectra(
        links=links,
        nominal_px=nominal_px,
        margin_px=(int(margin[0]), int(margin[1])),
        shape=(shape[0], shape[1]),
        strip_shape=(int(strip[0]), int(strip[1])),
        lag_base=lag_base,
        spectrum=spectrum,
        energy=energy,
        area=area,
        total_energy=total,
        radial_power=radial_power,
        ring=ring,
        crowding=_usual_crowding(np.concatenate(loud_first), np.concatenate(loud_second), lag_base, margin),
    )


def _shared_masks(
    lag_base: NDArray[np.intp], strip: NDArray[np.intp], margin: NDArray[np.intp]
) -> dict[tuple[int, ...], tuple[FloatArray, ...]]:
    """Return for each distinct lag base the 0/1 matrices that sum a strip over the rectangle shared at each lag."""
    masks: dict[tuple[int, ...], tuple[FloatArray, ...]] = {}
    for base in {tuple(b) for b in lag_base.tolist()}:
        parts = []
        for sign in (1, -1):
            for axis in (0, 1):
                lag = base[axis] + np.arange(-margin[axis], margin[axis] + 1)[:, None]
                place = np.arange(strip[axis])[None, :]
                other = place - sign * lag
                parts.append(((other >= 0) & (other < strip[axis])).astype(np.float32))
        masks[base] = tuple(parts)
    return masks


def likelihood_surfaces(spectra: CrossSpectra, ring_weight: FloatArray, /) -> tuple[FloatArray, FloatArray]:
    """Return for every link and shift how much likelier a match is than chance, and the correlation coefficient.

    Parameters
    ----------
    spectra : CrossSpectra
        From `cross_spectra`.
    ring_weight : ndarray, shape (rings,)
        Real, non-negative frequency weight.

    Returns
    -------
    likelihood : ndarray, shape (n, 2*mx+1, 2*my+1), float32
        ``z = sign(r) sqrt(-n log(1 - r^2))`` for the correlation coefficient ``r`` of the weighted strips over the
        rectangle that they share at that shift, and ``n`` the number of independent samples in it: ``z^2 / 2`` is the
        log-likelihood ratio of Gaussian data, and for weak correlation ``z`` is simply ``r`` in units of its own
        noise. 0 where a strip is blank.
    coefficient : ndarray, shape (n, 2*mx+1, 2*my+1), float32
        The correlation coefficient ``r``. Unlike ``z`` it is smooth at its peak, however high that is: sub-pixel peaks
        are interpolated in it.

    Notes
    -----
    Two strips without anything in common have a correlation of variance ``sum |X w|^2 / N`` spread over the domain in
    proportion to the shared area, so the number of independent samples is known from the spectra (Parseval) without
    transforming all of it. Only the lags within the margin are wanted: the inverse transform is two thin matrix
    products, over the frequencies that the weight lets pass.
    """
    mx, my = spectra.margin_px
    nx, ny = spectra.shape
    n = len(spectra.links)
    result = np.zeros((n, 2 * mx + 1, 2 * my + 1), np.float32)
    coefficients = np.zeros_like(result)
    weight = ring_weight.astype(np.float32)[spectra.ring]
    passed_y = np.flatnonzero((weight > 1e-4 * weight.max()).any(axis=0))
    fy = int(passed_y[-1]) + 1 if passed_y.size else 1
    weight = np.ascontiguousarray(weight[:, :fy])
    columns = (spectra.column_weight()[:fy] / np.float32(nx * ny)).astype(np.float32)
    square_weight = weight**2 * columns
    passed = spectra.radial_power @ ring_weight.astype(np.float32)  # energies of the weighted strips
    pixels = spectra.strip_shape[0] * spectra.strip_shape[1]
    density = np.sqrt(spectra.total_energy.prod(axis=1)) / pixels
    share = np.sqrt(passed.prod(axis=1) / np.maximum(spectra.total_energy.prod(axis=1), 1e-30))
    transforms: dict[tuple[int, ...], tuple[NDArray[np.complex64], NDArray[np.complex64]]] = {}
    for k in range(n):
        if density[k] <= 0 or share[k] <= 0:
            continue
        base = tuple(spectra.lag_base[k].tolist())
        if base not in transforms:
            lag_x = np.arange(base[0] - mx, base[0] + mx + 1)
            lag_y = np.arange(base[1] - my, base[1] + my + 1)
            into_x = np.exp(2j * np.pi / nx * ((lag_x[:, None] * np.arange(nx)[None, :]) % nx))
            into_y = np.exp(2j * np.pi / ny * ((np.arange(fy)[:, None] * lag_y[None, :]) % ny)) * columns[:, None]
            transforms[base] = into_x.astype(np.complex64), into_y.astype(np.complex64)
        into_x, into_y = transforms[base]
        cross = spectra.spectrum[k, :, :fy]
        power = float(np.vdot(square_weight, cross.real**2 + cross.imag**2))
        if power <= 0:
            continue
        correlation = (into_x @ (cross * weight) @ into_y).real
        grain = power / (density[k] * pixels * share[k]) ** 2
        # A nearly empty rectangle must not turn rounding into a perfect match.
        energy = np.maximum(spectra.energy[k], 0.01 * density[k] * spectra.area[k]) * share[k]
        coefficient = np.clip(correlation / np.maximum(energy, 1e-30), -0.995, 0.995)
        coefficients[k] = coefficient
        samples = spectra.area[k] / (grain * spectra.crowding[k])  # grain: pixels per independent sample
        result[k] = np.sign(coefficient) * np.sqrt(-samples * np.log1p(-(coefficient**2)))
    return result, coefficients


NEAR = 3
"""Lags that are looked at when the overlap is known to about a pixel."""
HIGHEST = 0.3
"""Cycles per pixel along x and along y: beyond, speckle hides every tissue."""
SMOOTHING = 0.04
"""Width, in cycles per pixel, over which a link's own power is averaged: about the number of its independent values."""
OWN_SHARE = 0.7
"""How much of the signal's power is taken from the link itself; the rest from all links."""
UNLIKE = 0.03
"""Share of the signal in which two tiles differ although they show the same: focus, contrast, gain."""


@dataclass(frozen=True)
class AlignedOverlaps:
    """Spectra of overlaps that are aligned to the nearest pixel, both tiles cut to the rectangle that they share.

    Attributes
    ----------
    offset_lag : ndarray of int, shape (n, 2)
        Displacement that lag (0, 0) stands for.
    padded : tuple of int
        Size of the transforms along x and y.
    cross : ndarray, shape (n, fx, fy), complex64
        Product of the first overlap's spectrum and the conjugate of the second's, low frequencies only.
    power : ndarray, shape (n, fx, fy), float32
        Mean power of both per frequency and pixel.
    area : ndarray, shape (n,)
        Pixels that count; 0 where the overlap is too small or one of the two is blank.
    rows : ndarray of int, shape (fx,)
        Rows of the whole transform that were kept.
    crowding : ndarray, shape (n,), float32
        `crowding` of the two views.
    """

    offset_lag: NDArray[np.intp]
    padded: tuple[int, int]
    cross: NDArray[np.complex64]
    power: FloatArray
    area: FloatArray
    rows: NDArray[np.intp]
    crowding: FloatArray

    @property
    def frequency(self) -> tuple[FloatArray, FloatArray]:
        """Frequencies along x, shape (fx, 1), and along y, shape (1, fy), in cycles per pixel."""
        fx = np.fft.fftfreq(self.padded[0])[self.rows]
        fy = np.arange(self.power.shape[2]) / self.padded[1]
        return np.asarray(fx[:, None], np.float32), np.asarray(fy[None, :], np.float32)

    @property
    def ring(self) -> NDArray[np.intp]:
        """Ring of every frequency, shape (fx, fy)."""
        fx, fy = self.frequency
        return np.asarray(np.minimum((np.hypot(fx, fy) * (RINGS / np.sqrt(0.5))).astype(np.intp), RINGS - 1))


@dataclass(frozen=True)
class NoiseModel:
    """Power per pixel of the shared and of the independent part of overlapping tiles, by ring of frequency.

    Attributes
    ----------
    signal, noise : ndarray, shape (rings,), float32
        Estimated from links whose shift is known. `signal` is 0 where nothing is shared.
    """

    signal: FloatArray
    noise: FloatArray


def aligned_overlaps(
    tiles: FilteredTiles,
    pairs: NDArray[np.intp],
    displacement_px: NDArray[np.intp],
    /,
    *,
    reach_px: int = NEAR,
    span: tuple[float, float] = (0.0, 1.0),
    workers: int = 2,
) -> AlignedOverlaps:
    """Return the spectra of overlaps that are aligned to the nearest pixel.

    Both tiles are cut to the very rectangle that they share, filtered within it, with the same soft edges. The size of
    the overlap then does not change with the lag to first order, which would otherwise push every peak of a speckled
    texture outwards by about a tenth of a pixel, and no tile's own edge pulls it inwards by some hundredths: little for
    a link, but it adds up over a mosaic.

    Parameters
    ----------
    tiles : FilteredTiles
        The tiles.
    pairs : ndarray of int, shape (n, 2)
        First and second tile of each link.
    displacement_px : ndarray of int, shape (n, 2)
        Position of the second tile against the first, to the nearest pixel.
    reach_px : int
        Largest lag that will be looked at.
    span : tuple of float
        From where to where along its longer side an overlap is looked at, as shares of that side.
    workers : int
        Threads of the Fourier transforms.
    """
    from scipy import fft

    size = np.array(tiles.tile_shape)
    n = len(pairs)
    shared = np.maximum(size - np.abs(displacement_px), 4)
    longer = np.argmax(shared, axis=1)
    from_px = np.zeros((n, 2), np.intp)
    to_px = shared.copy()
    every = np.arange(n)
    from_px[every, longer] = np.rint(span[0] * shared[every, longer])
    to_px[every, longer] = np.rint(span[1] * shared[every, longer])
    shared = to_px - from_px
    nx, ny = (int(fft.next_fast_len(int(m) + reach_px, real=True)) for m in shared.max(axis=0, initial=4))
    rows = np.flatnonzero(np.abs(np.fft.fftfreq(nx)) <= HIGHEST)
    fy = min(int(HIGHEST * ny) + 1, ny // 2 + 1)
    cross = np.zeros((n, len(rows), fy), np.complex64)
    power = np.zeros((n, len(rows), fy), np.float32)
    area = np.zeros(n, np.float32)
    crowded = np.ones(n, np.float32)
    for start in range(0, n, BATCH):
        part = range(start, min(start + BATCH, n))
        cut = np.zeros((2, len(part), nx, ny), np.float32)
        for row, k in enumerate(part):
            low = np.maximum(displacement_px[k], 0)
            high = np.minimum(size, size + displacement_px[k])
            if np.any(high - low < 4):
                continue
            low, high = low + from_px[k], low + to_px[k]
            edge_x, edge_y = _soft_edge(int(high[0] - low[0])), _soft_edge(int(high[1] - low[1]))
            soft = edge_x[:, None] * edge_y[None, :]
            for side, origin in ((0, low), (1, low - displacement_px[k])):
                patch = tiles.patch(int(pairs[k, side]), origin.tolist(), soft.shape)
                cut[side, row, : len(edge_x), : len(edge_y)] = patch * soft
            if cut[0, row].any() and cut[1, row].any():
                area[k] = float((soft**2).sum())
                one, other = cut[:, row, : len(edge_x), : len(edge_y)]
                crowded[k] = max(float(crowding(_envelopes(one), _envelopes(other))), 1.0)
        first, second = (fft.rfft2(one, workers=workers) for one in cut)
        here = slice(part.start, part.stop)
        per_pixel = 0.5 / np.maximum(area[here], 1)
        first, second = first[:, rows, :fy], second[:, rows, :fy]
        np.multiply(first, second.conj(), out=cross[here])
        power[here] = first.real**2 + first.imag**2
        power[here] += second.real**2 + second.imag**2
        power[here] *= per_pixel[:, None, None]
    return AlignedOverlaps(displacement_px, (nx, ny), cross, power, area, rows, crowded)


def noise_model(
    overlaps: AlignedOverlaps, displacement_px: NDArray[np.floating], known: NDArray[np.bool_], /
) -> NoiseModel | None:
    """Return the shared and the independent power of overlaps, from links with known displacement; None without any.

    Parameters
    ----------
    overlaps : AlignedOverlaps
        The overlaps.
    displacement_px : ndarray, shape (n, 2)
        Their displacements, to a fraction of a pixel.
    known : ndarray of bool, shape (n,)
        Which of the displacements are known.
    """
    fx, fy = overlaps.frequency
    off = displacement_px - overlaps.offset_lag
    good = np.flatnonzero((overlaps.area > 0) & known)[:120]
    if len(good) == 0:
        return None
    flat = overlaps.ring.ravel()
    doubled = np.where(fy > 0, 2.0, 1.0) * np.ones_like(fx)
    cross = np.zeros(flat.shape)
    power = np.zeros(flat.shape)
    for k in good:
        turn = np.exp(2j * np.pi * fx * off[k, 0]) * np.exp(2j * np.pi * fy * off[k, 1])
        cross += (overlaps.cross[k] * turn).real.ravel() / overlaps.area[k]
        power += overlaps.power[k].ravel()
    count = _smoothed(np.bincount(flat, doubled.ravel(), minlength=RINGS))
    per_value = np.maximum(count, 1e-9) * len(good)
    signal = _smoothed(np.bincount(flat, cross * doubled.ravel(), minlength=RINGS)) / per_value
    both = _smoothed(np.bincount(flat, power * doubled.ravel(), minlength=RINGS)) / per_value
    # Zero padding makes neighbouring frequencies alike: fewer values are independent than there are.
    independent = per_value * overlaps.area[good].mean() / (overlaps.padded[0] * overlaps.padded[1])
    clear = signal > 2 * both / np.sqrt(np.maximum(independent, 1))
    if not clear.any():
        return None
    signal = np.where(clear, np.minimum(signal, 0.98 * both), 0)
    noise = np.maximum(both - signal, 1e-9)
    return NoiseModel(np.asarray(signal, np.float32), np.asarray(noise, np.float32))


def aligned_likelihoods(
    overlaps: AlignedOverlaps, model: NoiseModel, /, *, reach_px: int = NEAR
) -> tuple[FloatArray, FloatArray]:
    """Return the log-likelihood of lags of up to `reach_px` about the nearest pixel, and its scatter by chance.

    The noise's power is that of all links; the signal's power, and in which directions it lies, is what is left of the
    link's own power, averaged over neighbouring frequencies.

    Parameters
    ----------
    overlaps : AlignedOverlaps
        From `aligned_overlaps`.
    model : NoiseModel
        From `noise_model`.
    reach_px : int
        Largest lag along x and y, at most that of `overlaps`.

    Returns
    -------
    likelihood : ndarray, shape (n, 2*reach+1, 2*reach+1), float32
        Logarithm of the likelihood of every lag, up to a constant; lag (0, 0) in the middle. Its curvature at the peak
        is the inverse covariance of the lag. 0 where an overlap is blank.
    chance : ndarray, shape (n,), float32
        Standard deviation of `likelihood` between tiles that have nothing in common.

    Notes
    -----
    For signal and noise of power S and N the most likely lag maximises the correlation weighted by S / (N^2 + 2 S N)
    (Hannan, E. J., Thomson, P. J. (1973), Estimating group delay, Biometrika 60), which is in units of the
    log-likelihood.
    """
    n, kept_x, kept_y = overlaps.power.shape
    nx, ny = overlaps.padded
    fx, fy = (values.ravel().astype(np.float64) for values in overlaps.frequency)
    lags = np.arange(-reach_px, reach_px + 1)
    doubled = np.where(np.arange(kept_y) > 0, 2.0, 1.0) / (nx * ny)
    into_x = np.exp(2j * np.pi * lags[:, None] * fx[None, :]).astype(np.complex64)
    into_y = (np.exp(2j * np.pi * fy[:, None] * lags[None, :]) * doubled[:, None]).astype(np.complex64)
    along_x, along_y, mirrored = _averages(fx, fy)
    place = np.full(nx, -1, np.intp)
    place[overlaps.rows] = np.arange(kept_x)
    opposite = place[(-overlaps.rows) % nx]
    shared = model.signal[overlaps.ring]
    noise = model.noise[overlaps.ring]
    usual = shared + noise
    likelihood = np.zeros((n, len(lags), len(lags)), np.float32)
    chance = np.zeros(n, np.float32)
    for start in range(0, n, BATCH):
        part = slice(start, min(start + BATCH, n))
        # Averaged relative to the usual power: that of correlated speckle falls steeply.
        ratio = overlaps.power[part] / usual
        ratio = along_x @ (ratio @ along_y + ratio[:, opposite] @ mirrored)
        signal = np.maximum(ratio * usual - noise, 0)
        signal *= np.float32(OWN_SHARE)
        signal += np.float32(1 - OWN_SHARE) * shared
        signal *= shared > 0
        crowded = overlaps.crowding[part]
        own_noise = noise + np.float32(UNLIKE) * crowded[:, None, None] * signal
        weight = signal / (own_noise * (own_noise + 2 * signal))
        likelihood[part] = (into_x @ (overlaps.cross[part] * weight) @ into_y).real
        expected = (weight * ratio * usual) ** 2 @ doubled.astype(np.float32)
        chance[part] = overlaps.area[part] * np.sqrt(crowded * expected.sum(axis=1) / (nx * ny))
    likelihood[overlaps.area <= 0] = 0
    return likelihood, chance


def _averages(fx: NDArray[np.float64], fy: NDArray[np.float64]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the matrices that average power over neighbouring frequencies: along x, along y, and across fy = 0.

    The half of the spectrum that is not kept is the other one turned by 180 degrees.
    """

    def near(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.exp(-0.5 * ((a[:, None] - b[None, :]) / SMOOTHING) ** 2))

    along_x = near(fx, fx)
    along_x /= along_x.sum(axis=1, keepdims=True)
    along_y, mirrored = near(fy, fy), near(-fy, fy)
    mirrored[0] = 0  # fy = 0 is its own mirror image
    total = along_y.sum(axis=0) + mirrored.sum(axis=0)
    return (
        np.asarray(along_x, np.float32),
        np.asarray(along_y / total, np.float32),
        np.asarray(mirrored / total, np.float32),
    )


def _smoothed(values: NDArray[Any]) -> NDArray[np.float64]:
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    return np.asarray(np.convolve(np.pad(values, 2, mode="edge"), kernel, "valid"), np.float64)


RISE = 4


def _soft_edge(length: int) -> FloatArray:
    """Return a window that rises and falls over up to `RISE` px."""
    rise = min(RISE, max(length // 4, 1))
    window = np.ones(length, np.float32)
    flank = np.sin(np.pi / 2 * (np.arange(rise) + 0.5) / rise).astype(np.float32) ** 2
    window[:rise] = flank
    window[-rise:] = flank[::-1]
    return window

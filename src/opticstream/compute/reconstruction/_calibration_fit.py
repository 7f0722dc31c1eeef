"""Calibration from recordings: the k-map from the fringes of mirrors, dispersion by maximum sharpness.

The phase of a mirror's fringe is `2 z k(p) + phi(k)` on one side of zero delay and `2 z k(p) - phi(k)` on the other.
Added over both sides the dispersion `phi` cancels and what is left is linear in wavenumber.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.reconstruction._calibration import positions_from_coordinate

Array = NDArray[np.float64]
NEAREST_BIN = 12
"""Peaks closer to zero delay are taken for the source's own spectrum."""


def fringe_phase(spectrum: NDArray[Any], /, *, degree: int = 6) -> Array:
    """Return the phase of a mirror's fringe over the pixels, rising, shape (samples,), in radians.

    The strongest peak away from zero delay is cut out of the Fourier transform; its phase is unwrapped and smoothed by
    a polynomial, weighted by the fringe's power, so that the dim ends of the spectrum follow the bright middle.

    Raises
    ------
    ValueError
        There is no clear peak.
    """
    signal = np.asarray(spectrum, dtype=np.float64)
    samples = signal.size
    if signal.ndim != 1 or not np.isfinite(signal).all():
        raise ValueError(f"a mirror recording is one finite spectrum, got shape {signal.shape}")
    pixel = np.linspace(-1, 1, samples)
    signal = signal - np.polynomial.Polynomial.fit(pixel, signal, 5)(pixel)
    transform = np.fft.fft(signal * np.hanning(samples))
    power = np.abs(transform[: samples // 2]) ** 2
    peak = NEAREST_BIN + int(power[NEAREST_BIN:].argmax())
    if power[peak] < 30 * np.median(power[NEAREST_BIN:]):
        raise ValueError(f"no mirror peak stands out of the noise (strongest at bin {peak})")
    # As wide as the peak is smeared: down to a thousandth of its power, on both sides.
    around = np.convolve(power, np.ones(5) / 5, mode="same") > 1e-3 * power[peak]
    left = peak - int(np.argmin(around[peak::-1]))
    right = peak + int(np.argmin(np.append(around[peak:], False)))
    margin = max(4, (right - left) // 4)
    band = np.zeros(samples)
    band[max(NEAREST_BIN // 2, left - margin) : min(samples // 2, right + margin + 1)] = 1
    analytic = np.fft.ifft(np.fft.fft(signal) * band)
    phase = np.unwrap(np.angle(analytic))
    strength = np.abs(analytic)
    strength[: samples // 50] = strength[-(samples // 50) :] = 0  # the band's own ripples
    fit = np.polynomial.Polynomial.fit(pixel, phase, degree, w=strength)
    return np.asarray(fit(pixel))


def positions_from_mirrors(
    spectra: Sequence[NDArray[Any]], /, *, sides: Sequence[int] | None = None, degree: int = 6
) -> Array:
    """Return the fractional pixel positions that make spectra linear in wavenumber, from recordings of a mirror.

    Parameters
    ----------
    spectra : sequence of arrays, shape (samples,)
        One recording per position of the mirror, background taken off.
    sides : sequence of +1 or -1, optional
        Side of zero delay of each recording. With both sides the dispersion cancels; with one side what it bends is
        taken for the k-map's own bend, which is right at that depth only. Default: all on one side.
    degree : int
        Of the polynomial that the phase is smoothed by.

    Raises
    ------
    ValueError
        A recording shows no mirror, or its phase turns back.

    Examples
    --------
    >>> pixel = np.arange(512)
    >>> k = pixel + 0.0001 * (pixel - 255.5) ** 2
    >>> spectra = [np.cos(2 * np.pi * bin / 512 * k) for bin in (60, 90)]
    >>> positions = positions_from_mirrors(spectra)
    >>> bool(np.ptp(np.diff(np.interp(positions, pixel, k))) < 0.01)
    True
    """
    phases = [fringe_phase(spectrum, degree=degree) for spectrum in spectra]
    sides = [1] * len(phases) if sides is None else list(sides)
    if len(sides) != len(phases) or any(side not in (-1, 1) for side in sides):
        raise ValueError(f"expected +1 or -1 for each of {len(phases)} recordings, got {sides}")
    total = np.zeros(phases[0].size)
    for side in (-1, 1):  # both sides have the same weight for any number of recordings
        these = [phase - phase[0] for phase, where in zip(phases, sides, strict=True) if where == side]
        if these:
            total += np.mean(these, axis=0)
    if not (np.diff(total) > 0).all():
        raise ValueError("the phase of the fringes turns back; is it one mirror, and is the background taken off?")
    return positions_from_coordinate(total, np.linspace(total[0], total[-1], total.size))


def _resampled(spectra: Array, positions: NDArray[Any] | None) -> Array:
    if positions is None:
        return spectra
    samples = spectra.shape[-1]
    index = np.clip(np.floor(positions), 0, samples - 2).astype(np.intp)
    part = positions - index
    return np.asarray(spectra[..., index] * (1 - part) + spectra[..., index + 1] * part)


def sharpness(profiles: NDArray[Any], /) -> float:
    """Return the sharpness of depth profiles (..., z): mean of |J|^4 over squared mean of |J|^2, by A-line."""
    power = np.abs(profiles) ** 2
    return float(((power**2).mean(axis=-1) / np.maximum(power.mean(axis=-1), 1e-30) ** 2).mean())


def dispersion_from_spectra(
    spectra: NDArray[Any],
    /,
    *,
    positions: NDArray[Any] | None = None,
    largest_rad: float = 60.0,
    cut: int = NEAREST_BIN,
) -> Array:
    """Return the dispersion phase (rad, over the linear samples) that makes depth profiles sharpest.

    Parameters
    ----------
    spectra : ndarray, shape (n, samples)
        A-lines with the background taken off: of a mirror, or of a sample with clear layers or a rough surface.
    positions : ndarray, shape (samples,), optional
        k-linearization.
    largest_rad : float
        How far the second order may bend from the middle of the spectrum to its ends.
    cut : int
        Depth samples next to zero delay that do not count.

    Notes
    -----
    Second and third order on u = -1..1 over the spectrum: a grid of second orders, then a search in both by the simplex
    method. Sign and meaning are those of `spectral_plan`: spectra are multiplied by exp(-1j phi).
    """
    from scipy.optimize import minimize

    linear = _resampled(np.atleast_2d(np.asarray(spectra, dtype=np.float64)), positions)
    linear = linear - linear.mean(axis=-1, keepdims=True)
    samples = linear.shape[-1]
    window = np.hanning(samples)
    u = np.linspace(-1, 1, samples)

    def cost(order: NDArray[Any]) -> float:
        phase = order[0] * u**2 + order[1] * (u**3 - 0.6 * u)
        profiles = np.fft.fft(linear * (window * np.exp(-1j * phase)), axis=-1)
        return -sharpness(profiles[:, cut : samples // 2])

    grid = np.linspace(-largest_rad, largest_rad, 1 + 2 * int(np.ceil(largest_rad)))
    start = min(grid, key=lambda second: cost(np.array([second, 0.0])))
    simplex = np.array([[start, 0.0], [start + 1, 0.0], [start, 1.0]])
    best = minimize(
        cost, simplex[0], method="Nelder-Mead", options={"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-9}
    )
    second, third = best.x
    return np.asarray(second * u**2 + third * (u**3 - 0.6 * u))


def peak_width_bins(
    spectrum: NDArray[Any],
    /,
    *,
    positions: NDArray[Any] | None = None,
    dispersion_rad: NDArray[Any] | None = None,
    zero_padding: int = 16,
) -> float:
    """Return the full width at half maximum of a mirror's peak in bins (Hann window); the smaller, the sharper."""
    linear = _resampled(np.asarray(spectrum, dtype=np.float64), positions)
    samples = linear.size
    linear = linear - linear.mean()
    phase = np.zeros(samples) if dispersion_rad is None else dispersion_rad
    profile = np.abs(np.fft.fft(linear * np.hanning(samples) * np.exp(-1j * phase), zero_padding * samples))
    profile = profile[: profile.size // 2]
    peak = NEAREST_BIN * zero_padding + int(profile[NEAREST_BIN * zero_padding :].argmax())
    half = profile[peak] / 2
    low = peak - int(np.argmax(profile[peak::-1] < half))
    high = peak + int(np.argmax(profile[peak:] < half))
    left = low + (half - profile[low]) / (profile[low + 1] - profile[low])
    right = high - (half - profile[high]) / (profile[high - 1] - profile[high])
    return float((right - left) / zero_padding)

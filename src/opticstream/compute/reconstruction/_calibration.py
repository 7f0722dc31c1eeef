"""Every form in which rigs describe their spectrometer, turned into one: where to sample the recorded spectrum.

A k-linearization is a vector of fractional pixel positions; the spectrum is read there by linear interpolation (and
linear extrapolation beyond its ends). Wavelengths, phases and chirps all come down to such positions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _monotonic(values: ArrayLike, what: str) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size < 2:
        raise ValueError(f"{what} must be a vector of at least two numbers, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        first = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ValueError(f"{what} holds {vector[first]} at index {first}; all values must be finite")
    steps = np.diff(vector)
    direction = 1.0 if vector[-1] > vector[0] else -1.0
    if not (steps * direction > 0).all():
        first = int(np.flatnonzero(steps * direction <= 0)[0])
        raise ValueError(
            f"{what} must rise or fall all the way, but goes from {vector[first]:g} at index {first} "
            f"to {vector[first + 1]:g} at the next"
        )
    return vector


def positions_from_coordinate(coordinate: ArrayLike, targets: ArrayLike, /) -> NDArray[np.float64]:
    """Return the fractional pixel positions at which a coordinate given per pixel takes the values `targets`.

    Parameters
    ----------
    coordinate : array_like, shape (samples,)
        Value at every pixel; rises or falls all the way.
    targets : array_like, shape (n,)
        Values wanted, in any order; beyond the ends the coordinate is continued in a straight line.

    Raises
    ------
    ValueError
        The coordinate is not finite or turns back.

    Examples
    --------
    >>> positions_from_coordinate([0.0, 10.0, 30.0], [5.0, 20.0, 50.0]).tolist()
    [0.5, 1.5, 3.0]
    """
    vector = _monotonic(coordinate, "the coordinate")
    wanted = np.asarray(targets, dtype=np.float64)
    if vector[-1] < vector[0]:
        vector, wanted = -vector, -wanted
    index = np.clip(np.searchsorted(vector, wanted, side="right") - 1, 0, vector.size - 2)
    return index + (wanted - vector[index]) / (vector[index + 1] - vector[index])


def wavelengths_from_line(first: float, step: float, /, *, samples: int) -> NDArray[np.float64]:
    """Return the wavelength of every pixel of a straight-line fit.

    Examples
    --------
    >>> wavelengths_from_line(1250.0, 0.5, samples=3).tolist()
    [1250.0, 1250.5, 1251.0]
    """
    return first + step * np.arange(samples, dtype=np.float64)


def positions_from_wavelengths(*wavelengths: ArrayLike) -> NDArray[np.float64]:
    """Return where to sample each channel so that all channels share one grid, linear in wavenumber.

    Parameters
    ----------
    *wavelengths : array_like, shape (samples,)
        Wavelength of every pixel, one vector per channel, in one unit; as the channel stands after its reversal.

    Returns
    -------
    ndarray, shape (channels, samples)
        Fractional pixel positions; the common grid covers the wavelengths that every channel has, wavelength rising.

    Examples
    --------
    >>> positions = positions_from_wavelengths([1.0, 1.5, 2.0])
    >>> positions.round(3).tolist()
    [[0.0, 0.667, 2.0]]
    """
    vectors = [_monotonic(vector, f"the wavelengths of channel {c + 1}") for c, vector in enumerate(wavelengths)]
    for c, vector in enumerate(vectors):
        if vector.min() <= 0:
            raise ValueError(f"the wavelengths of channel {c + 1} must be positive, got {vector.min():g}")
        if vector.size != vectors[0].size:
            raise ValueError(f"channel {c + 1} has {vector.size} wavelengths, channel 1 has {vectors[0].size}")
    longest = min(vector.max() for vector in vectors)
    shortest = max(vector.min() for vector in vectors)
    if longest <= shortest:
        raise ValueError("the channels have no wavelength in common")
    grid = 1.0 / np.linspace(1.0 / shortest, 1.0 / longest, vectors[0].size)
    return np.stack([positions_from_coordinate(vector, grid) for vector in vectors])


def positions_from_phases(measured: ArrayLike, linear: ArrayLike, /) -> NDArray[np.float64]:
    """Return where the measured phase (`dphase`, rad per pixel) takes the values of the linear ramp (`linPhase`).

    Examples
    --------
    >>> positions_from_phases([0.0, 1.0, 4.0], [0.0, 2.0, 4.0]).round(3).tolist()
    [0.0, 1.333, 2.0]
    """
    return positions_from_coordinate(_monotonic(measured, "the measured phase"), _monotonic(linear, "the linear phase"))


def positions_from_chirp(chirp: ArrayLike, /) -> NDArray[np.float64]:
    """Return where to sample the spectrum, given the linear-wavenumber index of every pixel (a "chirp").

    Examples
    --------
    >>> positions_from_chirp([0.0, 2.0, 3.0, 3.5]).tolist()
    [0.0, 0.5, 1.0, 2.0]
    """
    vector = _monotonic(chirp, "the chirp")
    return positions_from_coordinate(vector, np.arange(vector.size))


def validated_positions(positions: ArrayLike, /, *, samples: int) -> NDArray[np.float64]:
    """Return positions after checking that they can sample a spectrum of `samples` pixels.

    Raises
    ------
    ValueError
        Wrong length, not finite, turning back, or reaching further outside the spectrum than an eighth of its length,
        where a linear extrapolation means nothing any more.
    """
    vector = _monotonic(positions, "the positions")
    if vector.size != samples:
        raise ValueError(f"expected {samples} positions, got {vector.size}")
    margin = samples / 8
    if vector.min() < -margin or vector.max() > samples - 1 + margin:
        raise ValueError(
            f"positions run from {vector.min():g} to {vector.max():g}, far outside the {samples} pixels of the spectrum"
        )
    return vector

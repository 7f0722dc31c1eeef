"""Complex depth profiles to intensity, retardance and orientation, and to and from the rigs' complex tile layout.

Arrays may belong to any library (see `opticstream.compute.arrays`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.arrays import library_of

EPS32 = float(np.finfo(np.float32).eps)
"""Smallest intensity and amplitude that differs from zero; -69.2 dB."""


def intensity_db_from_jones(jones: NDArray[np.complex64], /) -> NDArray[np.float32]:
    """Return `10 log10(|J1|^2 + |J2|^2)` in dB; not less than -69.2 dB, the value for zero.

    Parameters
    ----------
    jones : ndarray of complex64, shape (channels, ...)
        One or two channels.

    Examples
    --------
    >>> intensity_db_from_jones(np.array([[3 + 0j], [4j]], np.complex64)).round(2).tolist()
    [13.979999542236328]
    """
    xp = library_of(jones)
    power = xp.real(jones[0, ...]) ** 2
    power += xp.imag(jones[0, ...]) ** 2
    for channel in range(1, jones.shape[0]):
        power += xp.real(jones[channel, ...]) ** 2
        power += xp.imag(jones[channel, ...]) ** 2
    intensity_db = xp.log10(xp.maximum(power, EPS32))
    intensity_db *= 10
    return intensity_db


def retardance_from_jones(jones: NDArray[np.complex64], /) -> NDArray[np.float32]:
    """Return the retardance `atan(|J1| / |J2|)` in degrees, 0..90, for `jones` of shape (2, ...).

    Examples
    --------
    >>> retardance_from_jones(np.array([[1, 0], [1j, 1]], np.complex64)).tolist()
    [45.0, 0.0]
    """
    _two_channels(jones)
    xp = library_of(jones)
    cross = xp.abs(jones[0, ...])
    co = xp.maximum(xp.abs(jones[1, ...]), EPS32)
    return xp.astype(xp.atan(cross / co) * (180 / math.pi), xp.float32, copy=False)


def orientation_from_jones(
    jones: NDArray[np.complex64], /, *, phase_offset_deg: float = 100.0, flip_phase: bool = False
) -> NDArray[np.float32]:
    """Return the orientation of the optic axis in degrees, in (-90, 90]; 0 along +x, positive from +x towards +y.

    Parameters
    ----------
    jones : ndarray of complex64, shape (2, ...)
        Both channels.
    phase_offset_deg : float
        Orientation offset of the instrument: what is added to the orientation.
    flip_phase : bool
        Negate the phase difference before the offset is added.

    Examples
    --------
    >>> j = np.array([[1j], [1]], np.complex64)
    >>> orientation_from_jones(j, phase_offset_deg=0).tolist()
    [45.0]
    >>> orientation_from_jones(j, phase_offset_deg=45).tolist()  # -90 and 90 are one axis
    [90.0]
    """
    _two_channels(jones)
    xp = library_of(jones)
    product = jones[0, ...] * xp.conj(jones[1, ...])
    difference = xp.atan2(xp.imag(product), xp.real(product))
    sign = -1.0 if flip_phase else 1.0
    offset = axial.offset_within_half_turn(phase_offset_deg)
    return xp.astype(axial.wrap(difference * (sign * 90 / math.pi) + offset), xp.float32, copy=False)


def complex_tile_from_jones(jones: NDArray[np.complex64], /) -> NDArray[np.float32]:
    """Return the exchange format of the rigs, shape (2 * channels * x, y, z), depth reversed.

    Along x follow each other Re J1, Im J1, Re J2, Im J2. `jones` has shape (channels, x, y, z).

    Examples
    --------
    >>> tile = complex_tile_from_jones(np.array([[[[1 + 2j, 3 + 4j]]]], np.complex64))
    >>> tile[:, 0, :].tolist()
    [[3.0, 1.0], [4.0, 2.0]]
    """
    xp = library_of(jones)
    parts = [part(jones[channel, ...]) for channel in range(jones.shape[0]) for part in (xp.real, xp.imag)]
    return xp.concat(parts, axis=0)[:, :, ::-1]


def jones_from_complex_tile(tile: NDArray[np.floating[Any]], /, *, channels: int = 2) -> NDArray[np.complex64]:
    """Return complex profiles, shape (channels, x, y, z) with depth as the spectrum gives it, from a complex tile.

    The inverse of `complex_tile_from_jones`.

    Raises
    ------
    ValueError
        The length along x is not a multiple of `2 * channels`.

    Examples
    --------
    Along x follow the real parts of all A-lines, then the imaginary ones; depth runs backwards in the file:

    >>> tile = np.array([[3, 1], [4, 2]], np.float32)[:, None]
    >>> jones_from_complex_tile(tile, channels=1).tolist()
    [[[[(1+2j), (3+4j)]]]]
    """
    a_lines, rest = divmod(tile.shape[0], 2 * channels)
    if rest or not a_lines:
        raise ValueError(f"a complex tile of {channels} channels cannot be {tile.shape[0]} long in x")
    parts = tile[:, :, ::-1].reshape(channels, 2, a_lines, *tile.shape[1:])
    jones = np.empty((channels, a_lines, *tile.shape[1:]), np.complex64)
    jones.real = parts[:, 0]
    jones.imag = parts[:, 1]
    return jones


def _two_channels(jones: NDArray[Any]) -> None:
    if jones.shape[0] != 2:
        raise ValueError(f"polarization needs two channels, got {jones.shape[0]}")

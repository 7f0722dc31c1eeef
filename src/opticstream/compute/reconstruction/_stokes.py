"""Axis, birefringence and retardance from polarization states that are averaged before any angle is taken.

Intensity-weighted Stokes parameters of the light that comes back, `S1 + i S2 = 2 J1 conj(J2)` and
`S3 = |J2|^2 - |J1|^2`, carry noise without bias (that of S3 cancels between the channels), weigh speckle by its signal,
and do not fold at 90 degrees. For one fibre axis along the A-line they go round a circle: with retardance growing at a
rate `w` per sample, `S3 = I cos(w z)` and `S1 + i S2 = I sin(w z) exp(i psi)`, from `S = (0, 0, I)` at the surface on.
The fit maximises the correlation with that circle over `w >= 0` and `psi`, which is maximum likelihood for white noise;
as the sense of rotation is known, fast and slow axis do not get mixed up where retardance has folded. The surface is
known to a sample or two only, and a circle that starts late turns too slowly: the start `d` is fitted, too, as
`w (z + d)`, held near the surface by a price on `d^2` that rises where the states do not agree with any circle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.reconstruction._enface import DepthWindow

LARGEST_BIREFRINGENCE = 6e-3
"""Beyond that of tendon; the search ends here."""
START_STEP_PX = 1.0
"""Distances from the surface at which starts of the circle are tried; a parabola gives the best one."""
START_LIMIT_PX = 3.0
"""Farthest start of the circle from the surface."""
START_STIFFNESS = 1e-4
"""Penalty of a start away from the surface, per squared sample; equals the gain for a rate of 0.01 rad per sample."""
LEAST_AGREEMENT = 0.01
"""Share of their length that states have in common with the best circle, below which they are all noise."""
BLOCK_PX = 9
"""Depth samples over which states are averaged before a retardance is taken."""
LEAST_SIGNAL = 0.5
"""Signal over noise from which a block is used for the retardance."""

Floats = NDArray[np.float32]
_TINY = 1e-30


def rates_of(*, depth: int, depth_step_um: float, wavelength_um: float) -> Floats:
    """Return the rates (rad per sample, twice the retardance) among which the fit begins, evenly spaced from 0."""
    largest = 4 * np.pi * LARGEST_BIREFRINGENCE * depth_step_um / wavelength_um
    largest = min(largest, 0.9 * np.pi)
    n = max(4, int(np.ceil(largest * (depth + 1) / 0.5)) + 1)
    return np.linspace(0, largest, n).astype(np.float32)


def rate_tables(rates: Floats, /, *, depth: int, offset: int) -> tuple[Floats, Floats]:
    """Return cosine and sine of rate times depth below the surface, shape (rates, depth + 1)."""
    angle = np.outer(rates.astype(np.float64), np.arange(depth + 1) + offset)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def stokes_from_jones(jones: NDArray[np.complex64], /) -> Floats:
    """Return S1, S2, S3 of complex profiles, shape (3, ...) for `jones` of shape (2, ...).

    Examples
    --------
    >>> stokes_from_jones(np.array([[1j], [1]], np.complex64))[:, 0].tolist()
    [0.0, 2.0, 0.0]
    """
    cross = 2 * jones[0] * jones[1].conj()
    balance = np.abs(jones[1]) ** 2 - np.abs(jones[0]) ** 2
    return np.stack([cross.real, cross.imag, balance]).astype(np.float32)


def _windowed(jones: NDArray[np.complex64], window: DepthWindow) -> tuple[NDArray[np.complex64], Floats]:
    """Return profiles and states inside a window; states are zero where it ends early."""
    inside = np.stack([np.take_along_axis(channel, window.index, axis=2) for channel in jones])
    return inside, np.where(window.valid, stokes_from_jones(inside), np.float32(0))


def axis_and_birefringence(
    jones: NDArray[np.complex64],
    window: DepthWindow,
    /,
    *,
    offset: int = 0,
    depth_step_um: float,
    wavelength_um: float,
    phase_offset_deg: float = 100.0,
    flip_phase: bool = False,
) -> tuple[Floats, Floats]:
    """Return orientation (degrees, (-90, 90]) and birefringence of the best circle over a window, each of shape (x, y).

    Parameters
    ----------
    jones : ndarray of complex64, shape (2, x, y, z)
        Complex profiles, both channels.
    window : DepthWindow
        Window below the surface, from `depth_window`.
    offset : int
        Depth of the window's start below the surface, in samples.
    depth_step_um, wavelength_um : float
        Distance of depth samples and centre wavelength.
    phase_offset_deg, flip_phase
        As in `orientation_from_jones`.

    Examples
    --------
    Retardance that folds twice within the window:

    >>> from opticstream.compute.reconstruction._enface import depth_window
    >>> retardance = 2 * np.pi * 0.004 * 2.5 / 1.3 * np.arange(100)
    >>> jones = np.stack([np.sin(retardance) * np.exp(2j * np.deg2rad(30)), np.cos(retardance)])
    >>> jones = jones.reshape(2, 1, 1, 100).astype(np.complex64)
    >>> window = depth_window([[0]], depth_samples=100)
    >>> axis, birefringence = axis_and_birefringence(
    ...     jones, window, depth_step_um=2.5, wavelength_um=1.3, phase_offset_deg=0)
    >>> float(axis[0, 0].round(2)), round(float(birefringence[0, 0]), 5)
    (30.0, 0.004)
    """
    depth = window.index.shape[-1] - 1
    rates = rates_of(depth=depth, depth_step_um=depth_step_um, wavelength_um=wavelength_um)
    cosine, sine = rate_tables(rates, depth=depth, offset=offset)
    s1, s2, s3 = _windowed(jones, window)[1]
    across = s1 + 1j * s2
    sums = (s3 @ cosine.T, s3 @ sine.T, across @ cosine.T, across @ sine.T)
    match = sums[0] + np.abs(sums[3])
    best = match.argmax(axis=-1)
    length = np.sqrt(s1**2 + s2**2 + s3**2).sum(axis=-1)
    agreement = np.take_along_axis(match, best[..., np.newaxis], -1)[..., 0] / np.maximum(length, _TINY)
    price = START_STIFFNESS * length / np.maximum(agreement, LEAST_AGREEMENT) ** 2
    rate, psi = _circle_near(sums, np.clip(best, 1, len(rates) - 2), float(rates[1]), price)
    sign = -1.0 if flip_phase else 1.0
    turn_deg = np.float64(axial.offset_within_half_turn(phase_offset_deg))  # the sum in double precision
    orientation = np.asarray(axial.wrap(np.degrees(sign * psi / 2) + turn_deg), np.float32)
    birefringence = rate * (wavelength_um / (4 * np.pi * depth_step_um))
    return orientation, np.asarray(birefringence, dtype=np.float32)


def _circle_near(
    sums: tuple[NDArray[Any], ...], middle: NDArray[np.intp], step: float, price: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return rate (rad per sample) and azimuth (rad) of the best circle near the `middle`-th rate, its start fitted.

    `sums` are those of S3 cos, S3 sin, (S1 + i S2) cos and (S1 + i S2) sin over depth at all rates, `step` apart.
    """
    near = [[np.take_along_axis(part, (middle + d)[..., np.newaxis], -1)[..., 0] for part in sums] for d in (-1, 0, 1)]
    rates = [step * (middle + d) for d in (-1, 0, 1)]

    def circles(start: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the match at the best rate, that rate as a shift in steps, and the azimuth, for one start."""
        match, crossing = [], []
        for rate, (s3_cos, s3_sin, s12_cos, s12_sin) in zip(rates, near, strict=True):
            cosine, sine = np.cos(rate * start), np.sin(rate * start)
            crossing.append(cosine * s12_sin + sine * s12_cos)
            match.append(cosine * s3_cos - sine * s3_sin + np.abs(crossing[-1]))
        slope, bend = 0.5 * (match[2] - match[0]), match[0] - 2 * match[1] + match[2]
        shift = np.where(bend < 0, np.clip(-slope / np.where(bend < 0, bend, -1), -1, 1), 0)
        return match[1] + shift * (slope + 0.5 * shift * bend), shift, np.angle(crossing[1])

    before, here, after = (circles(start)[0] for start in (-START_STEP_PX, 0.0, START_STEP_PX))
    gain = (after - before) / (2 * START_STEP_PX)
    bend = (before - 2 * here + after) / START_STEP_PX**2
    start = np.clip(gain / np.maximum(price - bend, _TINY), -START_LIMIT_PX, START_LIMIT_PX)
    _, shift, psi = circles(start)
    return np.maximum(step * (middle + shift), 0), psi


def retardance_without_noise(jones: NDArray[np.complex64], window: DepthWindow, /) -> Floats:
    """Return the mean retardance over a window in degrees (0..90), free of the bias that noise puts on weak signal.

    States are averaged over blocks of 9 samples; what the noise adds to the length of their sum, known from the deepest
    twentieth of each A-line, is taken off before the angle of each block is. Blocks whose signal is below
    half of the noise are not used, unless all are.

    Parameters
    ----------
    jones : ndarray of complex64, shape (2, x, y, z)
        Complex profiles, both channels.
    window : DepthWindow
        Where to average.
    """
    deep = max(1, jones.shape[-1] // 20)
    noise = (np.abs(jones[..., -deep:]) ** 2).mean(axis=-1, dtype=np.float64)[..., np.newaxis]
    inside, (s1, s2, s3) = _windowed(jones, window)
    power = np.abs(inside) ** 2
    spread = 4 * (power[0] * noise[1] + power[1] * noise[0] - noise[0] * noise[1])
    spread = np.where(window.valid, np.maximum(spread, 0), 0)
    starts = np.arange(0, window.valid.shape[-1], BLOCK_PX)
    n = np.add.reduceat(window.valid.astype(np.int64), starts, axis=-1)
    b1, b2, b3, extra = (np.add.reduceat(part, starts, axis=-1, dtype=np.float64) for part in (s1, s2, s3, spread))
    b3 = b3 - n * (noise[1] - noise[0])
    across = np.sqrt(np.maximum(b1**2 + b2**2 - extra, 0))
    retardance = np.degrees(np.arctan2(across, b3)) / 2
    total = np.where(window.valid, power[0] + power[1], 0)
    floor = noise[0] + noise[1]
    seen = np.add.reduceat(total, starts, axis=-1, dtype=np.float64) > n * (1 + LEAST_SIGNAL) * floor
    weight = np.where(seen | ~seen.any(axis=-1, keepdims=True), n, 0)
    return np.asarray((retardance * weight).sum(axis=-1) / weight.sum(axis=-1), dtype=np.float32)

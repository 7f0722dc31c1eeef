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

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute import axial
from opticstream.compute.arrays import library_of
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
    xp = library_of(jones)
    cross = 2 * jones[0, ...] * xp.conj(jones[1, ...])
    balance = xp.abs(jones[1, ...]) ** 2 - xp.abs(jones[0, ...]) ** 2
    return xp.stack([xp.real(cross), xp.imag(cross), balance])


def _windowed(jones: NDArray[np.complex64], window: DepthWindow) -> tuple[NDArray[np.complex64], Floats]:
    """Return profiles and states inside a window; states are zero where it ends early."""
    xp = library_of(jones)
    inside = xp.stack([window.take(jones[channel, ...]) for channel in range(jones.shape[0])])
    return inside, xp.where(window.valid, stokes_from_jones(inside), 0)


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
    xp = library_of(jones)
    depth = window.index.shape[-1] - 1
    rates = rates_of(depth=depth, depth_step_um=depth_step_um, wavelength_um=wavelength_um)
    cosine, sine = (xp.asarray(table.T.copy()) for table in rate_tables(rates, depth=depth, offset=offset))
    states = _windowed(jones, window)[1]
    s1, s2, s3 = (states[number, ...] for number in range(3))
    sums = (s3 @ cosine, s3 @ sine, s1 @ cosine, s2 @ cosine, s1 @ sine, s2 @ sine)
    match = sums[0] + xp.hypot(sums[4], sums[5])
    best = xp.argmax(match, axis=-1)
    length = xp.sum(xp.sqrt(s1**2 + s2**2 + s3**2), axis=-1)
    agreement = xp.max(match, axis=-1) / xp.maximum(length, _TINY)
    price = START_STIFFNESS * length / xp.maximum(agreement, LEAST_AGREEMENT) ** 2
    rate, psi = _circle_near(sums, xp.clip(best, 1, len(rates) - 2), float(rates[1]), price)
    sign = -1.0 if flip_phase else 1.0
    turn_deg = axial.offset_within_half_turn(phase_offset_deg)
    angle = xp.astype(psi * (sign * 90 / math.pi), xp.float64) + turn_deg  # the sum in double precision
    orientation = xp.astype(axial.wrap(angle), xp.float32)
    birefringence = rate * (wavelength_um / (4 * math.pi * depth_step_um))
    return orientation, xp.astype(birefringence, xp.float32)


def _circle_near(sums: tuple[Any, ...], middle: Any, step: float, price: Any) -> tuple[Any, Any]:
    """Return rate (rad per sample) and azimuth (rad) of the best circle near the `middle`-th rate, its start fitted.

    `sums` are those of S3 cos, S3 sin, S1 cos, S2 cos, S1 sin and S2 sin over depth at all rates, `step` apart.
    """
    xp = library_of(middle)
    near = [[xp.take_along_axis(part, (middle + d)[..., None], axis=-1)[..., 0] for part in sums] for d in (-1, 0, 1)]
    number = xp.astype(middle, xp.float64)
    rates = [step * (number + d) for d in (-1, 0, 1)]

    def circles(start: Any) -> tuple[Any, Any, Any]:
        """Return the match at the best rate, that rate as a shift in steps, and the azimuth, for one start."""
        match, azimuth = [], []
        for rate, (s3_cos, s3_sin, s1_cos, s2_cos, s1_sin, s2_sin) in zip(rates, near, strict=True):
            cosine, sine = xp.cos(rate * start), xp.sin(rate * start)
            across_1, across_2 = cosine * s1_sin + sine * s1_cos, cosine * s2_sin + sine * s2_cos
            match.append(cosine * s3_cos - sine * s3_sin + xp.hypot(across_1, across_2))
            azimuth.append((across_2, across_1))
        slope, bend = 0.5 * (match[2] - match[0]), match[0] - 2 * match[1] + match[2]
        shift = xp.where(bend < 0, xp.clip(-slope / xp.where(bend < 0, bend, -1), -1, 1), 0)
        return match[1] + shift * (slope + 0.5 * shift * bend), shift, xp.atan2(*azimuth[1])

    before, here, after = (circles(start)[0] for start in (-START_STEP_PX, 0.0, START_STEP_PX))
    gain = (after - before) / (2 * START_STEP_PX)
    bend = (before - 2 * here + after) / START_STEP_PX**2
    start = xp.clip(gain / xp.maximum(price - bend, _TINY), -START_LIMIT_PX, START_LIMIT_PX)
    _, shift, psi = circles(start)
    return xp.maximum(step * (number + shift), 0), psi


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
    xp = library_of(jones)
    deep = max(1, jones.shape[-1] // 20)
    noise = xp.mean(xp.astype(xp.abs(jones[..., -deep:]) ** 2, xp.float64), axis=-1)[..., None]
    inside, states = _windowed(jones, window)
    power = xp.abs(inside) ** 2
    noise_1, noise_2, power_1, power_2 = (part[number, ...] for part in (noise, power) for number in (0, 1))
    spread = 4 * (power_1 * noise_2 + power_2 * noise_1 - noise_1 * noise_2)
    spread = xp.where(window.valid, xp.maximum(spread, 0), 0)
    b1, b2, b3, extra = (_block_sums(part) for part in (*(states[number, ...] for number in range(3)), spread))
    n = _block_sums(window.valid)
    b3 = b3 - n * (noise_2 - noise_1)
    across = xp.sqrt(xp.maximum(b1**2 + b2**2 - extra, 0))
    retardance = xp.atan2(across, b3) * (90 / math.pi)
    total = _block_sums(xp.where(window.valid, power_1 + power_2, 0))
    seen = total > n * (1 + LEAST_SIGNAL) * (noise_1 + noise_2)
    weight = xp.where(seen | ~xp.any(seen, axis=-1, keepdims=True), n, 0)
    return xp.astype(xp.sum(retardance * weight, axis=-1) / xp.sum(weight, axis=-1), xp.float32)


def _block_sums(samples: Any) -> Any:
    """Return the sums over blocks of BLOCK_PX samples in float64, shape (..., blocks); the last may be shorter."""
    xp = library_of(samples)
    *others, n = samples.shape
    blocks = -(-n // BLOCK_PX)
    padded = xp.zeros((*others, blocks * BLOCK_PX), dtype=xp.float64)
    padded[..., :n] = xp.astype(samples, xp.float64)
    return xp.sum(xp.reshape(padded, (*others, blocks, BLOCK_PX)), axis=-1)

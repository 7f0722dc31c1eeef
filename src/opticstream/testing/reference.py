"""The numerics of sections 1 to 5, done naively in float64: one line at a time, one formula at a time.

Nothing here is fast and nothing is shared with the code that it checks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]


def unpack_12bit(data: bytes, /) -> NDArray[np.uint16]:
    """Return the samples in 12-bit packed `data`: three bytes hold two samples.

    Examples
    --------
    >>> [hex(v) for v in unpack_12bit(bytes([0xBC, 0x3A, 0x12]))]
    ['0xabc', '0x123']
    """
    samples = []
    for i in range(0, len(data), 3):
        b0, b1, b2 = data[i : i + 3]
        samples += [b0 | (b1 & 0x0F) << 8, b1 >> 4 | b2 << 4]
    return np.array(samples, dtype=np.uint16)


def common_wavenumbers(wavelengths: list[Array], /) -> Array:
    """Return the wavelengths at which both channels are wanted: linear in wavenumber, rising in wavelength."""
    k_min = 2 * np.pi / min(w[-1] for w in wavelengths)
    k_max = 2 * np.pi / max(w[0] for w in wavelengths)
    return 2 * np.pi / np.linspace(k_max, k_min, len(wavelengths[0]))


def interpolate_linearly(x: Array, y: Array, wanted: Array, /) -> Array:
    """Return `y` at `wanted` by straight lines between the samples, continued beyond the ends."""
    out = np.empty(len(wanted))
    for n, value in enumerate(wanted):
        i = min(max(int(np.searchsorted(x, value)) - 1, 0), len(x) - 2)
        share = (value - x[i]) / (x[i + 1] - x[i])
        out[n] = y[i] + share * (y[i + 1] - y[i])
    return out


def complex_from_spectra(
    counts: ArrayLike,
    /,
    *,
    wavelengths: list[Array] | None,
    dispersion: list[Array] | None = None,
    flip_channel2: bool = True,
    background: ArrayLike | None = None,
    subtract_mean: bool = True,
    residual_background: bool = True,
    zero_padding: int = 1,
    cut: int | None = None,
) -> list[Complex]:
    """Return the complex depth profiles of every channel (section 2).

    Parameters
    ----------
    counts : array_like, shape (B-lines, channels, A-lines, samples)
        Raw tile.
    wavelengths : list of ndarray, shape (samples,), or None
        Wavelength of every pixel per channel; None where spectra are linear in wavenumber already.
    dispersion : list of ndarray, shape (samples,), optional
        Phase per channel, radians.
    flip_channel2 : bool
        The second channel is read out reversed.
    subtract_mean, residual_background : bool
        Subtract the mean of each B-line before, its median after linearization.
    zero_padding, cut : int
        Factor by which spectra are lengthened; first depth sample that is kept (default 24 x `zero_padding`).
    background : array_like, shape (channels, samples), optional
        Recorded reference spectrum to subtract, in read-out order.

    Returns
    -------
    list of ndarray, shape (A-lines, B-lines, depth)
        One per channel.
    """
    counts = np.asarray(counts, dtype=np.float64)
    b_lines, channels, a_lines, samples = counts.shape
    cut = 24 * zero_padding if cut is None else cut
    depth = samples * zero_padding // 2 - cut
    out = [np.empty((a_lines, b_lines, depth), dtype=np.complex128) for _ in range(channels)]
    wanted = None if wavelengths is None else common_wavenumbers(wavelengths)
    for c in range(channels):
        for b in range(b_lines):
            line = counts[b, c]
            if background is not None:
                line = line - np.asarray(background)[c]
            if c == 1 and flip_channel2:
                line = line[:, ::-1]
            if subtract_mean:
                line = line - line.mean(axis=0)
            if wavelengths is not None and wanted is not None:
                line = np.array([interpolate_linearly(wavelengths[c], spectrum, wanted) for spectrum in line])
            if residual_background:
                line = line - np.median(line, axis=0)
            spectrum = line.astype(np.complex128)
            if dispersion is not None:
                spectrum = spectrum * np.exp(-1j * dispersion[c])
            profile = np.fft.fft(spectrum, samples * zero_padding, axis=-1)
            out[c][:, b, :] = np.conj(profile[:, cut : cut + depth])
    return out


@dataclass(frozen=True)
class Volumes:
    """Volumes of a tile, shape (A-lines, B-lines, depth)."""

    intensity_db: Array
    retardance_deg: Array
    orientation_deg: Array


def volumes_from_complex(
    first: Complex, second: Complex, /, *, phase_offset_deg: float = 100.0, flip_phase: bool = False
) -> Volumes:
    """Return intensity (dB), retardance (0..90 degrees) and orientation (-90..90 degrees) (section 3)."""
    tiny = np.finfo(np.float32).eps
    intensity = 10 * np.log10(np.maximum(np.abs(first) ** 2 + np.abs(second) ** 2, tiny))
    retardance = np.rad2deg(np.arctan(np.abs(first) / np.maximum(np.abs(second), tiny)))
    phase = np.angle(first) - np.angle(second)
    if flip_phase:
        phase = -phase
    phase = phase + 2 * np.deg2rad(phase_offset_deg)
    wrapped = -((-phase + np.pi) % (2 * np.pi) - np.pi)  # into (-pi, pi]
    return Volumes(intensity, retardance, np.rad2deg(wrapped) / 2)


def surface_from_intensity(intensity_db: Array, /) -> Array:
    """Return the surface by the method `gradient` (section 4), before its median filter; shape (A-lines, B-lines)."""
    a_lines, b_lines, depth = intensity_db.shape
    offsets = np.arange(-20, 21)
    weights = np.exp(-0.5 * (offsets / 5.0) ** 2)
    weights /= weights.sum()
    surface = np.zeros((a_lines, b_lines))
    for a in range(a_lines):
        for b in range(b_lines):
            line = intensity_db[a, b]
            if np.count_nonzero(line > 0) < 10:
                continue
            padded = np.pad(line, 20, mode="edge")
            smooth = np.array([np.dot(weights, padded[z : z + 41]) for z in range(depth)])
            best, best_step = 0, -np.inf
            for z in range(5, depth - 5):
                step = smooth[z : z + 5].mean() - smooth[z - 5 : z].mean()
                if step > best_step:
                    best, best_step = z, step
            surface[a, b] = best
    return surface


@dataclass(frozen=True)
class EnfaceMaps:
    """Maps of a tile, shape (A-lines, B-lines); degrees and dB."""

    aip: Array
    mip: Array
    ret: Array
    ori: Array
    biref: Array


def enface_from_volumes(
    volumes: Volumes,
    surface: ArrayLike,
    /,
    *,
    offset: int = 0,
    depth: int = 80,
    wavelength_um: float = 1.3,
    depth_step_um: float = 2.5,
) -> EnfaceMaps:
    """Return the maps over a window below `surface` (section 5, methods `mean` and `slope`)."""
    a_lines, b_lines, samples = volumes.intensity_db.shape
    surface = np.asarray(surface)
    maps = EnfaceMaps(*(np.zeros((a_lines, b_lines)) for _ in range(5)))
    for a in range(a_lines):
        for b in range(b_lines):
            start = int(np.clip(np.rint(surface[a, b]) + offset, 0, samples - 1))
            stop = min(start + depth, samples - 1)
            window = slice(start, stop + 1)
            maps.aip[a, b] = volumes.intensity_db[a, b, window].mean()
            maps.mip[a, b] = volumes.intensity_db[a, b, window].max()
            retardance = volumes.retardance_deg[a, b, window]
            maps.ret[a, b] = retardance.mean()
            angle = np.deg2rad(volumes.orientation_deg[a, b, window])
            maps.ori[a, b] = np.rad2deg(0.5 * np.arctan2(np.sin(2 * angle).sum(), np.cos(2 * angle).sum()))
            zeros = np.flatnonzero(retardance == 0)
            if len(zeros):
                retardance = retardance[: zeros[0]]
            if len(retardance) >= 3:
                z_um = np.arange(len(retardance)) * depth_step_um
                maps.biref[a, b] = np.polyfit(z_um, retardance / 360 * wavelength_um, 1)[0]
    return maps

"""The spectrometer: from the field that a sample returns at each depth to camera counts.

A scatterer at depth bin m adds ``exp(i (2 k z_m - phase(k)))`` to the sample's field. The sum over depths is taken at
the exact wavenumber of every camera pixel as one matrix product, so there is no resampling error in the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.config.scan import NoLinearization, ScanSettings, WavelengthFit
from opticstream.io.matlab import arrays_from_matlab
from opticstream.model.errors import CalibrationError, ConfigurationError
from opticstream.sim._kernels import counts_from_fringes
from opticstream.sim.settings import InstrumentSettings

Array = NDArray[np.float64]

REFRACTIVE_INDEX = 1.4
"""Of brain tissue; turns the physical depth step of the configuration into the optical one of the spectrometer."""


@dataclass(frozen=True)
class Wavenumbers:
    """Wavelengths of the camera pixels of each channel, and the linear wavenumber grid common to them.

    `index(c)` is the fractional position of each pixel on that grid, which starts at the largest wavenumber.
    """

    wavelength_um: tuple[Array, ...]

    @property
    def largest(self) -> float:
        """Largest wavenumber of the common grid, rad/um."""
        return float(2 * np.pi / max(w[0] for w in self.wavelength_um))

    @property
    def step(self) -> float:
        """Step of the common grid, rad/um."""
        smallest = 2 * np.pi / min(w[-1] for w in self.wavelength_um)
        return float((self.largest - smallest) / (len(self.wavelength_um[0]) - 1))

    def index(self, channel: int) -> Array:
        """Return the fractional index on the common grid of every pixel of a channel (0-based), rising."""
        return (self.largest - 2 * np.pi / self.wavelength_um[channel]) / self.step

    @property
    def optical_step_um(self) -> float:
        """Optical path (one way, in air) from one depth bin to the next."""
        return np.pi / (len(self.wavelength_um[0]) * self.step)


def wavenumbers_from_settings(scan: ScanSettings, instrument: InstrumentSettings, /) -> Wavenumbers:
    """Return the spectrometer that the project's calibration describes, or else that the instrument settings do.

    Raises
    ------
    ConfigurationError
        The depth step and the number of samples ask for more bandwidth than there is, or the calibration's form cannot
        express the map.
    """
    form = scan.calibration.linearization
    pixel = np.arange(scan.samples, dtype=float)
    if isinstance(form, WavelengthFit) and form.coefficients_nm is not None:
        lines = [form.coefficients_nm[min(c, len(form.coefficients_nm) - 1)] for c in range(scan.channels)]
        return Wavenumbers(tuple((start + step * pixel) * 1e-3 for start, step in lines))

    optical_step = scan.scan_resolution_3d[2] * 1e3 * REFRACTIVE_INDEX
    width = np.pi * (scan.samples - 1) / (scan.samples * optical_step)
    centre = 2 * np.pi / scan.wavelength_um
    if width >= 1.6 * centre:
        raise ConfigurationError(
            f"a depth step of {scan.scan_resolution_3d[2] * 1e3:g} um (scan.scan_resolution_3d[2]) needs wavenumbers "
            f"from {centre - width / 2:.2f} to {centre + width / 2:.2f} rad/um, which no source around "
            f"scan.wavelength_um = {scan.wavelength_um:g} gives"
        )
    fraction = pixel / (scan.samples - 1)
    if isinstance(form, NoLinearization):
        linear = 2 * np.pi / (centre + width / 2 - width * fraction)
        return Wavenumbers((linear,) * scan.channels)
    shortest, longest = 2 * np.pi / (centre + width / 2), 2 * np.pi / (centre - width / 2)
    if isinstance(form, WavelengthFit) and instrument.k_map != "linear-wavelength":
        raise ConfigurationError(
            f'scan.calibration.linearization.method = "wavelength-fit" describes a straight line; '
            f'instrument.k_map = "{instrument.k_map}" does not; use "linear-wavelength"'
        )
    shift = instrument.channel_shift_nm * 1e-3
    shared = len(getattr(form, "files", ()) or getattr(form, "measured_files", ())) == 1
    ends = [(shortest, longest + shift), (shortest - shift, longest)]
    if shared or scan.channels == 1:
        ends = [(shortest, longest)] * 2
    return Wavenumbers(tuple(_wavelengths(fraction, *ends[c], instrument) for c in range(scan.channels)))


def _wavelengths(fraction: Array, start: float, stop: float, instrument: InstrumentSettings) -> Array:
    if instrument.k_map == "chirp-file":
        assert instrument.chirp_file is not None
        chirp = _read_chirp(instrument.chirp_file)
        share = (chirp - chirp[0]) / (chirp[-1] - chirp[0])
        share = np.interp(fraction, np.linspace(0, 1, len(share)), share)
        return np.asarray(2 * np.pi / ((1 - share) * 2 * np.pi / start + share * 2 * np.pi / stop))
    bend = {"linear-wavelength": 0.0, "quadratic": 0.06, "strong": 0.3}[instrument.k_map]
    return start + (stop - start) * (fraction + bend * fraction * (1 - fraction))


def _read_chirp(path: Path) -> Array:
    try:
        if path.suffix == ".mat":
            chirp = max(arrays_from_matlab(path).values(), key=lambda a: a.size).astype(float).ravel()
        else:
            chirp = np.load(path).astype(float).ravel()
    except Exception as error:  # a damaged file can make its reader fail in any way
        raise CalibrationError(f"{path}: cannot be read as a chirp vector (instrument.chirp_file): {error}") from error
    if chirp.size < 2 or not np.all(np.diff(chirp) > 0):
        raise CalibrationError(f"{path}: expected a strictly increasing chirp vector (instrument.chirp_file)")
    return chirp


class Spectrometer:
    """One or two camera channels behind one interferometer.

    Parameters
    ----------
    scan : ScanSettings
        Samples, channels and the form of the calibration.
    instrument : InstrumentSettings
        Source, noise and dispersion.
    seed : int
        Of the fixed patterns.
    """

    def __init__(self, scan: ScanSettings, instrument: InstrumentSettings, /, *, seed: int) -> None:
        self.samples, self.channels = scan.samples, scan.channels
        self.settings = instrument
        self.wavenumbers = wavenumbers_from_settings(scan, instrument)
        source = instrument.source
        rng = np.random.default_rng([seed, *b"camera"])
        self.reference: list[NDArray[np.float32]] = []
        self.dark: list[NDArray[np.float32]] = []
        for channel in range(self.channels):
            u = self._centred(channel)
            envelope = np.exp(-4 * np.log(2) * (u / (2 * source.fwhm_fraction)) ** 2)
            pattern = 1 + source.fixed_pattern * rng.standard_normal(self.samples)
            pattern *= 1 + source.etalon * np.cos(2 * np.pi * 31.3 * self.wavenumbers.index(channel) / self.samples)
            self.reference.append((source.peak_counts[channel] * envelope * pattern).astype(np.float32))
            dark = np.full(self.samples, source.dark_counts)
            if source.hot_pixels:
                dark[:3] += 0.25 * 2**source.bits * np.array([0.25, 0.22, 0.02])
            self.dark.append(dark.astype(np.float32))

    def _centred(self, channel: int) -> Array:
        """Position of every pixel in the common wavenumber range, from -1 to 1."""
        return 2 * self.wavenumbers.index(channel) / (self.samples - 1) - 1

    def _phase(self, u: Array, channel: int) -> Array:
        second, third = self.settings.dispersion_rad[channel]
        return second * u**2 + third * u**3

    def _coupling(self, channel: int) -> float:
        """Amplitude by which the sample's field reaches a channel, against its reference.

        Reference arms of different brightness would by themselves make fringes of different strength.
        """
        if self.channels == 1:
            return 1.0
        peaks = self.settings.source.peak_counts
        imbalance = 10 ** ((0.5 - channel) * self.settings.channel_imbalance_db / 20)
        return float(np.mean(peaks) / peaks[channel] * imbalance)

    def dispersion_phase(self, channel: int) -> Array:
        """Return the calibration vector of a channel: the phase (rad) that ``exp(-1j * phase)`` takes away, over the
        linear-wavenumber samples.
        """
        return self._phase(np.linspace(-1, 1, self.samples), channel)

    def fringe_matrix(self, bins: ArrayLike, channel: int, *, quadrature: bool = False) -> NDArray[np.float32]:
        """Return the matrix that turns fields at depth `bins` into the sample's field at every pixel.

        Parameters
        ----------
        bins : array_like, shape (depth,)
            Depth bins, counted from zero delay; fractions are allowed.
        channel : int
            Channel, 0-based.
        quadrature : bool
            Also return the imaginary part, after the real one.

        Returns
        -------
        ndarray, shape (2 * depth, samples), or (2 * depth, 2 * samples) with quadrature
            Rows alternate between the field's real and imaginary part, as complex64 lies in memory.
        """
        bins = np.asarray(bins, dtype=float)
        index = self.wavenumbers.index(channel)
        phase = -2 * np.pi / self.samples * bins[:, None] * index - self._phase(self._centred(channel), channel)
        matrix = np.empty((len(bins), 2, 2 if quadrature else 1, self.samples), dtype=np.float32)
        cosine, sine = self._coupling(channel) * np.cos(phase), self._coupling(channel) * np.sin(phase)
        matrix[:, 0, 0], matrix[:, 1, 0] = cosine, -sine
        if quadrature:
            matrix[:, 0, 1], matrix[:, 1, 1] = sine, cosine
        return matrix.reshape(2 * len(bins), -1)

    def counts(
        self,
        field: NDArray[np.complex64],
        matrix: NDArray[np.float32],
        channel: int,
        /,
        *,
        line_gain: NDArray[np.float32],
        noise: NDArray[np.float32],
        reverse: bool,
    ) -> NDArray[np.uint16]:
        """Return what the camera counts for a field, shape (..., samples).

        Parameters
        ----------
        field : ndarray, shape (..., depth)
            Field against the reference, at the depths of `matrix`.
        matrix : ndarray
            From `fringe_matrix` of the same channel.
        channel : int
            Channel, 0-based.
        line_gain : ndarray, shape (...)
            Brightness of the source at each A-line, around 1.
        noise : ndarray, shape (..., samples)
            Standard normal numbers.
        reverse : bool
            The camera is read out from the long-wavelength end.
        """
        source = self.settings.source
        rows = np.ascontiguousarray(field).reshape(-1, field.shape[-1])
        light: NDArray[np.float32] = rows.view(np.float32) @ matrix
        fringes, quadrature = light[:, : self.samples], light[:, self.samples :]
        out = np.empty(fringes.shape, dtype=np.uint16)
        counts_from_fringes(
            fringes,
            quadrature,
            line_gain.reshape(-1),
            self.reference[channel],
            self.dark[channel],
            noise.reshape(-1, self.samples),
            np.float32(0.0 if source.electrons_per_count is None else 1 / source.electrons_per_count),
            np.float32(source.read_noise_counts**2),
            np.float32(source.rin_sample),
            np.float32(2**source.bits - 1),
            reverse,
            out,
        )
        return out.reshape(*field.shape[:-1], self.samples)


def calibration_arrays(spectrometer: Spectrometer, method: str, /) -> dict[str, list[Any]]:
    """Return the vectors of a calibration of the given form, one per channel, by the name of their setting."""
    w = spectrometer.wavenumbers
    pixel = np.arange(spectrometer.samples, dtype=float)
    channels = range(spectrometer.channels)
    match method:
        case "wavelength-fit":
            return {"files": [np.polyfit(pixel, w.wavelength_um[c] * 1e3, 1)[::-1].copy() for c in channels]}
        case "wavelengths":
            return {"files": [w.wavelength_um[c] * 1e3 for c in channels]}
        case "klinear":
            return {"files": [_inverse(w.index(c), pixel) for c in channels]}
        case "chirp":
            return {"files": [w.index(c) for c in channels]}
        case "phase":
            per_index = 2 * np.pi / spectrometer.samples * 40.0
            return {
                "measured_files": [w.index(c) * per_index for c in channels],
                "linear_files": [pixel * per_index for _ in channels],
            }
    return {}


def _inverse(rising: Array, wanted: Array) -> Array:
    from scipy.interpolate import PchipInterpolator

    return np.asarray(PchipInterpolator(rising, np.arange(len(rising)), extrapolate=True)(wanted))

"""The reconstruction that some rigs run themselves before they write complex tiles; it shares no code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opticstream.config.processing import ReconstructionSettings
from opticstream.sim.instrument import Spectrometer


def complex_depth(samples: int, /, *, cut: int, zero_padding: int) -> int:
    """Return the number of depth samples of a complex tile."""
    return samples * zero_padding // 2 - cut


def complex_from_counts(
    counts: NDArray[np.uint16], spectrometer: Spectrometer, settings: ReconstructionSettings, /, *, linear: bool
) -> NDArray[np.complex64]:
    """Return the complex depth profiles of a block of lines, shape (channels, A-lines, lines, depth).

    Parameters
    ----------
    counts : ndarray, shape (lines, channels, A-lines, samples)
        Raw counts as on the disk.
    spectrometer : Spectrometer
        Whose calibration is used, as exact as the rig's maker knows it.
    settings : ReconstructionSettings
        Zero padding, cut and read-out direction.
    linear : bool
        Spectra are linear in wavenumber already.
    """
    lines, channels, a_lines, samples = counts.shape
    cut = 24 * settings.zero_padding if settings.cut is None else settings.cut
    depth = complex_depth(samples, cut=cut, zero_padding=settings.zero_padding)
    out = np.empty((channels, a_lines, lines, depth), dtype=np.complex64)
    grid = np.arange(samples, dtype=float)
    for c in range(channels):
        spectra = counts[:, c].astype(np.float32)
        if c == 1 and settings.flip_channel2:
            spectra = spectra[..., ::-1]
        spectra = spectra - spectra.mean(axis=1, keepdims=True)
        if not linear:
            w = spectrometer.wavenumbers
            have, want = w.wavelength_um[c], 2 * np.pi / (w.largest - w.step * grid)
            left = np.clip(np.searchsorted(have, want) - 1, 0, samples - 2)
            share = ((want - have[left]) / (have[left + 1] - have[left])).astype(np.float32)
            spectra = spectra[..., left] * (1 - share) + spectra[..., left + 1] * share
        spectra = spectra - np.median(spectra, axis=1, keepdims=True)
        turn = np.exp(-1j * spectrometer.dispersion_phase(c)).astype(np.complex64)
        profile = np.fft.fft(spectra * turn, samples * settings.zero_padding, axis=-1)[..., cut : cut + depth]
        out[c] = np.conj(profile).swapaxes(0, 1)
    return out

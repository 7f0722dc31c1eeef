"""Estimated calibrations bring simulated and real mirrors to a point."""

import numpy as np
import pytest

from opticstream.compute.reconstruction import (
    dispersion_from_spectra,
    jones_from_spectra,
    positions_from_mirrors,
    spectral_plan,
)
from opticstream.compute.reconstruction._calibration_fit import fringe_phase, sharpness


def _width(profile):
    peak = int(profile.argmax())
    low, high = peak, peak
    while profile[low] >= profile[peak] / 2:
        low -= 1
    while profile[high] >= profile[peak] / 2:
        high += 1
    left = low + (profile[peak] / 2 - profile[low]) / (profile[low + 1] - profile[low])
    right = high - (profile[peak] / 2 - profile[high]) / (profile[high - 1] - profile[high])
    return right - left


def _width_bins(spectrum, **plan):
    samples = spectrum.size
    made = spectral_plan(
        samples=samples,
        channels=1,
        background="none",
        residual_background=False,
        window="hann",
        zero_padding=16,
        **plan,
    )
    return _width(np.abs(jones_from_spectra(spectrum.reshape(1, 1, 1, -1), made)[0, 0, 0])) / 16


def _mirror(samples, bin_, *, bend=2e-4, dispersion=0.0, side=1, seed=0):
    p = np.arange(samples)
    k = p + bend * (p - samples / 2) ** 2
    u = 2 * (k - k[0]) / (k[-1] - k[0]) - 1
    envelope = np.exp(-((u / 0.7) ** 2))
    noise = np.random.default_rng(seed).normal(scale=0.02, size=samples)
    return envelope * np.cos(2 * np.pi * bin_ * k / samples + side * dispersion * u**2) + noise, u


def test_two_sides_give_the_k_map_free_of_dispersion():
    above, u = _mirror(1024, 90, dispersion=9.0, side=1)
    below, _ = _mirror(1024, 130, dispersion=9.0, side=-1)
    positions = positions_from_mirrors([above, below], sides=[1, -1])
    along = np.interp(positions, np.arange(1024), u)
    assert np.abs(along - np.linspace(along[0], along[-1], 1024)).max() < 2e-3
    phase = dispersion_from_spectra(above, positions=positions)
    bend = np.polyfit(np.linspace(-1, 1, 1024), phase, 2)[0]
    assert bend == pytest.approx(9.0, abs=0.5)
    ideal, _ = _mirror(1024, 90, bend=0.0)
    assert _width_bins(above, positions=positions, dispersion_rad=phase) < 1.05 * _width_bins(ideal)
    assert _width_bins(above, positions=positions) > 1.3 * _width_bins(ideal)


def test_noise_is_not_taken_for_a_mirror():
    with pytest.raises(ValueError, match="stands out"):
        fringe_phase(np.random.default_rng(0).normal(size=512))


def _recorded(cscan, which):
    spectra = np.load(cscan / "mirror_and_dark_spectra_f32.npz")
    dark = spectra["example_dark_ref"] + spectra[f"example_dark_sample{which}"] - spectra["example_dark_not"]
    return (spectra[f"example_mirror{which}"] - dark).astype(np.float64)


def test_on_a_real_spectrometer_the_estimate_is_at_least_as_sharp_as_the_owners(cscan):
    owners = np.load(cscan / "calib_example.npz")
    mirrors = [_recorded(cscan, 1), _recorded(cscan, 2)]
    positions = positions_from_mirrors(mirrors, sides=[1, -1])
    for mirror in mirrors:
        assert _width_bins(mirror, positions=positions) <= _width_bins(mirror, positions=owners["klinear"]) + 0.01
        assert _width_bins(mirror, positions=positions) <= 2.44
    phase = dispersion_from_spectra(mirrors[0], positions=positions)
    own = _width_bins(mirrors[0], positions=positions, dispersion_rad=phase)
    assert own <= _width_bins(mirrors[0], positions=owners["klinear"], dispersion_rad=owners["dispersion"]) + 0.01

    volume = np.load(cscan / "cscan_counts_u16.npy", mmap_mode="r")[::20, np.newaxis]

    def sharp(**plan):
        profiles = jones_from_spectra(volume, spectral_plan(samples=1024, channels=1, window="hann", **plan))
        return sharpness(profiles[0, 3:])

    estimated = sharp(positions=positions, dispersion_rad=phase)
    assert estimated >= 0.99 * sharp(positions=owners["klinear"], dispersion_rad=owners["dispersion"])
    assert estimated > 1.2 * sharp()

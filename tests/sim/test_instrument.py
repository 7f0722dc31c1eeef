"""The spectrometer against closed forms; no reconstruction is used here, only sums that fit on a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.config.scan import ScanSettings
from opticstream.model.errors import CalibrationError, ConfigurationError
from opticstream.sim.instrument import REFRACTIVE_INDEX, Spectrometer
from opticstream.sim.settings import InstrumentSettings, SourceSettings
from opticstream.testing.small_phantom import QUIET, QUIET_SOURCE, small_project_config

LINEAR = {"linearization": {"method": "none"}}
BENT = {"linearization": {"method": "wavelengths", "files": ["w1.npy", "w2.npy"]}}


def scan(**changes: object) -> ScanSettings:
    return small_project_config(**changes).scan


def counts_of(
    spectrometer: Spectrometer, bins: list[float], amplitudes: list[complex], channel: int = 0, a_lines: int = 1
) -> np.ndarray:
    """Counts of scatterers at `bins`, with the camera's fixed offset and the reference taken away."""
    field = np.tile(np.array(amplitudes, dtype=np.complex64), (a_lines, 1))
    matrix = spectrometer.fringe_matrix(bins, channel, quadrature=spectrometer.settings.autocorrelation)
    noise = np.random.default_rng(1).standard_normal((a_lines, spectrometer.samples), dtype=np.float32)
    gain = np.ones(a_lines, dtype=np.float32)
    counts = spectrometer.counts(field, matrix, channel, line_gain=gain, noise=noise, reverse=False)
    return counts.astype(float) - spectrometer.reference[channel] - spectrometer.dark[channel]


def quiet(**changes: object) -> InstrumentSettings:
    return QUIET.model_copy(update=changes)


@settings(max_examples=25, deadline=None)
@given(depth_bin=st.floats(30.0, 100.0), width=st.floats(0.2, 0.35))
def test_a_mirror_gives_a_peak_at_its_depth_with_the_width_of_the_source(depth_bin: float, width: float) -> None:
    source = QUIET_SOURCE.model_copy(update={"fwhm_fraction": width})
    spectrometer = Spectrometer(scan(calibration=LINEAR), quiet(source=source), seed=1)
    spectrum = counts_of(spectrometer, [depth_bin], [0.2])
    padding = 64
    profile = np.abs(np.fft.fft(spectrum[0], spectrometer.samples * padding))[: spectrometer.samples * padding // 2]
    peak = np.argmax(profile)
    above = np.flatnonzero(profile > profile[peak] / 2)
    assert peak / padding == pytest.approx(depth_bin, abs=0.05)
    # A Gaussian whose full width is the share `width` of the samples transforms into one of 4 ln 2 / (pi width) bins.
    assert len(above) / padding == pytest.approx(4 * np.log(2) / np.pi / width, rel=0.03)


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("k_map", ["linear-wavelength", "quadratic", "strong"])
def test_fringes_follow_the_wavenumber_of_every_pixel(k_map: str, channel: int) -> None:
    spectrometer = Spectrometer(scan(calibration=BENT), quiet(k_map=k_map), seed=1)
    spectrum = counts_of(spectrometer, [70.0], [0.1], channel)[0]
    k = 2 * np.pi / spectrometer.wavenumbers.wavelength_um[channel]
    depth_um = 70.0 * spectrometer.wavenumbers.optical_step_um
    expected = spectrometer.reference[channel] * 0.2 * np.cos(2 * (k - spectrometer.wavenumbers.largest) * depth_um)
    assert np.abs(spectrum - expected).max() <= 0.6  # half a count, and float32


def test_the_depth_step_is_the_projects_in_tissue() -> None:
    spectrometer = Spectrometer(scan(calibration=BENT), InstrumentSettings(), seed=1)
    assert spectrometer.wavenumbers.optical_step_um / REFRACTIVE_INDEX == pytest.approx(4.0, rel=1e-9)


def test_a_stated_wavelength_fit_is_the_truth() -> None:
    fit = {"linearization": {"method": "wavelength-fit", "coefficients_nm": [[1200.0, 0.8], [1201.0, 0.81]]}}
    spectrometer = Spectrometer(scan(calibration=fit), InstrumentSettings(k_map="strong"), seed=1)
    assert spectrometer.wavenumbers.wavelength_um[1][:2] == pytest.approx([1.201, 1.20181])


@pytest.mark.parametrize("channel", [0, 1])
def test_the_dispersion_vector_sharpens_a_mirror_and_its_opposite_blurs_it(channel: int) -> None:
    instrument = quiet(dispersion_rad=((14.0, -5.0), (11.0, 6.0)))
    spectrometer = Spectrometer(scan(calibration=LINEAR), instrument, seed=1)
    spectrum = counts_of(spectrometer, [60.0], [0.2], channel)[0]
    phase = spectrometer.dispersion_phase(channel)
    height = {
        sign: np.abs(np.fft.fft(spectrum * np.exp(-1j * sign * phase)))[: spectrometer.samples // 2].max()
        for sign in (1, 0, -1)
    }
    ideal = (spectrometer.reference[channel] * 0.2).sum()
    assert height[1] == pytest.approx(ideal, rel=0.02)
    assert height[0] < 0.6 * ideal
    assert height[-1] < 0.6 * ideal


def test_noise_has_the_stated_variance() -> None:
    source = SourceSettings(
        peak_counts=(2000.0, 2000.0), fwhm_fraction=50.0, read_noise_counts=3.0, electrons_per_count=25.0,
        rin_sample=0.004, rin_line=0.0, fixed_pattern=0.0, etalon=0.0, hot_pixels=False, dark_counts=100.0,
    )  # fmt: skip
    spectrometer = Spectrometer(scan(calibration=LINEAR), quiet(source=source), seed=1)
    noise = counts_of(spectrometer, [50.0], [0.0], a_lines=2000)
    expected = 3.0**2 + 2000.0 / 25.0 + (0.004 * 2000.0) ** 2 + 1 / 12
    assert noise.var() == pytest.approx(expected, rel=0.02)
    assert noise.mean() == pytest.approx(0.0, abs=0.1)


def test_the_camera_has_its_bits_and_saturates() -> None:
    source = QUIET_SOURCE.model_copy(update={"bits": 12, "peak_counts": (3000.0, 3000.0), "dark_counts": 0.0})
    spectrometer = Spectrometer(scan(calibration=LINEAR), quiet(source=source), seed=1)
    raw = counts_of(spectrometer, [40.0], [0.5]) + spectrometer.reference[0]
    assert raw.max() == 4095
    assert raw.min() >= 0
    assert np.count_nonzero(np.abs(raw - 4095) < 1e-3) > 5


@pytest.mark.parametrize("autocorrelation", [True, False])
def test_two_reflections_interfere_near_zero_delay_only_with_autocorrelation(autocorrelation: bool) -> None:
    spectrometer = Spectrometer(scan(calibration=LINEAR), quiet(autocorrelation=autocorrelation), seed=1)
    spectrum = counts_of(spectrometer, [80.0, 92.0], [0.2, 0.1])[0]
    profile = np.abs(np.fft.fft(spectrum))
    expected = float(spectrometer.reference[0].sum()) * 0.2 * 0.1
    assert (profile[12] > 0.9 * expected) == autocorrelation
    assert profile[12] == pytest.approx(expected if autocorrelation else 0.0, abs=0.05 * expected)


def test_the_second_channel_is_read_out_from_the_other_end() -> None:
    spectrometer = Spectrometer(scan(calibration=LINEAR), quiet(), seed=1)
    matrix = spectrometer.fringe_matrix([45.3], 1)
    field, gain = np.full((1, 1), 0.1, np.complex64), np.ones(1, np.float32)
    noise = np.zeros((1, spectrometer.samples), np.float32)
    one, other = (spectrometer.counts(field, matrix, 1, line_gain=gain, noise=noise, reverse=r) for r in (False, True))
    assert np.array_equal(one[0, ::-1], other[0])
    assert not np.array_equal(one, other)


def test_a_measured_chirp_can_be_the_map(shared_data: Path) -> None:
    chirp = shared_data / "chirp" / "Chirp_Telesto.mat"
    settings = quiet(k_map="chirp-file", chirp_file=chirp)
    spectrometer = Spectrometer(scan(samples=1024, calibration=BENT), settings, seed=1)
    index = spectrometer.wavenumbers.index(1)
    slope = np.diff(index)
    assert np.all(slope > 0)
    assert slope[0] / slope[-1] == pytest.approx(1.24175 / 0.70996, rel=0.02)  # of the factory map


def test_a_chirp_that_does_not_rise_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "chirp.npy", np.array([0.0, 2.0, 1.0]))
    with pytest.raises(CalibrationError, match=r"chirp\.npy: expected a strictly increasing chirp vector"):
        Spectrometer(scan(calibration=BENT), quiet(k_map="chirp-file", chirp_file=tmp_path / "chirp.npy"), seed=1)


def test_bandwidth_that_no_source_has_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"depth step of 0\.2 um"):
        Spectrometer(scan(scan_resolution_3d=[0.01, 0.01, 0.0002]), InstrumentSettings(), seed=1)


def test_a_straight_fit_cannot_describe_a_bent_map() -> None:
    fit = {"linearization": {"method": "wavelength-fit", "files": ["fit.npy"]}}
    with pytest.raises(ConfigurationError, match="describes a straight line"):
        Spectrometer(scan(calibration=fit), InstrumentSettings(k_map="strong"), seed=1)


@pytest.mark.parametrize("imbalance_db", [0.0, 3.0])
def test_channels_are_balanced_but_for_the_stated_imbalance(imbalance_db: float) -> None:
    source = QUIET_SOURCE.model_copy(update={"peak_counts": (20000.0, 14000.0)})
    instrument = quiet(source=source, channel_imbalance_db=imbalance_db)
    spectrometer = Spectrometer(scan(calibration=LINEAR), instrument, seed=1)
    height = [np.abs(np.fft.fft(counts_of(spectrometer, [60.0], [0.1], c)))[0, 60] for c in (0, 1)]
    assert 20 * np.log10(height[0] / height[1]) == pytest.approx(imbalance_db, abs=0.01)

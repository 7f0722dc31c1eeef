"""The NumPy chain against the float64 formulas, and against what physics says about turning and moving the sample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.compute import axial
from opticstream.compute.reconstruction import (
    axis_window_mean,
    axis_window_mode,
    birefringence_slope,
    complex_tile_from_jones,
    depth_window,
    intensity_db_from_jones,
    jones_from_complex_tile,
    jones_from_spectra,
    median_3x3,
    orientation_from_jones,
    positions_from_wavelengths,
    retardance_from_jones,
    spectral_plan,
    unfiltered_surface_from_gradient,
    unfiltered_surface_from_threshold,
    window_maximum,
    window_mean,
)
from opticstream.compute.reconstruction._calibration import (
    positions_from_chirp,
    positions_from_coordinate,
    positions_from_phases,
    validated_positions,
)
from opticstream.compute.reconstruction._spectral import spectral_window
from opticstream.testing.raw_tiles import fringe_counts
from opticstream.testing.reconstruction_reference import (
    jones_reference,
    k_linear_interpolators,
    maps_reference,
    surface_reference,
    volumes_reference,
)

SAMPLES = 192


def _wavelengths() -> np.ndarray:
    p = np.arange(SAMPLES)
    return np.stack([1250 + 0.55 * p + 4e-5 * p**2, 1252 + 0.54 * p + 5e-5 * p**2])


def _options(draw_flip, background, residual, padding, window, linearize, dispersion):
    p = np.linspace(-1, 1, SAMPLES)
    phi = np.stack([8 * p**2, 7 * p**2 + 2 * p**3]) if dispersion else None
    spectrum = np.stack([2000 - 500 * p**2, 1900 - 400 * p**2])
    ours = spectral_plan(
        samples=SAMPLES,
        flip_channel2=draw_flip,
        background=spectrum if background == "file" else background,
        positions=positions_from_wavelengths(*_wavelengths()) if linearize else None,
        residual_background=residual,
        dispersion_rad=phi,
        window=window,
        zero_padding=padding,
    )
    theirs = {
        "flip_channel2": draw_flip,
        "background": spectrum if background == "file" else background,
        "resample": k_linear_interpolators(_wavelengths()) if linearize else None,
        "residual_background": residual,
        "dispersion": phi,
        "window": spectral_window(window, SAMPLES),
        "zero_padding": padding,
    }
    return ours, theirs


OPTIONS = st.builds(
    _options,
    st.booleans(),
    st.sampled_from(["mean", "none", "file"]),
    st.booleans(),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["none", "hann", "gaussian"]),
    st.booleans(),
    st.booleans(),
)


@given(OPTIONS, st.integers(0, 3), st.sampled_from([3, 4]))
@settings(max_examples=40, deadline=None)
def test_profiles_agree_with_the_formulas_for_every_combination_of_options(options, seed, a_lines):
    ours, theirs = options
    counts = fringe_counts(samples=SAMPLES, a_lines=a_lines, b_lines=2, seed=seed)
    jones = jones_from_spectra(counts, ours)
    expected = jones_reference(counts, **theirs)
    assert jones.dtype == np.complex64
    assert jones.shape == expected.shape
    scale = np.sqrt((np.abs(expected) ** 2).mean())
    np.testing.assert_allclose(jones, expected, atol=1e-4 * max(scale, 1.0), rtol=1e-4)


def test_volumes_agree_with_the_formulas_where_there_is_signal():
    counts = fringe_counts(samples=SAMPLES, a_lines=6, b_lines=5)
    plan = spectral_plan(samples=SAMPLES)
    jones = jones_from_spectra(counts, plan)
    expected = volumes_reference(jones_reference(counts))
    strong = expected["dBI"] > np.percentile(expected["dBI"], 20)
    strong &= (expected["R3D"] > 1) & (expected["R3D"] < 89)
    assert np.abs(intensity_db_from_jones(jones) - expected["dBI"])[strong].max() < 0.01
    assert np.abs(retardance_from_jones(jones) - expected["R3D"])[strong].max() < 0.01
    turned = axial.wrap(orientation_from_jones(jones) - expected["O3D"])
    assert np.abs(turned)[strong].max() < 0.01


@pytest.mark.parametrize("threshold", [None, 40.0, 75.0])
def test_surface_agrees_with_the_formulas(threshold):
    counts = fringe_counts(samples=SAMPLES, a_lines=8, b_lines=7, surface_bin=46 if threshold is None else 26)
    intensity = intensity_db_from_jones(jones_from_spectra(counts, spectral_plan(samples=SAMPLES)))
    raw, filtered = surface_reference(intensity, threshold_db=threshold)
    if threshold is None:
        ours = unfiltered_surface_from_gradient(intensity)
    else:
        ours = unfiltered_surface_from_threshold(intensity, threshold_db=threshold)
    np.testing.assert_array_equal(ours, raw)
    np.testing.assert_array_equal(median_3x3(ours), filtered)


def test_surface_of_a_step_is_its_first_bright_sample():
    intensity = np.full((3, 2, 200), 40.0, np.float32)
    intensity[..., 77:] = 60
    assert (unfiltered_surface_from_gradient(intensity) == 77).all()


def test_dark_a_lines_have_surface_zero():
    intensity = np.full((2, 2, 100), -69.0, np.float32)
    intensity[0, 0, 50:55] = 20
    assert (unfiltered_surface_from_gradient(intensity) == 0).all()


@given(st.integers(-30, 30), st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_maps_agree_with_the_formulas(offset, depth, seed):
    rng = np.random.default_rng(seed)
    shape = (4, 5, 50)
    volumes = {
        "dBI": rng.normal(60, 6, shape).astype(np.float32),
        "R3D": rng.uniform(0, 90, shape).astype(np.float32),
        "O3D": (rng.uniform(-179.99, 180, shape) / 2).astype(np.float32),
    }
    volumes["R3D"][rng.random(shape) < 0.02] = 0
    surface = rng.integers(0, 50, shape[:2]).astype(np.float32)
    expected = maps_reference(volumes, surface, offset=offset, depth=depth)
    window = depth_window(surface, depth_samples=50, offset=offset, depth=depth)
    r, o, valid = window.take(volumes["R3D"]), window.take(volumes["O3D"]), window.valid
    np.testing.assert_allclose(window_mean(window.take(volumes["dBI"]), valid), expected["aip"], rtol=1e-5)
    np.testing.assert_array_equal(window_maximum(window.take(volumes["dBI"]), valid), expected["mip"])
    np.testing.assert_allclose(window_mean(r, valid), expected["ret"], rtol=1e-5)
    np.testing.assert_allclose(axial.wrap(axis_window_mean(o, valid) - expected["ori"]), 0, atol=1e-3)
    np.testing.assert_array_equal(axis_window_mode(o, valid), expected["ori_histogram"])
    slope = birefringence_slope(r, valid, depth_step_um=2.5, wavelength_um=1.3)
    np.testing.assert_allclose(slope, expected["biref"], atol=1e-7, rtol=1e-4)


@given(st.floats(-400, 400), st.booleans(), st.floats(-80, 80))
@settings(max_examples=50, deadline=None)
def test_turning_the_sample_turns_the_axis(offset, flip, turn):
    """A sample turned by t changes the phase between the channels by 2t (or -2t where the phase is flipped)."""
    rng = np.random.default_rng(1)
    jones = (rng.normal(size=(2, 40)) + 1j * rng.normal(size=(2, 40))).astype(np.complex64)
    turned = jones.copy()
    turned[0] *= np.exp((-2j if flip else 2j) * np.radians(turn)).astype(np.complex64)
    before = orientation_from_jones(jones, phase_offset_deg=offset, flip_phase=flip)
    after = orientation_from_jones(turned, phase_offset_deg=offset, flip_phase=flip)
    np.testing.assert_allclose(axial.wrap(after - before - turn + 0.0), 0, atol=1e-3)
    assert after.max() <= 90
    assert after.min() > -90


def test_negating_both_channels_changes_nothing():
    rng = np.random.default_rng(2)
    jones = (rng.normal(size=(2, 30)) + 1j * rng.normal(size=(2, 30))).astype(np.complex64)
    for product in (intensity_db_from_jones, retardance_from_jones, orientation_from_jones):
        np.testing.assert_allclose(product(-jones), product(jones), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
def test_complex_tiles_come_back_unchanged(channels):
    rng = np.random.default_rng(3)
    shape = (channels, 4, 3, 7)
    jones = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    tile = complex_tile_from_jones(jones)
    assert tile.shape == (2 * channels * 4, 3, 7)
    np.testing.assert_array_equal(tile[:4, :, 0], jones[0, :, :, -1].real)  # depth reversed, Re J1 first
    np.testing.assert_array_equal(jones_from_complex_tile(tile, channels=channels), jones)


def test_inputs_are_left_as_they_were():
    counts = fringe_counts(samples=SAMPLES, a_lines=4, b_lines=2)
    before = counts.copy()
    jones = jones_from_spectra(counts, spectral_plan(samples=SAMPLES, window="hann"))
    held = jones.copy()
    for product in (intensity_db_from_jones, retardance_from_jones, orientation_from_jones, complex_tile_from_jones):
        product(jones)
    np.testing.assert_array_equal(counts, before)
    np.testing.assert_array_equal(jones, held)


def test_wavelength_phase_chirp_and_positions_are_one_calibration():
    """The same spectrometer described in four ways is sampled at the same places."""
    pixel = np.arange(300.0)
    k = 8.0 - 0.004 * pixel - 2e-6 * pixel**2
    linear_k = np.linspace(k[0], k[-1], 300)
    index = (k - k[0]) / (k[-1] - k[0]) * 299
    by_wavelength = positions_from_wavelengths(2 * np.pi / k)[0]
    by_phase = positions_from_phases(k * 17, linear_k * 17)
    by_chirp = positions_from_chirp(index)
    # a wavelength vector is interpolated in wavelength, the others in k: equal at the pixels, 1e-3 between them
    np.testing.assert_allclose(by_wavelength, by_phase, atol=1e-3)
    np.testing.assert_allclose(by_chirp, by_phase, atol=1e-9)
    np.testing.assert_allclose(validated_positions(by_phase, samples=300), by_phase)


@given(st.lists(st.floats(0.01, 5), min_size=3, max_size=30), st.booleans())
def test_positions_invert_the_coordinate(steps, falling):
    coordinate = np.cumsum(steps) * (-1 if falling else 1)
    positions = positions_from_coordinate(coordinate, coordinate)
    np.testing.assert_allclose(positions, np.arange(len(steps)), atol=1e-6)


@pytest.mark.parametrize(
    ("vector", "match"),
    [
        ([1.0, np.nan, 3.0], "nan at index 1"),
        ([1.0, 2.0, 2.0], "goes from 2 at index 1 to 2"),
        ([1.0], "at least two"),
    ],
)
def test_a_coordinate_that_turns_back_is_refused_with_its_place(vector, match):
    with pytest.raises(ValueError, match=match):
        positions_from_coordinate(vector, [1.0])


def test_positions_far_outside_the_spectrum_are_refused():
    with pytest.raises(ValueError, match="far outside the 100 pixels"):
        validated_positions(np.linspace(0, 200, 100), samples=100)


@pytest.mark.parametrize(
    "bad",
    [
        {"channels": 3},
        {"zero_padding": 0},
        {"cut": 200},
        {"window": "boxcar"},
        {"background": "median"},
        {"background": np.ones(5)},
        {"dispersion_rad": np.full(SAMPLES, np.nan)},
        {"positions": np.zeros(SAMPLES)},
    ],
)
def test_impossible_plans_are_refused(bad):
    with pytest.raises(ValueError):
        spectral_plan(**{"samples": SAMPLES, **bad})

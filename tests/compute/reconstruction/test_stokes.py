"""Axis and birefringence from averaged states: known circles, late surfaces, noise."""

import numpy as np
import pytest

from opticstream.compute.reconstruction import axis_and_birefringence, depth_window
from opticstream.testing.tile_phantom import one_tile_config, tile_from_phantom, uniform_white_matter

STEP_UM, WAVELENGTH_UM = 2.5, 1.3


def circle(birefringence: float, axis_deg: float, *, surface: float = 10.0, depth_samples: int = 120) -> np.ndarray:
    """Return noise-free profiles of one fibre axis below a surface, shape (2, 1, 1, z); unit intensity."""
    below = np.maximum(np.arange(depth_samples) - surface, 0)
    retardance = 2 * np.pi * birefringence * STEP_UM / WAVELENGTH_UM * below
    first = np.sin(retardance) * np.exp(2j * np.deg2rad(axis_deg))
    return np.stack([first, np.cos(retardance)]).reshape(2, 1, 1, -1).astype(np.complex64)


def fitted(jones: np.ndarray, surface: float, *, depth: int = 80) -> tuple[float, float]:
    window = depth_window([[surface]], depth_samples=jones.shape[-1], depth=depth)
    axis, birefringence = axis_and_birefringence(
        jones, window, depth_step_um=STEP_UM, wavelength_um=WAVELENGTH_UM, phase_offset_deg=0
    )
    return float(axis[0, 0]), float(birefringence[0, 0])


@pytest.mark.parametrize("birefringence", [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 5e-3])
@pytest.mark.parametrize("axis_deg", [-80.0, -30.0, 0.0, 45.0, 89.0])
def test_a_known_circle_is_found_at_every_birefringence(birefringence, axis_deg):
    axis, found = fitted(circle(birefringence, axis_deg), 10)
    assert axis == pytest.approx(axis_deg, abs=0.1)
    assert found == pytest.approx(birefringence, rel=0.01, abs=1e-5)  # a thirtieth of the distance of the rates


@pytest.mark.parametrize("error_px", [-2, -1, 1, 2])
@pytest.mark.parametrize("birefringence", [1e-3, 4e-3])
def test_a_surface_that_is_off_by_two_samples_costs_less_than_two_percent(error_px, birefringence):
    axis, found = fitted(circle(birefringence, 20.0), 10 + error_px)
    assert found == pytest.approx(birefringence, rel=0.02)
    assert axis == pytest.approx(20.0, abs=0.5)


def test_pure_noise_gives_finite_values():
    rng = np.random.default_rng(5)
    noise = (rng.normal(size=(2, 6, 5, 100)) + 1j * rng.normal(size=(2, 6, 5, 100))).astype(np.complex64)
    window = depth_window(np.full((6, 5), 3), depth_samples=100, depth=60)
    for found in axis_and_birefringence(noise, window, depth_step_um=STEP_UM, wavelength_um=WAVELENGTH_UM):
        assert np.isfinite(found).all()


@pytest.mark.parametrize("birefringence", [1e-4, 5e-4, 2e-3, 4e-3])
def test_the_phantoms_axis_and_birefringence_are_found_through_the_whole_chain(birefringence):
    phantom = uniform_white_matter(birefringence, scattering_db=-36, seed=41)
    config = one_tile_config(a_lines=24, b_lines=24)
    tile = tile_from_phantom(config, phantom)
    window = depth_window(tile.surface, depth_samples=tile.jones.shape[-1], depth=80)
    axis, found = axis_and_birefringence(
        tile.jones, window, depth_step_um=STEP_UM, wavelength_um=config.scan.wavelength_um
    )
    truth = tile.truth["apparent_birefringence"]
    off = np.abs((axis - tile.truth["apparent_orientation"] + 90) % 180 - 90)
    assert np.median(off[tile.white]) < 2.0
    assert np.median(np.abs(found / truth - 1)[tile.white]) < 0.08

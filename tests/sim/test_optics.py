"""Light in tissue against closed forms and explicit Jones products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.model.ids import TileId
from opticstream.sim.optics import apparent_from_axis, beam_frame, rotate_in_plane
from opticstream.sim.settings import BubbleSettings, GeneratedFibres, VesselSettings
from opticstream.sim.tiles import NOMINAL_FIRST_BIN, TileSimulator
from opticstream.testing.small_phantom import PLAIN_SAMPLE, QUIET, plain_phantom, small_project_config

angles = st.floats(0, 2 * np.pi)


def projection(r: np.ndarray, k: np.ndarray) -> np.ndarray:
    """P(r; k) as the description of the algorithms has it."""
    along = k @ r
    return (r - along * k) * np.sqrt(1 - along**2 / (r @ r))


@given(tilt=st.floats(-60, 60), polar=st.floats(0.05, np.pi - 0.05), azimuth=angles, b=st.floats(1e-5, 1e-2))
def test_a_beam_sees_the_projection_of_the_formula(tilt: float, polar: float, azimuth: float, b: float) -> None:
    u = np.array([np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)])
    g = np.deg2rad(tilt)
    k = np.array([np.sin(g), 0.0, np.cos(g)])
    seen, phi = apparent_from_axis(u, b, beam_frame(tilt))
    # The description's r_x, from apparent birefringence and angle of the tilted beam.
    r_x = seen * np.array([np.cos(phi) * np.cos(g), np.sin(phi), -np.cos(phi) * np.sin(g)])
    assert r_x == pytest.approx(projection(b * u, k), abs=1e-12 + 1e-6 * b)


@given(tilt=st.floats(-80, 80), axis=st.floats(-180, 180))
def test_a_beam_frame_is_right_handed_and_orthonormal(tilt: float, axis: float) -> None:
    frame = beam_frame(tilt, axis)
    assert frame @ frame.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(frame) == pytest.approx(1)


@given(turn=st.floats(-180, 180), azimuth=angles, inclination=st.floats(-1.4, 1.4))
def test_turning_the_sample_turns_the_apparent_angle(turn: float, azimuth: float, inclination: float) -> None:
    flat = np.cos(inclination)
    u = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(inclination)])
    b, phi = apparent_from_axis(u, 1.0, beam_frame(0.0))
    b_turned, phi_turned = apparent_from_axis(rotate_in_plane(u, turn), 1.0, beam_frame(0.0))
    assert b_turned == pytest.approx(b)
    assert np.exp(1j * (phi_turned - phi - np.deg2rad(turn))) == pytest.approx(1)


FIRST_TILE = TileId(1, 1)


def fields(simulator: TileSimulator, tile: TileId = FIRST_TILE) -> tuple[int, np.ndarray, np.ndarray]:
    """First bin and both fields of a whole tile, (lines, A-lines, depth)."""
    blocks = list(simulator.fields(tile))
    first_bin = blocks[0][1]
    return first_bin, np.concatenate([b[2] for b in blocks]), np.concatenate([b[3] for b in blocks])


@settings(max_examples=12, deadline=None)
@given(direction=st.floats(0, 180), b=st.floats(1e-4, 2.5e-3), offset=st.floats(0, 180))
def test_a_uniform_retarder_gives_the_exact_retardance_and_orientation(
    direction: float, b: float, offset: float
) -> None:
    fibres = GeneratedFibres(directions_deg=(direction, direction), bend=0.0, crossing_fraction=0.0)
    sample = PLAIN_SAMPLE.model_copy(update={"fibres": fibres, "birefringence_white": b, "inclination_max_deg": 0.0})
    phantom = plain_phantom(sample=sample, instrument=QUIET.model_copy(update={"phase_offset_deg": offset}))
    tiny = [{"name": "normal", "columns": 1, "a_lines": 12}]
    simulator = TileSimulator(small_project_config(b_lines=9, grid_size_y=1, illuminations=tiny), phantom)
    first_bin, first, second = fields(simulator)
    depth_um = (first_bin + np.arange(first.shape[-1]) - NOMINAL_FIRST_BIN - 10.0) * 4.0
    inside = depth_um > 0
    d = 2 * np.pi * b * depth_um[inside] / 1.3
    wanted = np.sin(d) * np.exp(2j * np.deg2rad(direction - offset))
    # Ratio of the channels, without dividing by a channel that may be dark.
    scale = np.sqrt(np.abs(first[..., inside]) ** 2 + np.abs(second[..., inside]) ** 2)
    assert (np.abs(first[..., inside] * np.cos(d) - second[..., inside] * wanted) / scale).max() < 2e-5
    # Round trip of a lossless retarder: nothing is lost, whatever the depth.
    power = np.abs(first) ** 2 + np.abs(second) ** 2
    assert power[..., inside].mean() == pytest.approx(
        10 ** (simulator.settings.instrument.scattering_db / 10), rel=0.03
    )


def test_a_depth_varying_sample_is_the_cumulative_round_trip_product() -> None:
    sample = PLAIN_SAMPLE.model_copy(update={"depth_scale_um": 300.0, "layer_step_um": 40.0})
    simulator = TileSimulator(small_project_config(), plain_phantom(sample=sample))
    tile = TileId(1, 2)
    placement = simulator.stage.placement(tile.mosaic)
    grid = placement.grid(simulator.stage.position_px(tile), (24, 20))
    view = simulator.look(placement, 0, 1, grid)
    first_bin, first, second = fields(simulator, tile)
    circular = np.array([1.0, 1j]) / np.sqrt(2)
    for a, line in ((0, 0), (13, 7), (23, 19)):
        way_in = np.eye(2, dtype=complex)
        for z in range(first.shape[-1]):
            below = first_bin + z - NOMINAL_FIRST_BIN - 10.0
            if below <= 0:
                continue
            layer = min(int(below * 4.0 / 40.0), len(view.layers) - 1)
            half = np.pi * view.apparent_birefringence[layer, a, line] * 4.0 / 1.3
            phi = view.apparent_angle[layer, a, line]
            turn = np.array([[np.cos(phi), -np.sin(phi)], [np.sin(phi), np.cos(phi)]])
            plate = turn @ np.diag([np.exp(1j * half), np.exp(-1j * half)]) @ turn.T
            way_in = plate @ way_in
            back = way_in.T @ way_in @ circular  # reciprocity: the way out is the transpose of the way in
            copolar, cross = circular.conj() @ back, circular @ back
            ratio = first[line, a, z] / second[line, a, z]
            wanted = -1j * np.exp(-2j * np.deg2rad(100.0)) * cross / copolar
            assert ratio == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert np.ptp(view.apparent_angle[:, 5, 5]) > 0.05  # the sample does change along this A-line


def test_two_illuminations_of_one_axis_give_the_apparent_birefringence_of_the_formula() -> None:
    fibres = GeneratedFibres(directions_deg=(30.0, 30.0), bend=0.0, crossing_fraction=0.0)
    sample = PLAIN_SAMPLE.model_copy(update={"fibres": fibres, "inclination_max_deg": 60.0})
    simulator = TileSimulator(small_project_config(), plain_phantom(sample=sample))
    for tile in (TileId(1, 1), TileId(2, 1)):
        index = simulator.layout.illumination_index(tile.mosaic)
        placement = simulator.stage.placement(tile.mosaic)
        shape = simulator.scan.tile_shape(index)
        axis = simulator.sample.tissue(placement.grid(simulator.stage.position_px(tile), shape), 0.0).axis
        k = np.array([np.sin(np.deg2rad(-15.0)), 0, np.cos(np.deg2rad(-15.0))]) if index else np.array([0, 0, 1.0])
        first_bin, first, second = fields(simulator, tile)
        z = 30
        depth_um = (first_bin + z - NOMINAL_FIRST_BIN - 10.0) * 4.0
        measured = np.arctan2(np.abs(first[..., z]), np.abs(second[..., z])) / (2 * np.pi * depth_um) * 1.3
        expected = 8e-4 * (1 - (axis @ k) ** 2)
        assert pytest.approx(expected, rel=1e-3, abs=1e-8) == measured.T


def test_speckle_is_fully_developed() -> None:
    simulator = TileSimulator(small_project_config(), plain_phantom())
    _, first, second = fields(simulator)
    intensity = (np.abs(first) ** 2 + np.abs(second) ** 2)[..., 14:]
    assert intensity.std() / intensity.mean() == pytest.approx(1.0, abs=0.02)
    # Exponential: the share above t times the mean is exp(-t).
    for t in (0.1, 1.0, 3.0):
        assert np.mean(intensity > t * intensity.mean()) == pytest.approx(np.exp(-t), abs=0.01)


def test_speckle_is_correlated_within_the_point_spread_function() -> None:
    width = 2.5
    instrument = QUIET.model_copy(update={"lateral_fwhm_px": width})
    simulator = TileSimulator(small_project_config(), plain_phantom(instrument=instrument))
    _, _, second = fields(simulator)
    field = second[..., 14:]
    power = np.mean(np.abs(field) ** 2)
    sigma = width / 2.3548
    for shift in (1, 2, 4):
        across = np.mean(field[:, shift:] * field[:, :-shift].conj()) / power
        along = np.mean(field[shift:] * field[:-shift].conj()) / power
        expected = np.exp(-(shift**2) / (4 * sigma**2))
        assert abs(across) == pytest.approx(expected, abs=0.03)
        assert abs(along) == pytest.approx(expected, abs=0.03)


def test_speckle_is_independent_between_tiles_and_slices() -> None:
    simulator = TileSimulator(small_project_config(), plain_phantom(slices=2))
    tiles = [fields(simulator, TileId(m, t))[2][..., 14:] for m, t in ((1, 1), (1, 2), (3, 1))]
    for other in tiles[1:]:
        correlation = np.mean(tiles[0] * other.conj()) / np.mean(np.abs(tiles[0]) ** 2)
        assert abs(correlation) < 0.01


def test_intensity_decays_as_the_attenuation_says() -> None:
    sample = PLAIN_SAMPLE.model_copy(update={"attenuation_white_per_mm": 4.0})
    simulator = TileSimulator(small_project_config(), plain_phantom(sample=sample))
    _, first, second = fields(simulator)
    profile = (np.abs(first) ** 2 + np.abs(second) ** 2).mean(axis=(0, 1))[14:]
    slope = np.polyfit(np.arange(len(profile)) * 4e-3, np.log(profile), 1)[0]
    assert slope == pytest.approx(-2 * 4.0, rel=0.03)


def test_the_confocal_gate_halves_the_power_at_its_rayleigh_distance() -> None:
    instrument = QUIET.model_copy(update={"focus_depth_px": 30.0, "rayleigh_um": 100.0})
    simulator = TileSimulator(small_project_config(), plain_phantom(instrument=instrument))
    first_bin, first, second = fields(simulator)
    profile = (np.abs(first) ** 2 + np.abs(second) ** 2).mean(axis=(0, 1))
    at = NOMINAL_FIRST_BIN + 30 - first_bin
    assert profile[at + 25] / profile[at] == pytest.approx(0.5, abs=0.1)
    assert profile[at + 50] / profile[at] == pytest.approx(0.2, abs=0.05)


def test_vessels_are_dark_and_throw_a_shadow() -> None:
    sample = PLAIN_SAMPLE.model_copy(
        update={"vessels": VesselSettings(radius_um=30, spacing_um=120, depth_um=80, lumen_db=-20, shadow_db=-6)}
    )
    simulator = TileSimulator(small_project_config(), plain_phantom(sample=sample))
    tile = TileId(1, 1)
    placement = simulator.stage.placement(tile.mosaic)
    face = simulator.sample.face(placement.grid(simulator.stage.position_px(tile), (24, 20)), 1)
    first_bin, first, second = fields(simulator, tile)
    intensity = (np.abs(first) ** 2 + np.abs(second) ** 2).swapaxes(0, 1)
    depth_um = (first_bin + np.arange(intensity.shape[-1]) - NOMINAL_FIRST_BIN - 10.0) * 4.0
    deep = np.broadcast_to(depth_um > face.vessel_depth_um[..., None] + 30, intensity.shape)
    middle = face.vessel_half_um > 28
    free = face.vessel_half_um == 0
    assert middle.sum() > 10
    assert free.sum() > 10
    from_centre = depth_um - face.vessel_depth_um[..., None]
    lumen = (from_centre > -15) & (from_centre < 0)  # the shadow begins in the middle
    whole = intensity[free][:, depth_um > 0].mean()
    assert 10 * np.log10(intensity[middle[..., None] & lumen].mean() / whole) == pytest.approx(-20, abs=1.5)
    assert 10 * np.log10(intensity[middle[..., None] & deep].mean() / whole) == pytest.approx(-6, abs=0.7)


def test_bubbles_stand_above_the_surface_and_hide_what_is_below() -> None:
    bubbles = BubbleSettings(per_mm2=60, radius_um=60, reflection_db=20, shadow_db=-10)
    sample = PLAIN_SAMPLE.model_copy(update={"bubbles": bubbles, "surface_depth_px": 20.0})
    simulator = TileSimulator(small_project_config(), plain_phantom(sample=sample))
    tile = TileId(1, 1)
    placement = simulator.stage.placement(tile.mosaic)
    dome = simulator.sample.face(placement.grid(simulator.stage.position_px(tile), (24, 20)), 1).bubble_px
    assert 0.02 < np.mean(dome > 0) < 0.9
    first_bin, first, second = fields(simulator, tile)
    intensity = (np.abs(first) ** 2 + np.abs(second) ** 2).swapaxes(0, 1)
    surface = NOMINAL_FIRST_BIN + 20 - first_bin
    above = intensity[..., : surface - 1].sum(axis=-1)
    assert np.all(above[dome == 0] == 0)
    assert np.mean(above[dome > 2] > 0) > 0.9
    below = intensity[..., surface + 2 :]
    loss = below[dome > 0].mean() / below[dome == 0].mean()
    assert 10 * np.log10(loss) == pytest.approx(-10, abs=0.5)


def test_tilted_beams_move_sideways_with_depth() -> None:
    instrument = QUIET.model_copy(update={"walk_off": True})
    simulator = TileSimulator(small_project_config(), plain_phantom(instrument=instrument))
    placement = simulator.stage.placement(TileId(2, 1).mosaic)
    grid = placement.grid((0, 0), (16, 20))
    view = simulator.look(placement, 1, 1, grid)
    deep = -2
    shift_px = np.sin(np.deg2rad(-15.0)) * simulator.layer_depths_um()[deep] / 10.0
    there = simulator.sample.tissue(grid.moved(shift_px * 10.0, 0.0), 0.0)
    assert view.layers[deep].axis == pytest.approx(there.axis, abs=1e-9)
    assert not np.allclose(view.layers[0].axis, there.axis)


def test_a_surface_below_the_depth_range_leaves_an_empty_tile() -> None:
    sample = PLAIN_SAMPLE.model_copy(update={"surface_depth_px": 500.0})
    simulator = TileSimulator(small_project_config(), plain_phantom(sample=sample))
    _, first, second = fields(simulator)
    assert not first.any()
    assert not second.any()
    assert simulator.tile(FIRST_TILE).shape == (20, 2, 24, 256)

"""The compiled streaming engine against the plain NumPy chain, over sizes, options, blocks and threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from opticstream.compute import axial
from opticstream.compute.lanes import LANES
from opticstream.compute.reconstruction import (
    TileOptions,
    attenuation_from_intensity,
    axis_and_birefringence,
    axis_window_mean,
    axis_window_mode,
    birefringence_slope,
    birefringence_unwrapped,
    complex_tile_from_jones,
    depth_window,
    edge_response,
    intensity_db_from_jones,
    jones_from_spectra,
    median_3x3,
    orientation_from_jones,
    retardance_from_jones,
    retardance_without_noise,
    spectral_plan,
    strongest_rise_near,
    surface_sheet,
    unfiltered_surface_from_gradient,
    unfiltered_surface_from_threshold,
    window_maximum,
    window_mean,
)
from opticstream.compute.tile_engine import TileEngine
from opticstream.compute.tile_engine._spectrum_kernels import groups_needed, spectra_to_strips
from opticstream.testing.raw_tiles import fringe_counts


def _plain(counts, plan, options):
    jones = jones_from_spectra(counts, plan)
    if not options.flip_z:
        jones = jones[..., ::-1]
    two = len(jones) == 2
    volumes = {"dBI": intensity_db_from_jones(jones)}
    if two:
        volumes["R3D"] = retardance_from_jones(jones)
        volumes["O3D"] = orientation_from_jones(
            jones, phase_offset_deg=options.phase_offset_deg, flip_phase=options.flip_phase
        )
    if not isinstance(options.surface, str):
        raw = surface = options.surface
    elif options.surface == "robust":
        surface, _ = surface_sheet(volumes["dBI"])
        raw = strongest_rise_near(edge_response(volumes["dBI"]), surface)
    elif options.surface == "gradient":
        raw = unfiltered_surface_from_gradient(volumes["dBI"])
    else:
        raw = unfiltered_surface_from_threshold(volumes["dBI"], threshold_db=options.surface_threshold_db)
    if isinstance(options.surface, str) and options.surface != "robust":
        surface = median_3x3(raw)
    window = depth_window(surface, depth_samples=jones.shape[3], offset=options.offset, depth=options.depth)
    maps = {"surfraw": raw, "surf": surface}
    dbi = window.take(volumes["dBI"])
    maps["aip"], maps["mip"] = window_mean(dbi, window.valid), window_maximum(dbi, window.valid)
    maps["mus"] = attenuation_from_intensity(volumes["dBI"], window, depth_step_mm=options.depth_step_um / 1000)
    if two:
        r, o = window.take(volumes["R3D"]), window.take(volumes["O3D"])
        scale = {"depth_step_um": options.depth_step_um, "wavelength_um": options.wavelength_um}
        maps["ret"] = window_mean(r, window.valid)
        if options.retardance_method == "stokes":
            maps["ret"] = retardance_without_noise(jones, window)
        turning = {"phase_offset_deg": options.phase_offset_deg, "flip_phase": options.flip_phase}
        axis, rate = axis_and_birefringence(jones, window, offset=options.offset, **scale, **turning)
        average = axis_window_mean if options.orientation_method == "mean" else axis_window_mode
        maps["ori"] = axis if options.orientation_method == "stokes" else average(o, window.valid)
        if options.birefringence_method == "stokes":
            maps["biref"] = rate
        elif options.birefringence_method == "slope":
            maps["biref"] = birefringence_slope(r, window.valid, **scale)
        else:
            maps["biref"] = birefringence_unwrapped(volumes["R3D"], volumes["O3D"], window, **scale)
    volumes["complex"] = complex_tile_from_jones(jones if options.flip_z else jones[..., ::-1])
    return volumes, maps


def _stream(counts, plan, options, *, block=3, threads=1):
    b_lines, channels, a_lines, _ = counts.shape
    got = {}

    def sink(first, blocks):
        for name, values in blocks.items():
            got.setdefault(name, {})[first] = values.transpose(2, 1, 0).copy()

    executor = ThreadPoolExecutor(threads) if threads > 1 else None
    engine = TileEngine(
        options,
        a_lines=a_lines,
        b_lines=b_lines,
        channels=channels,
        depth=plan.depth,
        cut=plan.cut,
        plan=plan,
        block=block,
        executor=executor,
        threads=threads,
        sink=sink,
    )
    for first in range(0, b_lines, block):
        engine.add_spectra(counts[first : first + block])
    maps = engine.finish()
    if executor:
        executor.shutdown()
    volumes = {name: np.concatenate([parts[k] for k in sorted(parts)], axis=1) for name, parts in got.items()}
    return volumes, maps, engine


VOLUMES = ("dBI", "R3D", "O3D", "complex")
MAPS = ("aip", "mip", "ret", "ori", "biref", "mus")
CASES = [
    ({}, {}, 2, 19),
    ({}, {"orientation_method": "mean", "birefringence_method": "slope", "retardance_method": "mean"}, 2, 21),
    (
        {"flip_channel2": False, "background": "none", "window": "hann"},
        {"flip_phase": True, "surface": "robust"},
        2,
        16,
    ),
    (
        {"zero_padding": 2, "window": "gaussian"},
        {"surface": "gradient_threshold", "offset": -4, "depth": 15, "birefringence_method": "slope"},
        2,
        5,
    ),
    ({"residual_background": False}, {"flip_z": False, "orientation_method": "histogram"}, 2, 33),
    ({"cut": 0}, {"birefringence_method": "unwrap", "phase_offset_deg": -37.0}, 2, 9),
    ({}, {"volumes": ("dBI", "complex"), "maps": ("aip", "mip", "mus")}, 1, 7),
    ({"background": "file", "positions": True, "dispersion": True}, {"surface": 30}, 2, 18),
    ({"background": "none", "residual_background": False, "dispersion": True}, {"surface": 80, "depth": 200}, 2, 1),
    ({}, {"surface": "robust"}, 2, 19),
    ({}, {"surface": "robust", "birefringence_method": "unwrap", "flip_z": False}, 2, 3),
]


@pytest.mark.parametrize(("spectral", "further", "channels", "a_lines"), CASES)
@pytest.mark.parametrize("samples", [192, 256])
def test_the_engine_agrees_with_the_plain_chain(spectral, further, channels, a_lines, samples):
    counts = fringe_counts(samples=samples, a_lines=a_lines, b_lines=8, channels=channels)
    spectral = dict(spectral)
    p = np.linspace(-1, 1, samples)
    if spectral.get("background") == "file":
        spectral["background"] = counts.mean(axis=(0, 2)) + 3
    if spectral.pop("positions", False):
        spectral["positions"] = np.stack([(samples - 1) * (0.5 + p / 2 + 0.03 * (1 - p**2)) + c for c in range(2)])
    if spectral.pop("dispersion", False):
        spectral["dispersion_rad"] = np.stack([8 * p**2, 7 * p**2 - 3 * p**3])
    plan = spectral_plan(samples=samples, channels=channels, **spectral)
    further = dict(further)
    if isinstance(further.get("surface"), int):
        further["surface"] = np.full((a_lines, 8), further["surface"], np.float32)
    options = TileOptions(**{"volumes": VOLUMES, "maps": MAPS, **further})
    volumes, maps = _plain(counts, plan, options)
    got_volumes, got, _ = _stream(counts, plan, options)
    assert set(got_volumes) == set(options.volumes)
    assert set(got) == {*options.maps, "surf", "surfraw"}
    scale = np.sqrt((volumes["complex"] ** 2).mean())
    np.testing.assert_allclose(got_volumes["complex"], volumes["complex"], atol=1e-4 * scale)
    strong = volumes["dBI"] > np.percentile(volumes["dBI"], 20)
    assert np.abs(got_volumes["dBI"] - volumes["dBI"])[strong].max() < 0.01
    if channels == 2:
        strong &= np.abs(volumes["R3D"] - 45) < 44
        assert np.abs(got_volumes["R3D"] - volumes["R3D"])[strong].max() < 0.01
        assert np.abs(axial.wrap(got_volumes["O3D"] - volumes["O3D"]))[strong].max() < 0.02
        assert got_volumes["O3D"].min() > -90
        assert got_volumes["O3D"].max() <= 90
    assert (got["surfraw"] != maps["surfraw"]).mean() < 0.02  # a tie may fall the other way
    same = np.rint(got["surf"]) == np.rint(maps["surf"])
    assert np.abs(got["surf"] - maps["surf"]).max() <= 1 or same.mean() > 0.98
    tolerance = {"aip": 0.01, "mip": 0.01, "ret": 0.05, "ori": 0.05, "biref": 2e-6, "mus": 1e-2}
    for name in options.maps:
        error = np.abs(got[name] - maps[name])
        if name == "ori":
            error = np.minimum(error, 180 - error)
            error[maps["ret"] < 2] = 0  # an axis that hardly shows has no precision
        if name == "mus":
            error /= 1 + np.abs(maps[name])
        # A tie, a sample on the border of a bin or a block on the border of being seen may fall the other way.
        exact = name in ("aip", "mip", "mus")
        assert (error[same] < tolerance[name]).mean() >= (1 if exact else 0.95), name


@pytest.mark.parametrize(("surface", "biref"), [("gradient", "unwrap"), ("robust", "slope"), ("robust", "unwrap")])
def test_blocks_and_threads_change_no_bit(surface, biref):
    b_lines = 62 if surface == "robust" else 17
    counts = fringe_counts(samples=128, a_lines=21, b_lines=b_lines, surface_bin=40)
    plan = spectral_plan(samples=128)
    options = TileOptions(volumes=VOLUMES, surface=surface, birefringence_method=biref)
    first_volumes, first_maps, first = _stream(counts, plan, options, block=b_lines)
    for block, threads in ((1, 1), (4, 3), (16, 2)):
        volumes, maps, engine = _stream(counts, plan, options, block=block, threads=threads)
        for name in maps:
            np.testing.assert_array_equal(maps[name], first_maps[name], err_msg=name)
        for name in volumes:
            np.testing.assert_array_equal(volumes[name], first_volumes[name], err_msg=name)
        assert engine.noise_db == first.noise_db


def test_other_number_types_are_taken(tmp_path):
    counts = fringe_counts(samples=128, a_lines=5, b_lines=3)
    plan = spectral_plan(samples=128)
    expected = _stream(counts, plan, TileOptions())[1]
    for dtype in (">u2", "<i2", "f4"):
        got = _stream(counts.astype(dtype), plan, TileOptions())[1]
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name])


def test_a_missing_b_line_is_noticed():
    counts = fringe_counts(samples=128, a_lines=5, b_lines=3)
    plan = spectral_plan(samples=128)
    engine = TileEngine(TileOptions(), a_lines=5, b_lines=4, channels=2, depth=plan.depth, cut=plan.cut, plan=plan)
    for row in counts:
        engine.add_spectra(row[np.newaxis])
    with pytest.raises(ValueError, match="3 B-lines of 4"):
        engine.finish()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("samples", [96, 97, 130])
@pytest.mark.parametrize("kind", ["as recorded", "rising", "falling", "one in the middle", "jumping"])
@pytest.mark.parametrize("reverse", [False, True])
def test_spectra_are_linearized_wherever_the_samples_lie(dtype, samples, kind, reverse):
    rng = np.random.default_rng(samples)
    counts = rng.integers(0, 65536, (LANES + 3, samples)).astype(dtype)
    background = rng.normal(size=samples).astype(np.float32)
    index, fraction = {
        "as recorded": (np.minimum(np.arange(samples), samples - 2), (np.arange(samples) == samples - 1) * 1.0),
        "rising": (np.arange(samples) * (samples - 2) // samples, rng.random(samples)),
        "falling": ((np.arange(samples) * (samples - 2) // samples)[::-1].copy(), rng.random(samples)),
        "one in the middle": (np.full(samples, samples // 2), rng.random(samples)),
        "jumping": (rng.integers(0, samples - 1, samples), 3 * rng.random(samples) - 1),
    }[kind]
    fraction = fraction.astype(np.float32)
    strips = np.empty((2, samples * LANES), np.float32)
    recorded = np.empty(groups_needed(index) * 2 * LANES * 2 * LANES, np.float32)
    for residual in (False, True):
        spectra_to_strips(counts, reverse, background, index, fraction, residual, recorded, strips)
        clean = (counts - background.astype(np.float64))[:, :: -1 if reverse else 1]
        expected = clean[:, index] + fraction * (clean[:, index + 1] - clean[:, index])
        if residual:
            expected = expected - np.median(expected, axis=0)
        got = strips.reshape(2, samples, LANES).transpose(0, 2, 1).reshape(-1, samples)[: LANES + 3]
        np.testing.assert_allclose(got, expected, atol=0.05)

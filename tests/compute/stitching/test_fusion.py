"""Blending, weights, mask, shading, focus and seams, each against a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.compute.stitching import (
    MosaicSum,
    canvas_from_positions,
    common_shading,
    confocal_peak,
    filtered_tiles,
    focus_from_overlaps,
    neighbour_pairs,
    overlap_widths,
    ramp,
    seams_from_tiles,
    tile_weight,
    tissue_mask,
)
from opticstream.compute.stitching._focus import monomials, polynomial_surface
from opticstream.compute.stitching._fusion import fuse_tiles, placed_between_pixels
from opticstream.compute.stitching.volume import angle_from_components, halved, halved_axis

SHAPE = (30, 24)


def grid_positions(columns=3, rows=3, step=(22.3, 17.6), jitter=0.0, seed=0):
    rng = np.random.default_rng(seed)
    cells = np.array([(c, r) for c in range(columns) for r in range(rows)], float)
    return cells * step + rng.uniform(-jitter, jitter, cells.shape)


def weights_of(positions):
    return [tile_weight(SHAPE, overlap) for overlap in overlap_widths(positions, tile_shape=SHAPE)]


def field_tiles(canvas, function):
    """Return tiles that see `function(x, y)` of the canvas' pixels."""
    tiles = []
    for offset, fraction in zip(canvas.offset, canvas.fraction, strict=True):
        x = offset[0] + fraction[0] + np.arange(SHAPE[0])[:, None]
        y = offset[1] + fraction[1] + np.arange(SHAPE[1])[None, :]
        tiles.append(np.broadcast_to(function(x, y), SHAPE).astype(np.float32))
    return tiles


# --- weights ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(length=st.integers(1, 60), before=st.floats(0, 30), after=st.floats(0, 30))
def test_a_ramp_is_above_zero_everywhere_and_one_in_the_middle(length, before, after):
    weight = ramp(length, before=before, after=after)
    assert (weight > 0).all()
    assert weight.max() <= 1
    if before + after < length - 1:
        assert weight.max() == 1


@given(overlap=st.integers(1, 20))
def test_the_ramps_of_two_neighbours_add_up_to_one(overlap):
    positions = [(0, 0), (SHAPE[0] - overlap, 0)]
    first, second = weights_of(positions)
    assert np.allclose(first[-overlap:] + second[:overlap], 1, atol=1e-6)
    assert (first[:-overlap] == 1).all()


def test_a_side_without_a_neighbour_has_no_ramp():
    overlaps = overlap_widths([(0, 0), (20, 1)], tile_shape=SHAPE)
    assert overlaps[0].tolist() == [[0, 10], [0, 0]]
    assert overlaps[1].tolist() == [[10, 0], [0, 0]]


# --- blending -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 100), value=st.floats(-1e3, 1e3))
def test_a_constant_stays_constant_across_seams(seed, value):
    positions = grid_positions(jitter=2, seed=seed)
    canvas = canvas_from_positions(positions, tile_shape=SHAPE)
    image = fuse_tiles(
        [np.full(SHAPE, value, np.float32) + np.eye(*SHAPE) * 0 for _ in positions], canvas, weights_of(positions)
    )
    assert np.isnan(image).all()  # constant tiles are blank, they carry no weight
    tiles = [np.full(SHAPE, value, np.float32) for _ in positions]
    for tile in tiles:
        tile[0, 0] = np.nan  # any hole makes the tile one that has something to say
    total = MosaicSum(canvas)
    for k, (tile, weight) in enumerate(zip(tiles, weights_of(positions), strict=True)):
        tile[0, 1] = np.float32(value) + np.float32(abs(value) * 1e-5 + 1e-5)
        total.add(k, tile, weight)
    got = total.image()
    assert np.nanmax(np.abs(got - value)) <= abs(value) * 2e-5 + 2e-5


@pytest.mark.parametrize("subpixel", [False, True])
def test_a_gradient_has_no_seams(subpixel):
    positions = grid_positions(jitter=2, seed=3)
    canvas = canvas_from_positions(positions, tile_shape=SHAPE, subpixel=subpixel)
    tiles = field_tiles(canvas, lambda x, y: 3 * x - 2 * y)
    image = fuse_tiles(tiles, canvas, weights_of(positions))
    x, y = np.indices(canvas.shape)
    assert np.nanmax(np.abs(image - (3 * x - 2 * y))) < 1e-3


def test_a_pixel_that_one_tile_covers_keeps_its_value_and_a_bare_one_is_filled():
    canvas = canvas_from_positions([(0, 0), (25, 20)], tile_shape=SHAPE)
    tiles = [np.random.default_rng(k).normal(size=SHAPE).astype(np.float32) for k in (0, 1)]
    image = fuse_tiles(tiles, canvas, weights_of([(0, 0), (25, 20)]), fill=-7)
    assert np.allclose(image[:25, :20], tiles[0][:25, :20], atol=1e-6)
    assert (image[:25, 24:] == -7).all()


def test_axes_are_blended_with_the_weight_in_both_sums():
    """10 and 30 degrees with weights 3 and 1; and the same across the wrap of an axis."""
    canvas = canvas_from_positions([(0, 0), (0, 0)], tile_shape=(2, 1))
    weights = [np.full((2, 1), 3, np.float32), np.ones((2, 1), np.float32)]
    for turn in (0, 75, 80, 90, 140):
        tiles = [np.array([[10.0], [11.0]]) + turn, np.array([[30.0], [31.0]]) + turn]
        tiles = [(t + 90) % 180 - 90 for t in tiles]
        exact = np.rad2deg(np.angle(3 * np.exp(2j * np.deg2rad(10)) + np.exp(2j * np.deg2rad(30)))) / 2 + turn
        got = fuse_tiles(tiles, canvas, weights, kind="axial")[0, 0]
        assert abs((got - exact + 90) % 180 - 90) < 1e-4
        assert abs((got - (10 + turn) + 90) % 180 - 90) == pytest.approx(4.84, abs=0.01)  # not 5, and not 20 / 2


def test_a_ramp_of_orientations_is_a_ramp_not_two_steps():
    positions = [(0, 0), (20, 0)]
    canvas = canvas_from_positions(positions, tile_shape=SHAPE)
    tiles = [np.full(SHAPE, 80.0), np.full(SHAPE, -80.0)]
    for tile in tiles:
        tile[3, 3] += 0.001
    image = fuse_tiles(tiles, canvas, weights_of(positions), kind="axial")
    across = image[18:32, 12] % 180
    assert np.all(np.diff(across) >= -1e-4)
    assert np.diff(across).max() < 2.5


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 50))
def test_the_order_of_tiles_changes_nothing_but_rounding(seed):
    rng = np.random.default_rng(seed)
    positions = grid_positions(jitter=2, seed=seed)
    canvas = canvas_from_positions(positions, tile_shape=SHAPE)
    tiles = rng.uniform(-90, 90, (len(positions), *SHAPE)).astype(np.float32)
    weights = weights_of(positions)
    for kind in ("scalar", "axial"):
        straight, shuffled = MosaicSum(canvas, kind), MosaicSum(canvas, kind)
        for k in range(len(tiles)):
            straight.add(k, tiles[k], weights[k])
        for k in rng.permutation(len(tiles)):
            shuffled.add(int(k), tiles[k], weights[k])
        difference = straight.image() - shuffled.image()
        if kind == "axial":
            difference = (difference + 90) % 180 - 90
        assert np.nanmax(np.abs(difference)) < 0.02


def test_nan_stays_where_it_was_and_carries_no_weight():
    positions = [(0, 0), (20, 0)]
    canvas = canvas_from_positions(positions, tile_shape=SHAPE)
    tiles = [np.ones(SHAPE, np.float32) * 5, np.ones(SHAPE, np.float32) * 9]
    tiles[0][:4] = np.nan
    tiles[0][25:] = np.nan
    tiles[1][-1, -1] = 8
    image = fuse_tiles(tiles, canvas, weights_of(positions))
    assert np.isnan(image[:4]).all()
    assert np.allclose(image[25:30], 9)


def test_agreement_is_one_where_axes_agree_and_zero_where_they_cancel():
    canvas = canvas_from_positions([(0, 0), (0, 0)], tile_shape=(2, 2))
    total = MosaicSum(canvas, "axial")
    total.add(0, np.array([[10.0, 20], [30, 40]]), np.ones((2, 2), np.float32))
    total.add(1, np.array([[10.0, 20], [-60, 40]]), np.ones((2, 2), np.float32))
    assert np.allclose(total.agreement(), [[1, 1], [0, 1]], atol=1e-6)


def test_halfway_between_pixels_is_the_mean_of_both():
    image = np.arange(12, dtype=np.float32).reshape(4, 3)
    moved = placed_between_pixels(image, np.array([0.5, 0.0]))
    assert np.isnan(moved[0]).all()
    assert np.allclose(moved[1:], (image[1:] + image[:-1]) / 2)


# --- pyramid ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(shape=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9)), seed=st.integers(0, 99))
def test_halving_is_a_mean_that_leaves_nan_out(shape, seed):
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=shape).astype(np.float32)
    volume[rng.random(shape) < 0.2] = np.nan
    got = halved(volume)
    for index in np.ndindex(got.shape):
        block = volume[tuple(slice(2 * i, 2 * i + 2) for i in index)]
        block = block[np.isfinite(block)]
        if block.size:
            assert got[index] == pytest.approx(block.mean(), abs=1e-5)
        else:
            assert np.isnan(got[index])


def test_halving_axes_across_the_wrap_does_not_give_zero():
    volume = np.tile(np.array([85.0, -85.0], np.float32), (2, 2, 1))
    assert abs(halved_axis(volume).ravel()[0]) == pytest.approx(90, abs=1e-3)


@given(st.lists(st.floats(-720, 720), min_size=1, max_size=8))
def test_the_fast_angle_of_components_is_the_angle(angles):
    turn = np.deg2rad(np.array(angles)) * 2
    cosine = np.cos(turn).astype(np.float32)[None, None]
    sine = np.sin(turn).astype(np.float32)[None, None]
    got = angle_from_components(cosine, sine)[0, 0]
    assert (np.abs((got - angles + 90) % 180 - 90) < 1e-3).all()
    assert (got > -90).all()
    assert (got <= 90).all()


# --- mask, shading, filter, seams ---------------------------------------------------------------------------------


def test_the_mask_has_no_crumbs_and_no_holes():
    image = np.full((120, 100), 40.0)
    image[20:100, 10:90] = 70
    image[50:60, 40:52] = 30
    image[2:5, 2:5] = 80
    image[110:118, 92:99] = np.nan
    mask = tissue_mask(image, threshold=60)
    assert mask[55, 45]
    assert not mask[3, 3]
    assert not mask[112, 95]
    assert abs(int(mask.sum()) - 80 * 80) < 0.06 * 80 * 80
    assert not tissue_mask(image, threshold=1000).any()
    with pytest.raises(ValueError, match="finite"):
        tissue_mask(image, threshold=float("nan"))


def test_the_shading_that_tiles_share_is_found_and_neutral_without_tissue():
    rng = np.random.default_rng(0)
    u, v = np.linspace(-1, 1, 60)[:, None], np.linspace(-1, 1, 50)[None, :]
    shading = 1 - 0.3 * u**2 - 0.1 * v
    tiles = [shading * rng.gamma(8, 1 / 8, (60, 50)) * rng.uniform(5, 9) for _ in range(12)]
    found = common_shading(tiles, multiplicative=True)
    expected = shading / shading.mean()
    assert np.abs(found / expected - 1).mean() < 0.04
    in_db = common_shading([20 * np.log10(t) for t in tiles], multiplicative=False)
    assert np.abs(in_db - 20 * np.log10(expected) + (20 * np.log10(expected)).mean()).mean() < 0.4
    assert (common_shading([np.full((6, 5), np.nan)] * 4, multiplicative=True) == 1).all()


def test_filtered_tiles_know_nothing_of_shading_or_blankness():
    rng = np.random.default_rng(1)
    texture = rng.gamma(4, 0.25, (90, 80))
    shading = np.exp(np.linspace(-1, 1, 90))[:, None]
    plain, shaded, blank = filtered_tiles([texture, texture * shading, np.full((90, 80), 3.0)]).values
    inner = (slice(15, -15), slice(15, -15))
    assert np.corrcoef(plain[inner].ravel(), shaded[inner].ravel())[0, 1] > 0.97
    assert not blank.any()


def test_a_patch_is_filtered_as_if_it_were_the_whole_tile():
    rng = np.random.default_rng(1)
    texture = rng.gamma(4, 0.25, (90, 80))
    whole = filtered_tiles([texture, np.full((90, 80), 3.0)], logarithm=False, sigma_px=12)
    corner, size = (7, 30), (40, 33)
    (alone,) = filtered_tiles([texture[7:47, 30:63]], logarithm=False).values
    assert np.allclose(whole.patch(0, corner, size), alone, atol=1e-4)
    assert not whole.patch(1, corner, size).any()


def test_unknown_pixels_stay_unknown_in_a_patch():
    texture = np.random.default_rng(1).gamma(4, 0.25, (90, 80))
    texture[10:20, 35:40] = np.nan
    patch = filtered_tiles([texture]).patch(0, (0, 30), (90, 30))
    assert not patch[10:20, 5:10].any()
    assert np.isfinite(patch).all()
    assert patch.any()


def test_seams_tell_matching_tiles_from_shifted_ones():
    rng = np.random.default_rng(2)
    whole = rng.normal(size=(70, 40)).cumsum(0).cumsum(1)
    offset = np.array([[0, 0], [25, 3]])
    pairs = np.array([[0, 1]])
    tiles = [whole[:40, :30], whole[25:65, 3:33]]
    (right,) = seams_from_tiles(tiles, offset, pairs)
    (wrong,) = seams_from_tiles([tiles[0], np.roll(tiles[1], 9, axis=0)], offset, pairs)
    assert right.ncc > 0.999
    assert abs(right.offset) < 1e-6
    assert wrong.ncc < right.ncc - 0.01
    (flat,) = seams_from_tiles([np.ones((40, 30)), np.ones((40, 30))], offset, pairs)
    assert np.isnan(flat.ncc)


# --- focus --------------------------------------------------------------------------------------------------------


def focus_case(degree=2, noise=0.7, outliers=0.1, seed=0, shape=(96, 80)):
    rng = np.random.default_rng(seed)
    exponents = monomials(degree)
    coefficients = rng.uniform(-4, 4, len(exponents))
    bend = polynomial_surface(coefficients, exponents, shape)
    offset = np.array(
        [(c * 76 + rng.integers(-2, 3), r * 63 + rng.integers(-2, 3)) for c in range(4) for r in range(3)]
    )
    surfaces = []
    for x0, y0 in offset:
        x, y = x0 + np.arange(shape[0])[:, None], y0 + np.arange(shape[1])[None, :]
        surface = 120 + 0.05 * x - 0.03 * y + 6 * np.sin(x / 50) * np.cos(y / 70) + bend
        surface = surface + rng.normal(size=shape) * noise
        wild = rng.random(shape) < outliers
        surface[wild] = rng.uniform(0, 400, int(wild.sum()))
        surfaces.append(surface.astype(np.float32))
    pairs, _ = neighbour_pairs(offset, tile_shape=shape)
    return surfaces, offset, pairs, bend


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_bending_of_the_field_is_found_under_noise_and_outliers(degree):
    surfaces, offset, pairs, bend = focus_case(degree)
    fit = focus_from_overlaps(surfaces, offset, pairs, degree=degree)
    error = np.abs(fit.surface_px - bend)
    assert np.median(error) < 0.25
    assert error.max() < 1.0
    assert fit.residual_after_px < fit.residual_before_px


def test_pixels_without_signal_or_surface_take_no_part():
    surfaces, offset, pairs, bend = focus_case(2)
    signal = [np.ones(s.shape, bool) for s in surfaces]
    for k, surface in enumerate(surfaces[:4]):
        surface[:, :50] = 300 + 20 * k
        signal[k][:, :50] = False
    surfaces[7][:40] = np.nan
    fit = focus_from_overlaps(surfaces, offset, pairs, signal=signal)
    assert np.abs(fit.surface_px - bend).max() < 1.0


def test_too_little_overlap_is_said_and_not_guessed():
    surfaces, offset, _, _ = focus_case(2)
    with pytest.raises(ValueError, match="found 0"):
        focus_from_overlaps(surfaces, offset, np.zeros((0, 2), int))
    with pytest.raises(ValueError, match="1, 2 or 3"):
        focus_from_overlaps(surfaces, offset, np.zeros((0, 2), int), degree=4)


def depth_profile(focus, *, rayleigh=40, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    depth, below = np.arange(200)[:, None], (np.arange(24) + 0.5)[None, :] * 6
    level = 60 - 0.06 * below + rng.normal(size=(200, 24)) * noise
    if focus is not None:
        level = level - 10 * np.log10(1 + ((depth - focus) / rayleigh) ** 2)
    surface_spread = (depth - below > 10) & (depth - below < 45)
    return level, np.where(surface_spread, 100.0, 0.0), below[0]


def test_the_confocal_peak_is_found_and_believed():
    peak = confocal_peak(*depth_profile(90))
    assert peak.depth_px == pytest.approx(90, abs=6)
    assert peak.confidence > 0.95
    assert peak.attenuation_db_per_px == pytest.approx(0.06, abs=0.02)


def test_without_a_confocal_gate_there_is_no_confidence():
    assert confocal_peak(*depth_profile(None)).confidence < 0.5

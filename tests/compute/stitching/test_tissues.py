"""Positions on tissue that nobody tuned for: other textures, soft edges, a noisy instrument, a turned or bent field."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.stitching import field_geometry, filtered_tiles, high_pass_for_overlap, positions_from_tiles
from opticstream.compute.stitching._correlation import (
    NoiseModel,
    aligned_likelihoods,
    aligned_overlaps,
    cross_spectra,
    likelihood_surfaces,
    noise_model,
    ring_frequency,
)
from opticstream.compute.stitching._instrument import instrument_gain
from opticstream.compute.stitching._tilefilter import tissue_level
from opticstream.testing.tissue_mosaic import TEXTURES, placement_errors, tissue_mosaic

SMALL = {"columns": 6, "rows": 6, "tile_shape": (240, 240)}


def filtered(mosaic):
    return filtered_tiles(mosaic.tiles, sigma_px=high_pass_for_overlap(0.2 * mosaic.tiles.shape[1]))


def rms(error):
    return float(np.sqrt((error**2).mean()))


@pytest.mark.parametrize("tissue", sorted(TEXTURES))
def test_every_tissue_is_placed_to_a_fraction_of_a_pixel(tissue):
    """Small mosaics with ragged edges: with one tile in three half empty, links are few and short."""
    mosaic = tissue_mosaic(tissue, **SMALL, coverage=0.8, contrast=0.2, seed=21)
    found = positions_from_tiles([filtered(mosaic)], mosaic.nominal_px)
    error = placement_errors(found.positions_px, mosaic)
    assert rms(error) < 0.5
    assert error.max() < 1.5
    assert rms(placement_errors(mosaic.nominal_px, mosaic)) > 3  # the stage really was off


def test_links_across_the_edge_of_tissue_are_not_drawn_together():
    """Shading makes an edge look stronger in one neighbour than in the other; all links then come out too short."""
    short = []
    for seed in (1, 2, 3):
        mosaic = tissue_mosaic("grey matter", **SMALL, coverage=0.5, contrast=0.2, seed=seed)
        found = positions_from_tiles([filtered(mosaic)], mosaic.nominal_px)
        links = found.links
        tissue = dict(zip(map(tuple, mosaic.links.tolist()), mosaic.link_tissue_fraction, strict=True))
        partial = np.array([0.3 < tissue[tuple(pair)] < 0.95 for pair in links.pairs.tolist()]) & links.clear
        true = mosaic.true_px[links.pairs[:, 1]] - mosaic.true_px[links.pairs[:, 0]]
        along = (links.displacement_px - true)[np.arange(len(true)), links.axis]
        short.append(along[partial])
    error = np.concatenate(short)
    assert len(error) > 20
    assert abs(np.median(error)) < 0.1


def test_a_tile_that_hangs_on_one_faint_link_is_found():
    mosaic = tissue_mosaic("fibres", columns=5, rows=5, tile_shape=(240, 240), coverage=0.7, jitter_px=3, seed=4)
    found = positions_from_tiles([filtered(mosaic)], mosaic.nominal_px)
    assert placement_errors(found.positions_px, mosaic).max() < 1.5


@pytest.mark.slow
def test_uncertainties_describe_the_errors_on_every_tissue():
    scaled = []
    for seed, tissue in enumerate(("fibres", "cortex", "bundles")):
        mosaic = tissue_mosaic(tissue, **SMALL, coverage=0.8, contrast=0.2, seed=seed)
        found = positions_from_tiles([filtered(mosaic)], mosaic.nominal_px)
        off = found.positions_px - mosaic.true_px
        seen = mosaic.scored
        scaled.append((off[seen] - off[seen].mean(axis=0)) / found.uncertainty_px[seen])
    assert 0.5 < rms(np.concatenate(scaled)) < 1.4


# --- the instrument -----------------------------------------------------------------------------------------------


def instrument_of(mosaic):
    return instrument_gain(mosaic.tiles, tissue_level(mosaic.tiles), 0.3 * tissue_level(mosaic.tiles))


def test_shading_and_columns_of_the_instrument_are_found_through_ragged_tissue():
    mosaic = tissue_mosaic("cortex", columns=8, rows=8, tile_shape=(160, 160), column_pattern=0.02, seed=5)
    plain = tissue_mosaic("cortex", columns=8, rows=8, tile_shape=(160, 160), column_pattern=0.0, seed=5)
    gain = instrument_of(mosaic)
    u, v = np.linspace(-1, 1, 160)[:, None], np.linspace(-1, 1, 160)[None, :]
    shading = 1.1 - 0.17 * u**2 - 0.13 * v**2 + 0.08 * u - 0.06 * v
    left = np.log(gain * shading)
    blocks = left.reshape(10, 16, 10, 16).mean(axis=(1, 3))
    assert blocks.std() < 0.35 * np.log(shading).std()
    assert np.diff(np.log(gain).mean(axis=1)).std() > 0.015  # the columns, found ...
    assert np.diff(np.log(instrument_of(plain)).mean(axis=1)).std() < 0.005  # ... only where they are


def test_few_tiles_do_not_pass_their_tissue_off_as_the_instrument():
    mosaic = tissue_mosaic("bundles", columns=2, rows=2, tile_shape=(160, 160), coverage=1, seed=2)
    flat = mosaic.tiles[:3]
    assert np.array_equal(instrument_gain(flat, 1.0, 0.3), np.ones((160, 160), np.float32))
    gain = instrument_of(mosaic)
    assert np.isfinite(gain).all()
    assert np.diff(np.log(gain).mean(axis=1)).std() < 0.005


def test_columns_of_the_instrument_do_not_hold_tiles_where_the_stage_was_sent():
    """A pattern along x correlates between neighbours in y at no shift, whatever the stage did."""
    pulled = {}
    for pattern in (0.0, 0.06):
        mosaic = tissue_mosaic("fibres", **SMALL, coverage=1, column_pattern=pattern, contrast=0.15, seed=9)
        found = positions_from_tiles([filtered(mosaic)], mosaic.nominal_px)
        pulled[pattern] = rms(placement_errors(found.positions_px, mosaic))
    assert pulled[0.06] < pulled[0.0] + 0.15


# --- noise ------------------------------------------------------------------------------------------------------


def two_views(shift, noise_px, seed=0, shape=(240, 240)):
    """Return two filtered tiles, the second 190 px further along x and `shift` px along y, and their link."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    tissue = gaussian_filter(rng.standard_normal((440, 260)), 2.5) * 5
    tiles = []
    for x, y in ((0, 0), (190, shift)):
        speckle = gaussian_filter(rng.standard_normal(shape), noise_px)
        tiles.append(tissue[x : x + 240, y + 5 : y + 245] + speckle / speckle.std())
    return filtered_tiles(tiles, logarithm=False), np.array([[0, 1]]), np.array([[190, shift]])


@pytest.mark.parametrize("noise_px", [0.3, 1.0])
def test_the_noise_of_speckle_is_told_from_tissue_whatever_its_grain(noise_px):
    tiles, pairs, displacement = two_views(2, noise_px)
    overlaps = aligned_overlaps(tiles, pairs, displacement)
    model = noise_model(overlaps, displacement, np.ones(1, bool))
    assert model is not None
    coarse, fine = model.noise[8:16].mean(), model.noise[40:48].mean()
    assert (coarse > 3 * fine) == (noise_px == 1.0)
    likelihood, chance = aligned_likelihoods(overlaps, model)
    assert likelihood[0].argmax() == 3 * 7 + 3
    assert likelihood[0, 3, 3] > 5 * chance[0]


def test_tiles_with_nothing_in_common_have_no_noise_model_and_no_likelihood():
    rng = np.random.default_rng(1)
    tiles = filtered_tiles(rng.standard_normal((2, 200, 200)), logarithm=False)
    pairs, displacement = np.array([[0, 1]]), np.array([[160, 0]])
    overlaps = aligned_overlaps(tiles, pairs, displacement)
    signal = np.exp(-np.arange(128) / 10).astype(np.float32)
    likelihood, chance = aligned_likelihoods(overlaps, NoiseModel(signal, np.ones(128, np.float32)))
    assert np.abs(likelihood[0]).max() < 6 * chance[0]
    blank = filtered_tiles(np.ones((2, 200, 200)), logarithm=False)
    empty = aligned_overlaps(blank, pairs, displacement)
    assert noise_model(empty, displacement, np.ones(1, bool)) is None
    assert not aligned_likelihoods(empty, NoiseModel(signal, np.ones(128, np.float32)))[0].any()


def views_of_nothing_in_common(pairs, loud_px):
    """Return pairs of tiles that overlap by 40 px; both have structure in `loud_px` px of the overlap's length."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(5)
    tiles = 0.02 * rng.standard_normal((2 * pairs, 120, 160))
    for k, tile in enumerate(tiles):
        at = slice(80, 120) if k % 2 == 0 else slice(0, 40)
        tile[at, :loud_px] += 5 * gaussian_filter(rng.standard_normal((40, loud_px)), 2)
    links = np.arange(2 * pairs).reshape(pairs, 2)
    return filtered_tiles(tiles, logarithm=False), links, np.tile([80, 0], (pairs, 1))


@pytest.mark.parametrize("loud_px", [160, 24])
def test_chance_reaches_higher_where_little_of_an_overlap_holds_structure(loud_px):
    """A corner of tissue, or the halo of an edge, has few independent samples however large the overlap is."""
    tiles, links, displacement = views_of_nothing_in_common(60, loud_px)
    overlaps = aligned_overlaps(tiles, links, displacement)
    signal = np.exp(-2 * (np.pi * 2 * ring_frequency()) ** 2).astype(np.float32)
    likelihood, chance = aligned_likelihoods(overlaps, NoiseModel(signal, np.full_like(signal, 0.1)))
    assert 0.6 < rms(likelihood[:, 3, 3] / chance) < 1.8
    spectra = cross_spectra(tiles.values, links, displacement, np.arange(60), axis=0, margin_px=(8, 8))
    z, _ = likelihood_surfaces(spectra, signal)
    assert 0.6 < rms(z[:, 8, 8]) < 1.8


# --- geometry of the field ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight():
    mosaic = tissue_mosaic("fibres", **SMALL, coverage=1, contrast=0.25, step_error_px=0.5, jitter_px=1, seed=3)
    image = filtered(mosaic)
    return mosaic, image, positions_from_tiles([image], mosaic.nominal_px)


def test_an_ideal_scan_is_neither_turned_nor_bent(straight):
    mosaic, image, found = straight
    geometry = field_geometry(image, found, mosaic.nominal_px)
    assert not geometry.turned
    assert not geometry.bent


@pytest.mark.parametrize("turn_deg", [0.5, -1.0])
def test_a_turned_scan_is_told_and_spoils_no_position(turn_deg):
    mosaic = tissue_mosaic(
        "fibres", **SMALL, coverage=1, contrast=0.25, step_error_px=0.3, jitter_px=1, turn_deg=turn_deg, seed=3
    )
    image = filtered(mosaic)
    found = positions_from_tiles([image], mosaic.nominal_px)
    geometry = field_geometry(image, found, mosaic.nominal_px)
    assert geometry.turned
    assert abs(geometry.turn_deg - turn_deg) < 0.15
    assert rms(placement_errors(found.positions_px, mosaic)) < 0.3


def test_a_barrel_of_a_pixel_is_told_and_neighbours_still_meet():
    mosaic = tissue_mosaic("fibres", **SMALL, coverage=1, contrast=0.25, step_error_px=1, barrel_px=1, seed=3)
    image = filtered(mosaic)
    found = positions_from_tiles([image], mosaic.nominal_px)
    geometry = field_geometry(image, found, mosaic.nominal_px)
    assert geometry.bent
    assert 0.2 < geometry.bend_px < 0.7  # of the pixel at the corners a shift and a scale explain the rest
    # Where tiles meet they agree: what is left is the same stretch of every step, which no overlap can show.
    off = found.positions_px - mosaic.true_px
    pairs = mosaic.links
    step = off[pairs[:, 1]] - off[pairs[:, 0]]
    along_x = np.abs(mosaic.cells[pairs[:, 1], 0] - mosaic.cells[pairs[:, 0], 0]) == 1
    for mine in (along_x, ~along_x):
        assert (step[mine] - step[mine].mean(axis=0)).std() < 0.25

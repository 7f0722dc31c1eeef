"""Positions of tiles: accurate where there is texture, honest where there is none, for every grid a stage can walk."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from opticstream.compute.stitching import filtered_tiles, high_pass_for_overlap, neighbour_pairs, positions_from_tiles
from opticstream.compute.stitching._correlation import NoiseModel, aligned_likelihoods, aligned_overlaps, ring_frequency
from opticstream.compute.stitching._grid import nominal_positions
from opticstream.compute.stitching._propagation import GRID_VARIANCE_PX2, beliefs_from_surfaces
from opticstream.compute.stitching._solver import LinkSystem, lines_from_positions
from opticstream.testing.synthetic_mosaic import position_errors, synthetic_mosaic


def solved(mosaic, **options):
    return positions_from_tiles([filtered_tiles(mosaic.tiles)], mosaic.nominal_px, **options)


@pytest.fixture(scope="module")
def standard():
    return synthetic_mosaic(columns=6, rows=6, tile_shape=(200, 200), seed=11)


def test_tiles_with_tissue_are_placed_to_a_fraction_of_a_pixel(standard):
    found = solved(standard)
    tissue = ~standard.blank
    error = position_errors(found.positions_px, standard.true_px, tissue)[tissue]
    nominal = position_errors(standard.nominal_px, standard.true_px, tissue)[tissue]
    assert np.sqrt((error**2).mean()) < 0.3
    assert error.max() < 0.8
    assert np.sqrt((nominal**2).mean()) > 4  # the stage really was off


def test_blank_tiles_fall_on_the_lattice_of_the_stage(standard):
    found = solved(standard)
    assert np.array_equal(found.by_stage_only, standard.blank)
    off = found.positions_px - standard.lattice_px
    off -= off[~standard.blank].mean(axis=0)
    assert np.hypot(*off[standard.blank].T).max() < 2.5
    assert (found.uncertainty_px[standard.blank] > 3 * np.median(found.uncertainty_px[~standard.blank])).all()


def test_uncertainties_describe_the_errors(standard):
    found = solved(standard)
    tissue = ~standard.blank
    off = found.positions_px - standard.true_px
    off -= off[tissue].mean(axis=0)
    scaled = off[tissue] / found.uncertainty_px[tissue]
    assert 0.5 < np.sqrt((scaled**2).mean()) < 1.5


def test_the_result_does_not_depend_on_the_order_of_the_tiles(standard):
    order = np.random.default_rng(0).permutation(len(standard.tiles))
    straight = solved(standard).positions_px
    shuffled = positions_from_tiles([filtered_tiles(standard.tiles[order])], standard.nominal_px[order]).positions_px
    assert np.allclose(shuffled, straight[order], atol=2e-3)


def test_inputs_stay_as_they_are(standard):
    before = standard.tiles.copy()
    nominal = standard.nominal_px.copy()
    solved(standard)
    assert np.array_equal(before, standard.tiles)
    assert np.array_equal(nominal, standard.nominal_px)


def test_turning_the_whole_scan_upside_down_turns_the_positions(standard):
    tiles = np.ascontiguousarray(standard.tiles[:, ::-1, ::-1])
    turned = positions_from_tiles([filtered_tiles(tiles)], -standard.nominal_px).positions_px
    straight = solved(standard).positions_px
    assert np.abs((turned - turned.mean(0)) + (straight - straight.mean(0)))[~standard.blank].max() < 0.05


@pytest.mark.parametrize(
    ("columns", "rows", "tile_shape", "overlap"),
    [
        (1, 6, (200, 200), 0.2),
        (6, 1, (200, 200), 0.2),
        (4, 4, (120, 220), 0.2),
        (4, 4, (200, 200), 0.4),
        (4, 4, (350, 350), 0.05),
        (2, 2, (200, 200), 0.1),
    ],
    ids=["one column", "one row", "tiles not square", "overlap of 40 %", "overlap of 5 %", "two by two"],
)
def test_every_kind_of_grid(columns, rows, tile_shape, overlap):
    mosaic = synthetic_mosaic(
        columns=columns, rows=rows, tile_shape=tile_shape, overlap=overlap, blank_fraction=0, speckle=0.35,
        jitter_px=1.5, step_error_px=2, seed=5,
    )  # fmt: skip
    found = solved(mosaic)
    error = position_errors(found.positions_px, mosaic.true_px, ~mosaic.blank)
    assert np.sqrt((error**2).mean()) < 0.7
    assert error.max() < 1.6


@pytest.mark.parametrize("missing", [(0,), (7,), (5, 6, 9, 10)], ids=["a corner", "inside", "a hole"])
def test_missing_tiles_are_stitched_around(missing):
    mosaic = synthetic_mosaic(columns=4, rows=4, tile_shape=(200, 200), blank_fraction=0, seed=8)
    tiles = [np.full_like(t, np.nan) if k in missing else t for k, t in enumerate(mosaic.tiles)]
    found = positions_from_tiles([filtered_tiles(tiles)], mosaic.nominal_px)
    there = np.array([k not in missing for k in range(16)])
    error = position_errors(found.positions_px, mosaic.true_px, there)[there]
    assert error.max() < 1.2
    assert np.array_equal(found.by_stage_only, ~there)


def test_islands_of_tissue_keep_the_stage_lattice_between_them():
    mosaic = synthetic_mosaic(columns=7, rows=3, tile_shape=(160, 160), blank_fraction=0, jitter_px=1.0, seed=3)
    cut = mosaic.cells[:, 0] == 3
    tiles = np.where(cut[:, None, None], np.float32(0.02), mosaic.tiles)
    found = positions_from_tiles([filtered_tiles(tiles)], mosaic.nominal_px)
    assert len(set(found.island[~cut].tolist())) == 2
    error = position_errors(found.positions_px, mosaic.true_px, ~cut)[~cut]
    assert error.max() < 2.5  # between the islands only the stage knows, and it jitters by 1 px per tile
    left = mosaic.cells[:, 0] < 3
    assert position_errors(found.positions_px, mosaic.true_px, left)[left].max() < 1.2


def test_a_backlash_of_the_stage_is_recognised():
    mosaic = synthetic_mosaic(
        columns=6, rows=5, tile_shape=(160, 160), blank_fraction=0.3, backlash_px=(0, 6), jitter_px=0.7, seed=4
    )
    parity = mosaic.cells[:, 0] % 2 - 0.5
    with_parity = solved(mosaic, line_parity=parity)
    without = solved(mosaic)

    def off_lattice(found):
        off = found.positions_px - mosaic.lattice_px
        off -= off[~mosaic.blank].mean(axis=0)
        return np.hypot(*off[mosaic.blank].T)

    assert off_lattice(with_parity).max() < 1.5
    assert off_lattice(without).max() > 2


def test_without_any_texture_tiles_stay_nominal():
    tiles = np.ones((6, 64, 64), np.float32)
    nominal = nominal_positions([(c, r) for c in range(3) for r in range(2)], tile_shape=(64, 64), overlap_px=(12, 12))
    found = positions_from_tiles([filtered_tiles(tiles)], nominal)
    assert np.allclose(found.positions_px, nominal, atol=1e-6)
    assert found.by_stage_only.all()
    assert not found.links.weight.any()


def test_equal_masked_overlaps_are_no_links():
    """Zero-filled borders agree perfectly and mean nothing."""
    mosaic = synthetic_mosaic(columns=3, rows=3, tile_shape=(160, 160), blank_fraction=0, seed=2)
    tiles = mosaic.tiles.copy()
    tiles[4] = 0
    found = positions_from_tiles([filtered_tiles(tiles)], mosaic.nominal_px)
    assert found.by_stage_only.tolist() == [k == 4 for k in range(9)]


def test_a_single_tile_needs_no_neighbour():
    found = positions_from_tiles([filtered_tiles(np.ones((1, 32, 32), np.float32))], [[0.0, 0.0]])
    assert found.positions_px.tolist() == [[0.0, 0.0]]


def test_a_nan_pixel_spoils_nothing_but_itself(standard):
    tiles = standard.tiles.copy()
    tiles[:, 50:60, 50:60] = np.nan
    found = positions_from_tiles([filtered_tiles(tiles)], standard.nominal_px)
    tissue = ~standard.blank
    assert position_errors(found.positions_px, standard.true_px, tissue)[tissue].max() < 1.2


def test_two_kinds_of_image_are_better_than_one():
    rms = {"one": [], "both": []}
    for seed in range(3):
        mosaic = synthetic_mosaic(columns=4, rows=4, tile_shape=(140, 140), contrast=0.2, speckle=0.7, seed=40 + seed)
        rng = np.random.default_rng(seed)
        second = mosaic.clean**-1 * rng.gamma(4, 0.25, mosaic.clean.shape)
        first, other = filtered_tiles(mosaic.tiles), filtered_tiles(second)
        tissue = ~mosaic.blank
        for name, images in (("one", [first]), ("both", [first, other])):
            found = positions_from_tiles(images, mosaic.nominal_px)
            rms[name].append((position_errors(found.positions_px, mosaic.true_px, tissue)[tissue] ** 2).mean())
    assert np.mean(rms["both"]) < np.mean(rms["one"])


def test_faint_texture_under_full_speckle_is_used_as_far_as_it_goes():
    """Half of the tiles are blank, no link is clear on its own: all together still tell."""
    squares, scaled = [], []
    for seed in range(4):  # two alone may be decided by one link
        mosaic = synthetic_mosaic(
            columns=7, rows=7, tile_shape=(260, 260), contrast=0.16, speckle=1.0, blank_fraction=0.4, seed=seed
        )
        found = solved(mosaic)
        seen = ~mosaic.blank & ~found.by_stage_only
        off = found.positions_px - mosaic.true_px
        off -= off[seen].mean(axis=0)
        squares.append((off[seen] ** 2).sum(axis=1))
        scaled.append(off[seen] / found.uncertainty_px[seen])
        assert found.by_stage_only[mosaic.blank].all()
        assert np.allclose(found.jitter_px, 2, atol=0.9)
    assert np.sqrt(np.concatenate(squares).mean()) < 1.6  # the stage alone leaves 2.8 px
    assert 0.6 < np.sqrt((np.concatenate(scaled) ** 2).mean()) < 1.5  # and the uncertainty knows


def test_tiles_that_show_the_same_agree_up_to_their_edges():
    """What a tile's edge does to the filter pulls a link by hundredths of a pixel: half a pixel over 20 tiles."""
    tissue = gaussian_filter(np.random.default_rng(3).normal(0, 10, (155, 80)), 3)  # standard deviation about 1
    tiles = filtered_tiles([tissue[:90], tissue[65:]], logarithm=False)
    shared = tiles.patch(0, (65, 0), (25, 80)), tiles.patch(1, (0, 0), (25, 80))
    assert np.allclose(*shared, atol=1e-4)
    assert not np.allclose(tiles.values[0, 65:], tiles.values[1, :25], atol=0.1)
    signal = np.exp(-2 * (np.pi * 3 * ring_frequency()) ** 2).astype(np.float32)
    overlaps = aligned_overlaps(tiles, np.array([[0, 1]]), np.array([[65, 0]]))
    likelihood, chance = aligned_likelihoods(overlaps, NoiseModel(signal, np.full_like(signal, 0.01)))
    assert likelihood[0].argmax() == 3 * 7 + 3
    assert likelihood[0, 3, 3] > 5 * chance[0]
    assert np.allclose(likelihood[0], likelihood[0, ::-1, ::-1], rtol=1e-3)  # it is the texture's own correlation


def test_one_row_of_clear_tiles_with_a_large_jump_of_the_stage():
    """Few links know the stage's scatter badly; a clear link must not count as an outlier of a scatter guessed low."""
    mosaic = synthetic_mosaic(columns=8, rows=1, tile_shape=(350, 350), contrast=0.33, blank_fraction=0, seed=3)
    found = positions_from_tiles([filtered_tiles(mosaic.tiles, sigma_px=16)], mosaic.nominal_px)
    every = np.ones(8, bool)
    assert position_errors(found.positions_px, mosaic.true_px, every).max() < 0.6


@pytest.mark.slow
def test_two_faint_maps_place_every_tile_that_shares_texture_within_three_pixels():
    """The hard case: half of the tiles blank, speckle contrast 1, a third of the usual contrast."""
    mosaic = synthetic_mosaic(
        columns=10, rows=10, tile_shape=(350, 350), contrast=0.11, speckle=1.0, blank_fraction=0.5, seed=3
    )
    second = np.random.default_rng(3).standard_exponential(mosaic.clean.shape, np.float32) / mosaic.clean
    second[mosaic.blank] *= 0.02**2
    maps = [filtered_tiles(images, sigma_px=high_pass_for_overlap(70)) for images in (mosaic.tiles, second)]
    found = positions_from_tiles(maps, mosaic.nominal_px)
    pairs, _ = neighbour_pairs(mosaic.nominal_px, tile_shape=(350, 350))
    shared = np.zeros(100, bool)
    shared[pairs[~mosaic.blank[pairs].any(axis=1)].ravel()] = True
    assert position_errors(found.positions_px, mosaic.true_px, shared)[shared].max() < 3


# --- beliefs of links ---------------------------------------------------------------------------------------------


def ring_of_four(shifts, height, spread=1.5, margin=12):
    """Return surfaces with Gaussian likelihoods around `shifts` (one list of peaks per link), and the system."""
    pairs = np.array([(0, 1), (0, 2), (1, 3), (2, 3)])
    nominal = np.array([[0.0, 0.0], [80.0, 0.0], [0.0, 80.0], [80.0, 80.0]])
    x = np.arange(-margin, margin + 1.0)
    surface = np.zeros((4, len(x), len(x)), np.float32)
    for link, peaks in enumerate(shifts):
        for px, py in peaks:
            drop = ((x[:, None] - px) ** 2 + (x[None, :] - py) ** 2) / spread**2
            surface[link] = np.maximum(surface[link], np.sqrt(np.maximum(height**2 - drop, 0)))
    system = LinkSystem(pairs, np.zeros((4, 0)), lines_from_positions(nominal, pairs, (100, 100)))
    return surface, system


def beliefs(surface, system, jitter=8.0):
    return beliefs_from_surfaces(
        surface, system, expected_px=np.zeros((4, 2)), variance_px2=np.full((4, 2), 2 * jitter**2),
        offset_px=np.zeros((4, 2)), jitter_px=np.full(2, jitter),
    )  # fmt: skip


def test_single_gaussian_peaks_are_believed_as_they_are():
    true = [(1, 2), (-2, 0), (0, 3), (3, 5)]  # they close the ring
    surface, system = ring_of_four([[p] for p in true], height=9.0)
    found = beliefs(surface, system)
    assert np.allclose(found.shift_px, true, atol=0.05)
    assert np.allclose(found.information, np.eye(2) / (1.5**2 + GRID_VARIANCE_PX2), rtol=0.1, atol=0.02)


def test_a_link_with_two_equal_peaks_is_decided_by_the_others():
    surface, system = ring_of_four([[(1, 2)], [(-2, 0)], [(0, 3)], [(3, 5), (-6, -1)]], height=7.0)
    found = beliefs(surface, system)
    assert np.allclose(found.shift_px[3], (3, 5), atol=0.3)
    assert np.hypot(*(found.expected_px[3] - (3, 5))) < 1.5


def test_a_surface_without_a_peak_says_nothing():
    surface, system = ring_of_four([[(1, 2)], [(-2, 0)], [(0, 3)], []], height=7.0)
    found = beliefs(surface, system)
    assert np.allclose(found.information[3], 0, atol=1e-3)
    assert np.allclose(found.expected_px[3], (3, 5), atol=1.5)


# --- least squares ------------------------------------------------------------------------------------------------


def dense_solution(pairs, shift, information, features, prior):
    n, k = features.shape
    size = 2 * n + 2 * k
    matrix, right = np.zeros((size, size)), np.zeros(size)
    for (a, b), s, info in zip(pairs, shift, information, strict=True):
        row = np.zeros((2, size))
        row[:, 2 * a : 2 * a + 2] = -np.eye(2)
        row[:, 2 * b : 2 * b + 2] = np.eye(2)
        matrix += row.T @ info @ row
        right += row.T @ info @ s
    for i in range(n):
        for c in (0, 1):
            row = np.zeros(size)
            row[2 * i + c] = 1
            row[2 * n + c * k : 2 * n + (c + 1) * k] = -features[i]
            matrix += prior[i, c] * np.outer(row, row)
    return np.linalg.solve(matrix, right), np.linalg.inv(matrix)


@settings(max_examples=25, deadline=None)
@given(columns=st.integers(1, 5), rows=st.integers(1, 5), dropped=st.integers(0, 3), seed=st.integers(0, 1000))
def test_the_block_solver_is_the_dense_solver(columns, rows, dropped, seed):
    rng = np.random.default_rng(seed)
    cells = np.array([(c, r) for c in range(columns) for r in range(rows)])
    cells = cells[rng.permutation(len(cells))][: max(1, len(cells) - dropped)]
    nominal = nominal_positions(cells, tile_shape=(100, 80), overlap_px=(20, 16))
    pairs, _ = neighbour_pairs(nominal, tile_shape=(100, 80))
    features = np.stack([nominal[:, 0] / 400 - 0.3, nominal[:, 1] / 300 + 0.2], axis=1)
    factor = rng.normal(size=(len(pairs), 2, 2))
    information = factor @ factor.transpose(0, 2, 1)
    shift = rng.normal(size=(len(pairs), 2))
    prior = rng.uniform(0.1, 1, (len(cells), 2))
    system = LinkSystem(pairs, features, lines_from_positions(nominal, pairs, (100, 80)))
    solution = system.solve(shift, information, prior, with_covariance=True)
    # The stage parameters may be undetermined (one tile, one row): compare where they are not.
    if columns > 1 and rows > 1 and len(cells) > 4:
        expected, inverse = dense_solution(pairs, shift, information, features, prior)
        n = len(cells)
        assert np.allclose(solution.deviation_px.ravel(), expected[: 2 * n], atol=1e-4)
        for i in range(n):
            own = slice(2 * i, 2 * i + 2)
            assert np.allclose(solution.covariance_px2[i], inverse[own, own], rtol=1e-3, atol=1e-4)
    assert np.isfinite(solution.deviation_px).all()


def test_neighbours_do_not_include_diagonals_or_second_neighbours():
    cells = [(c, r) for c in range(3) for r in range(3)]
    nominal = nominal_positions(cells, tile_shape=(100, 100), overlap_px=(40, 40))
    pairs, axis = neighbour_pairs(nominal, tile_shape=(100, 100))
    assert len(pairs) == 12
    step = nominal[pairs[:, 1]] - nominal[pairs[:, 0]]
    assert np.array_equal(np.argmax(step, axis=1), axis)
    assert (step.max(axis=1) == 60).all()
    assert (step.min(axis=1) == 0).all()

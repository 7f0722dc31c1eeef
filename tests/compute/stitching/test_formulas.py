"""Formulas of stitching, each against its definition written out plainly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from opticstream.compute.stitching import _correlation as correlation
from opticstream.compute.stitching import (
    canvas_from_positions,
    common_shading,
    neighbour_pairs,
    overlap_widths,
    parity_colours,
    ramp,
    seams_from_tiles,
    shared_slices,
    tissue_mask,
    usual_overlap_px,
)
from opticstream.compute.stitching._distortion import FieldGeometry, _design, _free_of_linear, _turn
from opticstream.compute.stitching._evidence import (
    Evidence,
    contrast,
    empty_tiles,
    evidence_from_spectra,
    likelihood_weight,
    link_spectra,
    pick,
    smooth,
)
from opticstream.compute.stitching._grid import nominal_positions
from opticstream.compute.stitching._instrument import _interior
from opticstream.compute.stitching._peaks import peaks_of_likelihoods, quadratic_peaks
from opticstream.compute.stitching._propagation import _jitter, _message, _moments, limited_information
from opticstream.compute.stitching._ruler import Ruler
from opticstream.compute.stitching._solution import (
    Links,
    _chi2,
    _islands,
    _lattice_slope,
    _overrating,
    _robust,
    _without_own,
    without_links,
)
from opticstream.compute.stitching._solver import LinkSystem, lines_from_positions
from opticstream.compute.stitching._stage_model import StageModel, rounding_of, stage_features
from opticstream.compute.stitching._tilefilter import (
    cosine_blur_basis,
    filtered_tiles,
    soft_floor_of_tiles,
    speckle_looks,
    tissue_level,
)

RNG = np.random.default_rng(7)


# --- correlation -----------------------------------------------------------------------------------------------------


def two_links(axis: int, shape: tuple[int, int] = (20, 24)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three tiles without a mean, and two links along `axis` with nominal displacements that differ."""
    tiles = np.random.default_rng(3).normal(size=(3, *shape)).astype(np.float32)
    step = np.array([[shape[0] - 8, 1], [shape[0] - 7, -2]])
    if axis == 1:
        step = np.array([[1, shape[1] - 8], [-2, shape[1] - 7]])
    return tiles, np.array([[0, 1], [1, 2]]), step


@pytest.mark.parametrize("axis", [0, 1])
def test_likelihood_surfaces_are_the_correlation_of_what_two_tiles_share_at_each_shift(axis):
    tiles, pairs, nominal = two_links(axis)
    margin = (3, 2)
    spectra = correlation.cross_spectra(tiles, pairs, nominal, np.array([4, 9]), axis=axis, margin_px=margin)
    flat = np.ones(correlation.RINGS, np.float32)
    likelihood, coefficient = correlation.likelihood_surfaces(spectra, flat)
    assert spectra.links.tolist() == [4, 9]
    assert coefficient.shape == (2, 7, 5)
    strip_x, strip_y = spectra.strip_shape
    for link, (a, b) in enumerate(pairs):
        one, other = tiles[a], tiles[b]
        one = one[-strip_x:] if axis == 0 else one[:, -strip_y:]
        other = other[:strip_x] if axis == 0 else other[:, :strip_y]
        assert spectra.total_energy[link] == pytest.approx([(one**2).sum(), (other**2).sum()], rel=1e-4)
        assert spectra.radial_power[link].sum(axis=1) == pytest.approx(spectra.total_energy[link], rel=1e-4)
        assert spectra.strip_shape == one.shape
        corner = np.array(tiles.shape[1:]) - one.shape
        for i, dx in enumerate(range(-3, 4)):
            for j, dy in enumerate(range(-2, 3)):
                lag = nominal[link] + (dx, dy) - corner
                first, second = shared_slices(lag, one.shape)
                x, y = one[first], other[second]
                assert spectra.area[link, i, j] == x.size
                energy = np.sqrt((x**2).sum() * (y**2).sum())
                assert spectra.energy[link, i, j] == pytest.approx(energy, rel=1e-3)
                r = (x * y).sum() / energy
                assert coefficient[link, i, j] == pytest.approx(r, abs=2e-4)
                power = np.abs(np.fft.fft2(one, spectra.shape)) ** 2 * np.abs(np.fft.fft2(other, spectra.shape)) ** 2
                grain = power.sum() / np.prod(spectra.shape) / (spectra.total_energy[link].prod() / one.size) / one.size
                samples = x.size / grain / spectra.crowding[link]
                z = np.sign(r) * np.sqrt(-samples * np.log(1 - r**2))
                assert likelihood[link, i, j] == pytest.approx(z, abs=5e-3)


def test_a_blank_strip_says_nothing_and_added_noise_makes_a_match_weaker():
    tiles, pairs, nominal = two_links(0)
    tiles[2] = 0
    tiles[1, : 20 - 8 + 4] = tiles[0, 8 - 4 :]
    flat = np.ones(correlation.RINGS, np.float32)
    found = [
        correlation.likelihood_surfaces(
            correlation.cross_spectra(
                tiles, pairs, nominal, np.arange(2), axis=0, margin_px=(2, 2), noise_density=density
            ),
            flat,
        )
        for density in (0.0, 0.5)
    ]
    for likelihood, coefficient in found:
        assert (likelihood[1] == 0).all()
        assert (coefficient[1] == 0).all()
    plain, noisy = (coefficient[0] for _, coefficient in found)
    spectra = correlation.cross_spectra(tiles, pairs, nominal, np.arange(2), axis=0, margin_px=(2, 2))
    more = correlation.cross_spectra(tiles, pairs, nominal, np.arange(2), axis=0, margin_px=(2, 2), noise_density=0.5)
    assert (np.abs(noisy) <= np.abs(plain) + 1e-6).all()
    assert (more.energy[0] > spectra.energy[0]).all()
    np.testing.assert_allclose(noisy * more.energy[0], plain * spectra.energy[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("ny", "weights"), [(4, [1, 2, 1]), (5, [1, 2, 2]), (1, [1])])
def test_columns_of_a_half_spectrum_stand_for_two_but_the_first_and_the_last_of_an_even_one(ny, weights):
    assert correlation._column_weight(ny).tolist() == weights


def test_rings_run_from_zero_to_the_corner_of_the_spectrum():
    frequency = correlation.ring_frequency()
    assert len(frequency) == correlation.RINGS
    assert frequency[0] == pytest.approx(np.sqrt(0.5) / 256)
    assert frequency[-1] == pytest.approx(np.sqrt(0.5) * (1 - 1 / 256))
    ring = correlation._rings((8, 8))
    assert ring[0, 0] == 0
    assert ring[4, 4] == correlation.RINGS - 1
    assert ring[0, 4] == pytest.approx(correlation.RINGS * np.sqrt(0.5), abs=1)
    radius = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.rfftfreq(8))
    assert np.abs(frequency[ring] - radius).max() <= np.sqrt(0.5) / 256 + 1e-6


@pytest.mark.parametrize("length", [4, 9, 40])
def test_a_soft_edge_is_symmetric_rises_over_at_most_four_pixels_and_is_one_inside(length):
    window = correlation._soft_edge(length)
    rise = min(4, max(length // 4, 1))
    assert window.tolist() == window[::-1].tolist()
    assert window[rise:-rise].tolist() == [1] * (length - 2 * rise)
    assert window[:rise] == pytest.approx(np.sin(np.pi / 4 * (2 * np.arange(rise) + 1) / rise) ** 2)
    assert (window[:rise] + window[:rise][::-1]) == pytest.approx(1)


def speckled(shift: tuple[int, int], seed: int = 5, noise: float = 0.1) -> list[np.ndarray]:
    """Return two tiles of 60 x 70, the second one lying `shift` further in the same scene."""
    rng = np.random.default_rng(seed)
    scene = ndimage.gaussian_filter(rng.normal(size=(160, 160)), 1.5)
    scene /= scene.std()
    one, other = scene[20:80, 30:100], scene[20 + shift[0] : 80 + shift[0], 30 + shift[1] : 100 + shift[1]]
    return [np.asarray(tile + noise * rng.normal(size=tile.shape), np.float32) for tile in (one, other)]


@pytest.mark.parametrize(
    ("shift", "off"), [((42, 3), (0, 0)), ((42, 3), (1, -2)), ((-2, 50), (0, 0)), ((-2, 50), (-2, 1))]
)
def test_aligned_overlaps_are_most_likely_where_the_tiles_were_taken(shift, off):
    tiles = filtered_tiles(speckled(shift), logarithm=False)
    pairs = np.array([[0, 1]])
    known = correlation.aligned_overlaps(tiles, pairs, np.array([shift]))
    model = correlation.noise_model(known, np.array([shift], float), np.array([True]))
    assert model is not None
    assert (model.signal > 5 * model.noise).sum() >= 3
    assert (model.signal[correlation.ring_frequency() > 0.3] < model.noise.max()).all()
    assert (model.noise > 0).all()
    overlaps = correlation.aligned_overlaps(tiles, pairs, np.array([shift]) + off)
    likelihood, chance = correlation.aligned_likelihoods(overlaps, model)
    peak = np.unravel_index(likelihood[0].argmax(), likelihood[0].shape)
    assert tuple(np.array(peak) - correlation.NEAR) == tuple(-np.array(off))
    assert likelihood[0].max() > 4 * chance[0]
    # The power per pixel is that of the noise and the signal, on average over the frequencies that are kept.
    assert known.power.shape == known.cross.shape == (1, len(known.rows), known.frequency[1].size)
    size = np.array(tiles.tile_shape) - np.abs(shift)
    soft = [correlation._soft_edge(n) ** 2 for n in size]
    assert known.area[0] == pytest.approx(soft[0].sum() * soft[1].sum(), rel=1e-4)
    assert np.abs(known.frequency[0]).max() <= correlation.HIGHEST + 1e-6
    assert known.frequency[1].max() <= correlation.HIGHEST + 1e-6


def test_unknown_blank_or_tiny_overlaps_have_no_noise_model():
    shift = np.array([[42, 3]])
    tiles = filtered_tiles(speckled((42, 3)), logarithm=False)
    overlaps = correlation.aligned_overlaps(tiles, np.array([[0, 1]]), shift)
    assert correlation.noise_model(overlaps, shift.astype(float), np.array([False])) is None
    blank = filtered_tiles([np.ones((60, 70), np.float32)] * 2, logarithm=False)
    nothing = correlation.aligned_overlaps(blank, np.array([[0, 1]]), shift)
    assert nothing.area.tolist() == [0]
    tiny = correlation.aligned_overlaps(tiles, np.array([[0, 1], [0, 1]]), np.array([[57, 0], [56, 0]]))
    assert tiny.area[0] == 0
    assert tiny.area[1] > 0


def test_a_part_of_an_overlap_is_cut_along_its_longer_side():
    tiles = filtered_tiles(speckled((42, 3)), logarithm=False)
    shift, pairs = np.array([[42, 3]]), np.array([[0, 1]])
    whole, front, back = (
        correlation.aligned_overlaps(tiles, pairs, shift, span=span) for span in ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
    )
    edge = correlation._soft_edge
    assert whole.area[0] == pytest.approx((edge(18) ** 2).sum() * (edge(67) ** 2).sum(), rel=1e-4)
    assert front.area[0] == pytest.approx((edge(18) ** 2).sum() * (edge(34) ** 2).sum(), rel=1e-4)
    assert back.area[0] == pytest.approx((edge(18) ** 2).sum() * (edge(33) ** 2).sum(), rel=1e-4)
    patch = tiles.patch(0, (42, 3 + 34), (18, 33)) * edge(18)[:, None] * edge(33)
    other = tiles.patch(1, (0, 34), (18, 33)) * edge(18)[:, None] * edge(33)
    direct = (patch * other).sum()
    fx, fy = back.padded
    full = np.fft.ifft2(np.fft.fft2(patch, (fx, fy)) * np.fft.fft2(other, (fx, fy)).conj()).real
    assert full[0, 0] == pytest.approx(direct, rel=1e-5)
    rows, columns = back.rows, back.cross.shape[2]
    expected = (np.fft.fft2(patch, (fx, fy)) * np.fft.fft2(other, (fx, fy)).conj())[rows, :columns]
    np.testing.assert_allclose(back.cross[0], expected, rtol=1e-3, atol=1e-2)
    power = 0.5 * (np.abs(np.fft.fft2(patch, (fx, fy))) ** 2 + np.abs(np.fft.fft2(other, (fx, fy))) ** 2)
    np.testing.assert_allclose(back.power[0], power[rows, :columns] / back.area[0], rtol=1e-3, atol=1e-4)


# --- peaks -----------------------------------------------------------------------------------------------------------


def quadratic(top, curvature, height=0.0, size=9) -> np.ndarray:
    where = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) - np.asarray(top, float)
    return height - 0.5 * np.einsum("xyi,ij,xyj->xy", where, np.asarray(curvature, float), where)


def test_the_peak_of_a_quadratic_is_found_with_its_curvature():
    curvature = np.array([[2.0, 0.5], [0.5, 1.0]])
    surfaces = np.stack([quadratic((4.3, 3.6), curvature), quadratic((4.3, 3.6), np.diag([1.0, -1.0]))])
    peak, information, good = peaks_of_likelihoods(surfaces, np.array([4, 4]), np.array([4, 4]))
    assert good.tolist() == [True, False]
    np.testing.assert_allclose(peak[0], (4.3, 3.6))
    np.testing.assert_allclose(information, [curvature, np.zeros((2, 2))], atol=1e-12)


@pytest.mark.parametrize(
    ("curvature", "good"),
    [
        (np.diag([1.0, 1.0]), True),
        (np.diag([-1.0, -1.0]), False),
        (np.diag([0.0, 1.0]), False),
        (np.array([[1.0, 1.2], [1.2, 1.0]]), False),
        (np.array([[1.0, 0.9], [0.9, 1.0]]), True),
    ],
)
def test_only_a_summit_is_a_peak(curvature, good):
    found = peaks_of_likelihoods(quadratic((4, 4), curvature)[None], np.array([4]), np.array([4]))
    assert found[2].tolist() == [good]
    both = quadratic_peaks(
        [0.01 * quadratic((4, 4), curvature, 50)[None]], [np.array([10.0])], np.array([4]), np.array([4])
    )
    assert both[2].tolist() == [good]


@pytest.mark.parametrize(("away", "good"), [(1.4, True), (1.6, False), (-1.4, True), (-1.6, False)])
def test_a_summit_far_from_the_highest_value_is_not_followed(away, good):
    surface = quadratic((4 + away, 4), np.eye(2))[None]
    peak, information, found = peaks_of_likelihoods(surface, np.array([4]), np.array([4]))
    assert found.tolist() == [good]
    assert (information[0] > 0).any() == good
    peak, _, _ = quadratic_peaks([0.01 * surface + 0.5], [np.array([10.0])], np.array([4]), np.array([4]))
    np.testing.assert_allclose(peak[0], (4 + np.clip(away, -1.5, 1.5), 4), atol=1e-9)


def test_information_of_a_correlation_peak_grows_with_samples_and_coherence_and_kinds_are_added_by_it():
    curvature = np.array([[0.02, 0.004], [0.004, 0.03]])
    one, other = quadratic((4.2, 4.0), curvature, 0.6)[None], quadratic((3.8, 4.4), 2 * curvature, 0.3)[None]
    where = np.array([4]), np.array([4])
    expected, peaks = [], []
    for surface, count, own in ((one, 50.0, curvature), (other, 80.0, 2 * curvature)):
        peak, information, good = quadratic_peaks([surface], [np.array([count])], *where)
        r = surface[0, 4, 4]
        np.testing.assert_allclose(information[0], own * count * r / (1 - r * r))
        assert good.tolist() == [True]
        expected.append(information[0])
        peaks.append(peak[0])
    np.testing.assert_allclose(peaks, [(4.2, 4.0), (3.8, 4.4)])
    peak, information, _ = quadratic_peaks([one, other], [np.array([50.0]), np.array([80.0])], *where)
    np.testing.assert_allclose(information[0], expected[0] + expected[1])
    mean = np.linalg.solve(expected[0] + expected[1], expected[0] @ peaks[0] + expected[1] @ peaks[1])
    np.testing.assert_allclose(peak[0], mean)
    silent = quadratic_peaks([one, other], [np.array([50.0]), np.array([0.0])], *where)
    np.testing.assert_allclose(silent[0][0], (4.2, 4.0))


# --- grid, weights, seams, mask --------------------------------------------------------------------------------------


def test_tiles_without_a_step_between_them_are_refused():
    with pytest.raises(ValueError, match="leaves no step"):
        nominal_positions([(0, 0)], tile_shape=(100, 50), overlap_px=(20, 50))
    assert nominal_positions([(1, 1)], tile_shape=(100, 50), overlap_px=(99, 49)).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("step", "axis"),
    [
        ((80, 0), 0),
        ((80, 50), 0),
        ((80, 51), None),
        ((98, 0), 0),
        ((98.5, 0), None),
        ((0, 80), 1),
        ((-50, 80), 1),
        ((10, 0), 0),
        ((9, 0), None),
        ((0, 0), None),
        ((80, 80), None),
        ((-51, 80), None),
    ],
)
def test_neighbours_share_at_least_half_an_edge_and_are_not_the_same_place(step, axis):
    pairs, axes = neighbour_pairs([(5, 5), np.add((5, 5), step)], tile_shape=(100, 100))
    assert axes.tolist() == ([] if axis is None else [axis])
    assert pairs.tolist() == ([] if axis is None else [[0, 1]])
    swapped, _ = neighbour_pairs([np.add((5, 5), step), (5, 5)], tile_shape=(100, 100))
    assert swapped.tolist() == ([] if axis is None else [[1, 0]])


def test_the_usual_overlap_is_the_median_over_the_edges_across_them():
    assert usual_overlap_px([(0, 0), (80, 5), (150, 0), (0, 35)], tile_shape=(100, 50)) == 20
    assert usual_overlap_px([(0, 0)], tile_shape=(100, 50)) == 50


@pytest.mark.parametrize(
    ("step", "widths"),
    [((80, 0), (20, 0)), ((80, 50), (20, 0)), ((80, 51), (0, 0)), ((0, 99), (0, 1)), ((0, 100), (0, 0))],
)
def test_each_side_of_a_tile_knows_how_far_it_is_overlapped(step, widths):
    found = overlap_widths([(0, 0), step], tile_shape=(100, 100))
    assert found[0].tolist() == [[0, widths[0]], [0, widths[1]]]
    assert found[1].tolist() == [[widths[0], 0], [widths[1], 0]]


def test_of_several_neighbours_on_a_side_the_widest_overlap_counts():
    found = overlap_widths([(0, 0), (80, -45), (70, 45)], tile_shape=(100, 100))
    assert found[0, 0].tolist() == [0, 30]
    assert found[1:, 0, 0].tolist() == [20, 30]


def test_a_ramp_over_half_a_pixel_is_none():
    assert ramp(3, before=0.5, after=0.5).tolist() == [1, 1, 1]
    assert ramp(4, before=0, after=2).tolist() == [1, 1, 0.75, 0.25]
    assert ramp(3, before=0.6, after=1).tolist() == pytest.approx([0.5 / 0.6, 1, 0.5])


def test_a_canvas_needs_tiles_at_finite_positions_and_takes_nearly_whole_ones_as_whole():
    with pytest.raises(ValueError, match="at least one tile"):
        canvas_from_positions(np.zeros((0, 2)), tile_shape=(4, 4))
    with pytest.raises(ValueError, match="finite"):
        canvas_from_positions([(0, 0), (np.nan, 1)], tile_shape=(4, 4))
    canvas = canvas_from_positions([(0, 0), (2.9995, 1.25)], tile_shape=(4, 4), subpixel=True)
    assert canvas.offset.tolist() == [[0, 0], [3, 1]]
    assert canvas.fraction.tolist() == [[0, 0], [0, 0.25]]
    assert canvas.shape == (7, 5)
    nearest = canvas_from_positions([(0, 0), (2.5, 1.49)], tile_shape=(4, 4))
    assert nearest.offset.tolist() == [[0, 0], [3, 1]]
    assert nearest.fraction.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("step", [(3, 2), (-3, 2), (3, -2), (-3, -2), (0, 0), (9, 0)])
def test_shared_slices_show_the_same_pixels_of_a_scene(step):
    scene = np.arange(30 * 30).reshape(30, 30)
    first, second = shared_slices(np.array(step), (8, 7))
    one, other = scene[10:18, 10:17], scene[10 + step[0] : 18 + step[0], 10 + step[1] : 17 + step[1]]
    assert one[first].tolist() == other[second].tolist()
    assert one[first].size == max(8 - abs(step[0]), 0) * max(7 - abs(step[1]), 0)


def test_a_seam_tells_correlation_offset_and_pixels_of_what_two_tiles_share():
    scene = RNG.normal(size=(40, 30))
    one, other = scene[:20], scene[15:35] * 2 + 5
    (seam,) = seams_from_tiles([one, other], np.array([[0, 0], [15, 0]]), np.array([[0, 1]]), sigma_px=0)
    assert seam.pair == (0, 1)
    assert seam.ncc == pytest.approx(1)
    assert seam.pixels == 5 * 30
    assert seam.offset == pytest.approx(np.median(scene[15:20] + 5), abs=1e-5)
    noise = RNG.normal(size=(20, 30))
    (seam,) = seams_from_tiles([one, noise], np.array([[0, 0], [15, 0]]), np.array([[0, 1]]), sigma_px=0)
    assert seam.ncc == pytest.approx(np.corrcoef(one[15:].ravel(), noise[:5].ravel())[0, 1], abs=1e-6)
    blurred = [ndimage.gaussian_filter(t.astype(np.float32), 1.0, mode="nearest") for t in (one[15:], noise[:5])]
    (seam,) = seams_from_tiles([one, noise], np.array([[0, 0], [15, 0]]), np.array([[0, 1]]))
    assert seam.ncc == pytest.approx(np.corrcoef(blurred[0].ravel(), blurred[1].ravel())[0, 1], abs=1e-5)


def test_a_seam_of_few_or_constant_pixels_has_no_correlation():
    tile = RNG.normal(size=(6, 6))
    few, enough = (seams_from_tiles([tile, tile], np.array([[0, 0], [s, 0]]), np.array([[0, 1]]))[0] for s in (4, 3))
    assert np.isnan(few.ncc)
    assert few.pixels == 12
    assert enough.pixels == 18
    assert np.isfinite(enough.ncc)
    (flat,) = seams_from_tiles([tile, np.ones((6, 6))], np.array([[0, 0], [0, 0]]), np.array([[0, 1]]))
    assert np.isnan(flat.ncc)
    assert np.isfinite(flat.offset)
    gaps = tile.copy()
    gaps[0] = np.nan
    (seam,) = seams_from_tiles([tile, gaps], np.array([[0, 0], [0, 0]]), np.array([[0, 1]]), sigma_px=0)
    assert (seam.pixels, seam.ncc) == (30, pytest.approx(1))


def test_neighbours_have_different_colours():
    cells = np.array([(c, r) for c in range(3) for r in range(3)])
    colours = parity_colours(cells)
    assert set(colours.tolist()) == {0, 1}
    assert all(colours[a] != colours[b] for a, one in enumerate(cells) for b, other in enumerate(cells)
               if abs(one - other).sum() == 1)  # fmt: skip


def test_the_mask_leaves_nan_out_of_the_smoothing_and_drops_parts_below_the_fraction():
    image = np.zeros((40, 40))
    image[5:15, 5:15] = 10
    image[25:28, 25:28] = 10  # 9 of 100
    image[30, 5] = 10
    assert tissue_mask(image, threshold=5, sigma_px=0, min_fraction=0.09).sum() == 109
    assert tissue_mask(image, threshold=5, sigma_px=0, min_fraction=0.091).sum() == 100
    assert tissue_mask(image, threshold=5, sigma_px=0, min_fraction=0).sum() == 110
    assert tissue_mask(image, threshold=10, sigma_px=0).sum() == 110  # at least
    assert not tissue_mask(image, threshold=11, sigma_px=0).any()
    half = np.full((20, 20), 10.0)
    half[:, 10:] = np.nan
    smoothed = tissue_mask(half, threshold=9.9)
    assert smoothed[:, :10].all()  # the edge beside what is not known is no weaker
    assert not smoothed[:, 10:].any()
    step = np.zeros((40, 40))
    step[:20] = 10
    blurred = ndimage.gaussian_filter1d(step[:, 0], 2.0, mode="nearest", truncate=3.0)
    assert tissue_mask(step, threshold=8, sigma_px=2.0)[:, 3].tolist() == (blurred >= 8).tolist()
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            tissue_mask(image, threshold=bad)


def test_common_shading_needs_three_tiles_that_hold_signal_in_most_of_their_pixels():
    pattern = 1 + 0.3 * np.cos(np.pi * (np.arange(40) + 0.5) / 40)[:, None] * np.ones(30)
    tiles = [np.asarray(level * pattern) for level in (1.0, 2.0, 3.0)]
    found = common_shading(tiles, multiplicative=True)
    np.testing.assert_allclose(found, pattern / pattern.mean(), atol=0.02)
    terms = common_shading([np.log(t) for t in tiles], multiplicative=False)
    np.testing.assert_allclose(terms, np.log(pattern) - np.log(pattern).mean(), atol=0.03)
    neutral = common_shading(tiles[:2], multiplicative=True)
    assert (neutral == 1).all()
    assert (common_shading(tiles[:2], multiplicative=False) == 0).all()
    for known, neutral in ((19, False), (17, True)):  # of 30 columns
        some = [tiles[0].copy(), *tiles[1:]]
        some[0][:, known:] = np.nan
        assert (common_shading(some, multiplicative=True) == 1).all() == neutral
    dark = [*tiles[:2], np.where(np.arange(30) < 20, 0.0, tiles[2])]
    assert (common_shading(dark, multiplicative=True, signal_above=0.01) == 1).all()
    assert (common_shading([*tiles[:2], -tiles[2]], multiplicative=True) == 1).all()


# --- filter ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "sigma"), [(60, 5.0), (61, 8.0), (30, 16.0)])
def test_the_cosine_basis_blurs_like_a_gaussian_with_mirrored_edges(length, sigma):
    basis = cosine_blur_basis(length, sigma)
    values = np.random.default_rng(1).normal(size=length)
    expected = ndimage.gaussian_filter1d(values, sigma, mode="reflect", truncate=8)
    np.testing.assert_allclose(basis.T @ (basis @ values), expected, atol=3e-3)
    assert len(basis) < length


def test_looks_of_speckle_and_the_floor_below_which_tiles_are_empty():
    rng = np.random.default_rng(0)
    for looks in (1, 4, 9):
        assert speckle_looks([rng.gamma(looks, size=(300, 300))] * 2) == pytest.approx(looks, rel=0.1)
    assert speckle_looks([np.ones((20, 20))]) == 1000
    assert speckle_looks([np.zeros((20, 20))]) == 1000
    assert speckle_looks([np.tile([0.0, 1.0], (20, 10))]) == 0.5
    tiles = [np.full((20, 20), level) for level in (1.0, 2.0, 3.0, 4.0, 5.0, np.nan)]
    assert tissue_level(tiles) == pytest.approx(4.2)
    assert tissue_level(tiles[-1:]) == 0
    assert soft_floor_of_tiles(tiles) == pytest.approx(0.3 * 4.2, rel=1e-5)
    assert soft_floor_of_tiles(tiles, 10.0) == pytest.approx(3, rel=1e-5)
    assert soft_floor_of_tiles([np.zeros((9, 9))]) == pytest.approx(1e-6)
    grains = [rng.gamma(1, size=(300, 300))]
    assert soft_floor_of_tiles(grains, 1.0) == pytest.approx(0.3 * (1 + 30 / speckle_looks(grains) ** 3))


def test_contrast_is_the_mean_square_and_much_fainter_tiles_are_empty():
    values = RNG.normal(size=(5, 30, 20)).astype(np.float32)
    values *= np.array([1, 1, 1, np.sqrt(0.02), np.sqrt(0.05)], np.float32)[:, None, None]
    np.testing.assert_allclose(contrast(values), (values**2).mean(axis=(1, 2)), rtol=1e-5)
    tiles = filtered_tiles([np.zeros((30, 20), np.float32)] * 5, logarithm=False)
    shown = type(tiles)(values, tiles.blur, tiles.sigma_px)
    assert empty_tiles(shown).tolist() == [False, False, False, True, False]
    assert empty_tiles(tiles).all()


# --- evidence, stage, propagation ------------------------------------------------------------------------------------


def evidence_of(surface: np.ndarray, pairs=None, axis=None, nominal=None) -> Evidence:
    n = len(surface)
    margin = ((surface.shape[1] - 1) // 2, (surface.shape[2] - 1) // 2)
    pairs = np.stack([np.arange(n), np.arange(1, n + 1)], 1) if pairs is None else pairs
    axis = np.zeros(n, np.intp) if axis is None else axis
    nominal = np.zeros((n, 2)) if nominal is None else nominal
    surface = surface.astype(np.float32)
    return Evidence(pairs, axis, nominal, margin, surface, [0.02 * surface], [surface])


def hill(top: tuple[float, float], height: float, width: float = 2.0, size: tuple[int, int] = (17, 13)) -> np.ndarray:
    x, y = (np.arange(n) - n // 2 for n in size)
    return height * np.exp(-0.5 * (((x[:, None] - top[0]) / width) ** 2 + ((y[None, :] - top[1]) / width) ** 2))


def test_the_expected_place_decides_between_two_peaks_and_what_stays_in_doubt_is_not_accepted():
    two = np.maximum(hill((-5, 0), 8), hill((5, 0), 8))
    surface = np.stack([two, two, two])
    evidence = evidence_of(surface)
    pick(evidence, np.array([[4.0, 0], [-4.0, 0], [0, 0]]), np.full((3, 2), 4.0))
    np.testing.assert_allclose(evidence.shift[:2], [(5, 0), (-5, 0)], atol=0.1)
    assert evidence.accepted.tolist() == [True, True, False]
    assert evidence.z[:2] == pytest.approx([8, 8], rel=1e-3)


@pytest.mark.parametrize(
    ("top", "height", "accepted"),
    [
        ((0, 0), 8, True),
        ((0, 0), 2.4, False),
        ((7, 0), 8, True),
        ((8, 0), 8, False),
        ((-8, 0), 8, False),
        ((0, 6), 8, False),
        ((0, -6), 8, False),
        ((0, 5), 8, True),
    ],
)
def test_a_faint_peak_and_one_at_the_edge_of_the_window_is_not_accepted(top, height, accepted):
    evidence = evidence_of(hill(top, height)[None])
    pick(evidence, np.zeros((1, 2)), np.full((1, 2), 400.0) if height > 3 else np.full((1, 2), 0.5))
    assert evidence.accepted.tolist() == [accepted]
    if accepted and height > 3:
        np.testing.assert_allclose(evidence.shift[0], top, atol=0.3)


def scene_tiles(jitter: np.ndarray, nominal: np.ndarray, shape=(64, 60)) -> np.ndarray:
    rng = np.random.default_rng(6)
    scene = ndimage.gaussian_filter(rng.normal(size=(240, 240)), 1.2).astype(np.float32)
    scene /= scene.std()
    where = np.rint(nominal + jitter + 20).astype(int)
    return np.stack([scene[x : x + shape[0], y : y + shape[1]] for x, y in where])


def test_evidence_of_a_grid_peaks_at_the_jitter_of_its_tiles():
    nominal = nominal_positions([(c, r) for c in range(2) for r in range(2)], tile_shape=(64, 60), overlap_px=(24, 20))
    jitter = np.array([(0, 0), (2, -1), (-3, 2), (1, 1)])
    tiles = scene_tiles(jitter, nominal)
    tiles = tiles - tiles.mean(axis=(1, 2), keepdims=True)
    pairs, axis = neighbour_pairs(nominal, tile_shape=(64, 60))
    spectra = [link_spectra(tiles, nominal, pairs, axis, 7, 1)]
    assert [part.margin_px for part in spectra[0]] == [(7, 7), (7, 7)]
    narrow = link_spectra(tiles, nominal, pairs, axis, 100, 1)
    assert [part.margin_px for part in narrow] == [(20, 15), (16, 16)]
    evidence = evidence_from_spectra(spectra, pairs, axis, nominal, [[smooth() for _ in spectra[0]]])
    np.testing.assert_array_equal(evidence.shift, jitter[pairs[:, 1]] - jitter[pairs[:, 0]])
    assert evidence.accepted.all()
    assert (evidence.nominal == nominal[pairs[:, 1]] - nominal[pairs[:, 0]]).all()
    # Two kinds of image that show the same are worth the root of two more.
    both = evidence_from_spectra(spectra * 2, pairs, axis, nominal, [[smooth() for _ in spectra[0]]] * 2)
    positive = np.maximum(evidence.surface, 0)
    np.testing.assert_allclose(both.surface, np.sqrt(2) * positive, rtol=1e-5)
    np.testing.assert_allclose(both.coefficients[1], evidence.coefficients[0])
    # Where tiles agree, all frequencies that they hold count, the faint ones less.
    weight = likelihood_weight(spectra[0][0], evidence)
    assert weight.tolist() == smooth().tolist()  # two links are too few to say
    assert smooth()[0] > 0.99
    assert smooth()[np.abs(correlation.ring_frequency() - 1 / (2 * np.pi * 2.0)).argmin()] == pytest.approx(
        np.exp(-0.5), abs=0.02
    )


def test_a_stage_error_depends_on_position_and_direction_of_travel():
    nominal = np.array([(0, 0), (100, 0), (200, 0), (300, 0)], float)
    features = stage_features(nominal, [0.5, -0.5, 0.5, -0.5])
    np.testing.assert_allclose(features, [[-1, 0.5], [-1 / 3, -0.5], [1 / 3, 0.5], [1, -0.5]])
    assert stage_features(nominal, None).shape == (4, 1)  # a row says nothing of the other direction
    assert stage_features(np.zeros((3, 2)), None).shape == (3, 0)
    square = stage_features(np.array([(0, 0), (10, 0), (0, 40), (10, 40)], float), None)
    np.testing.assert_allclose(square, [[-0.25, -1], [0.25, -1], [-0.25, 1], [0.25, 1]])


def stage_links(shift: np.ndarray, nominal: np.ndarray, pairs: np.ndarray, axis: np.ndarray, margin=8) -> Evidence:
    surface = np.stack([hill(tuple(s), 9, 1.0, (2 * margin + 1,) * 2) for s in shift])
    step = nominal[pairs[:, 1]] - nominal[pairs[:, 0]]
    evidence = evidence_of(surface, pairs, axis, np.rint(step))
    evidence.shift, evidence.accepted = shift, np.ones(len(shift), bool)
    return evidence


def test_the_lattice_of_a_stage_is_found_from_links_and_surfaces_and_outliers_do_not_bend_it():
    nominal = nominal_positions(
        [(c, r) for c in range(5) for r in range(5)], tile_shape=(100, 100), overlap_px=(20.4, 20)
    )
    pairs, axis = neighbour_pairs(nominal, tile_shape=(100, 100))
    features = stage_features(nominal, None)
    true = np.array([[3.0, -1.0], [0.5, 4.0]])  # error of the stage across the whole scan
    scan = np.abs(nominal - nominal.mean(0)).max()
    rounding = nominal[pairs[:, 1]] - nominal[pairs[:, 0]] - np.rint(nominal[pairs[:, 1]] - nominal[pairs[:, 0]])
    step = (features[pairs[:, 1]] - features[pairs[:, 0]]) @ (true * scan / 40) + rounding
    evidence = stage_links(step, nominal, pairs, axis)
    np.testing.assert_allclose(rounding_of(evidence, nominal), rounding)
    evidence.shift = step.copy()
    evidence.shift[3] += 6
    evidence.shift[17] -= 5
    stage = StageModel.from_links(evidence, nominal, features)
    predicted, variance = stage.prediction(evidence)
    np.testing.assert_allclose(predicted, step, atol=0.05)
    assert variance.shape == step.shape
    assert (stage.link_sigma_px < 1).all()
    assert (stage.link_sigma_px >= 0.5).all()
    np.testing.assert_allclose(variance, stage.link_sigma_px[axis] ** 2)
    coarse = StageModel.from_surfaces(evidence, nominal, features)
    for direction in (0, 1):
        mine = axis == direction
        found = (coarse.prediction(evidence)[0] - rounding)[mine].mean(axis=0)
        np.testing.assert_allclose(found, np.rint((step - rounding)[mine].mean(axis=0)), atol=0.6)
    evidence.accepted[2:] = False
    few = StageModel.from_links(evidence, nominal, features, before=stage)
    np.testing.assert_array_equal(few.parameters, stage.parameters)
    np.testing.assert_allclose(few.link_sigma_px, 8 / 2.5)


def test_beliefs_have_the_moments_of_surface_times_expectation():
    rng = np.random.default_rng(2)
    evidence = rng.normal(size=(2, 7, 9))
    mean = np.array([[0.5, -1.0], [2.0, 1.5]])
    precision = np.array([[[0.5, 0.1], [0.1, 0.3]], [[1.0, -0.2], [-0.2, 0.8]]])
    found, covariance = _moments(evidence, mean, precision)
    x, y = np.meshgrid(np.arange(-3, 4), np.arange(-4, 5), indexing="ij")
    for link in range(2):
        off = np.stack([x, y], -1) - mean[link]
        mass = np.exp(evidence[link] - 0.5 * np.einsum("xyi,ij,xyj->xy", off, precision[link], off))
        mass /= mass.sum()
        centre = np.array([(mass * x).sum(), (mass * y).sum()])
        apart = np.stack([x, y], -1) - centre
        np.testing.assert_allclose(found[link], centre)
        np.testing.assert_allclose(covariance[link], np.einsum("xy,xyi,xyj->ij", mass, apart, apart), atol=1e-9)


def test_a_message_turns_the_expectation_into_the_belief_where_that_is_narrower():
    precision = np.array([[[0.5, 0.1], [0.1, 0.3]]])
    own = np.array([[[2.0, 0.3], [0.3, 1.0]]])
    mean, measured = np.array([[1.0, -2.0]]), np.array([[3.0, 0.5]])
    total = precision + own
    believed = np.linalg.solve(total, (precision @ mean[..., None]) + (own @ measured[..., None]))[..., 0]
    information, pull = _message(believed, np.linalg.inv(total), mean, precision)
    expected = np.linalg.inv(np.linalg.inv(own) + 0.2 * np.eye(2))
    np.testing.assert_allclose(information, expected, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.solve(information, pull[..., None])[..., 0], measured, rtol=1e-6)
    wide, no_pull = _message(mean + 1, 2 * np.linalg.inv(precision), mean, precision)
    np.testing.assert_allclose(wide, 0, atol=1e-12)
    np.testing.assert_allclose(no_pull, 0, atol=1e-12)


def test_information_is_limited_by_a_variance_that_is_added():
    information = np.array([[[4.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, -3.0]]])
    found = limited_information(information, 0.5)
    np.testing.assert_allclose(np.linalg.inv(found[0]), np.linalg.inv(information[0]) + 0.5 * np.eye(2))
    np.testing.assert_allclose(found[1], np.diag([1 / 1.5, 0]), atol=1e-12)


def test_the_jitter_is_estimated_from_tiles_that_are_known_well():
    nominal = nominal_positions(
        [(c, r) for c in range(4) for r in range(3)], tile_shape=(100, 100), overlap_px=(20, 20)
    )
    pairs, _ = neighbour_pairs(nominal, tile_shape=(100, 100))
    features = stage_features(nominal, None)
    system = LinkSystem(pairs, features, lines_from_positions(nominal, pairs, (100, 100)))
    stage = np.array([[1.0, 2.0], [-1.0, 0.5]])
    deviation = features @ stage + np.random.default_rng(0).normal(size=(12, 2)) * (2.0, 3.0)
    covariance = np.tile(np.diag([0.1, 0.2]), (12, 1, 1))
    before = np.array([5.0, 5.0])
    square = (deviation - features @ stage) ** 2 + (0.1, 0.2)
    np.testing.assert_allclose(_jitter(system, deviation, stage, covariance, before), np.sqrt(square.mean(0)))
    covariance[5:] = 100 * np.eye(2)
    np.testing.assert_array_equal(_jitter(system, deviation, stage, covariance, before), before)
    covariance[5] = covariance[0]
    np.testing.assert_allclose(_jitter(system, deviation, stage, covariance, before), np.sqrt(square[:6].mean(0)))
    still = _jitter(system, features @ stage, stage, np.zeros((12, 2, 2)), before)
    np.testing.assert_allclose(still, 0.5)


def test_spectra_are_smoothed_over_five_rings_without_moving_or_shrinking():
    delta = np.zeros(9)
    delta[4] = 16
    assert correlation._smoothed(delta).tolist() == [0, 0, 1, 4, 6, 4, 1, 0, 0]
    assert correlation._smoothed(np.full(7, 3.0)) == pytest.approx([3] * 7)


def test_shading_is_smoothed_by_its_share_of_each_side():
    pattern = 5 + np.random.default_rng(4).normal(size=(80, 40))
    found = common_shading([pattern] * 3, multiplicative=False, sigma_fraction=0.1)
    level = pattern - np.median(pattern)
    expected = ndimage.gaussian_filter(level, (8, 4), mode="reflect", truncate=8)
    np.testing.assert_allclose(found, expected - expected.mean(), atol=5e-3)


def test_a_tile_is_empty_by_what_the_tiles_that_show_something_show():
    values = np.zeros((16, 12, 12), np.float32)  # most of them blank
    values[:3] = RNG.choice([-1.0, 1.0], (3, 12, 12))
    values[3] = 0.1  # a hundredth of the usual contrast
    shown = filtered_tiles([np.zeros((12, 12), np.float32)] * 16, logarithm=False)
    assert empty_tiles(type(shown)(values, shown.blur, 8.0)).tolist() == [False] * 3 + [True] * 13


def test_scatter_about_the_lattice_widens_the_expectation_of_links():
    nominal = nominal_positions(
        [(c, r) for c in range(6) for r in range(6)], tile_shape=(100, 100), overlap_px=(20, 20)
    )
    pairs, axis = neighbour_pairs(nominal, tile_shape=(100, 100))
    features = stage_features(nominal, None)
    step = np.random.default_rng(5).normal(size=(len(pairs), 2)) * (1.0, 2.0)
    evidence = stage_links(np.zeros_like(step), nominal, pairs, axis)
    evidence.shift = step
    stage = StageModel.from_links(evidence, nominal, features)
    for direction in (0, 1):
        mine = axis == direction
        residual = np.abs(step - stage.prediction(evidence)[0])[mine]
        spread = 1.4826 * np.median(residual, axis=0) * np.sqrt(30 / 28) * 1.1 + 1.5 / np.sqrt(30)
        np.testing.assert_allclose(stage.link_sigma_px[direction], np.clip(spread, 0.5, 4), rtol=1e-6)


def test_an_image_without_texture_does_not_keep_the_ruler_from_another():
    shift = np.array([[42, 3], [42, 3]])
    blank = filtered_tiles([np.ones((60, 70), np.float32)] * 2, logarithm=False)
    textured = filtered_tiles(speckled((42, 3)), logarithm=False)
    pairs, axis = np.array([[0, 1], [0, 1]]), np.array([1, 1])
    ruler = Ruler([blank, textured], pairs, axis, 1)
    both, yes, no = np.arange(2), np.ones(2, bool), np.zeros(2, bool)
    assert ruler.showing(shift.astype(float)).all()
    assert not Ruler([blank], pairs, axis, 1).showing(shift.astype(float)).any()
    assert not ruler.measure(both, shift.astype(float), no)[2].any()  # nothing is known yet
    ruler.measure(both, shift.astype(float), yes)
    found, information, good = ruler.measure(both, shift + 0.4, no)
    assert good.all()
    np.testing.assert_allclose(found, shift, atol=0.1)
    assert (np.linalg.eigvalsh(information) > 1).all()
    far, _, seen = ruler.search(both, shift + np.array([5.0, -6.0]), np.tile(np.eye(2) / 100, (2, 1, 1)))
    assert seen.all()
    np.testing.assert_allclose(far, shift, atol=0.1)


# --- solution --------------------------------------------------------------------------------------------------------


def ring(shift: np.ndarray) -> tuple[LinkSystem, np.ndarray]:
    """Return a grid of 2 x 2 tiles without a stage model, and its prior."""
    nominal = nominal_positions([(0, 0), (1, 0), (0, 1), (1, 1)], tile_shape=(100, 100), overlap_px=(20, 20))
    pairs, _ = neighbour_pairs(nominal, tile_shape=(100, 100))
    assert len(shift) == len(pairs) == 4
    return LinkSystem(pairs, np.zeros((4, 0)), lines_from_positions(nominal, pairs, (100, 100))), np.full((4, 2), 1e-6)


def test_an_outlier_among_measured_links_is_ignored_and_what_only_speaks_is_not_judged():
    true = np.array([(0, 0), (3, -1), (1, 2), (-2, 4)], float)
    system, prior = ring(true)
    shift = true[system.pairs[:, 1]] - true[system.pairs[:, 0]]
    information = np.tile(100 * np.eye(2), (4, 1, 1))
    every = np.ones(4, bool)
    solution, weight = _robust(system, shift, information, every, every, prior)
    np.testing.assert_allclose(weight, 1, atol=1e-6)
    off = solution.deviation_px - solution.deviation_px[0]
    np.testing.assert_allclose(off, true, atol=1e-3)
    cells = [(c, r) for c in range(4) for r in range(4)]
    nominal = nominal_positions(cells, tile_shape=(100, 100), overlap_px=(20, 20))
    pairs, _ = neighbour_pairs(nominal, tile_shape=(100, 100))
    grid = LinkSystem(pairs, np.zeros((16, 0)), lines_from_positions(nominal, pairs, (100, 100)))
    shift, information = np.zeros((24, 2)), np.tile(100 * np.eye(2), (24, 1, 1))
    shift[11] = (6, 0)
    every, prior = np.ones(24, bool), np.full((16, 2), 1e-6)
    solution, weight = _robust(grid, shift, information, every, every, prior)
    assert weight[11] < 0.01
    assert np.delete(weight, 11).min() > 0.9
    assert np.abs(solution.deviation_px).max() < 0.1
    speaks = every.copy()
    speaks[11] = False
    _, weight = _robust(grid, shift, information, every, speaks, prior)
    assert weight[11] == 1
    _, weight = _robust(grid, shift, information, speaks, every, prior)
    assert weight[11] == 0
    np.testing.assert_allclose(_chi2(grid, solution, shift, information)[11], 100 * 36, rtol=0.1)


def test_what_all_others_expect_of_a_link_is_what_is_left_without_its_own_word():
    others, own = np.array([[[0.5, 0.1], [0.1, 0.4]]]), np.array([[[2.0, -0.3], [-0.3, 1.0]]])
    expected, measured = np.array([[1.0, 2.0]]), np.array([[-1.0, 0.5]])
    together = np.linalg.solve(others + own, others @ expected[..., None] + own @ measured[..., None])[..., 0]
    found, precision = _without_own(together, np.linalg.inv(others + own), measured, own)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(precision, others)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_information_that_is_too_large_for_the_residuals_is_told(factor):
    n = 400
    information = np.tile(np.diag([4.0, 9.0]), (n, 1, 1))
    residual = np.random.default_rng(1).normal(size=(n, 2)) * (0.5, 1 / 3) * np.sqrt(factor * 0.75)
    held = np.arange(150) < 101  # a quarter of the links is used up by the positions
    found = _overrating(residual, information, np.ones(n), held)
    np.testing.assert_allclose(found, factor, rtol=0.15)
    weight = np.where(np.arange(n) < 200, 1.0, 0.4)
    information[0] = np.diag([0.9, 9.0])  # not known to a pixel
    some = _overrating(residual, information, weight, np.arange(150) < 51)
    assert some[0] == 1
    assert (some[200:] == 1).all()
    assert some[1:200] == pytest.approx(some[1])
    assert (_overrating(residual[:19], information[:19], np.ones(19), held[:5]) == 1).all()
    assert (_overrating(residual, information, np.ones(n), np.ones(400, bool)) == 1).all()  # no link is redundant


def test_islands_are_numbered_groups_of_linked_tiles():
    assert _islands(7, np.array([[5, 2], [2, 6], [0, 3]])).tolist() == [0, -1, 1, 0, -1, 1, 1]
    assert _islands(3, np.empty((0, 2), np.intp)).tolist() == [-1, -1, -1]
    assert _islands(4, np.array([[0, 1], [2, 3], [1, 2]])).tolist() == [0, 0, 0, 0]


def test_the_lattice_is_the_displacement_per_pixel_of_the_scan():
    nominal = RNG.uniform(0, 1000, (12, 2))
    slope = np.array([[0.01, -0.002], [0.003, -0.02]])
    np.testing.assert_allclose(_lattice_slope(nominal, nominal @ slope + (5, 7)), slope, atol=1e-9)


def test_without_links_tiles_stay_nominal_and_are_known_as_badly_as_the_margin():
    nominal = np.array([(0.0, 0.0), (80.0, 0.0)])
    none = np.empty((0, 2), np.intp)
    found = without_links(nominal, none, np.empty(0, np.intp), 16.0)
    assert found.positions_px.tolist() == nominal.tolist()
    assert (found.uncertainty_px == 8).all()
    assert found.by_stage_only.all()
    assert (found.island == -1).all()
    assert found.lattice.tolist() == np.eye(2).tolist()
    assert found.links.clear.size == 0
    assert (without_links(nominal[:1], none, np.empty(0, np.intp), 16.0).uncertainty_px == 0).all()


def test_clear_links_hold_and_are_known_to_a_pixel():
    information = np.stack([np.diag([1.1, 5.0]), np.diag([0.9, 5.0]), np.diag([1.1, 5.0])])
    two = np.zeros((3, 2))
    links = Links(two.astype(int), np.zeros(3, int), two, np.zeros(3), information, np.array([0.6, 1.0, 0.5]), two)
    assert links.clear.tolist() == [True, False, False]


def test_a_bend_of_the_field_has_no_linear_part_and_displaces_the_two_tiles_of_a_link_differently():
    size = np.array([200.0, 160.0])
    field = _free_of_linear()
    assert field.shape == (81, 2, 3)
    grid = np.linspace(-1, 1, 9)
    x, y = (v.ravel() for v in np.meshgrid(grid, grid, indexing="ij"))
    linear = np.stack([np.ones(81), x, y])
    np.testing.assert_allclose(np.einsum("kp,pct->kct", linear, field), 0, atol=1e-10)
    np.testing.assert_allclose(field[:, 0, 0], x * y, atol=1e-12)
    assert np.abs(field[:, 0, 1]).max() < 1e-12
    np.testing.assert_allclose(field[:, 1, 1], x * y, atol=1e-12)
    radial = (x**2 + y**2) / 2
    fit = linear.T @ np.linalg.lstsq(linear.T, radial * x, rcond=None)[0]
    np.testing.assert_allclose(field[:, 0, 2], radial * x - fit, atol=1e-10)
    design = _design(np.array([[160.0, 0.0], [-4.0, 130.0]]), size)
    assert design.shape == (5, 2, 2, 3)
    for part in range(5):
        # Link along x: the overlap is 40 px wide and 160 px long, the parts follow each other along y.
        y = (part + 0.5) / 5 * 160
        first, second = np.array([180.0, y]) / (100, 80) - 1, np.array([20.0, y]) / (100, 80) - 1
        np.testing.assert_allclose(design[part, 0, 0, 0], second[0] * second[1] - first[0] * first[1])
        barrel = [(u @ u) / 2 * u for u in (first, second)]
        np.testing.assert_allclose(design[part, 0, :, 2], barrel[1] - barrel[0])
        x = (part + 0.5) / 5 * 196
        first, second = np.array([x, 145.0]) / (100, 80) - 1, np.array([x + 4, 15.0]) / (100, 80) - 1
        np.testing.assert_allclose(design[part, 1, 1, 1], second[0] * second[1] - first[0] * first[1])


@pytest.mark.parametrize(
    ("turn", "error", "turned"), [(0.31, 0.01, True), (-0.31, 0.01, True), (0.29, 0.0, False), (0.5, 0.13, False)]
)
def test_a_turn_and_a_bend_are_told_when_they_are_large_and_certain(turn, error, turned):
    assert FieldGeometry(turn, error, 0.0, 0.0).turned is turned
    assert not FieldGeometry(float("nan"), 0.0, float("nan"), 0.0).turned
    assert not FieldGeometry(float("nan"), 0.0, float("nan"), 0.0).bent
    assert FieldGeometry(0.0, 0.0, 0.21, 0.05).bent
    assert not FieldGeometry(0.0, 0.0, 0.19, 0.0).bent
    assert not FieldGeometry(0.0, 0.0, 0.5, 0.13).bent


def test_a_turn_of_the_scan_is_read_from_the_lattice():
    nominal = nominal_positions(
        [(c, r) for c in range(3) for r in range(3)], tile_shape=(100, 100), overlap_px=(20, 20)
    )
    pairs, axis = neighbour_pairs(nominal, tile_shape=(100, 100))
    angle = np.radians(2.0)
    found = without_links(nominal, pairs, axis, 16.0)
    n = len(pairs)
    links = Links(
        pairs, axis, np.zeros((n, 2)), np.ones(n), np.tile(np.eye(2), (n, 1, 1)), np.ones(n), np.zeros((n, 2))
    )
    turned = dataclasses.replace(
        found,
        links=links,
        jitter_px=np.array([3.0, 4.0]),
        lattice=np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]),
    )
    turn, error = _turn(turned, nominal)
    assert turn == pytest.approx(2)
    assert error == pytest.approx(np.degrees(5 / np.sqrt(((nominal - nominal.mean(0)) ** 2).sum())))
    weight = np.where(axis == 0, 1.0, 0.5)
    one_way = dataclasses.replace(turned, links=dataclasses.replace(links, weight=weight))
    assert np.isnan(_turn(one_way, nominal)).all()


def test_tissue_at_an_edge_of_blocks_is_not_inside():
    tissue = np.ones((1, 5, 4), bool)
    tissue[0, 2, 1] = False
    inside = _interior(tissue)
    assert np.argwhere(~inside[0]).tolist() == [[1, 1], [2, 0], [2, 1], [2, 2], [3, 1]]

"""Response over depth, gains and attenuation from tissue that slices saw twice, against a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from opticstream.compute.registration import PlanarTransform
from opticstream.compute.sample import (
    SliceLevels,
    block_power,
    corrected_power,
    correction_map,
    layer_levels,
    levels_in_sample,
    noise_power,
    pair_levels,
    pixels_from_blocks,
    plane_sources,
    share_of_correction,
    solve_intensity,
)
from opticstream.compute.sample._intensity import Intensity

SECTION, PLANES, BLOCKS = 10, 30, (24, 22)
RESPONSE = -0.3 * np.arange(PLANES) - 0.01 * (np.arange(PLANES) - 8.0) ** 2
RESPONSE -= RESPONSE[0]


def slices_of_slow_tissue(gains: dict[int, float], *, seed: int) -> tuple[dict[int, SliceLevels], np.ndarray]:
    """Slices of tissue whose bright parts take away more, and the median brightness of each section."""
    rng = np.random.default_rng(seed)
    depth = max(gains) * SECTION + PLANES
    white = ndimage.gaussian_filter(rng.standard_normal((*BLOCKS, depth)), (4, 4, 15), mode="wrap")
    tissue = 2.0 * white / white.std()
    loss_per_plane = 0.5 * tissue / SECTION
    slices = {}
    for n, gain in gains.items():
        top = (n - 1) * SECTION
        loss = np.cumsum(loss_per_plane[:, :, top : top + PLANES], axis=2)
        level = tissue[:, :, top : top + PLANES] + RESPONSE + gain - loss
        level += 0.3 * rng.standard_normal(level.shape)
        slices[n] = SliceLevels((10 ** (level / 10)).astype(np.float32), 1e-6, np.ones(BLOCKS, bool))
    return slices, np.array([np.median(tissue[:, :, (n - 1) * SECTION : n * SECTION]) for n in sorted(gains)])


def made_slices(gains: dict[int, float], *, local: float = 1.0, seed: int = 0) -> dict[int, SliceLevels]:
    """Slices of one block of tissue under a response, gains and attenuation that differs from place to place."""
    rng = np.random.default_rng(seed)
    depth = max(gains) * SECTION + PLANES
    tissue = 1.5 * rng.standard_normal((*BLOCKS, depth))
    attenuation = local * np.sin(np.arange(BLOCKS[0]) / 4)[:, None] * np.ones(BLOCKS)
    slices = {}
    for n, gain in gains.items():
        top = (n - 1) * SECTION
        loss = attenuation[:, :, None] * (np.arange(PLANES) + 0.5) / SECTION
        level = tissue[:, :, top : top + PLANES] + RESPONSE + gain - loss
        level += 0.3 * rng.standard_normal(level.shape)
        slices[n] = SliceLevels((10 ** (level / 10)).astype(np.float32), 1e-6, np.ones(BLOCKS, bool))
    return slices


def solved(slices: dict[int, SliceLevels], **options: object) -> Intensity:
    pairs = [
        pair_levels(i, j, slices[i], slices[j], (j - i) * SECTION) for i in slices for j in slices if i < j <= i + 2
    ]
    profiles = {n: s.profile_db for n, s in slices.items()}
    return solve_intensity(
        profiles,
        [p for p in pairs if p],
        section_planes=SECTION,
        layers=lambda n: layer_levels(slices[n], SECTION),
        **options,  # type: ignore[arg-type]
    )


GAINS = {1: 0.4, 2: -1.0, 3: 0.9, 4: 0.1, 5: -0.6, 6: 0.2}


def test_what_slices_show_of_the_same_tissue_gives_their_gains_response_and_local_attenuation() -> None:
    found = solved(made_slices(GAINS))
    for n in (1, 2, 3, 4, 5):  # levels of neighbours where one follows on the other
        step = found.level_db(n, SECTION) - found.level_db(n + 1, 0)
        true = RESPONSE[SECTION] + GAINS[n] - GAINS[n + 1]
        assert step == pytest.approx(true, abs=0.1)
    expected = np.sin(np.arange(BLOCKS[0]) / 4)
    expected -= expected.mean()
    got = found.local_db[3].sum(2)[3:-3].mean(1)
    assert np.corrcoef(got, expected[3:-3])[0, 1] > 0.98
    assert np.polyfit(expected[3:-3], got, 1)[0] == pytest.approx(1, abs=0.2)
    assert found.excluded == {}


def test_where_no_pair_tells_the_brightness_of_the_tissue_tells_what_it_takes_away() -> None:
    slices, _ = slices_of_slow_tissue(dict.fromkeys(range(1, 9), 0.0), seed=5)
    last = max(slices)  # nothing was imaged below its section
    found = solved(slices)
    shown = slices[last].power[:, :, :SECTION]
    bright = 10 * np.log10(shown).mean(2)
    loss = found.local_db[last].sum(2)
    assert np.corrcoef(bright[3:-3, 3:-3].ravel(), loss[3:-3, 3:-3].ravel())[0, 1] > 0.7
    assert 0.2 < np.polyfit(bright[3:-3, 3:-3].ravel(), loss[3:-3, 3:-3].ravel(), 1)[0] < 0.8  # made with 0.5
    # A slice without tissue tells nothing, and changes nothing else.
    empty = slices | {last + 1: slices[last]._replace(tissue=np.zeros(BLOCKS, bool))}
    assert np.isfinite(list(solved(empty).gains_db.values())).all()
    # Tissue that takes away what its brightness does not tell is not credited with it.
    unlike = made_slices(dict.fromkeys(range(1, 9), 0.0), local=0.0)
    assert np.abs(solved(unlike).local_db[last]).sum(2).max() < 0.3


def test_brightness_that_changes_slowly_along_z_is_kept() -> None:
    made, true = [], []
    for seed in range(4):
        gains = dict(zip(range(1, 13), np.random.default_rng([seed, 1]).normal(0, 0.8, 12).tolist(), strict=True))
        slices, levels = slices_of_slow_tissue(gains, seed=seed)
        found = solved(slices)
        # What a section shows when the gain that was found is taken away.
        made.append(levels + [gains[n] - found.gains_db[n] for n in gains])
        made[-1] -= made[-1].mean()
        true.append(levels - levels.mean())
    slope = np.polyfit(np.ravel(true), np.ravel(made), 1)[0]
    assert 0.7 < slope < 1.1
    assert np.corrcoef(np.ravel(true), np.ravel(made))[0, 1] > 0.8


def test_a_dark_slice_is_left_out_with_its_reason_and_still_tells_of_its_neighbours() -> None:
    gains = GAINS | {3: -9.5}
    found = solved(made_slices(gains))
    assert set(found.excluded) == {3}
    assert "darker than the others (limit 6 dB)" in found.excluded[3]
    across = found.level_db(2, 2 * SECTION) - found.level_db(4, 0)
    assert across == pytest.approx(RESPONSE[2 * SECTION] + gains[2] - gains[4], abs=0.15)
    assert solved(made_slices(gains), exclude=False).excluded == {}


def test_a_slice_that_is_like_none_of_its_neighbours_is_left_out_of_everything() -> None:
    slices = made_slices(GAINS, local=0)
    slices[4] = made_slices(GAINS, local=0, seed=9)[4]
    found = solved(slices)
    assert set(found.excluded) == {4}
    assert "like none of its neighbours" in found.excluded[4]


def test_without_gains_slices_count_as_equally_bright() -> None:
    found = solved(made_slices(GAINS), gains=False)
    assert max(abs(g) for g in found.gains_db.values()) < 0.01


def test_layers_are_means_of_whole_layers_over_tissue() -> None:
    power = np.ones((12, 10, 14), np.float32)
    power[:, :, 5:8] = 10.0
    power[6:] = np.nan
    tissue = np.zeros((12, 10), bool)
    tissue[:6] = True
    layers = layer_levels(SliceLevels(power, 0.0, tissue), 10)
    assert layers.shape == (12, 10, 5)  # planes 0-1, 2-4, 5-7, 8-9, 10-11; the last does not fit
    np.testing.assert_allclose(layers[:6].mean((0, 1)), [0, 0, 10, 0, 0], atol=0.01)
    assert np.isnan(layers[6:]).all()


def test_slices_that_share_no_depth_or_no_tissue_say_nothing_of_each_other() -> None:
    slices = made_slices({1: 0.0, 2: 0.0})
    assert pair_levels(1, 4, slices[1], slices[2], PLANES) is None
    empty = slices[2]._replace(tissue=np.zeros(BLOCKS, bool))
    assert pair_levels(1, 2, slices[1], empty, SECTION) is None
    assert np.isnan(empty.profile_db).all()
    alone = solve_intensity({1: slices[1].profile_db}, [], section_planes=SECTION)
    assert alone.local_db == {}
    assert solve_intensity({}, [], section_planes=SECTION).gains_db == {}


def test_blocks_follow_the_pose_and_lose_the_noise_floor() -> None:
    rng = np.random.default_rng(3)
    volume = np.full((132, 120, 14), -30.0, np.float32)
    volume[30:100, 30:90] = -3.0
    volume += 10 * np.log10(rng.gamma(8, 1 / 8, volume.shape)).astype(np.float32)
    blocks = block_power(volume)
    assert noise_power(blocks) == pytest.approx(1e-3, rel=0.05)
    assert noise_power(block_power(volume[36:96, 36:84])) == 0.0
    moved = levels_in_sample(blocks, PlanarTransform(np.eye(2), np.array([6.0, -12.0])), shape=(22, 20))
    still = levels_in_sample(blocks, PlanarTransform.identity(), shape=(22, 20))
    np.testing.assert_allclose(moved.power[2:18, 4:18], still.power[3:19, 2:16], rtol=1e-5)
    assert moved.noise == still.noise
    assert still.profile_db == pytest.approx(np.full(14, -3.0), abs=0.25)  # a median of speckle lies lower


def test_a_plane_comes_from_its_section_fades_from_the_one_above_and_is_filled_from_deeper_planes() -> None:
    slices = {1: 60, 2: 60, 4: 60}
    own, *fading = plane_sources(21, slices, section_planes=20)
    assert (own.slice_id, own.depth, own.weight) == (2, 1, 1.0)
    assert fading[0].slice_id == 1
    assert 0 < fading[0].weight < 1
    assert plane_sources(30, slices, section_planes=20, fill=False) == [(2, 10, 1.0)]
    assert plane_sources(45, slices, section_planes=20)[0][:2] == (2, 25)
    assert plane_sources(45, slices, section_planes=20, fill=False) == []
    assert plane_sources(45, {1: 30, 2: 20}, section_planes=20) == []
    assert plane_sources(5, {}, section_planes=20) == []


def test_a_correction_brightens_tissue_and_leaves_what_lies_beside_it() -> None:
    tissue = np.zeros((12, 10), bool)
    tissue[:4] = True
    share = share_of_correction(tissue)
    assert share[:5].min() > 0.9
    assert share[10:].max() == 0.0
    found = Intensity(np.array([0.0, -3.0]), {1: 1.0}, {1: 0.5}, {1: np.full((12, 10, 2), 0.5, np.float32)}, {}, 2.0)
    off = correction_map(found, 1, 1, xs=slice(0, 12), ys=slice(0, 10), tissue=share, side=1)
    assert off[0, 0] == pytest.approx(-3.0 + 1.0 - 0.75 * (0.5 + 1.0), abs=1e-4)
    assert off[11, 0] == 0.0
    plane = np.full((12, 10), -20.0, np.float32)
    power = corrected_power(plane, off, noise=1e-3)
    assert 10 * np.log10(power[11, 0]) == pytest.approx(-20.0, abs=1e-3)
    assert power[0, 0] == pytest.approx(9e-3 * 10 ** (-off[0, 0] / 10), rel=1e-3)
    coarse = pixels_from_blocks([[1.0, 2.0]], slice(0, 4), slice(2, 6), side=4)
    assert coarse.shape == (4, 4)

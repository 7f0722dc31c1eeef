"""The flat field of tiles from what neighbours show of the same tissue."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.compute.stitching import common_shading, flat_field_from_overlaps, neighbour_pairs

SHAPE = (96, 88)


def field(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    u, v = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None, :]
    made = 1 - 0.2 * u**2 - 0.16 * v**2 + 0.06 * u - 0.05 * v + 0.04 * u**2 * v**2
    return made / made.mean()


def confocal_field() -> np.ndarray:
    """A field that falls off as a confocal gate does, to 0.4 in the corners; no polynomial is like that."""
    u, v = np.linspace(-1, 1, SHAPE[0])[:, None], np.linspace(-1, 1, SHAPE[1])[None, :]
    made = 1 / (1 + ((u - 0.1) ** 2 + 1.2 * (v + 0.1) ** 2) / 2)
    return made / made.mean()


def mosaic(
    columns: int,
    rows: int,
    *,
    empty: float = 0.0,
    gain: float = 0.03,
    overlap: float = 0.2,
    seed: int = 0,
    true: np.ndarray | None = None,
):
    """Tiles of tissue that varies over a tile, with speckle, gains and positions that are off by a pixel or two."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    steps = np.array([[c * SHAPE[0], r * SHAPE[1]] for c in range(columns) for r in range(rows)]) * (1 - overlap)
    at = np.round(steps + rng.normal(0, 2, steps.shape)).astype(int) + 8
    size = at.max(0) + np.array(SHAPE) + 8
    tissue = np.exp(0.5 * ndimage.gaussian_filter(rng.standard_normal(size), 30) * 100)
    tissue *= np.exp(0.3 * ndimage.gaussian_filter(rng.standard_normal(size), 3) * 10)
    level = ndimage.gaussian_filter(rng.standard_normal(size), 60)
    tissue = np.where(level >= np.quantile(level, empty), tissue, 0.02) if empty else tissue
    tiles = []
    true = field() if true is None else true
    for x, y in at:
        seen = tissue[x : x + SHAPE[0], y : y + SHAPE[1]] * true * (1 + gain * rng.standard_normal())
        tiles.append((seen * rng.gamma(8, 1 / 8, SHAPE)).astype(np.float32))
    return tiles, at.astype(np.intp), neighbour_pairs(at, tile_shape=SHAPE)[0]


def errors(found: np.ndarray, true: np.ndarray | None = None) -> tuple[float, float]:
    off = found / (field() if true is None else true) - 1
    return float(np.sqrt((off**2).mean())), float(np.abs(off).max())


def test_the_flat_field_is_found_to_one_and_a_half_per_cent_where_tissue_is_not_mistaken_for_it():
    tiles, at, pairs = mosaic(14, 12, empty=0.3)
    found = flat_field_from_overlaps(tiles, at, pairs)
    assert found is not None
    rms, worst = errors(found)
    before, _ = errors(np.ones(SHAPE))
    average, _ = errors(common_shading(tiles, multiplicative=True))
    print(f"flat field: uncorrected {before:.3f}, average of tiles {average:.3f}, overlaps {rms:.4f} worst {worst:.4f}")
    assert rms <= 0.015
    assert worst <= 0.03
    assert rms < average / 2
    assert rms < before / 5


def test_overlaps_of_a_few_pixels_still_give_the_field():
    tiles, at, pairs = mosaic(10, 9, overlap=0.13)
    found = flat_field_from_overlaps(tiles, at, pairs)
    assert found is not None
    rms, worst = errors(found)
    print(f"flat field, overlaps of 11 and 12 px: {rms:.4f} worst {worst:.4f}")
    assert rms <= 0.02
    assert worst <= 0.05


@pytest.mark.parametrize("seed", [1, 2])
def test_the_field_between_the_overlaps_follows_from_its_rim(seed: int):
    true = confocal_field()
    found = flat_field_from_overlaps(*mosaic(8, 8, overlap=0.18, seed=seed, true=true))
    assert found is not None
    rms, worst = errors(found, true)
    assert rms <= 0.0135
    assert worst <= 0.035


def test_levels_in_db_give_the_same_field_as_a_term():
    tiles, at, pairs = mosaic(5, 5)
    factor = flat_field_from_overlaps(tiles, at, pairs)
    term = flat_field_from_overlaps([10 * np.log10(t) for t in tiles], at, pairs, in_db=True)
    assert factor is not None
    assert term is not None
    assert term.mean() == pytest.approx(0, abs=1e-4)
    expected = 10 * np.log10(factor)
    assert term == pytest.approx(expected - expected.mean(), abs=0.02)


def test_missing_values_are_skipped_and_too_few_overlaps_say_nothing():
    tiles, at, pairs = mosaic(5, 5)
    holes = [t.copy() for t in tiles]
    holes[3][:] = np.nan
    holes[7][10:40] = np.nan
    found = flat_field_from_overlaps(holes, at, pairs)
    assert found is not None
    assert np.isfinite(found).all()
    assert flat_field_from_overlaps(tiles, at, pairs[:5]) is None
    assert flat_field_from_overlaps([np.full(SHAPE, np.nan, np.float32)] * len(tiles), at, pairs) is None
    assert flat_field_from_overlaps([np.zeros(SHAPE, np.float32)] * len(tiles), at, pairs) is None
    dark = [tiles[0], *[np.zeros(SHAPE, np.float32)] * (len(tiles) - 1)]
    assert flat_field_from_overlaps(dark, at, pairs) is None

"""The stage: errors of the kinds that were asked for, the same in every slice but for what drifts."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.model.ids import MosaicId, TileId
from opticstream.sim.scan_stage import Stage, nominal_position_px
from opticstream.sim.settings import StageSettings
from opticstream.testing.small_phantom import STILL_STAGE, small_project_config

SCAN = small_project_config(grid_size_y=6, illuminations=[
    {"name": "normal", "columns": 8, "a_lines": 24}, {"name": "tilted", "columns": 9, "a_lines": 16},
]).scan  # fmt: skip
LAYOUT = SCAN.layout


def positions(stage: Stage, mosaic: int) -> np.ndarray:
    return np.array([stage.position_px(t) for t in LAYOUT.tiles(MosaicId(mosaic))])


def nominal(mosaic: int) -> np.ndarray:
    return np.array([nominal_position_px(SCAN, t) for t in LAYOUT.tiles(MosaicId(mosaic))])


def stage(seed: int = 1, **changes: float) -> Stage:
    return Stage(SCAN, STILL_STAGE.model_copy(update=changes), seed=seed)


def test_a_perfect_stage_goes_where_it_is_sent() -> None:
    assert np.array_equal(positions(stage(), 2), nominal(2))
    assert nominal_position_px(SCAN, TileId(1, 7)) == (18.0, 75.0)  # second column, from above


def test_backlash_shifts_the_columns_that_are_walked_down() -> None:
    shift = positions(stage(backlash_px=0.7), 1) - nominal(1)
    columns = np.repeat(np.arange(8), 6)
    assert np.allclose(shift[columns % 2 == 0], 0)
    assert np.allclose(shift[columns % 2 == 1], [0, -0.7])


def test_the_affine_error_grows_with_the_distance() -> None:
    shift = positions(stage(affine_percent=2.0), 1) - nominal(1)
    fit, residual, *_ = np.linalg.lstsq(nominal(1), shift, rcond=None)
    assert residual == pytest.approx([0, 0], abs=1e-12)
    assert 1e-3 < np.abs(fit).max() < 0.08


def test_jitter_has_its_size_and_repeats_in_every_slice() -> None:
    first = np.concatenate([positions(stage(s, jitter_px=1.5), 1) - nominal(1) for s in range(20)])
    assert first.std() == pytest.approx(1.5, rel=0.05)
    repeated = stage(jitter_px=1.5)
    assert np.array_equal(positions(repeated, 1), positions(repeated, 3))
    drifting = stage(jitter_px=1.5, repeat_jitter_px=0.1)
    assert (positions(drifting, 1) - positions(drifting, 5)).std() == pytest.approx(0.1, rel=0.25)


def test_illuminations_have_their_own_errors() -> None:
    one = stage(jitter_px=1.0)
    assert not np.allclose((positions(one, 1) - nominal(1))[:10], (positions(one, 2) - nominal(2))[:10])


def test_slices_drift_and_illuminations_are_shifted_and_turned() -> None:
    moving = stage(slice_drift_px=2.0, illumination_offset_px=3.0, illumination_rotation_deg=0.5)
    assert moving.placement(MosaicId(1)).shift_px == (0.0, 0.0)
    assert moving.placement(MosaicId(1)).rotation_deg == 0.0
    assert moving.placement(MosaicId(3)).shift_px != (0.0, 0.0)
    turns = [moving.placement(MosaicId(2 * s)).rotation_deg for s in range(1, 60)]
    assert np.std(turns) == pytest.approx(0.5, rel=0.3)
    assert len(set(turns)) == len(turns)


def test_positions_follow_from_the_seed_alone() -> None:
    settings = StageSettings()
    forwards, backwards = Stage(SCAN, settings, seed=5), Stage(SCAN, settings, seed=5)
    tiles = LAYOUT.tiles(MosaicId(4))
    there = {t: backwards.position_px(t) for t in reversed(tiles)}
    assert [forwards.position_px(t) for t in tiles] == [there[t] for t in tiles]
    assert Stage(SCAN, settings, seed=6).position_px(tiles[3]) != there[tiles[3]]


def test_a_placement_maps_pixels_into_the_sample() -> None:
    placement = stage(illumination_offset_px=3.0, illumination_rotation_deg=5.0).placement(MosaicId(2))
    x, y = placement.grid((10.0, 20.0), (3, 4)).coordinates()
    c, s = np.cos(np.deg2rad(placement.rotation_deg)), np.sin(np.deg2rad(placement.rotation_deg))
    i, j = 12.0, 23.0
    assert x[2, 3] == pytest.approx(10 * (c * i - s * j + placement.shift_px[0]))
    assert y[2, 3] == pytest.approx(10 * (s * i + c * j + placement.shift_px[1]))

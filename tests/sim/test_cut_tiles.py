"""Wedges, bends and incomplete slices, made tile by tile: the truth tells them, and the tissue lies where it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opticstream.model.ids import MosaicId
from opticstream.sim.cutting import Cutting, bent_axes
from opticstream.sim.fields import Grid, SmoothField
from opticstream.sim.settings import CuttingSettings, PhantomSettings
from opticstream.sim.tiles import TileSimulator
from opticstream.sim.truth import write_truth
from opticstream.sim.truth_reader import Truth
from opticstream.testing.small_phantom import QUIET, STILL_STAGE, small_project_config

GRID = Grid((0.0, 0.0), (10.0, 0.0), (0.0, 10.0), (60, 50))


def simulator(**cutting: object) -> TileSimulator:
    settings = PhantomSettings(
        slices=2,
        instrument=QUIET,
        stage=STILL_STAGE,
        sample={"outline": "full", "depth_scale_um": 600.0, "region_scale_um": 150.0},
        cutting=CuttingSettings(**cutting),
    )
    return TileSimulator(small_project_config(), settings)


def look(made: TileSimulator, grid: Grid = GRID) -> object:
    return made.look(made.stage.placement(MosaicId(3)), 0, 2, grid)


def test_a_field_is_the_same_function_on_straight_and_on_bent_grids() -> None:
    field = SmoothField(np.random.default_rng(1), 300.0, z_scale_um=500.0)
    still = GRID.bent(np.zeros((2, *GRID.shape)))
    np.testing.assert_allclose(field.on(still, 40.0), field.on(GRID, 40.0), atol=1e-9)
    np.testing.assert_allclose(field.on(GRID, np.full(GRID.shape, 40.0)), field.on(GRID, 40.0), atol=1e-9)
    np.testing.assert_allclose(field.gradient_on(still), field.gradient_on(GRID), atol=1e-9)
    moved = GRID.bent(np.stack([np.full(GRID.shape, 30.0), np.zeros(GRID.shape)]))
    np.testing.assert_allclose(field.on(moved), field.on(GRID.moved(30.0, 0.0)), atol=1e-9)


def test_a_wedge_is_level_on_the_left_and_deeper_on_the_right_with_its_surface() -> None:
    plain, wedge = simulator(), simulator(wedge=(2,), wedge_um=40.0)
    height = look(wedge).face.height_px - look(plain).face.height_px
    x = GRID.coordinates()[0] / wedge.sample.extent_um[0]
    np.testing.assert_allclose(height, 40.0 / wedge.depth_step_um * np.broadcast_to(x, height.shape), atol=1e-6)
    # What lies at the wedge's face lies deeper in a slice without one.
    deep = plain.sample.tissue(GRID, plain.sample.face_depth_um(2) + 40.0 * x + np.zeros(GRID.shape))
    found = wedge.sample.tissue(GRID, wedge.sample.face_depth_um(2) + wedge._deeper_um(GRID, 2))
    np.testing.assert_array_equal(found.region, deep.region)
    first = wedge.look(wedge.stage.placement(MosaicId(1)), 0, 1, GRID).face.height_px
    np.testing.assert_array_equal(first, plain.look(plain.stage.placement(MosaicId(1)), 0, 1, GRID).face.height_px)


def test_a_bend_moves_the_tissue_and_turns_its_axes() -> None:
    made = simulator(distortion_um=60.0, distortion_scale_um=800.0)
    bend = made.cutting.bend_um(2, GRID)
    assert bend is not None
    assert np.hypot(*bend).max() > 10
    view, plain = look(made), look(simulator())
    x, y = (part + moved for part, moved in zip(GRID.coordinates(), bend, strict=True))
    shown = [Grid((float(x[i, j]), float(y[i, j])), (10.0, 0.0), (0.0, 10.0), (1, 1)) for i, j in ((5, 7), (40, 30))]
    for (i, j), point in zip(((5, 7), (40, 30)), shown, strict=True):
        true = look(simulator(), point).layers[0]
        assert view.layers[0].region[i, j] == true.region[0, 0]
        assert view.layers[0].birefringence[i, j] == pytest.approx(true.birefringence[0, 0])
    assert not np.array_equal(view.layers[0].region, plain.layers[0].region)


def test_axes_lie_along_bent_fibres() -> None:
    cutting = Cutting(CuttingSettings(distortion_um=200.0, distortion_scale_um=1500.0), seed=5)
    fine = Grid((0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (150, 150))
    bend, slopes = cutting.bend_um(2, fine), cutting.bend_slopes(2, fine)
    assert bend is not None
    assert slopes is not None
    np.testing.assert_allclose(slopes[:, 0, 1:-1], (bend[:, 2:] - bend[:, :-2]) / 4, atol=1e-3)
    # Fibres along x are level lines of the tissue's y, which in the picture are level lines of y + bend.
    axes = bent_axes(np.broadcast_to([1.0, 0.0, 0.0], (*fine.shape, 3)), np.eye(2)[:, :, None, None] + slopes)
    across = fine.coordinates()[1] + bend[1]
    by_x, by_y = np.gradient(across, 2.0)
    along = axes[..., 0] * by_x + axes[..., 1] * by_y
    assert np.abs(along[2:-2, 2:-2]).max() < 1e-3
    assert np.degrees(np.abs(np.arctan2(axes[..., 1], axes[..., 0]))).max() > 2


def test_of_an_incomplete_slice_only_the_first_columns_are_imaged_and_the_truth_says_so(tmp_path: Path) -> None:
    made = simulator(incomplete=(2,), incomplete_share=0.5)
    tiles = {m.mosaic_id: len(made.tiles_of(m)) for m in made.mosaics()}
    assert tiles == {1: 4, 2: 4, 3: 2, 4: 2}
    assert len(made.tiles()) == 12
    write_truth(made, tmp_path)
    truth = Truth.load(tmp_path)
    assert {m: len(mosaic.positions) for m, mosaic in truth.mosaics.items()} == tiles
    assert [entry["covered_share"] for entry in truth.slices] == [1.0, 0.5]
    assert {t["column"] for t in truth.mosaics[3].entry["tiles"]} == {0}

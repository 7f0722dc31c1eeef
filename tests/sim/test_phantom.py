"""The tissue: the same wherever it is looked at from, and varied as promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opticstream.model.errors import CalibrationError
from opticstream.model.ids import MosaicId, SliceId
from opticstream.sim.fields import Grid, LineTexture, SmoothField
from opticstream.sim.phantom import Region, Sample
from opticstream.sim.settings import ImageFibres, PhantomSettings, SampleSettings
from opticstream.sim.tiles import TileSimulator
from opticstream.testing.small_phantom import PLAIN_SAMPLE, small_project_config


def sample_of(settings_: SampleSettings, *, seed: int = 3, extent_um: tuple[float, float] = (4000.0, 3000.0)) -> Sample:
    return Sample(
        PhantomSettings(seed=seed, sample=settings_),
        extent_um=extent_um,
        corners_um=dict.fromkeys(settings_.blank_corners, (600.0, 500.0)),
        slice_thickness_um=300.0,
        depth_step_um=2.5,
    )


def grid(width: int = 200, height: int = 150, *, origin: tuple[float, float] = (0.0, 0.0), step: float = 20.0) -> Grid:
    return Grid(origin, (step, 0.0), (0.0, step), (width, height))


def test_a_field_has_mean_zero_and_variance_one() -> None:
    values = [SmoothField(np.random.default_rng(s), 300.0).on(grid(60, 60, step=100.0)) for s in range(12)]
    assert np.mean(values) == pytest.approx(0.0, abs=0.05)
    assert np.var(values) == pytest.approx(1.0, abs=0.1)
    lines = LineTexture(np.random.default_rng(1), 70.0)(np.arange(0, 50_000.0, 5.0))
    assert lines.std() == pytest.approx(1.0, abs=0.05)


@settings(max_examples=20, deadline=None)
@given(x=st.integers(-50, 300), y=st.integers(-50, 300), turn=st.floats(-0.5, 0.5), z=st.floats(0, 500))
def test_a_field_is_the_same_from_every_grid(x: int, y: int, turn: float, z: float) -> None:
    field = SmoothField(np.random.default_rng(4), 400.0, z_scale_um=300.0)
    c, s = np.cos(turn), np.sin(turn)
    turned = Grid((0.0, 0.0), (10 * c, 10 * s), (-10 * s, 10 * c), (20, 30))
    gx, gy = turned.coordinates()
    one = Grid((float(gx[7, 11]), float(gy[7, 11])), (1.0, 0.0), (0.0, 1.0), (1, 1))
    assert field.on(one, z)[0, 0] == pytest.approx(field.on(turned, z)[7, 11], abs=1e-9)
    there = Grid((float(x), float(y)), (1e-3, 0.0), (0.0, 1e-3), (2, 2))
    values, (gradient_x, gradient_y) = field.on(there, z), field.gradient_on(there, z)
    assert (values[1, 0] - values[0, 0]) / 1e-3 == pytest.approx(gradient_x[0, 0], abs=1e-6)
    assert (values[0, 1] - values[0, 0]) / 1e-3 == pytest.approx(gradient_y[0, 0], abs=1e-6)


def test_two_tiles_see_the_same_tissue_where_they_overlap() -> None:
    sample = sample_of(SampleSettings())
    left, right = sample.tissue(grid(100), 0.0), sample.tissue(grid(100, origin=(60 * 20.0, 0.0)), 0.0)
    for name in ("axis", "birefringence", "scattering", "region"):
        assert np.allclose(getattr(left, name)[60:], getattr(right, name)[:40], atol=1e-9), name
    a, b = sample.face(grid(100), 2), sample.face(grid(100, origin=(60 * 20.0, 0.0)), 2)
    assert np.allclose(a.height_px[60:], b.height_px[:40])


def test_there_is_white_and_grey_matter_with_a_sharp_border_and_isotropic_tissue() -> None:
    tissue = sample_of(SampleSettings(isotropic_fraction=0.1, white_fraction=0.6)).tissue(grid(), 0.0)
    shares = [np.mean(tissue.region == r) for r in (Region.GREY, Region.WHITE, Region.ISOTROPIC)]
    assert min(shares) > 0.02
    assert (
        tissue.birefringence[tissue.region == Region.WHITE].min()
        > tissue.birefringence[tissue.region == Region.GREY].max() * 2
    )
    assert np.all(tissue.birefringence[tissue.region == Region.ISOTROPIC] == 0)
    assert np.all(tissue.birefringence[tissue.region == Region.OUTSIDE] == 0)
    assert np.all(tissue.scattering[tissue.region == Region.OUTSIDE] == 0)


def test_axes_are_unit_vectors_of_every_inclination_up_to_the_limit() -> None:
    axes = [sample_of(SampleSettings(), seed=s).tissue(grid(step=60.0), 0.0).axis for s in range(4)]
    assert np.allclose(np.linalg.norm(axes, axis=-1), 1)
    steep = np.abs(np.rad2deg(np.arcsin(np.array(axes)[..., 2])))
    assert steep.max() <= 80.0
    shares, _ = np.histogram(steep, bins=[0, 20, 40, 60, 80])
    assert (shares / steep.size).min() > 0.12


def test_bundles_interleave_where_they_cross() -> None:
    tissue = sample_of(SampleSettings()).tissue(grid(), 0.0)
    angle = np.rad2deg(np.arctan2(tissue.axis[..., 1], tissue.axis[..., 0]))
    step = np.abs((np.diff(angle, axis=0) + 90) % 180 - 90)
    both = tissue.crossing[1:] & tissue.crossing[:-1]
    assert 0.03 < tissue.crossing.mean() < 0.2
    assert np.mean(step[both] > 30) > 0.05
    assert np.mean(step[both] > 30) > 3 * np.mean(step[~both] > 30)


def test_the_texture_runs_along_the_fibres() -> None:
    tissue = sample_of(SampleSettings(white_fraction=1.0)).tissue(grid(300, 250, step=5.0), 0.0)
    level = 10 * np.log10(np.where(tissue.scattering > 0, tissue.scattering, 1.0))
    gx, gy = np.gradient(level)
    direction = tissue.axis[..., :2] / np.linalg.norm(tissue.axis[..., :2], axis=-1, keepdims=True)
    where = (tissue.region == Region.WHITE) & ~tissue.crossing
    along = (gx * direction[..., 0] + gy * direction[..., 1])[where]
    across = (gy * direction[..., 0] - gx * direction[..., 1])[where]
    assert np.median(np.abs(across)) > 1.5 * np.median(np.abs(along))


def test_columnar_tissue_changes_between_slices_but_not_along_an_a_line() -> None:
    simulator = TileSimulator(small_project_config(), PhantomSettings())
    placement = simulator.stage.placement(MosaicId(1))
    assert simulator.layer_depths_um() == [0.0]
    one, two = (simulator.look(placement, 0, s, placement.grid((0, 0), (24, 20))) for s in (1, 2))
    assert not np.allclose(one.apparent_angle, two.apparent_angle)


def test_two_corner_tiles_of_every_mosaic_are_blank_and_no_other_tile_is() -> None:
    from opticstream.sim.demo import demo_config, demo_phantom

    simulator = TileSimulator(demo_config(), demo_phantom())
    for mosaic in simulator.mosaics():
        placement = simulator.stage.placement(mosaic)
        index = simulator.layout.illumination_index(mosaic)
        shares = []
        for tile in simulator.layout.tiles(mosaic):
            there = placement.grid(simulator.stage.position_px(tile), simulator.scan.tile_shape(index))
            shares.append(float(simulator.sample.inside(there, simulator.sample.face_depth_um(1)).mean()))
        assert [n for n, share in enumerate(shares, start=1) if share == 0] == [1, 3]
        assert sorted(shares)[2] > 0.2


def test_the_surface_slopes_and_waves_and_the_blade_leaves_other_waves_in_every_slice() -> None:
    sample = sample_of(SampleSettings(surface_slope_px_per_mm=(4.0, 0.0), surface_wave_px=2.0))
    heights = [sample.face(grid(), s).height_px for s in (1, 2)]
    slope = np.polyfit(np.arange(200) * 0.02, heights[0].mean(axis=1), 1)[0]
    assert slope == pytest.approx(4.0, abs=1.5)
    assert 1.0 < (heights[0] - heights[1]).std() < 5.0


def test_an_ellipse_has_tissue_inside_only() -> None:
    tissue = sample_of(SampleSettings(outline="ellipse")).tissue(grid(), 0.0)
    inside = tissue.region > 0
    assert inside[100, 75]
    assert not inside[0, 0]
    assert inside.mean() == pytest.approx(np.pi / 4, abs=0.05)


@pytest.mark.parametrize("suffix", ["", ".npy"])
def test_fibre_directions_come_from_an_image(shared_data: Path, tmp_path: Path, suffix: str) -> None:
    import tifffile

    folder = shared_data / "fibre_directions"
    image = tifffile.imread(folder / "cluster_dir_1.tiff")
    name = folder / "cluster_dir_1.tiff"
    if suffix:
        name = tmp_path / "directions.npy"
        np.save(name, image)
    fibres = ImageFibres(directions_file=name, mask_file=folder / "cluster_avg.tiff", pixel_um=20.0)
    settings_ = PLAIN_SAMPLE.model_copy(update={"fibres": fibres, "inclination_max_deg": 0.0})
    tissue = sample_of(settings_).tissue(Grid((10.0, 10.0), (20.0, 0), (0, 20.0), image.shape[::-1]), 0.0)
    known = (image >= 0) & (tifffile.imread(folder / "cluster_avg.tiff") > 0)
    upright = np.flipud(known).T  # rows of an image run down, y runs up
    assert np.array_equal(tissue.region == Region.WHITE, upright)
    angle = np.rad2deg(np.arctan2(tissue.axis[..., 1], tissue.axis[..., 0])) % 180
    difference = np.abs((angle - np.flipud(image).T + 90) % 180 - 90)
    assert difference[upright].max() < 1e-4


def test_direction_images_of_different_size_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5)))
    np.save(tmp_path / "b.npy", np.zeros((4, 6)))
    fibres = ImageFibres(directions_file=tmp_path / "a.npy", mask_file=tmp_path / "b.npy")
    with pytest.raises(CalibrationError, match=r"mask_file holds \(6, 4\) pixels, directions_file holds \(5, 4\)"):
        sample_of(SampleSettings(fibres=fibres)).tissue(grid(), 0.0)


def test_every_slice_is_of_one_block() -> None:
    simulator = TileSimulator(small_project_config(), PhantomSettings(slices=3))
    assert [simulator.sample.face_depth_um(s) for s in (1, 2, 3)] == [0.0, 500.0, 1000.0]
    assert simulator.layout.slice_of(simulator.mosaics()[-1]) == SliceId(3)

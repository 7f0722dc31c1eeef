"""Quality figures of a tile: what they measure, and which of them flag it."""

from dataclasses import replace

import numpy as np
import pytest

from opticstream.config.processing import QualitySettings
from opticstream.stages.tile._quality import Saturation, TileFigures, figures_from_maps

GOOD = TileFigures(
    signal_db=75.0,
    noise_db=50.0,
    tissue_fraction=0.8,
    nan_fraction=0.0,
    saturated_fraction=0.0,
    surface_roughness_px=1.0,
    surface_confidence=0.8,
)


def maps(tissue_columns: int = 10):
    aip = np.full((10, 8), 50.0, np.float32)
    aip[:tissue_columns] = 70.0
    return {"aip": aip, "surfraw": np.tile(np.arange(10, dtype=np.float32)[:, None] * 2, (1, 8)), "biref": aip * 1e-5}


def test_a_good_tile_carries_no_flag():
    assert GOOD.flags(QualitySettings()) == ()


@pytest.mark.parametrize(
    ("figure", "value", "setting"),
    [
        ("saturated_fraction", 0.01, {}),
        ("surface_roughness_px", 30.0, {}),
        ("surface_confidence", 0.3, {}),
        ("nan_fraction", 0.2, {}),
        ("signal_db", 55.0, {"signal_db": 60.0}),
        ("tissue_fraction", 0.3, {"blank_fraction": 0.5}),
    ],
)
def test_each_figure_beyond_its_limit_flags_the_tile_and_names_the_setting(figure, value, setting):
    flags = replace(GOOD, **{figure: value}).flags(QualitySettings(**setting))
    name = "blank_fraction" if figure == "tissue_fraction" else figure
    assert len(flags) == 1
    assert f"processing.quality.{name}" in flags[0]
    assert GOOD.flags(QualitySettings(**setting)) == ()


def test_a_blank_tile_is_not_judged_by_what_it_shows_of_tissue():
    blank = replace(GOOD, tissue_fraction=0.01, surface_confidence=0.0, surface_roughness_px=300.0, nan_fraction=1.0)
    assert blank.flags(QualitySettings()) == ()
    assert "blank" in blank.flags(QualitySettings(blank_fraction=0.9))[0]


def test_figures_are_taken_over_tissue_only():
    made = maps(tissue_columns=6)
    made["surfraw"][6:] = np.random.default_rng(1).uniform(0, 900, (4, 8))
    made["biref"][0, :4] = np.nan  # 4 of 48
    made["biref"][8] = np.nan
    confidence = np.where(np.arange(10)[:, None] < 6, 0.9, 0.1) * np.ones((10, 8))
    figures = figures_from_maps(made, confidence.astype(np.float32), noise_db=50.0, saturated_fraction=0.0)
    assert figures.tissue_fraction == pytest.approx(0.6)
    assert figures.signal_db == pytest.approx(70.0)
    assert figures.surface_roughness_px == pytest.approx(2.0)
    assert figures.surface_confidence == pytest.approx(0.9)
    assert figures.nan_fraction == pytest.approx(4 / 48)


def test_without_tissue_the_level_is_that_of_everything_and_nothing_is_missed():
    figures = figures_from_maps(maps(0), np.zeros((10, 8), np.float32), noise_db=50.0, saturated_fraction=0.0)
    assert (figures.tissue_fraction, figures.signal_db) == (0.0, 50.0)
    assert (figures.nan_fraction, figures.surface_roughness_px, figures.surface_confidence) == (0.0, 0.0, 1.0)


def test_saturation_is_counted_at_the_cameras_full_scale_only():
    seen = Saturation()
    seen.add(np.array([1000, 1023, 1023, 5], np.uint16))  # full scale of 10 bits ...
    assert seen.fraction == pytest.approx(0.5)
    seen.add(np.array([4095, 7, 8, 9], np.uint16))  # ... until a 12-bit count shows that it was none
    assert seen.fraction == pytest.approx(1 / 8)
    seen.add(np.array([5000, 7, 8, 9], np.uint16))
    assert seen.fraction == 0.0


@pytest.mark.parametrize(
    ("figures", "grade"),
    [
        ({}, "ok"),
        ({"saturated_fraction": 0.002}, "look"),
        ({"saturated_fraction": 0.02}, "bad"),
        ({"surface_confidence": 0.4}, "look"),
        ({"surface_confidence": 0.0, "nan_fraction": 0.02}, "look"),
        ({"surface_confidence": 0.4, "nan_fraction": 0.2}, "bad"),
        ({"surface_roughness_px": 25.0}, "look"),
    ],
)
def test_a_figure_far_beyond_its_limit_makes_the_tile_bad(figures, grade):
    verdict = replace(GOOD, **figures).verdict(QualitySettings())
    assert verdict.grade == grade
    assert len(verdict.reasons) == len(figures)
    assert replace(GOOD, **figures).verdict(QualitySettings(bad_factor=1e6)).grade in ("ok", "look")

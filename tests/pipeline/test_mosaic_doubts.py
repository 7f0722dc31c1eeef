"""What people are told to look at before they trust a mosaic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opticstream.config.processing import QualitySettings
from opticstream.io.tilemap import TileMap
from opticstream.pipeline.mosaics import quality_flags_of_mosaic, verdict_of_mosaic
from opticstream.pipeline.slices import verdict_of_slice
from opticstream.stages.mosaic import CoordinatesResult, FocusResult, MosaicResult, Verdict

SOUND = MosaicResult({}, (100, 100), tissue_fraction=0.5)
GOOD = Verdict("good", 0.1, 0.3, 12, 12, 9, 0, 1, 0.1, (1.0, 1.0))


def coordinates(verdict: Verdict | None) -> CoordinatesResult:
    tilemap = TileMap("normal", (10, 10), (1, 1), ())
    return CoordinatesResult(Path("tilemap-normal.j2"), tilemap, verdict is None, verdict=verdict)


@pytest.mark.parametrize("verdict", [GOOD, None], ids=["measured here", "template of the first slice"])
def test_a_sound_mosaic_raises_none(verdict):
    assert quality_flags_of_mosaic(coordinates(verdict), SOUND) == []
    assert (
        quality_flags_of_mosaic(coordinates(verdict), replace(SOUND, tissue_fraction=float("nan"))) == []
    )  # no mask wanted


def test_doubtful_positions_lost_tiles_and_an_empty_mask_are_told_together():
    stitched = replace(SOUND, missing={"aip": (7, 3), "ret": (7,)}, tissue_fraction=0.0)
    positions, tiles, mask = quality_flags_of_mosaic(coordinates(replace(GOOD, grade="doubtful")), stitched)
    assert positions.startswith("coordinates are doubtful: 12 of 12 links hold")
    assert tiles == "stitched without tiles 3, 7"
    assert "processing.mask.threshold_db" in mask


def test_a_pattern_in_the_overlaps_is_worth_a_look_though_the_positions_are_good():
    pattern = "overlaps disagree in a pattern: the field of view is distorted by up to 0.6 px"
    verdict = verdict_of_mosaic(coordinates(replace(GOOD, pattern=pattern)), SOUND)
    assert verdict.grade == "look"
    assert verdict.reasons == (f"coordinates: {pattern}",)


def focus(before: float, after: float, *, reused: bool = False) -> FocusResult:
    return FocusResult(Path("focus-normal.nii"), reused, before, after)


@pytest.mark.parametrize(
    ("changes", "grade", "words"),
    [
        ({"missing": {"aip": (7,)}}, "look", "stitched without tiles 7"),
        ({"missing": {"aip": (7, 8)}}, "bad", "stitched without tiles 7, 8 (20%, limit 2%; processing.quality.missing"),
        ({"seam_ncc": 0.1}, "look", "neighbouring tiles correlate with 0.10, limit 0.20 (processing.quality.seam_ncc)"),
        ({"figures": {"seam_ncc_of": {"ori": -0.4}}}, "look", "ori does not fit the other maps: neighbouring tiles"),
        ({"figures": {"seam_ncc_of": {"ori": 0.4}}}, "ok", None),
        ({"tissue_fraction": 0.0}, "bad", "the mask keeps nothing"),
        ({"tissue_fraction": 0.005}, "look", "the mask keeps 0.5% of the mosaic, limit 1.0%"),
        ({"figures": {"mask_contrast_db": 1.0}}, "look", "the mask divides levels that differ by 1.0 dB"),
        ({"figures": {"mask_contrast_db": None, "mask_parts": 3}}, "ok", None),
        ({"figures": {"mask_parts": 21}}, "look", "the mask has 21 parts, limit 20"),
    ],
)
def test_maps_and_mask_are_judged_with_a_reason_that_names_figure_and_setting(changes, grade, words):
    verdict = verdict_of_mosaic(coordinates(GOOD), replace(SOUND, **changes), tiles=10)
    assert verdict.grade == grade
    assert [reason for reason in verdict.reasons if words is None or words not in reason] == []
    assert bool(verdict.reasons) == (words is not None)


@pytest.mark.parametrize(
    ("found", "grade"),
    [
        (focus(5.0, 1.0), "ok"),
        (focus(float("nan"), float("nan")), "ok"),
        (focus(2.0, 3.0), "look"),
        (focus(40.0, 20.0), "look"),
        (focus(90.0, 60.0), "bad"),
        (focus(90.0, 60.0, reused=True), "ok"),
    ],
)
def test_a_focus_map_that_is_found_is_judged_once(found, grade):
    verdict = verdict_of_mosaic(coordinates(GOOD), SOUND, focus=found)
    assert verdict.grade == grade
    assert all(reason.startswith("focus: the surfaces") for reason in verdict.reasons)


def test_limits_come_from_the_settings():
    limits = QualitySettings(mask_coverage_most=0.4)
    (reason,) = verdict_of_mosaic(coordinates(GOOD), SOUND, limits=limits).reasons
    assert reason.startswith("the mask keeps 50.0% of the mosaic, at most 40.0% are expected")


@pytest.mark.parametrize(
    ("axis", "grade", "words"),
    [
        ({"median_uncertainty_deg": 5.0, "share_of_pixels_with_axis": 0.6}, "ok", ""),
        ({"median_uncertainty_deg": 25.0, "share_of_pixels_with_axis": 0.6}, "look", "median uncertainty 25.0 deg"),
        ({"median_uncertainty_deg": None, "share_of_pixels_with_axis": 0.03}, "look", "3.0% of the tissue has one"),
        ({"median_uncertainty_deg": None, "share_of_pixels_with_axis": 0.0}, "bad", "0.0% of the tissue has one"),
    ],
)
def test_the_fibre_axes_of_a_slice_are_judged(axis, grade, words):
    verdict = verdict_of_slice((), {"axis": axis}, QualitySettings())
    assert verdict.grade == grade
    assert words in " ".join(verdict.reasons)


def test_an_illumination_that_was_left_out_is_to_be_looked_at():
    verdict = verdict_of_slice(["tilted: too little overlap"], {}, QualitySettings())
    assert (verdict.grade, verdict.reasons) == ("look", ("tilted: too little overlap",))

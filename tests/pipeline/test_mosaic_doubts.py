"""What people are told to look at before they trust a mosaic."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opticstream.io.tilemap import TileMap
from opticstream.pipeline.mosaics import quality_flags_of_mosaic
from opticstream.stages.mosaic import CoordinatesResult, MosaicResult, Verdict

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

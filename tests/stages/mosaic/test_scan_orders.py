"""A mosaic comes out the same however the stage walked through it."""

from __future__ import annotations

import numpy as np
import pytest

from opticstream.config.scan import IlluminationSettings, ScanSettings
from opticstream.io.nifti import write_nifti
from opticstream.io.paths import tile_product_name
from opticstream.model.ids import MosaicId, TileId
from opticstream.model.layout import ScanPattern, ScanStart
from opticstream.stages.mosaic._find_coordinates import measured_positions
from opticstream.stages.mosaic._tiles import tiles_of_mosaic
from opticstream.testing.synthetic_mosaic import position_errors, synthetic_mosaic

COLUMNS, ROWS, SHAPE = 3, 4, (96, 84)


@pytest.fixture(scope="module")
def truth():
    return synthetic_mosaic(
        columns=COLUMNS, rows=ROWS, tile_shape=SHAPE, overlap=0.25, blank_fraction=0, speckle=0.2, contrast=0.5,
        jitter_px=1.0, step_error_px=1.5, seed=1,
    )  # fmt: skip


def walk(pattern: ScanPattern, start: ScanStart):
    """Yield the cells in the order in which a stage visits them, step by step."""
    rightwards, upwards = "right" in start.value, "up" in start.value
    columns = list(range(COLUMNS)) if rightwards else list(range(COLUMNS))[::-1]
    rows = list(range(ROWS)) if upwards else list(range(ROWS))[::-1]
    by_columns = "column" in pattern.value
    for turn, slow in enumerate(columns if by_columns else rows):
        line = rows if by_columns else columns
        for fast in line[::-1] if "snake" in pattern.value and turn % 2 else line:
            yield (slow, fast) if by_columns else (fast, slow)


@pytest.mark.parametrize("start", list(ScanStart))
@pytest.mark.parametrize("pattern", list(ScanPattern))
def test_every_scan_order_and_corner_gives_the_true_positions(truth, tmp_path, pattern, start):
    index = {tuple(cell): k for k, cell in enumerate(truth.cells.tolist())}
    order = [index[cell] for cell in walk(pattern, start)]
    for number, k in enumerate(order, start=1):
        level_db = (60 + 20 * np.log10(np.maximum(truth.tiles[k], 1e-3))).astype(np.float32)
        write_nifti(tmp_path / tile_product_name(TileId(1, number), "aip"), level_db)
    by_columns = "column" in pattern.value
    scan = ScanSettings(
        b_lines=SHAPE[1],
        grid_size_y=ROWS,
        tile_overlap=25,
        scan_order=pattern,
        scan_start=start,
        illuminations=(IlluminationSettings(name="normal", columns=COLUMNS, a_lines=SHAPE[0]),),
    )
    tiles = tiles_of_mosaic(MosaicId(1), scan=scan, folder=tmp_path, modalities=("aip",))
    assert [tuple(cell) for cell in tiles.cells.tolist()] == list(walk(pattern, start))
    if "snake" in pattern.value:
        line = tiles.cells[:, 0 if by_columns else 1]
        assert np.array_equal(tiles.line_parity, line % 2 - 0.5)
    found, missing = measured_positions(tiles, modalities=("aip",), margin_px=12)
    assert missing == ()
    everywhere = np.ones(len(order), bool)
    assert position_errors(found.positions_px, truth.true_px[order], everywhere).max() < 0.8

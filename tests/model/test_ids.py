"""Ids and the arithmetic of an acquisition."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opticstream.model.ids import BatchId, MosaicId, SampleId, SliceId, TileId, item_from_key
from opticstream.model.layout import AcquisitionLayout, IlluminationLayout, ScanOrder, ScanPattern, ScanStart

numbers = st.integers(1, 10_000)
items = st.one_of(
    st.just(SampleId()),
    st.builds(SliceId, numbers),
    st.builds(MosaicId, numbers),
    st.builds(BatchId, numbers, numbers),
    st.builds(TileId, numbers, numbers),
)
layouts = st.builds(
    lambda grids, pattern, start: AcquisitionLayout(
        tuple(IlluminationLayout(f"i{k}", *grid) for k, grid in enumerate(grids)), ScanOrder(pattern, start)
    ),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    st.sampled_from(ScanPattern),
    st.sampled_from(ScanStart),
)


@given(items)
def test_a_key_names_its_item(item):
    assert item_from_key(item.key) == item


@pytest.mark.parametrize("key", ["", "tile-1", "mosaic-0", "slice-x", "mosaic-1/slice-2", "sample-1", "batch-003"])
def test_a_wrong_key_is_refused_with_the_key(key):
    with pytest.raises(ValueError, match="unknown item"):
        item_from_key(key)


@pytest.mark.parametrize("number", [0, -1, 1.0, True, "1"])
def test_ids_start_at_one(number):
    with pytest.raises(ValueError, match="whole number from 1 up"):
        SliceId(number)


@given(layouts, st.integers(1, 50))
def test_every_mosaic_belongs_to_one_slice_and_one_illumination(layout, slice_number):
    slice_id = SliceId(slice_number)
    for index, mosaic in enumerate(layout.mosaics(slice_id)):
        assert layout.slice_of(mosaic) == slice_id
        assert layout.illumination_index(mosaic) == index
        assert mosaic.mosaic_id == (slice_number - 1) * len(layout.illuminations) + index + 1


@given(layouts, st.integers(1, 9))
def test_batches_share_out_the_tiles_of_a_mosaic_by_columns(layout, mosaic_number):
    mosaic = MosaicId(mosaic_number)
    grid = layout.illumination_of(mosaic)
    tiles = [tile for batch in layout.batches(mosaic) for tile in layout.tiles(batch)]
    assert sorted(tiles) == sorted(layout.tiles(mosaic))
    for batch in layout.batches(mosaic):
        members = layout.tiles(batch)
        assert len(members) == grid.rows
        assert len({layout.grid_position(tile)[0] for tile in members}) == 1


@given(layouts, st.integers(1, 9))
def test_the_scan_visits_every_cell_once(layout, mosaic_number):
    mosaic = MosaicId(mosaic_number)
    grid = layout.illumination_of(mosaic)
    cells = {layout.grid_position(tile) for tile in layout.tiles(mosaic)}
    assert cells == {(c, r) for c in range(grid.columns) for r in range(grid.rows)}


@given(layouts, st.integers(1, 9))
def test_a_snake_moves_to_a_neighbour_each_time(layout, mosaic_number):
    if "snake" not in layout.scan_order.pattern:
        return
    cells = [layout.grid_position(tile) for tile in layout.tiles(MosaicId(mosaic_number))]
    assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in itertools.pairwise(cells))


@given(layouts, st.integers(1, 9), st.data())
def test_running_numbers_count_over_mosaics_without_gap(layout, mosaic_number, data):
    mosaic = MosaicId(mosaic_number)
    tile = data.draw(st.sampled_from(layout.tiles(mosaic)))
    assert layout.tile_from_running_number(layout.running_number(tile)) == tile
    first = TileId(mosaic_number + 1, 1)
    assert layout.running_number(first) == layout.running_number(layout.tiles(mosaic)[-1]) + 1

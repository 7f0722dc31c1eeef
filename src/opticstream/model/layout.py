"""Relations between ids: the tiles of a batch, the mosaics of a slice, the position of a tile in the grid.

The only place where ids are computed from ids. A batch is always one column of the grid: with a scan by columns its
tiles are consecutive; with a scan by rows they are not, which makes no difference to later stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from opticstream.model.ids import BatchId, MosaicId, SliceId, TileId


class ScanPattern(StrEnum):
    """Order in which the stage visits the grid (names as in Fiji's Grid/Collection stitching)."""

    SNAKE_BY_COLUMNS = "snake by columns"
    SNAKE_BY_ROWS = "snake by rows"
    COLUMN_BY_COLUMN = "column by column"
    ROW_BY_ROW = "row by row"


class ScanStart(StrEnum):
    """Directions in which the stage moves: first along x, then along y. ``up`` is towards +y, ``right`` towards +x."""

    RIGHT_UP = "right & up"
    RIGHT_DOWN = "right & down"
    LEFT_UP = "left & up"
    LEFT_DOWN = "left & down"


@dataclass(frozen=True, slots=True)
class ScanOrder:
    """Order in which the tiles of a grid are acquired."""

    pattern: ScanPattern = ScanPattern.SNAKE_BY_COLUMNS
    start: ScanStart = ScanStart.RIGHT_UP

    def grid_position(self, tile_id: int, columns: int, rows: int) -> tuple[int, int]:
        """Return (column, row) of a tile, both 0-based; column grows along +x and row along +y.

        Examples
        --------
        >>> [ScanOrder().grid_position(tile, columns=2, rows=3) for tile in range(1, 7)]
        [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
        """
        if not 1 <= tile_id <= columns * rows:
            raise ValueError(f"tile {tile_id} is outside a grid of {columns} x {rows} tiles")
        by_columns = self.pattern in (ScanPattern.SNAKE_BY_COLUMNS, ScanPattern.COLUMN_BY_COLUMN)
        slow, fast = divmod(tile_id - 1, rows if by_columns else columns)
        if self.pattern in (ScanPattern.SNAKE_BY_COLUMNS, ScanPattern.SNAKE_BY_ROWS) and slow % 2:
            fast = (rows if by_columns else columns) - 1 - fast
        column, row = (slow, fast) if by_columns else (fast, slow)
        if self.start in (ScanStart.LEFT_UP, ScanStart.LEFT_DOWN):
            column = columns - 1 - column
        if self.start in (ScanStart.RIGHT_DOWN, ScanStart.LEFT_DOWN):
            row = rows - 1 - row
        return column, row


def _batch_number(order: ScanOrder, tile_id: int, columns: int, rows: int) -> int:
    column, _ = order.grid_position(tile_id, columns, rows)
    backwards = order.start in (ScanStart.LEFT_UP, ScanStart.LEFT_DOWN)
    return columns - column if backwards else column + 1


@lru_cache(maxsize=64)
def _tiles_by_batch(order: ScanOrder, columns: int, rows: int) -> tuple[tuple[int, ...], ...]:
    """Return the tile numbers of every column; cached, because rules use them often."""
    tiles: list[list[int]] = [[] for _ in range(columns)]
    for tile_id in range(1, columns * rows + 1):
        tiles[_batch_number(order, tile_id, columns, rows) - 1].append(tile_id)
    return tuple(map(tuple, tiles))


@dataclass(frozen=True, slots=True)
class IlluminationLayout:
    """Grid of one illumination."""

    name: str
    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        return self.columns * self.rows


@dataclass(frozen=True, slots=True)
class AcquisitionLayout:
    """Grids of all illuminations and the order of the scan.

    Examples
    --------
    >>> layout = AcquisitionLayout((IlluminationLayout("normal", 4, 3), IlluminationLayout("tilted", 5, 3)))
    >>> layout.slice_of(MosaicId(4)), layout.illumination_of(MosaicId(4)).name
    (SliceId(slice_id=2), 'tilted')
    >>> layout.batch_of(TileId(4, 5))
    BatchId(mosaic_id=4, batch_id=2)
    """

    illuminations: tuple[IlluminationLayout, ...]
    scan_order: ScanOrder = ScanOrder()

    def __post_init__(self) -> None:
        if not self.illuminations:
            raise ValueError("an acquisition needs at least one illumination")

    def mosaic(self, slice_id: SliceId, illumination: int) -> MosaicId:
        """Return the mosaic of the `illumination`-th (0-based) illumination of a slice."""
        if not 0 <= illumination < len(self.illuminations):
            raise ValueError(f"illumination {illumination} is outside 0..{len(self.illuminations) - 1}")
        return MosaicId((slice_id.slice_id - 1) * len(self.illuminations) + illumination + 1)

    def illumination_index(self, mosaic: MosaicId) -> int:
        """Return the 0-based index of the mosaic's illumination."""
        return (mosaic.mosaic_id - 1) % len(self.illuminations)

    def illumination_of(self, mosaic: MosaicId) -> IlluminationLayout:
        return self.illuminations[self.illumination_index(mosaic)]

    def slice_of(self, mosaic: MosaicId) -> SliceId:
        return SliceId((mosaic.mosaic_id - 1) // len(self.illuminations) + 1)

    def mosaics(self, slice_id: SliceId) -> tuple[MosaicId, ...]:
        """Return the mosaics of a slice, in the order of the illuminations."""
        return tuple(self.mosaic(slice_id, k) for k in range(len(self.illuminations)))

    def batches(self, mosaic: MosaicId) -> tuple[BatchId, ...]:
        return tuple(BatchId(mosaic.mosaic_id, b + 1) for b in range(self.illumination_of(mosaic).columns))

    def tiles(self, item: MosaicId | BatchId) -> tuple[TileId, ...]:
        """Return the tiles of a mosaic or of a batch, in the order of acquisition."""
        if isinstance(item, MosaicId):
            return tuple(TileId(item.mosaic_id, t + 1) for t in range(self.illumination_of(item).tiles))
        grid = self.illumination_of(item.mosaic)
        if item.batch_id > grid.columns:
            return ()
        numbers = _tiles_by_batch(self.scan_order, grid.columns, grid.rows)[item.batch_id - 1]
        return tuple(TileId(item.mosaic_id, number) for number in numbers)

    def grid_position(self, tile: TileId) -> tuple[int, int]:
        """Return (column, row) of a tile, 0-based, column along +x and row along +y."""
        grid = self.illumination_of(tile.mosaic)
        return self.scan_order.grid_position(tile.tile_id, grid.columns, grid.rows)

    def batch_of(self, tile: TileId) -> BatchId:
        """Return the batch (column, numbered along the scan) that holds a tile."""
        grid = self.illumination_of(tile.mosaic)
        return BatchId(tile.mosaic_id, _batch_number(self.scan_order, tile.tile_id, grid.columns, grid.rows))

    def running_number(self, tile: TileId) -> int:
        """Return the tile's 1-based number counted over all mosaics and slices."""
        whole, part = divmod(tile.mosaic_id - 1, len(self.illuminations))
        per_slice = sum(i.tiles for i in self.illuminations)
        return whole * per_slice + sum(i.tiles for i in self.illuminations[:part]) + tile.tile_id

    def tile_from_running_number(self, number: int, /) -> TileId:
        """Return the tile that has the given running number; the inverse of `running_number`."""
        if number < 1:
            raise ValueError(f"running tile numbers start at 1, got {number}")
        per_slice = sum(i.tiles for i in self.illuminations)
        whole, rest = divmod(number - 1, per_slice)
        for index, illumination in enumerate(self.illuminations):
            if rest < illumination.tiles:
                return TileId(whole * len(self.illuminations) + index + 1, rest + 1)
            rest -= illumination.tiles
        raise AssertionError("unreachable")

"""Positions by Fiji: pictures of the tiles for it, its table of positions, and the stage for what it placed badly."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from opticstream.compute.stitching import (
    CheckedPositions,
    FilteredTiles,
    empty_tiles,
    positions_held_against_stage,
)
from opticstream.config import ScanSettings
from opticstream.config.coordinates import FijiCoordinates
from opticstream.engines import PICTURE, FijiGrid, FijiProgram, fiji_positions, fiji_scratch
from opticstream.io.tileconfig import ConfiguredTile
from opticstream.model.errors import ProcessingError
from opticstream.model.ids import MosaicId
from opticstream.stages.mosaic._tiles import MosaicTiles

_NOISE = 1e-3


def positions_by_fiji(
    tiles: MosaicTiles,
    mosaic: MosaicId,
    /,
    *,
    scan: ScanSettings,
    settings: FijiCoordinates,
    program: FijiProgram,
    modality: str,
    blank: NDArray[np.bool_],
) -> CheckedPositions:
    """Return the positions that Fiji finds for the tiles of a mosaic, held against the stage.

    Parameters
    ----------
    tiles, mosaic
        The tiles, and the mosaic that they belong to.
    scan : ScanSettings
        Grid, scan order and overlap.
    settings : FijiCoordinates
        Fiji's thresholds.
    program : FijiProgram
        How Fiji is started.
    modality : str
        Map that Fiji compares.
    blank : ndarray of bool, shape (tiles,)
        Tiles without a file or without tissue; they are placed by the stage.

    Raises
    ------
    EngineError, ConfigurationError, ProcessingError
        Fiji failed, cannot be started, or left something else than positions.
    """
    grid, nominal_px = _grid(tiles, mosaic, scan, settings)
    with fiji_scratch() as name:
        folder = Path(name)
        random = np.random.default_rng(0)
        for index, number in enumerate(tiles.numbers):
            image = None if blank[index] else tiles.read(number, modality)
            if image is None or not np.isfinite(image).any():
                # Fiji takes equal overlaps, such as two of zeros, for a perfect link; in noise it finds none.
                image = random.normal(scale=_NOISE, size=tiles.tile_shape).astype(np.float32)
            lowest = np.float32(image[np.isfinite(image)].min())
            whole = np.where(np.isfinite(image), image, lowest)
            tifffile.imwrite(folder / PICTURE.format(number=number), np.ascontiguousarray(whole.T, np.float32))
        nominal = [
            ConfiguredTile(PICTURE.format(number=number), (float(x), float(y)))
            for number, (x, y) in zip(tiles.numbers, nominal_px, strict=True)
        ]
        found = fiji_positions(program, folder, settings, grid=grid, nominal=nominal, label=tiles.label)
    given = _by_number(found, tiles)
    return positions_held_against_stage(
        given,
        tiles.nominal_px,
        tile_shape=tiles.tile_shape,
        margin_px=settings.margin_px,
        usable=~blank,
        line_parity=tiles.line_parity,
    )


def blank_tiles(filtered: FilteredTiles, missing: tuple[int, ...], tiles: MosaicTiles, /) -> NDArray[np.bool_]:
    """Return which tiles have no file or no tissue, shape (tiles,)."""
    lost = np.isin(np.asarray(tiles.numbers), np.asarray(missing, int))
    return np.asarray(empty_tiles(filtered) | lost, bool)


def _grid(
    tiles: MosaicTiles, mosaic: MosaicId, scan: ScanSettings, settings: FijiCoordinates
) -> tuple[FijiGrid | None, NDArray[np.float64]]:
    """Return the grid as Fiji is told, None where its one overlap does not describe it; and the nominal positions."""
    overlap_px = scan.overlap_px(scan.layout.illumination_index(mosaic))
    percents = [100 * part / size for part, size in zip(overlap_px, tiles.tile_shape, strict=True)]
    nominal_px = tiles.nominal_px
    if settings.overlap_percent is not None:
        percents = [settings.overlap_percent] * 2
        nominal_px = tiles.cells * (np.asarray(tiles.tile_shape) * (1 - settings.overlap_percent / 100))
    columns, rows = tiles.grid
    if abs(percents[0] - percents[1]) > 1e-6:
        return None, nominal_px
    return FijiGrid(columns, rows, scan.scan_order, scan.scan_start, round(percents[0], 6)), nominal_px


def _by_number(found: tuple[ConfiguredTile, ...], tiles: MosaicTiles) -> NDArray[np.float64]:
    """Return Fiji's positions in the order of the tiles, shape (tiles, 2); NaN for those that it left out."""
    given = np.full((len(tiles.numbers), 2), np.nan)
    index = {number: k for k, number in enumerate(tiles.numbers)}
    for tile in found:
        match = re.fullmatch(r"tile_(\d+)\.tif", Path(tile.name).name)
        if match is None or int(match[1]) not in index:
            raise ProcessingError(f"{tiles.label}: Fiji gave a position for {tile.name!r}, which is none of the tiles")
        given[index[int(match[1])]] = tile.position_px[:2]
    return given

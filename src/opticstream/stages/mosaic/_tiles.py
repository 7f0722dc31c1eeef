"""The tiles of one mosaic as stitching sees them: numbers, cells of the grid, files that are there and that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import Distortion
from opticstream.config import ScanSettings
from opticstream.io.images import read_image
from opticstream.io.paths import tile_product_name
from opticstream.io.tileconfig import read_tile_configuration, tile_path
from opticstream.io.tilemap import TileMap
from opticstream.model.errors import InputError, MissingInputError, TileSizeError
from opticstream.model.ids import MosaicId, TileId
from opticstream.model.layout import ScanPattern
from opticstream.model.modalities import described

if TYPE_CHECKING:
    from opticstream.compute.stitching.volume import Undistortion


@dataclass(frozen=True)
class MosaicTiles:
    """Tiles of one mosaic on disk.

    Attributes
    ----------
    label : str
        What messages call the mosaic.
    numbers : tuple of int
        Tile numbers, ascending.
    nominal_px : ndarray, shape (tiles, 2)
        Where the stage was sent.
    tile_shape : tuple of int
        Size (x, y) of a tile.
    files : mapping
        By modality, the files by tile number; only those that exist.
    cells : ndarray of int, shape (tiles, 2), optional
        Column and row of every tile.
    line_parity : ndarray, shape (tiles,), optional
        -0.5 or +0.5 by direction of travel, for a snake scan.
    illumination : str
        Name of the illumination.
    grid : tuple of int
        Columns and rows.
    setting : str
        What gives the tiles' size: keys of the configuration, or the first tile.
    folder : Path, optional
        Where the files were looked for.
    pages_are_depth : bool
        Pages of TIFF files that do not say what they are are planes of a volume.
    distortion : Distortion, optional
        What tiles are freed of when they are read.
    """

    label: str
    numbers: tuple[int, ...]
    nominal_px: NDArray[np.float64]
    tile_shape: tuple[int, int]
    files: Mapping[str, Mapping[int, Path]]
    cells: NDArray[np.intp]
    line_parity: NDArray[np.float64] | None = None
    illumination: str = ""
    grid: tuple[int, int] = (0, 0)
    setting: str = ""
    folder: Path | None = None
    pages_are_depth: bool = False
    distortion: Distortion | None = None

    def freed_of(self, distortion: Distortion, /) -> MosaicTiles:
        """Return the same tiles, freed of a distortion when they are read."""
        return replace(self, distortion=distortion)

    def as_placed_by(self, tilemap: TileMap, /) -> MosaicTiles:
        """Return the same tiles, freed of the distortion that the tile map counts on."""
        terms = tilemap.distortion_px
        return self.freed_of(Distortion((terms[0], terms[1], terms[2]))) if terms else self

    @cached_property
    def undistortion(self) -> Undistortion | None:
        """How the tiles are resampled; None where they are taken as they are."""
        if self.distortion is None:
            return None
        from opticstream.compute.stitching.volume import undistortion

        return undistortion(self.distortion, self.tile_shape)

    def present(self, modality: str, /) -> Mapping[int, Path]:
        """Return the files of a modality by tile number."""
        return self.files.get(modality, {})

    def missing(self, modality: str, /) -> tuple[int, ...]:
        """Return the numbers of tiles that have no file of a modality."""
        present = self.present(modality)
        return tuple(n for n in self.numbers if n not in present)

    def require(self, modality: str, /) -> None:
        """Raise where no tile has a file of a modality."""
        if not self.present(modality):
            where = f" in {self.folder}" if self.folder else ""
            raise MissingInputError(
                f"{self.label}: none of its {len(self.numbers)} tiles has a file of {modality}{where}"
            )

    def read(self, number: int, modality: str, /) -> NDArray[np.float32] | None:
        """Return a tile's map (x, y), None where it has no file.

        Raises
        ------
        TileSizeError
            The file holds another size than the other tiles.
        """
        path = self.present(modality).get(number)
        if path is None:
            return None
        try:
            data = read_image(path, pages_are_depth=self.pages_are_depth)
        except MissingInputError:
            return None  # it was removed after the folder was listed
        if data.ndim == 3 and data.shape[:2] == self.tile_shape:
            # A volume stands for its mean over depth: tiles of a configuration file may be volumes.
            data = data.mean(axis=2, dtype=np.float32)
        if data.shape != self.tile_shape:
            raise TileSizeError(
                f"tile {number} of {self.label} ({path}) has shape {data.shape}, expected {self.tile_shape}"
                + (f" ({self.setting})" if self.setting else "")
            )
        image = np.asarray(data, np.float32)
        if self.undistortion is None:
            return image
        return self.undistortion.image(image, axial=described(modality).is_axial)


def tiles_of_mosaic(mosaic: MosaicId, /, *, scan: ScanSettings, folder: Path, modalities: Sequence[str]) -> MosaicTiles:
    """Return the tiles of a project's mosaic.

    Parameters
    ----------
    mosaic : MosaicId
        The mosaic.
    scan : ScanSettings
        Grid, overlap and scan order.
    folder : Path
        Where the products of its tiles lie (``mosaic-NN/processed``).
    modalities : sequence of str
        Products to look for.
    """
    layout = scan.layout
    index = layout.illumination_index(mosaic)
    grid = layout.illumination_of(mosaic)
    tile_shape = scan.tile_shape(index)
    overlap = scan.overlap_px(index)
    numbers = tuple(tile.tile_id for tile in layout.tiles(mosaic))
    cells = np.array([layout.grid_position(TileId(mosaic.mosaic_id, n)) for n in numbers], np.intp)
    step = np.array([tile_shape[0] - overlap[0], tile_shape[1] - overlap[1]])
    there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    files: dict[str, dict[int, Path]] = {}
    for modality in modalities:
        names = {n: tile_product_name(TileId(mosaic.mosaic_id, n), modality) for n in numbers}
        files[modality] = {n: folder / name for n, name in names.items() if name in there}
    parity = None
    if scan.scan_order in (ScanPattern.SNAKE_BY_COLUMNS, ScanPattern.SNAKE_BY_ROWS):
        line = cells[:, 0 if scan.scan_order is ScanPattern.SNAKE_BY_COLUMNS else 1]
        if len(set(line.tolist())) > 1:
            parity = np.asarray(line % 2 - 0.5, np.float64)
    return MosaicTiles(
        label=str(mosaic),
        numbers=numbers,
        nominal_px=cells * step,
        tile_shape=tile_shape,
        files=files,
        cells=cells,
        line_parity=parity,
        illumination=grid.name,
        grid=(grid.columns, grid.rows),
        setting=f"scan.illuminations[{index}].a_lines and scan.b_lines",
        folder=folder,
    )


def tiles_from_configuration(path: Path, /, *, modality: str = "image", one_depth: bool = False) -> MosaicTiles:
    """Return the tiles that a Fiji tile configuration lists, numbered from 1 in its order.

    Parameters
    ----------
    path : Path
        The configuration; positions along z are left out.
    modality : str
        What the tiles hold.
    one_depth : bool
        Refuse tiles that do not begin at the same depth.

    Raises
    ------
    InputError
        None of the tiles exists, they begin at different depths, or several have no place.
    """
    configured = read_tile_configuration(path)
    depths = [tile.position_px[2] for tile in configured if len(tile.position_px) > 2]
    if one_depth and depths and max(depths) - min(depths) >= 0.5:
        raise InputError(
            f"{path}: tiles lie at depths from {min(depths):g} to {max(depths):g} px; volumes are stitched side by "
            "side only, so all tiles must have the same z"
        )
    check_placed([(tile.name, tile.position_px) for tile in configured], str(path))
    positions = np.array([tile.position_px[:2] for tile in configured], float)
    files = {}
    shape: tuple[int, int] | None = None
    for number, tile in enumerate(configured, start=1):
        file = tile_path(path, tile.name)
        if not file.exists():
            continue
        files[number] = file
        if shape is None:
            data = read_image(file, pages_are_depth=one_depth)
            shape, example = (int(data.shape[0]), int(data.shape[1])), file.name
    if shape is None:
        raise MissingInputError(f"{path}: none of the {len(configured)} tiles that it lists exists in {path.parent}")
    cells = cells_from_positions(positions, shape)
    return MosaicTiles(
        label=str(path),
        numbers=tuple(range(1, len(configured) + 1)),
        nominal_px=positions,
        tile_shape=shape,
        files={modality: files},
        cells=cells,
        illumination=path.stem,
        grid=(int(cells[:, 0].max()) + 1, int(cells[:, 1].max()) + 1),
        setting=f"the size of {example}",
        pages_are_depth=one_depth,
    )


def check_placed(tiles: Sequence[tuple[str, Sequence[float]]], name: str, /) -> None:
    """Raise where more than one tile lies at exactly (0, 0), as Fiji leaves tiles that it could not place.

    Parameters
    ----------
    tiles : sequence of (str, sequence of float)
        Name and position of each tile.
    name : str
        File that gives the positions.

    Raises
    ------
    InputError
        Names the tiles.
    """
    nowhere = [tile for tile, position in tiles if not any(position)]
    if len(nowhere) > 1:
        which = f"all {len(nowhere)} tiles" if len(nowhere) == len(tiles) else f"{len(nowhere)} tiles"
        listed = ", ".join(nowhere[:4]) + (", ..." if len(nowhere) > 4 else "")
        raise InputError(
            f"{name}: {which} lie at (0, 0) ({listed}), as Fiji leaves tiles that it could not place; give their "
            "nominal positions, or take them out"
        )


def cells_from_positions(positions_px: NDArray[np.float64], tile_shape: tuple[int, int], /) -> NDArray[np.intp]:
    """Return column and row of tiles from their positions: coordinates closer than half a tile are one line.

    Examples
    --------
    >>> cells_from_positions(np.array([[0.0, 1], [81, 0], [79, 82]]), (100, 100)).tolist()
    [[0, 0], [1, 0], [1, 1]]
    """
    cells = np.zeros((len(positions_px), 2), np.intp)
    for axis in (0, 1):
        order = np.argsort(positions_px[:, axis], kind="stable")
        line = np.concatenate([[0], np.cumsum(np.diff(positions_px[order, axis]) > tile_shape[axis] / 2)])
        cells[order, axis] = line
    return cells


def check_template(
    numbers: Sequence[int], tile_shape: tuple[int, int], grid: tuple[int, int], tilemap: Any, name: str
) -> None:
    """Raise where a coordinate template was made for another grid.

    Raises
    ------
    InputError
        Names both grids or sizes and the template.
    """
    if tuple(tilemap.grid) != tuple(grid) or tuple(tilemap.tile_shape) != tuple(tile_shape):
        raise InputError(
            f"{name} is for {tilemap.grid[0]} x {tilemap.grid[1]} tiles of {tilemap.tile_shape[0]} x "
            f"{tilemap.tile_shape[1]} px, but this mosaic has {grid[0]} x {grid[1]} tiles of {tile_shape[0]} x "
            f"{tile_shape[1]} px; remove the template or set processing.coordinates.force_refresh_coordinates"
        )
    absent = sorted(set(numbers) - {place.tile for place in tilemap.places})
    if absent:
        raise InputError(f"{name} has no position for tiles {absent}")
    check_placed([(f"tile {place.tile}", place.position_px) for place in tilemap.places], name)

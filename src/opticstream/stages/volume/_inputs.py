"""What a volume is made from: the tiles' files, their places, focus map and mask, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import Canvas, canvas_from_positions
from opticstream.config.processing import VolumeSettings
from opticstream.io.geometry import SAME_SIZE
from opticstream.io.images import TileVolume
from opticstream.io.nifti import map_from_nifti
from opticstream.io.tilemap import TileMap
from opticstream.model.errors import ConfigurationError, InputError, TileSizeError
from opticstream.model.modalities import described
from opticstream.stages.mosaic import MosaicTiles

Corner = tuple[int, int, int]
"""First voxel of a block, or size of one, (z, y, x)."""


@dataclass(frozen=True)
class VolumeInputs:
    """What one volume is made from. It can be sent to other processes."""

    tiles: MosaicTiles
    volumes: Mapping[int, TileVolume]
    """Files by tile number, all of one shape."""
    positions: NDArray[np.float64]
    """Position (x, y) of each tile, in the order of `tiles.numbers`."""
    canvas: Canvas
    focus: NDArray[np.float32]
    """Shift of each A-line of a tile in depth, in px, shape (x, y)."""
    mask: NDArray[np.bool_] | None
    """Where the mosaic is kept, shape (x, y); None keeps all."""
    axial: bool
    """Whether the values are angles of axes."""
    z_start: int
    """First plane after the shift that is kept."""
    planes: int
    """Number of planes that are kept."""
    shading: NDArray[np.float32] | None = None
    """Level in dB that is subtracted at each pixel of the mosaic, shape (x, y)."""

    @property
    def shape(self) -> Corner:
        """Size of the volume, (z, y, x)."""
        return self.planes, self.canvas.shape[1], self.canvas.shape[0]

    @property
    def shift_range(self) -> int:
        """Largest difference between the shifts of two A-lines, in whole px."""
        return int(np.floor(self.focus.max() + 0.5)) - int(np.floor(self.focus.min() + 0.5))


def inputs_of_volume(
    tiles: MosaicTiles,
    tilemap: TileMap,
    modality: str,
    volumes: Mapping[int, TileVolume],
    depth: int,
    settings: VolumeSettings,
    /,
    *,
    focus: NDArray[np.float32] | None,
    mask_path: Path | None,
    shading_path: Path | None = None,
) -> VolumeInputs:
    """Return what a volume is made from.

    Parameters
    ----------
    tiles, tilemap : MosaicTiles, TileMap
        The tiles and their places.
    modality : str
        Which of their volumes.
    volumes, depth
        As returned by `open_tiles`.
    settings : VolumeSettings
        Interpolation and crop.
    focus : ndarray, shape (x, y), optional
        Shift of each A-line; none by default.
    mask_path : Path, optional
        Mask of the mosaic, used if it exists.
    shading_path : Path, optional
        Shading of the mosaic in dB, used for intensities in dB if it exists.

    Raises
    ------
    InputError
        The mask or the shading is of another size than the mosaic.
    ConfigurationError
        The crop keeps nothing.
    """
    positions = np.array([tilemap.place_of(n).position_px for n in tiles.numbers])
    canvas = canvas_from_positions(positions, tile_shape=tiles.tile_shape, subpixel=settings.interpolation == "linear")
    focus = np.zeros(tiles.tile_shape, np.float32) if focus is None else focus
    mask = read_mask(mask_path, canvas)
    z_start, planes = _depth_range(focus, depth, settings)
    known = described(modality)
    shading = _read_shading(shading_path, canvas) if known.intensity and known.in_db else None
    return VolumeInputs(tiles, volumes, positions, canvas, focus, mask, known.is_axial, z_start, planes, shading)


def open_tiles(tiles: MosaicTiles, modality: str, /) -> tuple[dict[int, TileVolume], int]:
    """Return the volumes of the tiles by number, and their common depth in samples.

    Raises
    ------
    TileSizeError
        A tile is of another size than the others; names tile, file and setting.
    """
    volumes = {n: TileVolume(path) for n, path in tiles.present(modality).items()}
    depth = {n: v.shape[0] for n, v in volumes.items()}
    common = max(set(depth.values()), key=lambda d: (list(depth.values()).count(d), d))
    expected = (common, tiles.tile_shape[1], tiles.tile_shape[0])
    for number, volume in volumes.items():
        if volume.shape != expected:
            # No setting gives the depth directly: it follows from the settings that the tile was made with.
            only_depth = volume.shape[1:] == expected[1:]
            why = (
                "as most tiles have; process it again with the settings of the others" if only_depth else tiles.setting
            )
            raise TileSizeError(
                f"tile {number} of {tiles.label} ({volume.path}) has shape {volume.shape[::-1]}, expected "
                f"{expected[::-1]}" + (f" ({why})" if why else "")
            )
    return volumes, common


def with_depth_step(
    tiles: MosaicTiles, volumes: Mapping[int, TileVolume], voxel_size_mm: tuple[float, float, float], /
) -> tuple[float, float, float]:
    """Return the voxel size with the depth step of the tiles' files, where they give one.

    Raises
    ------
    InputError
        The files of two tiles give different depth steps.
    """
    steps = {n: size[2] for n, volume in volumes.items() if (size := volume.voxel_size_mm) is not None}
    if not steps:
        return voxel_size_mm
    first = next(iter(steps))
    for number, step in steps.items():
        if abs(step - steps[first]) > SAME_SIZE * steps[first]:
            raise InputError(
                f"tile {number} of {tiles.label} ({volumes[number].path}) has a depth step of {step:g} mm, tile "
                f"{first} of {steps[first]:g} mm; process it again with the settings of the others"
            )
    return voxel_size_mm[0], voxel_size_mm[1], steps[first]


def read_mask(path: Path | None, canvas: Canvas, /) -> NDArray[np.bool_] | None:
    """Return the mask of a mosaic, shape (x, y); None where there is no file.

    Raises
    ------
    InputError
        The mask is of another size than the mosaic.
    """
    if path is None or not path.exists():
        return None
    mask = map_from_nifti(path, straight=True)
    if mask.shape != canvas.shape:
        raise InputError(
            f"{path} has shape {mask.shape}, but the mosaic has {canvas.shape}: it was made with other positions; "
            "stitch the mosaic's maps again, or set processing.volume.apply_mask = false"
        )
    return np.asarray(np.nan_to_num(mask) != 0)


def _read_shading(path: Path | None, canvas: Canvas) -> NDArray[np.float32] | None:
    """Return the shading of a mosaic in dB, 0 where no tile lies; None where there is no file."""
    if path is None or not path.exists():
        return None
    shading = map_from_nifti(path, straight=True)
    if shading.shape != canvas.shape:
        raise InputError(
            f"{path} has shape {shading.shape}, but the mosaic has {canvas.shape}: it was made with other positions; "
            "stitch the mosaic's maps again, or set processing.stitch.shading_correction = false"
        )
    return np.nan_to_num(np.asarray(shading, np.float32))


def _depth_range(focus: NDArray[np.float32], depth: int, settings: VolumeSettings) -> tuple[int, int]:
    """Return the first plane (after the shift) that is kept, and how many."""
    if settings.crop_depth is None:
        return 0, depth
    z0 = max(0, int(np.floor(focus.min() + 0.5)))  # below 0 where only the map's shape is known: its mean is 0 then
    start = max(z0 - settings.crop_offset, 0)
    stop = min(z0 - settings.crop_offset + settings.crop_depth, depth)
    if stop <= start:
        raise ConfigurationError(
            f"volume.crop_offset = {settings.crop_offset} and volume.crop_depth = {settings.crop_depth} keep nothing "
            f"of {depth} samples with the focus at {z0}"
        )
    return start, stop - start

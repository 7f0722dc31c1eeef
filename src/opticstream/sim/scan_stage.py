"""The actual positions of tiles: nominal grid, stage error, backlash, jitter, drift, and the frame of each mosaic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.config.scan import ScanSettings
from opticstream.model.ids import MosaicId, TileId
from opticstream.model.layout import ScanPattern
from opticstream.sim.cutting import Cutting, turned
from opticstream.sim.fields import Grid
from opticstream.sim.settings import CuttingSettings, StageSettings

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """A mosaic's image frame in the sample: ``sample = pixel_um * (R(rotation) @ stage_px + shift_px)``."""

    rotation_deg: float
    shift_px: tuple[float, float]
    pixel_um: tuple[float, float]

    @property
    def matrix(self) -> Array:
        """Rotation from the stage's frame to the sample's."""
        c, s = np.cos(np.deg2rad(self.rotation_deg)), np.sin(np.deg2rad(self.rotation_deg))
        return np.array([[c, -s], [s, c]])

    def grid(self, corner_px: ArrayLike, shape: tuple[int, int]) -> Grid:
        """Return the sample points of the pixels of a rectangle that starts at `corner_px` in the stage's frame."""
        size = np.asarray(self.pixel_um)
        origin = size * (self.matrix @ np.asarray(corner_px, dtype=float) + self.shift_px)
        step_x, step_y = size * self.matrix[:, 0], size * self.matrix[:, 1]
        return Grid(tuple(origin.tolist()), tuple(step_x.tolist()), tuple(step_y.tolist()), shape)


def nominal_position_px(scan: ScanSettings, tile: TileId, /) -> tuple[float, float]:
    """Return where the stage was sent for a tile: the position of its first pixel, in pixels."""
    layout = scan.layout
    index = layout.illumination_index(tile.mosaic)
    column, row = layout.grid_position(tile)
    (width, height), (over_x, over_y) = scan.tile_shape(index), scan.overlap_px(index)
    return column * (width - over_x), row * (height - over_y)


class Stage:
    """True positions of all tiles of all mosaics, from the settings and the seed alone."""

    def __init__(
        self,
        scan: ScanSettings,
        settings: StageSettings,
        /,
        *,
        seed: int,
        cutting: CuttingSettings | None = None,
    ) -> None:
        self._scan, self._settings, self._seed = scan, settings, seed
        self._cutting = Cutting(cutting or CuttingSettings(), seed=seed)
        self._layout = scan.layout

    def _rng(self, name: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, *numbers, *name.encode()])

    def placement(self, mosaic: MosaicId) -> Placement:
        """Return the frame of a mosaic: the first illumination only drifts between slices, the others are also shifted
        and turned against it.
        """
        s = self._settings
        slice_id, index = self._layout.slice_of(mosaic).slice_id, self._layout.illumination_index(mosaic)
        drift = self._rng("drift", slice_id).normal(0, s.slice_drift_px, 2) if slice_id > 1 else np.zeros(2)
        angle = 0.0
        if index > 0:
            rng = self._rng("illumination", slice_id, index)
            drift = drift + rng.normal(0, s.illumination_offset_px, 2)
            angle = float(rng.normal(0, s.illumination_rotation_deg))
        x_mm, y_mm, _ = self._scan.scan_resolution_3d
        # Cutting turns and shifts the picture about the middle of the field: sample = R(-turn) (p - c - shift) + c,
        # p being what `angle` and `drift` make of the stage's pixels.
        turn, shift = self._cutting.turn_deg(slice_id), self._cutting.shift_px(slice_id)
        if turn == 0 and not shift.any():
            return Placement(angle, (float(drift[0]), float(drift[1])), (x_mm * 1e3, y_mm * 1e3))
        centre = np.asarray(self.field_um()) / (2e3 * np.array([x_mm, y_mm]))
        drift = turned(drift - centre - shift, -turn) + centre
        return Placement(angle - turn, (float(drift[0]), float(drift[1])), (x_mm * 1e3, y_mm * 1e3))

    def affine(self, illumination: int) -> Array:
        """Return the 2 x 2 matrix by which the stage really moves, for an illumination."""
        error = self._rng("affine", illumination).normal(0, self._settings.affine_percent / 100, (2, 2))
        return np.asarray(np.eye(2) + error)

    def position_px(self, tile: TileId) -> tuple[float, float]:
        """Return where a tile's first pixel really lies in its mosaic's frame, in pixels."""
        s, layout = self._settings, self._layout
        index = layout.illumination_index(tile.mosaic)
        slice_id = layout.slice_of(tile.mosaic).slice_id
        position = self.affine(index) @ np.asarray(nominal_position_px(self._scan, tile))
        by_columns = layout.scan_order.pattern in (ScanPattern.SNAKE_BY_COLUMNS, ScanPattern.COLUMN_BY_COLUMN)
        snake = layout.scan_order.pattern in (ScanPattern.SNAKE_BY_COLUMNS, ScanPattern.SNAKE_BY_ROWS)
        grid = layout.illumination_of(tile.mosaic)
        line = (tile.tile_id - 1) // (grid.rows if by_columns else grid.columns)
        if snake and line % 2:
            position[1 if by_columns else 0] -= s.backlash_px
        position = position + self._rng("jitter", index, tile.tile_id).normal(0, s.jitter_px, 2)
        if slice_id > 1:
            position = position + self._rng("repeat", slice_id, index, tile.tile_id).normal(0, s.repeat_jitter_px, 2)
        return float(position[0]), float(position[1])

    def field_um(self) -> tuple[float, float]:
        """Return the nominal extent of the largest mosaic, along x and y, in micrometres."""
        x_mm, y_mm, _ = self._scan.scan_resolution_3d
        sizes = []
        for k, illumination in enumerate(self._layout.illuminations):
            (width, height), (over_x, over_y) = self._scan.tile_shape(k), self._scan.overlap_px(k)
            sizes.append(
                (
                    (width + (illumination.columns - 1) * (width - over_x)) * x_mm * 1e3,
                    (height + (illumination.rows - 1) * (height - over_y)) * y_mm * 1e3,
                )
            )
        return max(s[0] for s in sizes), max(s[1] for s in sizes)

"""Small mosaics on disk for the tests of stitching: tiles with every product, known positions, known focus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.config.scan import IlluminationSettings, ScanSettings
from opticstream.io.nifti import write_nifti
from opticstream.io.paths import tile_product_name
from opticstream.model.ids import MosaicId, TileId
from opticstream.testing.synthetic_mosaic import SyntheticMosaic, synthetic_mosaic

MOSAIC = MosaicId(1)
VOXEL_MM = (0.01, 0.01, 0.0025)


@dataclass
class Case:
    """A project folder with the products of one mosaic's tiles, and the truth."""

    folder: Path
    scan: ScanSettings
    truth: SyntheticMosaic
    bend: NDArray[np.float64]

    @property
    def tiles(self) -> Path:
        return self.folder / "mosaic-01" / "processed"

    @property
    def stitched(self) -> Path:
        return self.folder / "mosaic-01" / "stitched"

    @property
    def template(self) -> Path:
        return self.folder / "tilemap-normal.j2"

    @property
    def focus(self) -> Path:
        return self.folder / "focus-normal.nii"

    def file(self, tile: int, product: str) -> Path:
        return self.tiles / tile_product_name(TileId(1, tile), product)


def make_case(
    folder: Path,
    *,
    columns: int = 3,
    rows: int = 2,
    tile_shape: tuple[int, int] = (72, 64),
    depth: int = 40,
    products: tuple[str, ...] = ("aip", "mip", "ret", "ori", "biref", "surf", "surfraw"),
    volumes: tuple[str, ...] = (),
    bend_px: float = 3.0,
    seed: int = 0,
) -> Case:
    """Write a mosaic's tiles and return where they are and what is true."""
    truth = synthetic_mosaic(
        columns=columns, rows=rows, tile_shape=tile_shape, overlap=0.3, blank_fraction=0, speckle=0.2, contrast=0.5,
        jitter_px=1.0, step_error_px=1.5, seed=seed,
    )  # fmt: skip
    scan = ScanSettings(
        samples=64,
        b_lines=tile_shape[1],
        grid_size_y=rows,
        tile_overlap=30,
        illuminations=(IlluminationSettings(name="normal", columns=columns, a_lines=tile_shape[0]),),
        scan_resolution_3d=VOXEL_MM,
        scan_order="column by column",
    )
    u = np.linspace(-1, 1, tile_shape[0])[:, None]
    v = np.linspace(-1, 1, tile_shape[1])[None, :]
    bend = bend_px * (u**2 + 0.6 * v**2 - 0.5 * u + 0.3 * u * v)
    case = Case(folder, scan, truth, bend)
    rng = np.random.default_rng(seed)
    for k, cell in enumerate(truth.cells):
        tile = int(cell[0]) * rows + int(cell[1]) + 1
        x = truth.true_px[k, 0] + np.arange(tile_shape[0])[:, None]
        y = truth.true_px[k, 1] + np.arange(tile_shape[1])[None, :]
        values = {
            "aip": 60 + 20 * np.log10(np.maximum(truth.tiles[k], 1e-3)),
            "mip": 70 + 20 * np.log10(np.maximum(truth.tiles[k], 1e-3)),
            "ret": 45 + 30 * np.sin(x / 31) * np.cos(y / 27),
            "ori": (x / 2.2 + y / 3.1) % 180 - 90,
            "biref": 1e-3 * (1 + np.sin(x / 40) * np.cos(y / 30)),
            "surf": 14 + 0.02 * x - 0.01 * y + bend,
        }
        values["surfraw"] = values["surf"] + rng.normal(size=tile_shape) * 0.4
        outliers = rng.random(tile_shape) < 0.05
        values["surfraw"][outliers] = rng.uniform(1, depth, outliers.sum())
        z = np.arange(depth)
        values["dBI"] = 50 + x[..., None] * 0.1 + y[..., None] * 0.05 + z * 0.3 + rng.normal(size=(*tile_shape, depth))
        values["R3D"] = np.abs(np.sin(x / 20)[..., None] * 40 + z)
        values["O3D"] = (x[..., None] / 2 + y[..., None] / 3 + 2 * z) % 180 - 90
        for product in volumes:
            values[product] = np.broadcast_to(values[product], (*tile_shape, depth))
        for product in (*products, *volumes):
            write_nifti(case.file(tile, product), values[product].astype(np.float32), voxel_size_mm=VOXEL_MM)
    return case

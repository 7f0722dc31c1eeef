"""A project that grows as the pipeline would make it grow, in milliseconds: for tests and figures of the dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from opticstream.config import DeploymentSettings, load_project
from opticstream.io.atomic import write_bytes, write_text
from opticstream.io.encoded_pictures import encoded_picture, small_picture
from opticstream.io.nifti import write_nifti
from opticstream.io.paths import tile_product_name
from opticstream.io.pictures import picture_of_map, write_jpeg
from opticstream.io.tile_thumbnail import thumbnail_path, thumbnail_size, tile_thumbnail, write_strips
from opticstream.io.zarr import StoreWriter, Version, store_layout
from opticstream.model.events import BatchReady
from opticstream.model.ids import BatchId, MosaicId, SampleId, SliceId, TileId
from opticstream.pipeline.project import Project
from opticstream.pipeline.raw_folders import ready_content
from opticstream.stages.mosaic import write_zoom_of_map

_PROJECT = """\
[project]
project_name = "{name}"
project_base_path = "project"
archive_path = "archive"

[scan]
scan_resolution_3d = [0.01, 0.01, 0.0025]
grid_size_y = {rows}
b_lines = {b_lines}
illuminations = [
    {{ name = "normal", columns = {columns}, a_lines = {a_lines} }},
    {{ name = "tilted", tilt_deg = 15.0, columns = {columns}, a_lines = {a_lines} }},
]
"""
NOISE_DB = 50.0
FIGURES = {
    "signal_db": 71.3, "noise_db": NOISE_DB, "tissue_fraction": 0.93, "nan_fraction": 0.001,
    "saturated_fraction": 0.0, "surface_roughness_px": 0.8, "surface_confidence": 0.9,
}  # fmt: skip


class ShownProject:
    """A project in a folder, with what records its facts as flows do.

    Parameters
    ----------
    folder : Path
        Gets `project.toml` and the folders `project` and `archive`.
    columns, rows : int
        Grid of both illuminations.
    tile_px : tuple of int
        A-lines and B-lines of a tile.
    name : str
        Name of the project.
    """

    def __init__(
        self,
        folder: Path,
        /,
        *,
        columns: int = 4,
        rows: int = 3,
        tile_px: tuple[int, int] = (48, 40),
        name: str = "shown",
    ) -> None:
        a_lines, b_lines = tile_px
        text = _PROJECT.format(name=name, columns=columns, rows=rows, a_lines=a_lines, b_lines=b_lines)
        (folder / "raw").mkdir(parents=True, exist_ok=True)
        self.file = write_text(folder / "project.toml", text)
        self.project = Project.open(load_project(self.file), deployment=DeploymentSettings())
        self.layout = self.project.layout
        self._tissue: dict[MosaicId, dict[str, NDArray[np.float32]]] = {}

    def ready(self, mosaic_id: int, batch_id: int) -> BatchId:
        """Record that a column is complete at the rig."""
        batch = BatchId(mosaic_id, batch_id)
        files = {
            tile.tile_id: f"mosaic_{mosaic_id:03d}_image_{tile.tile_id:04d}.nii" for tile in self.layout.tiles(batch)
        }
        event = self.project.event(BatchReady, batch, raw_folder=str(self.file.parent / "raw"), files=files)
        self.project.facts.record(batch, "ready", ready_content(self.project, event))
        return batch

    def process(self, mosaic_id: int, tile_id: int, *, flags: Sequence[str] = ()) -> TileId:
        """Write the maps and the quality picture of a tile, and record it."""
        tile = TileId(mosaic_id, tile_id)
        outputs = []
        for name, image in self.maps(tile).items():
            path = self.project.paths.tile_product(tile, name)
            outputs.append(write_nifti(path, image[..., None], voxel_size_mm=(0.01, 0.01, 0.0025)))
        picture = (self.project.paths.processed_folder(tile.mosaic) / tile_product_name(tile, "qc")).with_suffix(".jpg")
        shown = picture_of_map("aip", self.maps(tile)["aip"], limits=(NOISE_DB, NOISE_DB + 45))
        outputs.append(write_bytes(picture, encoded_picture(np.repeat(np.repeat(shown, 6, 0), 6, 1), "JPEG")))
        write_bytes(thumbnail_path(self.project.paths.base, tile), tile_thumbnail(self.maps(tile), noise_db=NOISE_DB))
        detail = {"figures": FIGURES, "flags": list(flags), "raw_bytes": 100_000_000, "source": f"{tile_id}.nii"}
        self.project.facts.replace(
            tile,
            "processed",
            {"outputs": [self.project.facts.file_record(path) for path in outputs], "detail": detail},
            why="a test",
        )
        self.project.facts.journal.computed(tile, "processed", 1.5)
        return tile

    def fail(self, mosaic_id: int, tile_id: int, reason: str) -> TileId:
        """Park a tile as failed."""
        tile = TileId(mosaic_id, tile_id)
        self.project.facts.record(tile, "failed", {"detail": {"reason": reason, "attempts": 3}})
        return tile

    def finish(self, batch: BatchId) -> None:
        """Record that a column is processed, from the records of its tiles."""
        tiles = {}
        for tile in self.layout.tiles(batch):
            record = self.project.facts.read(tile, "processed")
            note = {"outcome": "failed", "reason": "as recorded"}
            if record is not None:
                note = {"outcome": "ok", "figures": record.detail["figures"], "flags": record.detail["flags"]}
            tiles[str(tile.tile_id)] = note
        failed = [int(number) for number, note in tiles.items() if note["outcome"] == "failed"]
        ordered = sorted(self.layout.tiles(batch), key=lambda tile: self.layout.grid_position(tile)[1])
        shape = self.project.config.scan.tile_shape(self.layout.illumination_index(batch.mosaic))
        write_strips(self.project.paths.base, batch, ordered, thumbnail_size(*shape))
        content = {"tiles": tiles, "failed_tiles": failed, "raw_folder": "raw", "files": {}}
        self.project.facts.replace(batch, "processed", {"detail": content}, why="a test")

    def column(self, mosaic_id: int, batch_id: int) -> None:
        """Process a whole column."""
        batch = self.ready(mosaic_id, batch_id)
        for tile in self.layout.tiles(batch):
            self.process(mosaic_id, tile.tile_id)
        self.finish(batch)

    def stitch(self, mosaic_id: int, *, doubts: Sequence[str] = (), zoom: bool = False) -> MosaicId:
        """Write the pictures of a stitched mosaic, with `zoom` also those at full size, and record it."""
        mosaic = MosaicId(mosaic_id)
        maps = self._maps(mosaic)
        pictures = {
            f"{name}_jpg": write_jpeg(
                self.project.paths.mosaic_product(mosaic, name, ".jpg"),
                picture_of_map(name, image, brightness=maps["ret"] if name == "ori" else None),
            )
            for name, image in maps.items()
        }
        for name, path in pictures.items():
            modality = name.removesuffix("_jpg")
            with Image.open(path) as picture:
                thumbnail = small_picture(np.asarray(picture.convert("RGB")))
            write_bytes(self.project.paths.mosaic_thumbnail(mosaic, modality), thumbnail)
        if zoom:
            for name, image in maps.items():
                path, small = (
                    self.project.paths.mosaic_zoom(mosaic, name),
                    {n: one[::2, ::2] for n, one in maps.items()},
                )
                light = small["ret"] if name == "ori" else None
                write_zoom_of_map(path, name, image, small=small[name], light=light)
        detail = {
            "products": {name: self.project.paths.relative(path) for name, path in pictures.items()},
            "doubts": list(doubts),
        }
        outputs = [self.project.facts.file_record(path) for path in pictures.values()]
        self.project.facts.record(mosaic, "ready")
        self.project.facts.replace(mosaic, "stitched", {"outputs": outputs, "detail": detail}, why="a test")
        return mosaic

    def stitch_volumes(self, mosaic_id: int, *, planes: int = 40, version: Version = "0.5") -> MosaicId:
        """Write volumes of a mosaic, empty outside the tissue, and record them."""
        mosaic = MosaicId(mosaic_id)
        maps = self._maps(mosaic)
        tissue = maps["aip"] > NOISE_DB + 5
        products, outputs = {}, []
        for name, image in {"dBI": maps["aip"], "O3D": maps["ori"]}.items():
            path = self.project.paths.mosaic_volume(mosaic, name)
            column = np.where(tissue, image, np.nan).T[None]
            volume = np.repeat(column, planes, 0) - (np.arange(planes)[:, None, None] * 0.4 if name == "dBI" else 0)
            _write_store(path, volume.astype(np.float32), self.project.config.scan.scan_resolution_3d, version)
            products[name] = self.project.paths.relative(path)
            outputs += [self.project.facts.file_record(file) for file in path.glob("[.z]*")]
        content = {"outputs": outputs, "detail": {"products": products}}
        self.project.facts.replace(mosaic, "volume_stitched", content, why="a test")
        return mosaic

    def stack_sample(self, *, slices: int = 2, planes: int = 20) -> SampleId:
        """Write stacks of the first mosaic of some slices, of volumes, of maps and of vectors, and record them."""
        folder, depth_mm = self.project.paths.sample_folder, self.project.config.scan.scan_resolution_3d[2]
        maps = [self._maps(self.layout.mosaic(SliceId(n + 1), 0)) for n in range(slices)]
        stacks = {"normal_dBI": ("aip", planes), "normal_O3D": ("ori", planes), "normal_ret": ("ret", 1)}
        paths = []
        for name, (modality, count) in stacks.items():
            planes_of = [np.where(one["aip"] > NOISE_DB + 5, one[modality], np.nan).T[None] for one in maps]
            volume = np.concatenate([np.repeat(one, count, 0) for one in planes_of]).astype(np.float32)
            voxel = (*self.project.config.scan.scan_resolution_3d[:2], depth_mm * planes / count)
            paths.append(folder / f"{name}.ome.zarr")
            _write_store(paths[-1], volume, voxel, "0.5")
        vectors = folder / "registered_axis.ome.zarr"
        write_text(vectors / "zarr.json", "{}")  # a store of another shape, which has no picture in grey
        paths.append(vectors)
        paths.append(
            write_bytes(self.project.paths.sample_preview, encoded_picture(np.zeros((8, 8), np.uint8), "JPEG"))
        )
        outputs = [self.project.facts.file_record(path, checksum=False) for path in paths]
        self.project.facts.replace(SampleId(), "updated", {"outputs": outputs}, why="a test")
        return SampleId()

    def maps(self, tile: TileId) -> dict[str, NDArray[np.float32]]:
        """Return the maps of a tile, shape (x, y)."""
        grid = self.layout.illumination_of(tile.mosaic)
        column, row = self.layout.scan_order.grid_position(tile.tile_id, grid.columns, grid.rows)
        a, b = self.project.config.scan.tile_shape(self.layout.illumination_index(tile.mosaic))
        whole = self._maps(tile.mosaic)
        return {name: image[column * a : (column + 1) * a, row * b : (row + 1) * b] for name, image in whole.items()}

    def slice_of(self, mosaic_id: int) -> SliceId:
        """Return the slice of a mosaic."""
        return self.layout.slice_of(MosaicId(mosaic_id))

    def _maps(self, mosaic: MosaicId) -> dict[str, NDArray[np.float32]]:
        """Return something like tissue: bundles of fibres in an oval that changes a little from slice to slice."""
        if mosaic not in self._tissue:
            grid = self.layout.illumination_of(mosaic)
            a, b = self.project.config.scan.tile_shape(self.layout.illumination_index(mosaic))
            shape = (grid.columns * a, grid.rows * b)
            random = np.random.default_rng(3)
            x, y = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
            turn = 0.15 * self.layout.slice_of(mosaic).slice_id
            wide, fine = (
                ndimage.gaussian_filter(random.standard_normal(shape), size * min(shape) / 100) for size in (9, 1.2)
            )
            wide, fine = wide / wide.std(), fine / fine.std()
            inside = (x / 0.9) ** 2 + (y / 0.82) ** 2 + 0.08 * wide < 1
            angle = np.degrees(np.arctan2(y + 0.3 * np.sin(3 * x + turn), x - 0.3 * wide)) + 90
            white = np.clip(0.5 + 0.6 * np.sin(5 * x + 2 * wide + turn), 0, 1)
            self._tissue[mosaic] = {
                "aip": np.where(inside, 68 + 12 * white + 1.5 * fine, NOISE_DB + 0.5 * fine).astype(np.float32),
                "ret": np.where(inside, 10 + 45 * white + 3 * fine, 4).clip(0, 90).astype(np.float32),
                "ori": (((angle + 4 * fine) + 90) % 180 - 90).astype(np.float32),
            }
        return self._tissue[mosaic]


def _write_store(path: Path, volume: NDArray[np.float32], voxel_mm: Sequence[float], version: Version) -> None:
    """Write a volume (z, y, x) with all its levels."""
    x_um, y_um, z_um = (1000 * size for size in voxel_mm)
    z, y, x = volume.shape
    layout = store_layout((z, y, x), voxel_size_um=(z_um, y_um, x_um), version=version)
    with StoreWriter(path, layout, name=path.name, provenance={}) as store:
        writes = []
        for level in range(layout.levels):
            step = 2**level
            writes.append(store.levels.write(level, (0, 0, 0), np.ascontiguousarray(volume[::step, ::step, ::step])))
        store.levels.settle(writes)
        store.note_finished(0)
        store.finish()

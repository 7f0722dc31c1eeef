"""The paths of all inputs and outputs of a project. No other module builds these paths.

::

    project/
    ├─ mosaic-01/
    │  ├─ complex/      complex tiles (links if the rig wrote them)
    │  ├─ processed/    volumes and en face maps of tiles
    │  ├─ looks/        en face maps and pictures of tiles whose volumes are still to be made
    │  ├─ stitched/     mosaics, volumes (OME-Zarr), quality pictures: links into the archive once published
    │  ├─ state/        flag files of batches
    │  ├─ thumbnails/   small pictures of tiles and columns for the dashboard
    │  └─ archived/     links to the archive copies
    ├─ registered/      slices: axis, in-plane, through-plane, transform
    ├─ sample/          stacks over slices
    ├─ state/           flag files of mosaics and slices, journal
    ├─ focus-{illumination}.nii
    └─ tilemap-{illumination}.j2
    archive (DANDISET)/
    ├─ rawdata/sub-{subject}/sample-slice-{slice:03d}_chunk-{tile:04d}_acq-{acq}_OCT.nii.gz (or .nii.zarr.zip)
    └─ derivative/sub-{subject}/mosaic_{mosaic:03d}_{modality}.nii.gz, ...ome.zarr
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opticstream.config import ProjectConfig
from opticstream.io.archive_names import ArchiveNames, BidsNames, OwnNames
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.system.disk import reachable

ZOOM_FOLDER = "zoom"
"""Folder of the pictures for deep zoom among the stitched maps; they are not published."""
THUMBNAIL_FOLDER = "thumbnails"
"""Folder of the small pictures of a mosaic, and among its stitched maps; they are not published."""
THUMBNAIL_PX = 72
"""Longer side of one map of a tile in small pictures; a multiple of 8, so that neighbours do not share blocks of the
JPEG."""


LOOK_DESCRIPTION = "look.json"
"""File of a first look that says what it was made from, and its figures."""


def look_folder(out_dir: Path, tile: TileId, /) -> Path:
    """Return where the first look at a tile waits for the rest, in the project's folder.

    Examples
    --------
    >>> look_folder(Path("out"), TileId(3, 12)).as_posix()
    'out/mosaic-03/looks/mosaic_003_image_0012'
    """
    return out_dir / tile.mosaic.folder / "looks" / _tile_stem(tile)


def look_picture(out_dir: Path, tile: TileId, /) -> Path:
    """Return where the quality picture of the first look at a tile is."""
    return look_folder(out_dir, tile) / Path(tile_product_name(tile, "qc")).with_suffix(".jpg")


def strip_path(out_dir: Path, batch: BatchId, modality: str, /) -> Path:
    """Return where the small picture of one map of a column is, in the project's folder.

    Examples
    --------
    >>> strip_path(Path("out"), BatchId(3, 7), "aip").as_posix()
    'out/mosaic-03/thumbnails/mosaic_003_batch_007_aip.jpg'
    """
    name = f"mosaic_{batch.mosaic_id:03d}_batch_{batch.batch_id:03d}_{modality}.jpg"
    return out_dir / batch.mosaic.folder / THUMBNAIL_FOLDER / name


@dataclass(frozen=True, slots=True)
class ProjectPaths:
    """Paths of one project on this host."""

    base: Path
    archive_root: Path
    subject_id: str
    layout: AcquisitionLayout
    bids: bool = False
    """Whether the archive has the names of BIDS (`publish.layout`)."""

    @classmethod
    def of(cls, config: ProjectConfig, /) -> ProjectPaths:
        """Return the paths of the project of a configuration."""
        project = config.project
        bids = config.publish.layout.kind == "bids"
        return cls(project.project_base_path, project.archive_root, project.subject_id, config.scan.layout, bids=bids)

    def mosaic_folder(self, mosaic: MosaicId) -> Path:
        return self.base / mosaic.folder

    def complex_folder(self, mosaic: MosaicId) -> Path:
        return self.mosaic_folder(mosaic) / "complex"

    def processed_folder(self, mosaic: MosaicId) -> Path:
        return self.mosaic_folder(mosaic) / "processed"

    def stitched_folder(self, mosaic: MosaicId) -> Path:
        return self.mosaic_folder(mosaic) / "stitched"

    def archived_folder(self, mosaic: MosaicId) -> Path:
        return self.mosaic_folder(mosaic) / "archived"

    @property
    def registered_folder(self) -> Path:
        return self.base / "registered"

    @property
    def sample_folder(self) -> Path:
        return self.base / "sample"

    @property
    def sample_preview(self) -> Path:
        """Picture of the sample in three orthogonal views."""
        return self.sample_folder / "preview.jpg"

    def tile_product(self, tile: TileId, modality: str) -> Path:
        """Return the file of a tile's map or volume, e.g. `aip` or `dBI`."""
        return self.processed_folder(tile.mosaic) / tile_product_name(tile, modality)

    def complex_tile(self, tile: TileId) -> Path:
        return self.complex_folder(tile.mosaic) / tile_product_name(tile, "complex")

    def mosaic_product(self, mosaic: MosaicId, modality: str, suffix: str = ".nii.gz") -> Path:
        """Return the file of a stitched map."""
        return self.stitched_folder(mosaic) / f"mosaic_{mosaic.mosaic_id:03d}_{modality}{suffix}"

    def mosaic_volume(self, mosaic: MosaicId, modality: str) -> Path:
        return self.mosaic_product(mosaic, modality, ".ome.zarr")

    def mosaic_zoom(self, mosaic: MosaicId, modality: str) -> Path:
        """Return the picture of a stitched map at full size, which large mosaics have."""
        return self.stitched_folder(mosaic) / ZOOM_FOLDER / self.mosaic_product(mosaic, modality, ".szi").name

    def mosaic_thumbnail(self, mosaic: MosaicId, modality: str) -> Path:
        """Return the small picture of a stitched map."""
        return self.stitched_folder(mosaic) / THUMBNAIL_FOLDER / self.mosaic_product(mosaic, modality, ".jpg").name

    def tilemap(self, illumination: str) -> Path:
        """Return the coordinate template of an illumination."""
        return self.base / f"tilemap-{illumination}.j2"

    def focus(self, illumination: str) -> Path:
        return self.base / f"focus-{illumination}.nii"

    def archived_tile(self, tile: TileId, suffix: str = ".nii.gz") -> Path:
        """Return the archive copy of a raw tile."""
        acq = self.layout.illumination_of(tile.mosaic).name
        slice_id = self.layout.slice_of(tile.mosaic).slice_id
        return self.archive_root / self.archive_names.tile(slice_id, tile.tile_id, acq, suffix)

    @property
    def archive_names(self) -> ArchiveNames:
        """The names in the archive."""
        return BidsNames(self.subject_id) if self.bids else OwnNames(self.subject_id)

    @property
    def derivative_folder(self) -> Path:
        """Folder of published results in the archive."""
        return self.archive_root / self.archive_names.results

    def published(self, item: ItemId, output: Path) -> Path:
        """Return the name under which an output of an item is published."""
        return self.archive_root / self.archive_names.result(item, output.name, self.layout)

    def is_final(self, item: ItemId, output: Path) -> bool:
        """Return whether an output is a final result of an item, which is written whole and becomes a link.

        Templates, focus maps and the stacks of the sample are not: all items share them, and the stacks grow in place.
        """
        match item:
            case MosaicId():
                return output.parent == self.stitched_folder(item)
            case SliceId():
                return output.parent == self.registered_folder
        return False

    def relative(self, path: Path) -> str:
        """Return a path as used in events and facts: relative to the project, or to the archive as `archive:...`."""
        if path.is_relative_to(self.archive_root):
            return f"archive:{path.relative_to(self.archive_root).as_posix()}"
        return path.relative_to(self.base).as_posix()

    def absolute(self, name: str) -> Path:
        """Return the path on this host of a name made by `relative`, to read what is there.

        A result is a link to its copy in the archive. Where that link leads nowhere on this host, the copy is returned.
        """
        if name.startswith("archive:"):
            return self.archive_root / name.removeprefix("archive:")
        return self.readable(self.base / name)

    def readable(self, output: Path) -> Path:
        """Return where an output is read on this host: see `absolute`."""
        return reachable(output, self.archive_root)


def tile_product_name(tile: TileId, modality: str, /) -> str:
    """Return the file name of a tile's product.

    Examples
    --------
    >>> tile_product_name(TileId(3, 12), "dBI")
    'mosaic_003_image_0012_dBI.nii'
    """
    return f"{_tile_stem(tile)}_{modality}.nii"


def _tile_stem(tile: TileId) -> str:
    return f"mosaic_{tile.mosaic_id:03d}_image_{tile.tile_id:04d}"

"""Put the results of an item into the local archive tree, under the names and with the sidecars of its layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import opticstream
from opticstream.config.publish_layout import BidsLayout
from opticstream.io.archive_names import BidsNames, sample_of_slice
from opticstream.io.packed import is_packed
from opticstream.model.ids import BatchId, ItemId, SampleId, TileId
from opticstream.pipeline.project import Project
from opticstream.publish.bids import BidsDataset, pixel_size, place_of_chunk, write_sidecar
from opticstream.publish.local import link_into_mosaic, move_to_archive, publish_growing, publish_locally
from opticstream.publish.scenes import is_scene, publish_scene
from opticstream.state import FileRecord


def publish_files(project: Project, item: ItemId, files: Sequence[FileRecord], /) -> list[FileRecord]:
    """Publish recorded files of an item and return the records of their copies, with sidecars where there are any."""
    if isinstance(item, BatchId):
        published = [_publish_tile(project, item, file) for file in files]
    elif isinstance(item, SampleId):
        published = _publish_stacks(project, files)
    else:
        published = [_publish_result(project, item, file) for file in files]
    dataset = bids_dataset(project)
    if dataset is None:
        return published
    sidecars = _sidecars(project, item, [project.paths.absolute(file.path) for file in published])
    dataset.update(_sample_of(project, item))
    return [*published, *(project.facts.file_record(path) for path in sidecars)]


def bids_dataset(project: Project, /) -> BidsDataset | None:
    """Return the BIDS data set of a project's archive; None if the archive has another layout."""
    settings = project.config.publish.layout
    if not isinstance(settings, BidsLayout):
        return None
    name = settings.dataset_name or project.config.name
    root, subject = project.paths.archive_root, project.config.project.subject_id
    return BidsDataset(root, subject, name, opticstream.__version__, settings)


def _publish_tile(project: Project, batch: BatchId, file: FileRecord) -> FileRecord:
    """Link a copy of a raw tile, which is in the archive already."""
    path = link_into_mosaic(project.paths.absolute(file.path), project.paths.archived_folder(batch.mosaic))
    return _record(project, path, file)


def _publish_result(project: Project, item: ItemId, file: FileRecord) -> FileRecord:
    source = project.paths.absolute(file.path)
    target = project.paths.published(item, source)
    publish = move_to_archive if project.paths.is_final(item, source) else publish_locally
    return _record(project, publish(source, target, sha256=file.sha256), file)


def _publish_stacks(project: Project, files: Sequence[FileRecord]) -> list[FileRecord]:
    """Copy the sample's stacks, which grow in place, as they are between two slices.

    Raises
    ------
    ChangingStacksError
        A slice is being added. Every stack in the archive is whole, but they may belong to different moments.
    """
    from opticstream.stages.sample import stacks_at_rest

    paths = project.paths
    still = stacks_at_rest(paths.sample_folder)
    published = []
    for file in files:
        source = paths.absolute(file.path)
        target = paths.published(SampleId(), source)
        if is_scene(source):
            publish_scene(source, target, still, paths.archive_root)
        else:
            publish_growing(source, target, still)
        published.append(project.facts.file_record(target, checksum=False))
    return published


def _record(project: Project, path: Path, file: FileRecord) -> FileRecord:
    """Return the record of a copy, with the checksum that was computed when the result was written."""
    bare = project.facts.file_record(path, checksum=False)
    return FileRecord(bare.path, bare.size, file.sha256)


def _sample_of(project: Project, item: ItemId) -> str:
    of = item.mosaic if isinstance(item, BatchId) else item
    return BidsNames(project.config.project.subject_id).sample(of, project.layout)


def _sidecars(project: Project, item: ItemId, files: Sequence[Path]) -> list[Path]:
    """Write the sidecars of published files and return them."""
    if isinstance(item, BatchId):
        tiles = {tile.tile_id: tile for tile in project.layout.tiles(item)}
        numbered = ((re.search(r"_chunk-(\d+)_", file.name), file) for file in files if is_packed(file))
        return [
            write_sidecar(file, _of_tile(project, tiles[int(found[1])]))
            for found, file in numbered
            if found is not None and int(found[1]) in tiles
        ]
    described = ((file, _of_result(project, item, file)) for file in files)
    return [write_sidecar(file, content) for file, content in described if content is not None]


def _of_tile(project: Project, tile: TileId) -> dict[str, Any]:
    """Return what a sidecar says about a raw tile: its place is the nominal one of the stage."""
    scan = project.config.scan
    index = project.layout.illumination_index(tile.mosaic)
    size_um = [1000 * size for size in scan.scan_resolution_3d]
    steps = [
        (shape - overlap) * size
        for shape, overlap, size in zip(scan.tile_shape(index), scan.overlap_px(index), size_um[:2], strict=True)
    ]
    x, y = (place * step for place, step in zip(project.layout.grid_position(tile), steps, strict=True))
    sample = sample_of_slice(project.layout.slice_of(tile.mosaic).slice_id)
    return {
        "Description": f"Raw tile {tile.tile_id} of {sample}, {project.illumination(tile.mosaic).name}",
        **pixel_size(size_um),
        "SliceThickness": scan.slice_thickness_um,
        **place_of_chunk((x, y, 0.0)),
    }


def _of_result(project: Project, item: ItemId, file: Path) -> dict[str, Any] | None:
    """Return what a sidecar says about a map or volume; None for files that have none."""
    if is_scene(file):
        return {
            "Description": "Volumes of the slices at a coarse level, and transformations from each to the whole sample"
        }
    if file.name.endswith(".ome.zarr"):
        from opticstream.io.zarr import volume_voxel_um

        size_um = volume_voxel_um(file)
    elif file.name.endswith((".nii", ".nii.gz")):
        from opticstream.io.nifti import voxel_size_mm

        x, y, z = voxel_size_mm(file)
        size_um = (1000 * x, 1000 * y, 1000 * z)
    else:
        return None
    product = file.name.partition("_desc-")[2].partition("_")[0]
    return {
        "Description": f"{product} of {'the sample' if isinstance(item, SampleId) else item}",
        **pixel_size(size_um),
    }

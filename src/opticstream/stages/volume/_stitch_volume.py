"""The stitched volumes of a mosaic: streamed block by block from the tiles' files into OME-Zarr, in a memory budget.

What an earlier, killed run finished is not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.config import ScanSettings
from opticstream.config.processing import VolumeSettings
from opticstream.io.geometry import Geometry
from opticstream.io.tilemap import TileMap, read_tilemap
from opticstream.io.zarr import StoreLayout, StoreWriter, remove_notes, was_finished
from opticstream.model.ids import MosaicId
from opticstream.stages.mosaic import MosaicTiles, check_template, focus_for_volume, tiles_of_mosaic
from opticstream.stages.volume._all_blocks import VolumeJob
from opticstream.stages.volume._inputs import VolumeInputs, inputs_of_volume, open_tiles, with_depth_step
from opticstream.stages.volume._plan import plan_of_blocks
from opticstream.stages.volume._provenance import checksums_read_ahead, provenance_of
from opticstream.state.manifest import manifest_path, write_manifest
from opticstream.system.cores import available_cores

Progress = Callable[[float], None]


@dataclass(frozen=True)
class VolumeResult:
    """What `stitch_volume` made.

    Attributes
    ----------
    outputs : dict
        Stores by modality.
    shape : tuple of int
        Size of the volumes, (x, y, z).
    missing : dict
        By modality, the tiles without a file; they were stitched around.
    resumed_blocks : int
        Blocks that an earlier run had finished.
    superseded : int
        Unfinished runs with other inputs or settings that were there; nothing of them was used, and they are removed.
    notes : tuple of str
        What of the tiles' headers the stores cannot hold.
    """

    outputs: dict[str, Path]
    shape: tuple[int, int, int]
    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    resumed_blocks: int = 0
    superseded: int = 0
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "outputs": {name: str(path) for name, path in self.outputs.items()},
            "shape": list(self.shape),
            "missing": {modality: list(tiles) for modality, tiles in self.missing.items()},
            "resumed_blocks": self.resumed_blocks,
            "superseded": self.superseded,
            "notes": list(self.notes),
        }


def stitch_volume(
    mosaic: MosaicId,
    /,
    *,
    scan: ScanSettings,
    settings: VolumeSettings,
    tiles_folder: Path,
    template_path: Path,
    focus_path: Path | None,
    mask_path: Path | None,
    shading_path: Path | None = None,
    stitched_folder: Path,
    threads: int = 0,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> VolumeResult:
    """Stitch the volumes of a mosaic.

    Parameters
    ----------
    mosaic : MosaicId
        The mosaic.
    scan : ScanSettings
        Grid and pixel size; the depth step is taken from the tiles' files where they give it.
    settings : VolumeSettings
        Modalities, crop, format, memory budget, mask.
    tiles_folder : Path
        Folder of the tiles' products.
    template_path : Path
        Coordinate template.
    focus_path : Path, optional
        Focus map; A-lines are not shifted where it is None or does not exist.
    mask_path : Path, optional
        Mask of the mosaic (used if ``settings.apply_mask`` and it exists).
    shading_path : Path, optional
        Shading of the mosaic in dB, subtracted from intensities in dB if it exists.
    stitched_folder : Path
        Where ``mosaic_{m:03d}_{modality}.ome.zarr`` go, each with the checksums of its files in a manifest beside it.
    threads : int
        Threads; 0 takes all cores that the process may use.
    progress : callable, optional
        Told the fraction done.
    executor : concurrent.futures.Executor, optional
        Does the blocks elsewhere, e.g. `dask_executor` for a Dask cluster or a pool of processes; tiles and results
        must lie on file systems that its workers share. The bytes written are the same.

    Raises
    ------
    InputError
        A template, mask, shading or focus map of another size, a tile of another size, no tile at all.
    ConfigurationError
        The memory budget does not hold even the smallest block.
    """
    tiles = tiles_of_mosaic(mosaic, scan=scan, folder=tiles_folder, modalities=settings.modalities)
    tilemap = read_tilemap(template_path)
    check_template(tiles.numbers, tiles.tile_shape, tiles.grid, tilemap, str(template_path))
    tiles = tiles.as_placed_by(tilemap)
    outputs: dict[str, Path] = {}
    missing: dict[str, tuple[int, ...]] = {}
    resumed = superseded = 0
    shape = (0, 0, 0)
    report = progress or (lambda _fraction: None)
    for done, modality in enumerate(settings.modalities):
        tiles.require(modality)
        if tiles.missing(modality):
            missing[modality] = tiles.missing(modality)
        path = stitched_folder / f"mosaic_{mosaic.mosaic_id:03d}_{modality}.ome.zarr"
        one = stitch_modality(
            tiles,
            tilemap,
            modality,
            path,
            voxel_size_mm=scan.scan_resolution_3d,
            settings=settings,
            focus=focus_for_volume(focus_path, tiles.tile_shape),
            mask_path=mask_path if settings.apply_mask else None,
            shading_path=shading_path,
            threads=threads,
            executor=executor,
            progress=_part_of(report, done, len(settings.modalities)),
            leave_note=True,
        )
        outputs[modality], shape = path, one.shape
        resumed, superseded = resumed + one.resumed_blocks, superseded + one.superseded
    for path in outputs.values():
        remove_notes(path)  # they are needed only by a run after one that was killed before this point
    return VolumeResult(outputs, shape, missing, resumed, superseded)


def _part_of(report: Progress, done: int, count: int) -> Progress:
    return lambda fraction: report((done + fraction) / count)


def stitch_modality(
    tiles: MosaicTiles,
    tilemap: TileMap,
    modality: str,
    path: Path,
    /,
    *,
    voxel_size_mm: tuple[float, float, float],
    settings: VolumeSettings,
    focus: NDArray[np.float32] | None = None,
    mask_path: Path | None = None,
    shading_path: Path | None = None,
    threads: int = 0,
    progress: Progress | None = None,
    executor: Executor | None = None,
    leave_note: bool = False,
    geometry: Geometry | None = None,
) -> VolumeResult:
    """Stitch one volume of tiles at given places; what `stitch_volume` does for each modality.

    With `geometry` voxel size and the place of position (0, 0) are those; else the depth step is that of the tiles'
    files where they give one, and the first voxel lies at 0.
    With `leave_note` a store that an earlier run has finished and left a note of (`zarr.remove_notes`) is kept.
    """
    tiles.require(modality)
    threads = threads or available_cores()
    report = progress or (lambda _fraction: None)
    volumes, depth = open_tiles(tiles, modality)
    voxel_mm = geometry.voxel_size_mm if geometry is not None else with_depth_step(tiles, volumes, voxel_size_mm)
    voxel_um = (round(voxel_mm[2] * 1e3, 9), round(voxel_mm[1] * 1e3, 9), round(voxel_mm[0] * 1e3, 9))
    inputs = inputs_of_volume(
        tiles,
        tilemap,
        modality,
        volumes,
        depth,
        settings,
        focus=focus,
        mask_path=mask_path,
        shading_path=shading_path,
    )
    plan = plan_of_blocks(inputs, voxel_um, settings)
    provenance = provenance_of(inputs, tilemap, modality, settings)
    notes: tuple[str, ...] = ()
    if geometry is not None:
        layout, notes = _placed(plan.layout, inputs, geometry, provenance)
        plan = replace(plan, layout=layout)
    size = (inputs.shape[2], inputs.shape[1], inputs.shape[0])
    name = path.name.split(".")[0]
    if leave_note and was_finished(path, plan.layout, name=name, provenance=provenance):
        if not manifest_path(path).is_file():
            write_manifest(path, threads=threads)
        return VolumeResult({modality: path}, size, {}, _number_of_shards(plan.layout), notes=notes)
    with StoreWriter(path, plan.layout, name=name, provenance=provenance, threads=threads) as store:
        resumed, superseded = len(store.finished), store.superseded
        with checksums_read_ahead(inputs) as add_checksums:
            VolumeJob(inputs, plan, threads).run(store, report, executor)
            add_checksums(provenance)
        manifest_path(path).unlink(missing_ok=True)  # that of an older store
        store.finish(provenance, leave_note=leave_note)
    write_manifest(path, threads=threads)
    return VolumeResult({modality: path}, size, {}, resumed, superseded, notes)


def _placed(
    layout: StoreLayout, inputs: VolumeInputs, geometry: Geometry, provenance: dict[str, Any]
) -> tuple[StoreLayout, tuple[str, ...]]:
    """Return the layout of a store whose first voxel lies where the geometry says, and what the store cannot hold.

    Directions that OME-Zarr cannot hold go into the provenance.
    """
    place = geometry.from_voxel((*inputs.canvas.origin_px, inputs.z_start))
    if place.is_straight:
        x, y, z = (round(1e3 * value, 6) + 0.0 for value in place.origin_mm)
        return replace(layout, origin_um=(z, y, x)), ()
    provenance["affine_mm"] = place.affine_mm.tolist()
    return layout, (f"OME-Zarr knows no directions: that the axes run {place.says()} stands in its attributes only",)


def _number_of_shards(layout: StoreLayout) -> int:
    return prod(-(-s // b) for s, b in zip(layout.shape, layout.shard, strict=True))

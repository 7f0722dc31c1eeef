"""The stitched volumes of a mosaic: streamed block by block from the tiles' files into OME-Zarr, in a memory budget.

A block is a group of whole shards; it gathers the parts of the tiles that touch it, blends them, halves the result for
the next levels, and starts to write. What an earlier, killed run finished is not done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opticstream import __version__
from opticstream.compute.stitching import Canvas, canvas_from_positions, overlap_widths, ramp
from opticstream.config import ScanSettings
from opticstream.config.processing import VolumeSettings
from opticstream.io.geometry import SAME_SIZE, Geometry
from opticstream.io.images import TileVolume
from opticstream.io.nifti import map_from_nifti
from opticstream.io.tilemap import TileMap, read_tilemap
from opticstream.io.zarr import (
    IN_PASS_LEVELS,
    LevelArrays,
    StoreLayout,
    StoreWriter,
    remove_notes,
    store_layout,
    was_finished,
)
from opticstream.model.errors import ConfigurationError, InputError, TileSizeError
from opticstream.model.ids import MosaicId
from opticstream.model.modalities import described
from opticstream.stages.mosaic import MosaicTiles, check_template, focus_for_volume, tiles_of_mosaic
from opticstream.state.manifest import manifest_path, write_manifest
from opticstream.system.cores import available_cores

if TYPE_CHECKING:
    from opticstream.compute.stitching.volume import BlockTiles

Progress = Callable[[float], None]
Corner = tuple[int, int, int]
LARGEST_BLOCK_BYTES = 256 << 20
"""Blocks do not grow beyond this, whatever the budget: memory that is used again is warm, new pages are slow."""
BASE_BYTES = 330 << 20
"""What the interpreter and its libraries take of the budget."""


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
        A template, mask or focus map of another size, a tile of another size, no tile at all.
    ConfigurationError
        The memory budget does not hold even the smallest block.
    """
    tiles = tiles_of_mosaic(mosaic, scan=scan, folder=tiles_folder, modalities=settings.modalities)
    tilemap = read_tilemap(template_path)
    check_template(tiles.numbers, tiles.tile_shape, tiles.grid, tilemap, str(template_path))
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
            threads=threads,
            executor=executor,
            progress=_part_of(report, done, len(settings.modalities)),
            leave_note=True,
        )
        outputs[modality], shape = path, one.shape
        resumed, superseded = resumed + one.resumed_blocks, superseded + one.superseded
    for path in outputs.values():
        remove_notes(path)  # they are for a run that does not come this far
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
    volumes, depth = _open_tiles(tiles, modality)
    voxel_size_mm = geometry.voxel_size_mm if geometry is not None else _with_depth_step(tiles, volumes, voxel_size_mm)
    positions = np.array([tilemap.place_of(n).position_px for n in tiles.numbers])
    linear = settings.interpolation == "linear"
    canvas = canvas_from_positions(positions, tile_shape=tiles.tile_shape, subpixel=linear)
    focus = np.zeros(tiles.tile_shape, np.float32) if focus is None else focus
    mask = _read_mask(mask_path, canvas)
    z_start, z_size = _depth_range(focus, depth, settings)
    shape = (z_size, canvas.shape[1], canvas.shape[0])
    voxel_um = (voxel_size_mm[2] * 1e3, voxel_size_mm[1] * 1e3, voxel_size_mm[0] * 1e3)
    budget = int(settings.memory_budget_gb * 1e9) - BASE_BYTES
    layout, plan = _plan(
        shape,
        (round(voxel_um[0], 9), round(voxel_um[1], 9), round(voxel_um[2], 9)),
        settings,
        budget,
        canvas,
        axial=described(modality).is_axial,
        reach=_shift_range(focus),
    )
    notes: tuple[str, ...] = ()
    if geometry is not None:
        place = geometry.from_voxel((*canvas.origin_px, z_start))
        if place.is_straight:
            x, y, z = (round(1e3 * value, 6) + 0.0 for value in place.origin_mm)
            layout = replace(layout, origin_um=(z, y, x))
        else:
            notes = (f"OME-Zarr knows no directions: that the axes run {place.says()} stands in its attributes only",)
    provenance = _provenance(tiles, tilemap, modality, settings, focus, mask, volumes, z_start)
    if notes:
        provenance["affine_mm"] = place.affine_mm.tolist()
    name = path.name.split(".")[0]
    if leave_note and was_finished(path, layout, name=name, provenance=provenance):
        shards = prod(-(-s // b) for s, b in zip(layout.shape, layout.shard, strict=True))
        if not manifest_path(path).is_file():
            write_manifest(path, threads=threads)
        return VolumeResult({modality: path}, (shape[2], shape[1], shape[0]), {}, shards, notes=notes)
    job = _Job(
        volumes, tiles, canvas, positions, focus, mask, described(modality).is_axial, z_start, layout, plan, threads
    )
    with StoreWriter(path, layout, name=name, provenance=provenance, threads=threads) as store:
        resumed, superseded = len(store.finished), store.superseded
        # One thread goes ahead through the files, roughly in the order of the blocks: what it reads is in memory when
        # a block needs it, so that the disk is read once.
        with ThreadPoolExecutor(1) as ahead:
            order = sorted(volumes, key=lambda n: positions[tiles.numbers.index(n)][::-1].tolist())
            checksums = {n: ahead.submit(_checksum, volumes[n].path) for n in order}
            try:
                job.run(store, progress or (lambda _fraction: None), executor)
            except BaseException:
                ahead.shutdown(wait=False, cancel_futures=True)
                raise
            for entry in provenance["inputs"]:
                entry["crc32"] = checksums[entry["tile"]].result()
                del entry["sample"]
        manifest_path(path).unlink(missing_ok=True)  # that of an older store
        store.finish(provenance, leave_note=leave_note)
    write_manifest(path, threads=threads)
    return VolumeResult({modality: path}, (shape[2], shape[1], shape[0]), {}, resumed, superseded, notes)


# --- what is to be done -------------------------------------------------------------------------------------------


def _open_tiles(tiles: MosaicTiles, modality: str) -> tuple[dict[int, TileVolume], int]:
    volumes = {n: TileVolume(path) for n, path in tiles.present(modality).items()}
    depth = {n: v.shape[0] for n, v in volumes.items()}
    common = max(set(depth.values()), key=lambda d: (list(depth.values()).count(d), d))
    expected = (common, tiles.tile_shape[1], tiles.tile_shape[0])
    for number, volume in volumes.items():
        if volume.shape != expected:
            # Depth is no setting of its own: it follows from those that the tile was made with.
            only_depth = volume.shape[1:] == expected[1:]
            why = (
                "as most tiles have; process it again with the settings of the others" if only_depth else tiles.setting
            )
            raise TileSizeError(
                f"tile {number} of {tiles.label} ({volume.path}) has shape {volume.shape[::-1]}, expected "
                f"{expected[::-1]}" + (f" ({why})" if why else "")
            )
    return volumes, common


def _with_depth_step(
    tiles: MosaicTiles, volumes: Mapping[int, TileVolume], voxel_size_mm: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Return the voxel size with the depth step that the files of the tiles give, which must be one."""
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


def _read_mask(path: Path | None, canvas: Canvas) -> NDArray[np.bool_] | None:
    if path is None or not path.exists():
        return None
    mask = map_from_nifti(path, straight=True)
    if mask.shape != canvas.shape:
        raise InputError(
            f"{path} has shape {mask.shape}, but the mosaic has {canvas.shape}: it was made with other positions; "
            "stitch the mosaic's maps again, or set processing.volume.apply_mask = false"
        )
    return np.asarray(np.nan_to_num(mask) != 0)


def _shift_range(focus: NDArray[np.float32]) -> int:
    return int(np.floor(focus.max() + 0.5)) - int(np.floor(focus.min() + 0.5))


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


@dataclass(frozen=True)
class _Plan:
    """Size of a block, in voxels (z, y, x): whole shards."""

    block: tuple[int, int, int]


def _checksum(path: Path) -> str:
    """Return the CRC-32 of a file; of a folder, of its files' names and contents in order.

    It guards against mix-ups and damage, and costs a tenth of a SHA-256.
    """
    from isal import isal_zlib

    value = 0
    buffer = memoryview(bytearray(4 << 20))
    for file in _files_of(path):
        if file != path:
            value = isal_zlib.crc32(file.relative_to(path).as_posix().encode(), value)
        with file.open("rb", buffering=0) as content:
            while count := content.readinto(buffer):
                value = isal_zlib.crc32(buffer[:count], value)
    return f"{value:08x}"


def _plan(
    shape: tuple[int, int, int],
    voxel_um: tuple[float, float, float],
    settings: VolumeSettings,
    budget: int,
    canvas: Canvas,
    *,
    axial: bool,
    reach: int,
) -> tuple[StoreLayout, _Plan]:
    """Return the store's layout and blocks of whole shards, as large as pays, whose work fits into the budget."""
    tile_x, tile_y = canvas.tile_shape
    fixed = canvas.shape[0] * canvas.shape[1] + len(canvas.offset) * 20_000  # the mask, and the tables of tiles

    def fits(block: Corner) -> bool:
        return 4 * int(np.prod(np.minimum(block, shape))) <= LARGEST_BLOCK_BYTES and cost(block) <= budget

    def cost(block: Corner) -> int:
        bz, by, bx = (min(b, s) for b, s in zip(block, shape, strict=True))
        parts = _most_parts(canvas, by, bx)
        rows = min(by, tile_y)
        inputs = (
            4 * parts * rows * tile_x * (min(bz + reach, shape[0] + reach) + 1)
        )  # samples, and one plane of weights
        # The block (and the sines of axes), the writer's copies, compressed shards, the levels.
        outputs = 4 * bz * by * bx * ((2 if axial else 1) + 2 + 0.9 + 0.4)
        return int(inputs + outputs + 12 * by * bx + fixed)

    for largest in ((128, 512, 512), (64, 512, 512), (64, 256, 256), (64, 128, 128), (64, 64, 64)):
        layout = store_layout(shape, voxel_size_um=voxel_um, version=settings.format, largest_shard=largest)
        shard = layout.shard
        if cost(shard) > budget:
            continue
        block = shard
        # Grow along x first: rows of tiles are then read whole.
        while block[2] < shape[2] and fits((block[0], block[1], block[2] + shard[2])):
            block = (block[0], block[1], block[2] + shard[2])
        while block[2] >= shape[2] and block[1] < shape[1] and fits((block[0], block[1] + shard[1], block[2])):
            block = (block[0], block[1] + shard[1], block[2])
        return layout, _Plan(block)
    smallest = cost((64, 64, 64)) + BASE_BYTES
    raise ConfigurationError(
        f"volume.memory_budget_gb = {settings.memory_budget_gb:g} is too small for this mosaic; at least "
        f"{smallest / 1e9:.2f} is needed"
    )


def _most_parts(canvas: Canvas, rows: int, columns: int) -> int:
    """Return the largest number of parts that touch any block of `rows` x `columns` pixels; a tile has one, or four."""
    counts = np.zeros((-(-canvas.shape[1] // rows), -(-canvas.shape[0] // columns)), np.intp)
    low = canvas.offset[:, ::-1] // (rows, columns)
    between = canvas.fraction[:, ::-1] > 0
    high = (canvas.offset[:, ::-1] + np.array(canvas.tile_shape[::-1]) - 1 + between) // (rows, columns)
    copies = 2 ** between.sum(axis=1)
    for (y0, x0), (y1, x1), count in zip(low, high, copies, strict=True):
        counts[y0 : y1 + 1, x0 : x1 + 1] += count
    return int(counts.max())


def _provenance(
    tiles: MosaicTiles,
    tilemap: TileMap,
    modality: str,
    settings: VolumeSettings,
    focus: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    volumes: Mapping[int, TileVolume],
    z_start: int,
) -> dict[str, Any]:
    """Return what the volume was made from and how; it decides whether an unfinished store may be taken up."""
    choices = settings.model_dump(mode="json", exclude={"memory_budget_gb", "enabled", "modalities"})
    inputs = []
    for number, volume in sorted(volumes.items()):
        files = _files_of(volume.path)
        inputs.append(
            {
                "tile": number,
                "file": volume.path.name,
                "bytes": sum(file.stat().st_size for file in files),
                "sample": _fingerprint(volume.path),
            }
        )
    return {
        "software": f"opticstream {__version__}",
        "modality": modality,
        "settings": choices,
        "positions": [[p.tile, *p.position_px] for p in tilemap.places],
        "focus_sha256": hashlib.sha256(np.ascontiguousarray(focus).tobytes()).hexdigest(),
        "mask_sha256": None if mask is None else hashlib.sha256(np.packbits(mask).tobytes()).hexdigest(),
        "first_depth_px": z_start,
        "inputs": inputs,
    }


def _fingerprint(path: Path) -> str:
    """Return what tells cheaply, before anything is read, whether an unfinished store was made from these inputs.

    It is the SHA-256 of names, sizes and times of change of a file (or of the files of a folder), and of 64 kB at the
    start, middle and end of a file.
    """
    digest = hashlib.sha256()
    for file in _files_of(path):
        stat = file.stat()
        digest.update(f"{file.relative_to(path.parent).as_posix()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    if path.is_file():
        size = path.stat().st_size
        with path.open("rb") as content:
            for start in (0, size // 2, max(size - 65536, 0)):
                content.seek(start)
                digest.update(content.read(65536))
    return digest.hexdigest()


def _files_of(path: Path) -> list[Path]:
    """Return the file, or the files of a folder in the order of their names."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


# --- doing it -----------------------------------------------------------------------------------------------------


class _Buffers:
    """Memory by purpose that is used again: pages touched for the first time cost more than the work done on them."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.float32]] = {}

    def get(self, purpose: str, shape: Sequence[int]) -> NDArray[np.float32]:
        """Return the one array of a purpose, with undefined content; an earlier one must not be in use any more."""
        size = int(np.prod(shape))
        if purpose not in self._held or self._held[purpose].size < size:
            self._held.pop(purpose, None)  # free it before the larger one is made
            self._held[purpose] = np.empty(size, np.float32)
        return self._held[purpose][:size].reshape(shape)


@dataclass
class _Job:
    """One volume being stitched. It can be sent to other processes."""

    volumes: Mapping[int, TileVolume]
    tiles: MosaicTiles
    canvas: Canvas
    positions: NDArray[np.float64]
    focus: NDArray[np.float32]
    mask: NDArray[np.bool_] | None
    axial: bool
    z_start: int
    layout: StoreLayout
    plan: _Plan
    threads: int

    def run(self, store: StoreWriter, report: Progress, executor: Executor | None = None) -> None:
        """Do all blocks that are not done, then the small levels."""
        shape, block = self.layout.shape, self.plan.block
        counts = [-(-s // b) for s, b in zip(shape, block, strict=True)]
        corners = [
            (z * block[0], y * block[1], x * block[2])
            for y in range(counts[1])
            for x in range(counts[2])
            for z in range(counts[0])
        ]
        # Finished work is noted by shard, so that another memory budget can take up where this one stopped.
        todo = [c for c in corners if not store.finished.issuperset(self._shards(c))]
        done = len(corners) - len(todo)
        with ThreadPoolExecutor(self.threads) as pool:
            finished = self._elsewhere(todo, store, executor) if executor else self._here(todo, store, pool)
            for corner in finished:
                for shard in self._shards(corner):
                    store.note_finished(shard)
                done += 1
                report(0.97 * done / len(corners))
            self._small_levels(store.levels, pool)
        report(1.0)

    def _shards(self, corner: Corner) -> list[int]:
        grid = [-(-s // b) for s, b in zip(self.layout.shape, self.layout.shard, strict=True)]
        ranges = [
            range(c // s, min((c + b) // s, g))
            for c, s, b, g in zip(corner, self.layout.shard, self.plan.block, grid, strict=True)
        ]
        return [(z * grid[1] + y) * grid[2] + x for z in ranges[0] for y in ranges[1] for x in ranges[2]]

    def _here(self, corners: Sequence[Corner], store: StoreWriter, pool: ThreadPoolExecutor) -> Iterator[Corner]:
        """Do blocks in this process; yields each when it is stored. One is written while the next is made."""
        worker = _BlockWorker(self, store.levels)
        writing: list[tuple[Corner, list[Any]]] = []
        for corner in corners:
            made = worker.make(corner, pool)
            for before, pending in writing:
                store.levels.settle(pending)
                yield before
            writing = [(corner, worker.write(corner, made))]
        for before, pending in writing:
            store.levels.settle(pending)
            yield before

    def _elsewhere(self, corners: Sequence[Corner], store: StoreWriter, executor: Executor) -> Iterator[Corner]:
        """Do blocks on an executor's workers; yields each when it is stored."""
        futures = {executor.submit(_do_block, self, str(store.levels.folder), corner): corner for corner in corners}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            for future in futures:
                future.cancel()

    def _small_levels(self, levels: LevelArrays, pool: ThreadPoolExecutor) -> None:
        """Make the levels below those of the blocks from the last of these, in slabs."""
        from opticstream.compute.stitching.volume import halved, halved_axis

        for level in range(IN_PASS_LEVELS, self.layout.levels):
            shape, source = self.layout.level_shape(level), self.layout.level_shape(level - 1)
            shard = self.layout.level_shard(level)
            piece = (shard[0], max(1, 1024 // shard[1]) * shard[1], max(1, 2048 // shard[2]) * shard[2])
            for z in range(0, shape[0], piece[0]):
                for y in range(0, shape[1], piece[1]):
                    for x in range(0, shape[2], piece[2]):
                        region = [
                            slice(2 * start, min(2 * (start + n), most))
                            for start, n, most in zip((z, y, x), piece, source, strict=True)
                        ]
                        data = levels.read(level - 1, (region[0], region[1], region[2]))
                        small = halved_axis(data, pool=pool) if self.axial else halved(data, pool=pool)
                        levels.settle([levels.write(level, (z, y, x), small)])


def _do_block(job: _Job, folder: str, corner: Corner) -> None:
    """Do one block in another process."""
    with ThreadPoolExecutor(job.threads) as pool:
        levels = LevelArrays(Path(folder), job.layout, threads=job.threads)
        worker = _BlockWorker(job, levels)
        levels.settle(worker.write(corner, worker.make(corner, pool)))


def dask_executor(address: str, /) -> Executor:
    """Return an executor that does blocks on the Dask cluster at `address`, for `stitch_volume`.

    Raises
    ------
    ConfigurationError
        The ``distributed`` package is not installed, or nothing answers at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigurationError(
            f"a Dask cluster ({address}) was asked for, but the package distributed is not installed: pip install "
            "'opticstream[dask]'"
        ) from error
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except OSError as error:
        raise ConfigurationError(f"no Dask scheduler answers at {address}: {error}") from error
    executor: Executor = client.get_executor(pure=False)
    return executor


@dataclass(frozen=True)
class _Part:
    """A tile at whole pixels of the canvas, weighted by a ramp per axis.

    (A table of weights of the whole mosaic would not fit into every budget.) A tile that lies between pixels is the sum
    of up to four parts: linear interpolation is a weighted mean, and so is blending, of axes as well.
    """

    number: int
    x: int
    y: int
    ramp_x: NDArray[np.float32]
    ramp_y: NDArray[np.float32]


def _parts_of_tile(canvas: Canvas, k: int, number: int, overlap_px: NDArray[np.float64]) -> Iterator[_Part]:
    along_x, along_y = (
        _ramps_between(ramp(size, before=before, after=after), float(fraction))
        for size, (before, after), fraction in zip(canvas.tile_shape, overlap_px, canvas.fraction[k], strict=True)
    )
    x, y = (int(c) for c in canvas.offset[k])
    for dy, ramp_y in along_y:
        for dx, ramp_x in along_x:
            yield _Part(number, x + dx, y + dy, ramp_x, ramp_y)


def _ramps_between(whole: NDArray[np.float32], fraction: float) -> list[tuple[int, NDArray[np.float32]]]:
    """Return (pixels further, ramp by sample) for the one or two pixels that each sample of a tile counts for."""
    if fraction == 0:
        return [(0, whole)]
    here, next_one = np.float32(1 - fraction) * whole, np.zeros_like(whole)
    here[0] = 0  # the first pixel lies outside of the tile
    next_one[:-1] = np.float32(fraction) * whole[1:]
    return [(0, here), (1, next_one)]


class _BlockWorker:
    """Makes blocks of a job, one after the other, in memory that is used again."""

    def __init__(self, job: _Job, levels: LevelArrays, /) -> None:
        from opticstream.compute.stitching.volume import runs_from_shift, shift_from_focus

        self.job, self.levels = job, levels
        self.runs = runs_from_shift(shift_from_focus(job.focus).T)
        self.depth = next(iter(job.volumes.values())).shape[0]
        overlaps = overlap_widths(job.positions, tile_shape=job.tiles.tile_shape)
        self.parts = [
            part
            for k, number in enumerate(job.tiles.numbers)
            if number in job.volumes
            for part in _parts_of_tile(job.canvas, k, number, overlaps[k])
        ]
        self.buffers = _Buffers()

    def write(self, corner: Corner, levels: list[NDArray[np.float32]]) -> list[Any]:
        """Start to write a block and its levels; its memory is free again when this returns."""
        futures = []
        for number, data in enumerate(levels):
            z, y, x = (c // 2**number for c in corner)
            future = self.levels.write(number, (z, y, x), data)
            if future is not None:
                futures.append(future)
        for future in futures:
            future.copy.result()  # the writer has a copy of its own from here on, and not before
        return futures

    def make(self, corner: Corner, pool: ThreadPoolExecutor) -> list[NDArray[np.float32]]:
        """Return a block and its levels; nothing where no tile lies."""
        from opticstream.compute.stitching.volume import angle_from_components, blend_axial, blend_scalar, halved

        job = self.job
        size = [min(b, s - c) for b, s, c in zip(job.plan.block, job.layout.shape, corner, strict=True)]
        touching = self._touching(corner, size)
        total = self._total_weight(touching, corner, size)
        covered = total > 0
        if job.mask is not None:
            covered &= job.mask[corner[2] : corner[2] + size[2], corner[1] : corner[1] + size[1]].T
        if not covered.any():
            return []  # nothing lies here: absent chunks read as the fill value
        parts = self._gather(touching, total, corner, size, pool)
        out = self.buffers.get("out", size)
        z0 = job.z_start + corner[0]
        levels: list[NDArray[np.float32]] = []
        further = min(job.layout.levels, IN_PASS_LEVELS) - 1
        if job.axial:
            sine = self.buffers.get("sine", size)
            blend_axial(out, sine, parts, self.runs, z0, covered, pool=pool)
            cosine_half, sine_half = out, sine
            for _ in range(further):
                cosine_half, sine_half = halved(cosine_half, pool=pool), halved(sine_half, pool=pool)
                levels.append(angle_from_components(cosine_half.copy(), sine_half, pool=pool))
            angle_from_components(out, sine, pool=pool)
        else:
            blend_scalar(out, parts, self.runs, z0, covered, pool=pool)
            level = out
            for _ in range(further):
                level = halved(level, pool=pool)
                levels.append(level)
        return [out, *levels]

    def _touching(self, corner: Corner, size: Sequence[int]) -> list[tuple[_Part, int, int]]:
        """Return the parts that touch a block, each with its first and last row in it."""
        width, height = self.job.tiles.tile_shape
        touching = []
        for part in self.parts:
            first = max(0, corner[1] - part.y)
            last = min(height, corner[1] + size[1] - part.y)
            if first < last and part.x < corner[2] + size[2] and part.x + width > corner[2]:
                touching.append((part, first, last))
        return touching

    def _total_weight(
        self, touching: Sequence[tuple[_Part, int, int]], corner: Corner, size: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return the sum of all tiles' weights over a block, shape (y, x)."""
        total = np.zeros((size[1], size[2]), np.float32)
        for part, first, last in touching:
            x, y = part.x - corner[2], part.y - corner[1]
            left, right = max(0, -x), min(len(part.ramp_x), size[2] - x)
            weight = part.ramp_y[first:last, None] * part.ramp_x[None, left:right]
            total[y + first : y + last, x + left : x + right] += weight
        return total

    def _gather(
        self,
        touching: Sequence[tuple[_Part, int, int]],
        total: NDArray[np.float32],
        corner: Corner,
        size: Sequence[int],
        pool: ThreadPoolExecutor,
    ) -> BlockTiles:
        """Read the parts of tiles that touch a block."""
        from opticstream.compute.stitching.volume import BlockTiles

        job = self.job
        width, _ = job.tiles.tile_shape
        z0 = job.z_start + corner[0] + self.runs.shallowest
        z1 = min(job.z_start + corner[0] + size[0] + self.runs.deepest, self.depth)
        z0 = min(z0, z1)
        rows = np.array([last - first for _, first, last in touching], np.int64)
        tallest = int(rows.max(initial=1))
        data = self.buffers.get("data", (len(touching), z1 - z0, tallest, width))
        place = np.array(
            [(part.y + first - corner[1], part.x - corner[2], first) for part, first, _ in touching], np.int64
        ).reshape(-1, 3)
        weight = np.zeros((len(touching), tallest, width), np.float32)
        for i, (part, first, last) in enumerate(touching):
            y, x = int(place[i, 0]), int(place[i, 1])
            left, right = max(0, -x), min(width, size[2] - x)
            share = total[y : y + last - first, x + left : x + right]
            np.divide(
                part.ramp_y[first:last, None] * part.ramp_x[None, left:right],
                share,
                out=weight[i, : last - first, left:right],
                where=share > 0,
            )

        def read(i: int) -> None:
            part, first, last = touching[i]
            if z1 > z0:
                job.volumes[part.number].read_into(data[i, :, : last - first], z0, first)

        list(pool.map(read, range(len(touching))))
        return BlockTiles(data, z0, place, rows, weight)

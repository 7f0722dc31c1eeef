"""A tile of any size, streamed through the compiled engine by blocks: bounded memory, all cores, one reading."""

from __future__ import annotations

import contextlib
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.reconstruction import CELL_PX, LOOKAHEAD_LINES, SpectralPlan, TileOptions
from opticstream.compute.tile_engine import InlineExecutor, TileEngine, memory_per_b_line, memory_per_function_line
from opticstream.io.nifti_stream import VolumeFile, open_volume
from opticstream.io.raw import SpectralTile
from opticstream.model.errors import ConfigurationError
from opticstream.model.modalities import described
from opticstream.stages.tile._archive_tile import open_archive
from opticstream.stages.tile._archive_writers import ArchiveDigests, ArchiveWriter
from opticstream.stages.tile._complex_tile import archived_complex_tile
from opticstream.stages.tile._quality import Saturation
from opticstream.stages.tile._reconstruction import Reconstructed, TileJob, options_from_job, plan_from_settings

_LARGEST_BLOCK = 16
"""B-lines per block where volumes are written: one run on the disk per depth."""
_SMALL_BLOCK = 4
"""Otherwise; their raw counts stay in the cache between reading and use."""
_ARCHIVE_BYTES = 128 << 20
"""Raw bytes that may wait for the compressor."""
_BASE_BYTES = 250 << 20
"""What the process takes before any tile: interpreter, libraries, compiled kernels."""


def block_size(job: TileJob, options: TileOptions, depth: int, /) -> int:
    """Return how many B-lines are read at a time, so that the tile keeps within its memory budget.

    Raises
    ------
    ConfigurationError
        The budget does not hold a single B-line and those that the surface must look ahead; says what is needed.
    """
    scan, settings = job.scan, job.processing.reconstruction
    samples = scan.samples if scan.raw_format != "complex" else 2 * depth
    padding = settings.zero_padding if scan.raw_format != "complex" else 1
    per_line = memory_per_b_line(
        samples=samples,
        zero_padding=padding,
        a_lines=job.a_lines,
        channels=scan.channels,
        volumes=sum(2 * scan.channels if name == "complex" else 1 for name in options.volumes),
        bytes_per_sample=2 if scan.raw_format != "complex" else 8,
    )
    profiles = scan.channels * (job.a_lines + 16) * samples * padding * 4
    robust = isinstance(options.surface, str) and options.surface == "robust"
    ahead = (LOOKAHEAD_LINES + CELL_PX if robust else 2) + (6 if options.birefringence_method == "unwrap" else 0)
    maps = (len(options.maps) + 5) * job.a_lines * job.b_lines * 4
    archive = _ARCHIVE_BYTES if job.archive else 0
    in_numpy = job.threads * memory_per_function_line(job.a_lines, scan.channels, depth) if options.functions else 0
    fixed = _BASE_BYTES + profiles * ahead + maps + job.threads * profiles + archive + in_numpy
    budget = settings.memory_budget_gb * 1e9
    lines = int((budget - fixed) // per_line)
    if lines < 1:
        raise ConfigurationError(
            f"processing.reconstruction.memory_budget_gb = {settings.memory_budget_gb:g} is too small for tiles of "
            f"{job.a_lines} x {samples} samples on {job.threads} threads; it needs {(fixed + per_line) / 1e9:.2g}"
        )
    slabs = options.birefringence_method == "unwrap"  # these overlap by a few B-lines
    largest = _LARGEST_BLOCK if options.volumes or slabs else max(_SMALL_BLOCK, 2 * job.threads)
    return min(largest, lines, job.b_lines)


def reconstruct_in_blocks(job: TileJob, /) -> Reconstructed:
    """Read a tile once, archive and reconstruct it, write its volumes, and return the rest."""
    options = options_from_job(job, compiled=True)
    with contextlib.ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        if job.threads > 1:
            pool = stack.enter_context(ThreadPoolExecutor(job.threads, thread_name_prefix="tile"))
        if job.scan.raw_format == "complex":
            return _from_complex(job, options, stack, pool)
        return _from_spectra(job, options, stack, pool)


def _volume_files(job: TileJob, options: TileOptions, depth: int, stack: contextlib.ExitStack) -> dict[str, VolumeFile]:
    widths = {name: job.a_lines * (2 * job.scan.channels if name == "complex" else 1) for name in options.volumes}
    return {
        name: stack.enter_context(
            open_volume(
                job.targets[name],
                (width, job.b_lines, depth),
                voxel_size_mm=job.voxel_size_mm,
                description=described(name).tile_header,
                steps=job.steps_of(name),
            )
        )
        for name, width in widths.items()
    }


def _engine(
    job: TileJob,
    options: TileOptions,
    volumes: dict[str, VolumeFile],
    pool: Executor | None,
    block: int,
    plan: SpectralPlan | None,
    depth: int,
) -> TileEngine:
    def sink(first: int, blocks: dict[str, NDArray[np.float32]]) -> None:
        for name, values in blocks.items():
            volumes[name].write(first, values)

    return TileEngine(
        options,
        a_lines=job.a_lines,
        b_lines=job.b_lines,
        channels=job.scan.channels,
        depth=depth,
        cut=0 if plan is None else plan.cut,
        plan=plan,
        block=block,
        executor=pool or InlineExecutor(),
        threads=job.threads,
        sink=sink,
    )


def _from_spectra(
    job: TileJob, options: TileOptions, stack: contextlib.ExitStack, pool: ThreadPoolExecutor | None
) -> Reconstructed:
    scan = job.scan
    assert scan.raw_format != "complex"
    plan = plan_from_settings(scan, job.processing.reconstruction)
    reader = stack.enter_context(SpectralTile.open(job.source, job.spectral_shape, raw_format=scan.raw_format))
    block = block_size(job, options, plan.depth)
    writer: ArchiveWriter[Any] | None = None
    if job.archive is not None:
        writer = stack.enter_context(
            open_archive(job.archive, content=job.spectral_content, level=job.processing.archive.level, pool=pool)
        )
    volumes = _volume_files(job, options, plan.depth, stack)
    engine = _engine(job, options, volumes, pool, block, plan, plan.depth)
    saturation = Saturation()
    tap = writer.tap if writer else None
    for first, counts in reader.blocks(block, tap=tap, reuse=writer is None):
        engine.add_spectra(counts)
        saturation.add(counts)
        job.progress(0.95 * (first + len(counts)) / job.b_lines)
    return _reconstructed(engine, volumes, reader.file_bytes, writer.finish() if writer else None, saturation.fraction)


def _from_complex(
    job: TileJob, options: TileOptions, stack: contextlib.ExitStack, pool: ThreadPoolExecutor | None
) -> Reconstructed:
    tile, digests = stack.enter_context(archived_complex_tile(job, pool=pool))
    block = block_size(job, options, tile.depth)
    volumes = _volume_files(job, options, tile.depth, stack)
    engine = _engine(job, options, volumes, pool, block, None, tile.depth)
    for first in range(0, job.b_lines, block):
        engine.add_complex(tile.block(first, block))
        job.progress(0.95 * min(1.0, (first + block) / job.b_lines))
    return _reconstructed(engine, volumes, job.source.stat().st_size, digests, 0.0)


def _reconstructed(
    engine: TileEngine,
    volumes: dict[str, VolumeFile],
    raw_bytes: int,
    digests: ArchiveDigests | None,
    saturated_fraction: float,
) -> Reconstructed:
    return Reconstructed(
        maps=engine.finish(),
        confidence=engine.confidence,
        section_x=engine.section_x,
        section_y=engine.section_y,
        noise_db=engine.noise_db,
        written={name: volume.bytes for name, volume in volumes.items()},
        raw_bytes=raw_bytes,
        digests=digests,
        saturated_fraction=saturated_fraction,
    )

"""A tile of any size, streamed through the compiled engine by blocks: bounded memory, all cores, one reading."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from opticstream.compute.reconstruction import CELL_PX, LOOKAHEAD_LINES, UNWRAP_HALO_PX, Sink, SpectralPlan, TileOptions
from opticstream.compute.tile_engine import (
    InlineExecutor,
    TileEngine,
    memory_per_b_line,
    memory_per_function_line,
    warm_kernels,
)
from opticstream.model.errors import ConfigurationError
from opticstream.stages.tile._in_blocks import reconstruct_by
from opticstream.stages.tile._reconstruction import Reconstructed, TileJob, options_from_job

_LARGEST_BLOCK = 16
"""B-lines per block where volumes are written: one run on the disk per depth."""
_SMALL_BLOCK = 4
"""Otherwise; their raw counts stay in the cache between reading and use."""
ARCHIVE_BYTES = 128 << 20
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
        volumes=sum(options.volume_widths(scan.channels).values()),
        bytes_per_sample=2 if scan.raw_format != "complex" else 8,
    )
    profiles = scan.channels * (job.a_lines + 16) * samples * padding * 4
    slabs = options.birefringence_method == "unwrap"  # these overlap by a few B-lines
    ahead = (LOOKAHEAD_LINES + CELL_PX if options.finds_sheet else 2) + (2 * UNWRAP_HALO_PX if slabs else 0)
    maps = (len(options.maps) + 5) * job.a_lines * job.b_lines * 4
    archive = ARCHIVE_BYTES if job.archive else 0
    in_numpy = job.threads * memory_per_function_line(job.a_lines, scan.channels, depth) if options.functions else 0
    fixed = _BASE_BYTES + profiles * ahead + maps + job.threads * profiles + archive + in_numpy
    budget = settings.memory_budget_gb * 1e9
    lines = int((budget - fixed) // per_line)
    if lines < 1:
        raise ConfigurationError(
            f"processing.reconstruction.memory_budget_gb = {settings.memory_budget_gb:g} is too small for tiles of "
            f"{job.a_lines} x {samples} samples on {job.threads} threads; it needs {(fixed + per_line) / 1e9:.2g}"
        )
    largest = _LARGEST_BLOCK if options.volumes or slabs else max(_SMALL_BLOCK, 2 * job.threads)
    return min(largest, lines, job.b_lines)


def reconstruct_in_blocks(job: TileJob, /) -> Reconstructed:
    """Read a tile once, archive and reconstruct it, write its volumes, and return the rest."""
    options = options_from_job(job, engine="compiled")
    warm_kernels()
    with contextlib.ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        if job.threads > 1:
            pool = stack.enter_context(ThreadPoolExecutor(job.threads, thread_name_prefix="tile"))

        def make(depth: int, plan: SpectralPlan | None, sink: Sink) -> tuple[TileEngine, int]:
            block = block_size(job, options, depth)
            engine = TileEngine(
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
            return engine, block

        return reconstruct_by(job, options, make, stack, pool)

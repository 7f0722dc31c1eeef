"""A tile that is read once, block by block, by any engine that takes B-lines in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.reconstruction import Sink, SpectralPlan, TileOptions
from opticstream.io.nifti_stream import VolumeFile, open_volume
from opticstream.io.raw import Room, SpectralTile
from opticstream.model.modalities import described
from opticstream.stages.tile._archive_tile import open_archive
from opticstream.stages.tile._archive_writers import ArchiveDigests, ArchiveWriter
from opticstream.stages.tile._complex_tile import archived_complex_tile
from opticstream.stages.tile._quality import Saturation
from opticstream.stages.tile._reconstruction import Reconstructed, TileJob, plan_from_settings

Floats = NDArray[np.float32]


class StreamingEngine(Protocol):
    """Takes the B-lines of a tile in order, and returns its maps."""

    section_x: Floats
    section_y: Floats

    def add_spectra(self, counts: NDArray[Any], /) -> None:
        """Take the next B-lines, counts of shape (b, channels, A-lines, samples)."""

    def add_complex(self, tile: Floats, /) -> None:
        """Take the next B-lines of a complex tile, shape (2 * channels * A-lines, b, z), depth reversed."""

    def finish(self) -> dict[str, Floats]:
        """Return the maps, shape (x, y)."""

    @property
    def confidence(self) -> Floats:
        """Confidence of the surface, shape (x, y)."""

    @property
    def noise_db(self) -> float:
        """Median over the A-lines of the mean intensity of the deepest twentieth."""


MakeEngine = Callable[[int, SpectralPlan | None, Sink], tuple[StreamingEngine, int]]
"""Returns an engine and the number of B-lines that it takes at a time, from depth, plan (None: complex tiles), sink."""


def reconstruct_by(
    job: TileJob,
    options: TileOptions,
    make: MakeEngine,
    stack: contextlib.ExitStack,
    pool: ThreadPoolExecutor | None,
    /,
    *,
    room: Room | None = None,
) -> Reconstructed:
    """Read a tile once, archive it, reconstruct it by an engine, write its volumes, and return the rest.

    Parameters
    ----------
    job, options
        The tile, and what is made of it.
    make : callable
        Makes the engine.
    stack : ExitStack
        Closes what is opened here.
    pool : ThreadPoolExecutor, optional
        For the archive copy.
    room : callable, optional
        Where raw counts are read into.
    """
    if job.scan.raw_format == "complex":
        return _from_complex(job, options, make, stack, pool)
    return _from_spectra(job, options, make, stack, pool, room)


def _volume_files(job: TileJob, options: TileOptions, depth: int, stack: contextlib.ExitStack) -> dict[str, VolumeFile]:
    return {
        name: stack.enter_context(
            open_volume(
                job.targets[name],
                (width * job.a_lines, job.b_lines, depth),
                voxel_size_mm=job.voxel_size_mm,
                description=described(name).tile_header,
                steps=job.steps_of(name),
            )
        )
        for name, width in options.volume_widths(job.scan.channels).items()
    }


def _into(volumes: dict[str, VolumeFile]) -> Sink:
    def sink(first: int, blocks: dict[str, Floats]) -> None:
        for name, values in blocks.items():
            volumes[name].write(first, values)

    return sink


def _from_spectra(
    job: TileJob,
    options: TileOptions,
    make: MakeEngine,
    stack: contextlib.ExitStack,
    pool: ThreadPoolExecutor | None,
    room: Room | None,
) -> Reconstructed:
    scan = job.scan
    assert scan.raw_format != "complex"
    plan = plan_from_settings(scan, job.processing.reconstruction)
    reader = stack.enter_context(SpectralTile.open(job.source, job.spectral_shape, raw_format=scan.raw_format))
    volumes: dict[str, VolumeFile] = {}
    engine, block = make(plan.depth, plan, _into(volumes))
    writer: ArchiveWriter[Any] | None = None
    if job.archive is not None:
        writer = stack.enter_context(
            open_archive(job.archive, content=job.spectral_content, level=job.processing.archive.level, pool=pool)
        )
    volumes |= _volume_files(job, options, plan.depth, stack)
    saturation = Saturation()
    tap = writer.tap if writer else None
    for first, counts in reader.blocks(block, tap=tap, reuse=writer is None, room=room):
        engine.add_spectra(counts)
        saturation.add(counts)
        job.progress(0.95 * (first + len(counts)) / job.b_lines)
    return _reconstructed(engine, volumes, reader.file_bytes, writer.finish() if writer else None, saturation.fraction)


def _from_complex(
    job: TileJob,
    options: TileOptions,
    make: MakeEngine,
    stack: contextlib.ExitStack,
    pool: ThreadPoolExecutor | None,
) -> Reconstructed:
    tile, digests = stack.enter_context(archived_complex_tile(job, pool=pool))
    volumes: dict[str, VolumeFile] = {}
    engine, block = make(tile.depth, None, _into(volumes))
    volumes |= _volume_files(job, options, tile.depth, stack)
    for first in range(0, job.b_lines, block):
        engine.add_complex(tile.block(first, block))
        job.progress(0.95 * min(1.0, (first + block) / job.b_lines))
    return _reconstructed(engine, volumes, job.source.stat().st_size, digests, 0.0)


def _reconstructed(
    engine: StreamingEngine,
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

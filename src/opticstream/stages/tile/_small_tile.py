"""A small tile in plain NumPy, held whole: no compiled code to load, at most a second of work."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from opticstream.compute.reconstruction import jones_from_complex_tile, jones_from_spectra
from opticstream.io.nifti_stream import write_map
from opticstream.io.raw import SpectralTile
from opticstream.model.modalities import described
from opticstream.stages.tile._archive_tile import open_archive
from opticstream.stages.tile._archive_writers import ArchiveDigests, ArchiveWriter
from opticstream.stages.tile._complex_tile import archived_complex_tile
from opticstream.stages.tile._quality import Saturation
from opticstream.stages.tile._reconstruction import (
    Reconstructed,
    TileJob,
    arrays_from_jones,
    options_from_job,
    plan_from_settings,
)

_BLOCK_BYTES = 16 << 20


def reconstruct_in_memory(job: TileJob, /) -> Reconstructed:
    """Read a tile once, archive and reconstruct it, write its volumes, and return the rest."""
    scan, processing = job.scan, job.processing
    saturation = Saturation()
    digests: ArchiveDigests | None = None
    if scan.raw_format == "complex":
        with archived_complex_tile(job) as (tile, digests):
            jones = jones_from_complex_tile(tile.block(0, job.b_lines), channels=scan.channels)
        raw_bytes = job.source.stat().st_size
    else:
        plan = plan_from_settings(scan, processing.reconstruction)
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(SpectralTile.open(job.source, job.spectral_shape, raw_format=scan.raw_format))
            writer: ArchiveWriter[Any] | None = None
            if job.archive is not None:
                writer = stack.enter_context(
                    open_archive(job.archive, content=job.spectral_content, level=processing.archive.level)
                )
            jones = np.empty((scan.channels, job.a_lines, job.b_lines, plan.depth), np.complex64)
            rows = max(1, _BLOCK_BYTES // reader.bytes_per_b_line)
            for first, counts in reader.blocks(rows, tap=writer.tap if writer else None):
                jones[:, :, first : first + len(counts)] = jones_from_spectra(counts, plan)
                saturation.add(counts)
                job.progress(0.6 * (first + len(counts)) / job.b_lines)
            raw_bytes = reader.file_bytes
            if writer is not None:
                digests = writer.finish()
    arrays = arrays_from_jones(jones, options_from_job(job, engine="plain"))
    job.progress(0.8)
    written = {}
    for name, path in job.targets.items():
        if name not in arrays.volumes:
            continue
        data = arrays.volumes[name]
        content = write_map(
            path,
            data,
            voxel_size_mm=job.voxel_size_mm,
            description=described(name).tile_header,
            steps=job.steps_of(name),
        )
        written[name] = len(content)
    return Reconstructed(
        maps=arrays.maps,
        confidence=arrays.confidence,
        section_x=arrays.section_x,
        section_y=arrays.section_y,
        noise_db=arrays.noise_db,
        written=written,
        raw_bytes=raw_bytes,
        digests=digests,
        saturated_fraction=saturation.fraction,
    )

"""A complex tile and its archive copy, in one reading of the raw file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from opticstream.io.raw import ComplexTile
from opticstream.stages.tile._archive_tile import open_archive
from opticstream.stages.tile._archive_writers import ArchiveDigests, ArchiveWriter
from opticstream.stages.tile._reconstruction import TileJob


@contextlib.contextmanager
def archived_complex_tile(
    job: TileJob, /, *, pool: ThreadPoolExecutor | None = None
) -> Iterator[tuple[ComplexTile, ArchiveDigests | None]]:
    """Yield the complex tile of a job, and the digests of its archive copy if it is to have one.

    The copy appears when the block ends without an error.
    """
    with contextlib.ExitStack() as stack:
        writer: ArchiveWriter[Any] | None = None
        if job.archive is not None:
            writer = stack.enter_context(open_archive(job.archive, level=job.processing.archive.level, pool=pool))
        tile = stack.enter_context(
            ComplexTile.open(
                job.source,
                a_lines=job.a_lines,
                b_lines=job.b_lines,
                channels=job.scan.channels,
                setting=job.setting,
                tap=writer.tap if writer else None,
                copy_to=job.folder,
            )
        )
        yield tile, writer.finish() if writer else None

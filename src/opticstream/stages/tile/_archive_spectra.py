"""The spectral file that some rigs write beside a complex tile: read once, to be checked, archived and looked at."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opticstream.io.raw import SpectralShape, SpectralTile
from opticstream.stages.tile._archive_tile import open_archive
from opticstream.stages.tile._archive_writers import ArchiveDigests, ArchiveWriter, SpectraContent
from opticstream.stages.tile._quality import Saturation

_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Spectra:
    """What was found in one reading of a spectral file."""

    raw_bytes: int
    digests: ArchiveDigests | None
    """None where no archive copy was made."""
    saturated_fraction: float


def read_spectra(
    source: Path,
    shape: SpectralShape,
    /,
    *,
    raw_format: Literal["nifti", "packed12"],
    archive: Path | None = None,
    level: int = 1,
    threads: int = 1,
) -> Spectra:
    """Read a spectral file once, make its archive copy if one is wanted, and return what was found.

    Raises
    ------
    MissingInputError, TileSizeError, FileFormatError, InputError
        The file is absent, of another size, damaged, or cannot be read; no archive copy is left then.
    """
    saturation = Saturation()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(SpectralTile.open(source, shape, raw_format=raw_format))
        writer: ArchiveWriter[Any] | None = None
        if archive is not None:
            pool = stack.enter_context(ThreadPoolExecutor(threads)) if threads > 1 else None
            content = SpectraContent(shape, raw_format, str(source))
            writer = stack.enter_context(open_archive(archive, content=content, level=level, pool=pool))
        b_lines = max(1, _BLOCK_BYTES // reader.bytes_per_b_line)
        for _, counts in reader.blocks(b_lines, tap=writer.tap if writer else None):
            saturation.add(counts)
        return Spectra(reader.file_bytes, writer.finish() if writer else None, saturation.fraction)

"""One raw tile to volumes, surface and en face maps, and its archive copy, in one reading of the raw file."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.jones import complex_tile_from_jones, jones_from_complex_tile
from opticstream.compute.spectral import jones_from_spectra
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.io.atomic import temporary_beside
from opticstream.io.nifti_stream import write_map
from opticstream.io.paths import tile_product_name
from opticstream.io.raw import ComplexTile, SpectralShape, SpectralTile
from opticstream.model.ids import TileId
from opticstream.stages.archive_tile import ArchiveWriter, archive_tile, checksum_path, open_archive
from opticstream.stages.reconstruction import (
    UNITS,
    arrays_from_jones,
    check_polarization,
    depth_step_mm,
    plan_from_settings,
    products,
    read_surface,
)
from opticstream.stages.tile_qc import Saturation, figures_from_maps

Progress = Callable[[float], None]
"""Called with the fraction done, 0..1."""


def _link(source: Path, target: Path) -> None:
    """Make `target` a link to `source`, atomically; a file that already is the source stays."""
    if target.exists() and target.samefile(source) and not target.is_symlink():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    temporary.symlink_to(source.absolute())
    temporary.replace(target)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file that a stage has written."""

    path: Path
    bytes: int
    sha256: str | None = None
    """Checksum, where it was computed: not for volumes and complex tiles."""


@dataclass(frozen=True, slots=True)
class TileResult:
    """What one tile left behind."""

    tile: TileId
    source: Path
    raw_bytes: int
    raw_sha256: str | None
    """SHA-256 of the raw file; None where no archive copy was made."""
    outputs: dict[str, OutputFile]
    """By product: complex, dBI, ..., surf, surfraw, archive, checksum."""
    figures: dict[str, float] = field(default_factory=dict)
    """Quality figures, see `opticstream.stages.tile_qc`."""
    flags: tuple[str, ...] = ()
    """Quality limits that were exceeded; empty for a good tile."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        plain = asdict(self)
        plain["tile"] = self.tile.key
        plain["source"] = str(self.source)
        for output in plain["outputs"].values():
            output["path"] = str(output["path"])
        return plain


def available_threads(requested: int = 0, /) -> int:
    """Return how many threads to use: as requested, or as many cores as this process may run on."""
    if requested > 0:
        return requested
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def process_tile(
    source: Path,
    tile: TileId,
    /,
    *,
    scan: ScanSettings,
    processing: ProcessingSettings,
    out_dir: Path,
    archive_to: Path | None = None,
    progress: Progress | None = None,
) -> TileResult:
    """Reconstruct one tile, write its products and its archive copy, and return what was written.

    Parameters
    ----------
    source : Path
        Raw file, in the format of `scan.raw_format`.
    tile : TileId
        Its place in the acquisition: gives the size (by illumination) and the output names.
    scan, processing : settings
        Facts of the instrument, choices of the scientist.
    out_dir : Path
        The project's folder; products go to `mosaic-{mosaic:02d}/processed/` and `.../complex/` in it.
    archive_to : Path, optional
        Name of the archive copy (`.nii.gz`, `.raw.gz`); its checksum file is put beside it.
    progress : callable, optional
        Told the fraction done.

    Raises
    ------
    MissingInputError, TileSizeError, FileFormatError, InputError
        The raw file is absent, of another size, damaged, holds NaN, or cannot be read.
    CalibrationError
        A calibration file cannot be used.
    """
    check_polarization(scan, processing)
    index = scan.layout.illumination_index(tile.mosaic)
    a_lines, b_lines = scan.tile_shape(index)
    setting = f"scan.illuminations[{index}] and scan"
    folder = out_dir / tile.mosaic.folder
    report = progress or (lambda _fraction: None)
    flat_surface = None
    if isinstance(processing.enface.surface, str) and processing.enface.surface.endswith((".nii", ".nii.gz")):
        flat_surface = read_surface(Path(processing.enface.surface), (a_lines, b_lines))
    outputs: dict[str, OutputFile] = {}
    raw_sha256 = None
    saturation = 0.0

    if scan.raw_format == "complex":
        opened = ComplexTile.open(source, a_lines=a_lines, b_lines=b_lines, channels=scan.channels, setting=setting)
        raw_bytes = source.stat().st_size
        jones = jones_from_complex_tile(opened.block(0, b_lines), channels=scan.channels)
        if archive_to is not None:  # apart: a complex tile lies depth-slowest, so it cannot be read by rows in one go
            raw_sha256 = archive_tile(source, archive_to, level=processing.archive.level).sha256
        target = folder / "complex" / tile_product_name(tile, "complex")
        _link(source, target)
        outputs["complex"] = OutputFile(target, raw_bytes)
    else:
        plan = plan_from_settings(scan, processing.reconstruction)
        shape = SpectralShape(scan.samples, a_lines, scan.channels, b_lines, setting)
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(SpectralTile.open(source, shape, raw_format=scan.raw_format))
            writer: ArchiveWriter | None = None
            if archive_to is not None:
                writer = stack.enter_context(open_archive(archive_to, level=processing.archive.level))
            jones = np.empty((scan.channels, a_lines, b_lines, plan.depth), np.complex64)
            saturated = Saturation()
            rows = max(1, (16 << 20) // reader.bytes_per_b_line)
            for first, counts in reader.blocks(rows, tap=writer.tap if writer else None):
                jones[:, :, first : first + len(counts)] = jones_from_spectra(counts, plan)
                saturated.add(counts)
                report(0.6 * (first + len(counts)) / b_lines)
            raw_bytes = reader.file_bytes
            saturation = saturated.fraction
            if writer is not None:
                raw_sha256 = writer.finish()
    if archive_to is not None:
        outputs["archive"] = OutputFile(archive_to, archive_to.stat().st_size)
        outputs["checksum"] = OutputFile(checksum_path(archive_to), checksum_path(archive_to).stat().st_size)
    arrays = arrays_from_jones(jones, scan=scan, processing=processing, flat_surface=flat_surface)
    report(0.8)
    x_mm, y_mm, _ = scan.scan_resolution_3d
    voxel = (x_mm, y_mm, depth_step_mm(scan, processing.reconstruction))
    for name in products(scan, processing):
        if name in outputs:
            continue
        subfolder = "complex" if name == "complex" else "processed"
        target = folder / subfolder / tile_product_name(tile, name)
        if name == "complex":
            data: NDArray[Any] = complex_tile_from_jones(jones)
        else:
            data = arrays.volumes[name] if name in arrays.volumes else arrays.maps[name]
        content = write_map(target, data, voxel_size_mm=voxel, description=UNITS[name])
        digest = hashlib.sha256(content).hexdigest() if data.ndim == 2 else None
        outputs[name] = OutputFile(target, len(content), digest)
    report(1.0)
    figures = figures_from_maps(
        arrays.maps.get("aip"), arrays.maps["surfraw"], noise_db=arrays.noise_db, saturated_fraction=saturation
    )
    return TileResult(tile, source, raw_bytes, raw_sha256, outputs, figures.as_dict(), figures.flags())

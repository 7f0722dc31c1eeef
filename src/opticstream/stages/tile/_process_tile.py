"""One raw tile to volumes, surface and en face maps, and its archive copy, in one reading of the raw file."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.config.engines import CudaEngine, cuda_for, matlab_for
from opticstream.io.atomic import write_bytes
from opticstream.io.nifti_stream import map_bytes
from opticstream.io.packed import is_packed
from opticstream.io.paths import tile_product_name
from opticstream.io.tile_thumbnail import thumbnail_path, tile_thumbnail
from opticstream.model.errors import CardError, InputError
from opticstream.model.ids import TileId
from opticstream.model.modalities import described
from opticstream.model.verdict import Grade
from opticstream.stages.tile._archive_spectra import read_spectra
from opticstream.stages.tile._archive_tile import checksum_path
from opticstream.stages.tile._first_look import FirstLook
from opticstream.stages.tile._picture import tile_picture
from opticstream.stages.tile._quality import figures_from_maps
from opticstream.stages.tile._reconstruction import (
    Reconstructed,
    TileJob,
    check_polarization,
    maps_of_tile,
    products,
    read_surface,
)
from opticstream.system.cores import available_cores, one_blas_thread
from opticstream.system.disk import symbolic_link

if TYPE_CHECKING:
    from opticstream.stages.tile._matlab_tile import MatlabTiles

_log = logging.getLogger(__name__)

SMALL_TILE = 32 << 20
"""Raw values up to which a tile is done in plain NumPy, whole: about a second, without loading compiled code."""

Progress = Callable[[float], None]
"""Called with the fraction done, 0..1."""


def _link(source: Path, target: Path, project_folder: Path) -> bool:
    """Make `target` a link to `source`, unless it is that file already. False where the file system has no links.

    What lies in or beside the project's folder is linked from there, so that both can be moved, or mounted elsewhere.
    """
    if target.exists() and target.samefile(source) and not target.is_symlink():
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    wanted = source.absolute()
    real, folder = wanted.parent.resolve() / wanted.name, target.parent.resolve()
    is_beside = real.is_relative_to(project_folder.resolve().parent)
    return symbolic_link(target, os.path.relpath(real, folder) if is_beside else str(wanted))


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
    """Quality figures, see `opticstream.stages.tile._quality`."""
    flags: tuple[str, ...] = ()
    """Quality limits that were exceeded; empty for a good tile."""
    verdict: Grade = "ok"
    """Verdict of quality control."""
    engine: str = "native"
    """What made it: `native`, `matlab`, or `cuda` with the version of CuPy and the name of the card."""
    engine_note: str = ""
    """Why another engine made it than the settings say; empty where they agree."""

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
    return requested if requested > 0 else available_cores()


def _with_spectra(done: Reconstructed, spectra: Path, job: TileJob, archive: Path | None) -> Reconstructed:
    """Check and archive the spectra beside a complex tile; return the result with their size, checksum, saturation."""
    seen = read_spectra(
        spectra,
        job.spectral_shape,
        raw_format=job.scan.spectral_format,
        archive=archive,
        level=job.processing.archive.level,
        threads=job.threads,
    )
    return replace(done, raw_bytes=seen.raw_bytes, digests=seen.digests, saturated_fraction=seen.saturated_fraction)


def _reconstructed(tile: TileId, job: TileJob, matlab: MatlabTiles | None) -> Reconstructed:
    """Return the results of the engine that the settings name, and of the code that is quickest for the tile's size."""
    if matlab is not None:
        return matlab.reconstruct(tile, job)
    if matlab_for(job.processing.engine, "tile") is not None:
        from opticstream.stages.tile._matlab_tile import reconstruct_one

        return reconstruct_one(tile, job)
    cuda = cuda_for(job.processing.engine, "tile")
    return _by_own_code(job) if cuda is None else _by_card_or_own_code(job, cuda)


def _by_card_or_own_code(job: TileJob, cuda: CudaEngine) -> Reconstructed:
    """Return the results of the graphics card; of our compiled code, with the reason, where the card cannot be used."""
    from opticstream.stages.tile._card_tile import reconstruct_on_card

    try:
        return reconstruct_on_card(job, cuda)
    except CardError as error:
        if cuda.required:
            raise CardError(
                f"{job.source}: {error}; processing.engine.required = true. `opticstream engines check` tries it; "
                "with required = false our compiled code makes such tiles"
            ) from error
        reason = str(error)
    _tell(reason)
    return replace(_by_own_code(job), engine_note=f"no graphics card: {reason}")


@functools.lru_cache(maxsize=64)
def _tell(reason: str) -> None:
    """Say once in a process why tiles are not made on a graphics card."""
    _log.warning("tiles are made by our compiled code, not on a graphics card: %s", reason)


def _by_own_code(job: TileJob) -> Reconstructed:
    """Return the results of our own code for processors, of the one that is quickest for the tile's size."""
    scan = job.scan
    if job.a_lines * job.b_lines * scan.samples * scan.channels <= SMALL_TILE:
        from opticstream.stages.tile._small_tile import reconstruct_in_memory

        return reconstruct_in_memory(job)
    # imports the compiler, which costs a small tile more than it saves
    from opticstream.stages.tile._large_tile import reconstruct_in_blocks

    return reconstruct_in_blocks(job)


def _job_of(
    source: Path,
    tile: TileId,
    scan: ScanSettings,
    processing: ProcessingSettings,
    out_dir: Path,
    archive: Path | None = None,
    progress: Progress | None = None,
) -> TileJob:
    """Return all that is to be made of a tile, from the settings."""
    check_polarization(scan, processing)
    index = scan.layout.illumination_index(tile.mosaic)
    a_lines, b_lines = scan.tile_shape(index)
    given = None
    if isinstance(processing.enface.surface, str) and processing.enface.surface.endswith((".nii", ".nii.gz")):
        given = read_surface(Path(processing.enface.surface), (a_lines, b_lines))
    folder = out_dir / tile.mosaic.folder
    targets = {
        name: folder / ("complex" if name == "complex" else "processed") / tile_product_name(tile, name)
        for name in products(scan, processing)
    }
    return TileJob(
        source=source,
        a_lines=a_lines,
        b_lines=b_lines,
        setting=f"scan.illuminations[{index}] and scan",
        scan=scan,
        processing=processing,
        given_surface=given,
        targets=targets,
        folder=folder / "processed",
        archive=archive,
        progress=progress or (lambda _fraction: None),
        threads=available_threads(processing.reconstruction.threads),
    )


def _look_of(done: Reconstructed, job: TileJob, *, key: str, picture: bool = True) -> FirstLook:
    """Return the maps, the pictures and the figures of a reconstructed tile."""
    files = {
        name: map_bytes(image, voxel_size_mm=job.voxel_size_mm, description=described(name).tile_header)
        for name, image in done.maps.items()
        if name in job.targets
    }
    if picture:
        if thumbnail := tile_thumbnail(done.maps, noise_db=done.noise_db):
            files["thumbnail"] = thumbnail
        files["qc"] = tile_picture(done.maps, done.section_x, done.section_y, noise_db=done.noise_db)
    figures = figures_from_maps(
        done.maps, done.confidence, noise_db=done.noise_db, saturated_fraction=done.saturated_fraction
    )
    return FirstLook(key=key, files=files, figures=figures, engine_note=done.engine_note)


def look_at_tile(
    source: Path, tile: TileId, /, *, scan: ScanSettings, processing: ProcessingSettings, out_dir: Path, key: str
) -> FirstLook:
    """Make the maps, the pictures and the figures of a tile, and nothing else; return them.

    `write_look` shows them. `process_tile` takes them and makes the rest. Saturation is not known where it is measured
    in spectra beside the tile.

    Parameters
    ----------
    source : Path
        Raw file, not packed.
    tile, scan, processing, out_dir
        As for `process_tile`. The engine is not MATLAB.
    key : str
        What it is made from, see `FirstLook`.

    Raises
    ------
    OpticStreamError
        As for `process_tile`; InputError for a packed file, which it takes too long to read twice.
    """
    if is_packed(source):
        raise InputError(f"{source}: is packed, so that a first look would take as long as the tile")
    job = _job_of(source, tile, scan, processing, out_dir)
    job = replace(job, targets={name: job.targets[name] for name in maps_of_tile(processing)})
    with one_blas_thread():
        return _look_of(_reconstructed(tile, job, None), job, key=key)


def process_tile(
    source: Path,
    tile: TileId,
    /,
    *,
    scan: ScanSettings,
    processing: ProcessingSettings,
    out_dir: Path,
    archive_to: Path | None = None,
    spectra: Path | None = None,
    picture: bool = True,
    progress: Progress | None = None,
    matlab: MatlabTiles | None = None,
    look: FirstLook | None = None,
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
        Name of the archive copy (`.nii.gz`, `.raw.gz`, `.zarr.zip`); its checksum file is put beside it.
    spectra : Path, optional
        Spectral file that the rig wrote beside a complex `source`, in the format of `scan.spectral_format`: it is
        checked and archived instead, and saturation is measured in it.
    picture : bool
        Also draw the quality picture (`..._qc.jpg`, beside the maps) and the thumbnail (`thumbnail_path`).
    progress : callable, optional
        Told the fraction done.
    matlab : MatlabTiles, optional
        The call that processes this tile among others, where `processing.engine` is MATLAB; default: one of its own.
    look : FirstLook, optional
        Maps, pictures and figures that have been made from the same file with the same settings.

    Raises
    ------
    EngineError, ProcessingError
        MATLAB or a graphics card that is required failed, or the results are not what was asked for.
    MissingInputError, TileSizeError, FileFormatError, InputError
        The raw file is absent, of another size, damaged, holds NaN, or cannot be read.
    CalibrationError
        A calibration file cannot be used.
    """
    job = _job_of(source, tile, scan, processing, out_dir, None if spectra is not None else archive_to, progress)
    made = job if look is None else _rest_of(job)
    with one_blas_thread():
        done = _reconstructed(tile, made, matlab)
    if spectra is not None:
        done = _with_spectra(done, spectra, job, archive_to)
    outputs = {name: OutputFile(job.targets[name], size) for name, size in done.written.items()}
    if archive_to is not None:
        sha256 = None if done.digests is None else done.digests.archive
        outputs["archive"] = OutputFile(archive_to, archive_to.stat().st_size, sha256)
        outputs["checksum"] = OutputFile(checksum_path(archive_to), checksum_path(archive_to).stat().st_size)
    if scan.raw_format == "complex" and _link(source, job.targets["complex"], out_dir):
        outputs["complex"] = OutputFile(job.targets["complex"], source.stat().st_size)
    if look is None:
        look = _look_of(done, job, key="", picture=picture)
    outputs |= _write_files(look, job, tile, out_dir)
    job.progress(1.0)
    figures = replace(look.figures, saturated_fraction=done.saturated_fraction)
    verdict = figures.verdict(processing.quality)
    return TileResult(
        tile,
        source,
        done.raw_bytes,
        None if done.digests is None else done.digests.raw,
        outputs,
        figures.as_dict(),
        verdict.reasons,
        verdict.grade,
        done.engine,
        done.engine_note or look.engine_note,
    )


def _rest_of(job: TileJob) -> TileJob:
    """Return what is to be made of a tile besides its maps."""
    maps = maps_of_tile(job.processing)
    return replace(job, targets={name: path for name, path in job.targets.items() if name not in maps})


def _write_files(look: FirstLook, job: TileJob, tile: TileId, out_dir: Path) -> dict[str, OutputFile]:
    """Write maps and pictures under their names, and return those that are outputs: all but the thumbnail."""
    outputs = {}
    for name, content in look.files.items():
        if name == "thumbnail":
            write_bytes(thumbnail_path(out_dir, tile), content)
            continue
        path = job.targets.get(name) or (job.folder / tile_product_name(tile, name)).with_suffix(".jpg")
        write_bytes(path, content)
        outputs[name] = OutputFile(path, len(content), hashlib.sha256(content).hexdigest())
    return outputs

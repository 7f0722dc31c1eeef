"""Tiles by MATLAB: one call for the tiles of a batch, whose results are checked and written like those of our own code.

MATLAB writes into a temporary folder beside the results. Volumes and maps are read from there, checked for size and
values, and written under their names whole, as by our own code; the raw file is read a second time, for the checks, the
checksum and the archive copy.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.reconstruction import SpectralPlan, spectral_window
from opticstream.config import DeploymentSettings, ProcessingSettings, ScanSettings
from opticstream.config.engines import MATLAB_FUNCTIONS, MatlabEngine, matlab_for
from opticstream.engines import MatlabCall, MatlabItem, MatlabStep, matlab_program
from opticstream.io.atomic import temporary_beside
from opticstream.io.calibration_files import load_calibration
from opticstream.io.disk_errors import disk_errors
from opticstream.io.nifti import read_nifti
from opticstream.io.nifti_stream import open_volume
from opticstream.io.packed import is_packed, packed_reader, unpacked_name
from opticstream.model.errors import ProcessingError
from opticstream.model.ids import TileId
from opticstream.model.modalities import described, volume_names
from opticstream.stages.tile._archive_spectra import Spectra, read_spectra
from opticstream.stages.tile._complex_tile import archived_complex_tile
from opticstream.stages.tile._reconstruction import Reconstructed, TileJob, depth_step_mm, plan_from_settings

_SURFACES = ("surf", "surfraw")
_OPTIONAL = frozenset({"confidence"})
_PIECE_BYTES = 64 << 20


class MatlabTiles:
    """Tiles that MATLAB processes in one call, in the order of their numbers; use as a context manager.

    The call starts with the first tile whose result is asked for, and goes on with the others meanwhile.

    Parameters
    ----------
    tiles : mapping
        Raw file of each tile; all tiles belong to one illumination.
    scan, processing
        Settings of the project; MATLAB is the engine of its tiles.
    deployment : DeploymentSettings
        How MATLAB is started on this host.
    folder : Path
        Folder in which the temporary one is made: the same file system as the results'.
    """

    def __init__(
        self,
        tiles: Mapping[TileId, Path],
        /,
        *,
        scan: ScanSettings,
        processing: ProcessingSettings,
        deployment: DeploymentSettings,
        folder: Path,
    ) -> None:
        engine = matlab_for(processing.engine, "tile")
        assert engine is not None
        self._engine: MatlabEngine = engine
        self._tiles, self._scan, self._processing = dict(tiles), scan, processing
        self._deployment, self._folder = deployment, folder
        self._stack = contextlib.ExitStack()
        self._call: MatlabCall | None = None
        self._scratch: Path | None = None

    def __enter__(self) -> MatlabTiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reconstruct(self, tile: TileId, job: TileJob, /) -> Reconstructed:
        """Return a tile's results, its volumes written; check and archive the raw file meanwhile.

        Raises
        ------
        InputError
            The raw file is absent, of another size, damaged, or holds NaN.
        ConfigurationError, CalibrationError
            MATLAB cannot be started, or a calibration file cannot be used.
        EngineError, ProcessingError
            MATLAB failed, or its results are not what was asked for.
        """
        if tile not in self._tiles:  # its file came, or was replaced, after the others were looked for
            with MatlabTiles(
                {tile: job.source},
                scan=self._scan,
                processing=self._processing,
                deployment=self._deployment,
                folder=self._folder,
            ) as alone:
                return alone.reconstruct(tile, job)
        if self._call is None:
            self._call = self._prepared(job)
        self._call.begin(str(tile))
        job.progress(0.05)
        seen = self._checked(job)
        item = self._call.wait_for(str(tile))
        job.progress(0.8)
        try:
            return self._taken(job, item, seen)
        finally:
            for path in item.outputs.values():
                path.unlink(missing_ok=True)

    def _prepared(self, job: TileJob) -> MatlabCall:
        """Return the call, with its folder and everything that MATLAB is told."""
        program = matlab_program(self._deployment, self._engine)
        scan, processing = self._scan, self._processing
        plan = None if scan.raw_format == "complex" else plan_from_settings(scan, processing.reconstruction)
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = temporary_beside(self._folder / "matlab")
        with disk_errors(scratch):
            scratch.mkdir()
        self._stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        items = [
            MatlabItem(str(tile), self._steps(tile, source, scratch), _OPTIONAL)
            for tile, source in sorted(self._tiles.items(), key=lambda pair: pair[0].tile_id)
        ]
        call = MatlabCall(
            program,
            items,
            settings=self._settings(job, plan),
            vectors=self._vectors(job, plan),
            folder=scratch,
        )
        return self._stack.enter_context(call)

    def _steps(self, tile: TileId, source: Path, scratch: Path) -> tuple[MatlabStep, ...]:
        scan, settings = self._scan, self._processing.reconstruction
        wanted = dict.fromkeys(
            (
                *(settings.volume_modalities if settings.save_volumes else ()),
                "dBI",  # the quality picture and the noise level are taken from it
                *self._processing.enface.modalities,
                *_SURFACES,
                *_OPTIONAL,
            )
        )
        outputs = {name: scratch / f"tile-{tile.tile_id:04d}-{name}.nii" for name in wanted}
        function = self._engine.function
        if scan.raw_format == "complex":
            return (MatlabStep(function("complex_to_processed"), source.absolute(), outputs),)
        if is_packed(source):
            source = _unpacked(source, scratch / f"tile-{tile.tile_id:04d}-{unpacked_name(source.name)}")
        complex_tile = scratch / f"tile-{tile.tile_id:04d}-complex.nii"
        if self._engine.by_complex:
            return (
                MatlabStep(function("spectral_to_complex"), source.absolute(), {"complex": complex_tile}),
                MatlabStep(function("complex_to_processed"), complex_tile, outputs),
            )
        if settings.save_complex:
            outputs["complex"] = complex_tile
        return (MatlabStep(function("spectral_to_processed"), source.absolute(), outputs),)

    def _settings(self, job: TileJob, plan: SpectralPlan | None) -> dict[str, Any]:
        scan, processing = self._scan, self._processing
        reconstruction, enface = processing.reconstruction, processing.enface
        return {
            "samples": scan.samples,
            "channels": scan.channels,
            "a_lines": job.a_lines,
            "b_lines": job.b_lines,
            "raw_format": scan.raw_format,
            "background": reconstruction.background,
            "flip_channel2": reconstruction.flip_channel2,
            "residual_background": reconstruction.residual_background,
            "zero_padding": reconstruction.zero_padding,
            "cut": 0 if plan is None else plan.cut,
            "flip_z": reconstruction.flip_z,
            "flip_phase": reconstruction.flip_phase,
            "phase_offset_deg": reconstruction.phase_offset_deg,
            "depth_step_um": 1000 * depth_step_mm(scan, reconstruction),
            "voxel_size_mm": list(job.voxel_size_mm),
            "wavelength_um": scan.wavelength_um,
            "surface": enface.surface if job.given_surface is None else "given",
            "surface_threshold_db": enface.surface_threshold_db,
            "offset": enface.offset,
            "depth": enface.depth,
            "maps": [name for name in enface.modalities if name not in _SURFACES],
            "orientation_method": enface.orientation_method,
            "birefringence_method": enface.birefringence_method,
            "retardance_method": enface.retardance_method,
            **{name: self._engine.function(name) for name in MATLAB_FUNCTIONS if name == "find_surface"},
        }

    def _vectors(self, job: TileJob, plan: SpectralPlan | None) -> dict[str, NDArray[Any]]:
        reconstruction = self._processing.reconstruction
        vectors: dict[str, NDArray[Any]] = {}
        if job.given_surface is not None:
            vectors["given_surface"] = job.given_surface
        if plan is None:
            return vectors
        if plan.positions is not None:
            vectors["positions"] = plan.positions
        if plan.reference is not None:
            vectors["background"] = plan.reference
        calibration = load_calibration(self._scan, needs_background=reconstruction.background == "file")
        if calibration.dispersion_rad is not None:
            vectors["dispersion_rad"] = np.atleast_2d(calibration.dispersion_rad)
        if reconstruction.window != "none":
            vectors["window"] = spectral_window(reconstruction.window, self._scan.samples)
        return vectors

    def _checked(self, job: TileJob) -> Spectra:
        """Read the raw file, to check it, make the archive copy, and measure saturation."""
        scan = self._scan
        if scan.raw_format != "complex":
            return read_spectra(
                job.source,
                job.spectral_shape,
                raw_format=scan.raw_format,
                archive=job.archive,
                level=self._processing.archive.level,
                threads=job.threads,
            )
        with archived_complex_tile(job) as (tile, digests):
            for first in range(0, job.b_lines, 16):
                tile.block(first, 16)
        return Spectra(job.source.stat().st_size, digests, 0.0)

    def _taken(self, job: TileJob, item: MatlabItem, seen: Spectra) -> Reconstructed:
        """Return the results that MATLAB has left, checked; its volumes are written under their names."""
        files = item.outputs
        shape = (job.a_lines, job.b_lines)
        intensity = _read(item.name, "dBI", files["dBI"], shape, volume=True)
        depth = intensity.shape[2]
        maps = {
            name: np.array(_read(item.name, name, files[name], shape), np.float32, order="C")
            for name in dict.fromkeys((*self._processing.enface.modalities, *_SURFACES))
        }
        for name in _SURFACES:
            if not np.isfinite(maps[name]).all():
                raise ProcessingError(f"{item.name}: MATLAB wrote {name} with values that are not finite")
        confidence = np.ones(shape, np.float32)
        if files["confidence"].exists():
            confidence = np.array(_read(item.name, "confidence", files["confidence"], shape), np.float32)
        written = {}
        for name, path in job.targets.items():
            if name == "complex" and self._scan.raw_format != "complex":
                width = 2 * self._scan.channels * job.a_lines
                values = _read(item.name, name, files[name], (width, job.b_lines), volume=True)
            elif name in volume_names():
                values = _read(item.name, name, files[name], shape, volume=True)
            else:
                continue
            if values.shape[2] != depth:
                raise ProcessingError(f"{item.name}: {name} has {values.shape[2]} depth samples, dBI has {depth}")
            written[name] = _write_volume(path, values, job, name)
        return Reconstructed(
            maps=maps,
            confidence=confidence,
            section_x=np.array(intensity[:, job.b_lines // 2]),
            section_y=np.array(intensity[job.a_lines // 2]),
            noise_db=float(np.nanmedian(intensity[..., -max(1, depth // 20) :].mean(axis=2))),
            written=written,
            raw_bytes=seen.raw_bytes,
            digests=seen.digests,
            saturated_fraction=seen.saturated_fraction,
            engine="matlab",
        )


def reconstruct_one(tile: TileId, job: TileJob, /) -> Reconstructed:
    """Return the results of one tile, by a call of its own."""
    with MatlabTiles(
        {tile: job.source},
        scan=job.scan,
        processing=job.processing,
        deployment=DeploymentSettings(),
        folder=job.folder,
    ) as tiles:
        return tiles.reconstruct(tile, job)


def _unpacked(source: Path, target: Path) -> Path:
    """Return an uncompressed copy of a raw file; where it is damaged, our own check of the file says so."""
    # every gzip library raises other errors
    with contextlib.suppress(Exception), packed_reader(source) as packed, target.open("wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
    return target


def _read(tile: str, name: str, path: Path, shape: tuple[int, int], *, volume: bool = False) -> NDArray[np.float32]:
    """Return what MATLAB has written, checked for shape and values; a volume is mapped."""
    values = read_nifti(path, mmap=volume)
    found = values.shape
    while values.ndim > (3 if volume else 2) and values.shape[-1] == 1:
        values = values[..., 0]
    expected = f"({shape[0]}, {shape[1]}{', Z' if volume else ''})"
    if values.ndim != (3 if volume else 2) or values.shape[:2] != shape:
        raise ProcessingError(f"{tile}: MATLAB wrote {name} with the shape {found}, expected {expected}")
    if values.dtype.kind not in "fiu":
        raise ProcessingError(f"{tile}: MATLAB wrote {name} as {values.dtype}, expected real numbers")
    if not any(np.isfinite(part).any() for part in _parts(values)):
        raise ProcessingError(f"{tile}: MATLAB wrote {name} without any finite value")
    return values


def _parts(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield an array in parts along its last axis, which lie together in the file."""
    n = max(1, _PIECE_BYTES // max(1, values.nbytes // values.shape[-1]))
    for first in range(0, values.shape[-1], n):
        yield values[..., first : first + n]


def _write_volume(path: Path, values: NDArray[Any], job: TileJob, name: str) -> int:
    shape = (values.shape[0], values.shape[1], values.shape[2])
    n = max(1, _PIECE_BYTES // (4 * shape[0] * shape[2]))
    steps = job.steps_of(name)
    if steps is not None and not all(np.isfinite(part).all() for part in _parts(values)):
        steps = None  # integers have no NaN
    description = described(name).tile_header
    with open_volume(path, shape, voxel_size_mm=job.voxel_size_mm, description=description, steps=steps) as volume:
        for first in range(0, shape[1], n):
            volume.write(first, np.asarray(values[:, first : first + n], np.float32).transpose(2, 1, 0))
    return volume.bytes

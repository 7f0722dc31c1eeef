"""From a project's settings to what the numerics need: the spectral plan, the surface, the maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.reconstruction import (
    MapSource,
    SpectralPlan,
    TileOptions,
    TileProfiles,
    complex_tile_from_jones,
    depth_window,
    edge_response,
    median_3x3,
    positions_from_chirp,
    positions_from_phases,
    positions_from_wavelengths,
    spectral_plan,
    strongest_rise_near,
    surface_sheet,
    unfiltered_surface_from_gradient,
    unfiltered_surface_from_threshold,
)
from opticstream.config import ProcessingSettings, ScanSettings
from opticstream.config.processing import ReconstructionSettings
from opticstream.io.calibration_files import Calibration, load_calibration
from opticstream.io.nifti_stream import Steps
from opticstream.io.raw import SpectralShape
from opticstream.model.errors import CalibrationError, ConfigurationError, InputError
from opticstream.model.modalities import described, polarized, volume_names
from opticstream.stages.tile._archive_writers import ArchiveDigests, SpectraContent
from opticstream.stages.tile._enface_maps import functions_in_numpy, functions_on_card, functions_without_kernel
from opticstream.stages.tile._spectral_transform import transform_from_settings


def plan_from_settings(scan: ScanSettings, settings: ReconstructionSettings, /) -> SpectralPlan:
    """Return the spectral plan of a project, with its calibration files read and checked.

    Raises
    ------
    CalibrationError
        A calibration file is absent, damaged, or holds something impossible; names file, value and setting.
    ConfigurationError
        The library of `processing.reconstruction.fft` is not installed.
    """
    fft = transform_from_settings(settings)
    vectors = load_calibration(scan, needs_background=settings.background == "file")
    try:
        return spectral_plan(
            samples=scan.samples,
            channels=scan.channels,
            flip_channel2=settings.flip_channel2,
            background=vectors.background if vectors.background is not None else settings.background,
            positions=_positions(vectors),
            residual_background=settings.residual_background,
            dispersion_rad=vectors.dispersion_rad,
            window=settings.window,
            zero_padding=settings.zero_padding,
            cut=settings.cut,
            fft=fft,
        )
    except ValueError as error:
        raise CalibrationError(
            f"{_calibration_files(scan)}: {error} (scan.calibration, scan.samples={scan.samples})"
        ) from error


def _positions(vectors: Calibration) -> NDArray[np.float64] | None:
    if vectors.coordinate is None:
        return None
    match vectors.method:
        case "wavelengths":
            return positions_from_wavelengths(*vectors.coordinate)
        case "phase":
            assert vectors.targets is not None
            return np.stack(
                [positions_from_phases(m, t) for m, t in zip(vectors.coordinate, vectors.targets, strict=True)]
            )
        case "chirp":
            return np.stack([positions_from_chirp(row) for row in vectors.coordinate])
        case _:
            return vectors.coordinate


def _calibration_files(scan: ScanSettings) -> str:
    linearization = scan.calibration.linearization
    names = [
        name for field in ("files", "measured_files", "linear_files") for name in getattr(linearization, field, ())
    ]
    return ", ".join([*names, *scan.calibration.dispersion_files]) or linearization.method


@dataclass(frozen=True, slots=True, eq=False)
class TileArrays:
    """All products of one tile, arrays (x, y[, z]) float32."""

    volumes: dict[str, NDArray[np.float32]]
    maps: dict[str, NDArray[np.float32]]
    confidence: NDArray[np.float32]
    """Confidence of the surface, shape (x, y), 0..1; 1 for methods that give none."""
    section_x: NDArray[np.float32]
    section_y: NDArray[np.float32]
    noise_db: float
    """Median over the A-lines of the mean intensity of the deepest twentieth."""


def depth_step_mm(scan: ScanSettings, settings: ReconstructionSettings, /) -> float:
    """Return the distance of two depth samples; zero padding makes it finer."""
    return scan.scan_resolution_3d[2] / settings.zero_padding


def check_polarization(scan: ScanSettings, processing: ProcessingSettings, /) -> None:
    """Raise ConfigurationError where products that need two channels are asked of one."""
    refused = polarized((*processing.enface.modalities, *processing.reconstruction.volume_modalities))
    if scan.channels == 1 and refused:
        raise ConfigurationError(
            f"{refused} need two channels, but scan.channels = 1 "
            "(processing.enface.modalities, processing.reconstruction.volume_modalities)"
        )


def options_from_settings(
    scan: ScanSettings,
    processing: ProcessingSettings,
    /,
    *,
    volumes: Sequence[str] = (),
    maps: Sequence[str] | None = None,
    given_surface: NDArray[np.float32] | None = None,
    engine: Literal["plain", "compiled", "card"] = "plain",
) -> TileOptions:
    """Return what is to be made of the profiles of a tile, whatever its size.

    Parameters
    ----------
    scan, processing
        Settings.
    volumes : sequence of str
        Volumes that are wanted.
    maps : sequence of str, optional
        Maps that are wanted, of those in the settings; all of them by default. Without any no surface is sought.
    given_surface : ndarray, shape (x, y), optional
        Surface as depth indices, instead of what the settings say.
    engine : {"plain", "compiled", "card"}
        What makes the maps: functions of NumPy arrays; kernels, and functions of those maps alone that have none;
        functions of arrays on a graphics card.

    Raises
    ------
    ConfigurationError
        One of the maps has no maker.
    """
    settings, enface = processing.reconstruction, processing.enface
    wanted = enface.modalities if maps is None else tuple(name for name in enface.modalities if name in maps)
    surface: Any = given_surface
    if maps is not None and not maps:
        surface = 0
    elif surface is None:
        surface = "gradient" if enface.surface == "find" else enface.surface
    functions = _FUNCTIONS[engine](enface)
    return TileOptions(
        surface=surface,
        surface_threshold_db=enface.surface_threshold_db,
        offset=enface.offset,
        depth=enface.depth,
        maps=wanted,
        functions={name: functions[name] for name in wanted if name in functions},
        volumes=tuple(volumes),
        orientation_method=enface.orientation_method,
        birefringence_method=enface.birefringence_method,
        retardance_method=enface.retardance_method,
        flip_z=settings.flip_z,
        flip_phase=settings.flip_phase,
        phase_offset_deg=settings.phase_offset_deg,
        depth_step_um=1000 * depth_step_mm(scan, settings),
        wavelength_um=scan.wavelength_um,
    )


_FUNCTIONS = {"plain": functions_in_numpy, "compiled": functions_without_kernel, "card": functions_on_card}


def options_from_job(job: TileJob, /, *, engine: Literal["plain", "compiled", "card"]) -> TileOptions:
    """Return what is to be made of a tile: `options_from_settings` with the products that have a place to go.

    Raises
    ------
    ConfigurationError
        One of the maps has no maker.
    """
    volumes = [name for name in job.targets if name in volume_names()]
    if "complex" in job.targets and job.scan.raw_format != "complex":
        volumes.append("complex")
    return options_from_settings(
        job.scan,
        job.processing,
        volumes=volumes,
        maps=[name for name in job.targets if name in maps_of_tile(job.processing)],
        given_surface=job.given_surface,
        engine=engine,
    )


def arrays_from_jones(jones: NDArray[np.complex64], options: TileOptions, /) -> TileArrays:
    """Return volumes and maps of complex profiles, shape (channels, x, y, z), depth as the spectrum gives it."""
    profiles = TileProfiles(
        jones=jones if options.flip_z else jones[..., ::-1],
        depth_step_um=options.depth_step_um,
        wavelength_um=options.wavelength_um,
        phase_offset_deg=options.phase_offset_deg,
        flip_phase=options.flip_phase,
    )
    intensity = profiles.intensity_db
    raw_surface, surface, confidence = _surfaces(intensity, options)
    window = depth_window(surface, depth_samples=intensity.shape[2], offset=options.offset, depth=options.depth)
    source = MapSource(profiles, window, options.offset)
    maps = {name: function(source) for name, function in options.functions.items()}
    maps |= {"surf": surface, "surfraw": raw_surface}
    return TileArrays(
        {
            name: complex_tile_from_jones(jones) if name == "complex" else profiles.volume(name)
            for name in options.volumes
        },
        {name: maps[name] for name in dict.fromkeys((*options.maps, "surf", "surfraw"))},
        confidence,
        intensity[:, intensity.shape[1] // 2],
        intensity[intensity.shape[0] // 2],
        float(np.median(intensity[..., -max(1, intensity.shape[2] // 20) :].mean(axis=2))),
    )


def _surfaces(
    intensity: NDArray[np.float32], options: TileOptions
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the unfiltered surface, the surface, and its confidence."""
    sure = np.ones(intensity.shape[:2], np.float32)
    if isinstance(options.surface, int):
        flat = np.full(intensity.shape[:2], min(options.surface, intensity.shape[2] - 1), np.float32)
        return flat, flat, sure
    if not isinstance(options.surface, str):
        return options.surface, options.surface, sure
    if options.surface == "robust":
        surface, confidence = surface_sheet(intensity)
        return strongest_rise_near(edge_response(intensity), surface), surface, confidence
    if options.surface == "gradient_threshold":
        raw = unfiltered_surface_from_threshold(intensity, threshold_db=options.surface_threshold_db)
    else:
        raw = unfiltered_surface_from_gradient(intensity)
    return raw, median_3x3(raw), sure


def read_surface(path: Path, shape: tuple[int, int], /) -> NDArray[np.float32]:
    """Return the surface in a NIfTI file (0-based depth indices), checked for shape and finite values.

    Raises
    ------
    InputError
        Absent, of another shape, or with values that are not finite.
    """
    from opticstream.io.nifti import map_from_nifti

    surface = np.asarray(map_from_nifti(path, straight=True), dtype=np.float32)
    if surface.shape != shape:
        raise InputError(f"{path} (processing.enface.surface): has shape {surface.shape}, the tile {shape}")
    if not np.isfinite(surface).all():
        raise InputError(f"{path} (processing.enface.surface): holds values that are not finite")
    return surface


def products(scan: ScanSettings, processing: ProcessingSettings, /) -> tuple[str, ...]:
    """Return the names of everything that a tile leaves, in the order in which it is written."""
    settings = processing.reconstruction
    return (
        *(("complex",) if settings.save_complex or scan.raw_format == "complex" else ()),
        *(settings.volume_modalities if settings.save_volumes else ()),
        *maps_of_tile(processing),
    )


def maps_of_tile(processing: ProcessingSettings, /) -> tuple[str, ...]:
    """Return the names of the maps that a tile leaves, the surface before and after filtering among them."""
    return tuple(dict.fromkeys((*processing.enface.modalities, "surf", "surfraw")))


@dataclass(frozen=True, slots=True, kw_only=True)
class TileJob:
    """One tile to be reconstructed: where it comes from, what is known, and where things go."""

    source: Path
    a_lines: int
    b_lines: int
    setting: str
    """Where these sizes are set, for messages."""
    scan: ScanSettings
    processing: ProcessingSettings
    given_surface: NDArray[np.float32] | None
    targets: dict[str, Path]
    """Output files by product."""
    folder: Path
    """Where maps go, and files that are needed for a while."""
    archive: Path | None
    progress: Callable[[float], None]
    threads: int

    @property
    def voxel_size_mm(self) -> tuple[float, float, float]:
        x_mm, y_mm, _ = self.scan.scan_resolution_3d
        return x_mm, y_mm, depth_step_mm(self.scan, self.processing.reconstruction)

    def steps_of(self, volume: str) -> Steps | None:
        """Return how a volume is stored as 16-bit integers; None where its numbers are float32."""
        known = described(volume)
        wanted = self.processing.reconstruction.volume_type == "int16" and known.step > 0
        return Steps(known.step, known.middle) if wanted else None

    @property
    def spectral_shape(self) -> SpectralShape:
        scan = self.scan
        return SpectralShape(scan.samples, self.a_lines, scan.channels, self.b_lines, self.setting)

    @property
    def spectral_content(self) -> SpectraContent:
        """What the source holds, which is spectra."""
        assert self.scan.raw_format != "complex"
        return SpectraContent(self.spectral_shape, self.scan.raw_format, str(self.source))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstructed:
    """A reconstructed tile; volumes and complex tile are on disk already."""

    maps: dict[str, NDArray[np.float32]]
    confidence: NDArray[np.float32]
    section_x: NDArray[np.float32]
    """Intensity (dB) of the middle B-line, shape (x, z)."""
    section_y: NDArray[np.float32]
    """Intensity (dB) along the middle A-lines, shape (y, z)."""
    noise_db: float
    written: dict[str, int]
    """Size in bytes of the products that have been written."""
    raw_bytes: int
    digests: ArchiveDigests | None
    saturated_fraction: float
    engine: str = "native"
    """What made it: `native`, `matlab`, or `cuda` with the version of CuPy and the name of the card."""
    engine_note: str = ""
    """Why another engine made it than the settings say; empty where they agree."""

"""What each result rests on: the settings that matter to a stage, and no others, as one hash.

Changing a setting changes the hashes of exactly the stages whose results it changes; a stage's hash contains those of
the stages before it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from opticstream.config import ProjectConfig, parameters_hash


@lru_cache(maxsize=64)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _content(reference: str) -> str:
    """Return a digest of a calibration file's content (hosts mount it in different places)."""
    path, _, variable = reference.partition("#")
    try:
        status = Path(path).stat()
        return f"{_digest(path, status.st_size, status.st_mtime_ns)}#{variable}"
    except OSError:
        return f"missing:{reference}"


def tile_hash(config: ProjectConfig, illumination: int, /) -> str:
    """Return the hash of everything that a tile's maps and volumes rest on, besides its raw file."""
    scan, processing = config.scan, config.processing
    linearization = scan.calibration.linearization
    files = [
        _content(reference)
        for name in ("files", "measured_files", "linear_files")
        for reference in getattr(linearization, name, ())
    ]
    files += [_content(reference) for reference in scan.calibration.dispersion_files]
    if processing.reconstruction.background == "file" and scan.calibration.background_file:
        files.append(_content(scan.calibration.background_file))
    surface = processing.enface.surface
    if isinstance(surface, str) and surface.endswith((".nii", ".nii.gz")):
        files.append(_content(surface))
    return parameters_hash(
        {
            "shape": [*scan.tile_shape(illumination), scan.samples, scan.channels, scan.raw_format],
            "voxel": scan.scan_resolution_3d,
            "wavelength": scan.wavelength_um,
            "linearization": linearization.model_dump(mode="json", exclude={"files", "measured_files", "linear_files"}),
            "files": files,
            "reconstruction": processing.reconstruction.model_dump(
                mode="json", exclude={"memory_budget_gb", "threads"}
            ),
            "enface": processing.enface.model_dump(mode="json"),
        }
    )


def mosaic_hash(config: ProjectConfig, illumination: int, /) -> str:
    """Return the hash of everything that a mosaic's stitched maps rest on."""
    scan, processing = config.scan, config.processing
    settings = scan.illuminations[illumination]
    return parameters_hash(
        {
            "tiles": tile_hash(config, illumination),
            "grid": [settings.columns, scan.rows(illumination), scan.scan_order, scan.scan_start],
            "overlap": scan.overlap_px(illumination),
            "coordinates": processing.coordinates.model_dump(mode="json", exclude={"force_refresh_coordinates"}),
            "mask": [processing.mask.model_dump(mode="json", exclude={"threshold_db"})],
            "threshold": processing.mask.threshold_for(settings.name),
            "stitch": processing.stitch.model_dump(mode="json"),
        }
    )


def volume_hash(config: ProjectConfig, illumination: int, /) -> str:
    """Return the hash of everything that a mosaic's stitched volumes rest on."""
    return parameters_hash(
        {
            "mosaic": mosaic_hash(config, illumination),
            "focus": config.processing.focus.model_dump(mode="json", exclude={"force_refresh"}),
            "volume": config.processing.volume.model_dump(mode="json", exclude={"memory_budget_gb"}),
        }
    )


def slice_hash(config: ProjectConfig, /) -> str:
    """Return the hash of everything that a slice's registration rests on."""
    illuminations = config.scan.illuminations
    return parameters_hash(
        {
            "mosaics": [mosaic_hash(config, k) for k in range(len(illuminations))],
            "tilts": [[i.tilt_deg, i.tilt_axis_deg] for i in illuminations],
            "registration": config.processing.registration.model_dump(mode="json"),
        }
    )


def sample_hash(config: ProjectConfig, /) -> str:
    """Return the hash of everything that the sample's stacks rest on."""
    return parameters_hash(
        {
            "slices": slice_hash(config),
            "thickness": config.scan.slice_thickness_um,
            "sample": config.processing.sample.model_dump(mode="json"),
        }
    )

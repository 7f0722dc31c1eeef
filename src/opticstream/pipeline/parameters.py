"""The settings that each result depends on, and no others, as a hash that is recorded with its fact.

A result depends on the settings of its own stage and on the results before it. Changing a setting therefore makes
exactly the results of that stage stale, and through them what depends on those (`opticstream.pipeline.dependencies`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from opticstream.config import ProjectConfig, parameters_hash
from opticstream.config.coordinates import FijiCoordinates, FileCoordinates
from opticstream.config.engines import FUNCTIONS_OF_STAGE, Engine, MatlabEngine, MatlabStage, matlab_for
from opticstream.config.processing import MaskSettings
from opticstream.config.publish_targets import What


@dataclass(frozen=True)
class StageSettings:
    """The settings of one stage, named as in the project file.

    Attributes
    ----------
    results : mapping
        Settings that change the values of the results.
    form : mapping
        Settings that only change what else is written and in which format: no later result depends on them.
    """

    results: Mapping[str, Any]
    form: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Hash of all settings; later results do not depend on the part after the plus sign."""
        form = f"+{parameters_hash(self.form)[:8]}" if self.form else ""
        return parameters_hash(self.results) + form

    def flat(self) -> dict[str, Any]:
        """Return every setting by its dotted name."""
        return _flat(self.results) | _flat(self.form)


def shared_part(hash_: str, /) -> str:
    """Return the part of a hash that later results depend on.

    Examples
    --------
    >>> shared_part("0123456789abcdef+01234567")
    '0123456789abcdef'
    """
    return hash_.partition("+")[0]


def tile_settings(config: ProjectConfig, illumination: int, /) -> StageSettings:
    """Return the settings of a tile's maps and volumes."""
    scan, processing = config.scan, config.processing
    calibration, linearization = scan.calibration, scan.calibration.linearization
    files = {
        name: [_content(reference) for reference in getattr(linearization, name, ())]
        for name in ("files", "measured_files", "linear_files")
    }
    contents = {f"linearization.{name}": digests for name, digests in files.items() if digests}
    contents["dispersion_files"] = [_content(reference) for reference in calibration.dispersion_files]
    if processing.reconstruction.background == "file" and calibration.background_file:
        contents["background_file"] = [_content(calibration.background_file)]
    engine = _engine_settings(processing.engine, "tile")
    enface = _plain(processing.enface)
    if str(enface["surface"]).endswith((".nii", ".nii.gz")):
        enface["surface"] = _content(enface["surface"])
    return StageSettings(
        {
            "scan": {
                "tile_shape": scan.tile_shape(illumination),
                **_plain(scan, "samples", "channels", "raw_format", "scan_resolution_3d", "wavelength_um"),
                "calibration": {
                    "linearization": linearization.model_dump(
                        mode="json", exclude={"files", "measured_files", "linear_files"}
                    ),
                    "contents": contents,
                },
            },
            "processing": {
                "reconstruction": _without(
                    processing.reconstruction, "memory_budget_gb", "threads", "save_complex", "volume_type"
                ),
                "enface": enface,
                **engine,
            },
        },
        {"processing": {"reconstruction": _plain(processing.reconstruction, "save_complex")}},
    )


def coordinates_settings(config: ProjectConfig, illumination: int, /) -> StageSettings:
    """Return the settings of an illumination's coordinate template."""
    scan, coordinates = config.scan, config.processing.coordinates
    plain = {"tile_configuration": None} | _plain(coordinates)
    if isinstance(coordinates, FileCoordinates):
        plain |= {"method": "fiji", "tile_configuration": _content(str(coordinates.tile_configuration))}
    elif isinstance(coordinates, FijiCoordinates):
        plain["method"] = _FIJI_ENGINE
    return StageSettings(
        {
            "scan": {
                "columns": scan.illuminations[illumination].columns,
                "rows": scan.rows(illumination),
                "overlap_px": scan.overlap_px(illumination),
                **_plain(scan, "scan_order", "scan_start"),
            },
            "processing": {"coordinates": plain},
        }
    )


def focus_settings(config: ProjectConfig, /) -> StageSettings:
    """Return the settings of an illumination's focus map."""
    return StageSettings({"processing": {"focus": _plain(config.processing.focus)}})


def mosaic_settings(config: ProjectConfig, illumination: int, /, *, finds_focus: bool = False) -> StageSettings:
    """Return the settings of a mosaic's stitched maps.

    Parameters
    ----------
    config : ProjectConfig
        The project's settings.
    illumination : int
        Index of the mosaic's illumination.
    finds_focus : bool
        The mosaic determines the focus map of its illumination, on which its own maps do not depend.
    """
    processing = config.processing
    coordinates = coordinates_settings(config, illumination).results
    threshold_db = processing.mask.threshold_for(config.scan.illuminations[illumination].name)
    form: dict[str, Any] = {"stitch": _plain(processing.stitch, "formats")}
    if finds_focus:
        form |= focus_settings(config).results["processing"]
    return StageSettings(
        {
            "scan": coordinates["scan"],
            "processing": {
                **coordinates["processing"],
                "mask": _mask_settings(processing.mask, threshold_db),
                "stitch": _without(processing.stitch, "formats"),
            },
        },
        {"processing": form},
    )


def volume_settings(config: ProjectConfig, /) -> StageSettings:
    """Return the settings of a mosaic's stitched volumes."""
    volume = config.processing.volume
    shading = {"stitch": {"shading_correction": True}} if config.processing.stitch.shading_correction else {}
    return StageSettings(
        {
            "processing": {
                **focus_settings(config).results["processing"],
                **shading,
                "volume": _without(volume, "enabled", "memory_budget_gb", "format"),
            }
        },
        {"processing": {"volume": _plain(volume, "format")}},
    )


def slice_settings(config: ProjectConfig, /) -> StageSettings:
    """Return the settings of a slice's registration."""
    tilts = {i.name: _plain(i, "tilt_deg", "tilt_axis_deg") for i in config.scan.illuminations}
    registration, mask = config.processing.registration, config.processing.mask
    processing = {
        "registration": _without(registration, "mask_file_type") | {"use_mask": bool(registration.mask_file_type)}
    }
    # A mask made from the same map as that of the stitched results is recorded with their settings.
    if registration.mask_file_type not in ("", mask.made_from):
        processing["registration"]["use_mask"] = registration.mask_file_type
        processing["mask"] = _without(mask, "made_from")
    processing |= _engine_settings(config.processing.engine, "registration", "axis")
    return StageSettings({"scan": {"illuminations": tilts}, "processing": processing})


def upload_settings(config: ProjectConfig, what: What, /) -> StageSettings:
    """Return where results are uploaded to, by target; how a target is reached does not matter."""
    places = {
        target.target_name: target.model_dump(mode="json", exclude={"name", "what", "credentials"})
        for target in config.publish.receiving(what)
    }
    return StageSettings({"publish": {"targets": places}})


def publish_settings(config: ProjectConfig, /) -> StageSettings:
    """Return what the names of results in the archive depend on."""
    return StageSettings({"publish": {"layout": {"kind": config.publish.layout.kind}}})


def sample_settings(config: ProjectConfig, /) -> StageSettings:
    """Return the settings of the sample's stacks, with the names in the records of earlier versions.

    The stage's log is not among them: it grows with every slice, and is read again for every slice.
    """
    sample = _without(config.processing.sample, "enabled", "align_pullback", "stage_log", "isotropic", "hook")
    if sample["bends"] == "auto":
        del sample["bends"]  # slices that are not bent are as earlier versions left them
    return StageSettings(
        {
            "scan": _plain(config.scan, "slice_thickness_um"),
            "processing": {"sample": sample | {"align_leash": config.processing.sample.align_pullback}},
        }
    )


_FIJI_ENGINE = "fiji engine"
"""Recorded for `processing.coordinates.method = "fiji"`: in earlier records, `fiji` is what `file` is now."""


def _engine_settings(engine: Engine, /, *stages: MatlabStage) -> dict[str, Any]:
    """Return what a result of some stages depends on where MATLAB computes them; nothing for our own code."""
    computed = [stage for stage in stages if matlab_for(engine, stage) is not None]
    if not isinstance(engine, MatlabEngine) or not computed:
        return {}
    names = {does for stage in computed for does in FUNCTIONS_OF_STAGE[stage]}
    chosen = {does: name for does, name in sorted(engine.functions.items()) if does in names}
    contents = [_contents_of_folder(folder) for folder in engine.paths] if chosen else []
    what = {"by_complex": engine.by_complex} if computed == ["tile"] else {"stages": computed}
    return {"engine": {"kind": engine.kind, **what, "functions": chosen, "contents": contents}}


def _contents_of_folder(folder: Path, /) -> str:
    """Return a digest of the functions in a folder, because hosts may mount the folder at different paths."""
    files = sorted(path for path in folder.rglob("*.m") if path.is_file()) if folder.is_dir() else []
    if not files:
        return f"missing:{folder}"
    listed = {path.relative_to(folder).as_posix(): _content(str(path)) for path in files}
    return parameters_hash(listed)


def _mask_settings(mask: MaskSettings, threshold_db: float) -> dict[str, Any]:
    """Return the settings of the mask of stitched maps, with the names in the records of earlier versions."""
    return _without(mask, "threshold_db", "made_from") | {
        "mask_file_type": mask.made_from,
        "threshold_db": threshold_db,
    }


def current_name_and_value(name: str, value: Any, /) -> tuple[str, Any]:
    """Return the current name and value of a recorded setting, which may have the name of an earlier version.

    Examples
    --------
    >>> current_name_and_value("processing.mask.mask_file_type", "mip")
    ('processing.mask.made_from', 'mip')
    """
    if name == "processing.mask.mask_file_type":
        return "processing.mask.made_from", value
    if name == "processing.registration.use_mask":
        current = {True: "as processing.mask.made_from", False: ""}.get(value, value)
        return "processing.registration.mask_file_type", current
    if name == "processing.coordinates.method":
        return name, {"fiji": "file", _FIJI_ENGINE: "fiji"}.get(value, value)
    if name == "processing.sample.align_leash":
        return "processing.sample.align_pullback", value
    return name, value


def tile_hash(config: ProjectConfig, illumination: int, /) -> str:
    """Return the hash that is recorded with the facts of tiles and batches."""
    return tile_settings(config, illumination).hash


@lru_cache(maxsize=64)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _content(reference: str) -> str:
    """Return a digest of a file's content, because hosts may mount the file at different paths."""
    path, _, variable = reference.partition("#")
    try:
        status = Path(path).stat()
        return f"{_digest(path, status.st_size, status.st_mtime_ns)}#{variable}"
    except OSError:
        return f"missing:{reference}"


def _plain(settings: BaseModel, *names: str) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(names) or None)


def _without(settings: BaseModel, *names: str) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=set(names))


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found

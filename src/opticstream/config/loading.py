"""Reading project files, merging overrides under the design's flat names, and hashing what a result rests on."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from opticstream.config.project import ProjectConfig
from opticstream.model.errors import ConfigurationError, FileFormatError
from opticstream.model.text import text_from_bytes


def _describe(error: ValidationError, source: str) -> str:
    lines = []
    problems = error.errors()
    for problem in problems:
        if any(other["loc"][: len(problem["loc"])] == problem["loc"] != other["loc"] for other in problems):
            continue  # an echo of a problem further inside, such as "too few items" after a bad item
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such setting"
        # A whole table as "value" would bury the message; its own text already names what is wrong.
        shown = "" if isinstance(problem["input"], Mapping | BaseModel) else f" (got {problem['input']!r})"
        lines.append(f"{key or 'project file'}: {message}{shown}")
    return f"{source}: " + "; ".join(lines)


def _with_absolute_paths(config: ProjectConfig, folder: Path) -> ProjectConfig:
    def absolute(path: Path) -> Path:
        return Path(folder, path.expanduser()).absolute()

    def reference(text: str) -> str:
        path, mark, variable = text.partition("#")
        return f"{absolute(Path(path))}{mark}{variable}"

    project = config.project.model_copy(
        update={
            "project_base_path": absolute(config.project.project_base_path),
            "archive_path": None if config.project.archive_path is None else absolute(config.project.archive_path),
        }
    )
    calibration = config.scan.calibration
    linearization = calibration.linearization
    linearization = linearization.model_copy(
        update={
            name: tuple(reference(item) for item in getattr(linearization, name))
            for name in ("files", "measured_files", "linear_files")
            if hasattr(linearization, name)
        }
    )
    calibration = calibration.model_copy(
        update={
            "linearization": linearization,
            "dispersion_files": tuple(reference(item) for item in calibration.dispersion_files),
            "background_file": calibration.background_file and reference(calibration.background_file),
        }
    )
    coordinates = config.processing.coordinates
    enface = config.processing.enface
    if coordinates.tile_configuration is not None:
        coordinates = coordinates.model_copy(update={"tile_configuration": absolute(coordinates.tile_configuration)})
    if isinstance(enface.surface, str) and enface.surface.endswith((".nii", ".nii.gz")):
        enface = enface.model_copy(update={"surface": str(absolute(Path(enface.surface)))})
    return config.model_copy(
        update={
            "project": project,
            "scan": config.scan.model_copy(update={"calibration": calibration}),
            "processing": config.processing.model_copy(update={"coordinates": coordinates, "enface": enface}),
        }
    )


def config_from_mapping(
    data: Mapping[str, Any],
    /,
    *,
    source: str = "project settings",
    folder: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ProjectConfig:
    """Return the project configuration that a nested mapping describes, with `overrides` on top.

    Parameters
    ----------
    data : mapping
        Tables `project`, `scan` and `processing`, as in a project file.
    source : str
        Name used in error messages.
    folder : Path, optional
        Where relative paths start; paths are left as they are if absent.
    overrides : mapping, optional
        Keys are dotted paths (`processing.enface.depth`) or the flat names of the design (see `flat_parameter_path`).

    Raises
    ------
    ConfigurationError
        A key is unknown, a value has the wrong type, or two settings exclude each other; names key and value.
    """
    merged = json.loads(json.dumps(data, default=str))
    for key, value in (overrides or {}).items():
        _set(merged, flat_parameter_path(key, merged), value, source=source)
    try:
        config = ProjectConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigurationError(_describe(error, source)) from error
    return config if folder is None else _with_absolute_paths(config, folder)


_FLAT = {
    "project_name": "project.project_name",
    "project_base_path": "project.project_base_path",
    "subject_id": "project.subject_id",
    "archive_path": "project.archive_path",
    "grid_size_y": "scan.grid_size_y",
    "tile_overlap": "scan.tile_overlap",
    "tile_overlap_unit": "scan.tile_overlap_unit",
    "scan_resolution_3d": "scan.scan_resolution_3d",
    "surface": "processing.enface.surface",
    "surface_finding_method": "processing.enface.surface",
    "offset": "processing.enface.offset",
    "depth": "processing.enface.depth",
    "mask_file_type": "processing.mask.mask_file_type",
    "save_volumes": "processing.reconstruction.save_volumes",
    "force_refresh_coordinates": "processing.coordinates.force_refresh_coordinates",
}


def flat_parameter_path(key: str, data: Mapping[str, Any], /) -> str:
    """Return the dotted path of a parameter that the design names flatly.

    `grid_size_x_{illumination}`, `mask_threshold_{illumination}` and `gamma` (the tilt of `tilted`) find their
    illumination in `data`; dotted paths come back as they are.

    Examples
    --------
    >>> flat_parameter_path("mask_threshold_tilted", {})
    'processing.mask.threshold_db.tilted'
    >>> flat_parameter_path("grid_size_x_normal", {"scan": {"illuminations": [{"name": "normal"}]}})
    'scan.illuminations.0.columns'
    """
    if "." in key:
        return key
    if key in _FLAT:
        return _FLAT[key]
    if key.startswith("mask_threshold_"):
        return f"processing.mask.threshold_db.{key.removeprefix('mask_threshold_')}"
    name, field = ("tilted", "tilt_deg") if key == "gamma" else (key.removeprefix("grid_size_x_"), "columns")
    illuminations = data.get("scan", {}).get("illuminations", ())
    if key == "gamma" or key.startswith("grid_size_x_"):
        for index, illumination in enumerate(illuminations):
            if illumination.get("name") == name:
                return f"scan.illuminations.{index}.{field}"
        raise ConfigurationError(f"{key}: scan.illuminations holds no illumination named {name!r}")
    raise ConfigurationError(f"{key}: there is no such parameter")


def _set(data: Any, path: str, value: Any, *, source: str) -> None:
    *parents, last = path.split(".")
    for part in parents:
        data = data[int(part)] if isinstance(data, list) else data.setdefault(part, {})
        if not isinstance(data, dict | list):
            raise ConfigurationError(f"{source}: {path}: {part} is not a table")
    if isinstance(data, list):
        data[int(last)] = value
    else:
        data[last] = value


def toml_from_bytes(content: bytes, /, *, name: str) -> dict[str, Any]:
    """Return the tables of a TOML file, which is UTF-8 with or without a byte-order mark, with any line ends.

    Raises
    ------
    ConfigurationError
        It is another encoding, or no TOML; the message names the file.
    """
    try:
        return tomllib.loads(text_from_bytes(content, name=name))
    except FileFormatError as error:
        raise ConfigurationError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{name}: cannot be read as TOML: {error}") from error


def load_project(path: Path | str, /, *, overrides: Mapping[str, Any] | None = None) -> ProjectConfig:
    """Return the configuration in a project file (TOML), with relative paths made absolute.

    Raises
    ------
    ConfigurationError
        The file is absent, is no TOML, or says something impossible.
    """
    path = Path(path)
    try:
        data = toml_from_bytes(path.read_bytes(), name=str(path))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path}: no such project file; `opticstream project init` writes a commented one"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from error
    return config_from_mapping(data, source=str(path), folder=path.absolute().parent, overrides=overrides)


def parameters_hash(*parts: BaseModel | Mapping[str, Any] | str | float | Iterable[str] | None) -> str:
    """Return a short hash (16 hexadecimal digits) of settings, the same on every host and run.

    Examples
    --------
    >>> parameters_hash({"a": 1, "b": 2}) == parameters_hash({"b": 2, "a": 1})
    True
    """
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Read project files, merge overrides given by dotted or flat names, and hash settings."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from opticstream.config.coordinates import FileCoordinates
from opticstream.config.engines import MatlabEngine
from opticstream.config.old_keys import with_new_keys
from opticstream.config.overrides import (
    fill_in_default,
    flat_parameter_path,
    leave_former_choice,
    readings,
    set_in_tables,
    suggestion,
)
from opticstream.config.path_map import PathMapping, is_absolute_path, path_here
from opticstream.config.project import ProjectConfig
from opticstream.model.errors import ConfigurationError, FileFormatError
from opticstream.model.text import text_from_bytes

_TEXT_EXPECTED = frozenset({"string_type", "literal_error", "path_type"})
"""Errors of settings that hold text, as pydantic names them."""


def _describe(error: ValidationError, source: str) -> str:
    lines = []
    problems = error.errors()
    for problem in problems:
        if any(other["loc"][: len(problem["loc"])] == problem["loc"] != other["loc"] for other in problems):
            continue  # follows from a problem further inside, such as "too few items" after an invalid item
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown setting{suggestion('.'.join(map(str, problem['loc'])))}"
        # Showing a whole table would hide the message, which already names what is wrong.
        shown = "" if isinstance(problem["input"], Mapping | BaseModel) else f" (got {problem['input']!r})"
        if problem["type"] in _TEXT_EXPECTED and isinstance(problem["input"], bool | int | float):
            shown += "; put text in quotes"
        lines.append(f"{key or 'project file'}: {message}{shown}")
    return f"{source}: " + "; ".join(lines)


def _with_paths(config: ProjectConfig, place: Callable[[Path], Path]) -> ProjectConfig:
    """Return a configuration in which every path is what `place` makes of it."""

    def reference(text: str) -> str:
        path, mark, variable = text.partition("#")
        return f"{place(Path(path))}{mark}{variable}"

    project = config.project.model_copy(
        update={
            "project_base_path": place(config.project.project_base_path),
            "archive_path": None if config.project.archive_path is None else place(config.project.archive_path),
            "raw_path": None if config.project.raw_path is None else place(config.project.raw_path),
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
    engine = config.processing.engine
    if isinstance(engine, MatlabEngine):
        engine = engine.model_copy(update={"paths": tuple(place(path) for path in engine.paths)})
    if isinstance(coordinates, FileCoordinates):
        coordinates = coordinates.model_copy(update={"tile_configuration": place(coordinates.tile_configuration)})
    if isinstance(enface.surface, str) and enface.surface.endswith((".nii", ".nii.gz")):
        enface = enface.model_copy(update={"surface": str(place(Path(enface.surface)))})
    sample = config.processing.sample
    if sample.stage_log is not None:
        sample = sample.model_copy(update={"stage_log": place(sample.stage_log)})
    return config.model_copy(
        update={
            "project": project,
            "scan": config.scan.model_copy(update={"calibration": calibration}),
            "processing": config.processing.model_copy(
                update={"engine": engine, "coordinates": coordinates, "enface": enface, "sample": sample}
            ),
        }
    )


def _placed(config: ProjectConfig, folder: Path | None, path_map: Sequence[PathMapping]) -> ProjectConfig:
    """Return a configuration with its paths as on this host; it keeps how they were configured."""

    def absolute(path: Path) -> Path:
        if folder is None or is_absolute_path(path):
            return path
        return Path(folder, path.expanduser()).absolute()

    configured = config if folder is None else _with_paths(config, absolute)
    if not path_map:
        return configured
    here = _with_paths(configured, lambda path: path_here(path, path_map))
    return configured if here == configured else here.configured_as(configured)


def moved_config(config: ProjectConfig, base: Path, /, *, configured: str) -> ProjectConfig:
    """Return a project's configuration for another folder of the project; what lies in the folder moves with it.

    Parameters
    ----------
    config : ProjectConfig
        The configuration, with paths as on this host.
    base : Path
        The project's folder on this host.
    configured : str
        The name of that folder that other hosts are told.
    """
    former = config.base_path

    def place(path: Path) -> Path:
        return base / path.relative_to(former) if path.is_relative_to(former) else path

    told = config.as_configured
    project = told.project.model_copy(update={"project_base_path": Path(configured)})
    told = told.model_copy(update={"project": project})
    moved = _with_paths(config, place)
    return moved if moved == told else moved.configured_as(told)


def config_from_mapping(
    data: Mapping[str, Any],
    /,
    *,
    source: str = "project settings",
    folder: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    path_map: Sequence[PathMapping] = (),
) -> ProjectConfig:
    """Return the project configuration that a nested mapping describes, with `overrides` applied.

    Parameters
    ----------
    data : mapping
        Tables `project`, `scan` and `processing`, as in a project file.
    source : str
        Name used in error messages.
    folder : Path, optional
        Where relative paths start; if absent, paths are not changed.
    overrides : mapping, optional
        Keys are dotted paths (`processing.enface.depth`) or the flat names of the design (see `flat_parameter_path`).
    path_map : sequence of PathMapping
        Where this host sees folders that the settings name as another host does.

    Raises
    ------
    ConfigurationError
        A key is unknown, a value has the wrong type, or two settings exclude each other; the message names key and
        value.
    """
    tables = with_new_keys(json.loads(json.dumps(data, default=str)), source=source)
    config = _with_overrides(tables, overrides or {}, source)
    return _placed(config, folder, path_map)


_ILLUMINATIONS = "scan.illuminations.*"
"""The list in which flat names look for their illumination."""


def _with_overrides(tables: Any, overrides: Mapping[str, Any], source: str) -> ProjectConfig:
    """Return the configuration with overrides applied, each in the first reading that its setting accepts."""
    if not isinstance(tables, dict):
        raise ConfigurationError(f"{source}: expected tables of settings, got {type(tables).__name__}")
    if overrides:
        fill_in_default(tables, _ILLUMINATIONS)
    open_readings = {flat_parameter_path(key, tables): readings(value) for key, value in overrides.items()}
    for path in open_readings:
        fill_in_default(tables, path)
    first_error: ValidationError | None = None
    while True:
        merged = json.loads(json.dumps(tables))
        for path, possible in open_readings.items():
            leave_former_choice(merged, path, possible[0])
        places = {
            path: set_in_tables(merged, path, possible[0], source=source) for path, possible in open_readings.items()
        }
        try:
            return ProjectConfig.model_validate(with_new_keys(merged, source=source))
        except ValidationError as error:
            first_error = first_error or error
            wrong = [problem["loc"] for problem in error.errors()]
            concerned = [path for path in open_readings if any(_leads_to(places[path], place) for place in wrong)]
            again = [path for path in concerned if len(open_readings[path]) > 1]
            if not again:
                raise ConfigurationError(_describe(first_error if concerned else error, source)) from error
            for path in again:
                del open_readings[path][0]


def _leads_to(path: str, place: tuple[int | str, ...]) -> bool:
    """Return whether a problem at `place` is at or below a dotted path; only places contain the kinds of a choice."""
    parts = iter(map(str, place))
    return all(part in parts for part in path.split("."))


def toml_from_bytes(content: bytes, /, *, name: str) -> dict[str, Any]:
    """Return the tables of a TOML file, which is UTF-8 with or without a byte-order mark, with any line ends.

    Raises
    ------
    ConfigurationError
        The file has another encoding or is not TOML; the message names the file.
    """
    try:
        return tomllib.loads(text_from_bytes(content, name=name))
    except FileFormatError as error:
        raise ConfigurationError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{name}: cannot be read as TOML: {error}") from error


def load_project(
    path: Path | str, /, *, overrides: Mapping[str, Any] | None = None, path_map: Sequence[PathMapping] = ()
) -> ProjectConfig:
    """Return the configuration in a project file (TOML), with relative paths made absolute.

    Absolute ones may be those of another host: `path_map` says where this one sees them.

    Raises
    ------
    ConfigurationError
        The file does not exist, is not TOML, or has an invalid setting.
    """
    path = Path(path)
    try:
        data = toml_from_bytes(path.read_bytes(), name=str(path))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path}: no such project file; `opticstream project init` writes one") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from error
    folder = path.absolute().parent
    return config_from_mapping(data, source=str(path), folder=folder, overrides=overrides, path_map=path_map)


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

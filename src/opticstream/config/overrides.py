"""Parameters that override others: flat names, the readings of a text from the command line, and similar names."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from opticstream.model.errors import ConfigurationError

_FLAT = {
    "project_name": "project.project_name",
    "project_base_path": "project.project_base_path",
    "subject_id": "project.subject_id",
    "archive_path": "project.archive_path",
    "raw_path": "project.raw_path",
    "grid_size_y": "scan.grid_size_y",
    "tile_overlap": "scan.tile_overlap",
    "tile_overlap_unit": "scan.tile_overlap_unit",
    "scan_resolution_3d": "scan.scan_resolution_3d",
    "surface": "processing.enface.surface",
    "surface_finding_method": "processing.enface.surface",
    "offset": "processing.enface.offset",
    "depth": "processing.enface.depth",
    "mask_file_type": "processing.registration.mask_file_type",
    "save_volumes": "processing.reconstruction.save_volumes",
    "force_refresh_coordinates": "processing.coordinates.force_refresh_coordinates",
}
_CLOSE = 0.6
"""Similarity from which a known name is suggested for an unknown one."""


class OptionText(str):
    """A value as it was typed; the setting decides whether it is a number, a list or text.

    Examples
    --------
    >>> OptionText("0.4").readings()
    [0.4, '0.4', ['0.4']]
    >>> OptionText("aip, mip").readings()
    ['aip, mip', ['aip', 'mip']]
    """

    __slots__ = ()

    def readings(self) -> list[Any]:
        """Return the possible readings of the text, in the order to try: TOML, a list of texts, text."""
        text = str(self)
        found: list[Any] = []
        try:
            table = tomllib.loads(f"value = {text}")
            if len(table) == 1:
                found.append(table["value"])
        except tomllib.TOMLDecodeError:
            pass
        inner = text.strip()
        listed = inner.startswith("[") and inner.endswith("]")
        if not listed:
            found.append(text)
        parts = (inner[1:-1] if listed else inner).split(",")
        found.append([part.strip().strip("\"'") for part in parts if part.strip()])
        if listed:
            found.append(text)
        return [reading for index, reading in enumerate(found) if reading not in found[:index]]


def readings(value: Any, /) -> list[Any]:
    """Return the possible readings of an override's value, in the order to try.

    A number or truth value where text is expected, as in `format = 0.4`, is read as text.
    """
    if isinstance(value, OptionText):
        return value.readings()
    if isinstance(value, list) and value and all(_is_scalar(item) for item in value):
        return [value, [_as_text(item) for item in value]]
    return [value, _as_text(value)] if _is_scalar(value) else [value]


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _as_text(value: Any) -> str:
    return json.dumps(value)


def flat_parameter_path(key: str, data: Mapping[str, Any], /) -> str:
    """Return the dotted path of a parameter that is given by a flat name.

    `grid_size_x_{illumination}`, `mask_threshold_{illumination}` and `gamma` (the tilt of `tilted`) look up their
    illumination in `data`; dotted paths are returned unchanged.

    Raises
    ------
    ConfigurationError
        The parameter is unknown; the message suggests the most similar one.

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
        raise ConfigurationError(f"{key}: scan.illuminations has no illumination named {name!r}")
    raise ConfigurationError(f"{key}: unknown parameter{suggestion(key)}")


def suggestion(name: str, /) -> str:
    """Return a question that suggests the known parameter most similar to `name`, or nothing if none is similar.

    Parameters
    ----------
    name : str
        A flat name or a dotted path; indices of lists are ignored.

    Examples
    --------
    >>> suggestion("depht")
    '; did you mean depth?'
    >>> suggestion("processing.depth")
    '; did you mean processing.enface.depth?'
    """
    parts = [part for part in name.split(".") if not part.isdecimal()]
    known = _known_paths()
    if len(parts) == 1:
        tables = [path for path in known if "." not in path]
        near = difflib.get_close_matches(name, [*_FLAT, "gamma", *tables], n=1, cutoff=_CLOSE)
        near = near or [path for path in known if path.rpartition(".")[2] == name][:1]
        near = near or _nearest_last(name, known)
    else:
        *parent, last = parts
        siblings = [path for path in known if path.split(".")[:-1] == parent]
        near = _nearest_last(last, siblings)
        near = near or [path for path in known if path.rpartition(".")[2] == last][:1]
        near = near or difflib.get_close_matches(".".join(parts), known, n=1, cutoff=_CLOSE)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest_last(last: str, paths: Sequence[str]) -> list[str]:
    by_last = {path.rpartition(".")[2]: path for path in reversed(paths)}
    return [by_last[near] for near in difflib.get_close_matches(last, by_last, n=1, cutoff=_CLOSE)]


@lru_cache(maxsize=1)
def _known_paths() -> tuple[str, ...]:
    from opticstream.config.project import ProjectConfig

    return tuple(_paths(ProjectConfig))


def _paths(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}"
        for model in models_in(field.annotation):
            yield from _paths(model, f"{prefix}{name}.")


def models_in(annotation: Any, /) -> Iterator[type[BaseModel]]:
    """Yield the settings classes in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def fill_in_default(tables: dict[str, Any], path: str, /) -> None:
    """Fill in the default of a list or table of values if `path` leads into one that is not given.

    So `mask_threshold_normal = 58` leaves the thresholds of the other illuminations as they are.
    """
    from opticstream.config.project import ProjectConfig

    kind: type[BaseModel] = ProjectConfig
    for part in path.split(".")[:-1]:
        field = kind.model_fields.get(part)
        if field is None or not isinstance(tables, dict):
            return
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            if part not in tables and not field.is_required():
                tables[part] = to_jsonable_python(field.get_default(call_default_factory=True))
            return
        kind, tables = field.annotation, tables.setdefault(part, {})


def leave_former_choice(tables: Mapping[str, Any], path: str, value: Any, /) -> None:
    """Where `path` names a choice (`processing.coordinates.method`), take out what the choice does not know.

    So a choice can be changed although the table holds settings of the former one.
    """
    from opticstream.config.project import ProjectConfig

    kind: type[BaseModel] = ProjectConfig
    *parents, key = path.split(".")
    table: Any = tables
    for part in parents:
        field = kind.model_fields.get(part)
        table = table.get(part) if isinstance(table, dict) else None
        if field is None or not isinstance(table, dict):
            return
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            chosen = [model for model in models_in(field.annotation) if _choice_of(model, key) == value]
            if len(chosen) == 1:
                for name in table.keys() - chosen[0].model_fields.keys():
                    del table[name]
            return
        kind = field.annotation


def _choice_of(model: type[BaseModel], key: str) -> Any:
    field = model.model_fields.get(key)
    return field.default if field is not None else None


def set_in_tables(data: Any, path: str, value: Any, /, *, source: str) -> str:
    """Set a value in nested tables and lists, in place, and return its path with the index of each list item.

    Missing tables are created. The path names an item of a list by its index, from 0, or by its name.

    Raises
    ------
    ConfigurationError
        The path leads through a value that is neither a table nor a list, or to an item that a list does not have.
    """
    *parents, last = path.split(".")
    if not all((*parents, last)):
        raise ConfigurationError(f"{source}: {path!r}: expected names separated by dots")
    keys: list[str] = []
    for part in parents:
        key: Any = _place(data, part, path, source) if isinstance(data, list) else part
        keys.append(str(key))
        data = data[key] if isinstance(data, list) else data.setdefault(part, {})
        if not isinstance(data, dict | list):
            raise ConfigurationError(f"{source}: {path}: {part} is not a table")
    key = _place(data, last, path, source) if isinstance(data, list) else last
    data[key] = value
    return ".".join((*keys, str(key)))


def _place(items: list[Any], part: str, path: str, source: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(items):
        return int(part)
    known = [name for name in names if name is not None]
    told = f"; items are 0 to {len(items) - 1}" if items else "; the list is empty"
    told += f", named {', '.join(map(repr, known))}" if known else ""
    raise ConfigurationError(f"{source}: {path}: unknown item {part!r}{told}")


def differences(before: Mapping[str, Any], after: Mapping[str, Any], /) -> dict[str, Any]:
    """Return the values that turn `before` into `after` when they are set, by dotted path.

    Both are nested plain tables, as `model_dump` in JSON mode returns them. A table with other keys and a list of
    another length are replaced as a whole.

    Examples
    --------
    >>> differences({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1, 2]})
    {'a.c': 3, 'd': [1, 2]}
    """
    return dict(_differences(before, after, ""))


def _differences(before: Any, after: Any, path: str) -> Iterator[tuple[str, Any]]:
    prefix = f"{path}." if path else ""
    if isinstance(before, Mapping) and isinstance(after, Mapping) and _is_set_by_key(before, after):
        for key, value in after.items():
            yield from _differences(before[key], value, f"{prefix}{key}")
    elif _are_tables(before) and _are_tables(after) and len(before) == len(after):
        for index, value in enumerate(after):
            yield from _differences(before[index], value, f"{prefix}{index}")
    elif before != after:
        yield path, after


def _is_set_by_key(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    return before.keys() == after.keys() and not any("." in key for key in after)


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def value_at(data: Mapping[str, Any], path: str, /) -> Any:
    """Return the value at a dotted path of nested tables and lists; None if there is none."""
    value: Any = data
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value

"""Make the commented project file of `opticstream project init`, and the reference of all keys, from the settings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from enum import Enum
from typing import Any, Union, get_args, get_origin

import tomlkit
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from opticstream.config.descriptions import descriptions_of
from opticstream.config.modality_names import OneOf
from opticstream.config.overrides import models_in
from opticstream.config.processing import ProcessingSettings
from opticstream.config.project import ProjectConfig, ProjectSettings
from opticstream.config.scan import CalibrationSettings, IlluminationSettings, ScanSettings
from opticstream.model.modalities import polarized

_WIDTH = 100


def project_template(*, project_name: str, project_base_path: str = "project") -> str:
    """Return a project file that lists every key with its default and its meaning.

    Optional keys without a default are commented out.
    """
    lines = [
        "# Project file of OpticStream: name and folders, how the sample was scanned, how it is processed.",
        "# Relative paths start at the folder of this file. `opticstream project check FILE` checks it.",
        "",
    ]
    values = {"project_name": project_name, "project_base_path": project_base_path}
    lines += _table("project", ProjectSettings, ProjectSettings(**values), "Name and folders of the project.")
    scan = ScanSettings()
    lines += _table("scan", ScanSettings, scan, "Facts about the instrument and the acquisition.")
    for illumination in scan.illuminations:
        lines += ["[[scan.illuminations]]", *_keys(IlluminationSettings, illumination), ""]
    lines += _table("scan.calibration", CalibrationSettings, scan.calibration, "From camera pixel to wavenumber.")
    lines += [
        "[scan.calibration.linearization]",
        *_keys(type(scan.calibration.linearization), scan.calibration.linearization),
    ]
    lines += [
        "# Other methods and their keys: wavelength-fit (coefficients_nm or files), wavelengths (files),",
        "# phase (measured_files, linear_files), klinear (files), chirp (files).",
        "",
    ]
    meanings = descriptions_of(ProcessingSettings)
    for name in ProcessingSettings.model_fields:
        group = getattr(ProcessingSettings(), name)
        lines += _table(f"processing.{name}", type(group), group, meanings.get(name, ""))
        lines[-1:] = [*_OTHER_CHOICES.get(name, ()), ""]
    lines += [
        "# Names in the archive tree: the lab's own, or those of a BIDS microscopy data set:",
        "# [publish]",
        '# layout = "bids"',
        "",
        "# Remote targets of the results, besides the archive tree, for example (a table for each):",
        "# [[publish.targets]]",
        '# kind = "s3"',
        '# endpoint = "https://s3.example.org"',
        '# bucket = "brains"',
        '# prefix = "i80"',
        '# what = ["raw", "derivatives"]',
        '# credentials = "lab-s3"  # the name of the secret: `opticstream secrets set lab-s3`',
        "",
    ]
    return "\n".join(lines)


_OTHER_CHOICES = {
    "engine": (
        '# kind = "cuda" has further keys: stages, required, memory_budget_gb;',
        '# kind = "matlab": stages, by_complex, functions, paths, memory_budget_gb.',
    ),
    "coordinates": (
        '# Other methods: nominal; file, with tile_configuration = "TileConfiguration.registered.txt"; fiji, with the',
        "# keys regression_threshold, max_avg_displacement_threshold, absolute_displacement_threshold,",
        "# overlap_percent, subpixel.",
    ),
}
"""What a commented file says of the other choices of a table."""


def recording_project(*, project_name: str, samples: int, channels: int, a_lines: int, b_lines: int) -> str:
    """Return the project file of one recording: one tile of one illumination, with the results that it can have.

    Examples
    --------
    >>> import tomllib
    >>> text = recording_project(project_name="r", samples=64, channels=1, a_lines=5, b_lines=4)
    >>> tomllib.loads(text)["scan"]["illuminations"]
    [{'name': 'normal', 'columns': 1, 'a_lines': 5}]
    """
    lines = [
        "# One recording of raw spectra, as the only tile of the only mosaic. All other keys have their defaults:",
        "# `opticstream project init FILE` writes them all, with their meanings.",
        "",
        "[project]",
        f"project_name = {tomlkit.item(project_name).as_string()}",
        f"project_base_path = {tomlkit.item(f'{project_name}-results').as_string()}",
        "",
        "[scan]",
        f"samples = {samples}",
        f"channels = {channels}",
        f"b_lines = {b_lines}",
        "grid_size_y = 1",
        f'illuminations = [{{ name = "normal", columns = 1, a_lines = {a_lines} }}]',
        "# scan_resolution_3d = [0.01, 0.01, 0.0025]  # voxel size x, y, z in mm",
        "",
        "# [scan.calibration]  # from camera pixel to wavenumber, for example:",
        '# dispersion_files = ["dispersion.npy"]',
        '# linearization = { method = "klinear", files = ["klinear.npy"] }',
        "",
        "[processing.mask]",
        'made_from = ""  # no mask: its threshold depends on the counts and has to be chosen first',
        "",
    ]
    if channels == 1:
        defaults = ProcessingSettings()
        lines += [
            "[processing.enface]",
            f"modalities = {_of_one_channel(defaults.enface.modalities)}",
            "",
            "[processing.reconstruction]",
            f"volume_modalities = {_of_one_channel(defaults.reconstruction.volume_modalities)}",
            "",
            "[processing.volume]",
            f"modalities = {_of_one_channel(defaults.volume.modalities)}",
            "",
        ]
    return "\n".join(lines)


def _of_one_channel(modalities: tuple[str, ...]) -> str:
    """Return, as TOML, those modalities that need only one polarization channel."""
    refused = polarized(modalities)
    return tomlkit.item([name for name in modalities if name not in refused]).as_string()


def _table(path: str, kind: type[BaseModel], values: BaseModel, title: str) -> list[str]:
    return [f"# {title}", f"[{path}]", *_keys(kind, values), ""]


def _keys(kind: type[BaseModel], values: BaseModel) -> list[str]:
    lines: list[str] = []
    for name in kind.model_fields:
        value = getattr(values, name)
        if _is_group(value):
            continue
        text = " ".join(descriptions_of(kind).get(name, "").split())
        lines += [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]
        if value is None:
            lines.append(f"# {name} =")
        else:
            plain = values.model_dump(mode="json")[name]
            lines.append(
                f"{name} = {tomlkit.item(plain).as_string() if not isinstance(plain, dict) else _inline(plain)}"
            )
    return lines


def _inline(mapping: dict[str, Any]) -> str:
    inner = ", ".join(f"{key} = {tomlkit.item(value).as_string()}" for key, value in mapping.items())
    return f"{{ {inner} }}"


def _is_group(value: object) -> bool:
    return isinstance(value, BaseModel) or (
        isinstance(value, tuple) and bool(value) and isinstance(value[0], BaseModel)
    )


def reference(kind: type[BaseModel] = ProjectConfig, /, *, path: str = "") -> str:
    """Return the reference of all keys as Markdown, one table for each group."""
    lines: list[str] = []
    for table_path, model in _groups(kind, path):
        lines += [f"### `[{table_path}]`" if table_path else "###", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            if not list(models_in(field.annotation)):
                lines.append(_row(name, field, descriptions_of(model).get(name, "")))
        lines.append("")
    return "\n".join(lines)


def _row(name: str, field: FieldInfo, meaning: str) -> str:
    default = "required" if field.is_required() else f"`{shown_default(field.get_default(call_default_factory=True))}`"
    meaning = " ".join(meaning.split()).replace("|", "\\|")
    marks = [mark for mark in field.metadata if isinstance(mark, OneOf)]
    kind = _names(marks[0]) if marks else type_name(field.annotation)
    return f"| `{name}` | {kind} | {default} | {meaning} |"


def _names(mark: OneOf) -> str:
    return " or ".join(f'`"{choice}"`' for choice in mark.choices())


def shown_default(value: object, /) -> str:
    """Return a default value as shown in the reference."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(shown_default, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def type_name(annotation: Any, /) -> str:
    """Return the type of a setting in words."""
    origin = get_origin(annotation)
    if origin is not None and str(origin).endswith("Literal"):
        return " or ".join(f"`{v!r}`".replace("'", '"') for v in get_args(annotation))
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return " or ".join(type_name(a) for a in get_args(annotation) if a is not type(None))
    if origin is tuple:
        inner = [a for a in get_args(annotation) if a is not Ellipsis]
        return f"list of {type_name(inner[0])}"
    if origin is dict:
        return "table"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f'`"{member.value}"`' for member in annotation)
    if hasattr(annotation, "__metadata__"):
        marks = [mark for mark in annotation.__metadata__ if isinstance(mark, OneOf)]
        if marks:
            return _names(marks[0])
        return type_name(get_args(annotation)[0])
    names = {
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "true or false",
        "Path": "path",
        "SecretStr": "text, never shown",
    }
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _groups(kind: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    if any(not list(models_in(f.annotation)) for f in kind.model_fields.values()):
        yield path, kind
    for name, field in kind.model_fields.items():
        for model in models_in(field.annotation):
            yield from _groups(model, f"{path}.{name}".lstrip("."))

"""Coordinate templates and focus maps: made once for each illumination, and made anew when their settings change.

Beside the facts a note says which settings a template was made with. The old template stays in place, and in use where
nothing has to be done again, until the mosaic that determines it has written the new one.
"""

from __future__ import annotations

from pathlib import Path

from opticstream.config import parameters_hash
from opticstream.io.atomic import write_text
from opticstream.model.ids import MosaicId
from opticstream.pipeline.parameters import coordinates_settings, focus_settings, shared_part, tile_hash
from opticstream.pipeline.project import Project


def template_hash(project: Project, mosaic: MosaicId, /) -> str:
    """Return the hash of the settings that the coordinate template of a mosaic's illumination rests on."""
    index = project.layout.illumination_index(mosaic)
    tiles = shared_part(tile_hash(project.config, index))
    return parameters_hash({"tiles": tiles, "coordinates": coordinates_settings(project.config, index).hash})


def focus_hash(project: Project, mosaic: MosaicId, /) -> str:
    """Return the hash of the settings that the focus map of a mosaic's illumination rests on."""
    focus = focus_settings(project.config).hash
    return parameters_hash({"template": template_hash(project, mosaic), "focus": focus})


def template_is_outdated(project: Project, mosaic: MosaicId, /) -> bool:
    """Return whether the template was made with other settings; one that came from elsewhere is never outdated."""
    return _is_outdated(project, _template(project, mosaic), template_hash(project, mosaic))


def focus_is_outdated(project: Project, mosaic: MosaicId, /) -> bool:
    """Return whether the focus map was made with other settings; one that came from elsewhere is never outdated."""
    return _is_outdated(project, _focus(project, mosaic), focus_hash(project, mosaic))


def note_template(project: Project, mosaic: MosaicId, /) -> None:
    """Note that the template was made with the settings of now; to be called after it is written."""
    write_text(_note(project, _template(project, mosaic)), template_hash(project, mosaic))


def note_focus(project: Project, mosaic: MosaicId, /) -> None:
    """Note that the focus map was made with the settings of now; to be called after it is written."""
    write_text(_note(project, _focus(project, mosaic)), focus_hash(project, mosaic))


def _template(project: Project, mosaic: MosaicId) -> Path:
    return project.paths.tilemap(project.illumination(mosaic).name)


def _focus(project: Project, mosaic: MosaicId) -> Path:
    return project.paths.focus(project.illumination(mosaic).name)


def _note(project: Project, path: Path) -> Path:
    return project.paths.base / "state" / "settings" / f"{path.name}.made-with"


def _is_outdated(project: Project, path: Path, hash_: str) -> bool:
    try:
        return path.exists() and _note(project, path).read_text(encoding="utf-8") != hash_
    except FileNotFoundError:
        return False

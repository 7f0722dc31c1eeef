"""Coordinate templates and focus maps: made once per illumination, and renewed when what they depend on changes.

A note beside the facts says with which settings, and from which raw files of which mosaic, a template was made. The old
template stays in place and in use until the mosaic that determines it has written
the new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from opticstream.config import parameters_hash
from opticstream.io.atomic import write_text
from opticstream.model.errors import StateError
from opticstream.model.ids import MosaicId, TileId
from opticstream.pipeline.parameters import coordinates_settings, focus_settings, shared_part, tile_hash
from opticstream.pipeline.project import Project


@dataclass(frozen=True)
class MadeWith:
    """What a template or a focus map was made from.

    Attributes
    ----------
    settings : str
        Hash of the settings.
    mosaic_id : int, optional
        The mosaic whose tiles were used; None in the notes of earlier versions.
    tiles : dict of list of str
        Checksum and identity of the raw file behind each tile that was good then, by tile number. A tile that is
        missing here was bad, and its position came from the stage model.
    """

    settings: str
    mosaic_id: int | None = None
    tiles: dict[str, list[str]] | None = None


def template_hash(project: Project, mosaic: MosaicId, /) -> str:
    """Return the hash of the settings that the coordinate template of a mosaic's illumination depends on."""
    index = project.layout.illumination_index(mosaic)
    tiles = shared_part(tile_hash(project.config, index))
    return parameters_hash({"tiles": tiles, "coordinates": coordinates_settings(project.config, index).hash})


def focus_hash(project: Project, mosaic: MosaicId, /) -> str:
    """Return the hash of the settings that the focus map of a mosaic's illumination depends on."""
    focus = focus_settings(project.config).hash
    return parameters_hash({"template": template_hash(project, mosaic), "focus": focus})


def template_is_outdated(project: Project, mosaic: MosaicId, /) -> bool:
    """Return whether the template of a mosaic's illumination would be different now.

    That is the case if settings have changed, or if a tile that was used, or missing, has been replaced since.
    A template from elsewhere is never outdated.
    """
    return _is_outdated(project, _template(project, mosaic), template_hash(project, mosaic))


def focus_is_outdated(project: Project, mosaic: MosaicId, /) -> bool:
    """Return whether the focus map of a mosaic's illumination would be different now, as for templates."""
    return _is_outdated(project, _focus(project, mosaic), focus_hash(project, mosaic))


def determined_template(project: Project, mosaic: MosaicId, /) -> bool:
    """Return whether the template of a mosaic's illumination was made from this mosaic's tiles."""
    return _is_made_from(project, _template(project, mosaic), mosaic)


def determined_focus(project: Project, mosaic: MosaicId, /) -> bool:
    """Return whether the focus map of a mosaic's illumination was made from this mosaic's tiles."""
    return _is_made_from(project, _focus(project, mosaic), mosaic)


@contextmanager
def template_noted(project: Project, mosaic: MosaicId, /) -> Iterator[Callable[[], None]]:
    """Note what a template is made from; the block calls the yielded function once the template is written."""
    with _noted(project, _template(project, mosaic), mosaic, template_hash(project, mosaic)) as note:
        yield note


@contextmanager
def focus_noted(project: Project, mosaic: MosaicId, /) -> Iterator[Callable[[], None]]:
    """Note what a focus map is made from; the block calls the yielded function once the map is written."""
    with _noted(project, _focus(project, mosaic), mosaic, focus_hash(project, mosaic)) as note:
        yield note


def _template(project: Project, mosaic: MosaicId) -> Path:
    return project.paths.tilemap(project.illumination(mosaic).name)


def _focus(project: Project, mosaic: MosaicId) -> Path:
    return project.paths.focus(project.illumination(mosaic).name)


def _note_path(project: Project, path: Path) -> Path:
    return project.paths.base / "state" / "settings" / f"{path.name}.made-with"


@contextmanager
def _noted(project: Project, path: Path, mosaic: MosaicId, settings: str) -> Iterator[Callable[[], None]]:
    made_with = MadeWith(settings, mosaic.mosaic_id, _tiles(project, mosaic))
    note = _note_path(project, path)

    def write() -> None:
        write_text(note, json.dumps(asdict(made_with), indent=1) + "\n")

    is_new = not path.exists()
    if is_new:  # so that the note exists if the process is killed just after the template is written
        write()
    try:
        yield write
    finally:
        if is_new and not path.exists():  # nothing was made; a template added by hand later has no note
            note.unlink(missing_ok=True)


def _tiles(project: Project, mosaic: MosaicId) -> dict[str, list[str]]:
    found = {str(tile.tile_id): _raw_file(project, tile) for tile in project.layout.tiles(mosaic)}
    return {number: identity for number, identity in found.items() if identity is not None}


def _raw_file(project: Project, tile: TileId) -> list[str] | None:
    """Return checksum and identity of the raw file of a tile's results; None while it has none."""
    try:
        record = project.facts.read(tile, "processed")
    except StateError:
        return []  # a damaged flag is still a fact
    if record is None:
        return None
    return [text for text in (record.detail.get("raw_sha256"), record.inputs_hash) if text]


def _read_note(project: Project, path: Path) -> MadeWith | None:
    try:
        text = _note_path(project, path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        values = json.loads(text)
        return MadeWith(str(values["settings"]), values["mosaic_id"], values["tiles"])
    except (ValueError, TypeError, KeyError):
        return MadeWith(text.strip())  # earlier versions wrote only the hash


def _is_made_from(project: Project, path: Path, mosaic: MosaicId) -> bool:
    note = _read_note(project, path)
    return note is not None and note.mosaic_id == mosaic.mosaic_id


def _is_outdated(project: Project, path: Path, settings: str) -> bool:
    if not path.exists():
        return False
    note = _read_note(project, path)
    if note is None:
        return False
    if note.settings != settings:
        return True
    if note.mosaic_id is None or note.tiles is None:
        return False
    # A tile that was good and is bad now does not matter: its position is known.
    now = _tiles(project, MosaicId(note.mosaic_id))
    return any(not _is_same(note.tiles.get(number), files) for number, files in now.items())


def _is_same(before: list[str] | None, now: list[str]) -> bool:
    """Return whether a tile has the same raw data: the same checksum, or the same name, size and time."""
    return before is not None and (not before or not now or not set(before).isdisjoint(now))

"""Fiji's `TileConfiguration.txt`: names of tiles and their positions in pixels, in and out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from opticstream.io.atomic import write_text
from opticstream.model.errors import FileFormatError, MissingInputError

_LINE = re.compile(r"^(?P<name>.*?);\s*(?P<series>-?\d*)\s*;\s*\((?P<position>[^()]*)\)\s*$")


@dataclass(frozen=True, slots=True)
class ConfiguredTile:
    """One line of a tile configuration.

    Attributes
    ----------
    name : str
        File name, relative to the configuration's folder (or as the writer gave it).
    position_px : tuple of float
        Position (x, y) or (x, y, z) of the first pixel.
    """

    name: str
    position_px: tuple[float, ...]


def read_tile_configuration(path: Path, /) -> tuple[ConfiguredTile, ...]:
    """Return the tiles of a Fiji tile configuration, in the order of the file.

    Raises
    ------
    MissingInputError
        There is no such file.
    FileFormatError
        A line is not `name; ; (x, y)`, a number is not finite, a name comes twice, or there is no tile at all; the
        message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such tile configuration") from error
    except IsADirectoryError as error:
        raise MissingInputError(f"{path}: is a folder, not a TileConfiguration file") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path}: a tile configuration is a text file, this one is not: {error}") from error
    tiles: list[ConfiguredTile] = []
    dimensions: int | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and key in {"dim", "multiseries", "suffix"}:
            if key == "dim":
                if value not in {"2", "3"}:
                    raise FileFormatError(f"{path}, line {number}: dim must be 2 or 3, got {value!r}")
                dimensions = int(value)
            elif key == "multiseries" and value.lower() == "true":
                raise FileFormatError(f"{path}, line {number}: several series in one file are not supported")
            continue
        match = _LINE.match(line)
        if match is None:
            raise FileFormatError(f"{path}, line {number}: expected 'name; ; (x, y)', got {line!r}")
        try:
            position = tuple(float(part) for part in match["position"].split(","))
        except ValueError as error:
            raise FileFormatError(f"{path}, line {number}: {match['position']!r} is no list of numbers") from error
        if len(position) not in (2, 3) or (dimensions is not None and len(position) != dimensions):
            raise FileFormatError(
                f"{path}, line {number}: expected {dimensions or '2 or 3'} coordinates, got {len(position)}"
            )
        if any(p - p != 0 for p in position):
            raise FileFormatError(f"{path}, line {number}: positions must be finite, got {match['position']!r}")
        tiles.append(ConfiguredTile(match["name"].strip(), position))
    if not tiles:
        raise FileFormatError(f"{path}: holds no tile")
    names = [tile.name for tile in tiles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FileFormatError(f"{path}: {twice[0]!r} is listed {names.count(twice[0])} times")
    return tuple(tiles)


def tile_configuration_text(tiles: Iterable[ConfiguredTile], /) -> str:
    """Return the text of a tile configuration; positions keep every digit that a float holds.

    Examples
    --------
    >>> print(tile_configuration_text([ConfiguredTile("a.tif", (0.0, 1.5))]))
    # Define the number of dimensions we are working on
    dim = 2
    <BLANKLINE>
    # Define the image coordinates
    a.tif; ; (0.0, 1.5)
    <BLANKLINE>
    """
    listed = list(tiles)
    dimensions = len(listed[0].position_px) if listed else 2
    lines = [
        "# Define the number of dimensions we are working on",
        f"dim = {dimensions}",
        "",
        "# Define the image coordinates",
    ]
    for tile in listed:
        lines.append(f"{tile.name}; ; ({', '.join(repr(float(p)) for p in tile.position_px)})")
    return "\n".join(lines) + "\n"


def write_tile_configuration(path: Path, tiles: Iterable[ConfiguredTile], /) -> Path:
    """Write a tile configuration that Fiji reads, atomically; return the path."""
    return write_text(path, tile_configuration_text(tiles))

"""Fiji's `TileConfiguration.txt`: read and write names of tiles and their positions in pixels."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from opticstream.io.atomic import write_text
from opticstream.io.reading import error_of_system
from opticstream.model.errors import FileFormatError, MissingInputError
from opticstream.model.text import text_from_bytes

_LINE = re.compile(r"^(?P<name>.*?);\s*(?P<series>-?\d*)\s*;\s*\((?P<position>[^()]*)\)\s*(#.*)?$")
_MOST_BYTES = 1 << 26
"""Largest file that is read; a configuration of a million tiles is smaller."""


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

    Text may be UTF-8, UTF-16 or Windows-1252 with any line ends. Names may be quoted; comments may follow a line;
    decimals may have commas if this is unambiguous: with blanks or semicolons between the coordinates.

    Raises
    ------
    MissingInputError
        There is no such file.
    FileFormatError
        A line is not `name; ; (x, y)`, a number is not finite, a name is listed twice, or there is no tile; the
        message names the line.
    """
    text = _text(path)
    tiles: list[ConfiguredTile] = []
    dimensions: int | None = None
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if equals and key in {"dim", "dims", "multiseries", "suffix"}:
            if key in {"dim", "dims"}:
                if value not in {"2", "3"}:
                    raise FileFormatError(f"{path}, line {number}: dim must be 2 or 3, got {value!r}")
                dimensions = int(value)
            elif key == "multiseries" and value.lower() == "true":
                raise FileFormatError(
                    f"{path}, line {number}: multiseries = true: several series in one file are not supported; save "
                    "each tile in a file of its own"
                )
            continue
        match = _LINE.match(line)
        if match is None:
            raise FileFormatError(f"{path}, line {number}: expected 'name; ; (x, y)', got {line!r}")
        position = _position(match["position"], dimensions)
        if position is None:
            raise FileFormatError(f"{path}, line {number}: {match['position']!r} is not a list of numbers")
        if len(position) not in (2, 3) or (dimensions is not None and len(position) != dimensions):
            raise FileFormatError(
                f"{path}, line {number}: expected {dimensions or '2 or 3'} coordinates, got {len(position)}"
            )
        if any(p - p != 0 for p in position):
            raise FileFormatError(f"{path}, line {number}: positions must be finite, got {match['position']!r}")
        tiles.append(ConfiguredTile(_name(match["name"]), position))
    if not tiles:
        raise FileFormatError(f"{path}: lists no tile")
    names = [tile.name for tile in tiles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FileFormatError(f"{path}: {twice[0]!r} is listed {names.count(twice[0])} times")
    return tuple(tiles)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such tile configuration") from error
    except IsADirectoryError as error:
        raise MissingInputError(f"{path}: is a folder, not a TileConfiguration file") from error
    except OSError as error:
        raise error_of_system(path, error, "tile configuration") from error
    try:
        return text_from_bytes(content, name=str(path), other_encodings=True)
    except FileFormatError as error:
        raise FileFormatError(f"{error} (a tile configuration is a text file)") from error


def _name(text: str) -> str:
    name = text.strip()
    quoted = len(name) > 2 and name[0] == name[-1] and name[0] in "\"'"
    return name[1:-1].strip() if quoted else name


def _position(text: str, dimensions: int | None) -> tuple[float, ...] | None:
    """Return the coordinates in a text, or None if they are not numbers.

    Examples
    --------
    >>> _position("1, 2.5", 2), _position("1,5, 2,5", 2), _position("1,5; 2", None), _position("1, x", 2)
    ((1.0, 2.5), (1.5, 2.5), (1.5, 2.0), None)
    """
    plain = _numbers(text.split(","))
    if plain is not None and len(plain) in ((dimensions,) if dimensions else (2, 3)):
        return plain
    parts = text.split(";") if ";" in text else re.split(r",\s+", text.strip())
    with_commas = _numbers([part.replace(",", ".") for part in parts])
    if with_commas is not None and len(with_commas) in ((dimensions,) if dimensions else (2, 3)):
        return with_commas
    return plain


def _numbers(parts: Iterable[str]) -> tuple[float, ...] | None:
    try:
        return tuple(float(part) for part in parts)
    except ValueError:
        return None


def tile_path(configuration: Path, name: str, /) -> Path:
    """Return the file of a name in a tile configuration: beside it, or at the given path.

    Programs on Windows write backslashes, and full paths of another machine: if there is no such
    file, the name is tried with forward slashes, and then its last part beside the configuration.
    """
    folder = configuration.parent
    given = folder / name
    if "\\" not in name or given.exists():
        return given
    windows = PureWindowsPath(name)
    choices = [] if windows.drive else [folder / windows.as_posix()]
    return next((path for path in [*choices, folder / windows.name] if path.exists()), given)


def tile_configuration_text(tiles: Iterable[ConfiguredTile], /) -> str:
    """Return the text of a tile configuration; positions are written with all digits.

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

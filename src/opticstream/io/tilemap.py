"""The coordinate template of an illumination (`tilemap-{illumination}.j2`) and the tile information rendered from it.

The template is the saved result of coordinate determination. It contains constant values (positions, their uncertainty,
the grid) and placeholders for what changes from mosaic to mosaic: `base_dir`, `mosaic_id`, `modality`,
`scan_resolution` and `mask`. Rendered, it is YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opticstream.io.atomic import write_text
from opticstream.io.reading import error_of_system
from opticstream.model.errors import FileFormatError, MissingInputError
from opticstream.model.text import text_from_bytes

FORMAT = "opticstream-tilemap 1"


@dataclass(frozen=True, slots=True)
class TilePlace:
    """Place of one tile of the grid.

    Attributes
    ----------
    tile : int
        Number of the tile in its mosaic, 1-based.
    position_px : tuple of float
        Position (x, y) of its first pixel.
    uncertainty_px : tuple of float
        Standard error along x and y.
    by_stage_only : bool
        The overlaps had no information: the position is that of the stage model.
    file : str
        Path of the tile's file; empty in a map that was not rendered.
    """

    tile: int
    position_px: tuple[float, float]
    uncertainty_px: tuple[float, float] = (0.0, 0.0)
    by_stage_only: bool = False
    file: str = ""


@dataclass(frozen=True, slots=True)
class TileMap:
    """Positions of all tiles of an illumination.

    Attributes
    ----------
    illumination : str
        Name of the illumination.
    tile_shape : tuple of int
        Size of a tile in pixels, (x, y).
    grid : tuple of int
        Columns and rows.
    places : tuple of TilePlace
        By tile number.
    source : dict
        How the positions were determined: method, mosaic, parameters, figures of the verdict.
    distortion_px : tuple of float
        Distortion that tiles are freed of before they are placed: a trapezium along x and y, and a barrel; empty for
        tiles that are taken as they are.
    scan_resolution_mm, mask, base_dir, modality, mosaic_id
        Values filled in by rendering.
    """

    illumination: str
    tile_shape: tuple[int, int]
    grid: tuple[int, int]
    places: tuple[TilePlace, ...]
    source: Mapping[str, Any] = field(default_factory=dict)
    distortion_px: tuple[float, ...] = ()
    scan_resolution_mm: tuple[float, ...] = ()
    mask: str = ""
    base_dir: str = ""
    modality: str = ""
    mosaic_id: int | None = None

    def place_of(self, tile: int, /) -> TilePlace:
        """Return the place of a tile."""
        for place in self.places:
            if place.tile == tile:
                return place
        raise KeyError(f"tile {tile} is not in the tile map of illumination {self.illumination!r}")


def template_from_tilemap(tilemap: TileMap, /) -> str:
    """Return the Jinja2 template of a tile map."""
    import yaml

    head = yaml.safe_dump({"source": _plain(tilemap.source)}, sort_keys=True, default_flow_style=False)
    lines = [
        "{#- Tile positions of one illumination. Parameters: base_dir, mosaic_id, modality, scan_resolution, mask. -#}",
        "metadata:",
        f"  format: {FORMAT}",
        f"  illumination: {tilemap.illumination}",
        f"  tile_shape: [{tilemap.tile_shape[0]}, {tilemap.tile_shape[1]}]",
        f"  grid: [{tilemap.grid[0]}, {tilemap.grid[1]}]",
        "  base_dir: {{ base_dir | tojson }}",
        "  mosaic_id: {{ mosaic_id }}",
        "  modality: {{ modality | tojson }}",
        "  scan_resolution: {{ scan_resolution | tojson }}",
        "  mask: {{ (mask or '') | tojson }}",
        *([f"  distortion: {[float(term) for term in tilemap.distortion_px]}"] if tilemap.distortion_px else []),
        *("  " + _as_jinja(line) for line in head.splitlines()),
        "tiles:",
    ]
    for place in tilemap.places:
        # The file name is written out here so that other tools can use the template.
        name = (
            "{{ (base_dir ~ '/mosaic_' ~ '%03d' % mosaic_id ~ "
            f"'_image_{place.tile:04d}_' ~ modality ~ '.nii') | tojson }}}}"
        )
        lines += [
            f"  - tile: {place.tile}",
            f"    x: {float(place.position_px[0])!r}",
            f"    y: {float(place.position_px[1])!r}",
            f"    uncertainty: [{float(place.uncertainty_px[0])!r}, {float(place.uncertainty_px[1])!r}]",
            f"    by_stage_only: {str(place.by_stage_only).lower()}",
            f"    file: {name}",
        ]
    return "\n".join(lines) + "\n"


def _as_jinja(text: str) -> str:
    """Return a template that renders as `text`, which may contain braces of templates in file names."""
    return re.sub(r"\{(?=[{%#])", "{{ '{' }}", text)


def write_template(path: Path, tilemap: TileMap, /) -> Path:
    """Write the template of a tile map, atomically; return the path."""
    return write_text(path, template_from_tilemap(tilemap))


def render_template(
    path: Path,
    /,
    *,
    base_dir: str | Path = "",
    mosaic_id: int = 1,
    modality: str = "aip",
    scan_resolution: tuple[float, ...] = (),
    mask: str | Path = "",
) -> str:
    """Return the tile information (YAML text) of one mosaic and modality.

    Raises
    ------
    MissingInputError
        There is no such template.
    FileFormatError
        The template is invalid; the message names the line.
    """
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    text = _text(path, "coordinate template")
    # Templates may be edited or exchanged: they must not be able to run code.
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        return environment.from_string(text).render(
            base_dir=Path(base_dir).as_posix() if str(base_dir) else "",
            mosaic_id=mosaic_id,
            modality=modality,
            scan_resolution=list(scan_resolution),
            mask=str(mask),
        )
    except Exception as error:  # a template can fail in any way
        raise FileFormatError(f"{path}: cannot be rendered: {type(error).__name__}: {error}") from error


def _text(path: Path, kind: str) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingInputError(f"{path}: no such {kind}") from error
    except OSError as error:
        raise error_of_system(path, error, kind) from error
    return text_from_bytes(content, name=str(path))


def read_tilemap(path: Path, /, **parameters: Any) -> TileMap:
    """Return the tile map of a template (`.j2`, rendered with `parameters`) or of a rendered YAML file.

    Raises
    ------
    MissingInputError, FileFormatError
        The file is absent, or is not a tile map; the message names the file and the problem.
    """
    if path.suffix == ".j2":
        text = render_template(path, **parameters)
    else:
        text = _text(path, "tile information")
    return tilemap_from_yaml(text, name=str(path))


def tilemap_from_yaml(text: str, /, *, name: str = "tile information") -> TileMap:
    """Return the tile map that a YAML text describes."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError) as error:
        raise FileFormatError(f"{name}: is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        metadata, tiles = data["metadata"], data["tiles"]
        if metadata.get("format") != FORMAT:
            raise FileFormatError(f"{name}: format is {metadata.get('format')!r}, expected {FORMAT!r}")
        places = tuple(
            TilePlace(
                int(tile["tile"]),
                (float(tile["x"]), float(tile["y"])),
                (float(tile["uncertainty"][0]), float(tile["uncertainty"][1])),
                bool(tile["by_stage_only"]),
                str(tile.get("file", "")),
            )
            for tile in tiles
        )
        result = TileMap(
            str(metadata["illumination"]),
            (int(metadata["tile_shape"][0]), int(metadata["tile_shape"][1])),
            (int(metadata["grid"][0]), int(metadata["grid"][1])),
            places,
            metadata.get("source") or {},
            tuple(float(term) for term in metadata.get("distortion") or ()),
            tuple(float(step) for step in metadata.get("scan_resolution") or ()),
            str(metadata.get("mask") or ""),
            str(metadata.get("base_dir") or ""),
            str(metadata.get("modality") or ""),
            metadata.get("mosaic_id"),
        )
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(f"{name}: is not a tile map: {type(error).__name__} {error}") from error
    numbers = [place.tile for place in places]
    if not numbers or len(set(numbers)) != len(numbers):
        raise FileFormatError(f"{name}: expected every tile once, got the numbers {numbers}")
    if any(c - c != 0 for place in places for c in place.position_px):
        raise FileFormatError(f"{name}: a position is not finite")
    if len(result.distortion_px) not in (0, 3) or any(c - c != 0 for c in result.distortion_px):
        raise FileFormatError(f"{name}: distortion is {list(result.distortion_px)}, expected three finite numbers")
    return result


def _plain(value: Any) -> Any:
    """Return plain Python values for YAML."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return value.as_posix()
    return value

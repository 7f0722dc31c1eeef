"""`import`: turn recordings of raw spectra into raw tiles, with a project file to match."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opticstream.cli.console import ProjectArgument, errors_shown, is_project_file, out
from opticstream.cli.run import config_of
from opticstream.config import ProjectConfig
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import TileId, item_from_key

if TYPE_CHECKING:
    from opticstream.io.spectra_files import BinaryShape
    from opticstream.stages.tile import Counts, RecordingFacts

_DTYPES = ("uint16", "int16", "float32")


def import_array(
    source: Annotated[
        Path,
        typer.Argument(
            help="Recording, which is never changed: one array (.npy, .txt, .csv, .raw), or a folder with one array "
            "per B-scan.",
            show_default=False,
        ),
    ],
    project: ProjectArgument,
    raw: Annotated[Path, typer.Argument(help="Folder for the raw tile.", show_default=False)],
    tile: Annotated[str, typer.Option(help="The tile that the recording becomes.")] = "mosaic-001/tile-0001",
    scale: Annotated[
        float | None,
        typer.Option(help="Size of one count: count = round((value - offset) / scale)."),
    ] = None,
    offset: Annotated[float | None, typer.Option(help="Value that becomes the count 0.")] = None,
    transpose: Annotated[bool, typer.Option("--transpose", help="B-scans have the shape (samples, A-lines).")] = False,
    dtype: Annotated[str, typer.Option(help="Data type of .raw files: uint16, int16 or float32.")] = "uint16",
) -> None:
    """Turn a recording of raw spectra into a raw tile, named as the project expects.

    An array has the shape (B-scans, A-lines, samples), or (B-scans, channels, A-lines, samples). Whole numbers from 0
    to 65535 are used as counts. Other values, such as volts, are scaled to that range; the scale and the offset are
    printed and saved in a file beside the tile. If the project file does not exist, one that fits the recording is
    written.
    """
    from opticstream.io.spectra_files import recording_at
    from opticstream.stages.tile import facts_of_recording, import_tile

    with errors_shown():
        item = _tile(tile)
        known = not is_project_file(project) or Path(project).exists()
        config = config_of(project, []) if known else None
        recording = recording_at(source, transpose=transpose, binary=_binary(config, item, dtype))
        facts = facts_of_recording(recording)
        if config is None:
            config = _written_project(Path(project), facts)
            out.print(f"wrote {project}; review it, then: opticstream project check {project}", markup=False)
        made = import_tile(recording, config, item, raw, facts=facts, counts=_counts(facts.counts(), scale, offset))
    size = f"{facts.b_scans} B-scans, {facts.channels} channel{'s' * (facts.channels > 1)}, {facts.a_lines} A-lines"
    out.print(f"{size}, {facts.samples} samples, values {facts.lowest:g} to {facts.highest:g} ({facts.dtype})")
    formula = f"count = round((value - {made.counts.offset!r}) / {made.counts.scale!r})"
    out.print(f"{formula}, largest error {made.largest_error:.3g}")
    out.print(f"wrote {made.tile} and {made.sidecar.name}", markup=False)


def _tile(text: str) -> TileId:
    try:
        item = item_from_key(text)
    except ValueError as error:
        raise ConfigurationError(f"--tile: {error}") from error
    if not isinstance(item, TileId):
        raise ConfigurationError(f"--tile {text}: expected a tile such as mosaic-001/tile-0001")
    return item


def _binary(config: ProjectConfig | None, tile: TileId, dtype: str) -> BinaryShape | None:
    from opticstream.io.spectra_files import BinaryShape

    if dtype not in _DTYPES:
        raise ConfigurationError(f"--dtype {dtype}: expected one of {', '.join(_DTYPES)}")
    if config is None:
        return None
    a_lines, _ = config.scan.tile_shape(config.scan.layout.illumination_index(tile.mosaic))
    return BinaryShape(dtype, (config.scan.channels, a_lines, config.scan.samples))


def _counts(automatic: Counts, scale: float | None, offset: float | None) -> Counts:
    from opticstream.stages.tile import Counts

    if scale is not None and not scale > 0:
        raise ConfigurationError(f"--scale {scale:g}: expected a positive number")
    return Counts(automatic.scale if scale is None else scale, automatic.offset if offset is None else offset)


def _written_project(path: Path, facts: RecordingFacts) -> ProjectConfig:
    """Write a project file for one tile of one illumination, and return its settings."""
    from opticstream.config import load_project
    from opticstream.config.template import recording_project
    from opticstream.io.atomic import write_text

    text = recording_project(
        project_name=path.stem,
        samples=facts.samples,
        channels=facts.channels,
        a_lines=facts.a_lines,
        b_lines=facts.b_scans,
    )
    return load_project(write_text(path, text))

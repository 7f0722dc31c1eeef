"""`import`: arrays of raw spectra become raw tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opticstream.cli.console import ProjectArgument, errors_shown, out
from opticstream.cli.run import config_of
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import TileId, item_from_key


def import_array(
    source: Annotated[Path, typer.Argument(help="Array of counts (.npy); only read.", show_default=False)],
    project: ProjectArgument,
    raw: Annotated[Path, typer.Argument(help="Folder for the raw tile.", show_default=False)],
    tile: Annotated[str, typer.Option(help="Which tile it is.")] = "mosaic-001/tile-0001",
) -> None:
    """Turn an array of raw spectra into a raw tile with the project's file name.

    The array has the shape (B-lines, channels, A-lines, samples), or (B-lines, A-lines, samples) for one channel.
    """
    from opticstream.stages.import_tile import import_tile

    with errors_shown():
        try:
            item = item_from_key(tile)
        except ValueError as error:
            raise ConfigurationError(f"--tile: {error}") from error
        if not isinstance(item, TileId):
            raise ConfigurationError(f"--tile {tile}: expected a tile such as mosaic-001/tile-0001")
        written = import_tile(source, config_of(project, []), item, raw)
    out.print(f"wrote {written}")

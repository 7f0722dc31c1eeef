"""Which tiles have a first look taken at them, and when it is shown.

A look that is shown stands for the tile on every page. So it is shown only once the raw files have stood still and are
those that it was made from; one that is made earlier waits in memory.
"""

from __future__ import annotations

import logging
from pathlib import Path

from opticstream.config.engines import matlab_for
from opticstream.io.packed import is_packed
from opticstream.model.errors import InputError, OpticStreamError
from opticstream.model.events import BatchReady
from opticstream.model.ids import TileId
from opticstream.pipeline.arriving import arriving, waiting_tiles
from opticstream.pipeline.host_memory import within_memory
from opticstream.pipeline.late_archive import raw_files_of_tile
from opticstream.pipeline.parameters import tile_hash
from opticstream.pipeline.project import Project
from opticstream.stages.tile import FirstLook, look_at_tile, read_look, write_look
from opticstream.state.raw_files import identity_of

_LONG_WORK = 1 << 27
"""Raw values of a tile from which volumes and archive copy take several seconds more than its picture."""
_log = logging.getLogger(__name__)


def look_at_newest_tile(project: Project, /, *, next_one: TileId) -> None:
    """Take a first look at the tile that came last while a folder is watched, if others are processed before it.

    What is made here is not made again when the tile's turn comes.

    Parameters
    ----------
    project : Project
        The project.
    next_one : TileId
        The tile that is processed next.
    """
    waiting = waiting_tiles(project)
    if len(waiting) < 2 or waiting[-1][2] == next_one or is_of_matlab(project):
        return
    _, known, tile = waiting[-1]
    look = first_look(project, known.event, tile)
    if look is not None:
        show_if_settled(project, known.event, tile, look)


def first_look(project: Project, event: BatchReady, tile: TileId, /) -> FirstLook | None:
    """Return the first look at a tile, which is not shown yet; None where it is, or none can be taken.

    Parameters
    ----------
    project : Project
        The project.
    event : BatchReady
        The column with the raw files of the tile, which have their size.
    tile : TileId
        The tile.
    """
    try:
        source, _ = raw_files_of_tile(event, tile)
        key = _present_key(project, event, tile)
        if read_look(project.paths.base, tile, key=key) is None:
            return look_at(project, source, tile, key)
    except (OpticStreamError, OSError, ValueError) as error:  # its own processing says what is wrong with it
        _log.info("no first look at %s: %s", tile, error)
    return None


def show_if_settled(project: Project, event: BatchReady, tile: TileId, look: FirstLook, /) -> bool:
    """Show a first look at a tile whose raw files stand still, unless they have changed since it was made.

    Returns
    -------
    bool
        Whether it is shown.
    """
    try:
        if look.key != _present_key(project, event, tile):
            _log.info("the first look at %s is not shown: its raw file has changed meanwhile", tile)
            return False
        show_look(project, tile, look)
    except (InputError, OSError) as error:
        _log.info("the first look at %s is not shown: %s", tile, error)
        return False
    return True


def show_look(project: Project, tile: TileId, look: FirstLook, /) -> None:
    """Write a first look to where it is seen."""
    write_look(look, project.paths.base, tile, verdict=look.figures.verdict(project.config.processing.quality))


def look_at(project: Project, source: Path, tile: TileId, key: str, /) -> FirstLook:
    """Return the first look at a tile within this host's memory; as `look_at_tile`."""
    processing = within_memory(project).processing
    return look_at_tile(
        source, tile, scan=project.config.scan, processing=processing, out_dir=project.paths.base, key=key
    )


def look_key(project: Project, tile: TileId, identity: str, /) -> str:
    """Return what a first look is made from: the raw files, and the settings of the tile."""
    return f"{identity} {tile_hash(project.config, project.layout.illumination_index(tile.mosaic))}"


def is_of_matlab(project: Project, /) -> bool:
    """Return whether MATLAB makes the tiles: all of a tile in one call."""
    return matlab_for(project.config.processing.engine, "tile") is not None


def is_looked_at_first(project: Project, source: Path, tile: TileId, /) -> bool:
    """Return whether the picture of a tile is made before all else: somebody has just taken it, and it is large."""
    values = project.config.scan.raw_values_of_tile(project.layout.illumination_index(tile.mosaic))
    if values < _LONG_WORK or is_packed(source) or is_of_matlab(project):
        return False
    known = arriving(project, project.layout.batch_of(tile))
    return known is not None and tile.tile_id in known.since


def _present_key(project: Project, event: BatchReady, tile: TileId) -> str:
    source, spectra = raw_files_of_tile(event, tile)
    return look_key(project, tile, identity_of(*((source,) if spectra is None else (source, spectra))))

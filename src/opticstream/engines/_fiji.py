"""Fiji's Grid/Collection stitching, without a window: pictures of the tiles in, a table of positions out."""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opticstream.config import DeploymentSettings
from opticstream.config.coordinates import FijiCoordinates
from opticstream.engines._running import Running, environment_of_program, how_it_ended, program_path
from opticstream.io.tileconfig import ConfiguredTile, read_tile_configuration, tile_configuration_text
from opticstream.model.errors import (
    ConfigurationError,
    EngineError,
    EngineOutOfMemory,
    EngineTimeout,
    FileFormatError,
    ProcessingError,
)
from opticstream.model.layout import ScanPattern, ScanStart

_log = logging.getLogger(__name__)

USUAL = ("fiji", "fiji-linux-x64", "fiji-linux-arm64", "ImageJ-linux64", "ImageJ")
PICTURE = "tile_{number:05d}.tif"
"""Name of the picture of the tile that the stage visited as `number`-th."""
LAYOUT = "TileConfiguration.txt"
REGISTERED = "TileConfiguration.registered.txt"
_MACRO = "stitch.ijm"
_FINISHED = "finished.txt"
"""File that the macro writes when everything else is done."""
_LAST_S = 10.0
"""Time that Fiji has to end by itself after its macro: not every version of it does."""
_NO_PLUGIN = re.compile(r"unrecognized command|command not found|Grid/Collection stitching.*not", re.IGNORECASE)
_ABORTED = re.compile(r"unrecognized command|macro error|exception in thread", re.IGNORECASE)
_MEMORY = re.compile(r"OutOfMemoryError|out of memory|insufficient memory", re.IGNORECASE)
_TYPES = {
    ScanPattern.SNAKE_BY_COLUMNS: "Grid: snake by columns",
    ScanPattern.SNAKE_BY_ROWS: "Grid: snake by rows",
    ScanPattern.COLUMN_BY_COLUMN: "Grid: column-by-column",
    ScanPattern.ROW_BY_ROW: "Grid: row-by-row",
}
# Rows of a picture go downwards with y: what is up for the stage is down for Fiji.
_WORDS = {
    ScanStart.RIGHT_UP: ("Right", "Down"),
    ScanStart.RIGHT_DOWN: ("Right", "Up"),
    ScanStart.LEFT_UP: ("Left", "Down"),
    ScanStart.LEFT_DOWN: ("Left", "Up"),
}
_FIRST_ORDER = " " * 16
"""Fiji's dialogue has these blanks after the first choice of each list."""


@dataclass(frozen=True)
class FijiGrid:
    """The grid as Fiji is told: its size, the order of the scan, and the overlap in percent along both axes."""

    columns: int
    rows: int
    pattern: ScanPattern
    start: ScanStart
    overlap_percent: float

    @property
    def type(self) -> str:
        return _TYPES[self.pattern]

    @property
    def order(self) -> str:
        """Fiji's name of the order.

        Examples
        --------
        >>> FijiGrid(2, 3, ScanPattern.SNAKE_BY_COLUMNS, ScanStart.LEFT_UP, 20.0).order
        'Down & Left'
        >>> FijiGrid(2, 3, ScanPattern.ROW_BY_ROW, ScanStart.RIGHT_UP, 20.0).order
        'Right & Down                '
        """
        across, along = _WORDS[self.start]
        if self.pattern in (ScanPattern.SNAKE_BY_COLUMNS, ScanPattern.COLUMN_BY_COLUMN):
            name, first = f"{along} & {across}", "Down & Right"
        else:
            name, first = f"{across} & {along}", "Right & Down"
        return name + _FIRST_ORDER if name == first else name


@dataclass(frozen=True)
class FijiProgram:
    """How Fiji is started on this host."""

    path: str
    flags: tuple[str, ...] = ()
    memory_bytes: int | None = None
    timeout_s: float = 3600.0

    def command(self, macro: Path, /) -> list[str]:
        """Return the command line that runs a macro without a window."""
        memory = () if self.memory_bytes is None else (f"--mem={self.memory_bytes // 1_000_000}M",)
        return [self.path, *memory, *self.flags, "--headless", "--console", "-macro", str(macro)]


def fiji_program(deployment: DeploymentSettings, /) -> FijiProgram:
    """Return how Fiji is started on this host.

    Raises
    ------
    ConfigurationError
        There is no such program; says what to configure.
    """
    path = program_path(deployment.fiji_command, usual=USUAL, setting="OPTICSTREAM_FIJI_COMMAND", name="Fiji")
    memory = None if deployment.fiji_memory is None else int(deployment.fiji_memory)
    return FijiProgram(path, deployment.fiji_flags, memory, deployment.fiji_timeout_s)


def stitching_macro(folder: Path, settings: FijiCoordinates, /, *, grid: FijiGrid | None) -> str:
    """Return the macro that measures positions in a folder of pictures.

    Parameters
    ----------
    folder : Path
        Folder of the pictures `PICTURE`, numbered from 1 in the order of the scan.
    settings : FijiCoordinates
        Thresholds.
    grid : FijiGrid, optional
        The grid; None: the nominal positions stand in the file `LAYOUT` of the folder.

    Raises
    ------
    ConfigurationError
        The folder's name has characters that Fiji's macro language cannot quote.
    """
    name = folder.as_posix()
    if any(mark in name for mark in '[]"\\\n'):
        raise ConfigurationError(
            f"{folder}: a Fiji macro cannot name a folder with brackets, quotation marks or backslashes; set TMPDIR to "
            "another folder"
        )
    place = f"directory=[{name}]"
    if grid is None:
        where = [
            "type=[Positions from file]",
            "order=[Defined by TileConfiguration]",
            place,
            f"layout_file={LAYOUT}",
        ]
    else:
        where = [
            f"type=[{grid.type}]",
            f"order=[{grid.order}]",
            f"grid_size_x={grid.columns}",
            f"grid_size_y={grid.rows}",
            f"tile_overlap={grid.overlap_percent:g}",
            "first_file_index_i=1",
            place,
            "file_names=tile_{iiiii}.tif",
            f"output_textfile_name={LAYOUT}",
        ]
    options = [
        *where,
        "fusion_method=[Do not fuse images (only write TileConfiguration)]",
        f"regression_threshold={settings.regression_threshold:g}",
        f"max/avg_displacement_threshold={settings.max_avg_displacement_threshold:g}",
        f"absolute_displacement_threshold={settings.absolute_displacement_threshold:g}",
        "compute_overlap",
        *(["subpixel_accuracy"] if settings.subpixel else []),
        "computation_parameters=[Save computation time (but use more RAM)]",
        "image_output=[Write to disk]",
        f"output_directory=[{name}]",
    ]
    return (
        f'run("Grid/Collection stitching", "{" ".join(options)}");\n'
        f'File.saveString("finished", "{name}/{_FINISHED}");\n'
        'eval("script", "System.exit(0);");\n'
    )


def fiji_scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder whose name a macro can hold, as those of projects may not."""
    return tempfile.TemporaryDirectory(prefix="opticstream-fiji-")


def fiji_positions(
    program: FijiProgram,
    folder: Path,
    settings: FijiCoordinates,
    /,
    *,
    grid: FijiGrid | None,
    nominal: Sequence[ConfiguredTile] = (),
    label: str,
) -> tuple[ConfiguredTile, ...]:
    """Return the positions that Fiji finds for the pictures in a folder.

    Parameters
    ----------
    program : FijiProgram
        How Fiji is started.
    folder : Path
        Folder with a picture of every tile.
    settings, grid
        As for `stitching_macro`.
    nominal : sequence of ConfiguredTile
        Nominal positions, where there is no `grid`.
    label : str
        What messages call the mosaic.

    Raises
    ------
    EngineError
        Fiji ended without positions, took too long, or had too little memory.
    ConfigurationError
        It cannot be started, or lacks the stitching plugin.
    ProcessingError
        Its file cannot be read.
    """
    macro = folder / _MACRO
    macro.write_text(stitching_macro(folder, settings, grid=grid), encoding="utf-8")
    if grid is None:
        (folder / LAYOUT).write_text(tile_configuration_text(nominal), encoding="utf-8")
    registered = folder / REGISTERED
    finished = folder / _FINISHED
    for path in (registered, finished):
        path.unlink(missing_ok=True)
    with Running(
        program.command(macro), folder=folder, environment=environment_of_program({}), log=_log, name="Fiji"
    ) as running:
        status = running.wait(
            program.timeout_s, until=lambda: finished.exists() or any(map(_ABORTED.search, running.lines))
        )
        if status is None and time.monotonic() - running.started < program.timeout_s:
            # The macro is at its end, or an error has stopped it; not every Fiji then ends by itself.
            status = running.wait(_LAST_S) or 0
        lines = running.lines
    said = f"; it said: {' | '.join(lines[-4:])}" if lines else ""
    if status is None:
        raise EngineTimeout(
            f"{label}: Fiji did not finish within {program.timeout_s:g} s (OPTICSTREAM_FIJI_TIMEOUT_S), and was "
            f"ended{said}"
        )
    text = "\n".join(lines)
    if not registered.is_file():
        if status == 126 and text.startswith("cannot be started"):
            raise ConfigurationError(f"{program.path} (OPTICSTREAM_FIJI_COMMAND) {text}")
        if _NO_PLUGIN.search(text):
            raise ConfigurationError(
                f"{program.path} (OPTICSTREAM_FIJI_COMMAND) has no Grid/Collection stitching; expected Fiji, not plain "
                f"ImageJ{said}"
            )
        if _MEMORY.search(text) or status == -9:
            raise EngineOutOfMemory(
                f"{label}: Fiji had too little memory (OPTICSTREAM_FIJI_MEMORY); it {how_it_ended(status)}{said}"
            )
        crashed = "crashed: it " if status < 0 else ""
        raise EngineError(f"{label}: Fiji {crashed}{how_it_ended(status)} without writing {REGISTERED}{said}")
    try:
        return read_tile_configuration(registered)
    except FileFormatError as error:
        raise ProcessingError(f"{label}: Fiji wrote positions that cannot be read: {error}") from error

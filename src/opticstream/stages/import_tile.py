"""Raw spectra that somebody keeps as a plain array become a raw tile under the project's file names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from opticstream.config import ProjectConfig
from opticstream.io.names import FileNameGrammar
from opticstream.io.nifti import write_nifti
from opticstream.model.errors import ConfigurationError, FileFormatError, MissingInputError, TileSizeError
from opticstream.model.ids import TileId


def import_tile(source: Path, config: ProjectConfig, tile: TileId, raw_folder: Path, /) -> Path:
    """Write an array of raw counts as a NIfTI raw tile and return its path.

    Parameters
    ----------
    source : Path
        `.npy` of whole numbers 0..65535, shape (B-lines, channels, A-lines, samples), or (B-lines, A-lines, samples)
        for one channel. Only read.
    config : ProjectConfig
        Gives the size that the array must have, and the file name.
    tile : TileId
        Place in the acquisition.
    raw_folder : Path
        Folder that the tile appears in, when it is complete.

    Raises
    ------
    MissingInputError, FileFormatError, TileSizeError
        The file is absent, no array of counts, or of another size than the settings say.
    ConfigurationError
        `scan.raw_format` is not `nifti`.
    """
    scan = config.scan
    if scan.raw_format != "nifti":
        raise ConfigurationError(f'importing writes NIfTI tiles, but scan.raw_format = "{scan.raw_format}"')
    try:
        counts = np.load(source, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MissingInputError(f"{source}: no such file") from error
    except Exception as error:  # a damaged file can make its reader fail in any way
        raise FileFormatError(f"{source}: cannot be read as an array: {error}") from error
    if counts.ndim == 3:
        counts = counts[:, np.newaxis]
    index = scan.layout.illumination_index(tile.mosaic)
    a_lines, b_lines = scan.tile_shape(index)
    expected = (b_lines, scan.channels, a_lines, scan.samples)
    if counts.shape != expected:
        raise TileSizeError(
            f"{source} holds an array of shape {counts.shape}, expected {expected}: scan.b_lines, scan.channels, "
            f"scan.illuminations[{index}].a_lines, scan.samples"
        )
    if counts.dtype.kind not in "ui" or (counts.dtype.kind == "i" and counts.min() < 0) or counts.max() > 65535:
        raise FileFormatError(f"{source} holds {counts.dtype} values, expected whole numbers from 0 to 65535")
    grammar = FileNameGrammar(scan.file_name, scan.layout)
    target = raw_folder / grammar.name_from_tile(tile, project=config.name, subject=config.project.subject_id)
    # On disk the sample varies fastest, as (samples, A-lines, channels, B-lines) does in NIfTI's order.
    return write_nifti(target, np.asarray(counts, dtype=np.uint16).T, description="raw spectra, counts")

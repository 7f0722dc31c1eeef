"""One raw tile: import a recording as a tile, archive it, process it into volumes, surface and en face maps.

Large tiles are processed by compiled code, which is loaded when the first of them comes.
"""

from __future__ import annotations

from opticstream.config.tile_figures import TileFigures
from opticstream.stages.tile._archive_tile import (
    ArchiveResult,
    Verification,
    archive_tile,
    checksum_path,
    spectra_of_nifti,
    unpack_archive,
    verify_archive,
    verify_archives,
)
from opticstream.stages.tile._archive_writers import GzipWriter, SpectraContent, SpectraZarrWriter
from opticstream.stages.tile._compare_engines import Comparison, Difference, compare_engines
from opticstream.stages.tile._enface_maps import MAKERS, makes
from opticstream.stages.tile._first_look import FirstLook, drop_look, read_look, write_look
from opticstream.stages.tile._import_tile import Counts, ImportedTile, RecordingFacts, facts_of_recording, import_tile
from opticstream.stages.tile._matlab_tile import MatlabTiles
from opticstream.stages.tile._process_tile import (
    OutputFile,
    TileResult,
    available_threads,
    look_at_tile,
    process_tile,
)
from opticstream.stages.tile._reconstruction import (
    arrays_from_jones,
    options_from_settings,
    plan_from_settings,
    products,
    read_surface,
)

__all__ = [
    "MAKERS",
    "ArchiveResult",
    "Comparison",
    "Counts",
    "Difference",
    "FirstLook",
    "GzipWriter",
    "ImportedTile",
    "MatlabTiles",
    "OutputFile",
    "RecordingFacts",
    "SpectraContent",
    "SpectraZarrWriter",
    "TileFigures",
    "TileResult",
    "Verification",
    "archive_tile",
    "arrays_from_jones",
    "available_threads",
    "checksum_path",
    "compare_engines",
    "drop_look",
    "facts_of_recording",
    "import_tile",
    "look_at_tile",
    "makes",
    "options_from_settings",
    "plan_from_settings",
    "process_tile",
    "products",
    "read_look",
    "read_surface",
    "spectra_of_nifti",
    "unpack_archive",
    "verify_archive",
    "verify_archives",
    "write_look",
]

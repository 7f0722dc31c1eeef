"""The tiles of one mosaic: find their coordinates and the focus, stitch their maps."""

from __future__ import annotations

from opticstream.stages.mosaic._find_coordinates import (
    CoordinatesResult,
    Verdict,
    find_coordinates,
    measured_positions,
    tilemap_from_positions,
    verdict_from_positions,
    write_coordinate_quality,
)
from opticstream.stages.mosaic._find_focus import FocusResult, find_focus, focus_for_volume, read_focus
from opticstream.stages.mosaic._geometry import MosaicGeometry, geometry_of_tiles
from opticstream.stages.mosaic._stitch_mosaic import MosaicResult, stitch_maps, stitch_mosaic
from opticstream.stages.mosaic._tiles import MosaicTiles, check_template, tiles_from_configuration, tiles_of_mosaic
from opticstream.stages.mosaic._zoom import write_zoom_of_map

__all__ = [
    "CoordinatesResult",
    "FocusResult",
    "MosaicGeometry",
    "MosaicResult",
    "MosaicTiles",
    "Verdict",
    "check_template",
    "find_coordinates",
    "find_focus",
    "focus_for_volume",
    "geometry_of_tiles",
    "measured_positions",
    "read_focus",
    "stitch_maps",
    "stitch_mosaic",
    "tilemap_from_positions",
    "tiles_from_configuration",
    "tiles_of_mosaic",
    "verdict_from_positions",
    "write_coordinate_quality",
    "write_zoom_of_map",
]

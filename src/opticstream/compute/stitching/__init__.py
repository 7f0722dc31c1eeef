"""Tiles to one mosaic: positions, focus, shading, weights and blending.

Plain NumPy and SciPy; the blend of volumes has a face of its own, `opticstream.compute.stitching.volume`.
"""

from __future__ import annotations

from opticstream.compute.stitching._distortion import Distortion, FieldGeometry, field_geometry
from opticstream.compute.stitching._evidence import empty_tiles
from opticstream.compute.stitching._flat_field import flat_field_from_overlaps
from opticstream.compute.stitching._focus import ConfocalPeak, FocusFit, confocal_peak, focus_from_overlaps
from opticstream.compute.stitching._fusion import MosaicSum, is_blank
from opticstream.compute.stitching._given_positions import CheckedPositions, positions_held_against_stage
from opticstream.compute.stitching._grid import neighbour_pairs, usual_overlap_px
from opticstream.compute.stitching._mask import tissue_mask
from opticstream.compute.stitching._positions import positions_from_tiles
from opticstream.compute.stitching._seams import Seam, parity_colours, seams_from_tiles, shared_slices
from opticstream.compute.stitching._shading import common_shading
from opticstream.compute.stitching._solution import TilePositions
from opticstream.compute.stitching._tilefilter import (
    FilteredTiles,
    amplitude_from_db,
    filtered_tiles,
    high_pass_for_overlap,
)
from opticstream.compute.stitching._weights import Canvas, canvas_from_positions, overlap_widths, ramp, tile_weight

__all__ = [
    "Canvas",
    "CheckedPositions",
    "ConfocalPeak",
    "Distortion",
    "FieldGeometry",
    "FilteredTiles",
    "FocusFit",
    "MosaicSum",
    "Seam",
    "TilePositions",
    "amplitude_from_db",
    "canvas_from_positions",
    "common_shading",
    "confocal_peak",
    "empty_tiles",
    "field_geometry",
    "filtered_tiles",
    "flat_field_from_overlaps",
    "focus_from_overlaps",
    "high_pass_for_overlap",
    "is_blank",
    "neighbour_pairs",
    "overlap_widths",
    "parity_colours",
    "positions_from_tiles",
    "positions_held_against_stage",
    "ramp",
    "seams_from_tiles",
    "shared_slices",
    "tile_weight",
    "tissue_mask",
    "usual_overlap_px",
]

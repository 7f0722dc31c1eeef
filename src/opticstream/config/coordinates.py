"""Where the positions of a mosaic's tiles come from: each way with parameters of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from opticstream.config.base import Settings
from opticstream.config.engines import table_of_choice
from opticstream.config.modality_names import FurtherModality


class AnyCoordinates(Settings):
    """What all ways of finding positions have in common."""

    method: str
    """Name of this choice."""
    force_refresh_coordinates: bool = False
    """Determine the positions for every slice, not only for the first slice of each illumination."""
    margin_px: int = Field(default=16, ge=1)
    """Largest error of a tile's position relative to its neighbour that is searched, or believed, in pixels."""
    further_modalities: tuple[FurtherModality, ...] = ("ret", "surf")
    """Maps to compare in addition to the AIP if its links are too weak; a map is used if it makes the positions more
    certain. Empty: the AIP alone."""


class NativeCoordinates(AnyCoordinates):
    """Positions are measured from the overlaps of the tiles."""

    method: Literal["native"] = "native"
    """Name of this choice."""
    correct_distortion: bool = False
    """Resample tiles where the overlaps clearly show that the field of view is distorted (a trapezium, a barrel)."""


class NominalCoordinates(AnyCoordinates):
    """Positions are those of the planned grid."""

    method: Literal["nominal"] = "nominal"
    """Name of this choice."""


class FijiCoordinates(AnyCoordinates):
    """Fiji's Grid/Collection stitching measures the positions; tiles that it places badly go where the stage put them.

    `OPTICSTREAM_FIJI_COMMAND` says where Fiji is.
    """

    method: Literal["fiji"] = "fiji"
    """Name of this choice."""
    regression_threshold: float = Field(default=0.3, gt=0, le=1)
    """Correlation below which Fiji drops a link between two tiles."""
    max_avg_displacement_threshold: float = Field(default=2.5, gt=0)
    """Fiji drops the worst link while the largest displacement exceeds the mean one by this factor."""
    absolute_displacement_threshold: float = Field(default=3.5, gt=0)
    """Displacement in pixels above which Fiji drops a link."""
    overlap_percent: float | None = Field(default=None, gt=0, lt=100)
    """Overlap that Fiji is told; default: `scan.tile_overlap`."""
    subpixel: bool = True
    """Let Fiji measure shifts to fractions of a pixel."""


class FileCoordinates(AnyCoordinates):
    """Positions come from an existing Fiji file."""

    method: Literal["file"] = "file"
    """Name of this choice."""
    tile_configuration: Path
    """Fiji `TileConfiguration[.registered].txt` to take positions from."""


AnyMethod = NativeCoordinates | NominalCoordinates | FijiCoordinates | FileCoordinates
CoordinateSettings = Annotated[AnyMethod, Field(discriminator="method"), table_of_choice("method")]
"""A way of finding positions; without `method` it is the native one."""

"""The 3-D fibre axis from measurements with several beams."""

from __future__ import annotations

from opticstream.compute.axis._axis import (
    AxisField,
    AxisFlag,
    AxisSolver,
    axis_from_projections,
    beam_frames,
    projections_from_axis,
)
from opticstream.compute.axis._slice_axis import (
    AlignedIllumination,
    IlluminationImages,
    SliceAxis,
    aligned_map,
    slice_axis_from_illuminations,
)

__all__ = [
    "AlignedIllumination",
    "AxisField",
    "AxisFlag",
    "AxisSolver",
    "IlluminationImages",
    "SliceAxis",
    "aligned_map",
    "axis_from_projections",
    "beam_frames",
    "projections_from_axis",
    "slice_axis_from_illuminations",
]

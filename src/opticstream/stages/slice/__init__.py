"""One slice: register its illuminations and solve the fibre axes, resample stitched volumes."""

from __future__ import annotations

from opticstream.stages.slice._illuminations import SliceMosaic
from opticstream.stages.slice._matlab_slice import axis_solver_by_matlab, mapping_finder_by_matlab
from opticstream.stages.slice._register_slice import RegisteredSlice, register_slice

__all__ = [
    "RegisteredSlice",
    "SliceMosaic",
    "axis_solver_by_matlab",
    "mapping_finder_by_matlab",
    "register_slice",
]

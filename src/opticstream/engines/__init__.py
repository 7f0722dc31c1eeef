"""Other programs that compute a stage: MATLAB or Octave, and Fiji. They get files and leave files. And a look at the
graphics card.

A program runs as a process group of its own, its output is logged line by line, and it is ended with all that it has
started when it takes too long or when we end, however we end.
"""

from __future__ import annotations

from opticstream.engines._card import check_card, why_no_card
from opticstream.engines._checks import EngineCheck, check_engines
from opticstream.engines._command import run_command
from opticstream.engines._fiji import (
    PICTURE,
    FijiGrid,
    FijiProgram,
    fiji_positions,
    fiji_program,
    fiji_scratch,
    stitching_macro,
)
from opticstream.engines._matlab import (
    FUNCTIONS,
    MatlabCall,
    MatlabItem,
    MatlabProgram,
    MatlabStep,
    matlab_program,
)

__all__ = [
    "FUNCTIONS",
    "PICTURE",
    "EngineCheck",
    "FijiGrid",
    "FijiProgram",
    "MatlabCall",
    "MatlabItem",
    "MatlabProgram",
    "MatlabStep",
    "check_card",
    "check_engines",
    "fiji_positions",
    "fiji_program",
    "fiji_scratch",
    "matlab_program",
    "run_command",
    "stitching_macro",
    "why_no_card",
]

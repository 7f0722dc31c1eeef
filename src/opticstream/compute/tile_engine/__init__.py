"""The compiled reconstruction of tiles of any size, B-line by B-line. Importing it loads the compiler."""

from __future__ import annotations

from opticstream.compute.tile_engine._engine import (
    InlineExecutor,
    TileEngine,
    memory_per_b_line,
    memory_per_function_line,
)
from opticstream.compute.tile_engine._warm_kernels import warm_kernels

__all__ = [
    "InlineExecutor",
    "TileEngine",
    "memory_per_b_line",
    "memory_per_function_line",
    "warm_kernels",
]

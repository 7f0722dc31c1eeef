"""The reconstruction of tiles by array formulas, block by block: on a graphics card (CuPy), or anywhere else.

Importing it loads neither CuPy nor a compiler.
"""

from __future__ import annotations

from opticstream.compute.array_engine._cupy_card import CupyCard
from opticstream.compute.array_engine._device import ArrayDevice, HostDevice
from opticstream.compute.array_engine._engine import ArrayEngine, device_bytes, host_bytes_per_b_line

__all__ = [
    "ArrayDevice",
    "ArrayEngine",
    "CupyCard",
    "HostDevice",
    "device_bytes",
    "host_bytes_per_b_line",
]

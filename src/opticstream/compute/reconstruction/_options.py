"""Options for the products of a tile's profiles, small or large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from opticstream.compute.reconstruction._birefringence import UNWRAP_HALO_PX
from opticstream.compute.reconstruction._map_source import Floats, MapFunction

Sink = Callable[[int, dict[str, Floats]], None]
"""Gets (first B-line, blocks of shape (z, b, x) by product); their memory may be used again once it has returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileOptions:
    """Options for the products of a tile's profiles."""

    surface: Literal["gradient", "gradient_threshold", "robust"] | int | Floats = "gradient"
    """Method; one depth index for all A-lines, or the last where it lies deeper; or a surface of shape (x, y)."""
    surface_threshold_db: float = 55.0
    offset: int = 0
    depth: int = 80
    maps: tuple[str, ...] = ("aip", "mip", "ret", "ori", "biref")
    functions: Mapping[str, MapFunction] = field(default_factory=dict)
    """Functions of maps; the compiled engine needs those alone, in NumPy, that it has no kernel for."""
    volumes: tuple[str, ...] = ()
    """Of dBI, R3D, O3D and complex."""
    orientation_method: Literal["stokes", "mean", "histogram"] = "stokes"
    birefringence_method: Literal["stokes", "slope", "unwrap"] = "stokes"
    retardance_method: Literal["stokes", "mean"] = "stokes"
    flip_z: bool = True
    flip_phase: bool = False
    phase_offset_deg: float = 100.0
    depth_step_um: float = 2.5
    wavelength_um: float = 1.3

    @property
    def finds_sheet(self) -> bool:
        """Whether the surface is found as one smooth sheet, which looks at B-lines ahead."""
        return isinstance(self.surface, str) and self.surface == "robust"

    @property
    def halo_lines(self) -> int:
        """B-lines on either side that the maps of one B-line need."""
        return UNWRAP_HALO_PX if "biref" in self.maps and self.birefringence_method == "unwrap" else 0

    def volume_widths(self, channels: int, /) -> dict[str, int]:
        """Return for each volume how many values it has at an A-line and depth: complex ones have two for a channel."""
        return {name: 2 * channels if name == "complex" else 1 for name in self.volumes}

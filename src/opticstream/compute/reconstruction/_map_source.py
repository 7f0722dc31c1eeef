"""The source of en face maps: complex profiles, the volumes derived from them, and the window below the surface.

A map is a function of a `MapSource` alone and treats every A-line separately, so that a tile may be passed as a whole
or B-line by B-line. Everything that several maps need is computed on first use. Arrays may belong to any library (see
`opticstream.compute.arrays`); a function for NumPy arrays alone becomes one for all of them by `from_numpy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.arrays import in_numpy, library_of
from opticstream.compute.reconstruction._enface import DepthWindow
from opticstream.compute.reconstruction._jones import (
    intensity_db_from_jones,
    orientation_from_jones,
    retardance_from_jones,
)
from opticstream.compute.reconstruction._stokes import axis_and_birefringence
from opticstream.model.modalities import volume_names

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class TileProfiles:
    """Complex profiles of A-lines, and their volumes, which are computed once when they are asked for."""

    jones: NDArray[np.complex64]
    """Shape (channels, x, y, z), depth downwards."""
    depth_step_um: float
    wavelength_um: float
    phase_offset_deg: float = 100.0
    flip_phase: bool = False

    @cached_property
    def intensity_db(self) -> Floats:
        """Intensity in dB, shape (x, y, z)."""
        return intensity_db_from_jones(self.jones)

    @cached_property
    def retardance_deg(self) -> Floats:
        """Retardance in degrees, 0..90, shape (x, y, z); two channels needed."""
        return retardance_from_jones(self.jones)

    @cached_property
    def orientation_deg(self) -> Floats:
        """Optic axis orientation in degrees, (-90, 90], shape (x, y, z); two channels needed."""
        return orientation_from_jones(self.jones, phase_offset_deg=self.phase_offset_deg, flip_phase=self.flip_phase)

    def volume(self, name: str, /) -> Floats:
        """Return dBI, R3D or O3D.

        Raises
        ------
        ValueError
            There is no such volume.
        """
        match name:
            case "dBI":
                return self.intensity_db
            case "R3D":
                return self.retardance_deg
            case "O3D":
                return self.orientation_deg
        raise ValueError(f"{name!r} is not a volume that a tile has; expected one of {volume_names()}")


@dataclass(frozen=True, eq=False)
class MapSource:
    """Profiles of A-lines and the window below the surface that maps look at."""

    profiles: TileProfiles
    window: DepthWindow
    offset: int = 0
    """Start of the window below the surface, in depth samples."""

    @cached_property
    def in_window(self) -> TileProfiles:
        """The samples in the window alone as profiles, n samples deep; `window.valid` marks valid ones."""
        jones = self.profiles.jones
        parts = [self.window.take(jones[channel, ...]) for channel in range(jones.shape[0])]
        return replace(self.profiles, jones=library_of(jones).stack(parts))

    @cached_property
    def circle(self) -> tuple[Floats, Floats]:
        """Orientation (degrees) and birefringence of the circle on which polarization states go, each (x, y)."""
        profiles = self.profiles
        return axis_and_birefringence(
            profiles.jones,
            self.window,
            offset=self.offset,
            phase_offset_deg=profiles.phase_offset_deg,
            flip_phase=profiles.flip_phase,
            depth_step_um=profiles.depth_step_um,
            wavelength_um=profiles.wavelength_um,
        )

    def inside(self, volume: Floats, /) -> Floats:
        """Return the samples of a volume (x, y, z) in the window, shape (x, y, n); `window.valid` marks valid ones."""
        return self.window.take(volume)


MapFunction = Callable[[MapSource], Floats]
"""Returns one map, shape (x, y), of the A-lines that it is given."""


def from_numpy(function: MapFunction, /) -> MapFunction:
    """Return a function for arrays of any library, from one that takes NumPy arrays alone."""

    def made(source: MapSource) -> Floats:
        profiles, window = source.profiles, source.window
        return function(
            MapSource(
                replace(profiles, jones=in_numpy(profiles.jones)),
                DepthWindow(in_numpy(window.index), in_numpy(window.valid)),
                source.offset,
            )
        )

    return made

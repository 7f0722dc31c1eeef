"""One tile of a phantom as complex profiles, with the truth on its own pixels: for comparing surfaces and estimators.

No file, no stage: the virtual rig's spectra, reconstructed with the instrument's own calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.reconstruction import jones_from_spectra, positions_from_wavelengths, spectral_plan
from opticstream.config import ProjectConfig, config_from_mapping
from opticstream.model.ids import TileId
from opticstream.sim.phantom import Region
from opticstream.sim.settings import (
    BubbleSettings,
    InstrumentSettings,
    PhantomSettings,
    SampleSettings,
    VesselSettings,
)
from opticstream.sim.tiles import NOMINAL_FIRST_BIN, TileSimulator
from opticstream.sim.truth import maps_from_view

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TilePhantom:
    """A reconstructed tile and what is true of it; maps have shape (x, y)."""

    jones: NDArray[np.complex64]
    """Complex profiles, shape (channels, x, y, z), the surface at small z."""
    surface: Floats
    """Depth index of the tissue surface."""
    truth: dict[str, NDArray[Any]]
    """Maps of `opticstream.sim.truth`: apparent_orientation, visible_retardance, region, shadow, ..."""

    @property
    def white(self) -> NDArray[np.bool_]:
        """White matter that no vessel or bubble shadows."""
        return (self.truth["region"] == Region.WHITE) & (self.truth["shadow"] == 0)

    @property
    def tissue(self) -> NDArray[np.bool_]:
        """Everything that is tissue, shadowed or not."""
        return np.asarray(self.truth["inside"] > 0)


def one_tile_config(
    *, samples: int = 512, a_lines: int = 96, b_lines: int = 96, tilt_deg: float = 0.0, depth: int = 80
) -> ProjectConfig:
    """Return a project that consists of a single tile of the given size, seen by one beam."""
    beam = {"name": "normal", "columns": 1, "a_lines": a_lines, "tilt_deg": tilt_deg}
    scan = {
        "samples": samples,
        "b_lines": b_lines,
        "grid_size_y": 1,
        "scan_resolution_3d": [0.01, 0.01, 0.0025],
        "illuminations": [beam],
        "calibration": {"linearization": {"method": "wavelengths", "files": ["from-the-instrument.npy"]}},
    }
    return config_from_mapping(
        {
            "project": {"project_name": "one-tile", "project_base_path": "/nowhere"},
            "scan": scan,
            "processing": {"enface": {"depth": depth}},
        }
    )


def uniform_white_matter(birefringence: float, /, *, scattering_db: float, seed: int) -> PhantomSettings:
    """Return white matter of one birefringence with fibres in the image plane, with vessels and speckle."""
    sample = SampleSettings(
        outline="full",
        white_fraction=1.0,
        isotropic_fraction=0.0,
        inclination_max_deg=0.0,
        birefringence_white=birefringence,
    )
    instrument = InstrumentSettings(scattering_db=scattering_db)
    return PhantomSettings(seed=seed, slices=1, sample=sample, instrument=instrument)


def vessels_and_bubbles(*, bubbles_per_mm2: float, scattering_db: float, seed: int) -> PhantomSettings:
    """Return grey and white matter with many vessels, under bubbles."""
    sample = SampleSettings(
        outline="full",
        bubbles=BubbleSettings(per_mm2=bubbles_per_mm2),
        vessels=VesselSettings(spacing_um=400.0, depth_um=40.0),
    )
    instrument = InstrumentSettings(scattering_db=scattering_db)
    return PhantomSettings(seed=seed, slices=1, sample=sample, instrument=instrument)


def tile_from_phantom(config: ProjectConfig, phantom: PhantomSettings, /, *, tile: TileId | None = None) -> TilePhantom:
    """Return a tile (default: the first) of a phantom, reconstructed, and its truth."""
    tile = tile or TileId(1, 1)
    simulator = TileSimulator(config, phantom)
    scan, spectrometer = config.scan, simulator.spectrometer
    plan = spectral_plan(
        samples=scan.samples,
        channels=scan.channels,
        flip_channel2=config.processing.reconstruction.flip_channel2,
        positions=positions_from_wavelengths(*spectrometer.wavenumbers.wavelength_um),
        dispersion_rad=np.stack([spectrometer.dispersion_phase(c) for c in range(scan.channels)]),
    )
    jones = np.concatenate([jones_from_spectra(block, plan) for block in simulator.spectra(tile)], axis=2)
    index = scan.layout.illumination_index(tile.mosaic)
    placement = simulator.stage.placement(tile.mosaic)
    grid = placement.grid(simulator.stage.position_px(tile), scan.tile_shape(index))
    view = simulator.look(placement, index, scan.layout.slice_of(tile.mosaic).slice_id, grid)
    truth = maps_from_view(simulator, placement, view)
    surface = NOMINAL_FIRST_BIN + truth["height"] + simulator.gate_px(index) - plan.cut
    return TilePhantom(jones, surface.astype(np.float32), truth)

"""From the spectra of a tile to profiles, surface and en face maps, and the calibration for this.

NumPy, and most formulas for arrays of any library (see `opticstream.compute.arrays`). Importing it loads no compiler.
"""

from __future__ import annotations

from opticstream.compute.reconstruction._birefringence import (
    UNWRAP_HALO_PX,
    UNWRAP_REACH_PX,
    birefringence_slope,
    birefringence_unwrapped,
)
from opticstream.compute.reconstruction._calibration import (
    positions_from_chirp,
    positions_from_phases,
    positions_from_wavelengths,
)
from opticstream.compute.reconstruction._calibration_fit import (
    dispersion_from_spectra,
    peak_width_bins,
    positions_from_mirrors,
)
from opticstream.compute.reconstruction._enface import (
    DepthWindow,
    attenuation_from_intensity,
    depth_window,
    window_maximum,
    window_mean,
)
from opticstream.compute.reconstruction._jones import (
    complex_tile_from_jones,
    intensity_db_from_jones,
    jones_from_complex_tile,
    orientation_from_jones,
    retardance_from_jones,
)
from opticstream.compute.reconstruction._map_source import (
    Floats,
    MapFunction,
    MapSource,
    TileProfiles,
    from_numpy,
)
from opticstream.compute.reconstruction._options import Sink, TileOptions
from opticstream.compute.reconstruction._orientation import axis_window_mean, axis_window_mode
from opticstream.compute.reconstruction._robust_surface import (
    CELL_PX,
    LOOKAHEAD_LINES,
    NEAR_PX,
    SurfaceSheet,
    strongest_rise_near,
    surface_sheet,
)
from opticstream.compute.reconstruction._spectral import (
    SpectralPlan,
    SpectralTables,
    Transform,
    counts_to_work_on,
    jones_from_spectra,
    median_by_halving,
    profiles_from_spectra,
    spectral_plan,
    spectral_tables,
    spectral_window,
)
from opticstream.compute.reconstruction._stokes import (
    BLOCK_PX,
    LEAST_AGREEMENT,
    LEAST_SIGNAL,
    START_LIMIT_PX,
    START_STEP_PX,
    START_STIFFNESS,
    axis_and_birefringence,
    rate_tables,
    rates_of,
    retardance_without_noise,
)
from opticstream.compute.reconstruction._surface import (
    THRESHOLD_SAMPLES,
    edge_response,
    edge_taps,
    median_3x3,
    unfiltered_surface_from_gradient,
    unfiltered_surface_from_threshold,
)

__all__ = [
    "BLOCK_PX",
    "CELL_PX",
    "LEAST_AGREEMENT",
    "LEAST_SIGNAL",
    "LOOKAHEAD_LINES",
    "NEAR_PX",
    "START_LIMIT_PX",
    "START_STEP_PX",
    "START_STIFFNESS",
    "THRESHOLD_SAMPLES",
    "UNWRAP_HALO_PX",
    "UNWRAP_REACH_PX",
    "DepthWindow",
    "Floats",
    "MapFunction",
    "MapSource",
    "Sink",
    "SpectralPlan",
    "SpectralTables",
    "SurfaceSheet",
    "TileOptions",
    "TileProfiles",
    "Transform",
    "attenuation_from_intensity",
    "axis_and_birefringence",
    "axis_window_mean",
    "axis_window_mode",
    "birefringence_slope",
    "birefringence_unwrapped",
    "complex_tile_from_jones",
    "counts_to_work_on",
    "depth_window",
    "dispersion_from_spectra",
    "edge_response",
    "edge_taps",
    "from_numpy",
    "intensity_db_from_jones",
    "jones_from_complex_tile",
    "jones_from_spectra",
    "median_3x3",
    "median_by_halving",
    "orientation_from_jones",
    "peak_width_bins",
    "positions_from_chirp",
    "positions_from_mirrors",
    "positions_from_phases",
    "positions_from_wavelengths",
    "profiles_from_spectra",
    "rate_tables",
    "rates_of",
    "retardance_from_jones",
    "retardance_without_noise",
    "spectral_plan",
    "spectral_tables",
    "spectral_window",
    "strongest_rise_near",
    "surface_sheet",
    "unfiltered_surface_from_gradient",
    "unfiltered_surface_from_threshold",
    "window_maximum",
    "window_mean",
]

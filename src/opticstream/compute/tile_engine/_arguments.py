"""Arguments of the kernels of a B-line, grouped by purpose; arrays of size 0 mean that something is not wanted."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Depths(NamedTuple):
    """Which bins of the profiles are depth samples."""

    cut: int
    """First bin that is kept."""
    depth: int
    """Number of those."""
    reverse: bool
    """Whether the last of them comes first."""


class Orientation(NamedTuple):
    """How the phase between the channels becomes an orientation."""

    sign: np.float32
    offset_deg: np.float32
    """Within -90..90."""


class SpectralTransform(NamedTuple):
    """From the spectra of a strip to its profiles."""

    phasor_re: Floats
    phasor_im: Floats
    """Window and dispersion, shape (channels, samples)."""
    radices: NDArray[np.int64]
    """Of size 0 for `profile_of_strip`."""
    twiddles: Floats


class EdgeFilter(NamedTuple):
    """The search for the strongest rise of every A-line."""

    wanted: bool
    taps: Floats
    """Tap k weighs sample z + k against z - 1 - k."""
    threshold_db: np.float32
    """Where the mean of the first samples reaches it (+inf: never), the surface is the first sample that does."""
    first_samples: int


class ProfileScratch(NamedTuple):
    """Memory of one thread."""

    work: Floats
    other: Floats
    intensity: Floats
    """Shape ((depth + 3) * LANES,)."""
    padded: Floats
    """Shape ((depth + 2 * taps) * LANES,)."""


class LineResults(NamedTuple):
    """Results of a B-line that need no other B-line."""

    cells: Floats
    """Sums of the intensity over 4 A-lines, shape (cells, depth + 3 or more)."""
    surface: Floats
    """Depth index of the strongest rise, shape (n_strips * LANES,)."""
    floor_db: Floats
    """Mean intensity of the deepest twentieth, shape (n_strips * LANES,)."""
    section_x: Floats
    """Intensity of the whole B-line, shape (a_lines, depth)."""
    section_y: Floats
    """Intensity of its middle A-line, shape (depth,)."""


class LineVolumes(NamedTuple):
    """Volumes of one or more B-lines, depth slowest; flat."""

    dbi: Floats
    r3d: Floats
    o3d: Floats


class Strip(NamedTuple):
    """The profiles of one strip, inside a kernel."""

    profiles: Any
    """Of all strips, flat."""
    base: int
    """Element where those of this strip begin."""
    pitch: int
    """Distance of the channels."""
    channels: int


class Windows(NamedTuple):
    """Depth indices of the windows of a B-line, both ends included, shape (n_strips * LANES,)."""

    start: Floats
    stop: Floats


class RiseNear(NamedTuple):
    """The search for the strongest rise near a surface that is known roughly."""

    centre: Floats
    """Whole depth indices, shape (n_strips * LANES,)."""
    taps: Floats
    reach_px: int


class Circles(NamedTuple):
    """Rates at which polarization states may rotate, from `rate_tables`."""

    cosine: Floats
    sine: Floats
    step: np.float32
    """Distance of the rates in rad per sample."""
    scale: np.float32
    """One step in birefringence."""


class MapConstants(NamedTuple):
    """Numbers that single maps need."""

    slope_scale: np.float32
    """Slope of the retardance to birefringence."""
    block: int
    """Samples that are averaged for the retardance without noise."""
    least_signal: float
    """Signal over noise of what counts in it."""
    step_mm: np.float32
    """Depth step, for the attenuation."""


class MapScratch(NamedTuple):
    """Memory of one thread, n the longest window."""

    padded: Floats
    window: Floats
    """Shape (n * 4 * LANES,)."""
    states: Floats
    """Shape (n * 3 * LANES,)."""
    sums: Floats
    """Shape ((rates + 3) * 6 * LANES,)."""


class LineMaps(NamedTuple):
    """The maps of one B-line, each of shape (n_strips * LANES,)."""

    surface: Floats
    """Strongest rise near the rough surface."""
    aip: Floats
    mip: Floats
    """Mean and maximum intensity."""
    mean_ret: Floats
    """Mean of the samples' retardance."""
    mean_ori: Floats
    """Axial mean of their orientation."""
    slope: Floats
    """Birefringence from the slope of the retardance."""
    mode_ori: Floats
    """Fullest bin of orientation."""
    circle_ori: Floats
    """Orientation of the best circle."""
    circle_biref: Floats
    """Birefringence of the best circle."""
    clean_ret: Floats
    """Retardance without noise bias."""
    mus: Floats
    """Attenuation coefficient, 1/mm."""

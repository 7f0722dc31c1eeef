"""The block of tissue: fibre axis, birefringence, scattering and surface as functions of position.

Nothing is stored as a map, so a sample of any size costs no memory and any tile can be made on its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, ndtri

from opticstream.io.images import read_image
from opticstream.io.tiff import read_tiff
from opticstream.model.errors import CalibrationError, InputError
from opticstream.sim.fields import Grid, LineTexture, SmoothField
from opticstream.sim.settings import Corner, GeneratedFibres, ImageFibres, PhantomSettings

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Region(IntEnum):
    """Kinds of tissue, as numbered in the truth's `region` maps."""

    OUTSIDE = 0
    GREY = 1
    WHITE = 2
    ISOTROPIC = 3


@dataclass(frozen=True)
class TissueMaps:
    """Tissue at one depth, on a grid; every array has the grid's shape (`axis` has a last dimension of 3)."""

    axis: Array
    """Unit fibre axis (x, y, z) in the sample's frame; sign without meaning."""
    birefringence: Array
    """True birefringence; 0 where isotropic."""
    scattering: Array
    """Back-scattered power against white matter; 0 outside."""
    attenuation_per_um: Array
    """Attenuation coefficient of the intensity, one pass."""
    region: NDArray[np.int8]
    """`Region` of every point."""
    crossing: Mask
    """Where two bundles interleave."""


@dataclass(frozen=True)
class FaceMaps:
    """What belongs to the block face of one slice, on a grid."""

    height_px: Array
    """Depth of the surface, in depth samples below the nominal face; field curvature comes on top."""
    vessel_depth_um: Array
    """Depth of the centre of the vessel that an A-line crosses."""
    vessel_half_um: Array
    """Half of the vessel's thickness along depth; 0 where there is none."""
    bubble_px: Array
    """Height of a bubble's dome above the surface, in depth samples; 0 where there is none."""
    layer_shift_um: Array
    """Depth by which the layers are shifted."""


class Sample:
    """A block of tissue that covers ``(0, 0)`` to `extent_um`.

    Parameters
    ----------
    settings : PhantomSettings
        The world, and its seed.
    extent_um : tuple of float
        Size of the field that the stage covers, along x and y.
    corners_um : mapping
        Size, along x and y, of each corner that stays blank.
    slice_thickness_um : float
        Distance between block faces.
    depth_step_um : float
        Size of a depth sample.
    """

    def __init__(
        self,
        settings: PhantomSettings,
        *,
        extent_um: tuple[float, float],
        corners_um: Mapping[Corner, tuple[float, float]],
        slice_thickness_um: float,
        depth_step_um: float,
    ) -> None:
        self.settings = settings.sample
        self.seed = settings.seed
        self.extent_um = extent_um
        self.corners_um = dict(corners_um)
        self.slice_thickness_um = slice_thickness_um
        self.depth_step_um = depth_step_um
        s = self.settings
        self._z_scale = s.depth_scale_um or 3000.0
        self._white = self._field("white", s.region_scale_um)
        self._isotropic = self._field("isotropic", 0.6 * s.region_scale_um)
        self._inclination = self._field("inclination", s.inclination_scale_um)
        self._variation = self._field("variation", 500.0)
        self._blobs = self._field("blobs", 1.3 * s.texture_scale_um, modes=48)
        self._outline = self._field("outline", 500.0)
        self._layers = LineTexture(self._rng("layers"), s.layer_period_um)
        self._layer_shift = self._field("layer shift", 1500.0)
        self._vessels = self._field("vessels", 2.0 * s.vessels.spacing_um)
        self._vessel_depth = self._field("vessel depth", 1200.0)
        if isinstance(s.fibres, GeneratedFibres):
            self._bundles = [self._field(f"bundle {k}", s.fibres.bundle_scale_um) for k in (0, 1)]
            self._partition = self._field("partition", s.fibres.bundle_scale_um)
            self._stripes = [LineTexture(self._rng(f"stripes {k}"), s.texture_scale_um) for k in (0, 1)]

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *name.encode()])

    def _field(self, name: str, scale_um: float, *, modes: int = 28) -> SmoothField:
        return SmoothField(self._rng(name), scale_um, z_scale_um=self._z_scale, modes=modes)

    def face_depth_um(self, slice_id: int) -> float:
        """Return where a slice's block face lies in the block."""
        return (slice_id - 1) * self.slice_thickness_um

    def inside(self, grid: Grid, z_um: float | Array) -> Mask:
        """Return where there is tissue."""
        s = self.settings
        if s.outline == "full":
            return np.ones(grid.shape, dtype=bool)
        x, y = grid.coordinates()
        wave = 25.0 * self._outline.on(grid, z_um)
        if s.outline == "ellipse":
            centre_x, centre_y = self.extent_um[0] / 2, self.extent_um[1] / 2
            radius = np.hypot((x - centre_x) / centre_x, (y - centre_y) / centre_y)
            return (1 - radius) * min(centre_x, centre_y) + wave > 0
        inside = np.ones(grid.shape, dtype=bool)
        for corner, (width, height) in self.corners_um.items():
            from_left = x if corner.startswith("left") else self.extent_um[0] - x
            from_bottom = y if corner.endswith("down") else self.extent_um[1] - y
            # A notch with a wavy edge that never comes closer to the corner than a tile is wide.
            over = np.maximum(from_left - width, from_bottom - height)
            inside &= over > 25.0 * (1 + np.tanh(wave / 25.0))
        return inside

    def tissue(self, grid: Grid, z_um: float | Array) -> TissueMaps:
        """Return the tissue on a grid, at depth `z_um` in the block: one for all points, or one for each."""
        s = self.settings
        inside = self.inside(grid, z_um)
        white = self._white.on(grid, z_um) > ndtri(1 - s.white_fraction)
        isotropic = self._isotropic.on(grid, z_um) < ndtri(s.isotropic_fraction)
        angle, crossing, isotropic, texture = self._fibres(grid, z_um, isotropic)

        # The error function turns a Gaussian into a uniform distribution: all inclinations are equally frequent.
        inclination = np.deg2rad(s.inclination_max_deg) * erf(self._inclination.on(grid, z_um) / np.sqrt(2))
        flat = np.cos(inclination)
        axis = np.stack([flat * np.cos(angle), flat * np.sin(angle), np.sin(inclination)], axis=-1)

        region = np.where(white, Region.WHITE, Region.GREY)
        region[isotropic] = Region.ISOTROPIC
        region[~inside] = Region.OUTSIDE
        mean = np.where(white, s.birefringence_white, s.birefringence_grey)
        variation = np.clip(1 + s.birefringence_variation * self._variation.on(grid, z_um), 0.1, None)
        bright_db = np.where(white, 0.0, s.scattering_grey_db) + s.texture_db * texture
        attenuation = np.where(white, s.attenuation_white_per_mm, s.attenuation_grey_per_mm) * 1e-3
        scattering = 10 ** (bright_db / 10)
        outside = 0.0 if s.embedding_db is None else 10 ** (s.embedding_db / 10)
        return TissueMaps(
            axis=axis,
            birefringence=np.where(inside & ~isotropic, mean * variation, 0.0),
            scattering=np.where(inside, scattering, outside),
            attenuation_per_um=np.where(inside, attenuation, 0.0),
            region=region.astype(np.int8),
            crossing=crossing & inside,
        )

    def _fibres(self, grid: Grid, z_um: float | Array, isotropic: Mask) -> tuple[Array, Mask, Mask, Array]:
        """Return in-plane angle (radians), crossing, isotropic, and brightness texture (variance 1)."""
        fibres = self.settings.fibres
        blobs = self._blobs.on(grid, z_um)
        x, y = grid.coordinates()
        if isinstance(fibres, ImageFibres):
            first, second, known = self._image_directions(x, y)
            lamella = np.sin(2 * np.pi * (x + y) / np.sqrt(2) / fibres.crossing_period_um) > 0
            angle = np.where(lamella & (second >= 0), second, first)
            return np.deg2rad(angle), known & (second >= 0), isotropic | ~known, blobs

        angles, textures = [], []
        for direction, bundle, stripes in zip(fibres.directions_deg, self._bundles, self._stripes, strict=True):
            c, s = np.cos(np.deg2rad(direction)), np.sin(np.deg2rad(direction))
            swing = fibres.bend * fibres.bundle_scale_um / (2 * np.pi)
            across = -s * x + c * y + swing * bundle.on(grid, z_um)
            gx, gy = bundle.gradient_on(grid, z_um)
            # Fibres are the level lines of `across`, so stripes in it run along them.
            angles.append(np.arctan2(s - swing * gx, c + swing * gy))
            textures.append(stripes(across))
        side = self._partition.on(grid, z_um)
        crossing = np.abs(side) < ndtri(0.5 + fibres.crossing_fraction / 2)
        mean = np.deg2rad(np.mean(fibres.directions_deg))
        lamella = np.sin(2 * np.pi * (x * np.cos(mean) + y * np.sin(mean)) / fibres.crossing_period_um) > 0
        first = np.where(crossing, lamella, side > 0)
        texture = 0.8 * np.where(first, textures[0], textures[1]) + 0.6 * blobs
        return np.where(first, angles[0], angles[1]), crossing, isotropic, texture

    @cached_property
    def _images(self) -> tuple[Array, Array, Mask]:
        fibres = self.settings.fibres
        assert isinstance(fibres, ImageFibres)

        def load(path: object) -> Array:
            file = Path(str(path))
            try:
                image = read_image(file) if file.suffix == ".npy" else read_tiff(file)
            except (OSError, InputError) as error:
                raise CalibrationError(f"{path}: cannot be read as a direction image: {error}") from error
            # Rows of an image run downwards; y grows upwards.
            return np.ascontiguousarray(np.asarray(image, dtype=float)[::-1].T)

        first = load(fibres.directions_file)
        none = np.full_like(first, -1.0)
        second = load(fibres.second_directions_file) if fibres.second_directions_file else none
        mask = load(fibres.mask_file) > fibres.mask_above if fibres.mask_file else np.ones(first.shape, dtype=bool)
        for name, image in (("second_directions_file", second), ("mask_file", mask)):
            if image.shape != first.shape:
                raise CalibrationError(
                    f"sample.fibres.{name} holds {image.shape} pixels, directions_file holds {first.shape}"
                )
        return first, second, mask & (first >= 0)

    def _image_directions(self, x: Array, y: Array) -> tuple[Array, Array, Mask]:
        fibres = self.settings.fibres
        assert isinstance(fibres, ImageFibres)
        first, second, known = self._images
        pixel = fibres.pixel_um or max(self.extent_um[0] / first.shape[0], self.extent_um[1] / first.shape[1])
        i, j = np.floor(x / pixel).astype(int), np.floor(y / pixel).astype(int)
        within = (i >= 0) & (j >= 0) & (i < first.shape[0]) & (j < first.shape[1])
        i, j = np.clip(i, 0, first.shape[0] - 1), np.clip(j, 0, first.shape[1] - 1)
        return first[i, j], second[i, j], known[i, j] & within

    def face(
        self, grid: Grid, slice_id: int, *, tissue: Grid | None = None, deeper_um: float | Array = 0.0
    ) -> FaceMaps:
        """Return the surface, vessels, bubbles and layers of a slice on a grid.

        Parameters
        ----------
        grid : Grid
            Points of the picture.
        slice_id : int
            Slice.
        tissue : Grid, optional
            Where the tissue of these points comes from, if the slice is bent.
        deeper_um : float or ndarray, shape of the grid
            How much deeper than a level face the face lies in the block, if it was cut as a wedge.
        """
        s = self.settings
        z_um = self.face_depth_um(slice_id) + deeper_um
        tissue = tissue or grid
        x, y = grid.coordinates()
        slope_x, slope_y = s.surface_slope_px_per_mm
        # The blade leaves other waves in every slice.
        wave = SmoothField(self._rng(f"surface {slice_id}"), s.surface_wave_um, modes=16).on(grid)
        height = slope_x * (x - self.extent_um[0] / 2) * 1e-3 + slope_y * (y - self.extent_um[1] / 2) * 1e-3
        height = s.surface_depth_px + height + s.surface_wave_px * wave + deeper_um / self.depth_step_um

        vessel_depth = s.vessels.depth_um * (1 + 0.4 * np.tanh(self._vessel_depth.on(tissue, z_um)))
        value = self._vessels.on(tissue, z_um)
        gx, gy = self._vessels.gradient_on(tissue, z_um)
        distance = np.abs(value) / np.maximum(np.hypot(gx, gy), 1e-9)
        half = np.sqrt(np.clip(s.vessels.radius_um**2 - distance**2, 0, None))
        return FaceMaps(
            height_px=height,
            vessel_depth_um=vessel_depth,
            vessel_half_um=half,
            bubble_px=self._bubble_px(x, y, slice_id),
            layer_shift_um=30.0 * self._layer_shift.on(tissue, z_um),
        )

    def _bubble_px(self, x: Array, y: Array, slice_id: int) -> Array:
        bubbles = self.settings.bubbles
        dome = np.zeros(x.shape)
        number = round(bubbles.per_mm2 * self.extent_um[0] * self.extent_um[1] * 1e-6)
        if number == 0:
            return dome
        rng = self._rng(f"bubbles {slice_id}")
        centres = rng.random((number, 2)) * self.extent_um
        radii = bubbles.radius_um * rng.uniform(0.6, 1.4, number)
        reach = radii.max()
        near = (np.abs(centres - [x.mean(), y.mean()]) < [np.ptp(x) / 2 + reach, np.ptp(y) / 2 + reach]).all(axis=1)
        for (cx, cy), radius in zip(centres[near], radii[near], strict=True):
            inside = np.clip(radius**2 - (x - cx) ** 2 - (y - cy) ** 2, 0, None)
            dome = np.maximum(dome, 0.35 * np.sqrt(inside) / self.depth_step_um)
        return dome

    def layer_amplitudes(self, depth_um: Array, /) -> Array:
        """Return the amplitude factor of the horizontal layers at depths (micrometres) below the surface."""
        return 10 ** (self.settings.layer_contrast_db * self._layers(depth_um) / 20)

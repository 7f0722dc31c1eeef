"""A cut sample as slice products, without spectra and tiles: volumes and maps of each slice, and the truth.

The whole chain takes minutes a slice; what happens between slices needs only what a stitched slice looks like. The
tissue is one block of smooth noise; each slice is the block seen from its face: turned, shifted, bent, through
attenuation, focus, vignette, gain and speckle. Nothing here is shared with the code that puts slices together.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from opticstream.config.base import Settings
from opticstream.sim.cutting import Cutting, bent_axes, turned
from opticstream.sim.fields import Grid
from opticstream.sim.settings import CuttingSettings

Array = NDArray[np.float64]
Single = NDArray[np.float32]

_MARGIN_PX = 70


class CutSampleSettings(Settings):
    """A small sample of a few slices."""

    seed: int = Field(default=1, ge=0)
    """Everything random follows from it."""
    slots: int = Field(default=12, ge=1)
    """Sections that are cut."""
    shape: tuple[int, int] = (420, 380)
    """Size of a slice in pixels."""
    pixel_um: float = Field(default=10.0, gt=0)
    """Size of a pixel along x and y."""
    plane_um: float = Field(default=10.0, gt=0)
    """Size of a depth sample."""
    imaged_um: float = Field(default=600.0, gt=0)
    """Depth that is imaged below each face."""
    cut_um: float = Field(default=200.0, gt=0)
    """Thickness of a section."""
    texture_um: tuple[float, float] = (35.0, 60.0)
    """Standard deviation of the finest structure across and along depth."""
    looks: int = Field(default=4, ge=0)
    """Averages of speckle; 0 for none."""
    floor_db: float = -38.0
    """Noise floor against white matter at the face."""
    vignette: float = Field(default=0.35, ge=0, lt=1)
    """Loss of power at the corners of a tile."""
    tile_px: float = Field(default=130.0, gt=0)
    """Distance between tiles."""
    focus_um: float = 150.0
    """Depth of the focus."""
    rayleigh_um: float = Field(default=350.0, gt=0)
    """Distance from the focus at which the confocal gate halves the power."""
    cutting: CuttingSettings = CuttingSettings()
    """What happens between slices."""


def benchmark_settings(kind: str, seed: int, /, **changes: Any) -> CutSampleSettings:
    """Return one of the two samples of the benchmark, each with a jump, a missing and a bad slice.

    Parameters
    ----------
    kind : {"m", "h"}
        `m`: 600 um imaged and 200 um cut, so that tissue is seen up to three times; `h`: 440 um and 400 um, hardly
        twice.
    seed : int
        Seed of everything random, and of which slices are missing and bad.
    **changes
        Other settings of the sample.

    Raises
    ------
    ValueError
        The kind is unknown.
    """
    depths = {"m": (600.0, 200.0), "h": (440.0, 400.0)}
    if kind not in depths:
        raise ValueError(f"unknown sample {kind!r}; expected one of {', '.join(depths)}")
    missing, bad, jump = np.random.default_rng([seed, 20]).permutation(np.arange(3, 11))[:3]
    cutting = CuttingSettings(
        rotation_deg=0.7,
        shift_px=9.0,
        jump_px=42.0,
        jump_at=int(jump),
        missing=(int(missing),),
        bad=(int(bad),),
        gain_db=0.8,
    )
    imaged, cut = depths[kind]
    return CutSampleSettings(seed=seed, imaged_um=imaged, cut_um=cut, **{"cutting": cutting, **changes})


class CutSample:
    """All slices of a sample; each is made from the settings alone, whenever it is asked for.

    Parameters
    ----------
    settings : CutSampleSettings
        The sample.
    """

    def __init__(self, settings: CutSampleSettings, /) -> None:
        self.settings = settings
        self.cutting = Cutting(settings.cutting, seed=settings.seed)
        self.planes = round(settings.imaged_um / settings.plane_um)
        self.section_planes = settings.cut_um / settings.plane_um

    @property
    def slices(self) -> tuple[int, ...]:
        """Numbers of the slices that were imaged, from 1."""
        return tuple(n for n in range(1, self.settings.slots + 1) if n not in self.settings.cutting.missing)

    @property
    def centre_px(self) -> Array:
        """The fixed point of the rotations."""
        return (np.array(self.settings.shape) - 1) / 2

    def pose(self, slice_id: int, /) -> tuple[Array, Array]:
        """Return the true mapping ``slice pixel = matrix @ sample pixel + offset`` (without the bend)."""
        matrix = turned(np.eye(2), self.cutting.turn_deg(slice_id))
        return matrix, self.centre_px + self.cutting.shift_px(slice_id) - matrix @ self.centre_px

    # -- the block of tissue -----------------------------------------------------------------------------------------

    @property
    def _block_shape(self) -> tuple[int, int, int]:
        s = self.settings
        depth = (s.slots - 1) * s.cut_um + s.imaged_um + s.cutting.wedge_um
        return (s.shape[0] + 2 * _MARGIN_PX, s.shape[1] + 2 * _MARGIN_PX, int(np.ceil(depth / s.plane_um)) + 2)

    def _noise(self, name: str, across_px: float, along_px: float) -> Single:
        """Return smooth noise of variance 1 on the block."""
        from scipy import ndimage

        rng = np.random.default_rng([self.settings.seed, *f"block {name}".encode()])
        # Coarse noise is made coarse: a grid of a third of its scale is enough.
        steps = [max(1, int(scale / 3)) for scale in (across_px, across_px, along_px)]
        size = [-(-n // step) + 8 for n, step in zip(self._block_shape, steps, strict=True)]
        coarse = rng.standard_normal(size, dtype=np.float32)
        sigma = [scale / step for scale, step in zip((across_px, across_px, along_px), steps, strict=True)]
        coarse = ndimage.gaussian_filter(coarse, sigma, mode="wrap")
        coarse /= coarse.std()
        for axis, (n, step) in enumerate(zip(self._block_shape, steps, strict=True)):
            at = np.arange(n) / step + 2
            low = np.floor(at).astype(int)
            share = (at - low).astype(np.float32)
            share = share.reshape([-1 if a == axis else 1 for a in range(3)])
            coarse = coarse.take(low, axis) * (1 - share) + coarse.take(low + 1, axis) * share
        return coarse

    @cached_property
    def _block(self) -> tuple[Single, Single]:
        """Brightness in dB against white matter (-60 outside) and attenuation per um, on the block's grid."""
        s = self.settings
        white = 1 / (1 + np.exp(-8 * (self._noise("region", 45.0, 400.0 / s.plane_um) + 0.3)))
        fine = self._noise("fine", s.texture_um[0] / s.pixel_um, s.texture_um[1] / s.plane_um)
        middle = self._noise("middle", 9.0, 120.0 / s.plane_um)
        tracts = self._noise("tracts", 18.0, 500.0 / s.plane_um)
        vessel = np.exp(-((self._noise("vessel", 12.0, 150.0 / s.plane_um) / 0.06) ** 2))
        bright = -5 * (1 - white) + 1.6 * fine + 1.2 * middle + 2.0 * tracts - 7 * vessel
        shape = self._block_shape
        x = (np.arange(shape[0])[:, None, None] - (shape[0] - 1) / 2) / (0.42 * s.shape[0])
        y = (np.arange(shape[1])[None, :, None] - (shape[1] - 1) / 2) / (0.42 * s.shape[1])
        inside = np.hypot(x, y) + 0.06 * self._noise("outline", 30.0, 300.0 / s.plane_um) < 1
        attenuation = np.where(inside, 2.5e-3 + 2.5e-3 * white, 0)
        return np.where(inside, bright, -60).astype(np.float32), attenuation.astype(np.float32)

    def tissue_db(self, planes: slice, /) -> Single:
        """Return the true brightness in dB on the sample's pixels, shape (x, y, planes); -60 outside the tissue.

        Plane 0 is the first slice's face.
        """
        inner = slice(_MARGIN_PX, -_MARGIN_PX)
        return self._block[0][inner, inner, planes]

    # -- slices ------------------------------------------------------------------------------------------------------

    def _where(self, slice_id: int) -> tuple[Array, Array]:
        """Return the sample pixels (2, x, y) that a slice's pixels show, and the depth (x, y) of its face in planes."""
        s = self.settings
        p = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in s.shape), indexing="ij"))
        c, shift = self.centre_px[:, None, None], self.cutting.shift_px(slice_id)[:, None, None]
        q = turned(p - c - shift, -self.cutting.turn_deg(slice_id)) + c
        bend = self.cutting.bend_um(slice_id, self._grid_um())
        if bend is not None:
            q = q + bend / s.pixel_um
        face = (slice_id - 1) * self.section_planes + np.zeros(s.shape)
        face += self.cutting.wedge_um(slice_id) / s.plane_um * (q[0] / (s.shape[0] - 1))
        return q, face

    def _seen(self, block: Single, slice_id: int) -> Single:
        """Return a part of the block as a slice sees it, (x, y, depth)."""
        from scipy import ndimage

        q, face = self._where(slice_id)
        q = np.clip(q + _MARGIN_PX, 0, np.array(block.shape[:2])[:, None, None] - 1.001)
        if np.ptp(face) > 0:
            planes = [ndimage.map_coordinates(block, [*q, face + z], order=1) for z in range(self.planes)]
            return np.stack(planes, axis=2)
        low = np.floor(q).astype(int)
        right, up = (q - low).astype(np.float32)[..., None]
        top = int(np.floor(face[0, 0]))
        below = np.float32(face[0, 0] - top)
        depth = slice(top, top + self.planes + 1)
        near, far = ((1 - right, low[0]), (right, low[0] + 1))
        out = np.zeros((*self.settings.shape, self.planes + 1), np.float32)
        for share_x, x in (near, far):
            for share_y, y in ((1 - up, low[1]), (up, low[1] + 1)):
                out += share_x * share_y * block[x, y, depth]
        return out[:, :, :-1] * (1 - below) + out[:, :, 1:] * below

    def vignette(self) -> Array:
        """Return the power that a pixel of a stitched slice gets from its tile, shape (x, y)."""
        s = self.settings
        squares = []
        for n in s.shape:
            from_middle = (np.arange(n) % s.tile_px) / s.tile_px * 2 - 1
            squares.append(0.5 * (0.85 * from_middle) ** 2)
        return np.asarray(1 - s.vignette * (squares[0][:, None] + squares[1][None, :]))

    def volume_db(self, slice_id: int, /) -> Single:
        """Return what the microscope makes of a slice: intensity in dB, (x, y, depth); NaN where it was not imaged."""
        from scipy import ndimage

        s = self.settings
        bright, attenuation = (self._seen(part, slice_id) for part in self._block)
        loss = np.cumsum(attenuation, axis=2) - attenuation / 2
        depth_um = (np.arange(self.planes) + 0.5) * s.plane_um
        gate_db = -10 * np.log10(1 + ((depth_um - s.focus_um) / s.rayleigh_um) ** 2)
        lost_db = np.float32(20 * s.plane_um * np.log10(np.e)) * loss
        power = 10 ** ((bright - lost_db + gate_db.astype(np.float32)) / 10)
        power = np.where(bright > -50, power, 0)
        blur = self.cutting.blur_px(slice_id)
        if blur:
            power = ndimage.gaussian_filter(power, (blur, blur, 0))
        gain = self.vignette() * 10 ** (self.cutting.gain_db(slice_id) / 10)
        power = power * gain.astype(np.float32)[:, :, None] + np.float32(10 ** (s.floor_db / 10))
        if s.looks:
            rng = np.random.default_rng([s.seed, slice_id, *b"speckle"])
            power *= rng.standard_gamma(s.looks, power.shape, dtype=np.float32) / np.float32(s.looks)
        volume: Single = np.float32(10) * np.log10(power)
        volume[round(self.cutting.covered_share(slice_id) * s.shape[0]) :] = np.nan
        return volume

    def axis(self, slice_id: int, /) -> Single:
        """Return the fibre axes at a slice's face in the slice's own frame, (x, y, 3), without noise."""
        tissue = self._fibres(self._where(slice_id)[0])
        change = turned(np.eye(2), -self.cutting.turn_deg(slice_id))[:, :, None, None]
        slopes = self.cutting.bend_slopes(slice_id, self._grid_um())
        return bent_axes(tissue, change if slopes is None else change + slopes).astype(np.float32)

    def _grid_um(self) -> Grid:
        s = self.settings
        return Grid((0.0, 0.0), (s.pixel_um, 0.0), (0.0, s.pixel_um), s.shape)

    def true_axis(self) -> Single:
        """Return the fibre axes on the sample's pixels, (x, y, 3); they do not change with depth."""
        q = np.stack(np.meshgrid(*(np.arange(n, dtype=float) for n in self.settings.shape), indexing="ij"))
        return self._fibres(q).astype(np.float32)

    def _fibres(self, q: Array) -> Array:
        x, y = (part / size for part, size in zip(q, self.settings.shape, strict=True))
        along = 1.2 * np.sin(3.0 * x + 1.0) + 1.5 * np.cos(2.5 * y) + 0.7 * self.settings.seed
        steep = 0.9 * np.sin(2.0 * x - 1.5 * y + self.settings.seed)
        flat = np.cos(steep)
        return np.stack([flat * np.cos(along), flat * np.sin(along), np.sin(steep)], axis=-1)

"""What cutting does to each slice, drawn from the seed: pose, brightness, wedge, bend, and what the stage's log says.

Pixel ``p`` of a slice shows the tissue at the sample's pixel ``q`` with ``p = R(turn) (q - c) + c + shift``, c being a
fixed point; where the slice is bent, the tissue is that at ``q + bend``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.sim.fields import Grid, SmoothField
from opticstream.sim.settings import CuttingSettings

Array = NDArray[np.float64]

_GLITCH_PX = 200.0


class Cutting:
    """The fate of every slice.

    Parameters
    ----------
    settings : CuttingSettings
        What may happen.
    seed : int
        Everything random follows from it and from the number of the slice.
    """

    def __init__(self, settings: CuttingSettings, /, *, seed: int) -> None:
        self.settings, self.seed = settings, seed

    def _rng(self, name: str, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *numbers, *f"cutting {name}".encode()])

    def turn_deg(self, slice_id: int, /) -> float:
        """Return the angle by which the slice's picture is turned against the sample; 0 for the first slice."""
        if slice_id == 1:
            return 0.0
        return float(self._rng("turn", slice_id).normal(0, 1) * self.settings.rotation_deg)

    def jump_px(self, slice_id: int, /) -> Array:
        """Return the shift that the stage's jump leaves in this and all later slices."""
        angle = self._rng("jump").uniform(0, 2 * np.pi)
        length = self.settings.jump_px if slice_id >= self.settings.jump_at else 0.0
        return length * np.array([np.cos(angle), np.sin(angle)])

    def shift_px(self, slice_id: int, /) -> Array:
        """Return the shift of the slice's picture against the sample, (x, y); 0 for the first slice."""
        if slice_id == 1:
            return np.zeros(2)
        own = self._rng("shift", slice_id).uniform(-1, 1, 2) * self.settings.shift_px
        return np.asarray(own + self.jump_px(slice_id))

    def log_px(self, slice_id: int, /) -> Array:
        """Return the shift that the stage's log tells: the jump, not the tissue's own steps, and glitches."""
        told = self.jump_px(slice_id)
        if slice_id in self.settings.log_glitches:
            angle = self._rng("glitch", slice_id).uniform(0, 2 * np.pi)
            told = told + _GLITCH_PX * np.array([np.cos(angle), np.sin(angle)])
        return told

    def gain_db(self, slice_id: int, /) -> float:
        """Return the brightness of the slice against the sample, with the loss of a bad slice."""
        gain = float(self._rng("gain", slice_id).normal(0, 1) * self.settings.gain_db)
        return gain - (self.settings.bad_loss_db if slice_id in self.settings.bad else 0.0)

    def blur_px(self, slice_id: int, /) -> float:
        """Return the standard deviation of the slice's blur."""
        return self.settings.bad_blur_px if slice_id in self.settings.bad else 0.0

    def covered_share(self, slice_id: int, /) -> float:
        """Return which share of the field along x was imaged."""
        return self.settings.incomplete_share if slice_id in self.settings.incomplete else 1.0

    def wedge_um(self, slice_id: int, /) -> float:
        """Return by how much deeper the right edge of the slice's face lies than the left one."""
        return self.settings.wedge_um if slice_id in self.settings.wedge else 0.0

    def bend_um(self, slice_id: int, grid: Grid, /) -> Array | None:
        """Return the displacement of the tissue on a grid of sample points, shape (2, x, y); None where there is none.

        It stays below `distortion_um` in length.
        """
        if self.settings.distortion_um == 0 or slice_id == 1:
            return None
        # tanh keeps rare peaks of a Gaussian field within the limit.
        length = self.settings.distortion_um / np.sqrt(2)
        return np.stack([length * np.tanh(0.8 * field.on(grid)) for field in self._bends(slice_id)])

    def _bends(self, slice_id: int) -> list[SmoothField]:
        scale = self.settings.distortion_scale_um
        return [SmoothField(self._rng("bend", slice_id, axis), scale, modes=12) for axis in (0, 1)]

    def bend_slopes(self, slice_id: int, grid: Grid, /) -> Array | None:
        """Return how the displacement changes along the sample, shape (2, 2, x, y); None where there is none.

        The first index is the component of the displacement, the second the direction along which it changes.
        """
        if self.settings.distortion_um == 0 or slice_id == 1:
            return None
        length = self.settings.distortion_um / np.sqrt(2)
        slopes = []
        for field in self._bends(slice_id):
            along = 0.8 * length / np.cosh(0.8 * field.on(grid)) ** 2
            slopes.append(np.stack([along * slope for slope in field.gradient_on(grid)]))
        return np.stack(slopes)


def bent_axes(axes: ArrayLike, tissue_from_picture: ArrayLike, /) -> Array:
    """Return axes of the tissue as a bent picture shows them, unit vectors of the shape of `axes`.

    Parameters
    ----------
    axes : array_like, shape (x, y, 3)
        Unit axes in the tissue.
    tissue_from_picture : array_like, shape (2, 2, x, y)
        How the point of the tissue moves with the point of the picture.

    Examples
    --------
    Where the picture is stretched to twice its length along x, an axis at 45 degrees lies flatter:

    >>> bent_axes([[[0.6, 0.6, 0.5292]]], np.array([[0.5, 0.0], [0.0, 1.0]])[:, :, None, None]).round(3)
    array([[[0.832, 0.416, 0.367]]])
    """
    (a, b), (c, d) = np.asarray(tissue_from_picture, float)
    out = np.array(axes, float)
    x, y = out[..., 0].copy(), out[..., 1].copy()
    out[..., 0], out[..., 1] = (d * x - b * y) / (a * d - b * c), (a * y - c * x) / (a * d - b * c)
    return np.asarray(out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-12))


def turned(points: ArrayLike, turn_deg: float, /) -> Array:
    """Return vectors (2, ...) turned by an angle in degrees.

    Examples
    --------
    >>> turned([1.0, 0.0], 90.0).round(6)
    array([0., 1.])
    """
    c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    return np.asarray(np.tensordot([[c, -s], [s, c]], np.asarray(points, float), axes=1))

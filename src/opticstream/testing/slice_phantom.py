"""A slice seen by several beams, as maps: known axes, each beam's orientation and birefringence in its own frame.

Far quicker than the virtual rig, and with any mapping between the pictures; no raw data, no stitching.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BeamMaps:
    """What one beam sees, in its own picture."""

    orientation_deg: NDArray[np.float32]
    birefringence: NDArray[np.float32]
    intensity: NDArray[np.float32]
    matrix: Array
    """Mapping from pixels of the first picture to pixels of this one, ``matrix @ p + offset``."""
    offset: Array
    tilt_deg: float
    tilt_axis_deg: float


@dataclass(frozen=True)
class SlicePhantom:
    """Truth on the pixels of the first picture, and the pictures."""

    axis: Array
    birefringence: Array
    white: NDArray[np.bool_]
    beams: tuple[BeamMaps, ...] = field(default=())


@dataclass(frozen=True)
class Picture:
    """Geometry of one beam's picture: its direction, its size, and how it lies on the first one."""

    tilt_deg: float = 0.0
    tilt_axis_deg: float = 90.0
    shape: tuple[int, int] = (200, 160)
    rotation_deg: float = 0.0
    shift_px: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0

    def mapping(self, fixed_shape: tuple[int, int]) -> tuple[Array, Array]:
        """Return matrix and offset from pixels of the first picture; the centres lie `shift_px` apart."""
        t = np.radians(self.rotation_deg)
        turn = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
        matrix = turn @ np.array([[1.0, self.shear], [0.0, 1.0]]) @ np.diag(self.scale)
        middle = (np.array(fixed_shape) - 1) / 2
        offset = (np.array(self.shape) - 1) / 2 + np.array(self.shift_px) - matrix @ middle
        return matrix, offset


def make_slice(
    pictures: tuple[Picture, ...] = (Picture(), Picture(tilt_deg=-15.0)),
    /,
    *,
    seed: int = 0,
    noise: float = 2e-5,
    grain_px: float = 12.0,
    margin_px: int = 70,
) -> SlicePhantom:
    """Return a slice with smooth random axes, white and grey matter, and what each beam sees of it.

    Parameters
    ----------
    pictures : tuple of Picture
        The first one is the frame of the truth.
    seed : int
        Everything random follows from it.
    noise : float
        Standard deviation of each component of a measured vector; white matter has a birefringence of 1e-3.
    grain_px : float
        Size of structures.
    margin_px : int
        Tissue beyond the first picture that others may see.
    """
    rng = np.random.default_rng(seed)
    shape = pictures[0].shape
    big = (shape[0] + 2 * margin_px, shape[1] + 2 * margin_px)

    def smooth(sigma: float) -> Array:
        values = ndimage.gaussian_filter(rng.normal(size=big), sigma)
        return np.asarray(values / values.std())

    axis = np.stack([smooth(grain_px), smooth(grain_px), 0.7 * smooth(grain_px)], axis=-1)
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    white = 1 / (1 + np.exp(-4 * smooth(0.7 * grain_px) - 2))
    birefringence = 1e-4 + 9e-4 * white
    bright = 60 + 3 * white + 1.5 * smooth(2.0)
    inner = np.s_[margin_px : margin_px + shape[0], margin_px : margin_px + shape[1]]
    beams = []
    for picture in pictures:
        matrix, offset = picture.mapping(shape)
        seen = _seen(axis, picture)
        angle = np.arctan2(seen[..., 1], seen[..., 0])
        doubled = birefringence * (seen**2).sum(-1) * np.exp(2j * angle)
        where = _source_pixels(picture.shape, matrix, offset) + margin_px
        parts = [
            ndimage.map_coordinates(part, where, order=1, mode="nearest")
            for part in (doubled.real, doubled.imag, bright)
        ]
        # The picture is turned, and with it the axes in it.
        turn = np.arctan2(matrix[1, 0] - matrix[0, 1], matrix[0, 0] + matrix[1, 1])
        doubled = (parts[0] + 1j * parts[1]) * np.exp(2j * turn)
        vector = np.abs(doubled) * np.exp(0.5j * np.angle(doubled))
        vector += noise * (rng.normal(size=vector.shape) + 1j * rng.normal(size=vector.shape))
        beams.append(
            BeamMaps(
                orientation_deg=np.degrees(np.angle(vector)).astype(np.float32),
                birefringence=np.abs(vector).astype(np.float32),
                intensity=(parts[2] + 0.3 * rng.normal(size=vector.shape)).astype(np.float32),
                matrix=matrix,
                offset=offset,
                tilt_deg=picture.tilt_deg,
                tilt_axis_deg=picture.tilt_axis_deg,
            )
        )
    return SlicePhantom(axis[inner], birefringence[inner], birefringence[inner] > 6e-4, tuple(beams))


def _seen(axis: Array, picture: Picture) -> Array:
    """Return the components of the axes along the picture's x and y."""
    t, a = np.radians(picture.tilt_deg), np.radians(picture.tilt_axis_deg)
    k = np.array([np.cos(a), np.sin(a), 0.0])
    rows = []
    for v in (np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.0])):
        rows.append(v * np.cos(t) + np.cross(k, v) * np.sin(t) + k * (k @ v) * (1 - np.cos(t)))
    return np.asarray(axis @ np.array(rows).T)


def _source_pixels(shape: tuple[int, int], matrix: Array, offset: Array) -> Array:
    """Return the coordinates in the first picture of every pixel of another, shape (2, x, y)."""
    pixels = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"))
    return np.asarray(np.einsum("ij,jxy->ixy", np.linalg.inv(matrix), pixels - offset[:, None, None]))


def axial_error_deg(found: NDArray[np.floating], true: NDArray[np.floating], /) -> Array:
    """Return the angle between axes (..., 3) in degrees, 0..90; NaN stays."""
    cosine = np.abs((np.asarray(found, float) * np.asarray(true, float)).sum(-1))
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, 0.0, 1.0))))


def mapping_error_px(matrix: Array, offset: Array, beam: BeamMaps, shape: tuple[int, int], /) -> Array:
    """Return the error of a mapping at every pixel of the first picture that the other one shows."""
    grid = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), axis=-1).astype(float)
    true = grid @ beam.matrix.T + beam.offset
    inside = ((true >= 0) & (true <= np.array(beam.birefringence.shape) - 1)).all(-1)
    error = np.linalg.norm(grid @ matrix.T + offset - true, axis=-1)
    return np.asarray(error[inside])

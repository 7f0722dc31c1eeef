"""Smooth random functions of space that can be evaluated anywhere without a map in memory.

A function is a sum of plane waves. On a tile's grid, which is affine in the indices, a plane wave factors into one
vector per axis, so that a whole tile costs one small matrix product. Where the grid is bent, or the depth differs from
point to point, the waves are summed one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Points ``origin + i * step_x + j * step_y + bend`` (micrometres) for i < shape[0], j < shape[1]."""

    origin_um: tuple[float, float]
    step_x_um: tuple[float, float]
    step_y_um: tuple[float, float]
    shape: tuple[int, int]
    bend_um: Array | None = None
    """Displacement of every point, shape (2, *shape); none where the grid is straight."""

    def moved(self, dx_um: float, dy_um: float) -> Grid:
        """Return the grid shifted sideways."""
        origin = (self.origin_um[0] + dx_um, self.origin_um[1] + dy_um)
        return replace(self, origin_um=origin)

    def bent(self, bend_um: Array) -> Grid:
        """Return the grid with every point displaced."""
        return replace(self, bend_um=bend_um)

    def coordinates(self) -> tuple[Array, Array]:
        """Return x and y (micrometres) of every point, each of the grid's shape."""
        i, j = np.arange(self.shape[0])[:, None], np.arange(self.shape[1])[None, :]
        x = self.origin_um[0] + i * self.step_x_um[0] + j * self.step_y_um[0]
        y = self.origin_um[1] + i * self.step_x_um[1] + j * self.step_y_um[1]
        if self.bend_um is not None:
            return x + self.bend_um[0], y + self.bend_um[1]
        return x, y


class SmoothField:
    """A stationary Gaussian-like random function of (x, y, z) with mean 0 and variance 1.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the waves; two fields from equal generators are equal.
    scale_um : float
        Typical wavelength across; wavelengths run from half to twice of it.
    z_scale_um : float
        Typical wavelength along z; ``inf`` for a field that does not change with z.
    modes : int
        Number of plane waves.
    """

    def __init__(
        self, rng: np.random.Generator, scale_um: float, *, z_scale_um: float = np.inf, modes: int = 28
    ) -> None:
        # Directions and wavelengths are stratified: few waves then already look isotropic.
        angle = np.pi * (np.arange(modes) + rng.random(modes)) / modes
        number = 2 * np.pi / scale_um * 2.0 ** rng.uniform(-0.9, 0.7, modes)
        self._kx = number * np.cos(angle)
        self._ky = number * np.sin(angle)
        self._kz = 2 * np.pi / z_scale_um * rng.normal(0.0, 0.7, modes)
        self._phase = rng.uniform(0, 2 * np.pi, modes)
        self._scale = np.sqrt(2 / modes)

    def _factors(self, grid: Grid, z_um: float) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
        (ox, oy), (xx, xy), (yx, yy) = grid.origin_um, grid.step_x_um, grid.step_y_um
        start = self._kx * ox + self._ky * oy + self._kz * z_um + self._phase
        along_x = np.exp(1j * (start[None, :] + np.arange(grid.shape[0])[:, None] * (self._kx * xx + self._ky * xy)))
        along_y = np.exp(1j * np.arange(grid.shape[1])[:, None] * (self._kx * yx + self._ky * yy))
        return along_x, along_y

    def _phases(self, grid: Grid, z_um: float | Array) -> Iterator[tuple[int, Array]]:
        """Yield the phase of each wave at every point."""
        x, y = grid.coordinates()
        for k, start in enumerate(self._phase):
            yield k, self._kx[k] * x + self._ky[k] * y + self._kz[k] * z_um + start

    def on(self, grid: Grid, z_um: float | Array = 0.0) -> Array:
        """Return the values on a grid, shape of the grid, at one depth or at a depth for each point."""
        if grid.bend_um is not None or isinstance(z_um, np.ndarray):
            return np.asarray(self._scale * sum(np.cos(phase) for _, phase in self._phases(grid, z_um)))
        along_x, along_y = self._factors(grid, z_um)
        return np.asarray(self._scale * (along_x @ along_y.T).real)

    def gradient_on(self, grid: Grid, z_um: float | Array = 0.0) -> tuple[Array, Array]:
        """Return d/dx and d/dy (per micrometre) at the points of a grid."""
        if grid.bend_um is not None or isinstance(z_um, np.ndarray):
            by_x, by_y = np.zeros(grid.shape), np.zeros(grid.shape)
            for k, phase in self._phases(grid, z_um):
                slope = -self._scale * np.sin(phase)
                by_x += self._kx[k] * slope
                by_y += self._ky[k] * slope
            return by_x, by_y
        along_x, along_y = self._factors(grid, z_um)
        return (
            -self._scale * ((along_x * self._kx) @ along_y.T).imag,
            -self._scale * ((along_x * self._ky) @ along_y.T).imag,
        )


class LineTexture:
    """A random function of one variable with mean 0, variance 1 and a typical period; for stripes and layers."""

    def __init__(self, rng: np.random.Generator, period: float, *, modes: int = 10) -> None:
        self._k = 2 * np.pi / period * 2.0 ** rng.uniform(-0.8, 0.6, modes)
        self._phase = rng.uniform(0, 2 * np.pi, modes)

    def __call__(self, position: Array, /) -> Array:
        total = np.zeros_like(position)
        for k, phase in zip(self._k, self._phase, strict=True):
            total += np.cos(k * position + phase)
        return np.asarray(total * np.sqrt(2 / len(self._k)))

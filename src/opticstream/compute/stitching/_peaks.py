"""Peaks of correlation surfaces to a fraction of a pixel, and their precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FloatArray = NDArray[np.float32]

_GRID = np.array([(i, j) for i in range(-2, 3) for j in range(-2, 3)], float)
_DESIGN = np.stack(
    [np.ones(25), _GRID[:, 0], _GRID[:, 1], _GRID[:, 0] ** 2 / 2, _GRID[:, 0] * _GRID[:, 1], _GRID[:, 1] ** 2 / 2],
    axis=1,
)
_GRID_X, _GRID_Y = _GRID.T.astype(np.intp)
_NEAR_WEIGHT = np.exp(-(_GRID**2).sum(axis=1) / 2)
_QUADRATIC = np.linalg.solve((_DESIGN * _NEAR_WEIGHT[:, None]).T @ _DESIGN, (_DESIGN * _NEAR_WEIGHT[:, None]).T)
"""Coefficients of the quadratic through 5 x 5 values, near ones counting more."""


def peaks_of_likelihoods(
    surface: Array, px: NDArray[np.intp], py: NDArray[np.intp]
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return the peak of log-likelihoods near (px, py), its information, and whether it is one.

    Parameters
    ----------
    surface : ndarray, shape (n, width, height)
        Logarithms of likelihoods.
    px, py : ndarray of int, shape (n,)
        Their highest values, at least 2 from every edge.

    Returns
    -------
    peak : ndarray, shape (n, 2)
        Where the quadratic through 5 x 5 values is highest, in indices of `surface`.
    information : ndarray, shape (n, 2, 2)
        Its negative curvature, the inverse covariance; 0 where there is no proper peak.
    good : ndarray of bool, shape (n,)
        Where there is one.
    """
    values = surface[np.arange(len(px))[:, None], px[:, None] + _GRID_X, py[:, None] + _GRID_Y]
    _, gx, gy, hxx, hxy, hyy = (values @ _QUADRATIC.T).T
    information = -np.stack([np.stack([hxx, hxy], -1), np.stack([hxy, hyy], -1)], -2)
    good = (hxx < 0) & (hyy < 0) & (hxx * hyy - hxy**2 > 1e-9)
    information[~good] = np.eye(2)
    offset = np.linalg.solve(information, np.stack([gx, gy], -1)[..., None])[..., 0]
    good &= np.abs(offset).max(axis=1, initial=0) < 1.5
    information[~good] = 0
    return np.asarray(np.stack([px, py], 1) + offset, np.float64), information, np.asarray(good, bool)


def quadratic_peaks(
    coefficients: Sequence[NDArray[np.floating]],
    samples: Sequence[NDArray[np.floating]],
    px: NDArray[np.intp],
    py: NDArray[np.intp],
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Return sub-pixel peaks, their Fisher information, and whether each is a proper peak.

    A quadratic is fitted to the 5 x 5 correlation coefficients r around the peak, near ones counting more. The
    log-likelihood of n independent samples is -n log(1 - r^2) / 2, whose curvature at the peak is n r / (1 - r^2) times
    that of r. Kinds of image are combined by their information.
    """
    n = len(px)
    width, height = coefficients[0].shape[1:]
    ix = np.clip(px[:, None] + _GRID[None, :, 0].astype(int), 0, width - 1)
    iy = np.clip(py[:, None] + _GRID[None, :, 1].astype(int), 0, height - 1)
    rows = np.arange(n)
    total, pull = np.zeros((n, 2, 2)), np.zeros((n, 2))
    for coefficient, count in zip(coefficients, samples, strict=True):
        values = coefficient[rows[:, None], ix, iy].astype(float)
        _, gx, gy, hxx, hxy, hyy = (values @ _QUADRATIC.T).T
        hessian = np.stack([np.stack([hxx, hxy], -1), np.stack([hxy, hyy], -1)], -2)
        r = np.clip(coefficient[rows, px, py].astype(float), 0, 0.995)
        proper = (hxx < 0) & (hyy < 0) & (hxx * hyy - hxy**2 > 1e-12) & (r > 1e-3) & (count > 0)
        hessian[~proper] = -np.eye(2)
        offset = -np.linalg.solve(hessian, np.stack([gx, gy], -1)[..., None])[..., 0]
        # Along a ridge (a fibre) the vertex may lie far off; there the quadratic is unreliable and not used.
        offset = np.clip(offset, -1.5, 1.5)
        information = -hessian * (proper * count * r / (1 - r**2))[:, None, None]
        total += information
        pull += np.einsum("lij,lj->li", information, offset)
    good = np.linalg.det(total) > 1e-12
    safe = np.where(good[:, None, None], total, np.eye(2))
    offset = np.clip(np.linalg.solve(safe, pull[..., None])[..., 0], -1.5, 1.5)
    return np.stack([px, py], 1) + offset, total, good

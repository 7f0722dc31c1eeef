"""Estimate a rotated scan and a distorted field of view from the overlaps of a mosaic.

A turn, as any linear distortion that all tiles share, leaves overlaps in agreement; it shows in the lattice alone:
steps along x lead sideways. A field of view that bends does not: the two tiles of a link see the same tissue at
opposite edges, so their displacement changes along the overlap, in the same way in all overlaps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching._correlation import NEAR, aligned_likelihoods, aligned_overlaps, noise_model
from opticstream.compute.stitching._peaks import peaks_of_likelihoods
from opticstream.compute.stitching._solution import TilePositions
from opticstream.compute.stitching._tilefilter import FilteredTiles
from opticstream.system.cores import one_blas_thread

Array = NDArray[np.float64]

PARTS = 5
"""Pieces along the overlap that are measured by themselves."""
MOST_LINKS = 100
LEAST_LINKS = 8
LEAST_PART_PX = 24
TURN_WORTH_TELLING_DEG = 0.3
BEND_WORTH_TELLING_PX = 0.2
CERTAIN = 4.0
"""Number of standard errors above which a distortion is reported."""


TERMS = 3


@dataclass(frozen=True)
class Distortion:
    """A distortion of the field of view that all tiles share.

    Attributes
    ----------
    terms_px : tuple of float
        Displacement in px at the ends of the tile of the three terms: sides of a trapezium along x, along y, a barrel.
    """

    terms_px: tuple[float, float, float]

    def displacement_at(self, pixel: Array, tile_shape: tuple[int, int], /) -> Array:
        """Return by how much what a pixel shows lies beside the pixel's place.

        What a shift and a linear map explain is left out: overlaps cannot show it.

        Parameters
        ----------
        pixel : ndarray, shape (..., 2)
            Places (x, y) in a tile, in px from its first pixel.
        tile_shape : tuple of int
            Size (x, y) of the tile.

        Returns
        -------
        ndarray, shape (..., 2)
            Displacement along x and y in px.

        Examples
        --------
        A corner and the middle of a field of view with a barrel of 1 px:

        >>> barrel = Distortion((0.0, 0.0, 1.0))
        >>> barrel.displacement_at(np.array([[0.0, 0.0], [32.0, 32.0]]), (64, 64)).round(2).tolist()
        [[-0.42, -0.42], [0.0, 0.0]]
        """
        terms, u = np.asarray(self.terms_px), 2 * pixel / np.asarray(tile_shape) - 1
        return np.asarray(_field(u) @ terms - _with_ones(u) @ (_linear_part() @ terms).reshape(3, 2))


@dataclass(frozen=True)
class FieldGeometry:
    """How the tiles' own geometry differs from that of an ideal scan.

    Attributes
    ----------
    turn_deg : float
        Angle of the scan against the stage, positive from x towards y; NaN without links along both axes.
    turn_error_deg : float
        Its standard error.
    bend_px : float
        Largest displacement, anywhere in the tile, that no shift, turn, shear or scale explains; NaN where overlaps are
        too few or too short to say.
    bend_error_px : float
        Its standard error.
    distortion : Distortion, optional
        The distortion itself; None where overlaps are too few or too short to say.
    """

    turn_deg: float
    turn_error_deg: float
    bend_px: float
    bend_error_px: float
    distortion: Distortion | None = None

    @property
    def turned(self) -> bool:
        """Whether the scan is rotated, significantly and by a relevant angle."""
        return abs(self.turn_deg) > max(TURN_WORTH_TELLING_DEG, CERTAIN * self.turn_error_deg)

    @property
    def bent(self) -> bool:
        """Whether the field of view is distorted, significantly and by a relevant amount."""
        return self.bend_px > max(BEND_WORTH_TELLING_PX, CERTAIN * self.bend_error_px)


def field_geometry(
    image: FilteredTiles, found: TilePositions, nominal_px: Array, /, *, workers: int = 2
) -> FieldGeometry:
    """Return turn and bend of the tiles as their overlaps show them.

    Parameters
    ----------
    image : FilteredTiles
        The tiles.
    found : TilePositions
        Their positions, measured from these tiles.
    nominal_px : ndarray, shape (tiles, 2)
        Where the stage was sent.
    workers : int
        Threads of the Fourier transforms.
    """
    with one_blas_thread():
        turn, bend = _turn(found, nominal_px), _bend(image, found, workers)
        return FieldGeometry(turn[0], turn[1], bend[0], bend[1], bend[2])


def _turn(found: TilePositions, nominal: Array) -> tuple[float, float]:
    axes = {int(axis) for axis in found.links.axis[found.links.weight > 0.5]}
    if axes != {0, 1}:
        return float("nan"), float("nan")
    lattice = found.lattice
    turn = -np.arctan2(lattice[0, 1] - lattice[1, 0], lattice[0, 0] + lattice[1, 1])
    spread = ((nominal - nominal.mean(axis=0)) ** 2).sum()
    error = np.sqrt((found.jitter_px**2).sum() / max(float(spread), 1e-9))
    return float(np.rad2deg(turn)), float(np.rad2deg(error))


def _bend(image: FilteredTiles, found: TilePositions, workers: int) -> tuple[float, float, Distortion | None]:
    size = np.array(image.tile_shape, float)
    links = np.flatnonzero(found.links.clear)
    apart = found.positions_px[found.links.pairs[links, 1]] - found.positions_px[found.links.pairs[links, 0]]
    long_enough = (size - np.abs(apart)).max(axis=1, initial=0) >= PARTS * LEAST_PART_PX
    links, apart = links[long_enough], apart[long_enough]
    if len(links) > MOST_LINKS:
        chosen = np.unique(np.linspace(0, len(links) - 1, MOST_LINKS).astype(int))
        links, apart = links[chosen], apart[chosen]
    normal, force, square, count = np.zeros((TERMS, TERMS)), np.zeros(TERMS), 0.0, 0
    for direction in (0, 1):
        mine = found.links.axis[links] == direction
        if mine.sum() < LEAST_LINKS:
            continue
        shift, information = _shifts_of_parts(image, found.links.pairs[links[mine]], apart[mine], workers)
        design = _design(apart[mine], size)
        # Every link has its own shift in addition to the distortion of its parts.
        total = information.sum(axis=0)
        good = np.linalg.eigvalsh(total)[:, 0] > 1e-6
        shift, information, design, total = shift[:, good], information[:, good], design[:, good], total[good]
        weighted = np.einsum("plij,pljk->lik", information, design)
        mean_design = np.linalg.solve(total, weighted)
        mean_shift = np.linalg.solve(total, np.einsum("plij,plj->li", information, shift)[..., None])[..., 0]
        design = design - mean_design[None]
        shift = shift - mean_shift[None]
        normal += np.einsum("plji,pljk,plkm->im", design, information, design, optimize=True)
        force += np.einsum("plji,pljk,plk->i", design, information, shift, optimize=True)
        square += float(np.einsum("pli,plij,plj->", shift, information, shift, optimize=True))
        count += 2 * int((information[..., 0, 0] > 0).sum()) - 2 * len(total)
    if count < 10 * TERMS:
        return float("nan"), float("nan"), None
    # Parameters without information stay 0.
    normal += 1e-6 * np.trace(normal) / TERMS * np.eye(TERMS)
    fitted = np.linalg.solve(normal, force)
    scale = max((square - float(force @ fitted)) / (count - TERMS), 1.0)
    covariance = scale * np.linalg.inv(normal)
    field = _free_of_linear()
    bent = np.einsum("pik,k->pi", field, fitted)
    worst = int(np.hypot(*bent.T).argmax())
    error = np.sqrt(np.trace(field[worst] @ covariance @ field[worst].T))
    terms = (float(fitted[0]), float(fitted[1]), float(fitted[2]))
    return float(np.hypot(*bent[worst])), float(error), Distortion(terms)


def _shifts_of_parts(image: FilteredTiles, pairs: NDArray[np.intp], apart: Array, workers: int) -> tuple[Array, Array]:
    """Return shift against `apart` and information of every part of every link, (parts, links, 2) and (.., 2, 2)."""
    whole = np.rint(apart).astype(np.intp)
    model = None
    shifts, informations = [], []
    for number in range(PARTS):
        overlaps = aligned_overlaps(image, pairs, whole, span=(number / PARTS, (number + 1) / PARTS), workers=workers)
        if model is None:
            model = noise_model(overlaps, apart, np.ones(len(pairs), bool))
        if model is None:
            return np.zeros((PARTS, len(pairs), 2)), np.zeros((PARTS, len(pairs), 2, 2))
        surface = aligned_likelihoods(overlaps, model)[0].astype(np.float64)
        inner = surface[:, 1:-1, 1:-1].reshape(len(pairs), -1)
        px, py = np.unravel_index(inner.argmax(axis=1), (2 * NEAR - 1, 2 * NEAR - 1))
        px, py = np.clip(px + 1, NEAR - 1, NEAR + 1), np.clip(py + 1, NEAR - 1, NEAR + 1)
        peak, information, good = peaks_of_likelihoods(surface, px, py)
        shift = whole + peak - NEAR - apart
        good &= np.abs(shift).max(axis=1, initial=0) < 2.5
        information[~good] = 0
        shifts.append(np.where(good[:, None], shift, 0))
        # No part is known better than this, however clear: tiles differ by more than their noise.
        informations.append(information / (1 + 0.1**2 * np.trace(information, axis1=1, axis2=2))[:, None, None])
    return np.stack(shifts), np.stack(informations)


def _field(u: Array) -> Array:
    """Return the displacements (..., 2, terms) at `u` (..., 2), which is -1 to 1 over the tile.

    The sides of a trapezium along x and along y, and a barrel. What depends on x alone or on y alone displaces whole
    overlaps: it cannot be distinguished from a step of the stage.
    """
    x, y = u[..., 0], u[..., 1]
    zero = np.zeros_like(x)
    barrel = (x**2 + y**2) / 2
    return np.stack(
        [np.stack([x * y, zero, barrel * x], axis=-1), np.stack([zero, x * y, barrel * y], axis=-1)], axis=-2
    )


def _design(apart: Array, size: Array) -> Array:
    """Return by how much every term displaces the two tiles of every link's parts, (parts, links, 2, terms)."""
    low, high = np.maximum(apart, 0), np.minimum(size, size + apart)
    longer = np.argmax(high - low, axis=1)
    parts = []
    for number in range(PARTS):
        centre = (low + high) / 2
        rows = np.arange(len(apart))
        share = (number + 0.5) / PARTS
        centre[rows, longer] = low[rows, longer] + share * (high - low)[rows, longer]
        first, second = 2 * centre / size - 1, 2 * (centre - apart) / size - 1
        parts.append(_field(second) - _field(first))
    return np.stack(parts)


def _with_ones(u: Array) -> Array:
    return np.concatenate([np.ones((*u.shape[:-1], 1)), u], axis=-1)


def _coarse() -> Array:
    grid = np.linspace(-1, 1, 9)
    return np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)


def _linear_part() -> Array:
    """Return the shift and the linear map that are nearest to every term over the tile, (3 x 2, terms)."""
    u = _coarse()
    along = _field(u).reshape(len(u), -1)
    return np.asarray(np.linalg.lstsq(_with_ones(u), along, rcond=None)[0].reshape(6, TERMS))


def _free_of_linear() -> Array:
    """Return every term on a grid over the tile, without the part that a shift and a linear map explain."""
    u = _coarse()
    linear = np.einsum("pl,lik->pik", _with_ones(u), _linear_part().reshape(3, 2, TERMS))
    return np.asarray(_field(u) - linear, np.float64)

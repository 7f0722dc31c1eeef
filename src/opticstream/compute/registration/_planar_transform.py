"""Mappings of the plane: the position of a pixel of one picture of a slice in another.

A mapping takes pixel coordinates of the fixed image to those of the moving one (pull-back): ``p_moving = matrix @
(p_fixed + displacement) + offset``, the displacement being optional. The matrix tells how a picture lies, and may tell
how a beam foreshortens it; the displacement tells how the tissue itself is deformed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Freedom = Literal["translation", "rigid", "affine"]
"""Freedom of a mapping that is to be found."""


@dataclass(frozen=True)
class PlanarTransform:
    """A mapping of the plane from fixed to moving pixel coordinates, ``matrix @ (p + displacement(p)) + offset``."""

    matrix: NDArray[np.float64]
    """Linear part, shape (2, 2)."""
    offset: NDArray[np.float64]
    """Translation in px, shape (2,)."""
    displacement: NDArray[np.float32] | None = field(default=None, repr=False)
    """Displacement in fixed px, shape (2, x, y) of the fixed image; None: none."""

    @staticmethod
    def identity() -> PlanarTransform:
        return PlanarTransform(np.eye(2), np.zeros(2))

    def points(self, points: ArrayLike, /) -> NDArray[np.float64]:
        """Return the moving coordinates of fixed points, shape (..., 2); the displacement is left out.

        Examples
        --------
        The mapping pulls back: a fixed point is taken to where it lies in the moving image.

        >>> quarter = PlanarTransform(np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([10.0, 0.0]))
        >>> quarter.points([2.0, 3.0]), quarter.rotation_deg
        (array([7., 2.]), 90.0)
        """
        mapped: NDArray[np.float64] = np.asarray(points, float) @ self.matrix.T + self.offset
        return mapped

    def inverse(self) -> PlanarTransform:
        """Return the mapping from moving to fixed coordinates; only without a displacement.

        Examples
        --------
        >>> there = PlanarTransform(np.array([[0.0, -2.0], [2.0, 0.0]]), np.array([5.0, 1.0]))
        >>> there.inverse().points(there.points([3.0, 4.0]))
        array([3., 4.])
        """
        if self.displacement is not None:
            raise ValueError("a mapping with a displacement has no inverse in closed form")
        inverse: NDArray[np.float64] = np.asarray(np.linalg.inv(self.matrix), np.float64)
        return PlanarTransform(inverse, -inverse @ self.offset)

    @property
    def rotation_deg(self) -> float:
        """Angle by which the mapping turns a direction, see `rotation_from_matrix`."""
        return rotation_from_matrix(self.matrix)

    def scaled(self, factor: float, /, *, shape: tuple[int, int] | None = None) -> PlanarTransform:
        """Return the mapping in pixels that are `factor` times smaller; pixel centres stay centres.

        `shape`, of the fixed image in the new pixels, is needed where there is a displacement.

        Examples
        --------
        Pixels are counted from the centre of the first one, so that a shift of nothing stays one:

        >>> PlanarTransform.identity().scaled(2.0).offset
        array([0., 0.])
        >>> PlanarTransform(2 * np.eye(2), np.zeros(2)).scaled(2.0).offset
        array([-0.5, -0.5])
        """
        shift = (factor - 1) / 2
        one = np.ones(2)
        displacement = self.displacement
        if displacement is not None and factor != 1:
            from scipy import ndimage

            if shape is None:
                raise ValueError("scaling a mapping with a displacement needs the shape of the fixed image")
            where = np.meshgrid(*((np.arange(n) - shift) / factor for n in shape), indexing="ij")
            displacement = np.stack(
                [ndimage.map_coordinates(d, where, order=1, mode="nearest") * np.float32(factor) for d in displacement]
            )
        return PlanarTransform(
            self.matrix, self.offset * factor - self.matrix @ (shift * one) + shift * one, displacement
        )

    @property
    def is_plausible(self) -> bool:
        """Whether the mapping is plausible between two pictures of a slice: no mirror, no stretch by more than 1.7.

        Examples
        --------
        >>> stretches = [1.2, 0.9], [-1.0, 1.0], [1.8, 1.0]
        >>> [PlanarTransform(np.diag(stretch), np.zeros(2)).is_plausible for stretch in stretches]
        [True, False, False]
        """
        scale = np.linalg.svd(self.matrix, compute_uv=False)
        return bool(np.linalg.det(self.matrix) > 0 and scale[1] > 0.6 and scale[0] < 1.7)

    @property
    def is_whole_pixel_shift(self) -> bool:
        """Whether pixels go to pixels, without a rotation, stretch or bend."""
        straight = self.displacement is None and np.array_equal(self.matrix, np.eye(2))
        return straight and np.array_equal(self.offset, np.rint(self.offset))

    def coordinates(self, shape: tuple[int, int], rows: slice = slice(None), /) -> NDArray[np.float64]:
        """Return moving coordinates of the pixels of a fixed image, shape (2, rows, y)."""
        x = np.arange(shape[0], dtype=float)[rows, None]
        y = np.arange(shape[1], dtype=float)[None, :]
        if self.displacement is not None:
            if self.displacement.shape != (2, *shape):
                raise ValueError(f"the displacement has the shape {self.displacement.shape}, expected {(2, *shape)}")
            x, y = x + self.displacement[0, rows], y + self.displacement[1, rows]
        m = self.matrix
        return np.stack(
            [m[0, 0] * x + m[0, 1] * y + self.offset[0], m[1, 0] * x + m[1, 1] * y + self.offset[1]],
        )


def rotation_from_matrix(matrix: ArrayLike, /) -> float:
    """Return the angle in degrees of the rotation nearest to a 2 x 2 matrix (the rotation of its polar decomposition).

    Raises
    ------
    ValueError
        The matrix mirrors or flattens the plane.

    Examples
    --------
    A shear rotates axes by half the rotation of the y axis, a stretch not at all:

    >>> rotation_from_matrix([[1.0, 0.0], [0.0, 0.8]])
    0.0
    >>> round(rotation_from_matrix([[1.0, -0.1], [0.0, 1.0]]), 2)
    2.86
    """
    m = np.asarray(matrix, float)
    if m.shape != (2, 2):
        raise ValueError(f"expected a 2 x 2 matrix, got the shape {m.shape}")
    if not np.linalg.det(m) > 0:
        raise ValueError(f"the mapping mirrors or flattens the image: matrix {m.tolist()}")
    return float(np.degrees(np.arctan2(m[1, 0] - m[0, 1], m[0, 0] + m[1, 1])))

"""The geometry of an image: voxel size in mm, origin and directions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.model.errors import FileFormatError, InputError

Affine = NDArray[np.float64]

SAME_SIZE = 1e-3
"""Relative difference up to which two voxel sizes are equal."""
SAME_DIRECTION = 1e-2
"""Difference of unit vectors up to which two axes have the same direction (0.6 degrees)."""
_RIGHT_ANGLE = 1e-3
_WAYS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))


@dataclass(frozen=True)
class Geometry:
    """Size, directions and origin of the voxels of an image.

    Attributes
    ----------
    affine_mm : ndarray, shape (4, 4)
        Maps the index (x, y, z, 1) of a voxel to its position in mm; axes point to the right, to anterior and to
        superior, as in NIfTI.
    sized : bool
        The file gives a voxel size. If not, that of `affine_mm` is 1 mm and meaningless.
    positioned : bool
        The file gives origin and directions. If not, those of `affine_mm` are meaningless.
    axes : int
        Number of spatial axes in the file, 2 or 3.
    other_affine_mm : ndarray, shape (4, 4), optional
        The qform of a NIfTI file, if it differs from the sform, which is in `affine_mm`.
    """

    affine_mm: Affine = field(default_factory=lambda: np.eye(4))
    sized: bool = True
    positioned: bool = False
    axes: int = 3
    other_affine_mm: Affine | None = None

    @property
    def voxel_size_mm(self) -> tuple[float, float, float]:
        """Size of a voxel along x, y and z."""
        x, y, z = (float(f"{size:.6g}") for size in np.linalg.norm(self.affine_mm[:3, :3], axis=0))
        return x, y, z

    @property
    def directions(self) -> Affine:
        """Unit vectors along the axes of the array, as columns, shape (3, 3)."""
        columns: Affine = self.affine_mm[:3, :3] / np.linalg.norm(self.affine_mm[:3, :3], axis=0)
        return columns

    @property
    def is_straight(self) -> bool:
        """Whether the axes of the array point to the right, to anterior and to superior."""
        return not self.positioned or np.allclose(self.directions, np.eye(3), atol=SAME_DIRECTION)

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Place of voxel (0, 0, 0)."""
        x, y, z = (float(value) for value in self.affine_mm[:3, 3])
        return x, y, z

    def says(self) -> str:
        """Return in words where the axes of the array point.

        Examples
        --------
        >>> Geometry(np.diag([-0.01, 0.01, 0.003, 1.0]), sized=True, positioned=True).says()
        'x to left, y to anterior, z to superior'
        """
        words = []
        for name, column in zip("xyz"[: self.axes], self.directions.T, strict=False):
            axis = int(np.abs(column).argmax())
            oblique = "" if abs(column[axis]) > 1 - SAME_DIRECTION else " (oblique)"
            words.append(f"{name} to {_WAYS[axis][int(column[axis] > 0)]}{oblique}")
        return ", ".join(words)

    def with_voxel_size(self, size_mm: Sequence[float], /) -> Geometry:
        """Return the same origin and directions with other voxel sizes."""
        affine = self.affine_mm.copy()
        affine[:3, :3] = self.directions * np.asarray(size_mm, float)
        return Geometry(affine, True, self.positioned, self.axes)

    def from_voxel(self, index: ArrayLike, /) -> Geometry:
        """Return the geometry of an array whose voxel (0, 0, 0) is the voxel `index` (x, y, z) of this one."""
        affine = self.affine_mm.copy()
        affine[:3, 3] = (self.affine_mm @ np.append(np.asarray(index, float), 1.0))[:3]
        return Geometry(affine, self.sized, self.positioned, self.axes)

    def check_right_angles(self, path: Path, /) -> None:
        """Raise InputError if the axes are not at right angles, which neither a qform nor ITK can express.

        Raises
        ------
        InputError
            Names the file.
        """
        directions = self.directions
        if not np.allclose(directions.T @ directions, np.eye(3), atol=_RIGHT_ANGLE):
            raise InputError(f"{path}: its axes are not at right angles (a sheared sform); resample it first")


def voxel_text(size_mm: Iterable[float], /) -> str:
    """Return a voxel size for messages.

    Examples
    --------
    >>> voxel_text((0.01, 0.01, 0.0025))
    '0.01 x 0.01 x 0.0025 mm'
    """
    return " x ".join(f"{size:g}" for size in size_mm) + " mm"


def geometry_from_sizes(
    size_mm: Sequence[float], /, *, name: str, origin_mm: Sequence[float] | None = None, axes: int = 3
) -> Geometry:
    """Return the geometry of a file with voxel sizes along x, y and z, and perhaps an origin.

    Raises
    ------
    FileFormatError
        A size is not above 0, or a number is not finite.

    Examples
    --------
    A size alone does not place the image; only an origin does:

    >>> geometry_from_sizes([0.01, 0.01, 0.003], name="a.tif").positioned
    False
    >>> geometry_from_sizes([0.01, 0.01, 0.0], name="a.tif")
    Traceback (most recent call last):
        ...
    opticstream.model.errors.FileFormatError: a.tif: gives a voxel size of 0.01 x 0.01 x 0 mm; expected numbers above 0
    """
    sizes = np.asarray(size_mm, float)
    origin = np.zeros(3) if origin_mm is None else np.asarray(origin_mm, float)
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise FileFormatError(f"{name}: gives a voxel size of {voxel_text(sizes)}; expected numbers above 0")
    if not np.isfinite(origin).all():
        raise FileFormatError(f"{name}: gives the origin {origin.tolist()}; expected finite numbers")
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = origin
    return Geometry(affine, True, origin_mm is not None, axes)

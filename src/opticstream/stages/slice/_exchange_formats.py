"""Results in the formats of other programs: transforms for ITK, arrays for MATLAB."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.registration import Registration
from opticstream.io.geometry import Geometry

MAT_HEADER = b"MATLAB 5.0 MAT-file, written by OpticStream"


def itk_transform(registration: Registration, /, *, fixed: Geometry, moving: Geometry, axes: int = 3) -> str:
    """Return a registration as text of an ITK transform file, in mm in ITK's axes (left, posterior, superior).

    It maps points of the fixed NIfTI image to points of the moving one, as ITK, ANTs and 3D Slicer expect it, whatever
    origin, directions and voxel sizes the two files have.

    Parameters
    ----------
    registration : Registration
        What was found, in pixels.
    fixed, moving : Geometry
        Where the pixels of the two images lie.
    axes : int
        2 for images that ITK reads as (x, y), 3 for (x, y, 1).
    """
    index = np.eye(4)
    index[:2, :2] = registration.mapping.matrix
    index[:2, 3] = registration.mapping.offset
    points = _itk_affine(moving) @ index @ np.linalg.inv(_itk_affine(fixed))
    kept = [*range(axes), 3]
    points = points[np.ix_(kept, kept)]
    numbers = np.concatenate([points[:axes, :axes].ravel(), points[:axes, axes]]) + 0.0  # no minus before a zero
    parameters = " ".join(f"{value:.12g}" for value in numbers)
    return (
        f"#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_{axes}_{axes}\n"
        f"Parameters: {parameters}\nFixedParameters: {' '.join('0' * axes)}\n"
    )


def _itk_affine(geometry: Geometry) -> NDArray[np.float64]:
    """Return what takes indices to mm as ITK reads them; without a position ITK's own axes are those of the array."""
    if not geometry.positioned:
        return np.diag([*geometry.voxel_size_mm, 1.0])
    turned: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine_mm
    return turned


def mat_bytes(variables: Mapping[str, NDArray[Any]], /) -> bytes:
    """Return variables as a MATLAB 5 file whose header holds no time, so that the same data gives the same bytes."""
    from scipy import io as scipy_io

    stream: Any = io.BytesIO()
    scipy_io.savemat(stream, dict(variables), do_compression=True)
    data = bytearray(stream.getvalue())
    data[:116] = MAT_HEADER.ljust(116)
    return bytes(data)

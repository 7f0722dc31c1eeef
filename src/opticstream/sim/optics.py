"""The appearance of a fibre to a beam: apparent birefringence and angle for any direction of light.

Conventions are those of `docs/explanation/algorithms`, section 10: a beam along `k`, its image axes `e1` and `e2` being
the lab's x and y turned together with the beam.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def beam_frame(tilt_deg: float, tilt_axis_deg: float = 90.0) -> Array:
    """Return the 3 x 3 matrix with rows e1, e2, k: image axes and direction of a tilted beam.

    Examples
    --------
    A beam tilted about y by g runs along (sin g, 0, cos g):

    >>> beam_frame(30.0).round(3).tolist()
    [[0.866, 0.0, -0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 0.866]]
    """
    angle, direction = np.deg2rad(tilt_deg), np.deg2rad(tilt_axis_deg)
    axis = np.array([np.cos(direction), np.sin(direction), 0.0])
    cross = np.array([[0.0, -axis[2], axis[1]], [axis[2], 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    # An angle of 90 degrees in floating point leaves dust where a zero belongs.
    rotation[np.abs(rotation) < 1e-15] = 0.0
    return np.ascontiguousarray(rotation.T)


def rotate_in_plane(axis: ArrayLike, angle_deg: float, /) -> Array:
    """Return vectors (..., 3) turned about z by `angle_deg`, from +x towards +y."""
    axis = np.asarray(axis, dtype=float)
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    x, y, z = axis[..., 0], axis[..., 1], axis[..., 2]
    return np.stack([c * x - s * y, s * x + c * y, z], axis=-1)


def apparent_from_axis(axis: ArrayLike, birefringence: ArrayLike, frame: ArrayLike, /) -> tuple[Array, Array]:
    """Return apparent birefringence and in-plane angle (radians) of fibres, as one beam sees them.

    Parameters
    ----------
    axis : array_like, shape (..., 3)
        Unit fibre axes; the sign has no meaning.
    birefringence : array_like, shape (...)
        True birefringence.
    frame : array_like, shape (3, 3)
        From `beam_frame`.

    Returns
    -------
    tuple of ndarray
        `birefringence * sin(angle to the beam)**2`, and the angle from e1 towards e2 (meaningless where the former
        is 0).

    Examples
    --------
    A fibre along the beam shows nothing, one across it everything:

    >>> b, _ = apparent_from_axis([[0, 0, 1], [1, 0, 0]], [1e-3, 1e-3], beam_frame(0.0))
    >>> b.tolist()
    [0.0, 0.001]
    """
    in_frame = np.asarray(axis, dtype=float) @ np.asarray(frame, dtype=float).T
    along = np.clip(in_frame[..., 2], -1.0, 1.0)
    return np.asarray(birefringence) * (1 - along**2), np.arctan2(in_frame[..., 1], in_frame[..., 0])

"""A moving volume on the pixels of the fixed one, block by block, so that neither needs to be in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.compute.registration._planar_transform import PlanarTransform

BlockReader = Callable[[slice, slice], NDArray[Any]]
"""Returns the block (x, y, z) of a volume for ranges of x and y."""
BendReader = Callable[[slice, slice], NDArray[np.float32]]
"""Returns the displacement (2, x, y) in fixed px for ranges of fixed x and y."""


class PlaneResampler(Protocol):
    """Brings one plane onto the fixed pixels, as `resample_image` and `resample_orientation` do."""

    def __call__(
        self, image: ArrayLike, mapping: PlanarTransform, /, *, shape: tuple[int, int]
    ) -> NDArray[np.float32]: ...


class Slant(NamedTuple):
    """The position of the result's planes in the moving volume."""

    plane: NDArray[np.float64]
    """Depth index of each, shape (planes,); the nearest plane is taken, and nothing below the last."""
    sideways_px: NDArray[np.float64]
    """By how much each is moved against the mapping, in fixed pixels, shape (planes, 2); grows or falls throughout."""


def resampled_blocks(
    read: BlockReader,
    mapping: PlanarTransform,
    /,
    *,
    size: tuple[int, int, int],
    resample: PlaneResampler,
    slant: Slant | None = None,
    bend: BendReader | None = None,
) -> BlockReader:
    """Return a reader of a moving volume on the fixed pixels.

    Parameters
    ----------
    read : callable
        Reads the moving volume.
    mapping : PlanarTransform
        From fixed to moving pixel coordinates.
    size : (int, int, int)
        Size (x, y, z) of the moving volume.
    resample : callable
        What is done to each plane.
    slant : Slant, optional
        Planes of the result that are not planes of the moving volume.
    bend : callable, optional
        Displacement for ranges of fixed x and y, which may lie beside the pixels that have one in the mapping.

    Returns
    -------
    callable
        Gives blocks of float32 with as many planes as the moving volume has, depth slowest in memory; where a block
        lies beside that volume, a single plane of NaN.
    """
    planes = np.arange(size[2], dtype=float)
    plane, sideways = (planes, np.zeros((size[2], 2))) if slant is None else slant
    field = mapping.displacement
    ends = None if field is None else field.shape[1:]
    if bend is None and field is not None:
        bend = _part_of(field)

    def block(xs: slice, ys: slice) -> NDArray[np.float32]:
        if bend is None:
            return made_of(xs, ys, None)
        # Axes follow the slope of the displacement, which at a block's rim takes the pixels beside it.
        (wide_x, inner_x), (wide_y, inner_y) = (
            _with_neighbours(part, None if ends is None else ends[axis]) for axis, part in enumerate((xs, ys))
        )
        return made_of(wide_x, wide_y, bend(wide_x, wide_y))[inner_x, inner_y]

    def made_of(xs: slice, ys: slice, moved: NDArray[np.float32] | None) -> NDArray[np.float32]:
        shape = (xs.stop - xs.start, ys.stop - ys.start)
        corners = np.array([[x, y] for x in (xs.start, xs.stop - 1) for y in (ys.start, ys.stop - 1)], float)
        slack = 0.0 if moved is None else np.abs(moved).max()
        reach = np.concatenate([mapping.points(corners + sideways[k]) for k in (0, -1)])
        low = np.maximum(np.floor(reach.min(0) - slack).astype(int) - 1, 0)
        high = np.minimum(np.ceil(reach.max(0) + slack).astype(int) + 2, size[:2])
        if (high <= low).any():
            return np.full((*shape, 1), np.nan, np.float32)
        part = read(slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
        nothing = np.full(part.shape[:2], np.nan, np.float32)
        made: list[NDArray[np.float32]] = []
        for z in range(size[2]):
            start = mapping.points(np.array([xs.start, ys.start]) + sideways[z]) - low
            # The nearest plane is sufficient: planes are closer together than any change with depth.
            index = round(plane[z])
            image = part[:, :, index] if index < size[2] else nothing
            made.append(resample(image, PlanarTransform(mapping.matrix, start, moved), shape=shape).swapaxes(0, 1))
        return np.stack(made).swapaxes(0, 2)

    return block


def _part_of(field: NDArray[np.float32]) -> BendReader:
    return lambda xs, ys: field[:, xs, ys]


def _with_neighbours(part: slice, size: int | None) -> tuple[slice, slice]:
    """Return a range with one more pixel on either side where there is one, and where in it the range lies."""
    first, end = part.start - 1, part.stop + 1
    if size is not None:
        first, end = max(first, 0), min(end, size)
    return slice(first, end), slice(part.start - first, part.stop - first)

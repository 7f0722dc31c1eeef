"""Quality figures of a mosaic: how well its maps agree in the overlaps, and how well its mask divides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import Seam, seams_from_tiles
from opticstream.io.pictures import picture_of_map, reduced
from opticstream.model.modalities import described

MOST_SEAMS = 24
"""Most overlaps in which a further map is compared: the clearest ones of the first map."""
CLEAR_NCC = 0.5
"""Correlation in the first map from which an overlap shows something."""
_MOST_PIXELS = 1_000_000
PICTURE_PX = 1600
_EDGE_COLOUR = (255, 140, 0)
NOT_COMPARED = ("surf", "surfraw")
"""Maps that differ in the overlaps on purpose: the field of view is curved in depth."""


def seam_ncc_of_map(
    modality: str,
    tiles: Mapping[int, NDArray[np.float32]],
    numbers: Sequence[int],
    offset: NDArray[np.intp],
    seams: Sequence[Seam],
    /,
) -> float:
    """Return the median correlation of neighbouring tiles of a map where they agree in the first map.

    Parameters
    ----------
    modality : str
        Which map; of axes the cosine of twice the angle is compared.
    tiles : mapping of ndarray, shape (x, y)
        Its tiles by their numbers.
    numbers : sequence of int
        Number of every tile of the mosaic, in the order of `offset`.
    offset : ndarray of int, shape (tiles, 2)
        Pixel position of every tile.
    seams : sequence of Seam
        The overlaps of the first map.

    Returns
    -------
    float
        -1 to 1; NaN where no overlap of the first map is clear, or the map is one of `NOT_COMPARED`.
    """
    clear = sorted((one for one in seams if one.ncc >= CLEAR_NCC), key=lambda one: -one.ncc)
    chosen = [one.pair for one in clear if all(numbers[index] in tiles for index in one.pair)][:MOST_SEAMS]
    if not chosen or modality in NOT_COMPARED:
        return float("nan")
    nothing = np.full((1, 1), np.nan, np.float32)
    stack = [nothing] * len(numbers)
    for index in {index for pair in chosen for index in pair}:
        tile = tiles[numbers[index]]
        stack[index] = np.cos(2 * np.deg2rad(tile)) if described(modality).is_axial else tile
    nccs = [seam.ncc for seam in seams_from_tiles(stack, offset, np.array(chosen, np.intp)) if np.isfinite(seam.ncc)]
    return float(np.median(nccs)) if nccs else float("nan")


def mask_picture(modality: str, image: NDArray[np.float32], tissue: NDArray[np.bool_], /) -> NDArray[np.uint8]:
    """Return the mosaic from which a mask was made, with the edge of the mask in orange; pixels (rows, columns, 3)."""
    from scipy import ndimage

    seen, inside = reduced(image, PICTURE_PX), reduced(tissue, PICTURE_PX)
    edge = ndimage.binary_dilation(inside, iterations=2) & ~inside
    picture = picture_of_map(modality, seen)
    picture[edge.T] = _EDGE_COLOUR
    return picture


def mask_figures(image: NDArray[np.float32], tissue: NDArray[np.bool_], /) -> dict[str, Any]:
    """Return the contrast of a mask and the number of its parts.

    Parameters
    ----------
    image : ndarray, shape (x, y)
        The mosaic from which the mask was made, in dB; NaN where no tile lies.
    tissue : ndarray of bool, shape (x, y)
        The mask.

    Returns
    -------
    dict
        ``mask_contrast_db``: median level inside minus outside, None where one of them is (nearly) empty;
        ``mask_parts``: number of separate parts.

    Examples
    --------
    >>> image = np.zeros((8, 8), np.float32); image[2:5, 2:5] = 10
    >>> mask_figures(image, image > 5)
    {'mask_contrast_db': 10.0, 'mask_parts': 1}
    """
    from scipy import ndimage

    step = max(1, int(np.sqrt(image.size / _MOST_PIXELS)))
    seen, inside = image[::step, ::step], tissue[::step, ::step]
    known = np.isfinite(seen)
    one, other = seen[known & inside], seen[known & ~inside]
    is_divided = min(one.size, other.size) > 0.01 * max(int(known.sum()), 1)
    contrast_db = round(float(np.median(one) - np.median(other)), 2) if is_divided else None
    return {"mask_contrast_db": contrast_db, "mask_parts": int(ndimage.label(tissue)[1])}

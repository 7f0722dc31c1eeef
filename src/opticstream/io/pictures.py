"""Make pictures of maps: the same value has the same colour in every mosaic of every project.

Pictures show x to the right and y downwards. The table of modalities
(`docs/reference/modalities.md`) names the colours and the range of each; the colours are defined here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.atomic import atomic_path, write_bytes
from opticstream.io.encoded_pictures import encoded_picture, needs_bigtiff
from opticstream.io.orientation_pictures import axis_colours, hue_colours
from opticstream.model.modalities import Colours, described

Picture = NDArray[np.uint8]

GREY = ((0, 0, 0), (255, 255, 255))
VIRIDIS = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
    (170, 220, 50), (253, 231, 37),
)  # fmt: skip
INFERNO = (
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
    (249, 201, 50), (252, 255, 164),
)  # fmt: skip
CIVIDIS = (
    (0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115), (138, 134, 120), (165, 156, 116),
    (195, 179, 105), (225, 204, 85), (253, 231, 55),
)  # fmt: skip

COLOURS: Mapping[Colours, tuple[tuple[int, int, int], ...]] = {
    "grey": GREY,
    "viridis": VIRIDIS,
    "inferno": INFERNO,
    "cividis": CIVIDIS,
}
"""Colours by name, from the lowest to the highest value; `wheel` is `hue_colours`, `directions` is `axis_colours`."""

BACKGROUND = (0, 0, 0)
"""Colour of pixels without a value."""


def colours_from_unit(value: ArrayLike, colours: Sequence[tuple[int, int, int]], /) -> Picture:
    """Return 8-bit colours of values in 0..1 (clipped; NaN is black), shape (..., 3).

    Examples
    --------
    >>> colours_from_unit([0.0, 0.5, 1.0, float("nan")], GREY).tolist()
    [[0, 0, 0], [128, 128, 128], [255, 255, 255], [0, 0, 0]]
    """
    table = np.asarray(colours, np.float64)
    places = np.linspace(0, len(table) - 1, 256)
    exact = np.stack([np.interp(places, np.arange(len(table)), table[:, c]) for c in range(3)], axis=1)
    lut: Picture = np.rint(exact).astype(np.uint8)
    array = np.asarray(value, np.float32)
    index = np.rint(np.clip(np.nan_to_num(array), 0, 1) * 255).astype(np.uint8)
    result = lut[index]
    result[~np.isfinite(array)] = BACKGROUND
    return result


def display_range(
    modality: str, image: NDArray[Any], /, *, mask: NDArray[np.bool_] | None = None
) -> tuple[float, float]:
    """Return the values of the darkest and the brightest colour of a modality's picture."""
    limits = described(modality).display
    if limits.low is not None and limits.high is not None:
        return limits.low, limits.high
    step = max(1, int(np.sqrt(image.size / 1e6)))
    sample = image[::step, ::step]
    good = np.isfinite(sample)
    if mask is not None and mask.any():
        inside = mask[::step, ::step]
        good = good & inside if (good & inside).any() else good
    values = sample[good]
    if values.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, [1.0, limits.high_percentile])
    if limits.high is not None:
        high = limits.high
    if limits.low is not None:
        low = limits.low
        high = max(high, low if limits.least_high is None else limits.least_high)
        high = high if limits.most_high is None else min(high, limits.most_high)
    return float(low), float(high if high > low else low + 1)


def picture_of_map(
    modality: str,
    image: NDArray[Any],
    /,
    *,
    mask: NDArray[np.bool_] | None = None,
    brightness: NDArray[Any] | None = None,
    limits: tuple[float, float] | None = None,
    light_limits: tuple[float, float] | None = None,
) -> Picture:
    """Return the picture of a map: 8-bit pixels (rows, columns, 3), x to the right, y downwards.

    Parameters
    ----------
    modality : str
        Name that chooses the colours; an unknown one is shown in grey.
    image : ndarray, shape (x, y), or (x, y, 3) for vectors
        Values; degrees for angles of axes. NaN is black.
    mask : ndarray of bool, shape (x, y), optional
        Pixels outside are black, and do not count for the range.
    brightness : ndarray, shape (x, y), optional
        For angles and vectors: retardance (degrees) or any positive level; shown relative to its 98th percentile.
    limits : tuple of float, optional
        Range instead of the modality's own.
    light_limits : tuple of float, optional
        Range of `brightness` instead of its own; see `brightness_range`.
    """
    values = np.asarray(image, np.float32)
    if mask is not None:
        values = np.where(mask if values.ndim == 2 else mask[..., None], values, np.float32(np.nan))
    colours_of = described(modality).colours
    if colours_of in ("wheel", "directions"):
        level: ArrayLike = 1.0
        if brightness is not None:
            light = np.asarray(brightness, np.float32)
            dark, bright = light_limits or brightness_range(values, light)
            level = np.clip((light - dark) / max(bright - dark, 1e-12), 0, 1)
        draw = hue_colours if colours_of == "wheel" else axis_colours
        colours = np.rint(draw(values, brightness=level) * 255).astype(np.uint8)
        return np.ascontiguousarray(colours.transpose(1, 0, 2))
    low, high = limits or display_range(modality, values, mask=mask)
    colours = colours_from_unit((values - low) / (high - low), COLOURS[colours_of])
    return np.ascontiguousarray(colours.transpose(1, 0, 2))


def brightness_range(values: NDArray[Any], brightness: NDArray[Any], /) -> tuple[float, float]:
    """Return the brightness of black and of full colour in the picture of a map of axes.

    Parameters
    ----------
    values : ndarray, shape (x, y) or (x, y, 3)
        The map; NaN does not count.
    brightness : ndarray, shape (x, y)
        As for `picture_of_map`.
    """
    good = np.isfinite(brightness) & (np.isfinite(values) if values.ndim == 2 else np.isfinite(values).all(axis=-1))
    if not good.any():
        return 0.0, 1.0
    light = brightness[good]
    low = float(np.percentile(light, 2)) if light.min() < 0 else 0.0
    return low, float(np.percentile(light, 98))


def reduced(image: NDArray[Any], longest_px: int, /) -> NDArray[Any]:
    """Return an image subsampled to at most `longest_px` along its longer side, by whole steps."""
    step = max(1, -(-max(image.shape[:2]) // longest_px))
    return image[::step, ::step]


def write_jpeg(path: Path, picture: Picture, /, *, quality: int = 90) -> Path:
    """Write 8-bit pixels (rows, columns[, 3]) as JPEG, atomically; return the path."""
    return write_bytes(path, encoded_picture(picture, "JPEG", quality=quality, subsampling=0))


def write_tiff(path: Path, image: NDArray[Any], /, *, pixel_size_mm: tuple[float, float] | None = None) -> Path:
    """Write a map (x, y) as TIFF with its values (rows are y), its pixel size in cm, deflate; return the path."""
    import tifffile

    rows = np.ascontiguousarray(np.asarray(image).T)
    if rows.dtype == bool:
        rows = rows.astype(np.uint8) * np.uint8(255)
    options: dict[str, Any] = {}
    if pixel_size_mm is not None:
        options = {"resolution": (10 / pixel_size_mm[0], 10 / pixel_size_mm[1]), "resolutionunit": "CENTIMETER"}
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            rows,
            bigtiff=needs_bigtiff(rows.nbytes),
            compression="zlib",
            compressionargs={"level": 1},
            metadata=None,
            software="",
            **options,
        )
    return path

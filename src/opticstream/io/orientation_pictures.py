"""Pictures of axes with their legend: in-plane and through-plane angle as hue, the axis in space as |x|, |y|, |z| in
red, green, blue.

Pictures show x to the right and y downwards, as every other picture of the project; legends are drawn the same way, so
that a fibre has the colour of its own direction on the wheel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from opticstream.io.atomic import atomic_path, write_bytes
from opticstream.io.encoded_pictures import encoded_picture, needs_bigtiff

Picture = NDArray[np.uint8]

BACKGROUND = 0
"""Grey level of pixels without an axis."""


def hue_colours(angle_deg: ArrayLike, /, *, brightness: ArrayLike = 1.0) -> NDArray[np.float32]:
    """Return colours of axes, a full turn of hue over 180 degrees: red 0, green 60, blue 120 (= -60).

    Parameters
    ----------
    angle_deg : array_like
        Angles in degrees; NaN is black.
    brightness : array_like
        Value in 0..1, clipped.

    Returns
    -------
    ndarray, shape (..., 3)
        Red, green, blue in 0..1.

    Examples
    --------
    >>> hue_colours([0.0, 180.0, 60.0]).round(2).tolist()
    [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    angle = np.asarray(angle_deg, np.float32)
    hue = np.nan_to_num(angle) / 180.0 % 1.0
    offset = hue[..., None] * 6 + np.array([0, 4, 2], np.float32)
    colour = np.clip(np.abs(offset % 6 - 3) - 1, 0, 1)
    value = np.clip(np.nan_to_num(np.asarray(brightness, np.float32)), 0, 1) * np.isfinite(angle)
    return (colour * value[..., None]).astype(np.float32)


def axis_colours(axis: ArrayLike, /, *, brightness: ArrayLike = 1.0) -> NDArray[np.float32]:
    """Return colours (..., 3) in 0..1 of axes (..., 3) in space: |x| red, |y| green, |z| blue; NaN is black."""
    value = np.clip(np.nan_to_num(np.asarray(brightness, np.float32)), 0, 1)
    colours: NDArray[np.float32] = np.nan_to_num(np.abs(np.asarray(axis, np.float32))) * value[..., None]
    return colours


def picture_from_colours(colours: ArrayLike, /) -> Picture:
    """Return 8-bit pixels (rows, columns, 3), y downwards, from colours (x, y, 3) in 0..1."""
    rounded = np.rint(np.clip(np.asarray(colours, np.float32), 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.swapaxes(0, 1))


def inplane_legend(size_px: int, /) -> Picture:
    """Return the colour wheel of in-plane directions."""
    x, y, radius = _disc(size_px)
    wheel = hue_colours(np.where((radius > 0.35) & (radius <= 1), np.degrees(np.arctan2(y, x)), np.nan))
    return _lettered(picture_from_colours(wheel), [("x", (0.84, 0.5)), ("y", (0.5, 0.84)), ("in-plane", (0.5, 0.5))])


def thruplane_legend(size_px: int, /) -> Picture:
    """Return the half wheel of inclinations, from -90 (bottom) over 0 (right) to 90 degrees (top)."""
    x, y, radius = _disc(size_px)
    inside = (radius > 0.35) & (radius <= 1) & (x >= 0)
    wheel = hue_colours(np.where(inside, np.degrees(np.arctan2(-y, x)), np.nan))
    letters = [
        ("0", (0.88, 0.5)),
        ("90", (0.4, 0.08)),
        ("-90", (0.38, 0.92)),
        ("through", (0.24, 0.44)),
        ("plane", (0.24, 0.56)),
    ]
    return _lettered(picture_from_colours(wheel), letters)


def axis_legend(size_px: int, /) -> Picture:
    """Return the sphere of directions in space, seen along the normal: red x, green y, blue towards the viewer."""
    x, y, radius = _disc(size_px)
    z = np.sqrt(np.clip(1 - radius**2, 0, 1))
    sphere = axis_colours(np.where((radius <= 1)[..., None], np.stack([x, y, z], -1), np.nan))
    return _lettered(picture_from_colours(sphere), [("x", (0.9, 0.5)), ("y", (0.5, 0.9)), ("z", (0.5, 0.5))])


def with_legend(picture: Picture, legend: Picture, /) -> Picture:
    """Return a picture with its legend on a dark strip to the right, so that no pixel is covered."""
    height = max(picture.shape[0], legend.shape[0])
    out = np.full((height, picture.shape[1] + legend.shape[1], 3), BACKGROUND, np.uint8)
    out[: picture.shape[0], : picture.shape[1]] = picture
    out[: legend.shape[0], picture.shape[1] :] = legend
    return out


def legend_size(picture: Picture, /) -> int:
    """Return the size of the legend for a picture."""
    return int(np.clip(min(picture.shape[:2]) // 4, 96, 640))


def overlay(fixed: ArrayLike, moving: ArrayLike, /) -> Picture:
    """Return an overlay of two images (x, y): fixed green, moving magenta; grey where they agree. NaN is black."""
    channels = [_stretched(image) for image in (fixed, moving)]
    return picture_from_colours(np.stack([channels[1], channels[0], channels[1]], -1))


def side_by_side(left: Picture, right: Picture, /, *, titles: tuple[str, str] = ("", "")) -> Picture:
    """Return two pictures side by side, with titles in the upper left corners."""
    height = max(left.shape[0], right.shape[0])
    gap = 4
    out = np.full((height, left.shape[1] + gap + right.shape[1], 3), 64, np.uint8)
    out[: left.shape[0], : left.shape[1]] = left
    out[: right.shape[0], left.shape[1] + gap :] = right
    places: list[tuple[str, tuple[float, float]]] = [(titles[0], (4, 2)), (titles[1], (left.shape[1] + gap + 4, 2))]
    return _written(out, places, centred=False)


def write_picture(path: Path, picture: Picture, /) -> Path:
    """Write pixels (rows, columns, 3) as JPEG, PNG or TIFF by the suffix, atomically, with deterministic bytes."""
    suffix = path.suffix.lower()
    if suffix in {".jpg", ".jpeg"}:
        return write_bytes(path, encoded_picture(picture, "JPEG", quality=92, subsampling=0))
    if suffix == ".png":
        return write_bytes(path, encoded_picture(picture, "PNG"))
    import tifffile

    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            picture,
            bigtiff=needs_bigtiff(picture.nbytes),
            photometric="rgb",
            compression="zlib",
            metadata=None,
            software="opticstream",
        )
    return path


def _disc(size_px: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    line = (np.arange(size_px, dtype=np.float32) - (size_px - 1) / 2) / (0.44 * size_px)
    x, y = np.meshgrid(line, line, indexing="ij")
    return x, y, np.hypot(x, y)


def _stretched(image: ArrayLike) -> NDArray[np.float32]:
    values = np.asarray(image, np.float32)
    good = values[np.isfinite(values)]
    if good.size == 0:
        return np.zeros(values.shape, np.float32)
    low, high = np.percentile(good, [1, 99.5])
    return np.nan_to_num(np.clip((values - low) / max(float(high - low), 1e-30), 0, 1)).astype(np.float32)


def _lettered(picture: Picture, letters: list[tuple[str, tuple[float, float]]]) -> Picture:
    size = picture.shape[0]
    return _written(picture, [(text, (place[0] * size, place[1] * size)) for text, place in letters], centred=True)


def _written(picture: Picture, letters: list[tuple[str, tuple[float, float]]], *, centred: bool) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(10.0, min(picture.shape[:2]) / 11 if centred else 12.0))
    for text, place in letters:
        draw.text(
            place,
            text,
            fill=(255, 255, 255),
            stroke_fill=(0, 0, 0),
            stroke_width=1,
            anchor="mm" if centred else "la",
            font=font,
        )
    return np.asarray(canvas).copy()

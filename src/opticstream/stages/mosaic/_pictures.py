"""Pictures from which a person sees whether a mosaic fits: links and residuals, neighbouring tiles in red and green."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import (
    MosaicSum,
    Seam,
    TilePositions,
    canvas_from_positions,
    overlap_widths,
    parity_colours,
    tile_weight,
)
from opticstream.io.pictures import GREY, Picture, colours_from_unit, reduced, write_jpeg
from opticstream.stages.mosaic._captions import TEXT, Words, with_lines_below
from opticstream.stages.mosaic._tiles import MosaicTiles

LONGEST_PX = 1600
SHORTEST_PX = 700
GOOD, WEAK, BAD, UNSEEN = (60, 200, 90), (240, 190, 40), (230, 60, 50), (140, 140, 140)
RESIDUAL = (90, 200, 255)


def write_links_picture(path: Path, tiles: MosaicTiles, found: TilePositions, /, *, modality: str) -> Path:
    """Draw the mosaic with its links (green clear, yellow faint, red dropped) and their residuals as arrows.

    Residuals below a pixel are drawn to one scale: in mosaics that fit arrows are short, in all others the longest is a
    quarter of a tile.
    """
    from PIL import Image, ImageDraw, ImageFont

    canvas = canvas_from_positions(found.positions_px, tile_shape=tiles.tile_shape)
    step = max(1, -(-max(canvas.shape) // LONGEST_PX))
    small = np.full(tuple(-(-n // step) for n in canvas.shape), np.nan, np.float32)
    for number, offset in zip(tiles.numbers, canvas.offset, strict=True):
        image = tiles.read(number, modality)
        if image is None:
            continue
        start = -offset % step
        thin = image[start[0] :: step, start[1] :: step]
        x, y = (offset + start) // step
        small[x : x + thin.shape[0], y : y + thin.shape[1]] = thin
    finite = small[np.isfinite(small)]
    low, high = np.percentile(finite, [1, 99.5]) if finite.size else (0.0, 1.0)
    grey = colours_from_unit(0.75 * (small - low) / max(high - low, 1e-12), GREY)
    enlarge = max(1, round(SHORTEST_PX / max(grey.shape[:2])))
    grey = grey.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    scale = enlarge / step
    picture = Image.fromarray(np.ascontiguousarray(grey.transpose(1, 0, 2)))
    draw = ImageDraw.Draw(picture)
    size = np.array(tiles.tile_shape)
    centre = (canvas.offset + size / 2) * scale
    font = ImageFont.load_default(size=_font_px(float(size.min()) * scale))
    for number, offset, alone in zip(tiles.numbers, canvas.offset, found.by_stage_only, strict=True):
        low_corner, high_corner = offset * scale, (offset + size) * scale - 1
        draw.rectangle([*low_corner, *high_corner], outline=(110, 110, 160) if not alone else (160, 80, 80))
        draw.text((float(low_corner[0]) + 4, float(low_corner[1]) + 3), str(number), fill=(200, 200, 255), font=font)
    links = found.links
    clear = links.clear  # a link that is known along one axis only has no meaningful residual
    longest = float(np.hypot(*links.residual_px[clear].T).max()) if clear.any() else 0.0
    magnify = 0.25 * float(size.min()) * scale / max(longest, 1.0)
    counts = dict.fromkeys((GOOD, WEAK, BAD, UNSEEN), 0)
    for k, (a, b) in enumerate(links.pairs):
        weight = links.weight[k]
        measured = bool(np.isfinite(links.residual_px[k]).all())
        colour = GOOD if clear[k] else WEAK if weight > 0.1 else BAD if measured else UNSEEN
        counts[colour] += 1
        draw.line([*centre[a], *centre[b]], fill=colour, width=2 if measured else 1)
        if clear[k]:
            middle = (centre[a] + centre[b]) / 2
            tip = middle + links.residual_px[k] * magnify
            draw.line([*middle, *tip], fill=RESIDUAL, width=3)
            draw.ellipse([*(tip - 3), *(tip + 3)], fill=RESIDUAL)
    names = zip(("clear", "faint", "dropped", "nothing to see"), counts.items(), strict=True)
    told: list[Words] = [("links: ", TEXT), *((f"{count} {name}   ", colour) for name, (colour, count) in names)]
    arrows: Words = (f"residuals {magnify / scale:.0f} times enlarged, the longest is {longest:.2f} px", RESIDUAL)
    stage: Words = (f"   framed red: {int(found.by_stage_only.sum())} tiles placed by the stage model", (220, 120, 120))
    return write_jpeg(path, with_lines_below(np.asarray(picture), [told, [arrows, stage]]))


def overlap_picture(
    tiles: MosaicTiles,
    positions_px: NDArray[np.float64],
    read: Callable[[int], NDArray[Any] | None],
    seams: Sequence[Seam],
    /,
) -> Picture:
    """Return neighbouring tiles in red and green, like the fields of a checkerboard: where they fit it is yellow.

    Each seam shows how well its two tiles correlate.
    """
    canvas = canvas_from_positions(positions_px, tile_shape=tiles.tile_shape)
    overlaps = overlap_widths(positions_px, tile_shape=tiles.tile_shape)
    sums = (MosaicSum(canvas), MosaicSum(canvas))
    flat = np.ones(tiles.tile_shape, np.float32)
    for index, (number, colour) in enumerate(zip(tiles.numbers, parity_colours(tiles.cells), strict=True)):
        image = read(number)
        if image is not None:
            weight = flat if not overlaps[index].any() else tile_weight(tiles.tile_shape, overlaps[index]) + 1e-3
            sums[colour].add(index, image, weight)
    fields = [reduced(s.image(), 2 * LONGEST_PX) for s in sums]
    finite = np.concatenate([f[np.isfinite(f)].ravel()[::7] for f in fields])
    low, high = np.percentile(finite, [1, 99.5]) if finite.size else (0.0, 1.0)
    unit = [np.nan_to_num(np.clip((f - low) / max(high - low, 1e-12), 0, 1)) for f in fields]
    colours = np.stack([unit[0], unit[1], np.zeros_like(unit[0])], axis=-1)
    picture = np.rint(colours * 255).astype(np.uint8).transpose(1, 0, 2)
    enlarge = max(1, round(SHORTEST_PX / max(picture.shape[:2])))
    picture = picture.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    scale = picture.shape[1] / canvas.shape[0]
    centre = (canvas.offset + np.array(tiles.tile_shape) / 2) * scale
    known = [seam for seam in seams if np.isfinite(seam.ncc)]
    told = "neighbouring tiles in red and green, yellow where they fit; numbers: correlation in the overlap"
    return with_lines_below(
        _with_numbers(picture, known, centre, _font_px(min(tiles.tile_shape) * scale)), [[(told, TEXT)]]
    )


def _font_px(tile_px: float) -> float:
    """Return a size of letters that leaves most of a tile to be seen."""
    return float(np.clip(0.1 * tile_px, 10, 28))


def _with_numbers(picture: Picture, seams: Sequence[Seam], centre_px: NDArray[np.float64], font_px: float) -> Picture:
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(np.ascontiguousarray(picture))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=font_px)
    for seam in seams:
        x, y = (centre_px[seam.pair[0]] + centre_px[seam.pair[1]]) / 2
        draw.text(
            (float(x), float(y)),
            f"{seam.ncc:.2f}",
            fill=(255, 255, 255),
            stroke_fill=(0, 0, 0),
            stroke_width=1,
            anchor="mm",
            font=font,
        )
    return np.asarray(canvas)

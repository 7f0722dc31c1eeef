"""The picture from which a person sees whether a focus map is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import FocusFit, shared_slices
from opticstream.io.images import TileVolume
from opticstream.io.pictures import CIVIDIS, GREY, Picture, colours_from_unit, reduced, write_jpeg
from opticstream.stages.mosaic._captions import TEXT, Words, with_lines_below, with_title
from opticstream.stages.mosaic._tiles import MosaicTiles

FloatArray = NDArray[np.float32]
LONGEST_PX = 700
SHORTEST_PX = 280
GAP_PX = 6
SURFACE, PLANE = (80, 220, 255), (255, 90, 60)
APART = ((60, 110, 240), (240, 240, 240), (240, 90, 50))


def write_focus_picture(
    path: Path,
    tiles: MosaicTiles,
    fit: FocusFit,
    surfaces: list[FloatArray],
    offset: NDArray[np.intp],
    pairs: NDArray[np.intp],
    signal: list[NDArray[np.bool_]] | None,
    constant_px: float | None,
    /,
) -> Path:
    """Write the map, the surface's disagreement in overlaps before and after it, and two sections through a tile.

    In overlaps white is agreement. The sections show level in dB with depth downwards: along x and along y through the
    middle of the tile with the most tissue, its surface in blue and the focal plane in red. Where the depth of focus is
    unknown (`constant_px` None) the plane's shape is drawn through the surface. Without volumes there are no sections.
    """
    rows = [_row([_map(fit), *_disagreements(fit, surfaces, offset, pairs, signal)])]
    sections = _sections(tiles, fit, surfaces, signal, constant_px)
    if sections:
        rows.append(_row(sections))
    width = max(row.shape[1] for row in rows)
    wide = [np.pad(row, ((0, GAP_PX), (0, width - row.shape[1]), (0, 0))) for row in rows]
    depth: Words = (
        ("focal plane (only its shape is known, it is drawn through the surface)", PLANE)
        if constant_px is None
        else (f"focal plane, at {constant_px:.0f} samples on average", PLANE)
    )
    lines: list[Words] = [("sections through the tile with most tissue: ", TEXT), ("surface   ", SURFACE), depth]
    picture = np.concatenate(wide)
    return write_jpeg(path, with_lines_below(picture, [lines]) if sections else picture)


def _row(panels: list[Picture]) -> Picture:
    """Return panels (y, x, colour) beside each other."""
    height = max(panel.shape[0] for panel in panels)
    return np.concatenate(
        [np.pad(panel, ((0, height - panel.shape[0]), (0, GAP_PX), (0, 0))) for panel in panels], axis=1
    )


def _map(fit: FocusFit) -> Picture:
    low, high = float(fit.surface_px.min()), float(fit.surface_px.max())
    unit = (reduced(fit.surface_px, LONGEST_PX) - low) / max(high - low, 1e-6)
    return with_title(
        _enlarged(colours_from_unit(unit, CIVIDIS).transpose(1, 0, 2)),
        f"focus map: {low:.1f} (blue) to {high:.1f} samples",
    )


def _enlarged(picture: Picture) -> Picture:
    """Return a picture repeated by a whole factor, so that a small tile can be looked at."""
    factor = max(1, round(SHORTEST_PX / picture.shape[1]))
    return np.asarray(picture.repeat(factor, axis=0).repeat(factor, axis=1))


def _disagreements(
    fit: FocusFit,
    surfaces: list[FloatArray],
    offset: NDArray[np.intp],
    pairs: NDArray[np.intp],
    signal: list[NDArray[np.bool_]] | None,
) -> list[Picture]:
    """Return how far two tiles' surfaces are apart in their overlap, without and with the map, in one range."""
    extent = offset.max(axis=0) + np.array(surfaces[0].shape)
    span = max(2 * fit.residual_before_px, 1.0)
    panels = []
    for when, residual, bend in (
        ("before", fit.residual_before_px, np.zeros_like(fit.surface_px)),
        ("after", fit.residual_after_px, fit.surface_px),
    ):
        field = np.full(extent, np.nan, np.float32)
        for a, b in pairs:
            first, second = shared_slices(offset[b] - offset[a], surfaces[a].shape)
            gap = (surfaces[a] - bend)[first] - (surfaces[b] - bend)[second]
            if signal is not None:
                gap = np.where(signal[a][first] & signal[b][second], gap, np.nan)
            x, y = offset[a][0] + first[0].start, offset[a][1] + first[1].start
            field[x : x + gap.shape[0], y : y + gap.shape[1]] = gap
        unit = reduced(field, LONGEST_PX) / (2 * span) + 0.5
        title = f"surfaces apart in overlaps {when}: {residual:.2f} samples (colours: +-{span:.0f})"
        panels.append(with_title(_enlarged(colours_from_unit(unit, APART).transpose(1, 0, 2)), title))
    return panels


def _sections(
    tiles: MosaicTiles,
    fit: FocusFit,
    surfaces: list[FloatArray],
    signal: list[NDArray[np.bool_]] | None,
    constant_px: float | None,
) -> list[Picture]:
    """Return sections (depth, along) along x and along y, with surface and focal plane drawn in."""
    volumes = tiles.present("dBI")
    there = [k for k, number in enumerate(tiles.numbers) if number in volumes]
    if not there:
        return []
    best = max(there, key=lambda k: -k if signal is None else float(signal[k].mean()))
    volume = TileVolume(volumes[tiles.numbers[best]])
    depth, rows, columns = volume.shape
    if (columns, rows) != tiles.tile_shape:
        return []
    surface = surfaces[best]
    good = np.isfinite(surface) if signal is None else np.isfinite(surface) & signal[best]
    through = float(np.median((surface - fit.surface_px)[good])) if good.any() else 0.0
    plane = fit.surface_px + np.float32(through if constant_px is None else constant_px)
    data = np.empty((depth, rows, columns), np.float32)
    volume.read_into(data, 0, 0)
    x, y = columns // 2, rows // 2
    return [
        with_title(_enlarged(_section(data[:, y, :], surface[:, y], plane[:, y])), "along x"),
        with_title(_enlarged(_section(data[:, :, x], surface[x, :], plane[x, :])), "along y"),
    ]


def _section(level_db: FloatArray, surface_px: FloatArray, plane_px: FloatArray) -> Picture:
    """Return one section as grey levels, shape (depth, along, colour), with its two lines."""
    finite = level_db[np.isfinite(level_db)]
    low, high = np.percentile(finite, [1, 99.5]) if finite.size else (0.0, 1.0)
    picture = colours_from_unit((level_db - low) / max(float(high - low), 1e-6), GREY)
    along = np.arange(level_db.shape[1])
    for line, colour in ((surface_px, SURFACE), (plane_px, PLANE)):
        known = np.isfinite(line)
        z = np.clip(np.rint(line[known]).astype(np.intp), 0, level_db.shape[0] - 1)
        picture[z, along[known]] = colour
    return picture

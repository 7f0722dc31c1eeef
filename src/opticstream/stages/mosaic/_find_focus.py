"""The focus map of an illumination: from the surfaces of the first slice's tiles where they overlap, and kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import (
    ConfocalPeak,
    FocusFit,
    canvas_from_positions,
    confocal_peak,
    focus_from_overlaps,
    neighbour_pairs,
)
from opticstream.config import ScanSettings
from opticstream.config.processing import FocusSettings
from opticstream.io.images import TileVolume
from opticstream.io.nifti import map_from_nifti, write_nifti
from opticstream.io.tilemap import read_tilemap
from opticstream.model.errors import InputError
from opticstream.model.ids import MosaicId
from opticstream.model.modalities import described
from opticstream.stages.mosaic._tiles import MosaicTiles, check_template, tiles_of_mosaic

BELIEVED = 0.9
"""Confidence from which the confocal peak counts."""
_REMEDY = "remove the map or set processing.focus.force_refresh"


@dataclass(frozen=True)
class FocusResult:
    """What `find_focus` made or found.

    Attributes
    ----------
    path : Path
        ``focus-{illumination}.nii``: depth shift of each A-line of a tile, in depth samples, float32 (x, y).
    reused : bool
        The map was there already.
    residual_before_px, residual_after_px : float
        Scatter of the surface in the overlaps before and after; NaN where it was not measured.
    constant_px : float
        Depth of focus that the map's mean stands for; 0 where it is not known.
    confidence : float
        Confidence of the confocal peak, 0 to 1.
    note : str
        Why the map is flat or its constant unknown; empty where all is well.
    """

    path: Path
    reused: bool
    residual_before_px: float = float("nan")
    residual_after_px: float = float("nan")
    constant_px: float = 0.0
    confidence: float = 0.0
    note: str = ""
    outputs: dict[str, Path] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""

        def plain(value: float) -> float | None:
            return None if np.isnan(value) else round(value, 4)

        return {
            "path": str(self.path),
            "reused": self.reused,
            "residual_before_px": plain(self.residual_before_px),
            "residual_after_px": plain(self.residual_after_px),
            "constant_px": plain(self.constant_px),
            "confidence": plain(self.confidence),
            "note": self.note,
            "outputs": {name: str(path) for name, path in self.outputs.items()},
        }


def find_focus(
    mosaic: MosaicId,
    /,
    *,
    scan: ScanSettings,
    settings: FocusSettings,
    tiles_folder: Path,
    template_path: Path,
    focus_path: Path,
    qc_folder: Path | None = None,
    surface: str = "surfraw",
) -> FocusResult:
    """Find the focus map of a mosaic's illumination and write it, or return the one that is there.

    Parameters
    ----------
    mosaic : MosaicId
        The mosaic, normally of the first slice.
    scan : ScanSettings
        Grid and tile size.
    settings : FocusSettings
        Method, degree, and whether an existing map is replaced.
    tiles_folder : Path
        Folder of the tiles' products: unfiltered surfaces, en face intensity, and dBI volumes for the constant.
    template_path : Path
        Coordinate template.
    focus_path : Path
        ``focus-{illumination}.nii``.
    qc_folder : Path, optional
        Folder for the quality picture.
    surface : str
        Product that holds the unfiltered surface; ``surf`` is taken where no tile has it.

    Raises
    ------
    InputError
        An existing map, or the template, is for tiles of another size.
    """
    tiles = tiles_of_mosaic(mosaic, scan=scan, folder=tiles_folder, modalities=(surface, "surf", "aip", "dBI"))
    if focus_path.exists() and not settings.force_refresh:
        return _known(focus_path, read_focus(focus_path, tiles.tile_shape), mosaic, qc_folder)
    x_mm, y_mm, z_mm = scan.scan_resolution_3d
    flat = np.zeros(tiles.tile_shape, np.float32)
    if settings.method == "none":
        return _written(focus_path, flat, (x_mm, y_mm, z_mm), note='focus.method = "none"')
    tilemap = read_tilemap(template_path)
    check_template(tiles.numbers, tiles.tile_shape, tiles.grid, tilemap, str(template_path))
    tiles = tiles.as_placed_by(tilemap)
    if not tiles.present(surface):
        surface = "surf"
    tiles.require(surface)
    surfaces, signal = _surfaces(tiles, surface)
    positions = np.array([tilemap.place_of(n).position_px for n in tiles.numbers])
    canvas = canvas_from_positions(positions, tile_shape=tiles.tile_shape)
    pairs, _ = neighbour_pairs(positions, tile_shape=tiles.tile_shape)
    try:
        fit = focus_from_overlaps(surfaces, canvas.offset, pairs, signal=signal, degree=settings.degree)
    except ValueError as error:
        # One tile, or hardly any tissue in the overlaps: nothing is corrected.
        return _written(focus_path, flat, (x_mm, y_mm, z_mm), note=str(error))
    peak = _constant(tiles, fit.surface_px, surfaces, signal)
    known = peak.confidence >= BELIEVED
    constant = peak.depth_px if known else 0.0
    note = "" if known else "no clear confocal peak: the depth of focus is unknown and counts as 0"
    if qc_folder is not None:
        from opticstream.stages.mosaic._focus_picture import write_focus_picture

        write_focus_picture(
            _picture_path(qc_folder, mosaic),
            tiles,
            fit,
            surfaces,
            canvas.offset,
            pairs,
            signal,
            constant if known else None,
        )
    # The map is what a later attempt looks for: it appears last.
    result = _written(
        focus_path,
        fit.surface_px + np.float32(constant),
        (x_mm, y_mm, z_mm),
        note=note,
        fit=fit,
        peak=peak,
        constant=constant,
    )
    if qc_folder is not None:
        result.outputs["qc_focus"] = _picture_path(qc_folder, mosaic)
    return result


def _known(focus_path: Path, found: NDArray[np.float32], mosaic: MosaicId, qc_folder: Path | None) -> FocusResult:
    """Return what an existing map stands for, with the picture where an earlier attempt of this mosaic made both."""
    outputs = {"focus": focus_path}
    if qc_folder is not None and (picture := _picture_path(qc_folder, mosaic)).exists():
        outputs["qc_focus"] = picture
    return FocusResult(focus_path, True, constant_px=float(found.mean()), outputs=outputs)


def _picture_path(folder: Path, mosaic: MosaicId) -> Path:
    return folder / f"mosaic_{mosaic.mosaic_id:03d}_qc_focus.jpg"


def read_focus(path: Path, tile_shape: tuple[int, int], /) -> NDArray[np.float32]:
    """Return a saved focus map, shape (x, y), in depth samples.

    Raises
    ------
    InputError
        It is for tiles of another size, not finite, or no map of real numbers.
    """
    data = map_from_nifti(path, straight=True)
    if data.shape != tuple(tile_shape):
        raise InputError(f"{path} is for tiles of {data.shape} px, expected {tuple(tile_shape)}; {_REMEDY}")
    data = np.asarray(data, np.float32)
    if not np.isfinite(data).all():
        raise InputError(f"{path} holds values that are not finite; {_REMEDY}")
    return data


def _written(
    path: Path,
    surface: NDArray[np.float32],
    voxel: tuple[float, float, float],
    *,
    note: str,
    fit: FocusFit | None = None,
    peak: ConfocalPeak | None = None,
    constant: float = 0.0,
) -> FocusResult:
    write_nifti(path, surface, voxel_size_mm=voxel, description=described("focus").tile_header)
    return FocusResult(
        path,
        False,
        fit.residual_before_px if fit else float("nan"),
        fit.residual_after_px if fit else float("nan"),
        constant,
        peak.confidence if peak else 0.0,
        note,
        {"focus": path},
    )


def _surfaces(tiles: MosaicTiles, surface: str) -> tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]] | None]:
    """Return the surfaces, and where there is tissue: well above the level of the emptiest tiles."""
    nothing = np.full(tiles.tile_shape, np.nan, np.float32)
    surfaces = []
    levels = []
    for number in tiles.numbers:
        depth, level = tiles.read(number, surface), tiles.read(number, "aip")
        surfaces.append(nothing if depth is None else depth)
        levels.append(nothing if level is None else level)
    sample = np.concatenate([level[::4, ::4].ravel() for level in levels])
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return surfaces, None
    return surfaces, [level > between_classes(sample) for level in levels]


def between_classes(values: NDArray[np.floating], /) -> float:
    """Return the level that splits values into two classes best (Otsu), or minus infinity where they are one class.

    Examples
    --------
    >>> between_classes(np.array([0.0] * 50 + [10.0] * 50)) > 0
    True
    """
    counts, edges = np.histogram(values, bins=128)
    middle = (edges[1:] + edges[:-1]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * middle)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = mass / below - (mass[-1] - mass) / above
        between = below * above * gap**2
    between[~np.isfinite(between)] = 0
    split = int(between.argmax())
    explained = between[split] / max(below[-1] ** 2 * values.var(), 1e-30)
    # One Gaussian alone is split with 2/pi = 0.64 of its variance explained; two classes give more.
    return float(middle[split]) if explained > 0.75 else float("-inf")


def _constant(
    tiles: MosaicTiles,
    bend: NDArray[np.float32],
    surfaces: list[NDArray[np.float32]],
    signal: list[NDArray[np.bool_]] | None,
) -> ConfocalPeak:
    """Return the confocal peak from the dBI volumes of up to six tiles with tissue, every fourth A-line."""
    unknown = ConfocalPeak(float("nan"), 0.0, float("nan"), float("nan"))
    share = [float(s.mean()) if signal is not None else 1.0 for s in signal or surfaces]
    chosen = [k for k in np.argsort([-s for s in share], kind="stable") if tiles.numbers[k] in tiles.present("dBI")][:6]
    if not chosen:
        return unknown
    bins, width = 24, 6
    total: NDArray[np.float64] | None = None
    count: NDArray[np.float64] | None = None
    for k in chosen:
        volume = TileVolume(tiles.present("dBI")[tiles.numbers[k]])
        depth, rows, columns = volume.shape
        if (columns, rows) != tiles.tile_shape:
            continue
        data = np.empty((depth, rows, columns), np.float32)
        volume.read_into(data, 0, 0)
        thin = data[:, ::4, ::4]
        top = surfaces[k][::4, ::4].T
        here = np.isfinite(top) & (top > 0)
        if signal is not None:
            here &= signal[k][::4, ::4].T
        if total is None or count is None:
            total, count = np.zeros((depth // width, bins)), np.zeros((depth // width, bins))
        z = np.arange(depth)[:, None, None]
        below = np.floor((z - top[None]) / width)
        flat_z = np.floor((z - bend[::4, ::4].T[None]) / width)
        good = here[None] & (below >= 1) & (below < bins) & (flat_z >= 0) & (flat_z < len(total)) & np.isfinite(thin)
        index = (flat_z[good] * bins + below[good]).astype(np.intp)
        total += np.bincount(index, 10 ** (thin[good] / 10), minlength=total.size).reshape(total.shape)
        count += np.bincount(index, minlength=total.size).reshape(total.shape)
    if total is None or count is None:
        return unknown
    count[count < 20] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        level = 10 * np.log10(total / count)
    peak = confocal_peak(level, count, (np.arange(bins) + 0.5) * width)
    return ConfocalPeak(
        (peak.depth_px + 0.5) * width,
        peak.confidence,
        peak.rayleigh_px * width,
        peak.attenuation_db_per_px,
    )


def focus_for_volume(path: Path | None, tile_shape: tuple[int, int], /) -> NDArray[np.float32]:
    """Return the focus map for stitching volumes: the saved one, or zero shift where there is none."""
    if path is None or not path.exists():
        return np.zeros(tile_shape, np.float32)
    return read_focus(path, tile_shape)

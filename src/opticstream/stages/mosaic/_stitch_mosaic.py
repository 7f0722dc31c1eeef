"""The 2-D mosaics of one slice and illumination: every map of its tiles, the tissue mask, pictures, and the seams."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import (
    Canvas,
    MosaicSum,
    Seam,
    canvas_from_positions,
    common_shading,
    flat_field_from_overlaps,
    is_blank,
    neighbour_pairs,
    overlap_widths,
    seams_from_tiles,
    tile_weight,
    tissue_mask,
)
from opticstream.config import ScanSettings
from opticstream.config.processing import EnfaceSettings, MaskSettings, StitchSettings
from opticstream.io.atomic import write_bytes, write_text
from opticstream.io.encoded_pictures import small_picture
from opticstream.io.geometry import Geometry
from opticstream.io.nifti import long_axis_notes, write_nifti
from opticstream.io.paths import THUMBNAIL_FOLDER, ZOOM_FOLDER
from opticstream.io.pictures import picture_of_map, reduced, write_jpeg, write_tiff
from opticstream.io.tilemap import TileMap, read_tilemap
from opticstream.model.errors import ProcessingError
from opticstream.model.ids import MosaicId
from opticstream.model.modalities import described
from opticstream.stages.mosaic._quality import mask_figures, mask_picture, seam_ncc_of_map
from opticstream.stages.mosaic._tiles import MosaicTiles, check_template, tiles_of_mosaic

Progress = Callable[[float], None]
PREVIEW_PX = 4000


@dataclass(frozen=True)
class MosaicResult:
    """What `stitch_mosaic` made.

    Attributes
    ----------
    outputs : dict
        Files by name: a modality (NIfTI), ``{modality}_tif``, ``{modality}_jpg``, ``mask``, ``seams``, ``qc_overlap``,
        ``qc_mask``.
    shape : tuple of int
        Size of the mosaic, (x, y).
    missing : dict
        By modality, the tiles that have no file; they were stitched around.
    blank : tuple of int
        Tiles without any value in the first modality.
    seam_ncc : float
        Median correlation of neighbouring tiles in their overlaps; NaN where nothing can be compared.
    tissue_fraction : float
        Share of the covered area inside the mask; NaN without a mask.
    notes : tuple of str
        What was written in another format because the usual one cannot hold it.
    figures : dict
        Quality figures: `seam_ncc`, `seam_ncc_of` (by map, in overlaps that are clear in the first one),
        `tissue_fraction`, `mask_contrast_db` and `mask_parts`; None where there is nothing to compare.
    """

    outputs: dict[str, Path]
    shape: tuple[int, int]
    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    blank: tuple[int, ...] = ()
    seam_ncc: float = float("nan")
    tissue_fraction: float = float("nan")
    notes: tuple[str, ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def missing_tiles(self) -> list[int]:
        """Tiles that lack a file of any modality."""
        return sorted({number for numbers in self.missing.values() for number in numbers})

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "outputs": {name: str(path) for name, path in self.outputs.items()},
            "shape": list(self.shape),
            "missing": {modality: list(tiles) for modality, tiles in self.missing.items()},
            "blank": list(self.blank),
            "seam_ncc": None if np.isnan(self.seam_ncc) else round(self.seam_ncc, 4),
            "tissue_fraction": None if np.isnan(self.tissue_fraction) else round(self.tissue_fraction, 4),
            "notes": list(self.notes),
            "figures": self.figures,
        }


def stitch_mosaic(
    mosaic: MosaicId,
    /,
    *,
    scan: ScanSettings,
    enface: EnfaceSettings,
    mask: MaskSettings,
    stitch: StitchSettings,
    tiles_folder: Path,
    template_path: Path,
    stitched_folder: Path,
    progress: Progress | None = None,
) -> MosaicResult:
    """Stitch all maps of a mosaic with the illumination's template, and write them.

    Parameters
    ----------
    mosaic : MosaicId
        The mosaic.
    scan : ScanSettings
        Grid and pixel size.
    enface : EnfaceSettings
        Which maps the tiles have.
    mask : MaskSettings
        How the mask is made; ``made_from = ""`` for none.
    stitch : StitchSettings
        Interpolation, shading correction, formats.
    tiles_folder : Path
        Folder of the tiles' products.
    template_path : Path
        Coordinate template.
    stitched_folder : Path
        Where the results go: ``mosaic_{m:03d}_{modality}.nii.gz`` (also ``.tif``, ``.jpg``), ``..._mask.nii.gz``,
        ``..._seams.json``, ``..._qc_overlap.jpg``; with the shading correction ``..._shading.nii.gz``, in dB.
    progress : callable, optional
        Told the fraction done.

    Returns
    -------
    MosaicResult
        Maps hold NaN where no tile lies or the mask excludes.

    Raises
    ------
    InputError
        The template is for another grid, a tile has another size, or no tile of a map is there.
    ProcessingError
        Every tile is blank.
    """
    tiles = tiles_of_mosaic(mosaic, scan=scan, folder=tiles_folder, modalities=enface.modalities)
    tilemap = read_tilemap(template_path)
    check_template(tiles.numbers, tiles.tile_shape, tiles.grid, tilemap, str(template_path))
    tiles = tiles.as_placed_by(tilemap)
    x_mm, y_mm, z_mm = scan.scan_resolution_3d
    return stitch_maps(
        tiles,
        tilemap,
        modalities=enface.modalities,
        mask=mask,
        stitch=stitch,
        folder=stitched_folder,
        stem=f"mosaic_{mosaic.mosaic_id:03d}",
        geometry=Geometry(np.diag([x_mm, y_mm, z_mm, 1.0]), positioned=True),
        progress=progress,
    )


def stitch_maps(
    tiles: MosaicTiles,
    tilemap: TileMap,
    /,
    *,
    modalities: Sequence[str],
    mask: MaskSettings,
    stitch: StitchSettings,
    folder: Path,
    stem: str,
    geometry: Geometry,
    progress: Progress | None = None,
) -> MosaicResult:
    """Stitch maps of tiles at given places; what `stitch_mosaic` does, for any set of files.

    `geometry` tells where position (0, 0) lies and how large pixels are; the maps keep it.
    """
    report = progress or (lambda _fraction: None)
    present = [m for m in modalities if tiles.present(m)]
    if not present:
        tiles.require(modalities[0])
    positions = np.array([tilemap.place_of(n).position_px for n in tiles.numbers])
    canvas = canvas_from_positions(positions, tile_shape=tiles.tile_shape, subpixel=stitch.interpolation == "linear")
    geometry = geometry.from_voxel((*canvas.origin_px, 0))
    overlaps = overlap_widths(positions, tile_shape=tiles.tile_shape)
    weights = [tile_weight(tiles.tile_shape, overlap) for overlap in overlaps]
    missing = {m: tiles.missing(m) for m in present if tiles.missing(m)}

    # The mask comes from one map and applies to all: that map goes first, and is kept.
    mask_modality = mask.made_from if mask.made_from in present else ""
    # A picture of axes may take its brightness from other maps, so that maps of axes go last.
    first = mask_modality or present[0]
    order = sorted(present, key=lambda m: (m != first, bool(described(m).brightness_from), present.index(m)))
    outputs: dict[str, Path] = {}
    images: dict[str, NDArray[np.float32]] = {}
    tissue: NDArray[np.bool_] | None = None
    blank: tuple[int, ...] = ()
    seams: list[Seam] = []
    figures: dict[str, Any] = {"seam_ncc_of": {}}
    seen = next((m for m in order if described(m).intensity), None)
    shading = _shading(tiles, seen, canvas) if stitch.shading_correction and seen is not None else None
    _write_shading(shading, canvas, weights, folder / f"{stem}_shading.nii.gz", geometry)
    for done, modality in enumerate(order):
        image, raw, covered = _fused(tiles, modality, canvas, weights, shading=shading)
        if modality == first:
            blank = tuple(n for n, tile in raw.items() if is_blank(tile))
            if len(blank) == len(raw):
                raise ProcessingError(f"{tiles.label}: every tile is blank (constant or NaN in {modality})")
            seams = _seams(tiles, raw, positions, canvas)
            from opticstream.stages.mosaic._pictures import overlap_picture

            if len(tiles.numbers) > 1:
                picture = overlap_picture(tiles, positions, raw.get, seams)
                outputs["qc_overlap"] = write_jpeg(folder / f"{stem}_qc_overlap.jpg", picture)
            if mask_modality:
                tissue = tissue_mask(
                    image,
                    threshold=mask.threshold_for(tiles.illumination),
                    sigma_px=mask.sigma_px,
                    min_fraction=mask.min_fraction,
                )
                figures |= mask_figures(image, tissue)
                shown = mask_picture(modality, image, tissue)
                outputs["qc_mask"] = write_jpeg(folder / f"{stem}_qc_mask.jpg", shown)
                outputs |= _write_mask(tissue, folder, stem, geometry, stitch)
                tissue_fraction = float(tissue.sum() / max(covered.sum(), 1))
            else:
                # An earlier run's mask would be applied to the volumes as if it were this one's.
                for path in (*_mask_paths(folder, stem), folder / f"{stem}_qc_mask.jpg"):
                    path.unlink(missing_ok=True)
        else:
            agreement = seam_ncc_of_map(modality, raw, tiles.numbers, canvas.offset, seams)
            if np.isfinite(agreement):
                figures["seam_ncc_of"][modality] = round(agreement, 4)
        if tissue is not None:
            image = np.where(tissue, image, np.float32(np.nan))
        outputs |= _write_map(modality, image, folder, stem, geometry, stitch.formats)
        images[modality] = reduced(image, PREVIEW_PX)
        _write_zoom(folder / ZOOM_FOLDER / f"{stem}_{modality}.szi", modality, image, images, stitch)
        report((done + 1) / (len(order) + 1))
    for modality, small in images.items():
        thumbnail = folder / THUMBNAIL_FOLDER / f"{stem}_{modality}.jpg"
        if "jpeg" in stitch.formats:
            picture = picture_of_map(modality, small, brightness=_light(modality, images))
            outputs[f"{modality}_jpg"] = write_jpeg(folder / f"{stem}_{modality}.jpg", picture)
            write_bytes(thumbnail, small_picture(picture))
        else:  # an earlier run's would be shown as if it were this one's
            thumbnail.unlink(missing_ok=True)
    outputs["seams"] = _write_seams(seams, tiles, folder / f"{stem}_seams.json")
    report(1.0)
    nccs = [s.ncc for s in seams if np.isfinite(s.ncc)]
    figures["seam_ncc"] = round(float(np.median(nccs)), 4) if nccs else None
    figures["tissue_fraction"] = round(tissue_fraction, 4) if tissue is not None else None
    return MosaicResult(
        outputs,
        canvas.shape,
        missing,
        blank,
        float(np.median(nccs)) if nccs else float("nan"),
        tissue_fraction if tissue is not None else float("nan"),
        long_axis_notes([canvas.shape]),
        figures,
    )


def _light(modality: str, images: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32] | None:
    """Return the map that gives the brightness of a picture of axes."""
    return next((images[name] for name in described(modality).brightness_from if name in images), None)


def _write_zoom(
    path: Path,
    modality: str,
    image: NDArray[np.float32],
    images: Mapping[str, NDArray[np.float32]],
    stitch: StitchSettings,
) -> None:
    """Write the picture of a map at full size if the reduced one is smaller; else remove that of an earlier run."""
    if "jpeg" not in stitch.formats or images[modality].shape == image.shape:
        path.unlink(missing_ok=True)
        return
    from opticstream.stages.mosaic._zoom import write_zoom_of_map

    write_zoom_of_map(path, modality, image, small=images[modality], light=_light(modality, images))


def _fused(
    tiles: MosaicTiles,
    modality: str,
    canvas: Canvas,
    weights: Sequence[NDArray[np.float32]],
    *,
    shading: NDArray[np.float32] | None,
) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float32]], NDArray[np.bool_]]:
    """Return the mosaic of one modality, the tiles as they went in, and where any of them lies.

    With `shading`, the level of the field in dB, intensities are divided by it.
    """
    raw = {n: tile for n in tiles.numbers if (tile := tiles.read(n, modality)) is not None}
    known = described(modality)
    if shading is not None and known.intensity:
        off = shading if known.in_db else np.maximum(10 ** (shading / 10), 0.05).astype(np.float32)
        raw = {n: np.asarray(tile - off if known.in_db else tile / off, np.float32) for n, tile in raw.items()}
    total = MosaicSum(canvas, "axial" if known.is_axial else "scalar")
    for index, number in enumerate(tiles.numbers):
        if number in raw:
            total.add(index, raw[number], weights[index])
    return total.image(), raw, total.covered


def _shading(tiles: MosaicTiles, modality: str, canvas: Canvas) -> NDArray[np.float32]:
    """Return the level of the field that all tiles share, in dB, shape (x, y).

    It follows from the overlaps or, where these hold too little tissue, from the average of the tiles.
    """
    raw = {n: tile for n in tiles.numbers if (tile := tiles.read(n, modality)) is not None}
    in_db = described(modality).in_db
    nothing = np.full((1, 1), np.nan, np.float32)
    pairs, _ = neighbour_pairs(canvas.offset, tile_shape=tiles.tile_shape)
    stack = [raw.get(n, nothing) for n in tiles.numbers]
    found = flat_field_from_overlaps(stack, canvas.offset, pairs, in_db=in_db)
    if found is None:
        found = common_shading(list(raw.values()), multiplicative=not in_db)
    return found if in_db else np.asarray(10 * np.log10(np.maximum(found, 0.05)), np.float32)


def _write_shading(
    shading: NDArray[np.float32] | None,
    canvas: Canvas,
    weights: Sequence[NDArray[np.float32]],
    path: Path,
    geometry: Geometry,
) -> None:
    """Write what the shading makes of the mosaic, in dB, for the volumes; remove that of an earlier run."""
    if shading is None:
        path.unlink(missing_ok=True)
        return
    total = MosaicSum(canvas, "scalar")
    for index, weight in enumerate(weights):
        total.add(index, shading, weight)
    write_nifti(path, total.image(), geometry=geometry, description="shading of the tiles, dB")


def _seams(
    tiles: MosaicTiles, raw: dict[int, NDArray[np.float32]], positions: NDArray[np.float64], canvas: Canvas
) -> list[Seam]:
    pairs, _ = neighbour_pairs(positions, tile_shape=tiles.tile_shape)
    here = {index for index, n in enumerate(tiles.numbers) if n in raw}
    kept = np.array([p for p in pairs.tolist() if p[0] in here and p[1] in here], np.intp).reshape(-1, 2)
    nothing = np.full((1, 1), np.nan, np.float32)
    stack = [raw.get(n, nothing) for n in tiles.numbers]
    return seams_from_tiles(stack, canvas.offset, kept)


def _write_map(
    modality: str,
    image: NDArray[np.float32],
    folder: Path,
    stem: str,
    geometry: Geometry,
    formats: Sequence[str],
) -> dict[str, Path]:
    base = folder / f"{stem}_{modality}"
    outputs = {
        modality: write_nifti(
            base.with_name(base.name + ".nii.gz"),
            image,
            geometry=geometry,
            description=described(modality).mosaic_header,
        )
    }
    if "tiff" in formats:
        outputs[f"{modality}_tif"] = write_tiff(
            base.with_name(base.name + ".tif"), image, pixel_size_mm=geometry.voxel_size_mm[:2]
        )
    return outputs


def _write_mask(
    tissue: NDArray[np.bool_],
    folder: Path,
    stem: str,
    geometry: Geometry,
    stitch: StitchSettings,
) -> dict[str, Path]:
    path, picture_path = _mask_paths(folder, stem)
    outputs = {
        "mask": write_nifti(path, tissue.astype(np.uint8), geometry=geometry, description=described("mask").unit)
    }
    if "jpeg" in stitch.formats:
        picture = picture_of_map("mask", reduced(tissue, PREVIEW_PX))
        outputs["mask_jpg"] = write_jpeg(picture_path, picture)
    return outputs


def _mask_paths(folder: Path, stem: str) -> tuple[Path, Path]:
    return folder / f"{stem}_mask.nii.gz", folder / f"{stem}_mask.jpg"


def _write_seams(seams: Sequence[Seam], tiles: MosaicTiles, path: Path) -> Path:
    rows = [
        {
            "tiles": [tiles.numbers[s.pair[0]], tiles.numbers[s.pair[1]]],
            "ncc": None if np.isnan(s.ncc) else round(s.ncc, 4),
            "offset": None if np.isnan(s.offset) else round(s.offset, 4),
            "pixels": s.pixels,
        }
        for s in seams
    ]
    return write_text(path, json.dumps({"seams": rows}, indent=1) + "\n")

"""Positions of a mosaic's tiles: from their overlaps, or from a file; kept as the template of their illumination."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from opticstream.compute.stitching import (
    CheckedPositions,
    FieldGeometry,
    FilteredTiles,
    TilePositions,
    amplitude_from_db,
    empty_tiles,
    field_geometry,
    filtered_tiles,
    high_pass_for_overlap,
    positions_from_tiles,
    usual_overlap_px,
)
from opticstream.config import DeploymentSettings, ScanSettings
from opticstream.config.coordinates import CoordinateSettings, FijiCoordinates, FileCoordinates, NativeCoordinates
from opticstream.config.modality_names import FIRST_COMPARED
from opticstream.io.tileconfig import ConfiguredTile, read_tile_configuration, write_tile_configuration
from opticstream.io.tilemap import TileMap, TilePlace, read_tilemap, write_template
from opticstream.model.errors import InputError, ProcessingError
from opticstream.model.ids import MosaicId
from opticstream.model.modalities import described
from opticstream.stages.mosaic._tiles import MosaicTiles, check_placed, check_template, tiles_of_mosaic


@dataclass(frozen=True)
class Verdict:
    """How good the positions are.

    Attributes
    ----------
    grade : {"good", "doubtful", "stage only"}
        Good: most tiles with neighbours are held by links that agree. Stage only: no overlap shows texture.
    rms_px : float
        Root mean square residual of the clear links; NaN without any.
    worst_px : float
        Largest residual of a clear link.
    links, links_trusted : int
        Pairs of neighbours, and how many of them hold.
    tiles, tiles_by_stage : int
        Tiles, and how many lie where the stage model puts them for want of texture.
    islands : int
        Groups of tiles that hang together by links; more than one are tied by the stage model only.
    uncertainty_px : float
        Median standard error of a linked tile.
    jitter_px : tuple of float
        Standard deviation of the stage about its model, along x and y.
    turn_deg, bend_px : float
        Angle of the scan against the stage, and largest distortion inside a tile that shift, turn, shear and scale do
        not explain; NaN where the overlaps do not show it.
    pattern : str
        Turn and distortion that the overlaps show significantly, in words; empty where they show none.
    corrected_px : float
        Largest distortion that tiles are freed of before they are placed; 0 where they are taken as they are.
    """

    grade: Literal["good", "doubtful", "stage only"]
    rms_px: float
    worst_px: float
    links: int
    links_trusted: int
    tiles: int
    tiles_by_stage: int
    islands: int
    uncertainty_px: float
    jitter_px: tuple[float, float]
    turn_deg: float = float("nan")
    bend_px: float = float("nan")
    pattern: str = ""
    corrected_px: float = 0.0

    @property
    def sentence(self) -> str:
        """One line for people."""
        if self.grade == "stage only":
            return f"no overlap shows texture: all {self.tiles} tiles lie on the nominal grid"
        pattern = f"; {self.pattern}" if self.pattern else ""
        if self.corrected_px:
            pattern = f"; tiles are freed of a distortion of {self.corrected_px:.1f} px{pattern}"
        known = self.rms_px == self.rms_px
        residual = f"residual {self.rms_px:.2f} px RMS and {self.worst_px:.2f} px at worst, " if known else ""
        return (
            f"{self.grade}: {self.links_trusted} of {self.links} links hold, {residual}"
            f"{self.tiles_by_stage} of {self.tiles} tiles placed by the stage model"
            f"{pattern}"
        )


@dataclass(frozen=True)
class CoordinatesResult:
    """What `find_coordinates` made or found.

    Attributes
    ----------
    template : Path
        The coordinate template.
    tilemap : TileMap
        Its content.
    reused : bool
        The template was there already.
    missing : tuple of int
        Tiles without a file; they lie where the stage model puts them.
    verdict : Verdict, optional
        None for positions that were not measured here.
    outputs : dict
        Files by name.
    """

    template: Path
    tilemap: TileMap
    reused: bool
    missing: tuple[int, ...] = ()
    verdict: Verdict | None = None
    outputs: dict[str, Path] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        verdict = None if self.verdict is None else asdict(self.verdict) | {"sentence": self.verdict.sentence}
        return {
            "template": str(self.template),
            "reused": self.reused,
            "missing": list(self.missing),
            "verdict": verdict,
            "outputs": {name: str(path) for name, path in self.outputs.items()},
        }


def measured_positions(
    tiles: MosaicTiles, /, *, modalities: tuple[str, ...], margin_px: int
) -> tuple[TilePositions, tuple[int, ...]]:
    """Return the positions of tiles from their overlaps, and the numbers of tiles without a file.

    Parameters
    ----------
    tiles : MosaicTiles
        Files and nominal positions.
    modalities : tuple of str
        Maps to look at; their evidence is added. Levels in dB are made linear first.
    margin_px : int
        Largest error of the nominal displacement of two neighbours.

    Raises
    ------
    ProcessingError
        Every tile is blank.
    """
    maps = _Maps(tiles)
    return maps.positions(modalities, margin_px), maps.missing


class _Maps:
    """The maps of a mosaic's tiles, each read and filtered once."""

    def __init__(self, tiles: MosaicTiles) -> None:
        self.tiles = tiles
        self.lost: set[int] = set()
        self._filtered: dict[str, FilteredTiles] = {}
        self._sigma_px = high_pass_for_overlap(usual_overlap_px(tiles.nominal_px, tile_shape=tiles.tile_shape))

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the tiles without a file, in any map that was looked at."""
        return tuple(sorted(self.lost))

    def filtered(self, modality: str) -> FilteredTiles:
        """Return one map of all tiles, ready for correlation."""
        if modality not in self._filtered:
            image, lost = _images(self.tiles, modality, self._sigma_px)
            if self._filtered:
                # Where the first map is empty the others show no tissue either, perhaps a pattern of the instrument.
                image.values[empty_tiles(next(iter(self._filtered.values())))] = 0
            self._filtered[modality] = image
            self.lost.update(lost)
        return self._filtered[modality]

    def positions(self, modalities: tuple[str, ...], margin_px: int) -> TilePositions:
        """Return positions from the evidence of some maps together."""
        images = [self.filtered(modality) for modality in modalities]
        tiles = self.tiles
        if len(tiles.numbers) > 1 and not any(image.values.any() for image in images):
            raise ProcessingError(
                f"{tiles.label}: every tile is blank (constant or NaN in {', '.join(modalities)}), so positions cannot "
                'be measured; coordinates.method = "nominal" places tiles on the nominal grid'
            )
        return positions_from_tiles(images, tiles.nominal_px, margin_px=margin_px, line_parity=tiles.line_parity)


def _images(tiles: MosaicTiles, modality: str, sigma_px: float) -> tuple[FilteredTiles, list[int]]:
    """Return one map of all tiles, filtered, and the tiles that lack it.

    Intensities are compared as logarithms, maps without multiplicative speckle as they are.
    """
    tiles.require(modality)
    known = described(modality)
    stack, missing = [], []
    for number in tiles.numbers:
        image = tiles.read(number, modality)
        if image is None:
            missing.append(number)
            image = np.full(tiles.tile_shape, np.nan, np.float32)
        elif known.in_db:
            image = amplitude_from_db(image)
        stack.append(image)
    return filtered_tiles(stack, logarithm=known.intensity, sigma_px=sigma_px), missing


def _best_positions(
    tiles: MosaicTiles, modality: str, settings: CoordinateSettings
) -> tuple[TilePositions, FieldGeometry, tuple[int, ...], tuple[str, ...]]:
    """Return positions, the tiles' own geometry, tiles without a file, and the maps used.

    Further maps are read only where the first leaves links faint; each is used if it lowers the uncertainty of the
    positions.
    """
    maps = _Maps(tiles)
    used: tuple[str, ...] = (modality,)
    found = maps.positions(used, settings.margin_px)
    missing = maps.missing
    for further in settings.further_modalities:
        if further in used or not tiles.present(further) or not _leaves_faint(found, maps.filtered(modality)):
            continue
        richer = maps.positions((*used, further), settings.margin_px)
        if _median_uncertainty(richer) < _median_uncertainty(found):
            found, used = richer, (*used, further)
    geometry = field_geometry(maps.filtered(modality), found, tiles.nominal_px)
    return found, geometry, missing, used


def _freed_of_distortion(
    tiles: MosaicTiles, used: tuple[str, ...], found: TilePositions, geometry: FieldGeometry, margin_px: int
) -> tuple[TilePositions, FieldGeometry, MosaicTiles]:
    """Return positions and geometry of tiles that are freed of their distortion, where it is clear; and those tiles.

    Kept only if the overlaps agree better afterwards.
    """
    if not geometry.bent or geometry.distortion is None:
        return found, geometry, tiles
    freed = tiles.freed_of(geometry.distortion)
    maps = _Maps(freed)
    better = maps.positions(used, margin_px)
    left = field_geometry(maps.filtered(used[0]), better, tiles.nominal_px)
    if not left.bend_px < geometry.bend_px:
        return found, geometry, tiles
    return better, left, freed


def _leaves_faint(found: TilePositions, image: FilteredTiles) -> bool:
    """Return whether some links are faint, or most links between tiles with tissue are not clear."""
    links = found.links
    faint = (links.weight > 0.1) & ~links.clear
    tissue = ~empty_tiles(image)[links.pairs].any(axis=1)
    return bool(faint.any() or links.clear[tissue].sum() < 0.5 * tissue.sum())


def _median_uncertainty(found: TilePositions) -> float:
    return float(np.median(np.hypot(*found.uncertainty_px.T)))


def pattern_from_geometry(geometry: FieldGeometry, /) -> str:
    """Return in words which distortion of the tiles the overlaps show; empty where they show none.

    Examples
    --------
    >>> pattern_from_geometry(FieldGeometry(0.5, 0.02, 0.1, 0.05))
    'the scan is turned by 0.50 degrees against the stage'
    """
    told = []
    if geometry.turned:
        told.append(f"the scan is turned by {geometry.turn_deg:.2f} degrees against the stage")
    if geometry.bent:
        told.append(
            f"overlaps disagree in a pattern: the field of view is distorted by up to {geometry.bend_px:.1f} px"
        )
    return "; ".join(told)


def verdict_from_positions(
    found: TilePositions, /, geometry: FieldGeometry | None = None, *, corrected_px: float = 0.0
) -> Verdict:
    """Return the verdict on measured positions, with what the overlaps show of the tiles' `geometry` if it is known."""
    links = found.links
    trusted = links.weight > 0.5
    clear = links.clear
    residual = np.hypot(*links.residual_px[clear].T) if clear.any() else np.array([])
    rms = float(np.sqrt(np.mean(residual**2))) if residual.size else float("nan")
    worst = float(residual.max()) if residual.size else float("nan")
    linked = ~found.by_stage_only
    tiles = len(found.positions_px)
    uncertainty = float(np.median(found.uncertainty_px[linked])) if linked.any() else float("nan")
    grade: Literal["good", "doubtful", "stage only"]
    if not linked.any():
        grade = "stage only" if tiles > 1 else "good"
    elif linked.mean() >= 0.4 and rms <= 1.5 and trusted.sum() >= min(linked.sum() - 1, 3):
        grade = "good"
    else:
        grade = "doubtful"
    jitter = (float(found.jitter_px[0]), float(found.jitter_px[1]))
    islands = len(set(found.island[linked].tolist()))
    verdict = Verdict(
        grade, rms, worst, len(trusted), int(trusted.sum()), tiles, int((~linked).sum()), islands, uncertainty, jitter
    )
    if geometry is None:
        return verdict
    return replace(
        verdict,
        turn_deg=geometry.turn_deg,
        bend_px=geometry.bend_px,
        pattern=pattern_from_geometry(geometry),
        corrected_px=corrected_px,
    )


def find_coordinates(
    mosaic: MosaicId,
    /,
    *,
    scan: ScanSettings,
    settings: CoordinateSettings,
    tiles_folder: Path,
    template_path: Path,
    qc_folder: Path | None = None,
    modality: str = FIRST_COMPARED,
    deployment: DeploymentSettings | None = None,
) -> CoordinatesResult:
    """Find the positions of a mosaic's tiles and write the illumination's template, or return the one that is there.

    Parameters
    ----------
    mosaic : MosaicId
        The mosaic whose tiles are compared, normally of the first slice.
    scan : ScanSettings
        Grid, scan order, overlap, pixel size.
    settings : CoordinateSettings
        Method, margin, and whether an existing template is to be replaced.
    tiles_folder : Path
        Folder of the tiles' products.
    template_path : Path
        ``tilemap-{illumination}.j2``.
    qc_folder : Path, optional
        Folder for the quality picture and a Fiji tile configuration of the result; none are written without it.
    modality : str
        Map whose overlaps are compared; ``mip`` is taken where no tile has it.
    deployment : DeploymentSettings, optional
        How Fiji is started on this host, where it is the method; default: as the environment says.

    Raises
    ------
    EngineError, ConfigurationError
        Fiji failed, or cannot be started.
    InputError
        An existing template is for another grid; a tile has another size; no tile is there; the Fiji file has another
        number of tiles.
    ProcessingError
        Every tile is blank.
    """
    maps = tuple(dict.fromkeys((modality, "mip", *settings.further_modalities)))
    tiles = tiles_of_mosaic(mosaic, scan=scan, folder=tiles_folder, modalities=maps)
    if template_path.exists() and not settings.force_refresh_coordinates:
        tilemap = read_tilemap(template_path)
        check_template(tiles.numbers, tiles.tile_shape, tiles.grid, tilemap, str(template_path))
        return _known(template_path, tilemap, mosaic, qc_folder)
    if not tiles.present(modality) and tiles.present("mip"):
        modality = "mip"
    found: TilePositions | None = None
    verdict: Verdict | None = None
    missing = tiles.missing(modality)
    source: dict[str, Any] = {"method": settings.method, "mosaic_id": mosaic.mosaic_id}
    if settings.method == "nominal":
        positions, uncertainty = tiles.nominal_px, np.zeros_like(tiles.nominal_px)
        by_stage = np.ones(len(positions), bool)
    elif isinstance(settings, FileCoordinates):
        positions = _positions_from_file(settings.tile_configuration, tiles)
        uncertainty, by_stage = np.zeros_like(positions), np.zeros(len(positions), bool)
        source["tile_configuration"] = settings.tile_configuration.name
    elif isinstance(settings, FijiCoordinates):
        checked, missing = _checked_positions(tiles, mosaic, scan, settings, deployment, modality)
        positions, by_stage = checked.positions_px, checked.by_stage_only
        uncertainty = np.where(by_stage[:, np.newaxis], checked.jitter_px, 0.0)
        verdict = verdict_from_check(checked)
        source |= {"modalities": [modality], "verdict": _without_nan(asdict(verdict))}
    else:
        found, geometry, missing, used = _best_positions(tiles, modality, settings)
        corrected_px = 0.0
        if isinstance(settings, NativeCoordinates) and settings.correct_distortion:
            bend_px = geometry.bend_px
            found, geometry, tiles = _freed_of_distortion(tiles, used, found, geometry, settings.margin_px)
            corrected_px = bend_px if tiles.distortion is not None else 0.0
        positions, uncertainty, by_stage = found.positions_px, found.uncertainty_px, found.by_stage_only
        verdict = verdict_from_positions(found, geometry, corrected_px=corrected_px)
        source |= {"modalities": list(used), "margin_px": settings.margin_px, "verdict": _without_nan(asdict(verdict))}
    tilemap = tilemap_from_positions(tiles, positions, uncertainty, by_stage, source=source)
    outputs: dict[str, Path] = {}
    if qc_folder is not None:
        outputs |= write_coordinate_quality(
            tiles, tilemap, found, modality=modality, folder=qc_folder, stem=f"mosaic_{mosaic.mosaic_id:03d}"
        )
    # The template is written last, because later mosaics wait for it.
    outputs["template"] = write_template(template_path, tilemap)
    return CoordinatesResult(template_path, tilemap, False, missing, verdict, outputs)


def _known(template_path: Path, tilemap: TileMap, mosaic: MosaicId, qc_folder: Path | None) -> CoordinatesResult:
    """Return the result that an existing template belongs to.

    If this mosaic determined it, in an attempt that was interrupted later, these are all results of that attempt: the
    template is written last.
    """
    outputs = {"template": template_path}
    if tilemap.source.get("mosaic_id") != mosaic.mosaic_id:
        return CoordinatesResult(template_path, tilemap, reused=True, outputs=outputs)
    if qc_folder is not None:
        beside = {name: qc_folder / file for name, file in _quality_files(f"mosaic_{mosaic.mosaic_id:03d}").items()}
        outputs = {name: path for name, path in beside.items() if path.exists()} | outputs
    return CoordinatesResult(
        template_path, tilemap, True, verdict=_verdict_from_source(tilemap.source.get("verdict")), outputs=outputs
    )


def _verdict_from_source(values: Mapping[str, Any] | None) -> Verdict | None:
    if values is None:
        return None
    plain: dict[str, Any] = {name: float("nan") if value is None else value for name, value in values.items()}
    return Verdict(**{**plain, "jitter_px": tuple(plain["jitter_px"])})


def _quality_files(stem: str) -> dict[str, str]:
    return {
        "tile_configuration": f"{stem}_TileConfiguration.registered.txt",
        "qc_coordinates": f"{stem}_qc_coordinates.jpg",
    }


def tilemap_from_positions(
    tiles: MosaicTiles,
    positions_px: NDArray[np.float64],
    uncertainty_px: NDArray[np.float64],
    by_stage_only: NDArray[np.bool_],
    /,
    *,
    source: dict[str, Any],
) -> TileMap:
    """Return the tile map of positions, moved so that the smallest coordinates are 0 and rounded to 1/1000 px."""
    moved = np.round(positions_px - positions_px.min(axis=0), 3) + 0.0
    uncertain = np.round(uncertainty_px, 3) + 0.0
    places = tuple(
        TilePlace(n, (float(p[0]), float(p[1])), (float(u[0]), float(u[1])), bool(s))
        for n, p, u, s in zip(tiles.numbers, moved, uncertain, by_stage_only, strict=True)
    )
    terms = tiles.distortion.terms_px if tiles.distortion is not None else ()
    return TileMap(
        tiles.illumination, tiles.tile_shape, tiles.grid, places, source, tuple(round(term, 4) for term in terms)
    )


def write_coordinate_quality(
    tiles: MosaicTiles, tilemap: TileMap, found: TilePositions | None, /, *, modality: str, folder: Path, stem: str
) -> dict[str, Path]:
    """Write the quality picture and a Fiji tile configuration; return their paths."""
    outputs = {}
    names = _quality_files(stem)
    present = tiles.present(modality)
    configured = [
        ConfiguredTile(os.path.relpath(present[p.tile], folder), p.position_px)
        for p in tilemap.places
        if p.tile in present
    ]
    if configured:
        outputs["tile_configuration"] = write_tile_configuration(folder / names["tile_configuration"], configured)
    if found is not None and len(tiles.numbers) > 1:
        from opticstream.stages.mosaic._pictures import write_links_picture

        outputs["qc_coordinates"] = write_links_picture(
            folder / names["qc_coordinates"], tiles, found, modality=modality
        )
    return outputs


def _checked_positions(
    tiles: MosaicTiles,
    mosaic: MosaicId,
    scan: ScanSettings,
    settings: FijiCoordinates,
    deployment: DeploymentSettings | None,
    modality: str,
) -> tuple[CheckedPositions, tuple[int, ...]]:
    """Return Fiji's positions, held against the stage, and the numbers of the tiles without a file."""
    from opticstream.engines import fiji_program
    from opticstream.stages.mosaic._fiji_coordinates import blank_tiles, positions_by_fiji

    program = fiji_program(deployment or DeploymentSettings())
    maps = _Maps(tiles)
    blank = blank_tiles(maps.filtered(modality), maps.missing, tiles)
    checked = positions_by_fiji(
        tiles, mosaic, scan=scan, settings=settings, program=program, modality=modality, blank=blank
    )
    return checked, maps.missing


def verdict_from_check(checked: CheckedPositions, /) -> Verdict:
    """Return the verdict on positions of another program, which were held against the stage.

    That program does not say how well its links agree, so residuals and uncertainties are not known (NaN).
    """
    tiles, linked = len(checked.positions_px), ~checked.by_stage_only
    grade: Literal["good", "doubtful", "stage only"]
    if not linked.any():
        grade = "stage only"
    else:
        grade = "good" if linked.mean() >= 0.4 else "doubtful"
    islands = len(set(checked.island[linked].tolist()))
    unknown = float("nan")
    return Verdict(
        grade,
        unknown,
        unknown,
        len(checked.pairs),
        int(checked.plausible.sum()),
        tiles,
        int((~linked).sum()),
        islands,
        unknown,
        (float(checked.jitter_px[0]), float(checked.jitter_px[1])),
    )


def _positions_from_file(path: Path, tiles: MosaicTiles) -> NDArray[np.float64]:
    """Return positions from a tile configuration: by the numbers in the names, or else in the order of the scan."""
    configured = read_tile_configuration(path)
    if len(configured) != len(tiles.numbers):
        raise InputError(
            f"{path} lists {len(configured)} tiles, but the grid has {tiles.grid[0]} x {tiles.grid[1]} = "
            f"{len(tiles.numbers)} (processing.coordinates.tile_configuration)"
        )
    check_placed([(tile.name, tile.position_px) for tile in configured], str(path))
    numbers = numbers_in_names([tile.name for tile in configured], tiles.numbers)
    given = np.array([tile.position_px[:2] for tile in configured], float)
    if numbers is not None:
        return given[np.argsort(numbers)]
    away = np.abs(given - tiles.nominal_px - np.median(given - tiles.nominal_px, axis=0))
    if (away > np.asarray(tiles.tile_shape) / 2).any():
        # Fiji lists tiles row by row, whatever the order of the scan.
        worst = configured[int(np.argmax((away / tiles.tile_shape).max(axis=1)))].name
        raise InputError(
            f"{path}: the names of its tiles have no numbers from {tiles.numbers[0]} to {tiles.numbers[-1]}, and it "
            f"does not list them in the order of the scan: {worst} lies elsewhere; put the number of each tile into "
            "its name (processing.coordinates.tile_configuration)"
        )
    return given


def numbers_in_names(names: Sequence[str], numbers: Sequence[int], /) -> list[int] | None:
    """Return the number of the tile that each name stands for; None where the names do not tell.

    It is the number after ``image_``, or else the last one that counts the tiles, from their first number, or from 0.

    Examples
    --------
    >>> numbers_in_names(["slice_07_t2.tif", "slice_07_t0.tif", "slice_07_t1.tif"], (1, 2, 3))
    [3, 1, 2]
    >>> numbers_in_names(["left.tif", "right.tif"], (1, 2)) is None
    True
    """
    plain = [re.split(r"[\\/]", name)[-1] for name in names]
    found = [[int(number) for number in re.findall(r"image_(\d+)", name)[:1]] for name in plain]
    if all(found) and sorted(one for one, *_ in found) == sorted(numbers):
        return [one for one, *_ in found]
    found = [[int(number) for number in re.findall(r"\d+", name)] for name in plain]
    for column in range(1, min(map(len, found)) + 1):
        counted = [one[-column] for one in found]
        for first in (min(numbers), 0):
            shifted = [one - first + min(numbers) for one in counted]
            if sorted(shifted) == sorted(numbers):
                return shifted
    return None


def _without_nan(values: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return None if value != value else round(value, 4)
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return value

    return {key: plain(value) for key, value in values.items()}

"""`stitch coords|mosaic|focus|volume`: find tile positions and stitch mosaics and volumes, without a server.

SOURCE is a project file, or a Fiji TileConfiguration file that lists NIfTI, TIFF, Zarr or NumPy tiles.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opticstream.cli.console import JsonOption, err, errors_shown, escaped, out, print_json, text_column
from opticstream.cli.run import SetOption, config_of
from opticstream.model.errors import ConfigurationError
from opticstream.model.ids import MosaicId

if TYPE_CHECKING:
    from opticstream.io.tilemap import TileMap
    from opticstream.stages.mosaic import CoordinatesResult, FocusResult, MosaicGeometry, MosaicTiles
    from opticstream.stages.project import MosaicStages

app = typer.Typer(help="Find the positions of tiles, and stitch mosaics and volumes from them.", no_args_is_help=True)

SourceArgument = Annotated[
    Path,
    typer.Argument(help="Project file (.toml), or a TileConfiguration file (.txt).", show_default=False),
]
MosaicOption = Annotated[
    int, typer.Option("--mosaic", "-m", min=1, help="Number of the mosaic, if SOURCE is a project.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for the results; default: the project's, or beside the file.")
]
MarginOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Largest error of the nominal positions to search, in pixels; default: the project's, or 16."
    ),
]
LinearOption = Annotated[bool, typer.Option("--linear", help="Interpolate at fractional positions.")]
PixelOption = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        "--pixel",
        help="Pixel size x y z in mm, for a TileConfiguration; default: that in the tiles, else 0.01 0.01 0.0025.",
    ),
]


class Positions(StrEnum):
    """Where the positions of a TileConfiguration's tiles come from."""

    MEASURE = "measure"
    KEEP = "keep"


PositionsOption = Annotated[
    Positions,
    typer.Option(help="For a TileConfiguration: measure the positions from the overlaps, or keep those in the file."),
]
DbOption = Annotated[bool, typer.Option("--db", help="The tiles of a TileConfiguration are levels in decibels.")]


def _is_project(source: Path) -> bool:
    return source.suffix.lower() == ".toml"


@contextlib.contextmanager
def _progress(label: str, as_json: bool) -> Iterator[Callable[[float], None]]:
    """Yield a function that shows the fraction done: a bar on a terminal, nothing elsewhere."""
    if as_json or not err.is_terminal:
        yield lambda _fraction: None
        return
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    with Progress(text_column(), BarColumn(), TimeRemainingColumn(), console=err, transient=True) as bar:
        task = bar.add_task(escaped(label), total=1.0)
        yield lambda fraction: bar.update(task, completed=fraction)


def _stages(source: Path, options: list[str], mosaic: int, out_folder: Path | None) -> MosaicStages:
    """Return the stages of a project's mosaic, with results in a folder of their own if one is given."""
    from opticstream.io.paths import ProjectPaths
    from opticstream.stages.project import MosaicStages

    config = config_of(str(source), options)
    return MosaicStages(config, ProjectPaths.of(config), MosaicId(mosaic), out_folder)


def _show(result: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    for line in lines:
        out.print(line)
    for name, path in result.get("outputs", {}).items():
        out.print(f"  {name}: {path}")


def _missing_line(missing: dict[str, list[int]] | list[int]) -> list[str]:
    tiles = sorted({t for group in missing.values() for t in group}) if isinstance(missing, dict) else list(missing)
    return [f"missing tiles, left blank: {', '.join(map(str, tiles))}"] if tiles else []


def _verdict_line(told: dict[str, Any]) -> list[str]:
    return [told["verdict"]] if told["verdict"] else []


def _told(coordinates: CoordinatesResult) -> dict[str, Any]:
    """Return what to report on positions: nothing if an existing template was used."""
    if coordinates.reused:
        return {"outputs": {}, "verdict": None}
    outputs = {name: str(path) for name, path in coordinates.outputs.items()}
    return {"outputs": outputs, "verdict": coordinates.verdict.sentence if coordinates.verdict else None}


def _with_told(told: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """Return what a stage made, with the report on the positions before it and the files of both."""
    return told | made | {"outputs": told["outputs"] | made["outputs"]}


def _focus_line(focus: FocusResult) -> str:
    if focus.reused:
        return f"kept the existing focus map ({focus.path})"
    if math.isnan(focus.residual_after_px):  # it was not measured
        return f"A-lines are not shifted: {focus.note}"
    found = f"depth of focus {focus.constant_px:.0f} px (confidence {focus.confidence:.2f})"
    return (
        f"focus map: surfaces differ by {focus.residual_before_px:.2f} px in overlaps before the correction, by "
        f"{focus.residual_after_px:.2f} px after it; {focus.note or found}"
    )


def _configured(
    source: Path, folder: Path, positions: Positions, margin: int | None, modality: str, *, volumes: bool = False
) -> tuple[MosaicTiles, TileMap, dict[str, Any]]:
    """Return the tiles of a configuration file, their positions, and the report on them."""
    import numpy as np

    from opticstream.config.coordinates import NativeCoordinates
    from opticstream.stages.mosaic import (
        measured_positions,
        tilemap_from_positions,
        tiles_from_configuration,
        verdict_from_positions,
        write_coordinate_quality,
    )

    tiles = tiles_from_configuration(source, modality=modality, one_depth=volumes)
    told: dict[str, Any] = {"missing": list(tiles.missing(modality)), "outputs": {}, "verdict": None}
    nowhere = np.zeros(len(tiles.numbers), bool)
    if positions is Positions.KEEP:
        zero = np.zeros_like(tiles.nominal_px)
        return tiles, tilemap_from_positions(tiles, tiles.nominal_px, zero, nowhere, source={"file": source.name}), told
    margin_px = margin or NativeCoordinates().margin_px
    found, _ = measured_positions(tiles, modalities=(modality,), margin_px=margin_px)
    verdict = verdict_from_positions(found)
    tilemap = tilemap_from_positions(
        tiles, found.positions_px, found.uncertainty_px, found.by_stage_only, source={"file": source.name}
    )
    outputs = write_coordinate_quality(tiles, tilemap, found, modality=modality, folder=folder, stem=source.stem)
    told["verdict"] = verdict.sentence
    told["outputs"] = {name: str(path) for name, path in outputs.items()}
    return tiles, tilemap, told


def _place(
    tiles: MosaicTiles, tilemap: TileMap, modality: str, pixel_mm: tuple[float, float, float] | None
) -> MosaicGeometry:
    """Return the geometry of the mosaic of a configuration file."""
    import numpy as np

    from opticstream.stages.mosaic import geometry_of_tiles

    if pixel_mm is not None and not all(math.isfinite(size) and size > 0 for size in pixel_mm):
        raise ConfigurationError(f"--pixel {' '.join(map(str, pixel_mm))}: expected three positive numbers, in mm")
    positions = np.array([tilemap.place_of(n).position_px for n in tiles.numbers])
    return geometry_of_tiles(tiles, modality, positions, voxel_size_mm=pixel_mm)


@app.command("coords")
def coords(
    source: SourceArgument,
    mosaic: MosaicOption = 1,
    out_folder: OutOption = None,
    margin: MarginOption = None,
    in_db: DbOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing template of the project.")] = False,
    options: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Find the positions of tiles from their overlaps; write a template, a Fiji configuration and a picture."""
    with errors_shown(), _progress("coordinates", as_json):
        if _is_project(source):
            stages = _stages(source, options, mosaic, out_folder)
            made = stages.find_coordinates(margin_px=margin, refresh=force)
            result = made.as_dict()
            verdict = "kept the existing template" if made.reused else ""
            verdict = made.verdict.sentence if made.verdict else verdict
        else:
            from opticstream.io.tilemap import write_template

            folder = out_folder or source.parent
            _, tilemap, result = _configured(source, folder, Positions.MEASURE, margin, "aip" if in_db else "image")
            template = write_template(folder / f"{source.stem}.tilemap.j2", tilemap)
            result["outputs"]["template"] = str(template)
            verdict = result["verdict"]
    _show(result, [verdict, *_missing_line(result["missing"])], as_json)


@app.command("mosaic")
def mosaic_command(
    source: SourceArgument,
    mosaic: MosaicOption = 1,
    out_folder: OutOption = None,
    positions: PositionsOption = Positions.MEASURE,
    margin: MarginOption = None,
    pixel_mm: PixelOption = None,
    in_db: DbOption = False,
    shading: Annotated[bool, typer.Option("--shading", help="Correct the shading that all tiles share.")] = False,
    linear: LinearOption = False,
    options: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Stitch the maps of a mosaic. A project's template is made first if it does not exist."""
    found: list[str] = []
    with errors_shown(), _progress("mosaic", as_json) as progress:
        if _is_project(source):
            stages = _stages(source, options, mosaic, out_folder)
            coordinates = stages.find_coordinates(margin_px=margin)
            stitch = stages.config.processing.stitch.model_copy(update=_stitch_choices(shading, linear))
            made = stages.stitch_mosaic(settings=stitch, progress=progress)
            told = _told(coordinates)
        else:
            from opticstream.config.processing import MaskSettings, StitchSettings
            from opticstream.stages.mosaic import stitch_maps

            folder = out_folder or source.parent
            modality = "aip" if in_db else "image"
            tiles, tilemap, told = _configured(source, folder, positions, margin, modality)
            place = _place(tiles, tilemap, modality, pixel_mm)
            found = [place.sentence, *place.notes]
            made = stitch_maps(
                tiles,
                tilemap,
                modalities=(modality,),
                mask=MaskSettings(made_from=""),
                stitch=StitchSettings().model_copy(update=_stitch_choices(shading, linear)),
                folder=folder,
                stem=source.stem,
                geometry=place.geometry,
                progress=progress,
            )
        result = _with_told(told, made.as_dict())
    lines = [*found, *made.notes, f"{made.shape[0]} x {made.shape[1]} px, seams correlate {made.seam_ncc:.2f}"]
    if not math.isnan(made.tissue_fraction):
        lines.append(f"the mask keeps {made.tissue_fraction:.0%} of the pixels (see processing.mask.threshold_db)")
    if made.blank:
        lines.append(f"tiles without any content: {', '.join(map(str, made.blank))}")
    _show(result, [*_verdict_line(told), *lines, *_missing_line(result["missing"])], as_json)


def _stitch_choices(shading: bool, linear: bool) -> dict[str, Any]:
    return ({"shading_correction": True} if shading else {}) | ({"interpolation": "linear"} if linear else {})


@app.command("focus")
def focus_command(
    source: Annotated[Path, typer.Argument(help="Project file (.toml).", show_default=False)],
    mosaic: MosaicOption = 1,
    out_folder: OutOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing focus map.")] = False,
    options: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Find the depth shift of each A-line from the surfaces of a project's tiles; write a focus map and a picture.

    The project's template is made first if it does not exist.
    """
    with errors_shown(), _progress("focus", as_json):
        if not _is_project(source):
            raise ConfigurationError(f"{source}: expected a project file (.toml)")
        stages = _stages(source, options, mosaic, out_folder)
        told = _told(stages.find_coordinates())
        made = stages.find_focus(refresh=force)
        result = _with_told(told, made.as_dict())
    _show(result, [*_verdict_line(told), _focus_line(made)], as_json)


@app.command("volume")
def volume(
    source: SourceArgument,
    mosaic: MosaicOption = 1,
    out_folder: OutOption = None,
    positions: PositionsOption = Positions.MEASURE,
    margin: MarginOption = None,
    pixel_mm: PixelOption = None,
    modality: Annotated[
        str, typer.Option(help="For a TileConfiguration: kind of volume; O3D is blended as axis angles.")
    ] = "dBI",
    memory_gb: Annotated[float | None, typer.Option(min=0.01, help="Memory to use at most, in GB.")] = None,
    version: Annotated[str | None, typer.Option("--ngff", help="OME-NGFF version: 0.5 or 0.4.")] = None,
    linear: LinearOption = False,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to distribute the blocks over.")] = None,
    options: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Stitch the volumes of a mosaic into OME-Zarr within a memory limit; the next run resumes an interrupted one.

    A project's template and focus map are made first if they do not exist; its mask comes from `stitch mosaic`.
    """
    from opticstream.config.processing import VolumeSettings
    from opticstream.stages.volume import dask_executor, stitch_modality

    lines: list[str] = []
    with errors_shown(), _progress("volume", as_json) as progress:
        if version not in (None, "0.4", "0.5"):
            raise ConfigurationError(f"--ngff {version}: expected 0.4 or 0.5")
        executor = dask_executor(dask) if dask else None
        update: dict[str, Any] = {"memory_budget_gb": memory_gb} if memory_gb else {}
        update |= {"format": version} if version else {}
        update |= {"interpolation": "linear"} if linear else {}
        if _is_project(source):
            stages = _stages(source, options, mosaic, out_folder)
            settings = stages.config.processing.volume.model_copy(update=update)
            coordinates, focus = stages.find_coordinates(margin_px=margin), stages.find_focus()
            mask = stages.mask if settings.apply_mask and stages.mask.exists() else None
            made = stages.stitch_volume(settings=settings, progress=progress, executor=executor)
            told = _told(coordinates) | {"focus": focus.as_dict(), "mask": None if mask is None else str(mask)}
            told["outputs"] |= {} if focus.reused else told["focus"]["outputs"]
            lines = [_focus_line(focus)]
            if settings.apply_mask and mask is None:
                lines.append(f"no mask is applied: {stages.mask} does not exist; `opticstream stitch mosaic` makes it")
        else:
            folder = out_folder or source.parent
            tiles, tilemap, told = _configured(source, folder, positions, margin, modality, volumes=True)
            place = _place(tiles, tilemap, modality, pixel_mm)
            lines = [place.sentence, *place.notes]
            made = stitch_modality(
                tiles,
                tilemap,
                modality,
                folder / f"{source.stem}_{modality}.ome.zarr",
                voxel_size_mm=place.voxel_size_mm,
                geometry=place.geometry,
                settings=VolumeSettings().model_copy(update=update),
                progress=progress,
                executor=executor,
            )
        result = _with_told(told, made.as_dict())
    lines = [*_verdict_line(told), *lines, *made.notes, f"{' x '.join(map(str, made.shape))} voxels"]
    if made.resumed_blocks:
        lines.append(f"kept {made.resumed_blocks} shards of an earlier run")
    if made.superseded:
        lines.append("started from scratch: removed an unfinished run that had other inputs or settings")
    _show(result, [*lines, *_missing_line(result["missing"])], as_json)

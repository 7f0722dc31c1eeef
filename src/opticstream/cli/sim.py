"""`sim make|rig|show` and `validate`: the phantom, the virtual rig, and the errors of results against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from opticstream.cli.console import (
    DONE,
    FAILED,
    JsonOption,
    ProjectArgument,
    err,
    errors_shown,
    out,
    print_json,
    styled,
)
from opticstream.config import DeploymentSettings, ProjectConfig, load_project
from opticstream.model.errors import ConfigurationError

app = typer.Typer(
    help="Simulate a microscope: a phantom with a known truth, scanned by a virtual rig.", no_args_is_help=True
)

_PHANTOM = "phantom.json"


@app.command("make")
def make(
    folder: Annotated[Path, typer.Argument(help="Folder for project.toml and phantom.json.")],
    preset: Annotated[str, typer.Option(help="Kind of phantom: demo, hard, optic-tract or full-size.")] = "demo",
    seed: Annotated[
        int, typer.Option(help="Seed of the random numbers; the same seed gives the same phantom.", min=0)
    ] = 1,
    slices: Annotated[int, typer.Option(help="Number of slices.", min=1)] = 2,
    directions: Annotated[
        Path | None, typer.Option(help="Folder of fibre direction images, for the preset optic-tract.")
    ] = None,
    channels: Annotated[int, typer.Option(help="Camera channels: 2, or 1 without polarization.", min=1, max=2)] = 2,
    small: Annotated[bool, typer.Option("--small", help="Smaller and fewer tiles, for the preset demo.")] = False,
) -> None:
    """Write the project file and the phantom file of a preset; edit them, then start the rig."""
    from opticstream.sim.demo import PHANTOM_FILE, PROJECT_FILE
    from opticstream.sim.presets import write_preset

    with errors_shown():
        for name in (PROJECT_FILE, PHANTOM_FILE):
            if (folder / name).exists():
                raise ConfigurationError(f"{folder / name}: already exists and was not changed; choose another folder")
        project, phantom = write_preset(
            preset, folder, seed=seed, slices=slices, directions=directions, channels=channels, small=small
        )
    out.print(f"wrote {project} and {phantom}; now: opticstream sim rig {project} {folder / 'raw'}")


@app.command("rig")
def rig(
    project: ProjectArgument,
    raw: Annotated[Path, typer.Argument(help="Folder to write the raw tiles to.")],
    phantom: Annotated[
        Path | None, typer.Option(help="Phantom file (JSON or TOML); default: phantom.json beside the project file.")
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Folder for the truth, outside RAW and the project; default: truth beside the project file."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Speed relative to the camera's line rate, e.g. 1x or 0.2x; default: as fast as possible."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that compute tiles in advance.", min=1)] = 1,
    misbehave: Annotated[
        list[str] | None,
        typer.Option(
            help="Fault to simulate: KIND:TILE[:SECONDS]. KIND is truncate, duplicate, skip, reorder, rewrite or "
            "stall; TILE counts from 1 over all mosaics. May be repeated."
        ),
    ] = None,
    calibration: Annotated[bool, typer.Option(help="Write the calibration files that the project names.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Write the raw tiles of a phantom, file by file, as a microscope would; a second start continues the first."""
    from opticstream.sim.rig import Misbehaviour, TileWritten, VirtualRig
    from opticstream.sim.settings import load_phantom

    def tell(event: TileWritten) -> None:
        if as_json:
            print_json({"tile": event.tile.key, "file": str(event.path), "number": event.number, "kept": event.kept})
        else:
            done = f"{event.number}/{event.total}"
            out.print(f"{done:>9}  {event.path.name}{'  (already complete)' if event.kept else ''}")

    with errors_shown():
        config = load_project(project, path_map=DeploymentSettings().path_map)
        home = Path(project).absolute().parent
        microscope = VirtualRig(
            config,
            load_phantom(phantom or home / _PHANTOM),
            raw,
            truth or home / "truth",
            calibration_folder=home if calibration else None,
            rate=None if rate is None else _rate(rate),
            workers=workers,
            misbehaviours=tuple(Misbehaviour.parse(text) for text in misbehave or []),
        )
        if bare := microscope.simulator.bare_mosaics():
            named = ", ".join(f"mosaic {mosaic.mosaic_id}" for mosaic in bare)
            err.print(
                f"no tissue in {named}: sample.outline of the phantom leaves "
                'out all that these tiles see (outline = "full" leaves out nothing)'
            )
        microscope.run(progress=tell)


@app.command("show")
def show(
    project: ProjectArgument,
    folder: Annotated[Path, typer.Argument(help="Folder for the pictures.")],
    phantom: Annotated[
        Path | None, typer.Option(help="Phantom file (JSON or TOML); default: phantom.json beside the project file.")
    ] = None,
    tile: Annotated[
        str | None, typer.Option(help="Tile to show, as MOSAIC/TILE, e.g. 2/13; default: one in the middle.")
    ] = None,
) -> None:
    """Draw the phantom: the truth of a mosaic, and one tile as the instrument sees it."""
    from opticstream.model.ids import TileId
    from opticstream.sim.phantom_pictures import write_phantom_pictures
    from opticstream.sim.settings import load_phantom
    from opticstream.sim.tiles import TileSimulator

    with errors_shown():
        config = load_project(project, path_map=DeploymentSettings().path_map)
        simulator = TileSimulator(config, load_phantom(phantom or Path(project).absolute().parent / _PHANTOM))
        chosen = None
        if tile is not None:
            try:
                mosaic_id, _, tile_id = tile.partition("/")
                chosen = TileId(int(mosaic_id), int(tile_id))
                simulator.layout.grid_position(chosen)
            except ValueError as error:
                raise ConfigurationError(
                    f"--tile {tile!r}: expected MOSAIC/TILE, a tile of the project ({error})"
                ) from None
        for path in write_phantom_pictures(simulator, folder, tile=chosen):
            out.print(str(path))


def _rate(text: str) -> float:
    try:
        rate = float(text.strip().removesuffix("x"))
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise ConfigurationError(f"--rate {text!r}: expected a positive number such as 1x or 0.2x")
    return rate


def validate(
    project: ProjectArgument,
    truth: Annotated[
        Path | None, typer.Option(help="Folder of the truth; default: truth beside the project file.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for error maps; default: validation in the project's folder.")
    ] = None,
    bound: Annotated[
        list[str] | None,
        typer.Option(help="QUANTITY=VALUE: limit of a median error, in place of the demo's; may be repeated."),
    ] = None,
    details: Annotated[bool, typer.Option(help="Also show regions, mosaics and slices.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the results of a project with the phantom's truth.

    The exit status is 1 if an error exceeds its limit or if outputs are missing.
    """
    with errors_shown():
        if not project.endswith(".toml"):
            raise ConfigurationError(f"{project}: expected a project file (.toml); the truth is looked for beside it")
        where = truth or Path(project).absolute().parent / "truth"
        passed = show_validation(
            Path(project), where, as_json=as_json, pictures=pictures, details=details, bounds=_bounds(bound)
        )
    raise typer.Exit(DONE if passed else FAILED)


def _bounds(texts: list[str] | None) -> dict[str, float]:
    from opticstream.sim.validate import DEMO_BOUNDS, UNITS

    bounds = dict(DEMO_BOUNDS)
    for text in texts or []:
        name, _, value = text.partition("=")
        try:
            if name not in UNITS:
                raise ValueError
            bounds[name] = float(value)
        except ValueError:
            raise ConfigurationError(
                f"--bound {text!r}: expected QUANTITY=VALUE with QUANTITY one of {', '.join(UNITS)}"
            ) from None
    return bounds


def show_validation(
    project_file: Path,
    truth: Path,
    /,
    *,
    as_json: bool = False,
    pictures: Path | None = None,
    details: bool = False,
    bounds: dict[str, float] | None = None,
) -> bool:
    """Validate a project, print the table (or JSON), write the error maps, and return whether it passed."""
    from opticstream.sim.validate import DEMO_BOUNDS, validate_project
    from opticstream.sim.validate_pictures import write_error_pictures

    config: ProjectConfig = load_project(project_file, path_map=DeploymentSettings().path_map)
    report = validate_project(config, truth, bounds=DEMO_BOUNDS if bounds is None else bounds)
    made = write_error_pictures(report, pictures or config.base_path / "validation")
    if as_json:
        print_json({**report.to_json(), "pictures": [str(path) for path in made]})
        return report.passed

    from rich.table import Table
    from rich.text import Text

    table = Table(title="errors against the truth", title_justify="left")
    for name in ("quantity", "unit", "median", "95 %", "worst", "bound", ""):
        table.add_column(name, justify="left" if name in ("quantity", "unit", "") else "right")
    if details:
        table.add_column("region")
        table.add_column("item")
        table.add_column("values", justify="right")
    for figure in report.figures if details else report.summary:
        verdict: str | Text = ""
        if figure.passed is not None:
            verdict = styled("ok", "green") if figure.passed else styled("missed", "bold red")
        row: list[str | Text] = [figure.quantity, figure.unit]
        row += [f"{v:.3g}" for v in (figure.median, figure.p95, figure.worst)]
        row += ["" if figure.bound is None else f"{figure.bound:g}", verdict]
        table.add_row(*row, *([figure.region, figure.item, str(figure.count)] if details else []))
    out.print(table)
    for problem in report.problems:
        err.print(styled("missing or unusable:", "bold red"), str(problem))
    out.print(styled("all bounds met", "bold green") if report.passed else styled("validation failed", "bold red"))
    return report.passed

"""`engines`: look whether MATLAB, Fiji and a graphics card can do their work here, and compare results with our own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from opticstream.cli.console import DONE, FAILED, JsonOption, errors_shown, out, print_json, styled
from opticstream.cli.tile import ConfigOption, _tile_of
from opticstream.config import DeploymentSettings, load_project

app = typer.Typer(help="MATLAB or Octave, Fiji, a graphics card (docs/how-to/matlab.md, docs/how-to/cuda.md).")

_STYLES = {"ok": "green", "absent": "yellow", "problem": "bold red"}


@app.command("check")
def check(
    project: Annotated[
        Path | None,
        typer.Argument(help="Project file (TOML): look at what it uses. Default: all that this host has."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start MATLAB and Fiji, and look whether they have the functions that are asked of them; try the graphics card.

    The functions of a lab (processing.engine.functions) must be found, and take and return as many arguments as
    docs/how-to/matlab.md says. The exit status is 1 if there is a problem.
    """
    from opticstream.config.coordinates import FijiCoordinates
    from opticstream.config.engines import CudaEngine, MatlabEngine
    from opticstream.engines import EngineCheck, check_engines

    found: list[EngineCheck] = []
    with errors_shown():
        deployment = DeploymentSettings()
        matlab, cuda, fiji = None, None, False
        if project is not None:
            processing = load_project(project, path_map=deployment.path_map).processing
            matlab = processing.engine if isinstance(processing.engine, MatlabEngine) else None
            cuda = processing.engine if isinstance(processing.engine, CudaEngine) else None
            fiji = isinstance(processing.coordinates, FijiCoordinates)
        for one in check_engines(deployment, matlab=matlab, fiji=fiji, cuda=cuda, is_project=project is not None):
            found.append(one)
            if not as_json:
                out.print(styled(f"{one.result:8}", _STYLES[one.result]), f"{one.engine}: {one.message}")
    if as_json:
        print_json([{"engine": one.engine, "result": one.result, "message": one.message} for one in found])
    elif not found:
        out.print("the project uses our compiled code only; there is nothing to check")
    raise typer.Exit(FAILED if any(one.result == "problem" for one in found) else DONE)


@app.command("compare")
def compare(
    file: Annotated[Path, typer.Argument(metavar="TILE", help="Raw tile, which is never changed.", show_default=False)],
    config: ConfigOption,
    name: Annotated[
        str | None, typer.Option(help="The tile that the file holds, e.g. mosaic-001/tile-0001, whatever its name.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Keep both results in this folder, in native/ and matlab/ or cuda/."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Process one tile by our compiled code and by MATLAB, or a graphics card, and show how far each product differs.

    The other engine is that of the project, or MATLAB with our own functions. The exit status is 1 if more than 0.1 %
    of the values of a product differ by more than the limit, which is 0.01 dB, 0.01 degrees (10 dB above the noise),
    1 px for the surface, and 1e-4 of the largest value for complex tiles.
    """
    from rich.table import Table

    from opticstream.stages.tile import compare_engines

    with errors_shown():
        deployment = DeploymentSettings()
        project = load_project(config, path_map=deployment.path_map)
        tile = _tile_of(file, project, name)
        with tempfile.TemporaryDirectory(prefix="opticstream-compare-") as scratch:
            made = compare_engines(
                file,
                tile,
                scan=project.scan,
                processing=project.processing,
                deployment=deployment,
                folder=out_dir or Path(scratch),
            )
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "product": one.product,
                "unit": one.unit,
                "largest": one.largest,
                "most": one.most,
                "typical": one.typical,
                "limit": one.limit,
                "is_small": one.is_small,
            }
            for one in made.differences
        ]
        print_json({"differences": rows, "native_s": made.native_s, f"{made.other}_s": made.other_s})
    else:
        table = Table("product", "largest difference", "99.9 %", "median", "limit", "unit", "")
        for one in made.differences:
            verdict = styled("ok", "green") if one.is_small else styled("differs", "bold red")
            figures = [f"{figure:.2g}" for figure in (one.largest, one.most, one.typical)]
            table.add_row(one.product, *figures, f"{one.limit:g}", one.unit, verdict)
        out.print(table)
        other = {"matlab": "MATLAB", "cuda": "graphics card"}[made.other]
        out.print(f"own code {made.native_s:.1f} s, {other} {made.other_s:.1f} s, its start included")
    raise typer.Exit(DONE if made.agrees else FAILED)

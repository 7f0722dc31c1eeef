"""`register`, on any four or more files; needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opticstream.cli.console import FAILED, JsonOption, err, errors_shown, out, print_json, styled
from opticstream.cli.run import SetOption, overrides_from_options
from opticstream.config import config_from_mapping, load_project
from opticstream.config.processing import RegistrationSettings
from opticstream.model.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    from opticstream.compute.axis import AxisSolver
    from opticstream.compute.registration import MappingFinder

FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        help="Orientation map (degrees) and birefringence map (no unit) of each illumination, the fixed one first: "
        "ORI BIREF ORI BIREF [ORI BIREF ...]. NIfTI, (x, y).",
        show_default=False,
    ),
]


def register(
    files: FilesArgument,
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("registered"),
    tilt: Annotated[
        list[float] | None,
        typer.Option(help="Beam tilt in degrees, once for each illumination (default: 0 and -15 for two)."),
    ] = None,
    tilt_axis: Annotated[
        list[float] | None,
        typer.Option(help="Axis of each tilt, in degrees in the image plane (default: 90, the y axis)."),
    ] = None,
    mask: Annotated[list[Path] | None, typer.Option(help="Tissue mask, once for each illumination.")] = None,
    intensity: Annotated[
        list[Path] | None,
        typer.Option(help="Intensity map (AIP), once for each illumination; makes the result more precise."),
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Name of each illumination, used in file names.")] = None,
    slice_id: Annotated[int, typer.Option("--slice", min=1, help="Slice number, used in file names.")] = 1,
    project: Annotated[
        Path | None, typer.Option(help="Project file to take processing.registration from.", show_default=False)
    ] = None,
    options: SetOption = [],  # noqa: B006  (typer reads the default, nobody changes it)
    as_json: JsonOption = False,
) -> None:
    """Register the maps of one slice from two or more beam directions and solve for the 3-D fibre axis.

    Example: opticstream register n_ori.nii.gz n_biref.nii.gz t_ori.nii.gz t_biref.nii.gz --tilt 0 --tilt -15

    Settings come from --project FILE and from --set KEY=VALUE with a key of processing.registration, e.g.
    --set transform=rigid. The exit status is 1 if the axis could not be computed.
    """
    from opticstream.stages.slice import SliceMosaic, register_slice

    with errors_shown():
        settings = _settings(project, options)
        count = len(files) // 2
        if len(files) < 4 or len(files) % 2:
            raise ConfigurationError(
                f"expected an orientation and a birefringence map of two or more illuminations, got {len(files)} files"
            )
        tilts = _each("tilt", tilt, count, [0.0, -15.0] if count == 2 else None)
        axes = _each("tilt-axis", tilt_axis, count, [90.0] * count)
        default_names = ["normal", "tilted"] if count == 2 else [f"beam{k + 1}" for k in range(count)]
        names = _each("name", name, count, default_names)
        masks = _each("mask", mask, count, [None] * count)
        intensities = _each("intensity", intensity, count, [None] * count)
        mosaics = []
        for k in range(count):
            maps = {"ori": files[2 * k], "biref": files[2 * k + 1]}
            maps |= {key: path for key, path in (("mask", masks[k]), ("aip", intensities[k])) if path is not None}
            for path in maps.values():
                if not path.is_file():
                    raise InputError(f"{path}: no such file")
            mosaics.append(SliceMosaic(names[k], maps, tilts[k], axes[k]))
        finder, solver = _by_matlab(project, out_dir, slice_id)
        made = register_slice(mosaics, out_dir, slice_id=slice_id, settings=settings, finder=finder, solver=solver)
    if as_json:
        print_json(
            {
                "outputs": made.outputs,
                "pictures": made.pictures,
                "failures": made.failures,
                "notes": made.notes,
                **made.summary,
            }
        )
    else:
        _show(made.summary)
        for note in made.notes:
            out.print(note)
        for path in dict.fromkeys([*made.outputs.values(), *made.pictures]):
            out.print(f"  {path}")
    for failure in made.failures:
        err.print(styled("failed:", "bold red"), str(failure))
    if not made.has_axis:
        raise typer.Exit(FAILED)


def _by_matlab(project: Path | None, out_dir: Path, slice_id: int) -> tuple[MappingFinder | None, AxisSolver | None]:
    """Return what registers and what solves for the axes where the project file names MATLAB; None: our own code."""
    if project is None:
        return None, None
    from opticstream.config import DeploymentSettings
    from opticstream.config.engines import matlab_for
    from opticstream.stages.slice import axis_solver_by_matlab, mapping_finder_by_matlab

    deployment = DeploymentSettings()
    engine = load_project(project, path_map=deployment.path_map).processing.engine
    registers, solves, name = matlab_for(engine, "registration"), matlab_for(engine, "axis"), f"slice {slice_id}"
    return (
        None if registers is None else mapping_finder_by_matlab(registers, deployment, out_dir, name=name),
        None if solves is None else axis_solver_by_matlab(solves, deployment, out_dir, name=name),
    )


def _settings(project: Path | None, options: list[str]) -> RegistrationSettings:
    """Return `processing.registration` of a project file, or the defaults, with options on top."""
    table = "processing.registration."
    overrides = {table + key.removeprefix(table): value for key, value in overrides_from_options(options).items()}
    if project is not None:
        return load_project(project, overrides=overrides).processing.registration
    nameless = {"project": {"project_name": "files", "project_base_path": "."}}
    return config_from_mapping(nameless, source="--set", overrides=overrides).processing.registration


def _each(option: str, values: list[Any] | None, count: int, default: list[Any] | None) -> list[Any]:
    """Return one value for each illumination."""
    if not values:
        if default is None:
            raise ConfigurationError(f"--{option} is missing; give it once for each of the {count} illuminations")
        return default
    if len(values) != count:
        raise ConfigurationError(f"--{option} was given {len(values)} times, expected {count}: once per illumination")
    return values


def _show(summary: dict[str, Any]) -> None:
    for r in summary["registrations"]:
        verdict = "good" if r["good"] else "FAILED"
        residual = "unknown" if r["residual_px"] is None else f"{r['residual_px']:.2f} px"
        out.print(
            f"{r['moving']} onto {summary['fixed']}: {verdict}; residual {residual}, confidence {r['confidence']:.2f}, "
            f"overlap {100 * r['overlap']:.0f} %"
        )
    if "axis" in summary:
        a = summary["axis"]
        uncertainty = a["median_uncertainty_deg"]
        out.print(
            f"axis: at {100 * a['share_of_pixels_with_axis']:.0f} % of the pixels that two beams cover"
            + (f", median uncertainty {uncertainty:.1f} degrees" if uncertainty is not None else "")
        )

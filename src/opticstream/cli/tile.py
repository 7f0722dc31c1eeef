"""`tile`, `archive` and `calibrate`: make products, copies and calibrations from raw files, without a server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opticstream.cli.console import (
    FAILED,
    JsonOption,
    err,
    errors_shown,
    escaped,
    out,
    print_json,
    styled,
    text_column,
)
from opticstream.model.errors import CalibrationError, ConfigurationError, InputError, OpticStreamError
from opticstream.model.modalities import enface_names

if TYPE_CHECKING:
    from opticstream.stages.tile import ArchiveResult

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="Project file (TOML).", show_default=False)]


def tile(
    files: Annotated[list[Path], typer.Argument(help="Raw tiles, which are never changed.", show_default=False)],
    config: ConfigOption,
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path(),
    modalities: Annotated[
        str | None, typer.Option(help=f"Maps to make, separated by commas: {','.join(enface_names())}.")
    ] = None,
    no_volumes: Annotated[
        bool, typer.Option("--no-volumes", help="Do not write the volumes dBI, R3D and O3D.")
    ] = False,
    complex_out: Annotated[bool, typer.Option("--complex-out", help="Also write the complex tile.")] = False,
    archive: Annotated[bool, typer.Option("--archive", help="Also write the archive copy, to OUT/archived.")] = False,
    threads: Annotated[int | None, typer.Option(min=0, help="Number of threads; 0: all cores of this process.")] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The tile that a single FILE holds, e.g. mosaic-001/tile-0001, whatever its file name."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Reconstruct raw tiles: volumes, surface, en face maps, quality picture.

    The name of a file tells which tile it holds (scan.file_name in the project file). The exit status is 1 if a tile
    failed; the other tiles are processed all the same.

    Example: opticstream tile raw/*.nii --config project.toml --out results --no-volumes
    """
    from rich.progress import BarColumn, Progress, TimeRemainingColumn
    from rich.text import Text

    from opticstream.config import DeploymentSettings, load_project
    from opticstream.stages.tile import process_tile

    with errors_shown():
        overrides: dict[str, Any] = {}
        if modalities is not None:
            overrides["processing.enface.modalities"] = [part.strip() for part in modalities.split(",") if part.strip()]
        if no_volumes:
            overrides["processing.reconstruction.save_volumes"] = False
        if complex_out:
            overrides["processing.reconstruction.save_complex"] = True
        if threads is not None:
            overrides["processing.reconstruction.threads"] = threads
        project = load_project(config, overrides=overrides, path_map=DeploymentSettings().path_map)
        if name is not None and len(files) != 1:
            raise ConfigurationError(f"--name {name}: expected exactly one FILE with this option, got {len(files)}")
        results: list[dict[str, Any]] = []
        failed = 0
        columns = (text_column(), BarColumn(), text_column("{task.percentage:>3.0f}%"))
        with Progress(*columns, TimeRemainingColumn(), console=err, disable=as_json or not err.is_terminal) as bar:
            for path in files:
                task = bar.add_task(escaped(path.name), total=1.0)
                try:
                    result = process_tile(
                        path,
                        _tile_of(path, project, name),
                        scan=project.scan,
                        processing=project.processing,
                        out_dir=out_dir,
                        archive_to=out_dir / "archived" / _copy_name(path, project) if archive else None,
                        progress=functools.partial(_advance, bar, task),
                    )
                except ConfigurationError:
                    raise  # the settings are wrong, not this tile
                except OpticStreamError as error:
                    failed += 1
                    results.append({"source": str(path), "error": str(error)})
                    if not as_json:
                        err.print(styled("failed:", "bold red"), str(error))
                    continue
                results.append(result.as_dict())
                if not as_json:
                    flagged = [part for flag in result.flags for part in ("; ", styled(flag, "yellow"))]
                    folder = next(iter(result.outputs.values())).path.parent
                    told = f"{path.name}: {result.tile}, {len(result.outputs)} files in {folder}"
                    out.print(Text.assemble(escaped(told), *flagged))
    if as_json:
        print_json(results)
    if failed:
        raise typer.Exit(FAILED)


def _advance(bar: Any, task: Any, done: float) -> None:
    bar.update(task, completed=done)


def _tile_of(path: Path, project: Any, name: str | None) -> Any:
    from opticstream.io.names import FileNameGrammar
    from opticstream.io.packed import unpacked_name
    from opticstream.model.ids import TileId, item_from_key

    if name is not None:
        try:
            item = item_from_key(name)
        except ValueError as error:
            raise ConfigurationError(f"--name: {error}") from error
        if not isinstance(item, TileId):
            raise ConfigurationError(f"--name {name}: expected a tile such as mosaic-001/tile-0001")
        return item
    grammar = FileNameGrammar(project.scan.file_name, project.scan.layout)
    tile_id = grammar.tile_from_name(path.name) or grammar.tile_from_name(unpacked_name(path.name))
    if tile_id is None:
        raise InputError(
            f"{path}: its name does not follow scan.file_name = {project.scan.file_name!r}; name its tile with --name"
        )
    return tile_id


def _copy_name(path: Path, project: Any) -> str:
    from opticstream.io.packed import unpacked_name
    from opticstream.io.spectra_zarr import ZARR_SUFFIX

    return unpacked_name(path.name) + (ZARR_SUFFIX if project.processing.archive.format == "zarr" else ".gz")


archive_app = typer.Typer(help="Write archive copies of raw tiles, verify them, and unpack them.")


class ArchiveForm(Enum):
    """Values of `processing.archive.format`."""

    GZIP = "nii.gz"
    ZARR = "zarr"


@archive_app.command("write")
def archive_write(
    files: Annotated[list[Path], typer.Argument(help="Raw files, which are never changed.", show_default=False)],
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for the copies.")] = Path(),
    form: Annotated[
        ArchiveForm,
        typer.Option("--format", help="Form of the copies: gzip, or Zarr arrays in a zip file, half the size."),
    ] = ArchiveForm.GZIP,
    level: Annotated[int, typer.Option(min=0, max=9, help="Compression effort: 0 fastest, 9 smallest.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Number of threads; 0: all cores of this process.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write packed copies of raw files, each with its SHA-256 beside it; each raw file is read once.

    The format zarr is for NIfTI files of 16-bit counts with the axes samples, A-lines, channels, B-lines. The exit
    status is 1 if a file could not be archived; the others are archived all the same.

    Example: opticstream archive write raw/*.nii --out copies --format zarr
    """
    from opticstream.io.spectra_zarr import ZARR_SUFFIX
    from opticstream.stages.tile import archive_tile, available_threads, spectra_of_nifti

    def write(path: Path) -> dict[str, Any]:
        is_zarr = form is ArchiveForm.ZARR
        result = archive_tile(
            path,
            out_dir / f"{path.name}{ZARR_SUFFIX if is_zarr else '.gz'}",
            content=spectra_of_nifti(path) if is_zarr else None,
            level=level,
            threads=available_threads(threads),
        )
        if not as_json:
            share = result.archive_bytes / max(1, result.raw_bytes)
            out.print(f"{result.archive}: {result.archive_bytes} bytes ({share:.0%}), SHA-256 {result.sha256}")
        return _as_plain(result)

    _for_each(files, write, as_json)


@archive_app.command("unpack")
def archive_unpack(
    files: Annotated[list[Path], typer.Argument(help="Archive copies, which are never changed.", show_default=False)],
    to: Annotated[
        Path, typer.Option("--to", help="Folder for the raw files, or, for a single FILE, the name of its raw file.")
    ] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write the raw files that are in archive copies, byte for byte, and compare them with their SHA-256.

    A file that exists already is never replaced. The exit status is 1 if a copy is damaged: nothing is written of it,
    and the others are unpacked all the same.

    Example: opticstream archive unpack rawdata/sub-1/*_OCT.nii.zarr.zip --to raw
    """
    from opticstream.io.packed import unpacked_name
    from opticstream.stages.tile import unpack_archive

    def unpack(path: Path) -> dict[str, Any]:
        names_file = len(files) == 1 and to.suffix in (".nii", ".raw") and not to.is_dir()
        target = to if names_file else to / unpacked_name(path.name)
        result = unpack_archive(path, target)
        if not as_json:
            out.print(f"{target}: {result.raw_bytes} bytes, SHA-256 {result.sha256}")
        return {"raw": str(target)} | _as_plain(result)

    _for_each(files, unpack, as_json)


def _for_each(files: list[Path], work: Callable[[Path], dict[str, Any]], as_json: bool) -> None:
    """Do the work on every file, tell what failed, and exit with status 1 if anything did."""
    results: list[dict[str, Any]] = []
    failed = False
    with errors_shown():
        for path in files:
            try:
                results.append(work(path))
            except ConfigurationError:
                raise
            except OpticStreamError as error:
                failed = True
                results.append({"source": str(path), "error": str(error)})
                if not as_json:
                    err.print(styled("failed:", "bold red"), str(error))
    if as_json:
        print_json(results)
    if failed:
        raise typer.Exit(FAILED)


def _as_plain(result: ArchiveResult) -> dict[str, Any]:
    return {
        "archive": str(result.archive),
        "raw_bytes": result.raw_bytes,
        "archive_bytes": result.archive_bytes,
        "sha256": result.sha256,
    }


@archive_app.command("verify")
def archive_verify(
    folder: Annotated[
        Path, typer.Argument(help="Folder of archive copies, which are never changed.", show_default=False)
    ],
    as_json: JsonOption = False,
) -> None:
    """Verify every copy in a folder and its subfolders against its checksum: raw copies and volumes are read in full.

    Files without a checksum are listed, but cannot be verified. The exit status is 1 if a copy is damaged, or if
    nothing could be verified.
    """
    from opticstream.stages.tile import verify_archives

    with errors_shown():
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder")
        checked = []
        for outcome in verify_archives(folder):
            checked.append(outcome)
            if not as_json:
                if outcome.problem is not None:
                    err.print(styled(f"{outcome.archive}:", "bold red"), outcome.problem)
                elif outcome.judged:
                    out.print(f"{outcome.archive}: intact, {outcome.raw_bytes} bytes")
                else:
                    out.print(f"{outcome.archive}: has no checksum")
        judged = [outcome for outcome in checked if outcome.judged]
        bad = [outcome for outcome in judged if outcome.problem is not None]
    if as_json:
        print_json(
            [
                {"archive": str(o.archive), "raw_bytes": o.raw_bytes, "judged": o.judged, "problem": o.problem}
                for o in checked
            ]
        )
    else:
        others = len(checked) - len(judged)
        told = f"; {others} without a checksum were not verified" if others else ""
        out.print(f"{len(judged) - len(bad)} of {len(judged)} copies are intact{told}")
    if bad or not judged:
        raise typer.Exit(FAILED)


calibrate_app = typer.Typer(help="Estimate the calibration of the spectrometer from recordings.")

RecordingsArgument = Annotated[
    list[str],
    typer.Argument(
        help="Recorded spectra: .npy, .dat, FILE.npz#NAME or FILE.mat#NAME; one spectrum, or A-lines by samples.",
        show_default=False,
    ),
]
DarkOption = Annotated[
    list[str] | None,
    typer.Option(help="Spectrum without the mirror, to subtract; once, or once for each recording."),
]
TargetOption = Annotated[Path, typer.Option("--out", "-o", help="File for the result (.npy).", show_default=False)]


@calibrate_app.command("wavelength")
def calibrate_wavelength(
    mirrors: RecordingsArgument,
    target: TargetOption,
    dark: DarkOption = None,
    side: Annotated[
        list[int] | None,
        typer.Option(help="Side of zero delay of each recording, 1 or -1; with both sides, dispersion cancels out."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the k-linearization from recordings of a mirror, as positions (linearization method "klinear").

    Example: opticstream calibrate wavelength m.npz#near m.npz#far --side 1 --side -1 --out klinear.npy
    """
    from opticstream.compute.reconstruction import positions_from_mirrors

    with errors_shown():
        spectra = _spectra(mirrors, dark)
        single = [spectrum.mean(axis=0) for spectrum in spectra]
        try:
            positions = positions_from_mirrors(single, sides=side)
        except ValueError as error:
            raise CalibrationError(f"{', '.join(mirrors)}: {error}") from error
        _save(target, positions)
        widths = [
            {"recording": name, "before_bins": _width(s, None, None), "after_bins": _width(s, positions, None)}
            for name, s in zip(mirrors, single, strict=True)
        ]
    _report(target, widths, as_json)


@calibrate_app.command("dispersion")
def calibrate_dispersion(
    recordings: RecordingsArgument,
    target: TargetOption,
    positions: Annotated[
        str | None, typer.Option(help="k-linearization as positions (.npy, ...).", show_default=False)
    ] = None,
    dark: DarkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the dispersion phase that makes recordings sharpest (for scan.calibration.dispersion_files)."""
    import numpy as np

    from opticstream.compute.reconstruction import dispersion_from_spectra
    from opticstream.io.calibration_files import read_vector

    with errors_shown():
        spectra = _spectra(recordings, dark)
        sampled = None if positions is None else read_vector(positions, setting="--positions")
        lengths = sorted({s.shape[-1] for s in spectra} | ({sampled.size} if sampled is not None else set()))
        if len(lengths) != 1:
            raise CalibrationError(f"recordings and positions must have the same length, got {lengths}")
        phase = dispersion_from_spectra(np.concatenate(spectra)[:512], positions=sampled)
        _save(target, phase)
        widths = [
            {
                "recording": name,
                "before_bins": _width(s.mean(axis=0), sampled, None),
                "after_bins": _width(s.mean(axis=0), sampled, phase),
            }
            for name, s in zip(recordings, spectra, strict=True)
        ]
    _report(target, widths, as_json)


def _spectra(references: list[str], dark: list[str] | None) -> list[Any]:
    import numpy as np

    from opticstream.io.calibration_files import read_vector

    darks = [read_vector(reference, setting="--dark") for reference in dark or []]
    if len(darks) not in (0, 1, len(references)):
        raise ConfigurationError(
            f"--dark: expected one spectrum, or one for each of the {len(references)} recordings, got {len(darks)}"
        )
    spectra = []
    for k, reference in enumerate(references):
        spectrum = np.atleast_2d(read_vector(reference))
        if darks:
            background = darks[k % len(darks)]
            if background.shape[-1] != spectrum.shape[-1]:
                raise CalibrationError(
                    f"{reference}: has {spectrum.shape[-1]} samples, but its dark spectrum has {background.shape[-1]}"
                )
            spectrum = spectrum - background
        spectra.append(spectrum)
    return spectra


def _save(target: Path, values: Any) -> None:
    import io

    import numpy as np

    from opticstream.io.atomic import write_bytes

    if target.suffix != ".npy":
        raise ConfigurationError(f"--out {target}: expected a .npy file")
    buffer = io.BytesIO()
    np.save(buffer, values)
    write_bytes(target, buffer.getvalue())


def _width(spectrum: Any, positions: Any, phase: Any) -> float:
    from opticstream.compute.reconstruction import peak_width_bins

    return round(peak_width_bins(spectrum, positions=positions, dispersion_rad=phase), 2)


def _report(target: Path, widths: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"out": str(target), "widths": widths})
        return
    for row in widths:
        out.print(f"{row['recording']}: peak width {row['before_bins']} -> {row['after_bins']} bins")
    out.print(f"wrote {target}")

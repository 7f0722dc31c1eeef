"""Register the illuminations of one slice and solve its fibre axes: stitched maps in, axes and pictures out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opticstream.compute.axis import AxisSolver, slice_axis_from_illuminations
from opticstream.compute.registration import MappingFinder
from opticstream.config.processing import MaskSettings, RegistrationSettings
from opticstream.io.atomic import write_text
from opticstream.io.nifti import long_axis_notes
from opticstream.model.errors import ConfigurationError, InputError
from opticstream.stages.slice._illuminations import SliceMosaic, geometries_of_mosaics, read_illumination
from opticstream.stages.slice._results import (
    ResultNames,
    write_aligned_maps,
    write_aligned_volumes,
    write_axis,
    write_axis_pictures,
    write_overlays,
    write_transforms,
)
from opticstream.stages.slice._summary import summary_of_registration


@dataclass(frozen=True)
class RegisteredSlice:
    """What was made of a slice."""

    outputs: dict[str, Path]
    """File of each product."""
    pictures: tuple[Path, ...] = ()
    """Pictures (JPEG)."""
    failures: tuple[str, ...] = ()
    """Illuminations that could not be registered, and why."""
    has_axis: bool = True
    """Whether at least two illuminations were registered, so that there are fibre axes."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What stands in the transform file: figures of each registration, shares of flagged pixels."""
    notes: tuple[str, ...] = ()
    """What was written smaller, or in another format, because the usual format cannot hold it."""

    @property
    def why_no_axis(self) -> str:
        """Why there are no fibre axes; empty where there are some."""
        return "" if self.has_axis else "no fibre axis: " + "; ".join(self.failures)


def register_slice(
    mosaics: Sequence[SliceMosaic],
    folder: Path,
    /,
    *,
    slice_id: int,
    settings: RegistrationSettings | None = None,
    mask: MaskSettings | None = None,
    subject_id: str = "01",
    project_name: str = "",
    threads: int = 0,
    finder: MappingFinder | None = None,
    solver: AxisSolver | None = None,
) -> RegisteredSlice:
    """Register the mosaics of one slice onto the first of them and write all results.

    Parameters
    ----------
    mosaics : sequence of SliceMosaic
        Two or more illuminations; the first one is the fixed one.
    folder : Path
        Folder of the results (`registered/` of the project).
    slice_id : int
        Slice, for the file names.
    settings : RegistrationSettings, optional
        `processing.registration`.
    mask : MaskSettings, optional
        `processing.mask`: makes the mask of a mosaic that comes without one, from the map that
        `settings.mask_file_type` names. Without it such a mosaic has no mask.
    subject_id, project_name : str
        For the template of file names.
    threads : int
        Threads for the axis; 0 takes all. The results do not depend on it.
    finder : MappingFinder, optional
        Finds the mappings between the illuminations instead of our own code, such as `mapping_finder_by_matlab`.
    solver : AxisSolver, optional
        Solves for the fibre axes instead of our own code, such as `axis_solver_by_matlab`.

    Returns
    -------
    RegisteredSlice
        Also where the registration failed: then the transform file and the overlays say why, and there is no axis.

    Raises
    ------
    MissingInputError, InputError
        Fewer than two illuminations; a map is missing, empty, has no valid pixel, or is of another size, voxel size or
        place in space than the others of its illumination; or the headers of two illuminations give other directions.
    """
    options = settings or RegistrationSettings()
    if len(mosaics) < 2:
        raise InputError(
            f"slice {slice_id}: the fibre axis needs at least two illuminations, got {[m.name for m in mosaics]}"
        )
    geometries = geometries_of_mosaics(mosaics, slice_id)
    fixed = geometries[0]
    names = ResultNames(folder, options.file_name, slice_id, subject_id, project_name)
    try:
        illuminations = [read_illumination(mosaic, options, mask) for mosaic in mosaics]
        result = slice_axis_from_illuminations(
            illuminations,
            freedom=options.transform,
            bend_sigma_px=options.bend_sigma_px,
            sigma_px=options.smoothing_sigma_px,
            axis_sigma_px=options.axis_smoothing_sigma_px,
            use_mask=bool(options.mask_file_type),
            min_birefringence=options.min_birefringence,
            branch_sigma=options.branch_sigma,
            max_uncertainty_deg=options.max_uncertainty_deg,
            min_overlap=options.min_overlap,
            min_confidence=options.min_confidence,
            max_residual_px=options.max_residual_px,
            threads=threads,
            finder=finder,
            solver=solver,
        )
    except ConfigurationError:
        raise
    except InputError as error:
        raise type(error)(f"slice {slice_id}: {error}") from error
    except ValueError as error:
        files = ", ".join(m.maps["biref"].name for m in mosaics)
        raise InputError(f"slice {slice_id} ({files}): {error}") from error

    outputs: dict[str, Path] = {}
    shown: list[Path] = []
    notes: list[str] = []
    outputs |= write_transforms(names, mosaics, result, geometries)
    shown += write_overlays(names, illuminations, result, notes)
    outputs |= write_aligned_maps(names, mosaics, illuminations, result, fixed)
    if options.resample_volumes:
        outputs |= write_aligned_volumes(names, mosaics, result)
    summary = summary_of_registration(mosaics, result)
    if result.axes is not None:
        outputs |= write_axis(names, result.axes, fixed)
        made = write_axis_pictures(names, result.axes, notes)
        outputs |= made
        shown += [path for path in made.values() if path.suffix == ".jpg"]
    outputs["transform"] = write_text(names("transform", ".json"), json.dumps(summary, indent=1, sort_keys=True) + "\n")
    return RegisteredSlice(
        outputs=outputs,
        pictures=tuple(shown),
        failures=result.failures,
        has_axis=result.axes is not None,
        summary=summary,
        notes=(*notes, *long_axis_notes((result.aligned[0].birefringence.shape,))),
    )

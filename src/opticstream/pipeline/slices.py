"""The work on one slice: register its illuminations and solve the fibre axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opticstream.config.engines import matlab_for
from opticstream.config.processing import QualitySettings
from opticstream.model.events import Event, SliceFlagged, SliceReady
from opticstream.model.ids import MosaicId, SliceId
from opticstream.model.verdict import Grade, Verdict
from opticstream.pipeline.jobs import REGISTER_SLICE, Attempt, Done, Result, announcements, failure_event, once, perform
from opticstream.pipeline.products import stitched_maps, stitched_volumes
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import good_mosaics
from opticstream.state import Claim, FileRecord
from opticstream.state.manifest import records_of_store

if TYPE_CHECKING:
    from opticstream.compute.axis import AxisSolver
    from opticstream.compute.registration import MappingFinder


def register_slice(project: Project, event: SliceReady, /, *, attempt: Attempt = once) -> list[Event]:
    """Register the illuminations of a slice and return what is to be announced.

    With one good illumination the slice is recorded as skipped, with none as failed. Where the registration fails or
    is not good enough the slice has no fibre axes, and nothing else is lost.
    """
    from opticstream.stages import slice as slice_stages

    slice_id = event.slice

    def compute(_claim: Claim) -> Result:
        good = good_mosaics(project, slice_id)
        if len(good) < 2:
            fact = "skipped" if good else "failed"
            return Result(fact=fact, detail={"reason": _why_skipped(project, slice_id, good)})
        mosaics = [
            slice_stages.SliceMosaic(
                project.illumination(mosaic).name,
                _maps(project, mosaic),
                tilt_deg=project.illumination(mosaic).tilt_deg,
                tilt_axis_deg=project.illumination(mosaic).tilt_axis_deg,
                volumes=stitched_volumes(project, mosaic),
            )
            for mosaic in good
        ]
        made = attempt(
            f"register slice {slice_id.slice_id}",
            lambda: slice_stages.register_slice(
                mosaics,
                project.paths.registered_folder,
                slice_id=slice_id.slice_id,
                settings=project.config.processing.registration,
                mask=project.config.processing.mask,
                subject_id=project.config.project.subject_id,
                project_name=project.config.name,
                threads=project.config.processing.reconstruction.threads,
                finder=_finder(project, slice_id),
                solver=_solver(project, slice_id),
            ),
        )
        verdict = verdict_of_slice(made.failures, made.summary, project.config.processing.quality)
        lost = {} if made.has_axis else {"reason": made.why_no_axis, "stage": REGISTER_SLICE.name}
        return Result(
            fact=None if made.has_axis else "axis_failed",
            outputs=[one for path in made.outputs.values() for one in _records(project, path)],
            detail={
                "products": {name: project.paths.relative(path) for name, path in made.outputs.items()},
                "pictures": [project.paths.relative(path) for path in made.pictures],
                "mosaics": [mosaic.mosaic_id for mosaic in good],
                "summary": made.summary,
                "doubts": list(verdict.reasons),
                "verdict": verdict.grade,
                "notes": list(made.notes),
                **lost,
            },
        )

    outcome = perform(project, slice_id, REGISTER_SLICE, compute)
    if not isinstance(outcome, Done):
        return announcements(project, slice_id, REGISTER_SLICE, outcome)
    if fact := outcome.result.fact:
        if len(project.layout.mosaics(slice_id)) < 2 and fact == "skipped":
            return []  # not a failure: a project of one illumination has nothing to register
        reason = str(outcome.result.detail["reason"])
        told = f"skipped: {reason}" if fact == "skipped" else reason
        return [failure_event(project, slice_id, REGISTER_SLICE, told)]
    events = announcements(project, slice_id, REGISTER_SLICE, outcome)
    if flags := outcome.result.detail["doubts"]:
        grade = outcome.result.detail["verdict"]
        events.append(project.event(SliceFlagged, slice_id, reasons=tuple(flags), verdict=grade))
    return events


def _finder(project: Project, slice_id: SliceId) -> MappingFinder | None:
    """Return what finds the mappings between illuminations; None for our own code."""
    engine = matlab_for(project.config.processing.engine, "registration")
    if engine is None:
        return None
    from opticstream.stages import slice as slice_stages

    folder = project.paths.registered_folder
    return slice_stages.mapping_finder_by_matlab(engine, project.deployment, folder, name=str(slice_id))


def _solver(project: Project, slice_id: SliceId) -> AxisSolver | None:
    """Return what solves for the fibre axes; None for our own code."""
    engine = matlab_for(project.config.processing.engine, "axis")
    if engine is None:
        return None
    from opticstream.stages import slice as slice_stages

    folder = project.paths.registered_folder
    return slice_stages.axis_solver_by_matlab(engine, project.deployment, folder, name=str(slice_id))


def verdict_of_slice(failures: Sequence[str], summary: Mapping[str, Any], limits: QualitySettings, /) -> Verdict:
    """Return the verdict on a registered slice: illuminations that were left out, and how sure its fibre axes are.

    Parameters
    ----------
    failures : sequence of str
        Illuminations that could not be registered, and why.
    summary : mapping
        Figures, as in the transform file.
    limits : QualitySettings
        The limits.
    """
    found: list[tuple[Grade, str]] = [("look", failure) for failure in failures]
    axis = summary.get("axis") or {}
    uncertainty_deg, share = axis.get("median_uncertainty_deg"), axis.get("share_of_pixels_with_axis")
    if uncertainty_deg is not None and uncertainty_deg > limits.axis_uncertainty_deg:
        reason = (
            f"fibre axes: median uncertainty {uncertainty_deg:.1f} deg, limit {limits.axis_uncertainty_deg:.1f} deg "
            "(processing.quality.axis_uncertainty_deg)"
        )
        found.append(("look", reason))
    if share is not None and share < limits.axis_share:
        reason = (
            f"fibre axes: {share:.1%} of the tissue has one, limit {limits.axis_share:.1%} "
            "(processing.quality.axis_share)"
        )
        found.append(("bad" if share * limits.bad_factor < limits.axis_share else "look", reason))
    return Verdict.of(found)


def _records(project: Project, path: Path) -> list[FileRecord]:
    record = project.facts.file_record
    return [record(path)] if path.is_file() else records_of_store(record, path)


def _maps(project: Project, mosaic: MosaicId) -> dict[str, Path]:
    """Return the stitched maps of a mosaic; the mask only if it is made from the map that the registration asks for."""
    maps, processing = stitched_maps(project, mosaic), project.config.processing
    if processing.mask.made_from != processing.registration.mask_file_type:
        maps.pop("mask", None)
    return maps


def _why_skipped(project: Project, slice_id: SliceId, good: tuple[MosaicId, ...]) -> str:
    mosaics = project.layout.mosaics(slice_id)
    if len(mosaics) < 2:
        return "the project has one illumination; there is nothing to register"
    lost = ", ".join(
        f"mosaic {m.mosaic_id} ({project.illumination(m).name}) is parked as failed" for m in mosaics if m not in good
    )
    return f"registration needs at least two good illuminations; {lost}"

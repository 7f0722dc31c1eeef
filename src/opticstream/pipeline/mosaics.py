"""The work on one mosaic: coordinates and focus (once for each illumination), stitched maps, stitched volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from opticstream.config.processing import QualitySettings
from opticstream.model.chain import Step
from opticstream.model.events import Event, MosaicFlagged, MosaicReady, MosaicStitched
from opticstream.model.ids import MosaicId
from opticstream.model.verdict import Grade, Verdict
from opticstream.pipeline.cleaned import check_tiles_are_there
from opticstream.pipeline.host_memory import within_memory
from opticstream.pipeline.jobs import STITCH_MOSAIC, STITCH_VOLUME, Attempt, Done, Result, announcements, once, perform
from opticstream.pipeline.project import Project
from opticstream.pipeline.redo import RedoPlan, apply_plan
from opticstream.pipeline.rules import is_settled, may_determine_template, waits_for_focus, waits_for_template
from opticstream.pipeline.run_parameters import event_of
from opticstream.pipeline.templates import (
    determined_focus,
    determined_template,
    focus_is_outdated,
    focus_noted,
    template_is_outdated,
    template_noted,
)
from opticstream.state import Claim, FactsSnapshot, FileRecord
from opticstream.state.manifest import records_of_store

if TYPE_CHECKING:
    from opticstream.stages.mosaic import CoordinatesResult, FocusResult, MosaicResult
    from opticstream.stages.project import MosaicStages

R = TypeVar("R")


def stitch_mosaic(project: Project, event: MosaicReady, /, *, attempt: Attempt = once) -> list[Event]:
    """Stitch the maps of a mosaic and return what is to be announced.

    The first good mosaic of an illumination determines coordinates and focus; later ones reuse them. A later mosaic
    that is ready before the template exists is recorded as waiting, and announced again when the template appears.
    """
    mosaic, facts = event.mosaic, project.facts
    if not facts.has(mosaic, "stitched") and waits_for_template(project, mosaic, facts):
        facts.record(mosaic, "waiting", {"detail": {"for": project.paths.tilemap(event.illumination).name}})
        # The template may have appeared just before this was recorded; then no other mosaic announces this one.
        if waits_for_template(project, mosaic, facts):
            facts.journal.skipped(mosaic, "stitched", f"waits for {project.paths.tilemap(event.illumination).name}")
            return []

    others: list[Event] = []

    def compute(claim: Claim) -> Result:
        check_tiles_are_there(project, mosaic)
        coordinates = attempt(f"coordinates of mosaic {mosaic.mosaic_id}", lambda: _find_coordinates(project, mosaic))
        claim.ensure_mine()
        focus = attempt(f"focus of mosaic {mosaic.mosaic_id}", lambda: _find_focus(project, mosaic))
        claim.ensure_mine()
        others.extend(_withdraw_dependents(project, mosaic))
        template, stitched = _result_with_stable_file(
            project,
            coordinates.template,
            lambda: attempt(f"stitch mosaic {mosaic.mosaic_id}", _stages(project, mosaic).stitch_mosaic),
        )
        outputs = {**_own_outputs(project, mosaic, coordinates, focus), **stitched.outputs}
        refreshed = project.config.processing.coordinates.force_refresh_coordinates
        limits, tiles = project.config.processing.quality, len(project.layout.tiles(mosaic))
        verdict = verdict_of_mosaic(coordinates, stitched, focus=focus, limits=limits, tiles=tiles)
        return Result(
            outputs=[facts.file_record(path) for path in outputs.values()],
            inputs=[] if refreshed else [template],
            detail={
                "products": {name: project.paths.relative(path) for name, path in stitched.outputs.items()},
                "template": project.paths.relative(coordinates.template),
                "template_reused": coordinates.reused,
                "coordinates": coordinates.as_dict()["verdict"],
                "missing_tiles": stitched.missing_tiles,
                "doubts": list(verdict.reasons),
                "verdict": verdict.grade,
                "figures": stitched.figures,
                "focus": _focus_as_recorded(project, focus),
                "notes": list(stitched.notes),
            },
        )

    outcome = perform(project, mosaic, STITCH_MOSAIC, compute)
    events = announcements(project, mosaic, STITCH_MOSAIC, outcome)
    if events:
        events += [*_released_mosaics(project, mosaic), *others]
    if isinstance(outcome, Done) and (flags := outcome.result.detail["doubts"]):
        grade = outcome.result.detail["verdict"]
        events.append(project.event(MosaicFlagged, mosaic, reasons=tuple(flags), verdict=grade))
    return events


def _stages(project: Project, mosaic: MosaicId) -> MosaicStages:
    from opticstream.stages.project import MosaicStages

    return MosaicStages(within_memory(project), project.paths, mosaic, deployment=project.deployment)


def _find_coordinates(project: Project, mosaic: MosaicId) -> CoordinatesResult:
    outdated = _determines_template(project, mosaic) and template_is_outdated(project, mosaic)
    with template_noted(project, mosaic) as note:
        found = _stages(project, mosaic).find_coordinates(refresh=outdated)
        if not found.reused:
            note()
    return found


def _focus_as_recorded(project: Project, focus: FocusResult) -> dict[str, Any]:
    """Return what a record keeps of a focus map, with names that hold on every host."""
    outputs = {name: project.paths.relative(path) for name, path in focus.outputs.items()}
    return focus.as_dict() | {"path": project.paths.relative(focus.path), "outputs": outputs}


def _find_focus(project: Project, mosaic: MosaicId) -> FocusResult:
    outdated = _determines_focus(project, mosaic) and focus_is_outdated(project, mosaic)
    with focus_noted(project, mosaic) as note:
        found = _stages(project, mosaic).find_focus(refresh=outdated)
        if not found.reused:
            note()
    return found


def _determines_template(project: Project, mosaic: MosaicId) -> bool:
    return may_determine_template(project, mosaic, project.facts) or determined_template(project, mosaic)


def _determines_focus(project: Project, mosaic: MosaicId) -> bool:
    return may_determine_template(project, mosaic, project.facts) or determined_focus(project, mosaic)


def _own_outputs(
    project: Project, mosaic: MosaicId, coordinates: CoordinatesResult, focus: FocusResult
) -> dict[str, Path]:
    """Return the files of coordinates and focus that belong to this mosaic's record.

    Template and focus map belong to the mosaic that determines them, also where an earlier attempt at it, which was
    interrupted, has made them.
    """
    processing = project.config.processing
    shared = {
        "template": _determines_template(project, mosaic) and not processing.coordinates.force_refresh_coordinates,
        "focus": _determines_focus(project, mosaic) and not processing.focus.force_refresh,
    }
    outputs = {**coordinates.outputs, **focus.outputs}
    return {name: path for name, path in outputs.items() if shared.get(name, True)}


def _result_with_stable_file(project: Project, shared: Path, work: Callable[[], R]) -> tuple[FileRecord, R]:
    """Return the record of a template or focus map, unchanged while `work` used it, and the result of the work.

    The mosaic that determines the file may renew it at the same time; then the work is repeated with the new one.
    """
    used = project.facts.file_record(shared)
    while True:
        result = work()
        now = project.facts.file_record(shared)
        if now == used:
            return used, result
        used = now


def _withdraw_dependents(project: Project, mosaic: MosaicId) -> list[Event]:
    """Withdraw the results that were made with an earlier template or focus map than this mosaic has determined.

    Returns the announcements that have them made again. It happens before this mosaic is recorded, so that the next
    attempt does it after a crash.
    """
    illumination = project.illumination(mosaic).name
    plan = RedoPlan(project)
    shared: list[tuple[Path, str, Step]] = []
    if determined_template(project, mosaic) and not project.config.processing.coordinates.force_refresh_coordinates:
        shared.append((project.paths.tilemap(illumination), "stitched", STITCH_MOSAIC))
    if determined_focus(project, mosaic) and not project.config.processing.focus.force_refresh:
        shared.append((project.paths.focus(illumination), "volume_stitched", STITCH_VOLUME))
    for path, fact, step in shared:
        if not path.exists():
            continue
        now = project.facts.file_record(path)
        for other in _stitched_of_same_illumination(project, mosaic, fact):
            record = project.facts.read(other, fact)
            used = next((file for file in record.inputs if file.path == now.path), None) if record else None
            if used is not None and used.sha256 not in (None, now.sha256) and not plan.takes_back(other, fact):
                plan.redo(step, other)
    apply_plan(project, plan, reason=f"{mosaic} has renewed what it rests on")
    return plan.announce


def _stitched_of_same_illumination(project: Project, mosaic: MosaicId, fact: str) -> list[MosaicId]:
    """Return the other mosaics of a mosaic's illumination that have a fact."""
    snapshot = project.facts.snapshot(mosaics=())
    return [item for item in _of_same_illumination(project, mosaic, snapshot) if snapshot.has(item, fact)]


def _of_same_illumination(project: Project, mosaic: MosaicId, snapshot: FactsSnapshot) -> list[MosaicId]:
    """Return the other mosaics of a mosaic's illumination that have any fact."""
    index = project.layout.illumination_index(mosaic)
    return [
        item
        for item in snapshot.items("mosaic")
        if isinstance(item, MosaicId) and item != mosaic and project.layout.illumination_index(item) == index
    ]


def _released_mosaics(project: Project, mosaic: MosaicId) -> list[Event]:
    """Return announcements of the mosaics of this illumination that waited for the template, which is there now."""
    snapshot = project.facts.snapshot(mosaics=())
    return [
        event_of(project, MosaicReady, other)
        for other in _waiting_for_template(project, mosaic, snapshot)
        if not waits_for_template(project, other, snapshot)
    ]


def _waiting_for_template(project: Project, mosaic: MosaicId, snapshot: FactsSnapshot) -> list[MosaicId]:
    return [
        item
        for item in _of_same_illumination(project, mosaic, snapshot)
        if snapshot.has(item, "waiting") and not is_settled(snapshot, item)
    ]


def quality_flags_of_mosaic(
    coordinates: CoordinatesResult,
    stitched: MosaicResult,
    /,
    *,
    focus: FocusResult | None = None,
    limits: QualitySettings | None = None,
) -> list[str]:
    """Return the reasons to check a stitched mosaic by eye; none where all is well."""
    return list(verdict_of_mosaic(coordinates, stitched, focus=focus, limits=limits).reasons)


def verdict_of_mosaic(
    coordinates: CoordinatesResult,
    stitched: MosaicResult,
    /,
    *,
    focus: FocusResult | None = None,
    limits: QualitySettings | None = None,
    tiles: int = 0,
) -> Verdict:
    """Return the verdict on a stitched mosaic: its positions, tiles, maps, mask and focus.

    Parameters
    ----------
    coordinates, stitched, focus
        What was found and made; without `focus` it is not judged.
    limits : QualitySettings, optional
        The limits; those by default.
    tiles : int
        Number of tiles of the mosaic; 0: unknown.
    """
    limits = limits or QualitySettings()
    found: list[tuple[Grade, str]] = []
    if coordinates.verdict is not None and coordinates.verdict.grade != "good":
        found.append(("look", f"coordinates are {coordinates.verdict.sentence}"))
    elif coordinates.verdict is not None and coordinates.verdict.pattern:
        found.append(("look", f"coordinates: {coordinates.verdict.pattern}"))
    figures = {**stitched.figures, "seam_ncc": stitched.seam_ncc, "tissue_fraction": stitched.tissue_fraction}
    residuals = None if focus is None or focus.reused else (focus.residual_before_px, focus.residual_after_px)
    found += graded_by_limits(stitched.missing_tiles, figures, residuals, limits=limits, tiles=tiles)
    return Verdict.of(found)


def graded_by_limits(
    missing: Sequence[int],
    figures: Mapping[str, Any],
    focus_px: tuple[float, float] | None,
    /,
    *,
    limits: QualitySettings,
    tiles: int,
) -> Iterator[tuple[Grade, str]]:
    """Yield what is worth a look in a mosaic by its figures, whatever its coordinates are.

    Parameters
    ----------
    missing : sequence of int
        Tiles that it was stitched without.
    figures : mapping
        `MosaicResult.figures`.
    focus_px : tuple of float or None
        Scatter of the surface before and after the focus map, in depth samples; None without a map of its own.
    limits : QualitySettings
        The limits.
    tiles : int
        Number of tiles of the mosaic; 0: unknown.
    """
    if missing:
        share = len(missing) / tiles if tiles else 0.0
        is_bad = share >= limits.missing_fraction and len(missing) > 1
        more = f" ({share:.0%}, limit {limits.missing_fraction:.0%}; processing.quality.missing_fraction)" * is_bad
        yield "bad" if is_bad else "look", f"stitched without tiles {', '.join(map(str, missing))}{more}"
    yield from _graded_maps(figures, limits)
    yield from _graded_mask(figures, limits)
    if focus_px is not None:
        yield from _graded_focus(*focus_px, limits)


def _graded_maps(figures: Mapping[str, Any], limits: QualitySettings) -> Iterator[tuple[Grade, str]]:
    seam_ncc = _number(figures.get("seam_ncc"))
    if seam_ncc < limits.seam_ncc:
        yield (
            "look",
            f"overlaps: neighbouring tiles correlate with {seam_ncc:.2f}, limit {limits.seam_ncc:.2f} "
            "(processing.quality.seam_ncc)",
        )
    for modality, ncc in figures.get("seam_ncc_of", {}).items():
        if ncc < limits.consistency_ncc:
            yield (
                "look",
                f"{modality} does not fit the other maps: neighbouring tiles correlate with {ncc:.2f} where they agree "
                f"otherwise, limit {limits.consistency_ncc:.2f} (processing.quality.consistency_ncc)",
            )


def _graded_mask(figures: Mapping[str, Any], limits: QualitySettings) -> Iterator[tuple[Grade, str]]:
    coverage = _number(figures.get("tissue_fraction"))
    if coverage == 0:
        yield "bad", "the mask keeps nothing, all maps are empty (processing.mask.threshold_db)"
        return
    if coverage < limits.mask_coverage:
        yield (
            "look",
            f"the mask keeps {coverage:.1%} of the mosaic, limit {limits.mask_coverage:.1%} "
            "(processing.quality.mask_coverage)",
        )
    if coverage > limits.mask_coverage_most:
        yield (
            "look",
            f"the mask keeps {coverage:.1%} of the mosaic, at most {limits.mask_coverage_most:.1%} are expected "
            "(processing.quality.mask_coverage_most)",
        )
    contrast_db = figures.get("mask_contrast_db")
    if contrast_db is not None and contrast_db < limits.mask_contrast_db:
        yield (
            "look",
            f"the mask divides levels that differ by {contrast_db:.1f} dB, limit {limits.mask_contrast_db:.1f} dB "
            "(processing.quality.mask_contrast_db, processing.mask.threshold_db)",
        )
    parts = figures.get("mask_parts") or 0
    if parts > limits.mask_parts:
        yield (
            "look",
            f"the mask has {parts} parts, limit {limits.mask_parts} (processing.quality.mask_parts, "
            "processing.mask.min_fraction)",
        )


def _number(figure: float | None) -> float:
    """Return a figure as it is compared; NaN, which exceeds no limit, where there is none."""
    return float("nan") if figure is None else float(figure)


def _graded_focus(before: float, after: float, limits: QualitySettings) -> Iterator[tuple[Grade, str]]:
    if after > before:
        yield (
            "look",
            f"focus: the surfaces fit worse with the focus map ({after:.1f} px) than without ({before:.1f} px)",
        )
    elif after > limits.focus_residual_px:
        grade: Grade = "bad" if after > limits.bad_factor * limits.focus_residual_px else "look"
        yield (
            grade,
            f"focus: the surfaces differ by {after:.1f} px in the overlaps, limit {limits.focus_residual_px:.1f} px "
            "(processing.quality.focus_residual_px)",
        )


def stitch_volume(project: Project, event: MosaicStitched, /, *, attempt: Attempt = once) -> list[Event]:
    """Stitch the volumes of a mosaic and return what is to be announced."""
    mosaic, facts = event.mosaic, project.facts
    if not project.config.stitches_volumes:
        facts.journal.skipped(mosaic, "volume_stitched", "processing.volume.enabled or save_volumes is off")
        return []
    if not facts.has(mosaic, "stitched"):
        facts.journal.skipped(mosaic, "volume_stitched", "the mosaic is not stitched, or no longer")
        return []
    if waits_for_focus(project, mosaic, facts):
        facts.journal.skipped(mosaic, "volume_stitched", "waits for the focus map, which is being renewed")
        return []

    def compute(_claim: Claim) -> Result:
        check_tiles_are_there(project, mosaic)
        focus, made = _result_with_stable_file(
            project,
            project.paths.focus(project.illumination(mosaic).name),
            lambda: attempt(f"stitch volume of mosaic {mosaic.mosaic_id}", _stages(project, mosaic).stitch_volume),
        )
        refreshed = project.config.processing.focus.force_refresh
        return Result(
            outputs=[one for path in made.outputs.values() for one in records_of_store(facts.file_record, path)],
            inputs=[] if refreshed else [focus],
            detail={"products": {name: project.paths.relative(path) for name, path in made.outputs.items()}},
        )

    return announcements(project, mosaic, STITCH_VOLUME, perform(project, mosaic, STITCH_VOLUME, compute))

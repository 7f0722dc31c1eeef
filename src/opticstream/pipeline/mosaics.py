"""The work on one mosaic: coordinates and focus once for each illumination, stitched maps, stitched volumes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opticstream.model.events import (
    Event,
    MosaicFailed,
    MosaicFlagged,
    MosaicReady,
    MosaicStitched,
    MosaicVolumeStitched,
)
from opticstream.model.ids import MosaicId
from opticstream.pipeline.jobs import STITCH_MOSAIC, STITCH_VOLUME, Attempt, Done, Failed, Result, once, perform
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import may_determine_template, waits_for_focus, waits_for_template
from opticstream.pipeline.templates import focus_is_outdated, note_focus, note_template, template_is_outdated
from opticstream.state import Claim, FactsView

if TYPE_CHECKING:
    from opticstream.stages.find_coordinates import CoordinatesResult
    from opticstream.stages.find_focus import FocusResult
    from opticstream.stages.stitch_mosaic import MosaicResult
    from opticstream.stages.stitch_volume import VolumeResult


def stitch_mosaic(project: Project, event: MosaicReady, /, *, attempt: Attempt = once) -> list[Event]:
    """Stitch the maps of a mosaic and return what is to be announced.

    The first good mosaic of an illumination determines coordinates and focus; later ones reuse them. A later mosaic
    that is ready before the template exists is recorded as waiting, and announced again when the template appears.
    """
    mosaic, facts = event.mosaic, project.facts
    if not facts.has(mosaic, "stitched") and waits_for_template(project, mosaic, facts):
        facts.record(mosaic, "waiting", {"detail": {"for": project.paths.tilemap(event.illumination).name}})
        # The template may have appeared between the look and the record; then nobody else will announce this mosaic.
        if waits_for_template(project, mosaic, facts):
            facts.journal.skipped(mosaic, "stitched", f"waits for {project.paths.tilemap(event.illumination).name}")
            return []

    def compute(claim: Claim) -> Result:
        coordinates = attempt(f"coordinates of mosaic {mosaic.mosaic_id}", lambda: _coordinates(project, mosaic))
        claim.ensure_mine()
        focus = attempt(f"focus of mosaic {mosaic.mosaic_id}", lambda: _focus(project, mosaic))
        claim.ensure_mine()
        stitched = attempt(f"stitch mosaic {mosaic.mosaic_id}", lambda: _stitch(project, mosaic))
        outputs = {**_vouched(project, mosaic, coordinates, focus), **stitched.outputs}
        refreshed = project.config.processing.coordinates.force_refresh_coordinates
        return Result(
            outputs=[facts.file_record(path) for path in outputs.values()],
            inputs=[] if refreshed else [facts.file_record(coordinates.template)],
            detail={
                "products": {name: project.paths.relative(path) for name, path in stitched.outputs.items()},
                "template": project.paths.relative(coordinates.template),
                "template_reused": coordinates.reused,
                "coordinates": coordinates.as_dict()["verdict"],
                "missing_tiles": stitched.missing_tiles,
                "doubts": doubts_of_mosaic(coordinates, stitched),
                "focus": focus.as_dict(),
            },
        )

    outcome = perform(project, mosaic, STITCH_MOSAIC, compute)
    if isinstance(outcome, Failed):
        failed = project.event(MosaicFailed, mosaic, stage=STITCH_MOSAIC.name, reason=outcome.reason)
        return [failed, *_released(project, mosaic)]
    if not isinstance(outcome, Done):
        return []
    detail = outcome.result.detail
    events: list[Event] = [
        project.event(MosaicStitched, mosaic, template=detail["template"], outputs=detail["products"]),
        *_released(project, mosaic),
    ]
    if doubts := detail["doubts"]:
        events.append(project.event(MosaicFlagged, mosaic, reasons=tuple(doubts)))
    return events


def _coordinates(project: Project, mosaic: MosaicId) -> CoordinatesResult:
    from opticstream.stages.find_coordinates import find_coordinates

    settings = project.config.processing.coordinates
    if may_determine_template(project, mosaic, project.facts) and template_is_outdated(project, mosaic):
        settings = settings.model_copy(update={"force_refresh_coordinates": True})
    found = find_coordinates(
        mosaic,
        scan=project.config.scan,
        settings=settings,
        tiles_folder=project.paths.processed_folder(mosaic),
        template_path=project.paths.tilemap(project.illumination(mosaic).name),
        qc_folder=project.paths.stitched_folder(mosaic),
    )
    if not found.reused:
        note_template(project, mosaic)
    return found


def _focus(project: Project, mosaic: MosaicId) -> FocusResult:
    from opticstream.stages.find_focus import find_focus

    illumination = project.illumination(mosaic).name
    settings = project.config.processing.focus
    if may_determine_template(project, mosaic, project.facts) and focus_is_outdated(project, mosaic):
        settings = settings.model_copy(update={"force_refresh": True})
    found = find_focus(
        mosaic,
        scan=project.config.scan,
        settings=settings,
        tiles_folder=project.paths.processed_folder(mosaic),
        template_path=project.paths.tilemap(illumination),
        focus_path=project.paths.focus(illumination),
        qc_folder=project.paths.stitched_folder(mosaic),
    )
    if not found.reused:
        note_focus(project, mosaic)
    return found


def _vouched(project: Project, mosaic: MosaicId, coordinates: CoordinatesResult, focus: FocusResult) -> dict[str, Path]:
    """Return the files of coordinates and focus that this mosaic's record vouches for.

    The mosaic that determines them does, also when it finds them made by an attempt of its own that was cut short.
    """
    processing = project.config.processing
    is_first = may_determine_template(project, mosaic, project.facts)
    shared = {
        "template": is_first and not processing.coordinates.force_refresh_coordinates,
        "focus": is_first and not processing.focus.force_refresh,
    }
    outputs = {**coordinates.outputs, **focus.outputs}
    return {name: path for name, path in outputs.items() if shared.get(name, True)}


def _stitch(project: Project, mosaic: MosaicId) -> MosaicResult:
    from opticstream.stages.stitch_mosaic import stitch_mosaic as stage

    processing = project.config.processing
    return stage(
        mosaic,
        scan=project.config.scan,
        enface=processing.enface,
        mask=processing.mask,
        stitch=processing.stitch,
        tiles_folder=project.paths.processed_folder(mosaic),
        template_path=project.paths.tilemap(project.illumination(mosaic).name),
        stitched_folder=project.paths.stitched_folder(mosaic),
    )


def _released(project: Project, mosaic: MosaicId) -> list[Event]:
    """Return announcements of the mosaics of this illumination that wait for a template and need not any longer."""
    snapshot = project.facts.snapshot(mosaics=())
    return [
        project.event(MosaicReady, other)
        for other in _others(project, mosaic, snapshot)
        if not waits_for_template(project, other, snapshot)
    ]


def _others(project: Project, mosaic: MosaicId, snapshot: FactsView) -> list[MosaicId]:
    items = project.facts.snapshot(mosaics=()).items("mosaic")
    index = project.layout.illumination_index(mosaic)
    return [
        item
        for item in items
        if isinstance(item, MosaicId)
        and item != mosaic
        and project.layout.illumination_index(item) == index
        and snapshot.has(item, "waiting")
        and not snapshot.has(item, "stitched")
        and not snapshot.has(item, "failed")
    ]


def doubts_of_mosaic(coordinates: CoordinatesResult, stitched: MosaicResult, /) -> list[str]:
    """Return what people should look at before they trust a stitched mosaic; nothing where all is well."""
    doubts = []
    if coordinates.verdict is not None and coordinates.verdict.grade != "good":
        doubts.append(f"coordinates are {coordinates.verdict.sentence}")
    elif coordinates.verdict is not None and coordinates.verdict.pattern:
        doubts.append(f"coordinates: {coordinates.verdict.pattern}")
    if stitched.missing_tiles:
        doubts.append(f"stitched without tiles {', '.join(map(str, stitched.missing_tiles))}")
    if stitched.tissue_fraction == 0:
        doubts.append("the mask keeps nothing, all maps are empty (processing.mask.threshold_db)")
    return doubts


def stitch_volume(project: Project, event: MosaicStitched, /, *, attempt: Attempt = once) -> list[Event]:
    """Stitch the volumes of a mosaic and return what is to be announced."""
    mosaic, facts = event.mosaic, project.facts
    if not project.config.stitches_volumes:
        facts.journal.skipped(mosaic, "volume_stitched", "processing.volume.enabled or save_volumes is off")
        return []
    if not facts.has(mosaic, "stitched"):
        facts.journal.skipped(mosaic, "volume_stitched", "the mosaic is not stitched (any longer)")
        return []
    if waits_for_focus(project, mosaic, facts):
        facts.journal.skipped(mosaic, "volume_stitched", "waits for the focus map, which is being renewed")
        return []

    def compute(_claim: Claim) -> Result:
        made = attempt(f"stitch volume of mosaic {mosaic.mosaic_id}", lambda: _stitch_volume(project, mosaic))
        refreshed = project.config.processing.focus.force_refresh
        focus = project.paths.focus(project.illumination(mosaic).name)
        return Result(
            outputs=[facts.file_record(path, checksum=False) for path in made.outputs.values()],
            inputs=[] if refreshed else [facts.file_record(focus)],
            detail={"products": {name: project.paths.relative(path) for name, path in made.outputs.items()}},
        )

    outcome = perform(project, mosaic, STITCH_VOLUME, compute)
    if isinstance(outcome, Failed):
        return [project.event(MosaicFailed, mosaic, stage=STITCH_VOLUME.name, reason=outcome.reason)]
    if not isinstance(outcome, Done):
        return []
    return [project.event(MosaicVolumeStitched, mosaic, outputs=outcome.result.detail["products"])]


def _stitch_volume(project: Project, mosaic: MosaicId) -> VolumeResult:
    from opticstream.stages.stitch_volume import stitch_volume as stage

    illumination = project.illumination(mosaic).name
    return stage(
        mosaic,
        scan=project.config.scan,
        settings=project.config.processing.volume,
        tiles_folder=project.paths.processed_folder(mosaic),
        template_path=project.paths.tilemap(illumination),
        focus_path=project.paths.focus(illumination),
        mask_path=project.paths.mosaic_product(mosaic, "mask"),
        stitched_folder=project.paths.stitched_folder(mosaic),
        threads=project.config.processing.reconstruction.threads,
    )

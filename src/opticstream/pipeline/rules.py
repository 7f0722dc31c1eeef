"""Rules: what follows from a fact, as small functions of facts and layout.

Each rule that announces something first records it, and only the caller that recorded it announces it. Two flows
therefore cannot announce the same thing twice, and after a crash between record and announcement
`opticstream.pipeline.pending` announces it again.
"""

from __future__ import annotations

from collections.abc import Iterable

from opticstream.model.events import MosaicReady, SliceReady
from opticstream.model.ids import BatchId, MosaicId, SliceId
from opticstream.pipeline.project import Project
from opticstream.pipeline.run_parameters import detail_of_parameters, parameters_of_results
from opticstream.pipeline.templates import focus_is_outdated, template_is_outdated
from opticstream.state import FactsView


def after_batch(project: Project, batch: BatchId, /) -> MosaicReady | None:
    """Return the announcement that a batch's mosaic is ready, if this call was the first to find it."""
    mosaic, facts = batch.mosaic, project.facts
    if facts.has(mosaic, "ready") or not has_all_batches(project, mosaic, facts):
        return None
    made = parameters_of_results(project, [(b, fact) for b in project.layout.batches(mosaic) for fact in BATCH_ENDED])
    if not facts.record(mosaic, "ready", {"detail": detail_of_parameters(made)}):
        return None
    return project.event(MosaicReady, mosaic, parameters=made)


def has_all_batches(project: Project, mosaic: MosaicId, facts: FactsView, /) -> bool:
    """Return whether each batch of a mosaic is processed, or parked as failed."""
    return facts.reached(project.layout.batches(mosaic), *BATCH_ENDED)


def after_mosaic(project: Project, mosaic: MosaicId, /) -> SliceReady | None:
    """Return the announcement that a mosaic's slice is ready, if this call was the first to find it."""
    slice_id, facts = project.layout.slice_of(mosaic), project.facts
    if facts.has(slice_id, "ready") or not may_register(project, slice_id, facts):
        return None
    made = parameters_of_results(project, [(m, f) for m in project.layout.mosaics(slice_id) for f in MOSAIC_ENDED])
    if not facts.record(slice_id, "ready", {"detail": detail_of_parameters(made)}):
        return None
    return project.event(SliceReady, slice_id, parameters=made)


def may_register(project: Project, slice_id: SliceId, facts: FactsView, /) -> bool:
    """Return whether each mosaic of a slice is stitched or parked, with its volumes if these are to be resampled."""
    with_volumes = project.config.processing.registration.resample_volumes and project.config.stitches_volumes
    return all(
        is_settled(facts, mosaic)
        and (not with_volumes or bool(facts.facts_of(mosaic) & {"failed", "volume_stitched", "volume_failed"}))
        for mosaic in project.layout.mosaics(slice_id)
    )


def is_settled(facts: FactsView, mosaic: MosaicId, /) -> bool:
    """Return whether a mosaic is stitched, or parked as failed."""
    return facts.has(mosaic, "stitched") or facts.has(mosaic, "failed")


def good_mosaics(project: Project, slice_id: SliceId, /) -> tuple[MosaicId, ...]:
    """Return the stitched mosaics of a slice."""
    return tuple(m for m in project.layout.mosaics(slice_id) if project.facts.has(m, "stitched"))


BATCH_ENDED = ("processed", "failed")
"""Facts of a batch of which one is recorded when its processing has ended."""
MOSAIC_ENDED = ("stitched", "failed")
"""Facts of a mosaic of which one is recorded when its stitching has ended."""
REGISTRATION_ENDED = frozenset({"registered", "axis_failed", "skipped", "failed"})
"""Facts of a slice of which one is recorded when its registration has ended."""


def belongs_in_sample(project: Project, slice_id: SliceId, facts: FactsView, /) -> bool:
    """Return whether a slice has results for the sample's stacks: fibre axes, or at least the maps of its first mosaic.

    After a failed registration a slice is added without axes; without its first mosaic it is a gap.
    """
    known = facts.facts_of(slice_id)
    if not project.config.processing.sample.enabled:
        return False
    mosaics = project.layout.mosaics(slice_id)
    settled = bool(known & {"axis_failed", "skipped"}) or (len(mosaics) == 1 and "ready" in known)
    return "registered" in known or (settled and facts.has(mosaics[0], "stitched"))


def may_determine_template(project: Project, mosaic: MosaicId, facts: FactsView, /) -> bool:
    """Return whether a mosaic is the one that determines the coordinates of its illumination.

    It is the first mosaic of the illumination that is not parked as failed, so that a lost first slice does not hold
    up all others; or one that has waited long enough for earlier slices without any tile.
    """
    earlier = [m for m in earlier_mosaics(project, mosaic) if not facts.has(m, "failed")]
    if not earlier:
        return True
    return has_stopped_waiting(project, mosaic) and not any(has_begun(project, m, facts) for m in earlier)


def has_stopped_waiting(project: Project, mosaic: MosaicId, /) -> bool:
    """Return whether a mosaic has stopped waiting for the template, because no earlier slice has started."""
    record = project.facts.read_whole(mosaic, "waiting")
    return record is not None and "no_longer" in record.detail


def has_begun(project: Project, mosaic: MosaicId, facts: FactsView, /) -> bool:
    """Return whether a mosaic, or one of its batches, has any fact."""
    return bool(facts.facts_of(mosaic)) or any(facts.facts_of(batch) for batch in project.layout.batches(mosaic))


def earlier_mosaics(project: Project, mosaic: MosaicId, /) -> Iterable[MosaicId]:
    """Return the mosaics of the same illumination in earlier slices, in order."""
    index = project.layout.illumination_index(mosaic)
    last = project.layout.slice_of(mosaic).slice_id
    return (project.layout.mosaic(SliceId(s), index) for s in range(1, last))


def waits_for_template(project: Project, mosaic: MosaicId, facts: FactsView, /) -> bool:
    """Return whether a mosaic has to wait because the template of its illumination does not exist, or is being renewed.

    A template made with other settings is renewed by the mosaic that determines it, when that is stitched again.
    """
    if project.config.processing.coordinates.force_refresh_coordinates:
        return False
    if not project.paths.tilemap(project.illumination(mosaic).name).exists():
        return not may_determine_template(project, mosaic, facts)
    return _is_renewed_first(project, mosaic, facts) and template_is_outdated(project, mosaic)


def waits_for_focus(project: Project, mosaic: MosaicId, facts: FactsView, /) -> bool:
    """Return whether a mosaic's volumes have to wait because the focus map of its illumination is being renewed."""
    return _is_renewed_first(project, mosaic, facts) and focus_is_outdated(project, mosaic)


def _is_renewed_first(project: Project, mosaic: MosaicId, facts: FactsView) -> bool:
    """Return whether an earlier mosaic of the illumination is to be stitched first, and renews what is outdated."""
    good = (m for m in earlier_mosaics(project, mosaic) if not facts.has(m, "failed"))
    first = next((m for m in good if has_begun(project, m, facts)), None)
    return first is not None and not facts.has(first, "stitched")

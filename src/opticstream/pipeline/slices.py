"""The work on one slice: fibre axes from its illuminations, and its place in the sample's stacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from opticstream.model.events import (
    Event,
    SampleFailed,
    SampleUpdated,
    SliceFailed,
    SliceFlagged,
    SliceReady,
    SliceRegistered,
)
from opticstream.model.ids import MosaicId, SampleId, SliceId
from opticstream.pipeline.failures import describe
from opticstream.pipeline.jobs import REGISTER_SLICE, Attempt, Done, Failed, Result, once, perform
from opticstream.pipeline.parameters import sample_hash, slice_hash
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import good_mosaics
from opticstream.state import Claim, FactsSnapshot

if TYPE_CHECKING:
    from opticstream.stages.update_sample import SampleInput


def register_slice(project: Project, event: SliceReady, /, *, attempt: Attempt = once) -> list[Event]:
    """Register the illuminations of a slice and return what is to be announced.

    With fewer than two good illuminations the slice is recorded as skipped, with the reason.
    """
    from opticstream.stages.register_slice import SliceMosaic
    from opticstream.stages.register_slice import register_slice as stage

    slice_id = event.slice
    flagged: list[str] = []

    def compute(_claim: Claim) -> Result:
        good = good_mosaics(project, slice_id)
        if len(good) < 2:
            return Result(fact="skipped", detail={"reason": _why_skipped(project, slice_id, good)})
        mosaics = [
            SliceMosaic(
                project.illumination(mosaic).name,
                _stitched_maps(project, mosaic),
                tilt_deg=project.illumination(mosaic).tilt_deg,
                tilt_axis_deg=project.illumination(mosaic).tilt_axis_deg,
                volumes=_stitched_volumes(project, mosaic),
            )
            for mosaic in good
        ]
        made = attempt(
            f"register slice {slice_id.slice_id}",
            lambda: stage(
                mosaics,
                project.paths.registered_folder,
                slice_id=slice_id.slice_id,
                settings=project.config.processing.registration,
                subject_id=project.config.project.subject_id,
                project_name=project.config.name,
                threads=project.config.processing.reconstruction.threads,
            ),
        )
        made.require_axis()
        flagged.extend(made.failures)
        return Result(
            outputs=[project.facts.file_record(path, checksum=path.is_file()) for path in made.outputs.values()],
            parameters_hash=slice_hash(project.config),
            detail={
                "products": {name: project.paths.relative(path) for name, path in made.outputs.items()},
                "pictures": [project.paths.relative(path) for path in made.pictures],
                "mosaics": [mosaic.mosaic_id for mosaic in good],
                "summary": made.summary,
            },
        )

    outcome = perform(project, slice_id, REGISTER_SLICE, compute)
    if isinstance(outcome, Failed):
        return [project.event(SliceFailed, slice_id, stage=REGISTER_SLICE.name, reason=outcome.reason)]
    if not isinstance(outcome, Done):
        return []
    if outcome.result.fact == "skipped":
        if len(project.layout.mosaics(slice_id)) < 2:
            return []  # nothing has failed: such a project has nothing to register
        reason = str(outcome.result.detail["reason"])
        return [project.event(SliceFailed, slice_id, stage=REGISTER_SLICE.name, reason=f"skipped: {reason}")]
    events: list[Event] = [
        project.event(SliceRegistered, slice_id, outputs=outcome.result.detail["products"]),
    ]
    if flagged:
        events.append(project.event(SliceFlagged, slice_id, reasons=tuple(flagged)))
    return events


def _why_skipped(project: Project, slice_id: SliceId, good: tuple[MosaicId, ...]) -> str:
    mosaics = project.layout.mosaics(slice_id)
    if len(mosaics) < 2:
        return "the project has one illumination; there is nothing to register"
    lost = ", ".join(
        f"mosaic {m.mosaic_id} ({project.illumination(m).name}) is parked as failed" for m in mosaics if m not in good
    )
    return f"registration needs at least two good illuminations; {lost}"


def _stitched_maps(project: Project, mosaic: MosaicId) -> dict[str, Path]:
    record = project.facts.read(mosaic, "stitched")
    products = record.detail.get("products", {}) if record else {}
    return {name: project.paths.absolute(path) for name, path in products.items() if path.endswith(".nii.gz")}


def _stitched_volumes(project: Project, mosaic: MosaicId) -> dict[str, Path]:
    """Return the volumes of a mosaic that are stitched so far; registration does not wait for them."""
    record = project.facts.read(mosaic, "volume_stitched")
    products = record.detail.get("products", {}) if record else {}
    return {name: project.paths.absolute(path) for name, path in products.items()}


def update_sample(project: Project, event: SliceRegistered, /, *, attempt: Attempt = once) -> list[Event]:
    """Add a registered slice to the sample's stacks and return what is to be announced.

    The stacks belong to all slices, so the claim is on the sample: slices are added one after the other.
    """
    from opticstream.stages.update_sample import update_sample as stage

    if not project.config.processing.sample.enabled:
        project.facts.journal.skipped(event.slice, "stacked", "processing.sample.enabled is off")
        return []
    facts, slice_id = project.facts, event.slice
    if facts.has(slice_id, "stacked") and slice_id not in late_volumes(project):
        facts.journal.skipped(slice_id, "stacked", "already stacked")
        return []
    claim = facts.claim(SampleId(), lease_s=project.deployment.lease_s)
    if claim is None:
        # The holder looks for further slices before it lets go, and the sweep finds what falls in between.
        facts.journal.skipped(slice_id, "stacked", f"claimed: {facts.holder(SampleId())}")
        return []
    events: list[Event] = []
    with claim:
        while waiting := _unstacked(project):
            try:
                made = attempt(f"stack slice {waiting[0].slice_id}", lambda: stage(sample_input(project, waiting[0])))
            except Exception as error:
                reason = describe(error)
                facts.replace(waiting[0], "stack_failed", {"detail": {"reason": reason}}, why=reason)
                events.append(project.event(SampleFailed, SampleId(), slice_id=waiting[0].slice_id, reason=reason))
                continue
            claim.ensure_mine()
            content = Result(
                outputs=[facts.file_record(path, checksum=False) for path in made.outputs.values()],
                parameters_hash=sample_hash(project.config),
                detail={"slices": list(made.slices), "missing": list(made.missing)},
            ).content()
            if not facts.record(waiting[0], "stacked", content):
                facts.replace(
                    waiting[0], "stacked", content, why="its volumes were stitched after its maps were stacked"
                )
            facts.replace(SampleId(), "updated", content, why=f"slice {waiting[0].slice_id} added")
            events.append(
                project.event(
                    SampleUpdated,
                    SampleId(),
                    slice_id=waiting[0].slice_id,
                    slices=tuple(made.slices),
                    missing=tuple(made.missing),
                )
            )
    return events


def sample_input(project: Project, slice_id: SliceId) -> SampleInput:
    """Return what a registered slice brings to the sample: maps and volumes of its fixed mosaic, and its axes.

    Stacks are named `{illumination}_{modality}` and `registered_{product}`: both have a birefringence.
    """
    from opticstream.stages.update_sample import SampleInput

    record = project.facts.read(slice_id, "registered")
    used = record.detail.get("mosaics") if record else None
    fixed = MosaicId(int(used[0])) if used else project.layout.mosaics(slice_id)[0]
    snapshot = project.facts.snapshot(mosaics=())
    slices = [item for item in snapshot.items("slice") if isinstance(item, SliceId)]
    lost = {}
    for item in slices:
        for fact in ("skipped", "failed"):
            if snapshot.has(item, fact):
                why = project.facts.read(item, fact)
                lost[item.slice_id] = str(why.detail.get("reason", fact)) if why else fact
    products = record.detail.get("products", {}) if record else {}
    settings = project.config.processing.sample
    name = project.illumination(fixed).name
    return SampleInput(
        folder=project.paths.sample_folder,
        slice_id=slice_id.slice_id,
        maps={f"{name}_{m}": path for m, path in _stitched_maps(project, fixed).items() if m in settings.modalities}
        | {
            f"registered_{product}": project.paths.absolute(products[product])
            for product in settings.products
            if product in products
        },
        volumes={f"{name}_{m}": path for m, path in _stitched_volumes(project, fixed).items()},
        settings=settings,
        slice_thickness_um=project.config.scan.slice_thickness_um,
        failed=lost,
        expected=max(item.slice_id for item in slices),
    )


def _unstacked(project: Project) -> list[SliceId]:
    snapshot = project.facts.snapshot(mosaics=())
    slices = [item for item in snapshot.items("slice") if isinstance(item, SliceId)]
    fresh = [
        item
        for item in slices
        if snapshot.has(item, "registered") and not snapshot.facts_of(item) & {"stacked", "stack_failed"}
    ]
    return fresh + late_volumes(project, snapshot)


def late_volumes(project: Project, snapshot: FactsSnapshot | None = None, /) -> list[SliceId]:
    """Return the slices that are in the stacks but whose volumes, stitched since, are not.

    Volumes take longer than maps and registration; nothing waits for them.
    """
    if not (project.config.processing.sample.volumes and project.config.stitches_volumes):
        return []
    known = snapshot or project.facts.snapshot(mosaics=())
    stacked = [item for item in known.items("slice") if isinstance(item, SliceId) and known.has(item, "stacked")]
    done = [item for item in stacked if any(known.has(m, "volume_stitched") for m in project.layout.mosaics(item))]
    if not done:
        return []
    from opticstream.stages.update_sample import stacks_by_slice

    held = stacks_by_slice(project.paths.sample_folder)
    return [
        item for item in done if not set(sample_input(project, item).volumes) <= held.get(item.slice_id, frozenset())
    ]

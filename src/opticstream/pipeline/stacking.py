"""The sample's stacks: which slices are to be added, and adding them, as the pipeline does it or by hand.

The stacks belong to all slices, so the claim is on the sample: slices are added one after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opticstream.io.atomic import atomic_folder
from opticstream.model.chain import Step
from opticstream.model.errors import InputError, OpticStreamError, StateError
from opticstream.model.events import Event, SampleFailed, SampleUpdated, SliceReady, SliceRegistered
from opticstream.model.ids import MosaicId, SampleId, SliceId
from opticstream.pipeline.failures import describe, kind_of
from opticstream.pipeline.jobs import (
    UPDATE_SAMPLE,
    Attempt,
    Done,
    Failed,
    Outcome,
    Part,
    Result,
    memory_for,
    once,
    perform_part,
    refuse_after_crashes,
)
from opticstream.pipeline.products import recorded_products, stitched_maps, stitched_volumes
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import belongs_in_sample
from opticstream.pipeline.run_parameters import event_of
from opticstream.pipeline.sample_decisions import decisions_of, digest_of_places, undecided_slices
from opticstream.pipeline.sample_quality import flagged_since, quality_of_sample
from opticstream.state import Claim, FactsSnapshot
from opticstream.state.record import sha256_of_path
from opticstream.system.spent import Spent

if TYPE_CHECKING:
    from opticstream.stages.sample import OtherSpace, SampleInput, UpdatedSample


def update_sample(project: Project, /, *, attempt: Attempt = once) -> Iterator[Event]:
    """Add every slice that waits for it to the sample's stacks, and yield what is to be announced as it happens."""
    if not unstacked(project):
        return
    with memory_for(project, SampleId(), UPDATE_SAMPLE):
        yield from _add_waiting_slices(project, attempt)


def _add_waiting_slices(project: Project, attempt: Attempt) -> Iterator[Event]:
    facts = project.facts
    claim = facts.claim(SampleId(), UPDATE_SAMPLE.claim, lease_s=project.deployment.lease_s)
    if claim is None:
        # The holder checks for further slices before it releases its claim; the sweep finds one that slips through.
        facts.journal.skipped(SampleId(), "updated", f"claimed: {facts.holder(SampleId(), UPDATE_SAMPLE.claim)}")
        return
    with claim:
        while waiting := unstacked(project):
            slice_id = waiting[0]
            before = quality_of_sample(project)
            outcome, made = _stack_slice(project, slice_id, UPDATE_SAMPLE, claim, attempt=attempt)
            if isinstance(outcome, Failed):
                yield project.event(SampleFailed, SampleId(), slice_id=slice_id.slice_id, reason=outcome.reason)
                if _left_out(project, slice_id, claim) and (update := last_update(project)) is not None:
                    yield update  # the stacks can be published again
            elif made is not None:
                yield project.event(
                    SampleUpdated,
                    SampleId(),
                    slice_id=slice_id.slice_id,
                    slices=tuple(made.slices),
                    missing=tuple(made.missing),
                )
                yield from flagged_since(project, before)


def _stack_slice(
    project: Project, slice_id: SliceId, step: Step, claim: Claim, /, *, attempt: Attempt = once
) -> tuple[Outcome, UpdatedSample | None]:
    """Add a slice to the stacks and record it; returns their new state, None where the slice was not added."""
    from opticstream.stages import sample as sample_stages

    facts = project.facts
    made: list[UpdatedSample] = []

    def compute(claim: Claim) -> Result:
        if step.failed is not None:
            refuse_after_crashes(project, slice_id, step, _crashes_without_progress(project, claim))
        # Looked up before the volumes are read: what is stitched meanwhile is not in the stacks.
        volumes = _hashes_of_volumes(project, slice_id)
        name = f"stack slice {slice_id.slice_id}"
        made.append(attempt(name, lambda: sample_stages.update_sample(sample_input(project, slice_id))))
        return Result(detail={"volumes": volumes})

    def record(content: Mapping[str, Any], spent: Spent) -> None:
        known = facts.read(slice_id, "stacked")
        volumes = content["detail"]["volumes"]
        changed = made[-1].changed or known is None or known.detail.get("volumes") != volumes
        slices_of_record = facts.read(SampleId(), "updated")
        if slices_of_record is not None and _decisions_detail(made[-1]) != {
            name: slices_of_record.detail[name] for name in ("excluded", "placed") if name in slices_of_record.detail
        }:
            changed = True
        facts.withdraw(slice_id, "stack_failed", reason="stacked by hand")
        if not facts.record(slice_id, "stacked", content) and changed:
            facts.replace(slice_id, "stacked", content, why="its part of the stacks was written again")
        why = f"slice {slice_id.slice_id} was added"
        _record_stacks(project, made[-1], claim, content["parameters_hash"], changed=changed, why=why)
        facts.journal.computed(slice_id, "stacked", spent)

    part = Part(slice_id, record, lambda: {"detail": {"attempt": claim.generation}})
    outcome = perform_part(project, part, step, claim, compute)
    return outcome, made[-1] if isinstance(outcome, Done) else None


def _poses_detail(made: UpdatedSample) -> dict[str, Any]:
    """Return what the record of the sample says about the poses of its slices; nothing without alignment."""
    if not made.poses:
        return {}
    return {
        "poses": {
            "version": made.poses_version,
            "moved": list(made.moved),
            "sigma_px": {str(n): pose.sigma_px for n, pose in sorted(made.poses.items())},
            "unplaced": {str(n): reason for n, reason in sorted(made.unplaced.items())},
        }
    }


def _decisions_detail(made: UpdatedSample) -> dict[str, Any]:
    """Return which decisions of people the stacks follow; nothing without any."""
    from opticstream.stages.sample import facts_of_edge

    placed = digest_of_places(tuple(facts_of_edge(edge) for edge in made.placed))
    excluded = {str(n): reason for n, reason in sorted(made.excluded.items())}
    return {**({"excluded": excluded} if excluded else {}), **({"placed": placed} if placed else {})}


def _record_stacks(
    project: Project, made: UpdatedSample, claim: Claim, parameters_hash: str | None, *, changed: bool, why: str
) -> None:
    """Record the state of the stacks, which then wait for publication if they have changed.

    The stacks grow with every slice, so the sample's record, always the latest, vouches for their files.
    """
    facts = project.facts
    if changed:
        for fact in ("uploaded", "upload_failed", "published", "publish_failed"):
            facts.withdraw(SampleId(), fact, reason=why)
    sample = {
        "parameters_hash": parameters_hash,
        "inputs_hash": sha256_of_path(made.outputs["slices"]),
        "outputs": [facts.file_record(path, checksum=False) for path in made.outputs.values()],
        "detail": {
            "slices": list(made.slices),
            "missing": list(made.missing),
            "attempt": claim.generation,
            **_poses_detail(made),
            **_decisions_detail(made),
            "quality": {str(n): asdict(figures) for n, figures in sorted(made.figures.items())},
        },
    }
    facts.replace(SampleId(), "updated", sample, why=why)


def leave_out_parked_slices(project: Project, /) -> None:
    """Take slices out of the stacks that were parked in the middle of being added, and that nobody is adding now."""
    from opticstream.stages.sample import unfinished_slices

    facts = project.facts
    unfinished = map(SliceId, unfinished_slices(project.paths.sample_folder))
    parked = [slice_id for slice_id in unfinished if facts.has(slice_id, "stack_failed")]
    if not parked:
        return
    claim = facts.claim(SampleId(), UPDATE_SAMPLE.claim, lease_s=project.deployment.lease_s)
    if claim is None:
        return
    with claim:
        for slice_id in parked:
            _left_out(project, slice_id, claim)


def _left_out(project: Project, slice_id: SliceId, claim: Claim) -> bool:
    """Take a parked slice out of the stacks if it was begun there; return whether that changed them.

    What cannot be taken out now is taken out before the next publication.
    """
    from opticstream.stages.sample import leave_out_unfinished

    facts = project.facts
    try:
        made = leave_out_unfinished(sample_input(project, slice_id))
    except (OpticStreamError, OSError) as error:
        facts.journal.failed(SampleId(), None, why=describe(error), kind=kind_of(error), stage=UPDATE_SAMPLE.name)
        return False
    known = facts.read(SampleId(), "updated")
    if made is not None and known is not None:
        why = f"slice {slice_id.slice_id} was left out"
        _record_stacks(project, made, claim, known.parameters_hash, changed=True, why=why)
    return made is not None


def _crashes_without_progress(project: Project, claim: Claim) -> int:
    """Return how many attempts in a row have died since a slice was last added or parked.

    They all died at the slice that is the first one now: slices are added in order.
    """
    facts = project.facts
    crashes = facts.claims.crashes(SampleId(), claim.work)
    if not crashes:
        return 0
    known = facts.snapshot(mosaics=())
    parked = [item for item in known.items("slice") if known.has(item, "stack_failed")]
    ends = [facts.read(SampleId(), "updated"), *(facts.read(item, "stack_failed") for item in parked)]
    last = max((int(record.detail.get("attempt", 0)) for record in ends if record is not None), default=0)
    return min(crashes, claim.generation - 1 - last)


def last_update(project: Project, /) -> SampleUpdated | None:
    """Return the announcement of the last update of the stacks; None without one, or if its record names no slices."""
    record = project.facts.read_whole(SampleId(), "updated")
    slices = tuple(record.detail.get("slices", ())) if record else ()
    if record is None or not slices:
        return None
    missing = tuple(record.detail.get("missing", ()))
    return project.event(SampleUpdated, SampleId(), slice_id=slices[-1], slices=slices, missing=missing)


def _hashes_of_volumes(project: Project, slice_id: SliceId) -> list[str | None] | None:
    """Return the hashes behind the stitched volumes that a slice brings to the stacks; None where there are none."""
    volumes = project.facts.hashes(_fixed_mosaic(project, slice_id), "volume_stitched")
    return None if volumes is None else list(volumes)


def unstacked(project: Project, snapshot: FactsSnapshot | None = None, /) -> list[SliceId]:
    """Return the slices that belong in the stacks and are missing there, or lack volumes there, in order."""
    known = snapshot or project.facts.snapshot(mosaics=())
    slices = [item for item in known.items("slice") if isinstance(item, SliceId)]
    every = [item for item in slices if belongs_in_sample(project, item, known)]
    wanted = [item for item in every if not known.has(item, "stack_failed")]
    stacked = [item for item in wanted if known.has(item, "stacked")]
    again = set(_with_late_volumes(project, stacked, known))
    # Parked ones count here, or one slice after the other would be parked for the same reason.
    again |= set(undecided_slices(project, [item for item in every if known.has(item, "stacked")], known))
    return [item for item in wanted if item in again or not known.has(item, "stacked")]


def _with_late_volumes(project: Project, stacked: list[SliceId], known: FactsSnapshot) -> Iterator[SliceId]:
    """Yield the stacked slices whose volumes were stitched, or stitched again, after the slice was stacked."""
    if not (project.config.processing.sample.volumes and project.config.stitches_volumes):
        return
    done = [item for item in stacked if any(known.has(m, "volume_stitched") for m in project.layout.mosaics(item))]
    if not done:
        return
    from opticstream.stages.sample import stacks_by_slice

    held = stacks_by_slice(project.paths.sample_folder)
    excluded = decisions_of(project, known).excluded
    for item in done:
        if item.slice_id in excluded:
            continue
        record, now = project.facts.read(item, "stacked"), _hashes_of_volumes(project, item)
        redone = now is not None and record is not None and record.detail.get("volumes", now) != now
        if redone or not set(_volumes_by_stack(project, item)) <= held.get(item.slice_id, frozenset()):
            yield item


def end_of_registration(project: Project, slice_id: SliceId, /) -> Event:
    """Return the announcement that a slice is registered; that it is ready where it goes on without registration."""
    kind = SliceRegistered if project.facts.has(slice_id, "registered") else SliceReady
    return event_of(project, kind, slice_id)


def sample_input(project: Project, slice_id: SliceId, /) -> SampleInput:
    """Return what a slice brings to the sample: maps and volumes of its fixed mosaic, and its axes if it has any.

    Stacks are named `{illumination}_{modality}` and `registered_{product}`: both have a birefringence.
    """
    from opticstream.stages.sample import SampleInput, edge_from_facts

    facts, settings = project.facts, project.config.processing.sample
    snapshot = facts.snapshot(mosaics=())
    slices = [item for item in snapshot.items("slice") if isinstance(item, SliceId)]
    reasons = {item: _why_without_axis(project, item, snapshot) for item in slices}
    fixed = _fixed_mosaic(project, slice_id)
    products = recorded_products(project, slice_id, "registered")
    name = project.illumination(fixed).name
    decisions = decisions_of(project, snapshot)
    return SampleInput(
        folder=project.paths.sample_folder,
        slice_id=slice_id.slice_id,
        maps={f"{name}_{m}": path for m, path in stitched_maps(project, fixed).items() if m in settings.modalities}
        | {f"registered_{product}": products[product] for product in settings.products if product in products},
        volumes=_volumes_by_stack(project, slice_id),
        settings=settings,
        slice_thickness_um=project.config.scan.slice_thickness_um,
        without_axis=reasons[slice_id],
        failed={item.slice_id: reason for item, reason in reasons.items() if reason},
        expected=max(item.slice_id for item in slices),
        excluded=decisions.excluded,
        placed=tuple(edge_from_facts(edge) for edge in decisions.placed),
        title=project.config.name,
    )


def _volumes_by_stack(project: Project, slice_id: SliceId) -> dict[str, Path]:
    """Return the volumes of a slice's fixed mosaic by the name of their stack."""
    fixed = _fixed_mosaic(project, slice_id)
    return {f"{project.illumination(fixed).name}_{m}": path for m, path in stitched_volumes(project, fixed).items()}


def _fixed_mosaic(project: Project, slice_id: SliceId) -> MosaicId:
    """Return the mosaic that the others of the slice were registered onto; the first one without registration."""
    record = project.facts.read(slice_id, "registered")
    used = record.detail.get("mosaics") if record else None
    return MosaicId(int(used[0])) if used else project.layout.mosaics(slice_id)[0]


def _why_without_axis(project: Project, slice_id: SliceId, snapshot: FactsSnapshot) -> str:
    for fact in ("failed", "axis_failed", "skipped"):
        if snapshot.has(slice_id, fact):
            record = project.facts.read_whole(slice_id, fact)
            return str(record.detail.get("reason", fact)) if record else fact
    return ""


def excluded_in_stacks(project: Project, /) -> dict[int, str]:
    """Return the slices that the stacks leave out because a person excluded them, and why, as last recorded."""
    record = project.facts.read_whole(SampleId(), "updated")
    excluded = record.detail.get("excluded") if record else None
    return {int(n): str(reason) for n, reason in (excluded or {}).items()}


def report_sample(project: Project, /) -> dict[str, Path]:
    """Write the report of the sample as it is, record it, and return its files.

    Raises
    ------
    InputError
        There are no stacks yet.
    StateError
        Another process is updating the stacks.
    """
    from opticstream.stages import sample as sample_stages

    stacked = stackable_slices(project)
    if not stacked:
        raise InputError("no slice is stitched and registered yet, so that there is nothing to report")
    with _claimed_by_hand(project):
        written = sample_stages.report_sample(sample_input(project, stacked[0]))
        _record_files(project, why="the report of the sample was written again")
    return written


def register_sample(project: Project, /) -> OtherSpace:
    """Find the transform from the sample to another space by the command of the configuration, and keep it.

    Slices that become ready meanwhile are added afterwards: the transform belongs to one state of the sample.

    Raises
    ------
    ConfigurationError, InputError, ProcessingError
        As `opticstream.stages.sample.register_sample`.
    StateError
        Another process is updating the stacks.
    """
    from opticstream.stages import sample as sample_stages

    stacked = stackable_slices(project)
    if not stacked:
        raise InputError("no slice is stitched and registered yet, so that there is nothing to register")
    with _claimed_by_hand(project):
        made = sample_stages.register_sample(sample_input(project, stacked[0]))
        _record_files(project, why=f"the sample was registered to {made.name}")
    return made


def _record_files(project: Project, *, why: str) -> None:
    """Record the files of the sample after scenes or the report have changed, and have them published again.

    The claim on the sample is held, since an update that recorded the stacks meanwhile would be taken back.
    """
    facts = project.facts
    known = facts.read(SampleId(), "updated")
    if known is None:
        return
    outputs = [facts.file_record(project.paths.absolute(file.path), checksum=False) for file in known.outputs]
    if outputs == list(known.outputs):
        return
    for fact in ("uploaded", "upload_failed", "published", "publish_failed"):
        facts.withdraw(SampleId(), fact, reason=why)
    content = {"parameters_hash": known.parameters_hash, "inputs_hash": known.inputs_hash, "outputs": outputs}
    facts.replace(SampleId(), "updated", {**content, "detail": known.detail}, why=why)


def stackable_slices(project: Project, /) -> list[SliceId]:
    """Return the slices of a project that have something for the stacks, in order."""
    snapshot = project.facts.snapshot(mosaics=())
    slices = [item for item in snapshot.items("slice") if isinstance(item, SliceId)]
    return sorted(item for item in slices if belongs_in_sample(project, item, snapshot))


def stack_slices(
    project: Project, wanted: Collection[int] | None = None, /, *, rebuild: bool = False
) -> UpdatedSample | None:
    """Add the project's slices to the stacks and return their state; None if there is none to add.

    Slices, maps and volumes that the stacks hold already, from the same input, are not written again.

    Parameters
    ----------
    project : Project
        Whose slices to add.
    wanted : collection of int, optional
        Only these slices; all by default.
    rebuild : bool
        Remove the stacks first.

    Raises
    ------
    InputError
        A wanted slice has nothing for the stacks, or the stacks are to be built again from a part of the slices.
    StateError
        Another process is updating the stacks.
    """
    slices = stackable_slices(project)
    if wanted and rebuild:
        raise InputError("the stacks are built again from all slices; leave the slice numbers out")
    if wanted:
        absent = sorted(set(wanted) - {item.slice_id for item in slices})
        if absent:
            raise InputError(
                f"slices {absent} are not stitched and registered; those that are: {[s.slice_id for s in slices]}"
            )
        slices = [item for item in slices if item.slice_id in wanted]
    made = None
    with _claimed_by_hand(project) as claim:
        if rebuild:
            with atomic_folder(project.paths.sample_folder):
                pass  # an empty folder takes the place of the stacks
        for item in slices:
            # By hand nothing is parked: the caller gets the error.
            _, added = _stack_slice(project, item, replace(UPDATE_SAMPLE, failed=None), claim)
            made = added or made
    return made


def _claimed_by_hand(project: Project) -> Claim:
    """Return the claim on the sample, for somebody who is told where another process has it."""
    claim = project.facts.claim(SampleId(), UPDATE_SAMPLE.claim, lease_s=project.deployment.lease_s)
    if claim is None:
        holder = project.facts.holder(SampleId(), UPDATE_SAMPLE.claim)
        raise StateError(f"the sample's stacks are being updated by {holder}; try again later")
    return claim

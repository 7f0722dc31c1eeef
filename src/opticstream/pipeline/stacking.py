"""The sample's stacks by hand: all registered slices at once, or all over again."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from typing import TYPE_CHECKING

from opticstream.model.errors import InputError, StateError
from opticstream.model.ids import SampleId, SliceId
from opticstream.pipeline.project import Project
from opticstream.pipeline.slices import sample_input

if TYPE_CHECKING:
    from opticstream.stages.update_sample import UpdatedSample


def registered_slices(project: Project, /) -> list[SliceId]:
    """Return the slices of a project that are registered, in order."""
    snapshot = project.facts.snapshot(mosaics=())
    slices = [item for item in snapshot.items("slice") if isinstance(item, SliceId)]
    return sorted(item for item in slices if snapshot.has(item, "registered"))


def stack_slices(project: Project, wanted: Collection[int] | None = None, /) -> UpdatedSample | None:
    """Add registered slices to the stacks and return their state; None if no slice is registered.

    Slices, maps and volumes that the stacks hold already, from the same input, are not written again.

    Raises
    ------
    InputError
        A wanted slice is not registered.
    StateError
        Another process is at the stacks.
    """
    from opticstream.stages.update_sample import update_sample

    slices = registered_slices(project)
    if wanted:
        absent = sorted(set(wanted) - {item.slice_id for item in slices})
        if absent:
            raise InputError(f"slices {absent} are not registered; registered are {[s.slice_id for s in slices]}")
        slices = [item for item in slices if item.slice_id in wanted]
    made = None
    claim = project.facts.claim(SampleId(), lease_s=project.deployment.lease_s)
    if claim is None:
        raise StateError(
            f"the sample's stacks are being updated by {project.facts.holder(SampleId())}; try again later"
        )
    with claim:
        for item in slices:
            made = update_sample(sample_input(project, item))
            claim.ensure_mine()
    return made


def rebuild_sample(project: Project, /) -> None:
    """Remove the stacks, so that they are built again from nothing."""
    shutil.rmtree(project.paths.sample_folder, ignore_errors=True)

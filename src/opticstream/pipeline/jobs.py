"""The protocol of all work: look, claim, look again, compute, check the claim, record, announce; park what fails.

A job is done once however often and wherever it is asked for. What differs between jobs is named in `Job`; what they
compute is a function that returns what to record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from opticstream.model.errors import ClaimLost, ProcessingError
from opticstream.model.ids import ItemId
from opticstream.pipeline.failures import describe
from opticstream.pipeline.project import Project
from opticstream.state import Claim, FileRecord

R = TypeVar("R")


class Attempt(Protocol):
    """Runs one step, with retries where the caller wants them."""

    def __call__(self, name: str, step: Callable[[], R], /) -> R:
        """Return the step's result, or raise its last error."""
        ...


def once(name: str, step: Callable[[], R], /) -> R:
    """Run a step without retries; the `Attempt` of tests and of commands without a server."""
    return step()


@dataclass(frozen=True)
class Job:
    """One kind of work on one kind of item."""

    name: str
    """Stage, as people are told."""
    claim: str
    """Claim that keeps others out."""
    done: str
    """Fact that the work leads to."""
    failed: str | None = None
    """Fact that parks the work; None where the failures of its parts are recorded instead."""


PROCESS_BATCH = Job("process batch", "started", "processed")
STITCH_MOSAIC = Job("stitch mosaic", "started", "stitched", "failed")
STITCH_VOLUME = Job("stitch volume", "volume_started", "volume_stitched", "volume_failed")
REGISTER_SLICE = Job("register slice", "started", "registered", "axis_failed")
UPDATE_SAMPLE = Job("update sample", "started", "updated")
UPLOAD = Job("upload", "upload_started", "uploaded", "upload_failed")
UPLOAD_VOLUME = Job("upload volume", "volume_upload_started", "volume_uploaded", "volume_upload_failed")


@dataclass(frozen=True)
class Result:
    """What a computation leaves: files to vouch for, hashes, and what people may want to know."""

    outputs: Sequence[FileRecord] = ()
    inputs: Sequence[FileRecord] = ()
    parameters_hash: str | None = None
    inputs_hash: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    fact: str | None = None
    """Fact to record in place of the job's own, such as `skipped`."""

    def content(self) -> dict[str, Any]:
        """Return the content of the fact's record."""
        return {
            "outputs": self.outputs,
            "inputs": self.inputs,
            "parameters_hash": self.parameters_hash,
            "inputs_hash": self.inputs_hash,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Done:
    """The work was done and recorded by this call."""

    result: Result


@dataclass(frozen=True)
class Failed:
    """The work failed for good and was parked by this call."""

    reason: str


@dataclass(frozen=True)
class Skipped:
    """There was nothing to do for this call."""

    why: str


Outcome = Done | Failed | Skipped


def perform(project: Project, item: ItemId, job: Job, compute: Callable[[Claim], Result], /) -> Outcome:
    """Do a job unless it is done, parked, or in somebody else's hands.

    Parameters
    ----------
    project : Project
        Where the facts stand.
    item : ItemId
        What to work on.
    job : Job
        Which work.
    compute : callable
        Does the work and returns what to record; it may ask the claim whether it still holds.

    Returns
    -------
    Done, Failed or Skipped
        What this call did. Only `Done` and `Failed` are to be announced.

    Raises
    ------
    Exception
        The error of `compute`, where the job does not park its item.
    """
    facts = project.facts
    if reason := _settled(project, item, job):
        facts.journal.skipped(item, job.done, reason)
        return Skipped(reason)
    claim = facts.claim(item, job.claim, lease_s=project.deployment.lease_s)
    if claim is None:
        reason = f"claimed: {facts.holder(item, job.claim)}"
        facts.journal.skipped(item, job.done, reason)
        return Skipped(reason)
    with claim:
        if reason := _settled(project, item, job):
            return Skipped(reason)
        begin = time.monotonic()
        try:
            _refuse_after_crashes(project, item, job)
            result = compute(claim)
            claim.ensure_mine()
        except ClaimLost:
            raise
        except Exception as error:
            if job.failed is None:
                raise
            claim.ensure_mine()
            reason = describe(error)
            facts.record(item, job.failed, {"detail": {"reason": reason, "stage": job.name}})
            return Failed(reason)
        recorded = facts.record(item, result.fact or job.done, result.content())
        facts.journal.computed(item, result.fact or job.done, time.monotonic() - begin)
        return Done(result) if recorded else Skipped("recorded by somebody else meanwhile")


def _settled(project: Project, item: ItemId, job: Job) -> str | None:
    known = project.facts.facts_of(item)
    if job.done in known:
        return f"already {job.done}"
    if job.failed is not None and job.failed in known:
        return f"parked as {job.failed}; `opticstream retry` releases it"
    return None


def _refuse_after_crashes(project: Project, item: ItemId, job: Job) -> None:
    """Park work that has taken its process down again and again, instead of trying for ever."""
    crashed = project.facts.claims.crashes(item, job.claim)
    if crashed >= project.deployment.crashes:
        raise ProcessingError(
            f"{job.name} of {item}: the last {crashed} attempts ended with the death of their process; "
            f"`opticstream retry` releases it (OPTICSTREAM_CRASHES = {project.deployment.crashes})"
        )

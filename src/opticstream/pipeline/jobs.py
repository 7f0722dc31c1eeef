"""The protocol of all work: check, claim, check again, compute, verify the claim, record, announce; park what fails.

A step of the chain is done once, however often and wherever it is asked for. What differs between steps stands in
`opticstream.model.chain`; what they compute is a function that returns what to record. The parts of an item, such as
the tiles of a batch, go through the same protocol under the claim on the item.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from opticstream.model.chain import STEPS, Chain, Step
from opticstream.model.errors import ClaimLost, ProcessingError
from opticstream.model.events import Event
from opticstream.model.ids import ItemId
from opticstream.pipeline.bindings import binding_of
from opticstream.pipeline.dependencies import inputs_hash, keep_settings, settings_of
from opticstream.pipeline.failures import PASSES, describe, is_of_surroundings, is_transient, kind_of
from opticstream.pipeline.project import Project
from opticstream.pipeline.run_parameters import detail_of_parameters
from opticstream.state import Claim, FileRecord
from opticstream.state.vocabulary import is_failure
from opticstream.system.spent import Spent, Stopwatch

R = TypeVar("R")
_log = logging.getLogger(__name__)


class Attempt(Protocol):
    """Runs one step, with retries where the caller wants them."""

    def __call__(self, name: str, step: Callable[[], R], /) -> R:
        """Return the step's result, or raise its last error."""
        ...


def once(name: str, step: Callable[[], R], /) -> R:
    """Run a step without retries; the `Attempt` of tests and of commands without a server."""
    return step()


_chain = Chain(STEPS)
PROCESS_BATCH = _chain.named("process batch", "batch")
ARCHIVE_BATCH = _chain.named("archive batch", "batch")
STITCH_MOSAIC = _chain.named("stitch mosaic", "mosaic")
STITCH_VOLUME = _chain.named("stitch volume", "mosaic")
REGISTER_SLICE = _chain.named("register slice", "slice")
UPDATE_SAMPLE = _chain.named("update sample", "slice")


@dataclass(frozen=True)
class Result:
    """What a computation leaves: its files, and what its record tells besides.

    The hash of the settings is added by `perform`, and that of the inputs unless it is given here.
    """

    outputs: Sequence[FileRecord] = ()
    inputs: Sequence[FileRecord] = ()
    inputs_hash: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    fact: str | None = None
    """Fact to record in place of the job's own, such as `skipped`."""

    def content(self) -> dict[str, Any]:
        """Return the content of the fact's record."""
        return {
            "outputs": self.outputs,
            "inputs": self.inputs,
            "inputs_hash": self.inputs_hash,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class Done:
    """The work was done and recorded by this call."""

    result: Result


@dataclass(frozen=True)
class Failed:
    """The work failed for good, and this call has parked it."""

    reason: str
    error: Exception | None = None


@dataclass(frozen=True)
class Skipped:
    """There was nothing to do for this call."""

    why: str


Outcome = Done | Failed | Skipped
Compute = Callable[[Claim], Result | Skipped]
"""Does the work and returns what to record, or why there is nothing to do; may ask the claim whether it still holds."""


@dataclass(frozen=True)
class Part:
    """A part of an item whose claim is held, such as a tile of a batch, and how its end is recorded.

    A part may be done again while its record stands, so its own module says how the new record takes the place of the
    old one.
    """

    item: ItemId
    record: Callable[[Mapping[str, Any], Spent], object]
    """Records that the work is done; gets the content of the record and what the work took."""
    failure: Callable[[], Mapping[str, Any]] = dict
    """Returns what else the record of a failure holds."""


def perform(project: Project, item: ItemId, job: Step, compute: Compute, /) -> Outcome:
    """Do a step unless it is done, parked, or claimed by another process.

    Parameters
    ----------
    project : Project
        Where the facts stand.
    item : ItemId
        What to work on.
    job : Step
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
    # Waited for before the claim: meanwhile another host may do the work.
    with memory_for(project, item, job):
        claim = facts.claim(item, job.claim, lease_s=project.deployment.lease_s)
        if claim is None:
            reason = f"claimed: {facts.holder(item, job.claim)}"
            facts.journal.skipped(item, job.done, reason)
            return Skipped(reason)
        with claim:
            if reason := _settled(project, item, job):
                return Skipped(reason)
            return _attempt(project, item, job, claim, compute)


@contextlib.contextmanager
def memory_for(project: Project, item: ItemId, job: Step, /) -> Iterator[None]:
    """Have the memory that a step takes inside a `with` block, out of what the steps of this host share."""
    needed = binding_of(job).memory(project, item)
    if project.memory is None or not needed:
        yield
        return
    with project.memory.share(needed, f"{job.name}: {project.config.name} {item}", tell=_log.info):
        yield


def perform_part(project: Project, part: Part, job: Step, claim: Claim, compute: Compute, /) -> Outcome:
    """Do a step on a part of an item whose claim is held. A part that fails is parked and stops no other part, unless
    the disk is full or the share away, which stops the others, too.

    Parameters
    ----------
    project : Project
        Where the facts stand.
    part : Part
        What to work on.
    job : Step
        Which work; its facts are those of the part.
    claim : Claim
        The claim on the whole item.
    compute : callable
        Does the work and returns what to record. It looks first whether there is anything to do.

    Returns
    -------
    Done, Failed or Skipped
        What this call did.

    Raises
    ------
    ClaimLost
        Another process has taken the item over; nothing is recorded.
    Exception
        The error of `compute`, where the job does not park.
    """
    claim.ensure_mine()
    return _attempt(project, part.item, job, claim, compute, part=part)


def _attempt(
    project: Project, item: ItemId, job: Step, claim: Claim, compute: Compute, *, part: Part | None = None
) -> Outcome:
    """Do a step on a claimed item, or on a part of one: compute, check the claim, record; park what fails."""
    facts = project.facts
    stopwatch = Stopwatch()
    settings = settings_of(project, item, job.done)
    grounds = {
        "parameters_hash": None if settings is None else keep_settings(project, settings),
        "inputs_hash": inputs_hash(project, item, job.done),
    }
    try:
        if part is None:
            _refuse_after_crashes(project, item, job)
        result = compute(claim)
        claim.ensure_mine()
    except ClaimLost:
        raise
    except Exception as error:
        claim.ensure_mine()
        if part is not None and _waits_for_its_place(job, error):
            raise  # the whole item ends, and is tried again when the disk has room again
        if job.failed is None or (part is None and _is_tried_again(project, item, job, error)):
            facts.journal.failed(item, None, why=describe(error), kind=kind_of(error), stage=job.name)
            raise
        known = {**grounds, **(part.failure() if part else {})}
        return Failed(park(project, item, job.failed, error, stage=job.name, content=known), error)
    if isinstance(result, Skipped):
        facts.journal.skipped(item, job.done, result.why)
        return result
    if inputs_hash(project, item, job.done) != grounds["inputs_hash"]:
        reason = "its inputs were withdrawn or made again meanwhile"
        facts.journal.skipped(item, job.done, reason)
        return Skipped(reason)
    content = result.content() | grounds
    content["inputs_hash"] = result.inputs_hash or grounds["inputs_hash"]
    content["detail"] = {**content.get("detail", {}), **detail_of_parameters(project.parameters)}
    if part is not None:
        part.record(content, stopwatch.spent())
        return Done(result)
    fact = result.fact or job.done
    recorded = facts.record(item, fact, content)
    facts.journal.computed(item, fact, stopwatch.spent())
    if is_failure(fact):
        why = str(result.detail.get("reason", "no result"))
        facts.journal.failed(item, fact, why=why, kind=kind_of(ProcessingError(why)), stage=job.name)
    return Done(result) if recorded else Skipped("recorded by another process meanwhile")


def announcements(project: Project, item: ItemId, step: Step, outcome: Outcome, /, **fields: Any) -> list[Event]:
    """Return what is to be announced of what `perform` did: the end of the step, its failure, or nothing.

    Parameters
    ----------
    project, item, step, outcome
        As given to `perform`, and as returned by it.
    **fields
        Of the announcement of its end, besides those that layout and flag files know.
    """
    match outcome:
        case Failed():
            return [failure_event(project, item, step, outcome.reason)]
        case Done():
            return [project.event(kind, item, **fields) for kind in step.announces[:1]]
        case Skipped():
            return []


def failure_event(project: Project, item: ItemId, step: Step, reason: str, /) -> Event:
    """Return the announcement that a step on an item has failed."""
    kind = step.announces_failure
    assert kind is not None, f"{step.name} has no announcement of its failure"
    if "stage" in kind.model_fields:
        return project.event(kind, item, stage=step.name, reason=reason)
    return project.event(kind, item, reason=reason if step.starts_work else f"{step.name}: {reason}")


def park(
    project: Project,
    item: ItemId,
    fact: str,
    error: BaseException,
    /,
    *,
    stage: str,
    content: Mapping[str, Any] | None = None,
) -> str:
    """Record that work is parked as failed, with its reason, and return the reason.

    Parameters
    ----------
    project : Project
        Where the facts stand.
    item, fact
        What has failed, and the fact that says so.
    error : exception
        Why.
    stage : str
        Name of the job.
    content : mapping, optional
        What else the record holds; a `detail` is added to.
    """
    reason, kind = describe(error), kind_of(error)
    given = dict(content or {})
    given["detail"] = {
        **given.get("detail", {}),
        **detail_of_parameters(project.parameters),
        "reason": reason,
        "stage": stage,
        "kind": kind,
        **({PASSES: True} if is_of_surroundings(error) else {}),
    }
    project.facts.replace(item, fact, given, why=reason)
    project.facts.journal.failed(item, fact, why=reason, kind=kind, stage=stage)
    return reason


def _settled(project: Project, item: ItemId, job: Step) -> str | None:
    known = project.facts.facts_of(item)
    if job.done in known:
        return f"already {job.done}"
    if job.failed is not None and job.failed in known:
        return f"parked as {job.failed}; `opticstream retry`, or the same event sent again, releases it"
    return None


def _is_tried_again(project: Project, item: ItemId, job: Step, error: Exception) -> bool:
    if _waits_for_its_place(job, error):
        return True
    if not (job.tried_again and is_transient(error)):
        return False
    return project.facts.claims.failures(item, job.claim) + 1 < project.deployment.attempts


def _waits_for_its_place(job: Step, error: Exception) -> bool:
    """Return whether a step is tried again until the disk has room, or the share is back, however long that takes.

    Publishing and stacking are parked and released later, so that they hold up nothing.
    """
    return is_of_surroundings(error) and not job.publishes and not job.claimed_on_sample


def _refuse_after_crashes(project: Project, item: ItemId, job: Step) -> None:
    """Raise an error, which parks the work, where its last attempts all ended with the death of their process."""
    refuse_after_crashes(project, item, job, project.facts.claims.crashes(item, job.claim))


def refuse_after_crashes(project: Project, item: ItemId, job: Step, crashed: int, /) -> None:
    """Raise ProcessingError, which parks the work, where too many attempts ended with the death of their process."""
    if crashed >= project.deployment.crashes:
        raise ProcessingError(
            f"{job.name} of {item}: the last {crashed} attempts ended with the death of their process; "
            f"`opticstream retry` releases it (OPTICSTREAM_CRASHES = {project.deployment.crashes})"
        )

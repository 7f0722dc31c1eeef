"""The chain of work: each step once, with its item, its claim, its inputs, its facts and its events.

Everything else about the steps is derived from this table: the vocabulary of facts, what a result depends on, what is
withdrawn with it, retried, stale, stuck, pending or unfinished, and which events start which flow. The function of a
step, and its settings, are bound to its name in `opticstream.pipeline.bindings`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from opticstream.model import events
from opticstream.model.events import Event
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout

Hierarchy = Literal["sample", "slice", "mosaic", "batch", "tile"]
Whose = Literal["own", "parts", "first part"]

ORDER: Mapping[str, int] = MappingProxyType({"sample": 0, "slice": 1, "mosaic": 2, "batch": 3, "tile": 4})
"""Hierarchies from the end of the chain towards its beginning: facts are withdrawn in this order."""


@dataclass(frozen=True)
class Source:
    """A result that a step is made from."""

    whose: Whose
    """Of the item itself, of all parts of the item, or of its first part."""
    fact: str


@dataclass(frozen=True)
class Step:
    """One kind of work on one kind of item."""

    name: str
    """Name of the step."""
    hierarchy: Hierarchy
    """Kind of item that the facts are about."""
    claim: str
    """Claim on the work."""
    done: str
    """Fact that the work leads to."""
    failed: str | None = None
    """Fact that parks the work; None if its own module handles failures."""
    after: str = "ready"
    """Fact of the item without which the work is not due."""
    made_from: tuple[Source, ...] = ()
    """Results that it is made from; it is out of date, and withdrawn, together with them."""
    started_by: tuple[type[Event], ...] = ()
    """Events that start it. The first one is repeated until the work has ended."""
    announces: tuple[type[Event], ...] = ()
    """Events that announce its end, success first, without failures."""
    announces_failure: type[Event] | None = None
    flow: str = ""
    """Flow that does it; several steps may share one."""
    pool: str = ""
    other_ends: tuple[str, ...] = ()
    """Further facts that end it."""
    side_results: tuple[str, ...] = ()
    """Facts that are recorded on the way and are independent; only what is made from them depends on them."""
    waits: tuple[str, ...] = ()
    """Facts that record that it is due but has to wait."""
    publishes: bool = False
    """Whether it publishes a result outside the project; published results are never removed."""
    uploads: bool = False
    """Whether it sends a published result to the remote targets; otherwise it publishes to the local archive tree."""
    claimed_on_sample: bool = False
    """Whether the claim is on the sample, because all items share what is written."""
    tried_again: bool = False
    """Whether the sweep retries a transient error of the whole step, until it has occurred OPTICSTREAM_ATTEMPTS times
    in a row; otherwise only the parts inside are retried."""
    failure: str = ""
    """Description of its failure, as the reason for a retry."""

    @property
    def ends(self) -> tuple[str, ...]:
        """Facts of which one is recorded when the step has ended."""
        failed = () if self.failed is None else (self.failed,)
        return (self.done, *failed, *self.other_ends)

    @property
    def starts_work(self) -> bool:
        """Whether it is started by an item's readiness."""
        return self.after == "ready" and not self.claimed_on_sample


@dataclass(frozen=True)
class Gate:
    """A fact that says that all parts of an item have ended."""

    hierarchy: Hierarchy
    made_from: tuple[Source, ...]
    announces: type[Event]
    fact: str = "ready"


def _publish(
    hierarchy: Hierarchy,
    after: str,
    started_by: type[Event],
    failure: type[Event],
    *,
    volume: bool = False,
    name: str = "publish",
) -> Step:
    """Return the step that puts a result into the local archive tree."""
    what = "volume_" if volume else ""
    return Step(
        name="publish volume" if volume else name,
        hierarchy=hierarchy,
        claim=f"{what}publish_started",
        done=f"{what}published",
        failed=f"{what}publish_failed",
        after=after,
        made_from=(Source("own", after),),
        started_by=(started_by,),
        announces_failure=failure,
        flow="upload",
        pool="upload",
        publishes=True,
        failure="publication of the volumes failed" if volume else "publication failed",
    )


def _upload(
    hierarchy: Hierarchy,
    started_by: type[Event],
    announces: type[Event],
    failure: type[Event],
    *,
    volume: bool = False,
    name: str = "upload",
) -> Step:
    """Return the step that sends a published result to the remote targets."""
    what = "volume_" if volume else ""
    return Step(
        name="upload volume" if volume else name,
        hierarchy=hierarchy,
        claim=f"{what}upload_started",
        done=f"{what}uploaded",
        failed=f"{what}upload_failed",
        after=f"{what}published",
        made_from=(Source("own", f"{what}published"),),
        started_by=(started_by,),
        announces=(announces,),
        announces_failure=failure,
        flow="upload",
        pool="upload",
        publishes=True,
        uploads=True,
        failure="upload of the volumes failed" if volume else "upload failed",
    )


STEPS: tuple[Step, ...] = (
    Step(
        name="process batch",
        hierarchy="batch",
        claim="started",
        done="processed",
        failed="failed",
        side_results=("archived",),
        started_by=(events.BatchReady,),
        announces=(events.BatchProcessed, events.BatchArchived),
        announces_failure=events.BatchFailed,
        flow="process-batch",
        pool="tile",
        tried_again=True,
        failure="the batch failed",
    ),
    Step(  # of a batch that was finished while archiving was off; otherwise it is archived as it is processed
        name="archive batch",
        hierarchy="batch",
        claim="archive_started",
        done="archived",
        failed="archive_failed",
        after="processed",
        started_by=(events.BatchReady,),
        announces=(events.BatchArchived,),
        announces_failure=events.BatchFailed,
        flow="process-batch",
        pool="tile",
        tried_again=True,
        failure="archiving failed",
    ),
    Step(
        name="stitch mosaic",
        hierarchy="mosaic",
        claim="started",
        done="stitched",
        failed="failed",
        waits=("waiting",),
        made_from=(Source("parts", "processed"),),
        started_by=(events.MosaicReady,),
        announces=(events.MosaicStitched,),
        announces_failure=events.MosaicFailed,
        flow="stitch-mosaic",
        pool="stitch",
        failure="stitching failed",
    ),
    Step(
        name="stitch volume",
        hierarchy="mosaic",
        claim="volume_started",
        done="volume_stitched",
        failed="volume_failed",
        after="stitched",
        made_from=(Source("own", "stitched"),),
        started_by=(events.MosaicStitched,),
        announces=(events.MosaicVolumeStitched,),
        announces_failure=events.MosaicFailed,
        flow="stitch-volume",
        pool="stitch",
        failure="stitching of the volumes failed",
    ),
    Step(
        name="register slice",
        hierarchy="slice",
        claim="started",
        done="registered",
        failed="axis_failed",
        other_ends=("skipped", "failed"),
        made_from=(Source("parts", "stitched"),),
        started_by=(events.SliceReady,),
        announces=(events.SliceRegistered,),
        announces_failure=events.SliceFailed,
        flow="register-slice",
        pool="register",
        failure="registration failed",
    ),
    Step(
        name="update sample",
        hierarchy="slice",
        claim="started",
        done="stacked",
        failed="stack_failed",
        made_from=(Source("own", "registered"), Source("first part", "stitched")),
        # A slice of one illumination is only ready; one whose registration failed goes on without its axes.
        started_by=(events.SliceReady, events.SliceRegistered, events.SliceFailed, events.MosaicVolumeStitched),
        announces=(events.SampleUpdated,),
        announces_failure=events.SampleFailed,
        flow="update-sample",
        pool="register",
        claimed_on_sample=True,
        failure="the slice could not be added to the sample",
    ),
    _publish("batch", "archived", events.BatchArchived, events.BatchFailed),
    _publish("mosaic", "stitched", events.MosaicStitched, events.MosaicFailed),
    _publish("mosaic", "volume_stitched", events.MosaicVolumeStitched, events.MosaicFailed, volume=True),
    _publish("slice", "registered", events.SliceRegistered, events.SliceFailed),
    _publish("sample", "updated", events.SampleUpdated, events.SampleFailed, name="publish sample"),
    _upload("slice", events.SliceRegistered, events.SliceUploaded, events.SliceFailed),
    _upload("mosaic", events.MosaicStitched, events.MosaicUploaded, events.MosaicFailed),
    _upload("mosaic", events.MosaicVolumeStitched, events.MosaicVolumeUploaded, events.MosaicFailed, volume=True),
    _upload("sample", events.SampleUpdated, events.SampleUploaded, events.SampleFailed, name="upload sample"),
    _upload("batch", events.BatchArchived, events.BatchUploaded, events.BatchFailed, name="upload raw tiles"),
)
"""The chain, in the order of the work; publication comes last, because nothing depends on it, and the uploads of the
largest files come at its end."""

GATES: tuple[Gate, ...] = (
    Gate("mosaic", (Source("parts", "processed"),), events.MosaicReady),
    Gate("slice", (Source("parts", "stitched"),), events.SliceReady),
)

_PARTS_OF: Mapping[str, str] = MappingProxyType({"slice": "mosaic", "mosaic": "batch"})
_OWN_FACTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "sample": ("started", "updated"),
        "slice": ("ready", "excluded", "placed"),
        "mosaic": ("ready",),
        "batch": ("ready", "cleaned"),
        "tile": ("processed", "failed"),
    }
)
"""Facts that no step of the hierarchy leads to: readiness, decisions of people, the stacks, the tiles within a batch,
and whether their files were removed after the upload."""
DECISIONS = frozenset({"excluded", "placed"})
"""Facts that a person has decided: no reset and no redo takes them back."""


@dataclass(frozen=True)
class Chain:
    """Steps and gates in order, and what is derived from them."""

    steps: tuple[Step, ...]
    gates: tuple[Gate, ...] = GATES

    @cached_property
    def facts(self) -> Mapping[str, tuple[str, ...]]:
        """Facts of each hierarchy, in the order in which they usually occur."""
        found: dict[str, tuple[str, ...]] = {}
        for hierarchy in ORDER:
            own = [step for step in self.steps if step.hierarchy == hierarchy]
            facts = [fact for step in own for fact in step.waits]
            facts += _OWN_FACTS[hierarchy]
            for step in own:
                failed = () if step.failed is None else (step.failed,)
                claim = () if step.claimed_on_sample else (step.claim,)
                facts += [*claim, *step.side_results, step.done, *failed, *step.other_ends]
            found[hierarchy] = tuple(dict.fromkeys(facts))
        return MappingProxyType(found)

    @cached_property
    def known(self) -> Mapping[str, frozenset[str]]:
        """Facts of each hierarchy, to be looked up."""
        return MappingProxyType({hierarchy: frozenset(facts) for hierarchy, facts in self.facts.items()})

    def position(self, item: ItemId, fact: str, /) -> int:
        """Return the position of a fact among those of its kind of item: facts are withdrawn from the last one on."""
        return self.facts[item.hierarchy].index(fact)

    @property
    def published(self) -> frozenset[str]:
        """Facts of published results."""
        return frozenset(step.done for step in self.steps if step.publishes)

    @property
    def side_results(self) -> frozenset[str]:
        """Facts that are recorded on the way and are independent."""
        return frozenset(fact for step in self.steps for fact in step.side_results)

    def claims(self, hierarchy: str, /) -> tuple[str, ...]:
        """Return the claims of the steps on one kind of item, without publication."""
        computing = [step for step in self.steps if not step.publishes]
        return tuple(
            step.claim for step in computing if hierarchy == ("sample" if step.claimed_on_sample else step.hierarchy)
        )

    def of(self, hierarchy: str, /) -> tuple[Step, ...]:
        """Return the steps on one kind of item, in order."""
        return tuple(step for step in self.steps if step.hierarchy == hierarchy)

    def named(self, name: str, hierarchy: str, /) -> Step:
        """Return the step of a name on one kind of item."""
        return next(step for step in self.of(hierarchy) if step.name == name)

    def step_of(self, item: ItemId, fact: str, /) -> Step | None:
        """Return the step that leads to a fact, or parks an item with it; None for other facts.

        The facts of a tile are those of the step that works on its batch.
        """
        hierarchy = "batch" if isinstance(item, TileId) else item.hierarchy
        return next((step for step in self.of(hierarchy) if fact in step.ends), None)

    def started_by(self, kind: type[Event], /) -> tuple[Step, ...]:
        """Return the steps that an event starts, in order."""
        return tuple(step for step in self.steps if kind in step.started_by)

    def dependents(self, hierarchy: str, facts: Collection[str], /) -> tuple[Step | Gate, ...]:
        """Return the gates and steps that are made from one of some facts of one kind of item."""
        everything: tuple[Step | Gate, ...] = (*self.gates, *self.steps)
        return tuple(
            one
            for one in everything
            if any(
                source.fact in facts
                and hierarchy == (one.hierarchy if source.whose == "own" else _PARTS_OF.get(one.hierarchy))
                for source in one.made_from
            )
        )


_current = Chain(STEPS)


def chain() -> Chain:
    """Return the current chain."""
    return _current


@contextlib.contextmanager
def extended(step: Step, /, *, after: Step) -> Iterator[Chain]:
    """Add a step after another one within the block, to try out a new stage."""
    global _current
    before = _current
    index = before.steps.index(after) + 1
    _current = Chain((*before.steps[:index], step, *before.steps[index:]), before.gates)
    try:
        yield _current
    finally:
        _current = before


def parts_of(item: ItemId, layout: AcquisitionLayout, /) -> tuple[ItemId, ...]:
    """Return the mosaics of a slice, or the batches of a mosaic; other items have no parts."""
    match item:
        case SliceId():
            return layout.mosaics(item)
        case MosaicId():
            return layout.batches(item)
    return ()


def whole_of(item: ItemId, layout: AcquisitionLayout, /) -> ItemId | None:
    """Return what an item is a part of: a tile's batch, a batch's mosaic, and so on; None for the sample.

    Examples
    --------
    >>> from opticstream.model.layout import IlluminationLayout
    >>> layout = AcquisitionLayout((IlluminationLayout("normal", 4, 3), IlluminationLayout("tilted", 5, 3)))
    >>> str(whole_of(MosaicId(4), layout)), str(whole_of(SliceId(2), layout))
    ('slice 2', 'sample')
    """
    match item:
        case TileId():
            return layout.batch_of(item)
        case BatchId():
            return item.mosaic
        case MosaicId():
            return layout.slice_of(item)
        case SliceId():
            return SampleId()
        case SampleId():
            return None


def sources_of(step: Step, item: ItemId, layout: AcquisitionLayout, /) -> list[tuple[ItemId, str]]:
    """Return the results that a step on an item is made from, as (item, fact)."""
    found: list[tuple[ItemId, str]] = []
    for source in step.made_from:
        parts = parts_of(item, layout)
        items = {"own": (item,), "parts": parts, "first part": parts[:1]}[source.whose]
        found += [(one, source.fact) for one in items]
    return found


def lift(item: ItemId, hierarchy: str, layout: AcquisitionLayout, /) -> ItemId:
    """Return the item of a hierarchy that an item is, or is part of.

    Examples
    --------
    >>> from opticstream.model.layout import IlluminationLayout
    >>> layout = AcquisitionLayout((IlluminationLayout("normal", 4, 3), IlluminationLayout("tilted", 5, 3)))
    >>> str(lift(BatchId(4, 2), "slice", layout))
    'slice 2'
    """
    while item.hierarchy != hierarchy:
        above = whole_of(item, layout)
        if above is None:
            raise ValueError(f"{item} does not lie in a {hierarchy}")
        item = above
    return item

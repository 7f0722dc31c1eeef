"""Doing work again: facts that are taken back, and announcements, so that an item and what rests on it is redone.

No output is removed: each stays until the new one takes its place whole. Facts are taken back from the end of the chain
towards its beginning, so that after a crash at any moment nothing rests on what is no longer true.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from opticstream.model.events import (
    BatchArchived,
    Event,
    MosaicReady,
    MosaicStitched,
    MosaicVolumeStitched,
    SliceReady,
)
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import REGISTRATION_ENDED
from opticstream.pipeline.run_parameters import take_over
from opticstream.pipeline.stacking import stacking_event

PUBLISHED = ("uploaded", "upload_failed", "volume_uploaded", "volume_upload_failed")
_VOLUME_RESULTS = ("volume_stitched", "volume_failed", "volume_uploaded", "volume_upload_failed")
_MAP_RESULTS = ("stitched", "failed", "waiting", "uploaded", "upload_failed")
_STACK_RESULTS = ("stacked", "stack_failed")
_SLICE_RESULTS = (*sorted(REGISTRATION_ENDED), *_STACK_RESULTS, *PUBLISHED)
_ORDER = {"sample": 0, "slice": 1, "mosaic": 2, "batch": 3, "tile": 4}


@dataclass
class RedoPlan:
    """What is taken back and announced; built from the beginning of the chain towards its end."""

    project: Project
    withdraw: list[tuple[ItemId, str]] = field(default_factory=list)
    announce: list[Event] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """What cannot be done again, and why."""

    def redo_batch(self, batch: BatchId, /, *, archive: bool, alone: bool = False) -> None:
        """Have a batch processed again, and all that rests on it.

        Parameters
        ----------
        batch : BatchId
            The batch; its good tiles of the same settings and raw files are not computed again.
        archive : bool
            Its archive copies change, too.
        alone : bool
            Nothing else rests on what changes.
        """
        event = ready_event(self.project, batch)
        if event is None:
            why = "it was never announced, so its raw folder is unknown; `opticstream run` finds it"
            self.refused.append(f"{batch}: {why}")
            return
        self._take_back(batch, ("processed", "failed", *(("archived", *PUBLISHED) if archive else ())))
        if not alone:
            self._take_back(batch.mosaic, ("ready", *_MAP_RESULTS, *_VOLUME_RESULTS))
            self._redo_slice_of(batch.mosaic)
        self.announce.append(event.model_copy(update={"parameters": dict(self.project.parameters)}))

    def redo_mosaic(self, mosaic: MosaicId, /, *, alone: bool = False) -> None:
        """Have a mosaic stitched again, and all that rests on it unless `alone`."""
        self._take_back(mosaic, (*_MAP_RESULTS, *(() if alone else _VOLUME_RESULTS)))
        if not alone:
            self._redo_slice_of(mosaic)
        if not self.takes_back(mosaic, "ready"):
            self._announce(self.project.event(MosaicReady, mosaic))

    def redo_volume(self, mosaic: MosaicId, /) -> None:
        """Have the volumes of a mosaic stitched again; the stacks take them when they are there."""
        self._take_back(mosaic, _VOLUME_RESULTS)
        if not self.takes_back(mosaic, "stitched"):
            self._announce(self.project.event(MosaicStitched, mosaic))

    def redo_slice(self, slice_id: SliceId, /) -> None:
        """Have a slice registered again, and stacked."""
        self._take_back(slice_id, _SLICE_RESULTS)
        if not self.takes_back(slice_id, "ready"):
            self._announce(self.project.event(SliceReady, slice_id))

    def redo_stack(self, slice_id: SliceId, /) -> None:
        """Have a slice put into the sample's stacks again."""
        registers = any(self.takes_back(slice_id, fact) for fact in REGISTRATION_ENDED)
        event = None if registers else stacking_event(self.project, slice_id)
        self._take_back(slice_id, _STACK_RESULTS)
        if event is not None:
            self._announce(event)

    def redo_publication(self, item: ItemId, fact: str, /) -> None:
        """Have a result published again, unless it is done again anyway."""
        if self.takes_back(item, fact):
            return
        self._take_back(item, (fact,))
        if isinstance(item, BatchId):
            self._announce(self.project.event(BatchArchived, item))
        elif isinstance(item, MosaicId):
            kind = MosaicVolumeStitched if fact in ("volume_uploaded", "volume_upload_failed") else MosaicStitched
            self._announce(self.project.event(kind, item))
        elif isinstance(item, SliceId):
            self._announce(stacking_event(self.project, item))

    def takes_back(self, item: ItemId, fact: str, /) -> bool:
        """Return whether the plan takes a fact back."""
        return (item, fact) in self.withdraw

    def _redo_slice_of(self, mosaic: MosaicId) -> None:
        self._take_back(self.project.layout.slice_of(mosaic), ("ready", *_SLICE_RESULTS))

    def _take_back(self, item: ItemId, facts: Iterable[str]) -> None:
        known = self.project.facts.facts_of(item)
        self.withdraw += [(item, fact) for fact in facts if fact in known and not self.takes_back(item, fact)]

    def _announce(self, event: Event) -> None:
        if event not in self.announce:
            self.announce.append(event)


def apply_plan(project: Project, plan: RedoPlan, /, *, reason: str) -> int:
    """Take back the facts of a plan, the end of the chain first, and return how many; announcing is the caller's part.

    The old result of an item counts as undone before what it was made from does. What is announced belongs to the run
    that opened the project, with its parameters.
    """
    take_over(project, [event.item for event in plan.announce])
    ordered = sorted(plan.withdraw, key=lambda key: (_ORDER[key[0].hierarchy], key[0].key, key[1] == "ready"))
    return sum(project.facts.withdraw(item, fact, reason=reason) for item, fact in ordered)

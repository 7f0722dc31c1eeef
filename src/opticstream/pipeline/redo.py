"""Doing work again: which facts are withdrawn and what is announced, so that an item and its dependents are redone.

No output is removed: each stays until the new one replaces it whole. Facts are withdrawn from the end of the chain
towards its beginning, so that after a crash at any moment no fact depends on one that is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from opticstream.model.chain import ORDER, Gate, Step, chain, lift, parts_of
from opticstream.model.events import Event
from opticstream.model.ids import BatchId, ItemId, MosaicId
from opticstream.pipeline.cleaned import cleaned_batches, missing_raw_file
from opticstream.pipeline.pending import ready_event, starting_event
from opticstream.pipeline.project import Project
from opticstream.pipeline.run_parameters import take_over


@dataclass
class RedoPlan:
    """The facts to withdraw and the announcements to make; built from the beginning of the chain towards its end."""

    project: Project
    withdraw: list[tuple[ItemId, str]] = field(default_factory=list)
    announce: list[Event] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """What cannot be done again, and why."""
    _restored: set[BatchId] = field(default_factory=set)
    """Batches that are made again because their files were removed by a clean-up."""

    def redo(self, step: Step, item: ItemId, /, *, alone: bool = False, side_results: bool = False) -> None:
        """Have a step on an item done again, and everything that depends on it.

        Parameters
        ----------
        step : Step
            The step; of a batch, good tiles of the same settings and raw files are not computed again.
        item : ItemId
            What the step works on.
        alone : bool
            Nothing else depends on what changes; it is published again all the same.
        side_results : bool
            What the step records on the way changes, too, such as the archive copies of a batch.
        """
        beside = [] if alone else [batch for batch in self._cleaned_beside(step, item) if batch not in self._restored]
        if lost := self._lost_with_clean_up(beside, item):
            self.refused.append(lost)
            return
        self._restored.update(beside)
        for batch in beside:
            if batch != item:
                self.redo(chain().named("process batch", "batch"), batch)
        event = starting_event(self.project, step, item, parameters=self.project.parameters)
        if event is None:
            why = "it was never announced, so its raw folder is unknown; `opticstream run` finds it"
            self.refused.append(f"{item}: {why}")
            return
        due = not self.takes_back(item, step.after) and not self._is_taken_back(step, item)
        self._take_back_with_dependents(
            item, (*step.ends, *step.waits, *(step.side_results if side_results else ())), alone=alone
        )
        if due and event not in self.announce:
            self.announce.append(event)

    def _cleaned_beside(self, step: Step, item: ItemId) -> list[BatchId]:
        """Return the batches whose removed files a step, or what depends on it, reads again."""
        if step.publishes or step.after == "processed":
            return []
        match item:
            case MosaicId():
                return cleaned_batches(self.project, item)
            case BatchId():
                return cleaned_batches(self.project, item.mosaic)
        return []

    def _lost_with_clean_up(self, batches: Iterable[BatchId], item: ItemId) -> str:
        """Return why an item cannot be done again: files were removed that cannot be made again; empty if it can."""
        for batch in batches:
            if missing := missing_raw_file(ready_event(self.project, batch)):
                return (
                    f"{item}: cannot be made again: the files of {batch} were removed by a clean-up after their upload "
                    f"and its raw file {missing} no longer exists; put it back, from the archive copy if need be"
                )
        return ""

    def takes_back(self, item: ItemId, fact: str, /) -> bool:
        """Return whether the plan takes a fact back."""
        return (item, fact) in self.withdraw

    def _is_taken_back(self, step: Step, item: ItemId) -> bool:
        """Return whether the step is done again anyway, after what it is made from."""
        before = [step] if step.publishes else []
        if step.claimed_on_sample:  # the end of the item's own work announces it
            before = [other for other in chain().of(step.hierarchy) if other.starts_work]
        return any(self.takes_back(item, fact) for one in before for fact in one.ends)

    def _take_back_with_dependents(self, item: ItemId, facts: tuple[str, ...], *, alone: bool) -> None:
        """Take facts of an item back, and the results and gates that are made from them."""
        self._take_back(item, facts)
        for one in chain().dependents(item.hierarchy, facts):
            if alone and not (isinstance(one, Step) and one.publishes):
                continue
            resting = lift(item, one.hierarchy, self.project.layout)
            if self._rests_on(one, resting, item, facts):
                theirs = (*one.ends, *one.waits) if isinstance(one, Step) else (one.fact,)
                self._take_back_with_dependents(resting, theirs, alone=False)

    def _rests_on(self, one: Step | Gate, resting: ItemId, item: ItemId, facts: tuple[str, ...]) -> bool:
        """Return whether something is made from this very item: some are made from the first part only."""
        parts = parts_of(resting, self.project.layout)
        return any(
            source.fact in facts and (item == resting or source.whose == "parts" or item in parts[:1])
            for source in one.made_from
        )

    def _take_back(self, item: ItemId, facts: Iterable[str]) -> None:
        known = self.project.facts.facts_of(item)
        self.withdraw += [(item, fact) for fact in facts if fact in known and not self.takes_back(item, fact)]


def apply_plan(project: Project, plan: RedoPlan, /, *, reason: str) -> int:
    """Withdraw the facts of a plan, the end of the chain first, and return how many; the caller announces.

    The old result of an item counts as undone before what it was made from does. What is announced belongs to the run
    that opened the project, with its parameters.
    """
    take_over(project, [event.item for event in plan.announce])
    ordered = sorted(plan.withdraw, key=lambda key: (ORDER[key[0].hierarchy], key[0].key, -chain().position(*key)))
    return sum(project.facts.withdraw(item, fact, reason=reason) for item, fact in ordered)

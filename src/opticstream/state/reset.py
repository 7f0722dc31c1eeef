"""Undo work so that it is done again: which facts to withdraw, which files to remove, and in which order.

Facts are withdrawn from the end of the chain towards its beginning, and files are removed after the facts that record
them, so that a crash at any moment leaves no fact that depends on something that is gone. The archive is never
touched: the raw data may not exist anywhere else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opticstream.model.chain import DECISIONS, ORDER, chain, whole_of
from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, ItemId, SampleId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.state.claims import DEFAULT_LEASE_S
from opticstream.state.facts import Facts, FactsSnapshot
from opticstream.state.record import FactRecord, FileRecord, path_from_name
from opticstream.state.vocabulary import is_claim
from opticstream.system.temporary_names import temporary_beside

_KEPT_OF_TARGET = frozenset({"ready"}) | DECISIONS
"""Facts of the item itself that stay, because its work is announced again from them."""
_KEPT_OF_BATCH = frozenset({"ready"})


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """What a reset will do.

    Attributes
    ----------
    target, downstream
        The arguments of `plan_reset`.
    withdraw : tuple of (item, fact)
        Facts to withdraw, in this order.
    remove : tuple of str
        Files and folders to remove, named as in records.
    keep : tuple of str
        Outputs of these facts that stay: copies in the archive, and files that another fact records as well.
    published : tuple of str
        Published files, which stay until a new publication replaces them.
    left_behind : tuple of (item, fact)
        Facts that stay although they depend on what is undone; none with ``downstream``.
    """

    target: ItemId
    downstream: bool
    withdraw: tuple[tuple[ItemId, str], ...]
    remove: tuple[str, ...]
    keep: tuple[str, ...]
    published: tuple[str, ...]
    left_behind: tuple[tuple[ItemId, str], ...]

    @property
    def items(self) -> tuple[ItemId, ...]:
        """The items of the facts to withdraw, each once, in order."""
        return tuple(dict.fromkeys(item for item, _ in self.withdraw))

    def lines(self) -> Iterator[str]:
        """Yield what will be done, a line for each item and file, to ask for confirmation."""
        for item in self.items:
            facts = [fact for other, fact in self.withdraw if other == item]
            facts.sort(key=lambda fact: (is_claim(fact), chain().position(item, fact)))  # as they have occurred
            yield f"{item}: withdraw {', '.join(facts)}"
        for name in self.remove:
            yield f"remove {name}"
        for name in self.keep:
            yield f"keep {name}"
        for name in self.published:
            yield f"{name} is published and stays until the new result replaces it"
        for item, fact in self.left_behind:
            yield f"{item} stays {fact}, although it depends on what is undone; --downstream undoes it too"


def plan_reset(facts: Facts, item: ItemId, /, layout: AcquisitionLayout, *, downstream: bool = False) -> ResetPlan:
    """Return what a reset of an item would undo, without changing anything.

    A batch includes its tiles, and a tile its batch's result. The item's own ``ready`` stays, so that the work is
    announced again.

    Parameters
    ----------
    facts : Facts
        The facts of the project.
    item : ItemId
        The item to do again.
    layout : AcquisitionLayout
        The layout, from which follows what is downstream.
    downstream : bool, default False
        Also undo everything that depends on it: the mosaic of a batch, the slice of a mosaic, the sample, and every
        item whose record names a file that is removed, such as the coordinate template that later mosaics reuse.
    """
    snapshot = facts.snapshot()
    # One that cannot be read can still be withdrawn; it names no files.
    records = {(i, f): record for i, f in snapshot if (record := facts.read_whole(i, f)) is not None}
    targets = set(_with_parts(item, snapshot, layout))
    chosen = {(i, f) for i in targets for f in snapshot.facts_of(i) if f not in _kept(i, is_target=True)}
    if isinstance(item, SampleId):  # its stacks hold a part of every slice
        for step in chain().steps:
            if step.claimed_on_sample:
                chosen |= {(i, f) for i in snapshot.items(step.hierarchy) for f in snapshot.facts_of(i) & {*step.ends}}
    resting: set[tuple[ItemId, str]] = set()
    while True:
        everything = chosen | resting
        going = {file.path for key in everything if key in records for file in records[key].outputs}
        found = set(_resting_on({i for i, _ in everything} | targets, going, snapshot, records, layout)) - everything
        if not found:
            break
        resting |= found
    if downstream:
        chosen |= resting
    ordered = sorted(
        chosen, key=lambda key: (ORDER[key[0].hierarchy], key[0].key, is_claim(key[1]), -chain().position(*key))
    )
    outputs = {file: key for key in ordered if key in records for file in records[key].outputs}
    vouched = {file.path for key, record in records.items() if key not in chosen for file in record.outputs}
    remove = {file.path for file, key in outputs.items() if _goes(file, key, item) and file.path not in vouched}
    published = {file.path for file, key in outputs.items() if key[1] in chain().published}
    return ResetPlan(
        target=item,
        downstream=downstream,
        withdraw=tuple(ordered),
        remove=tuple(sorted(remove)),
        keep=tuple(sorted({file.path for file in outputs} - remove - published)),
        published=tuple(sorted(published)),
        left_behind=() if downstream else tuple(sorted(resting, key=lambda key: (key[0].key, key[1]))),
    )


def apply_reset(
    facts: Facts,
    plan: ResetPlan,
    /,
    layout: AcquisitionLayout,
    *,
    reason: str,
    remove_files: bool = True,
    lease_s: float = DEFAULT_LEASE_S,
) -> int:
    """Carry out a plan and return the number of facts that were withdrawn.

    The work on all items concerned is claimed first, so that no other process works on them in the meantime.

    Raises
    ------
    StateError
        Another process, which the message names, works on one of the items, or something was finished since the plan
        was made. Nothing was undone.
    """
    with contextlib.ExitStack() as claims:
        for item, work in _claims_of(plan, facts):
            claim = facts.claim(item, work, lease_s=lease_s)
            if claim is None:
                raise StateError(f"{item} cannot be reset now: {facts.holder(item, work)}; stop it first, or wait")
            claims.enter_context(claim)
        if _results(plan_reset(facts, plan.target, layout, downstream=plan.downstream)) != _results(plan):
            raise StateError(f"{plan.target} has changed since this reset was planned; start the reset again")
        withdrawn = sum(facts.withdraw(item, fact, reason=reason) for item, fact in plan.withdraw)
        for item in plan.items:
            for work in chain().claims(item.hierarchy):  # the claims of this reset have created these flags again
                if (item, work) not in plan.withdraw:
                    facts.withdraw(item, work, reason=reason)
        if remove_files:
            for name in plan.remove:
                _remove(path_from_name(name, facts.roots))
        return withdrawn


def _results(plan: ResetPlan) -> set[tuple[ItemId, str]]:
    return {(item, fact) for item, fact in plan.withdraw if not is_claim(fact)}


def _with_parts(item: ItemId, snapshot: FactsSnapshot, layout: AcquisitionLayout) -> Iterator[ItemId]:
    yield item
    if isinstance(item, TileId):
        yield layout.batch_of(item)
    if isinstance(item, BatchId):
        yield from (tile for tile in layout.tiles(item) if snapshot.facts_of(tile))


def _kept(item: ItemId, *, is_target: bool) -> frozenset[str]:
    if isinstance(item, BatchId):  # `ready` records where the raw tiles are; it is not a result
        return _KEPT_OF_BATCH
    return _KEPT_OF_TARGET if is_target else DECISIONS


def _resting_on(
    items: set[ItemId],
    going: set[str],
    snapshot: FactsSnapshot,
    records: Mapping[tuple[ItemId, str], FactRecord],
    layout: AcquisitionLayout,
) -> Iterator[tuple[ItemId, str]]:
    above = {whole for item in items if (whole := whole_of(item, layout)) is not None}
    for item in above:
        yield from ((item, fact) for fact in snapshot.facts_of(item) if fact not in _kept(item, is_target=False))
    for (item, _), record in records.items():
        if item not in items and not going.isdisjoint(_names_in(record)):
            yield from ((item, fact) for fact in snapshot.facts_of(item) if fact not in _kept(item, is_target=True))


def _names_in(record: FactRecord) -> Iterator[str]:
    yield from (file.path for file in record.inputs)
    yield from _texts_in(record.detail)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, Iterable):
        for part in value:
            yield from _texts_in(part)


def _goes(file: FileRecord, key: tuple[ItemId, str], target: ItemId) -> bool:
    if isinstance(key[0], SampleId) and not isinstance(target, SampleId):
        return False  # the stacks also hold the other slices; the new part replaces the old one
    return ":" not in file.path and key[1] not in chain().published | chain().side_results


def _claims_of(plan: ResetPlan, facts: Facts) -> Iterator[tuple[ItemId, str]]:
    for item in plan.items:
        known = [fact for fact in facts.facts_of(item) if is_claim(fact)]
        for work in dict.fromkeys([*chain().claims(item.hierarchy), *sorted(known)]):
            yield item, work


def _remove(path: Path) -> None:
    """Remove a file or folder; a folder is renamed first, so that a half-removed one never has the final name."""
    if path.is_dir() and not path.is_symlink():
        doomed = temporary_beside(path)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

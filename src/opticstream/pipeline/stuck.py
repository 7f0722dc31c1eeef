"""Find work that is stuck, and why: dead claims, incomplete columns, missing templates, work that nobody starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from opticstream.model.chain import chain
from opticstream.model.ids import BatchId, ItemId, MosaicId
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import BATCH_ENDED, is_settled, waits_for_template
from opticstream.state import FactsSnapshot
from opticstream.state.facts import utc_now

_PATIENCE_SWEEPS = 5.0
"""Number of sweeps after which ready work counts as stuck; the first sweep announces it again."""


@dataclass(frozen=True)
class Stuck:
    """Work that does not continue without help."""

    item: ItemId
    what: str
    """`lease dead`, `columns incomplete`, `template missing`, `not started` or `not done`: the last attempt failed."""
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"item": self.item.key, "what": self.what, "why": self.why}


def stuck_items(
    project: Project, snapshot: FactsSnapshot | None = None, /, *, now: datetime | None = None
) -> list[Stuck]:
    """Return what is stuck in a project, in the order of the chain.

    Parameters
    ----------
    project : Project
        The project.
    snapshot : FactsSnapshot, optional
        Its facts; read by default.
    now : datetime, optional
        The current time; that of this host by default.
    """
    snapshot = project.facts.snapshot() if snapshot is None else snapshot
    now = now or utc_now()
    return [
        *_incomplete_columns(project, snapshot, now),
        *_missing_templates(project, snapshot),
        *_stopped_work(project, snapshot, now),
    ]


def _incomplete_columns(project: Project, snapshot: FactsSnapshot, now: datetime) -> Iterator[Stuck]:
    found = {item.mosaic for item in snapshot.items("batch") if isinstance(item, BatchId)}
    last = max(found, default=None)
    for mosaic in sorted(found):
        absent = [b for b in project.layout.batches(mosaic) if not snapshot.reached([b], "ready", *BATCH_ENDED)]
        if not absent:
            continue
        columns = ", ".join(str(batch.batch_id) for batch in absent)
        if last is not None and mosaic < last:
            yield Stuck(mosaic, "columns incomplete", f"columns {columns} are incomplete although {last} has started")
            continue
        times = [_time_of(project, batch, "ready") for batch in project.layout.batches(mosaic)]
        latest = max((time for time in times if time is not None), default=now)
        if now - latest > timedelta(seconds=project.deployment.stall_s):
            yield Stuck(
                mosaic, "columns incomplete", f"no new column since {latest:%Y-%m-%d %H:%M}; missing: {columns}"
            )


def _missing_templates(project: Project, snapshot: FactsSnapshot) -> Iterator[Stuck]:
    for item in snapshot.items("mosaic"):
        assert isinstance(item, MosaicId)
        waits = snapshot.has(item, "waiting") and not is_settled(snapshot, item)
        if waits and waits_for_template(project, item, snapshot):
            name = project.paths.tilemap(project.illumination(item).name).name
            yield Stuck(
                item, "template missing", f"waits for {name}, made by the first good mosaic of its illumination"
            )


def _stopped_work(project: Project, snapshot: FactsSnapshot, now: datetime) -> Iterator[Stuck]:
    patience = timedelta(seconds=_PATIENCE_SWEEPS * project.deployment.sweep_s)
    for hierarchy in ("batch", "mosaic", "slice"):
        steps = [step for step in chain().of(hierarchy) if not step.publishes and not step.claimed_on_sample]
        for item in snapshot.items(hierarchy):
            for step in steps:
                if not snapshot.facts_of(item).isdisjoint(step.ends):
                    continue
                holder = project.facts.holder(item, step.claim) if snapshot.has(item, step.claim) else None
                if holder is not None and holder.state == "dead":
                    yield Stuck(item, "lease dead", f"{step.name}: {holder}; no process has taken it over yet")
                elif step.starts_work and (holder is None or holder.state == "released"):
                    ready = _time_of(project, item, "ready")
                    waits = isinstance(item, MosaicId) and snapshot.has(item, "waiting")
                    if ready is not None and now - ready > patience and not waits:
                        why = f"{step.name}: ready since {ready:%Y-%m-%d %H:%M}, but no worker has started it"
                        if holder is not None and holder.failed:
                            why = f"{step.name}: attempt {holder.generation} on {holder.host.host} {holder.outcome}"
                        yield Stuck(item, "not started" if holder is None else "not done", why)


def _time_of(project: Project, item: ItemId, fact: str) -> datetime | None:
    record = project.facts.read_whole(item, fact)
    return None if record is None else record.time

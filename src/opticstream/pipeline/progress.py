"""The progress of a project, and what has failed, for `status`, progress artifacts and milestones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from opticstream.model.chain import Step, chain
from opticstream.model.errors import StateError
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId
from opticstream.pipeline.bindings import binding_of, due_items
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import has_all_batches, may_register
from opticstream.pipeline.stacking import unstacked
from opticstream.state import FactsSnapshot
from opticstream.state.vocabulary import is_failure

BATCH_STATES = ("ready", "started", "archived", "processed", "published", "uploaded")
MILESTONES_PERCENT = (25, 50, 75, 100)


@dataclass(frozen=True)
class Failure:
    """One parked item."""

    item: ItemId
    fact: str
    reason: str
    attempts: int = 1


@dataclass(frozen=True)
class MosaicProgress:
    """Progress of a mosaic."""

    mosaic_id: int
    slice_id: int
    illumination: str
    total_batches: int
    batches: dict[str, int]
    """Number of batches that have reached each state."""
    total_tiles: int
    tiles_processed: int
    tiles_failed: int
    state: str
    """The furthest state of the mosaic itself: acquiring, ready, waiting, stitching, stitched or failed."""
    volume: str
    """State of its volumes: none, stitching, stitched or failed."""
    published: bool
    """Whether its maps are in the local archive tree."""
    uploaded: bool
    """Whether every remote target holds its maps."""
    steps: dict[str, str]
    """State of each step of the chain on the mosaic, by the step's name: due, under way, done, failed or empty."""
    batches_cleaned: int = 0
    """Number of batches whose tiles have lost their files to a clean-up after the upload."""

    @property
    def percent(self) -> float:
        """Tiles done or parked, in percent of the mosaic's tiles."""
        return 100 * (self.tiles_processed + self.tiles_failed) / self.total_tiles


@dataclass(frozen=True)
class SliceProgress:
    """Progress of a slice."""

    slice_id: int
    state: str
    """acquiring, ready, registering, registered, axis failed (it goes on without fibre axes), skipped or failed."""
    reason: str = ""
    stacked: bool = False
    published: bool = False
    """Whether its results are in the local archive tree."""
    uploaded: bool = False
    """Whether every remote target holds its results."""
    steps: dict[str, str] = field(default_factory=dict)
    """State of each step of the chain on the slice, by the step's name."""


@dataclass(frozen=True)
class ProjectProgress:
    """Progress of a project."""

    project_name: str
    mosaics: tuple[MosaicProgress, ...]
    slices: tuple[SliceProgress, ...]
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        plain = asdict(self)
        for failure, entry in zip(self.failures, plain["failures"], strict=True):
            entry["item"] = failure.item.key
        for mosaic, entry in zip(self.mosaics, plain["mosaics"], strict=True):
            entry["percent"] = round(mosaic.percent, 1)
        return plain


def project_progress(project: Project, /, snapshot: FactsSnapshot | None = None) -> ProjectProgress:
    """Return the progress of a project, from its flag files."""
    snapshot = project.facts.snapshot() if snapshot is None else snapshot
    mosaics = snapshot.mosaics()
    slices = sorted({project.layout.slice_of(m) for m in mosaics})
    return ProjectProgress(
        project.config.name,
        tuple(_mosaic_progress(project, snapshot, m) for m in mosaics),
        tuple(_slice_progress(project, snapshot, s) for s in slices),
        tuple(failures(project, snapshot)),
    )


def failures(project: Project, snapshot: FactsSnapshot, /) -> Iterable[Failure]:
    """Yield every parked item with its reason."""
    for item in snapshot.with_facts(is_failure):
        for fact in sorted(snapshot.facts_of(item)):
            if is_failure(fact):
                detail = detail_of(project, item, fact)
                yield Failure(item, fact, str(detail.get("reason", "unknown")), int(detail.get("attempts", 1)))


def detail_of(project: Project, item: ItemId, fact: str, /) -> Mapping[str, Any]:
    """Return the detail of a fact; of a damaged flag only the reason why it cannot be read."""
    try:
        record = project.facts.read(item, fact)
    except StateError as error:  # a damaged flag is still a fact
        return {"reason": str(error)}
    return record.detail if record else {}


def is_finished(project: Project, snapshot: FactsSnapshot, /) -> bool:
    """Return whether everything that was announced so far has ended, with or without success.

    A mosaic with missing columns does not count as unfinished: nothing more can be done for it now.
    """
    layout = project.layout
    for step in chain().steps:
        items = snapshot.items(step.hierarchy)
        if not step.claimed_on_sample and any(due_items(project, step, snapshot, items)):
            return False
    mosaics = {item.mosaic for item in snapshot.items("batch") if isinstance(item, BatchId)}
    for mosaic in mosaics:
        if has_all_batches(project, mosaic, snapshot) and not snapshot.has(mosaic, "ready"):
            return False
    for slice_id in {layout.slice_of(mosaic) for mosaic in mosaics}:
        if may_register(project, slice_id, snapshot) and not snapshot.has(slice_id, "ready"):
            return False
    return not unstacked(project, snapshot)  # last, because late volumes have to be looked up in the sample's ledger


def _mosaic_progress(project: Project, snapshot: FactsSnapshot, mosaic: MosaicId) -> MosaicProgress:
    layout = project.layout
    grid = layout.illumination_of(mosaic)
    batches = snapshot.batches_by_facts(mosaic, most=grid.columns)
    tiles = snapshot.tiles_by_facts(mosaic, most=grid.tiles)
    known = snapshot.facts_of(mosaic)
    state = next((name for name in ("failed", "stitched", "waiting", "started", "ready") if name in known), "acquiring")
    volume = next((name for name in ("volume_failed", "volume_stitched", "volume_started") if name in known), "none")
    return MosaicProgress(
        mosaic_id=mosaic.mosaic_id,
        slice_id=layout.slice_of(mosaic).slice_id,
        illumination=grid.name,
        total_batches=grid.columns,
        batches={name: _with_fact(batches, name) for name in BATCH_STATES},
        total_tiles=grid.tiles,
        tiles_processed=_with_fact(tiles, "processed"),
        tiles_failed=sum(n for facts, n in tiles.items() if "failed" in facts and "processed" not in facts),
        state={"started": "stitching"}.get(state, state),
        volume={"volume_failed": "failed", "volume_stitched": "stitched", "volume_started": "stitching"}.get(
            volume, volume
        ),
        published="published" in known,
        uploaded="uploaded" in known,
        steps=_steps(project, snapshot, mosaic),
        batches_cleaned=_with_fact(batches, "cleaned"),
    )


def _with_fact(items: Mapping[frozenset[str], int], fact: str) -> int:
    return sum(number for facts, number in items.items() if fact in facts)


def _steps(project: Project, snapshot: FactsSnapshot, item: ItemId) -> dict[str, str]:
    known = snapshot.facts_of(item)

    def state(step: Step) -> str:
        if not known.isdisjoint(step.ends):
            return "done" if step.done in known else "failed"
        if not binding_of(step).wanted(project):
            return ""
        if step.claim in known and not step.claimed_on_sample:
            return "under way"
        return "due" if step.after in known else ""

    return {step.name: state(step) for step in chain().of(item.hierarchy)}


def _slice_progress(project: Project, snapshot: FactsSnapshot, slice_id: SliceId) -> SliceProgress:
    known = snapshot.facts_of(slice_id)
    order = ("failed", "axis_failed", "skipped", "registered", "started", "ready")
    state = next((name for name in order if name in known), "acquiring")
    detail = detail_of(project, slice_id, state) if state in ("failed", "axis_failed", "skipped") else {}
    return SliceProgress(
        slice_id.slice_id,
        {"started": "registering", "axis_failed": "axis failed"}.get(state, state),
        reason=str(detail.get("reason", "")),
        stacked="stacked" in known and "excluded" not in known,
        published="published" in known,
        uploaded="uploaded" in known,
        steps=_steps(project, snapshot, slice_id),
    )

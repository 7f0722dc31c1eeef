"""State of an OCT project: project > slice > mosaic > batch, a copy of its flag files.

Each fact of `vocabulary` has a field ``<fact>_at``, so that a flag and the state can be compared name by name. Tiles
are not objects: a batch lists its failed tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, ClassVar, Self

from pydantic import Field

from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.state.store import BaseProjectStateStore
from opticstream.state.tree import Children, Failing, MutableState, ProjectState, StateView, shortened


class OCTBatchStateView(Failing):
    """One batch of a mosaic."""

    batch_id: int = Field(ge=1)
    ready_at: datetime | None = None
    cleaned_at: datetime | None = None
    started_at: datetime | None = None
    archived_at: datetime | None = None
    processed_at: datetime | None = None
    failed_at: datetime | None = None
    archive_started_at: datetime | None = None
    archive_failed_at: datetime | None = None
    publish_started_at: datetime | None = None
    published_at: datetime | None = None
    publish_failed_at: datetime | None = None
    upload_started_at: datetime | None = None
    uploaded_at: datetime | None = None
    upload_failed_at: datetime | None = None
    failed_tiles: tuple[int, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether each of its tiles is processed or parked as failed."""
        return self.processed_at is not None

    @property
    def ended(self) -> bool:
        """Whether its processing has ended: it is finished, or parked as failed."""
        return self.finished or self.failed_at is not None

    @property
    def published(self) -> bool:
        """Whether its archive copies are in the local archive tree."""
        return self.published_at is not None

    @property
    def uploaded(self) -> bool:
        """Whether every remote target holds its archive copies."""
        return self.uploaded_at is not None


class OCTMosaicStateView(Failing):
    """One mosaic of a slice."""

    mosaic_id: int = Field(ge=1)
    waiting_at: datetime | None = None
    ready_at: datetime | None = None
    started_at: datetime | None = None
    stitched_at: datetime | None = None
    failed_at: datetime | None = None
    volume_started_at: datetime | None = None
    volume_stitched_at: datetime | None = None
    volume_failed_at: datetime | None = None
    publish_started_at: datetime | None = None
    published_at: datetime | None = None
    publish_failed_at: datetime | None = None
    upload_started_at: datetime | None = None
    uploaded_at: datetime | None = None
    upload_failed_at: datetime | None = None
    volume_publish_started_at: datetime | None = None
    volume_published_at: datetime | None = None
    volume_publish_failed_at: datetime | None = None
    volume_upload_started_at: datetime | None = None
    volume_uploaded_at: datetime | None = None
    volume_upload_failed_at: datetime | None = None
    batches: Children[OCTBatchStateView] = Field(default_factory=dict, validate_default=True)

    @property
    def finished(self) -> bool:
        """Whether its maps are stitched; volumes have their own facts."""
        return self.stitched_at is not None

    @property
    def ended(self) -> bool:
        """Whether its maps have ended: they are stitched, or parked as failed."""
        return self.finished or self.failed_at is not None

    @property
    def published(self) -> bool:
        """Whether its maps are in the local archive tree."""
        return self.published_at is not None

    @property
    def uploaded(self) -> bool:
        """Whether every remote target holds its maps."""
        return self.uploaded_at is not None

    def batch(self, batch_id: int, /) -> OCTBatchStateView | None:
        """Return a batch, or None if there is none."""
        return self.batches.get(batch_id)

    def count(self, fact: str, /) -> int:
        """Return how many of its batches have a fact."""
        return sum(batch.has(fact) for batch in self.batches.values())


class OCTSliceStateView(Failing):
    """One slice of a project."""

    slice_id: int = Field(ge=1)
    ready_at: datetime | None = None
    excluded_at: datetime | None = None
    placed_at: datetime | None = None
    started_at: datetime | None = None
    registered_at: datetime | None = None
    axis_failed_at: datetime | None = None
    skipped_at: datetime | None = None
    failed_at: datetime | None = None
    stacked_at: datetime | None = None
    stack_failed_at: datetime | None = None
    publish_started_at: datetime | None = None
    published_at: datetime | None = None
    publish_failed_at: datetime | None = None
    upload_started_at: datetime | None = None
    uploaded_at: datetime | None = None
    upload_failed_at: datetime | None = None
    mosaics: Children[OCTMosaicStateView] = Field(default_factory=dict, validate_default=True)

    @property
    def finished(self) -> bool:
        """Whether its registration has ended, with or without fibre axes."""
        return any(at is not None for at in (self.registered_at, self.axis_failed_at, self.skipped_at))

    @property
    def ended(self) -> bool:
        """Whether its registration has ended or is parked as failed."""
        return self.finished or self.failed_at is not None

    @property
    def published(self) -> bool:
        """Whether its results are in the local archive tree."""
        return self.published_at is not None

    @property
    def uploaded(self) -> bool:
        """Whether every remote target holds its results."""
        return self.uploaded_at is not None

    def mosaic(self, mosaic_id: int, /) -> OCTMosaicStateView | None:
        """Return a mosaic, or None if there is none."""
        return self.mosaics.get(mosaic_id)


class OCTProjectStateView(StateView):
    """A whole project; its own facts are the sample's."""

    project_name: str
    started_at: datetime | None = None
    updated_at: datetime | None = None
    publish_started_at: datetime | None = None
    published_at: datetime | None = None
    publish_failed_at: datetime | None = None
    upload_started_at: datetime | None = None
    uploaded_at: datetime | None = None
    upload_failed_at: datetime | None = None
    slices: Children[OCTSliceStateView] = Field(default_factory=dict, validate_default=True)

    def slice(self, slice_id: int, /) -> OCTSliceStateView | None:
        """Return a slice, or None if there is none."""
        return self.slices.get(slice_id)

    def mosaics(self) -> Iterator[OCTMosaicStateView]:
        """Yield every mosaic of the project."""
        for slice_state in self.slices.values():
            yield from slice_state.mosaics.values()


class MirroredState(MutableState, frozen=False):
    """Fields and methods of every object of the state that is made from flag files."""

    kept_back: ClassVar[Mapping[str, Any]] = {"flags": True}
    flags: str = ""
    """Mark of its flag files; empty if they were too new to be distinguished. See `opticstream.state.mirror`."""

    def clear(self) -> bool:
        """Clear its own facts, and return whether there were any; objects inside it stay."""
        forgotten = False
        for name, about in type(self).model_fields.items():
            is_own = name.endswith("_at") or name in ("flags", "attempts", "failure", "failed_tiles")
            if is_own and getattr(self, name) != about.default:
                setattr(self, name, about.default)
                forgotten = True
        return forgotten


class OCTWork(Failing, MirroredState, frozen=False):
    """Changes that batches, mosaics and slices have in common."""

    def mark_started(self, *, at: datetime | None = None) -> Self:
        """Note that an attempt has started; clear the failure of an earlier attempt."""
        self.unmark("failed")
        self.attempts += 1
        self.failure = None
        return self.mark("started", at=at)

    def mark_failed(self, reason: str, *, at: datetime | None = None) -> Self:
        """Note that the attempt failed, and why."""
        self.failure = shortened(reason)
        return self.mark("failed", at=at)

    def mark_reason(self, reason: str | None, /) -> Self:
        """Note why it failed or was skipped; None clears the reason."""
        self.failure = None if reason is None else shortened(reason)
        return self

    def mark_published(self, *, at: datetime | None = None) -> Self:
        """Note that it is in the local archive tree."""
        return self.mark("published", at=at)

    def set_uploaded(self, uploaded: bool = True, *, at: datetime | None = None) -> Self:
        """Note that every remote target holds it, or that one does not."""
        return self.mark("uploaded", at=at) if uploaded else self.unmark("uploaded")


class OCTBatchState(OCTBatchStateView, OCTWork, frozen=False):
    """One batch of a mosaic, to be changed."""

    def mark_archived(self, *, at: datetime | None = None) -> Self:
        """Note that its raw tiles are in the archive."""
        return self.mark("archived", at=at)

    def mark_processed(self, *, at: datetime | None = None) -> Self:
        """Note that each of its tiles is processed or parked."""
        return self.mark("processed", at=at)

    def set_failed_tiles(self, tile_ids: tuple[int, ...], /) -> Self:
        """Note which of its tiles are parked as failed."""
        self.failed_tiles = tuple(sorted(set(tile_ids)))
        return self

    def to_view(self) -> OCTBatchStateView:
        """Return a frozen copy."""
        return self._as(OCTBatchStateView)


class OCTMosaicState(OCTMosaicStateView, OCTWork, frozen=False):
    """One mosaic of a slice, to be changed."""

    kept_back: ClassVar[Mapping[str, Any]] = {"flags": True, "batches": {"__all__": OCTBatchState.kept_back}}
    batches: dict[int, OCTBatchState] = Field(default_factory=dict)  # type: ignore[assignment]

    def get_or_create_batch(self, batch_id: int, /) -> OCTBatchState:
        """Return a batch, created if there is none."""
        return self.batches.setdefault(batch_id, OCTBatchState(batch_id=batch_id))

    def mark_stitched(self, *, at: datetime | None = None) -> Self:
        """Note that its maps are stitched."""
        return self.mark("stitched", at=at)

    def mark_volume_stitched(self, *, at: datetime | None = None) -> Self:
        """Note that its volumes are stitched."""
        return self.mark("volume_stitched", at=at)

    def to_view(self) -> OCTMosaicStateView:
        """Return a frozen copy."""
        return self._as(OCTMosaicStateView)


class OCTSliceState(OCTSliceStateView, OCTWork, frozen=False):
    """One slice of a project, to be changed."""

    kept_back: ClassVar[Mapping[str, Any]] = {"flags": True, "mosaics": {"__all__": OCTMosaicState.kept_back}}
    mosaics: dict[int, OCTMosaicState] = Field(default_factory=dict)  # type: ignore[assignment]

    def get_or_create_mosaic(self, mosaic_id: int, /) -> OCTMosaicState:
        """Return a mosaic, created if there is none."""
        return self.mosaics.setdefault(mosaic_id, OCTMosaicState(mosaic_id=mosaic_id))

    def mark_registered(self, *, at: datetime | None = None) -> Self:
        """Note that its mosaics are registered."""
        return self.mark("registered", at=at)

    def mark_skipped(self, reason: str, *, at: datetime | None = None) -> Self:
        """Note that it cannot be registered, and why."""
        self.failure = shortened(reason)
        return self.mark("skipped", at=at)

    def to_view(self) -> OCTSliceStateView:
        """Return a frozen copy."""
        return self._as(OCTSliceStateView)


class OCTProjectState(OCTProjectStateView, MirroredState, ProjectState, frozen=False):
    """A whole project, to be changed."""

    kept_back: ClassVar[Mapping[str, Any]] = {"flags": True, "slices": {"__all__": OCTSliceState.kept_back}}
    slices: dict[int, OCTSliceState] = Field(default_factory=dict)  # type: ignore[assignment]

    def get_or_create_slice(self, slice_id: int, /) -> OCTSliceState:
        """Return a slice, created if there is none."""
        return self.slices.setdefault(slice_id, OCTSliceState(slice_id=slice_id))

    def item(
        self, item: ItemId, layout: AcquisitionLayout, /
    ) -> OCTProjectState | OCTSliceState | OCTMosaicState | OCTBatchState:
        """Return the object of an item, made if nothing was known about it; for a tile its batch."""
        match item:
            case SampleId():
                return self
            case SliceId():
                return self.get_or_create_slice(item.slice_id)
            case MosaicId():
                slice_state = self.get_or_create_slice(layout.slice_of(item).slice_id)
                return slice_state.get_or_create_mosaic(item.mosaic_id)
            case BatchId():
                mosaic = self.item(item.mosaic, layout)
                assert isinstance(mosaic, OCTMosaicState)
                return mosaic.get_or_create_batch(item.batch_id)
            case TileId():
                return self.item(layout.batch_of(item), layout)

    def find(
        self, item: ItemId, layout: AcquisitionLayout, /
    ) -> OCTProjectState | OCTSliceState | OCTMosaicState | OCTBatchState | None:
        """Return the object of an item, None when nothing is known about it; for a tile its batch."""
        match item:
            case SampleId():
                return self
            case SliceId():
                return self.slices.get(item.slice_id)
            case MosaicId():
                parent = self.slices.get(layout.slice_of(item).slice_id)
                return None if parent is None else parent.mosaics.get(item.mosaic_id)
            case BatchId():
                mosaic = self.find(item.mosaic, layout)
                return mosaic.batches.get(item.batch_id) if isinstance(mosaic, OCTMosaicState) else None
            case TileId():
                return self.find(layout.batch_of(item), layout)

    def to_view(self) -> OCTProjectStateView:
        """Return a frozen copy."""
        return self._as(OCTProjectStateView)


class OCTStateService:
    """The state of OCT projects for flows and commands.

    `open_*` yields a mutable object with the project's lock held, creates what is missing, and saves at the end unless
    an exception is raised. `read_*` reads with the lock, `peek_*` without it; both return frozen views, create nothing
    and save nothing. Never base a change on a `peek_*`.

    Examples
    --------
    >>> from opticstream.state.memory_store import memory_store
    >>> service = OCTStateService(memory_store(OCTProjectState))
    >>> with service.open_batch("i80", slice_id=1, mosaic_id=2, batch_id=3) as batch:
    ...     _ = batch.mark_archived().mark_processed()
    >>> service.read_batch("i80", slice_id=1, mosaic_id=2, batch_id=3).finished
    True
    >>> service.peek_mosaic("i80", slice_id=1, mosaic_id=1) is None
    True
    """

    pipeline: ClassVar[str] = "oct"

    def __init__(self, store: BaseProjectStateStore[OCTProjectState], /) -> None:
        self.store = store

    def open_project(
        self, project_name: str, *, timeout_s: float | None = None
    ) -> AbstractContextManager[OCTProjectState]:
        """Open the whole project to change it."""
        return self.store.locked(project_name, timeout_s=timeout_s)

    def open_slice(
        self, project_name: str, *, slice_id: int, timeout_s: float | None = None
    ) -> AbstractContextManager[OCTSliceState]:
        """Open a slice to change it."""
        return self.store.edit(project_name, lambda state: state.get_or_create_slice(slice_id), timeout_s=timeout_s)

    def open_mosaic(
        self, project_name: str, *, slice_id: int, mosaic_id: int, timeout_s: float | None = None
    ) -> AbstractContextManager[OCTMosaicState]:
        """Open a mosaic to change it."""
        return self.store.edit(
            project_name,
            lambda state: state.get_or_create_slice(slice_id).get_or_create_mosaic(mosaic_id),
            timeout_s=timeout_s,
        )

    def open_batch(
        self, project_name: str, *, slice_id: int, mosaic_id: int, batch_id: int, timeout_s: float | None = None
    ) -> AbstractContextManager[OCTBatchState]:
        """Open a batch to change it."""
        return self.store.edit(
            project_name,
            lambda state: (
                state.get_or_create_slice(slice_id).get_or_create_mosaic(mosaic_id).get_or_create_batch(batch_id)
            ),
            timeout_s=timeout_s,
        )

    def read_project(self, project_name: str, *, timeout_s: float | None = None) -> OCTProjectStateView | None:
        """Return the whole project read with the lock."""
        return self.store.read(project_name, lambda state: state.to_view(), timeout_s=timeout_s)

    def read_slice(
        self, project_name: str, *, slice_id: int, timeout_s: float | None = None
    ) -> OCTSliceStateView | None:
        """Return a slice read with the lock."""
        return self.store.read(project_name, lambda state: _slice(state, slice_id), timeout_s=timeout_s)

    def read_mosaic(
        self, project_name: str, *, slice_id: int, mosaic_id: int, timeout_s: float | None = None
    ) -> OCTMosaicStateView | None:
        """Return a mosaic read with the lock."""
        return self.store.read(project_name, lambda state: _mosaic(state, slice_id, mosaic_id), timeout_s=timeout_s)

    def read_batch(
        self, project_name: str, *, slice_id: int, mosaic_id: int, batch_id: int, timeout_s: float | None = None
    ) -> OCTBatchStateView | None:
        """Return a batch read with the lock."""
        return self.store.read(
            project_name, lambda state: _batch(state, slice_id, mosaic_id, batch_id), timeout_s=timeout_s
        )

    def peek_project(self, project_name: str) -> OCTProjectStateView | None:
        """Return the whole project read without the lock."""
        return self.store.peek(project_name, lambda state: state.to_view())

    def peek_slice(self, project_name: str, *, slice_id: int) -> OCTSliceStateView | None:
        """Return a slice read without the lock."""
        return self.store.peek(project_name, lambda state: _slice(state, slice_id))

    def peek_mosaic(self, project_name: str, *, slice_id: int, mosaic_id: int) -> OCTMosaicStateView | None:
        """Return a mosaic read without the lock."""
        return self.store.peek(project_name, lambda state: _mosaic(state, slice_id, mosaic_id))

    def peek_batch(
        self, project_name: str, *, slice_id: int, mosaic_id: int, batch_id: int
    ) -> OCTBatchStateView | None:
        """Return a batch read without the lock."""
        return self.store.peek(project_name, lambda state: _batch(state, slice_id, mosaic_id, batch_id))


def _slice(state: OCTProjectState, slice_id: int) -> OCTSliceStateView | None:
    found = state.slices.get(slice_id)
    return None if found is None else found.to_view()


def _mosaic(state: OCTProjectState, slice_id: int, mosaic_id: int) -> OCTMosaicStateView | None:
    parent = state.slices.get(slice_id)
    found = None if parent is None else parent.mosaics.get(mosaic_id)
    return None if found is None else found.to_view()


def _batch(state: OCTProjectState, slice_id: int, mosaic_id: int, batch_id: int) -> OCTBatchStateView | None:
    parent = state.slices.get(slice_id)
    mosaic = None if parent is None else parent.mosaics.get(mosaic_id)
    found = None if mosaic is None else mosaic.batches.get(batch_id)
    return None if found is None else found.to_view()

"""State of a light-sheet project: project > slice > channel > strip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import ClassVar, Self

from pydantic import Field

from opticstream.state.store import BaseProjectStateStore
from opticstream.state.tree import Children, Failing, MutableState, ProjectState, StateView, shortened


class LSMWorkView(Failing):
    """Fields that strips, channels and slices have in common."""

    started_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    archived_at: datetime | None = None
    uploaded_at: datetime | None = None

    @property
    def started(self) -> bool:
        """Whether work on it has begun."""
        return self.started_at is not None

    @property
    def finished(self) -> bool:
        """Whether its work is completed."""
        return self.completed_at is not None

    @property
    def failed(self) -> bool:
        """Whether the last attempt at it failed."""
        return self.failed_at is not None

    @property
    def archived(self) -> bool:
        """Whether it is in the archive."""
        return self.archived_at is not None

    @property
    def uploaded(self) -> bool:
        """Whether it has been uploaded."""
        return self.uploaded_at is not None


class LSMStripStateView(LSMWorkView):
    """One strip of a channel."""

    strip_id: int = Field(ge=0)


class LSMChannelStateView(LSMWorkView):
    """One channel of a slice."""

    channel_id: int = Field(ge=0)
    strips: Children[LSMStripStateView] = Field(default_factory=dict, validate_default=True)

    def strip(self, strip_id: int, /) -> LSMStripStateView | None:
        """Return a strip, or None if there is none."""
        return self.strips.get(strip_id)


class LSMSliceStateView(LSMWorkView):
    """One slice of a project."""

    slice_id: int = Field(ge=0)
    channels: Children[LSMChannelStateView] = Field(default_factory=dict, validate_default=True)

    def channel(self, channel_id: int, /) -> LSMChannelStateView | None:
        """Return a channel, or None if there is none."""
        return self.channels.get(channel_id)


class LSMProjectStateView(StateView):
    """A whole project."""

    project_name: str
    slices: Children[LSMSliceStateView] = Field(default_factory=dict, validate_default=True)

    def slice(self, slice_id: int, /) -> LSMSliceStateView | None:
        """Return a slice, or None if there is none."""
        return self.slices.get(slice_id)

    def strips(self) -> Iterator[LSMStripStateView]:
        """Yield every strip of the project."""
        for slice_state in self.slices.values():
            for channel in slice_state.channels.values():
                yield from channel.strips.values()


class LSMWork(LSMWorkView, MutableState, frozen=False):
    """Changes to strips, channels and slices."""

    def mark_started(self) -> Self:
        """Note that an attempt has started; clear what an earlier attempt left."""
        self.unmark("completed", "failed")
        self.attempts += 1
        self.failure = None
        return self.mark("started")

    def mark_completed(self) -> Self:
        """Note that the work is done."""
        self.unmark("failed")
        self.failure = None
        return self.mark("completed")

    def mark_failed(self, reason: str) -> Self:
        """Note that the attempt failed, and why."""
        self.failure = shortened(reason)
        return self.mark("failed")

    def set_archived(self, archived: bool = True) -> Self:
        """Note that it is, or is no longer, in the archive."""
        return self.mark("archived") if archived else self.unmark("archived")

    def set_uploaded(self, uploaded: bool = True) -> Self:
        """Note that it has, or has not, been uploaded."""
        return self.mark("uploaded") if uploaded else self.unmark("uploaded")


class LSMStripState(LSMStripStateView, LSMWork, frozen=False):
    """One strip of a channel, to be changed."""

    def to_view(self) -> LSMStripStateView:
        """Return a frozen copy."""
        return self._as(LSMStripStateView)


class LSMChannelState(LSMChannelStateView, LSMWork, frozen=False):
    """One channel of a slice, to be changed."""

    strips: dict[int, LSMStripState] = Field(default_factory=dict)  # type: ignore[assignment]

    def get_or_create_strip(self, strip_id: int, /) -> LSMStripState:
        """Return a strip, created if there is none."""
        return self.strips.setdefault(strip_id, LSMStripState(strip_id=strip_id))

    def to_view(self) -> LSMChannelStateView:
        """Return a frozen copy."""
        return self._as(LSMChannelStateView)


class LSMSliceState(LSMSliceStateView, LSMWork, frozen=False):
    """One slice of a project, to be changed."""

    channels: dict[int, LSMChannelState] = Field(default_factory=dict)  # type: ignore[assignment]

    def get_or_create_channel(self, channel_id: int, /) -> LSMChannelState:
        """Return a channel, created if there is none."""
        return self.channels.setdefault(channel_id, LSMChannelState(channel_id=channel_id))

    def to_view(self) -> LSMSliceStateView:
        """Return a frozen copy."""
        return self._as(LSMSliceStateView)


class LSMProjectState(LSMProjectStateView, ProjectState, frozen=False):
    """A whole project, to be changed."""

    slices: dict[int, LSMSliceState] = Field(default_factory=dict)  # type: ignore[assignment]

    def get_or_create_slice(self, slice_id: int, /) -> LSMSliceState:
        """Return a slice, created if there is none."""
        return self.slices.setdefault(slice_id, LSMSliceState(slice_id=slice_id))

    def to_view(self) -> LSMProjectStateView:
        """Return a frozen copy."""
        return self._as(LSMProjectStateView)


class LSMStateService:
    """The state of light-sheet projects for flows and commands.

    `open_*` yields a mutable object with the project's lock held, creates what is missing, and saves at the end unless
    an exception is raised. `read_*` reads with the lock, `peek_*` without it; both return frozen views, create nothing
    and save nothing. Never base a change on a `peek_*`.

    Examples
    --------
    >>> from opticstream.state.memory_store import memory_store
    >>> service = LSMStateService(memory_store(LSMProjectState))
    >>> with service.open_strip("i80", slice_id=1, strip_id=2, channel_id=0) as strip:
    ...     _ = strip.mark_completed().set_uploaded(True)
    >>> service.peek_strip("i80", slice_id=1, strip_id=2, channel_id=0).finished
    True
    >>> service.peek_strip("i80", slice_id=9, strip_id=2, channel_id=0) is None
    True
    """

    pipeline: ClassVar[str] = "lsm"

    def __init__(self, store: BaseProjectStateStore[LSMProjectState], /) -> None:
        self.store = store

    def open_project(
        self, project_name: str, *, timeout_s: float | None = None
    ) -> AbstractContextManager[LSMProjectState]:
        """Open the whole project to change it."""
        return self.store.locked(project_name, timeout_s=timeout_s)

    def open_slice(
        self, project_name: str, *, slice_id: int, timeout_s: float | None = None
    ) -> AbstractContextManager[LSMSliceState]:
        """Open a slice to change it."""
        return self.store.edit(project_name, lambda state: state.get_or_create_slice(slice_id), timeout_s=timeout_s)

    def open_channel(
        self, project_name: str, *, slice_id: int, channel_id: int, timeout_s: float | None = None
    ) -> AbstractContextManager[LSMChannelState]:
        """Open a channel to change it."""
        return self.store.edit(
            project_name,
            lambda state: state.get_or_create_slice(slice_id).get_or_create_channel(channel_id),
            timeout_s=timeout_s,
        )

    def open_strip(
        self, project_name: str, *, slice_id: int, strip_id: int, channel_id: int, timeout_s: float | None = None
    ) -> AbstractContextManager[LSMStripState]:
        """Open a strip to change it."""
        return self.store.edit(
            project_name,
            lambda state: (
                state.get_or_create_slice(slice_id).get_or_create_channel(channel_id).get_or_create_strip(strip_id)
            ),
            timeout_s=timeout_s,
        )

    def read_project(self, project_name: str, *, timeout_s: float | None = None) -> LSMProjectStateView | None:
        """Return the whole project read with the lock."""
        return self.store.read(project_name, lambda state: state.to_view(), timeout_s=timeout_s)

    def read_slice(
        self, project_name: str, *, slice_id: int, timeout_s: float | None = None
    ) -> LSMSliceStateView | None:
        """Return a slice read with the lock."""
        return self.store.read(project_name, lambda state: _slice(state, slice_id), timeout_s=timeout_s)

    def read_channel(
        self, project_name: str, *, slice_id: int, channel_id: int, timeout_s: float | None = None
    ) -> LSMChannelStateView | None:
        """Return a channel read with the lock."""
        return self.store.read(project_name, lambda state: _channel(state, slice_id, channel_id), timeout_s=timeout_s)

    def read_strip(
        self, project_name: str, *, slice_id: int, strip_id: int, channel_id: int, timeout_s: float | None = None
    ) -> LSMStripStateView | None:
        """Return a strip read with the lock."""
        return self.store.read(
            project_name, lambda state: _strip(state, slice_id, channel_id, strip_id), timeout_s=timeout_s
        )

    def peek_project(self, project_name: str) -> LSMProjectStateView | None:
        """Return the whole project read without the lock."""
        return self.store.peek(project_name, lambda state: state.to_view())

    def peek_slice(self, project_name: str, *, slice_id: int) -> LSMSliceStateView | None:
        """Return a slice read without the lock."""
        return self.store.peek(project_name, lambda state: _slice(state, slice_id))

    def peek_channel(self, project_name: str, *, slice_id: int, channel_id: int) -> LSMChannelStateView | None:
        """Return a channel read without the lock."""
        return self.store.peek(project_name, lambda state: _channel(state, slice_id, channel_id))

    def peek_strip(
        self, project_name: str, *, slice_id: int, strip_id: int, channel_id: int
    ) -> LSMStripStateView | None:
        """Return a strip read without the lock."""
        return self.store.peek(project_name, lambda state: _strip(state, slice_id, channel_id, strip_id))


def _slice(state: LSMProjectState, slice_id: int) -> LSMSliceStateView | None:
    found = state.slices.get(slice_id)
    return None if found is None else found.to_view()


def _channel(state: LSMProjectState, slice_id: int, channel_id: int) -> LSMChannelStateView | None:
    parent = state.slices.get(slice_id)
    found = None if parent is None else parent.channels.get(channel_id)
    return None if found is None else found.to_view()


def _strip(state: LSMProjectState, slice_id: int, channel_id: int, strip_id: int) -> LSMStripStateView | None:
    parent = state.slices.get(slice_id)
    channel = None if parent is None else parent.channels.get(channel_id)
    found = None if channel is None else channel.strips.get(strip_id)
    return None if found is None else found.to_view()

"""Shared state of projects: load, change and save as one step with a lock, independent of where the state is kept.

The generic part of section 8 of the design. A repository loads and saves the state of a project, a lock excludes other
writers, and `BaseProjectStateStore` combines them. Slices and strips are defined elsewhere
(`oct_state`, `lsm_state`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Generic, Protocol, TypeVar

from opticstream.model.errors import StateError
from opticstream.state.tree import ProjectState

TState = TypeVar("TState", bound=ProjectState)
TItem = TypeVar("TItem")
TResult = TypeVar("TResult")

DEFAULT_TIMEOUT_S = 60.0


class ProjectStateRepository(Protocol[TState]):
    """Where the states of projects are kept."""

    @property
    def state_type(self) -> type[TState]:
        """Type of the states."""
        ...

    def load(self, project_name: str, /) -> TState | None:
        """Return a new copy of a project's state, or None if there is none.

        It is never a mixture of two saves, even without the lock and during a save.
        """
        ...

    def save(self, project_name: str, state: TState, /, *, still_held: Callable[[], None]) -> None:
        """Save a state; only changes are written, and readers see all of them or none.

        Parameters
        ----------
        project_name : str
            Name of the project.
        state : TState
            The whole state.
        still_held : callable
            Raises an error if the lock has been lost; called just before the change becomes visible.
        """
        ...

    def warm(self, project_name: str, /) -> None:
        """Prefetch what `load` will need, so that the lock is held for a shorter time; may do nothing."""
        ...

    def delete(self, project_name: str, /) -> None:
        """Forget a project's state."""
        ...


class HeldLock(Protocol):
    """A lock that is held."""

    def ensure_held(self) -> None:
        """Raise StateError if the lock has been lost."""
        ...


class ProjectLock(Protocol):
    """Excludes all but one writer of a project."""

    def hold(self, project_name: str, /, *, timeout_s: float) -> AbstractContextManager[HeldLock]:
        """Hold the project's lock inside a `with` block.

        Raises
        ------
        LockTimeout
            It stayed taken for `timeout_s`; the message names the holder.
        """
        ...


class BaseProjectStateStore(Generic[TState]):
    """Locked changes and reads of the states of projects.

    Parameters
    ----------
    repository : ProjectStateRepository
        Where states are kept.
    lock : ProjectLock
        The lock for writers.
    timeout_s : float, default 60
        How long to wait for the lock by default.
    """

    def __init__(
        self, repository: ProjectStateRepository[TState], lock: ProjectLock, /, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.repository = repository
        self.lock = lock
        self.timeout_s = timeout_s
        self._open = threading.local()

    @contextmanager
    def locked(self, project_name: str, /, *, timeout_s: float | None = None) -> Iterator[TState]:
        """Yield the project's state, an empty one for a new project, and save it at the end.

        If an exception leaves the block, nothing is saved.

        Raises
        ------
        LockTimeout
            Another process kept the lock.
        StateError
            This thread has the project open already (the lock is not re-entrant: use the open object), or the lock
            was lost before saving.
        """
        with self._held(project_name, timeout_s) as held:
            state = self.repository.load(project_name)
            if state is None:
                state = self.repository.state_type(project_name=project_name)
            yield state
            held.ensure_held()
            self.repository.save(project_name, state, still_held=held.ensure_held)

    def read(
        self, project_name: str, reader: Callable[[TState], TResult], /, *, timeout_s: float | None = None
    ) -> TResult | None:
        """Return the result of `reader` for the state, with the lock held; None without a state. Saves nothing."""
        with self._held(project_name, timeout_s):
            state = self.repository.load(project_name)
        return None if state is None else reader(state)

    def update(
        self, project_name: str, mutate: Callable[[TState], TResult], /, *, timeout_s: float | None = None
    ) -> TResult:
        """Change the state by a function and return what the function returns."""
        with self.locked(project_name, timeout_s=timeout_s) as state:
            return mutate(state)

    def peek(self, project_name: str, reader: Callable[[TState], TResult], /) -> TResult | None:
        """Return the result of `reader` for the state, without the lock; for displays, never to base a change on."""
        state = self.repository.load(project_name)
        return None if state is None else reader(state)

    @contextmanager
    def edit(
        self, project_name: str, getter: Callable[[TState], TItem], /, *, timeout_s: float | None = None
    ) -> Iterator[TItem]:
        """Yield the object that `getter` picks from the state, and save at the end."""
        with self.locked(project_name, timeout_s=timeout_s) as state:
            yield getter(state)

    def replace(self, project_name: str, make: Callable[[], TState], /, *, timeout_s: float | None = None) -> TState:
        """Save a state that is made under the lock, whatever was kept before, and return it; for rebuilding."""
        with self._held(project_name, timeout_s) as held:
            state = make()
            held.ensure_held()
            self.repository.save(project_name, state, still_held=held.ensure_held)
            return state

    @contextmanager
    def _held(self, project_name: str, timeout_s: float | None) -> Iterator[HeldLock]:
        mine: set[str] = self._open.__dict__.setdefault("projects", set())
        if project_name in mine:
            raise StateError(f"the state of {project_name!r} is open in this thread already; use the open object")
        self.repository.warm(project_name)
        with self.lock.hold(project_name, timeout_s=self.timeout_s if timeout_s is None else timeout_s) as held:
            mine.add(project_name)
            try:
                yield held
            finally:
                mine.discard(project_name)

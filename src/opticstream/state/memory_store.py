"""Keep the state of projects in the memory of one process, for tests and as an example."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic

from opticstream.model.errors import LockTimeout
from opticstream.state.store import DEFAULT_TIMEOUT_S, BaseProjectStateStore, TState


class MemoryStateRepository(Generic[TState]):
    """Keeps states as JSON text, so that callers never share an object."""

    def __init__(self, state_type: type[TState], /) -> None:
        self.state_type = state_type
        self.saves = 0
        self._texts: dict[str, str] = {}

    def load(self, project_name: str, /) -> TState | None:
        """Return a copy of a project's state, or None if there is none."""
        text = self._texts.get(project_name)
        return None if text is None else self.state_type.model_validate_json(text)

    def save(self, project_name: str, state: TState, /, *, still_held: Callable[[], None]) -> None:
        """Keep a state, if it has changed."""
        text = state.model_dump_json(exclude_defaults=True)
        if self._texts.get(project_name) != text:
            still_held()
            self._texts[project_name] = text
            self.saves += 1

    def warm(self, project_name: str, /) -> None:
        """Do nothing: memory needs no preparation."""

    def delete(self, project_name: str, /) -> None:
        """Forget a project's state."""
        self._texts.pop(project_name, None)


class MemoryProjectLock:
    """Exclude other threads of the process."""

    def __init__(self) -> None:
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._holders: dict[str, str] = {}

    def ensure_held(self) -> None:
        """Do nothing: a lock in memory cannot be lost."""

    @contextmanager
    def hold(self, project_name: str, /, *, timeout_s: float) -> Iterator[MemoryProjectLock]:
        """Hold the project's lock inside a `with` block."""
        lock = self._locks[project_name]
        if not lock.acquire(timeout=timeout_s):
            holder = self._holders.get(project_name, "a thread that has just let go")
            raise LockTimeout(f"the state of {project_name!r} stayed locked for {timeout_s:g} s by {holder}")
        self._holders[project_name] = f"thread {threading.current_thread().name!r} of this process"
        try:
            yield self
        finally:
            del self._holders[project_name]
            lock.release()


def memory_store(state_type: type[TState], /, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> BaseProjectStateStore[TState]:
    """Return a new store in the memory of this process."""
    return BaseProjectStateStore(MemoryStateRepository(state_type), MemoryProjectLock(), timeout_s=timeout_s)

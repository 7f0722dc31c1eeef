"""Keep the state of projects in files of one folder, for use without a server by the processes of one host."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic

from pydantic import ValidationError

from opticstream.model.errors import LockTimeout, StateError
from opticstream.state.durable import replace_whole
from opticstream.state.record import time_to_text
from opticstream.state.slugs import state_name
from opticstream.state.store import DEFAULT_TIMEOUT_S, BaseProjectStateStore, TState
from opticstream.system.disk import reserve, write_at
from opticstream.system.host import HostIdentity
from opticstream.system.locks import try_lock

_FIRST_WAIT_S = 0.002
_LONGEST_WAIT_S = 0.05


class FileStateRepository(Generic[TState]):
    """Keeps the state of each project in ``{project}-{pipeline}-state.json``, replaced atomically."""

    def __init__(self, folder: Path, state_type: type[TState], /, *, pipeline: str) -> None:
        self.folder = Path(folder)
        self.state_type = state_type
        self.pipeline = pipeline

    def path(self, project_name: str, /) -> Path:
        """Return the file of a project's state."""
        return self.folder / f"{state_name(project_name, self.pipeline)}.json"

    def load(self, project_name: str, /) -> TState | None:
        """Return a project's state, or None if there is none.

        Raises
        ------
        StateError
            The file is not a state.
        """
        path = self.path(project_name)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return self.state_type.model_validate_json(text)
        except ValidationError as error:
            raise StateError(f"{path} is not a state that this version of OpticStream can read: {error}") from error

    def save(self, project_name: str, state: TState, /, *, still_held: Callable[[], None]) -> None:
        """Keep a state, if it has changed."""
        text = state.model_dump_json(exclude_defaults=True, indent=1).encode()
        path = self.path(project_name)
        try:
            if path.read_bytes() == text:
                return
        except FileNotFoundError:
            pass
        still_held()
        replace_whole(path, text)

    def warm(self, project_name: str, /) -> None:
        """Do nothing: files need no preparation."""

    def delete(self, project_name: str, /) -> None:
        """Forget a project's state."""
        self.path(project_name).unlink(missing_ok=True)


class FileProjectLock:
    """Exclude other processes of the host with locked files, which the operating system frees when a holder dies.

    On a network share this excludes other hosts only if its locks work; use facts or a server there.
    """

    def __init__(self, folder: Path, /, *, pipeline: str) -> None:
        self.folder = Path(folder)
        self.pipeline = pipeline
        self._threads: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def path(self, project_name: str, /) -> Path:
        """Return the file that is locked."""
        return self.folder / f"{state_name(project_name, self.pipeline)}.lock"

    def ensure_held(self) -> None:
        """Do nothing: a living process keeps its lock."""

    @contextmanager
    def hold(self, project_name: str, /, *, timeout_s: float) -> Iterator[FileProjectLock]:
        """Hold the project's lock inside a `with` block."""
        deadline = time.monotonic() + timeout_s
        path = self.path(project_name)
        threads = self._threads[str(path)]
        if not threads.acquire(timeout=timeout_s):
            raise self._timeout(project_name, timeout_s)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            wait_s = _FIRST_WAIT_S
            while (lock := try_lock(path)) is None:
                if time.monotonic() >= deadline:
                    raise self._timeout(project_name, timeout_s)
                time.sleep(random.uniform(0.5, 1.0) * min(wait_s, max(0.0, deadline - time.monotonic())))
                wait_s = min(wait_s * 1.5, _LONGEST_WAIT_S)
            try:
                self._write_holder(lock.handle)
                yield self
            finally:
                reserve(lock.handle, 0)
                lock.release()
        finally:
            threads.release()

    def holder(self, project_name: str, /) -> str | None:
        """Return who holds the lock, or None if no living process does."""
        try:
            data = json.loads(self.path(project_name).read_bytes())
            who = HostIdentity.from_json(data)
            since = str(data["since"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if HostIdentity.current().life_of(who) == "dead" else f"{who}, since {since}"

    def _timeout(self, project_name: str, timeout_s: float) -> LockTimeout:
        holder = self.holder(project_name) or "a process that has just let go"
        where = self.path(project_name)
        return LockTimeout(
            f"the state of {project_name!r} stayed locked for {timeout_s:g} s, now by {holder} ({where})"
        )

    def _write_holder(self, handle: int) -> None:
        data = HostIdentity.current().to_json() | {"since": time_to_text(datetime.now(UTC))}
        with contextlib.suppress(OSError):  # the name is only information; a full disk must not stop the work
            reserve(handle, 0)
            write_at(handle, memoryview(json.dumps(data).encode() + b"\n"), 0)


def file_store(
    folder: Path, state_type: type[TState], /, *, pipeline: str, timeout_s: float = DEFAULT_TIMEOUT_S
) -> BaseProjectStateStore[TState]:
    """Return a store in the files of a folder."""
    repository = FileStateRepository(folder, state_type, pipeline=pipeline)
    return BaseProjectStateStore(repository, FileProjectLock(folder, pipeline=pipeline), timeout_s=timeout_s)

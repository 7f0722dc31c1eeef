"""Stores (OME-Zarr) at a target that knows only files: an object for each of their files, compared by one listing."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from opticstream.publish.pace import Pace
from opticstream.publish.target import Held, LocalFile, LocalStore, Passed, RemoteTarget, ensure_holds


class ObjectTarget(RemoteTarget, Protocol):
    """A target that keeps a store as an object for each of its files."""

    def look_below(self, folder: str, /) -> Mapping[str, Held]:
        """Return what the target holds below a folder, by the path in it."""
        ...

    def remove(self, key: str, /) -> None:
        """Remove a file that no longer belongs to its store."""
        ...


def look_at_objects(target: ObjectTarget, key: str, /) -> Held | None:
    """Return what a target holds of a store; see `RemoteTarget.look_store`."""
    return _together(target.look_below(key))


def put_objects(target: ObjectTarget, store: LocalStore, /, *, pace: Pace, threads: int, passed: Passed) -> Held:
    """Have a target hold exactly the files of a store; see `RemoteTarget.put_store`."""
    held = target.look_below(store.key)
    names = {store.name_of(file): file for file in store.files}

    def have(file: LocalFile, found: Held | None) -> frozenset[str]:
        if found is not None and found.size == file.size:
            marks = target.marks(file)
            if found.mark in marks:
                return marks
        return target.put(file, pace=pace, threads=1, passed=lambda _size: None)

    marks = {}
    for name, found in _in_parallel(names, held, have, threads):
        marks[name] = found
        passed(names[name].size)
    for name in held.keys() - names.keys():  # of an earlier store of the same name
        target.remove(f"{store.key}/{name}")
    held = target.look_below(store.key)
    for name, file in names.items():
        ensure_holds(target, file, held.get(name), marks[name])
    together = _together(held)
    assert together is not None
    return together


class _Have(Protocol):
    def __call__(self, file: LocalFile, found: Held | None, /) -> frozenset[str]: ...


def _in_parallel(
    names: Mapping[str, LocalFile], held: Mapping[str, Held], have: _Have, threads: int
) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the marks of each file once the target holds it; few files wait in memory at any time."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[str, Future[frozenset[str]]]] = deque()
        try:
            for name, file in names.items():
                if len(waiting) >= 4 * threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
                waiting.append((name, pool.submit(have, file, held.get(name))))
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _together(held: Mapping[str, Held]) -> Held | None:
    """Return one size and mark for all files of a store; no mark if one of them has none."""
    if not held:
        return None
    mark = ""
    if all(one.mark for one in held.values()):
        lines = (f"{name} {one.size} {one.mark}\n" for name, one in sorted(held.items()))
        mark = hashlib.sha256("".join(lines).encode()).hexdigest()
    return Held(sum(one.size for one in held.values()), mark, len(held))

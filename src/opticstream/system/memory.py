"""The memory of this host, and a budget that all processes of the host share: who needs much waits for its turn."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from opticstream.system.cgroup import memory_limit
from opticstream.system.locks import FileLock, locked, try_lock

_LOOK_S = 0.5
_TOLD_EVERY_S = 60.0
_M_ARENA_MAX = -8
"""Of glibc's `malloc.h`."""

Tell = Callable[[str], None]


def memory_of_host() -> int | None:
    """Return how many bytes of memory this host, or the control group that we run in, has; None if nothing tells."""
    limits = [memory_limit()]
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min((number for number in limits if number), default=None)


def start_with_few_arenas() -> None:
    """Let the threads of this process, and of those that it starts, share two arenas of the C library's allocator.

    By default each thread has its own and keeps some tens of megabytes in it: those that read and write chunks of Zarr
    together kept 200 MB. A value that the environment already has stays.
    """
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # for child processes
    with contextlib.suppress(OSError, AttributeError, TypeError, ValueError):  # not glibc
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, int(os.environ["MALLOC_ARENA_MAX"]))


def return_freed_memory() -> None:
    """Give memory that is free within this process back to the system, where the C library can.

    glibc keeps what large arrays leave between others that live on; after a large step that can be several hundred
    megabytes, which the next step would add to.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Share:
    """What one process has, or waits for."""

    bytes: int
    what: str
    has_it: bool


class MemoryBudget:
    """A budget of memory that processes of one host share by the files of a folder.

    Shares are given in the order in which they were asked for, so that who needs much is not overtaken for ever. A
    process that ends, however it ends, gives its share back.

    Parameters
    ----------
    folder : Path
        Folder of this host; it is made if needed.
    budget : int
        Bytes that all shares together may have.
    """

    def __init__(self, folder: Path, budget: int, /) -> None:
        self._folder = folder
        self.budget = budget

    @contextlib.contextmanager
    def share(self, needed: int, what: str, /, *, tell: Tell | None = None) -> Iterator[None]:
        """Have a part of the budget inside a `with` block, waiting until the others leave enough of it.

        What needs more than the whole budget waits until nobody else has any of it.

        Parameters
        ----------
        needed : int
            Bytes.
        what : str
            What it is for, as others that wait for it are told.
        tell : callable, optional
            Told once a minute what is waited for.

        Raises
        ------
        OSError
            The folder cannot be written.
        """
        wanted = Share(min(needed, self.budget), what, has_it=False)
        ticket = self._draw(wanted)
        try:
            told_s = -_TOLD_EVERY_S
            while others := self._in_the_way(ticket, wanted):
                if tell is not None and time.monotonic() - told_s >= _TOLD_EVERY_S:
                    tell(self._waiting(wanted, others))
                    told_s = time.monotonic()
                time.sleep(_LOOK_S)
            yield
        finally:
            with self._alone():
                ticket.path.unlink(missing_ok=True)
                ticket.release()

    def shares(self) -> list[Share]:
        """Return what living processes have and wait for, in order."""
        with self._alone():
            return [share for _path, share in self._living()]

    def _draw(self, wanted: Share) -> FileLock:
        with self._alone():
            number = 1 + max((int(path.stem) for path in self._tickets()), default=0)
            ticket = try_lock(self._folder / f"{number:09d}.share")
            assert ticket is not None, "a new file is nobody's"
            _write(ticket, wanted)
            return ticket

    def _in_the_way(self, ticket: FileLock, wanted: Share) -> list[Share]:
        """Take the share and return nothing; or return those that leave too little of the budget, or come first."""
        with self._alone():
            others = [(path, share) for path, share in self._living(ticket) if path != ticket.path]
            first = [share for path, share in others if not share.has_it and path < ticket.path]
            having = [share for _path, share in others if share.has_it]
            if first or sum(share.bytes for share in having) + wanted.bytes > self.budget:
                return having + first
            _write(ticket, Share(wanted.bytes, wanted.what, has_it=True))
            return []

    def _living(self, mine: FileLock | None = None) -> list[tuple[Path, Share]]:
        """Return the shares of processes that live, in order, and remove those of others."""
        found = []
        for path in self._tickets():
            lock = None if mine is not None and path == mine.path else try_lock(path)
            if lock is not None:  # its process has ended
                path.unlink(missing_ok=True)
                lock.release()
                continue
            found.append((path, Share(**json.loads(path.read_text(encoding="utf-8")))))
        return found

    def _tickets(self) -> list[Path]:
        return sorted(self._folder.glob("*.share"))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / "shares.lock"):
            yield

    def _waiting(self, wanted: Share, others: list[Share]) -> str:
        users = ", ".join(f"{one.what} ({_gb(one.bytes)}{'' if one.has_it else ', waits'})" for one in others)
        return (
            f"{wanted.what} waits for {_gb(wanted.bytes)} of this host's memory budget of {_gb(self.budget)}; "
            f"before it: {users}"
        )


def _write(ticket: FileLock, share: Share) -> None:
    # The file stays the same one, because it is what is locked; others read it only while nobody writes.
    text = json.dumps(share.__dict__).encode()
    os.ftruncate(ticket.handle, 0)
    os.lseek(ticket.handle, 0, os.SEEK_SET)
    os.write(ticket.handle, text)


def _gb(number: int) -> str:
    return f"{number / 1e9:.2g} GB"

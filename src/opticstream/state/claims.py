"""Claims on work: one process at a time works on an item, and a dead one is replaced by exactly one other.

Every attempt at a piece of work is a *generation*, a file ``claims/batch-003.started.0001``, ``.0002``, ... that is
created exclusively and never removed or rewritten by other processes. The highest generation owns the work. To take
over from a dead holder, a process creates the next generation: of any number of processes exactly one succeeds, and the
work has exactly one owner at any moment. A generation is also the fencing token:
its holder has lost the work as soon as a higher one exists.

A holder renews its lease by writing the newline at the end of its first line once more. That changes nothing but the
file's modification time, which the file server sets, so that all leases are compared by one clock and the clocks of the
hosts do not matter. Where each host stamps its own files instead (Lustre, GPFS, Ceph), a lease that seems to have run
out is watched for a third of its length, in which a living holder renews it. A release appends a second line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from opticstream.model.errors import ClaimLost
from opticstream.model.ids import ItemId, item_from_key
from opticstream.state.durable import create_exclusively
from opticstream.state.flags import CLAIMS_FOLDER, flag_folder, flag_stem
from opticstream.state.journal import Journal
from opticstream.state.record import time_from_text, time_to_text
from opticstream.state.vocabulary import check_claim
from opticstream.system.disk import time_of_server_s
from opticstream.system.host import HostIdentity
from opticstream.system.mounts import is_stamped_by_hosts

DEFAULT_LEASE_S = 60.0
HUNG_AFTER_LEASES = 5.0
"""Number of lease lengths after which a holder that is alive on this host but does not renew counts as dead."""
RENEWALS_IN_LEASE = 3
"""Number of times that a lease is renewed in its length."""
_SLOW_RENEWAL_S = 0.5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """The latest claim on a piece of work, at one moment.

    Attributes
    ----------
    state : {"alive", "dead", "released"}
        Dead: the process has ended, or its lease has run out. Released: it has ended the claim, see `outcome`.
    silent_s : float
        Seconds since the last renewal, by the file server's clock; 0 if not needed.
    failed : bool
        Whether the attempt was released because it ended with an error.
    """

    item: ItemId
    work: str
    generation: int
    token: str
    host: HostIdentity
    time: datetime
    lease_s: float
    state: Literal["alive", "dead", "released"]
    silent_s: float = 0.0
    outcome: str | None = None
    failed: bool = False
    flow_run_id: str | None = None

    def __str__(self) -> str:
        since = f"since {time_to_text(self.time)}, attempt {self.generation}"
        match self.state:
            case "released":
                return f"{self.work} of {self.item}, released by {self.host} ({self.outcome}), {since}"
            case "dead":
                return f"{self.work} of {self.item}, held by {self.host}, which died, {since}"
            case _:
                return f"{self.work} of {self.item}, held by {self.host} {since}"


class Claims:
    """The claims of one project, as read and made by one process."""

    def __init__(
        self,
        project_dir: Path,
        /,
        *,
        host: HostIdentity,
        clock: Callable[[], datetime],
        journal: Journal,
        flow_run_id: str | None = None,
    ) -> None:
        self._project_dir = project_dir
        self._host = host
        self._clock = clock
        self._journal = journal
        self._flow_run_id = flow_run_id

    def claim(self, item: ItemId, work: str, /, *, lease_s: float = DEFAULT_LEASE_S) -> Claim | None:
        """Return a claim on the work, or None while another holder is alive. See `Facts.claim`."""
        if not lease_s > 0:
            raise ValueError(f"a lease must be longer than 0 s, got {lease_s}")
        while True:
            holder = self.holder(item, work)
            if holder is not None and (holder.state == "alive" or self._renews_after_all(holder)):
                return None
            generation = 1 if holder is None else holder.generation + 1
            token = uuid.uuid4().hex
            path = self._path(item, work, generation)
            if create_exclusively(path, self._first_line(item, work, generation, token, lease_s)):
                break
            # Another process was faster. Check it as well: it may have finished or died in the meantime.
        claim = Claim(self, item, work, generation=generation, token=token, lease_s=lease_s, path=path)
        if holder is not None and holder.state == "dead":
            why = f"from {holder.host}, attempt {holder.generation}"
            detail = {"attempt": generation, "from_host": holder.host.host}
            self._journal.write("taken over", item, fact=work, why=why, detail=detail)
        else:
            self._journal.write("claimed", item, fact=work, detail={"attempt": generation})
        return claim

    def _renews_after_all(self, holder: Holder) -> bool:
        """Return whether a holder that seems dead lives, where its clock and ours may have stamped the files.

        Waits for a renewal for a little more than the time between two of them. No other file system needs that, and
        no holder of which this host can see that its process has ended.
        """
        if holder.state != "dead" or self._host.life_of(holder.host) != "unknown":
            return False
        path = self._path(holder.item, holder.work, holder.generation)
        if not is_stamped_by_hosts(path.parent):
            return False
        before, end = _stamp(path), time.monotonic() + 1.25 * holder.lease_s / RENEWALS_IN_LEASE + _SLOW_RENEWAL_S
        while time.monotonic() < end:
            time.sleep(min(1.0, holder.lease_s / 20))
            if _stamp(path) != before:
                return self._read(holder.item, holder.work, holder.generation).state != "released"
        return False

    def holder(self, item: ItemId, work: str, /) -> Holder | None:
        """Return the last holder of the work and whether it is alive; None if there was none."""
        check_claim(item, work)
        generation = 0
        while self._path(item, work, generation + 1).exists():
            generation += 1
        return self._read(item, work, generation) if generation else None

    def attempts(self, item: ItemId, work: str, /) -> Iterator[Holder]:
        """Yield every attempt at the work, the first one first."""
        check_claim(item, work)
        generation = 1
        while self._path(item, work, generation).exists():
            yield self._read(item, work, generation)
            generation += 1

    def crashes(self, item: ItemId, work: str, /) -> int:
        """Return how many attempts in a row ended with the death of their process, up to now.

        A running attempt is not counted, and a release, whatever its outcome, restarts the count.
        """
        return _length_of_tail(self.attempts(item, work), lambda attempt: attempt.state == "dead")

    def failures(self, item: ItemId, work: str, /) -> int:
        """Return how many attempts in a row ended with an error, up to now, ignoring deaths in between.

        Parking the work counts as a success, so that the count restarts when it is released.
        """
        attempts = [attempt for attempt in self.attempts(item, work) if attempt.state != "dead"]
        return _length_of_tail(attempts, lambda attempt: attempt.failed)

    def _path(self, item: ItemId, work: str, generation: int) -> Path:
        folder = self._project_dir / flag_folder(item) / CLAIMS_FOLDER
        return folder / f"{flag_stem(item)}.{work}.{generation:04d}"

    def _first_line(self, item: ItemId, work: str, generation: int, token: str, lease_s: float) -> bytes:
        data = {
            "item": item.key,
            "work": work,
            "attempt": generation,
            "token": token,
            "time": time_to_text(self._clock()),
            "lease_s": lease_s,
            "flow_run_id": self._flow_run_id,
            **self._host.to_json(),
        }
        return json.dumps(data, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"

    def _read(self, item: ItemId, work: str, generation: int) -> Holder:
        path = self._path(item, work, generation)
        with path.open(
            "rb"
        ) as file:  # opening makes a network client ask the server; stat may be answered from its cache
            modified_s = os.fstat(file.fileno()).st_mtime
            lines = file.read().splitlines(keepends=True)
        claim = _json(lines[0]) if lines else {}
        released = next((entry for line in lines[1:] if "released" in (entry := _json(line))), None)
        try:
            host = HostIdentity.from_json(claim)
            lease_s = float(claim["lease_s"])
            time = time_from_text(claim["time"])
            same = item_from_key(claim["item"]) == item
        except (KeyError, TypeError, ValueError):
            same = False
        if not same:  # truncated by a power failure on a file system without links: only its lease is known
            host, lease_s, time = HostIdentity("unknown", 0), DEFAULT_LEASE_S, self._clock()
        silent_s = 0.0
        state: Literal["alive", "dead", "released"] = "released"
        if released is None:
            state, silent_s = self._judge(path, host, lease_s, modified_s)
        return Holder(
            item=item,
            work=work,
            generation=generation,
            token=str(claim.get("token", "")),
            host=host,
            time=time,
            lease_s=lease_s,
            state=state,
            silent_s=silent_s,
            outcome=None if released is None else str(released.get("outcome")),
            failed=released is not None and _ended_with_error(released),
            flow_run_id=claim.get("flow_run_id"),
        )

    def _judge(
        self, path: Path, host: HostIdentity, lease_s: float, modified_s: float
    ) -> tuple[Literal["alive", "dead"], float]:
        life = self._host.life_of(host)
        if life == "dead":
            return "dead", 0.0
        # A lease from the future means that the server's clock was set back; a living holder corrects that with its
        # next renewal. Such a claim counts as silent, or it would stay taken until the clock has caught up.
        silent_s = abs(time_of_server_s(path.parent) - modified_s)
        patience = HUNG_AFTER_LEASES if life == "alive" else 1.0
        return ("dead" if silent_s > lease_s * patience else "alive"), silent_s


class Claim:
    """The right to do a piece of work, until it is released or its lease runs out.

    Use it as a context manager: a thread renews the lease inside, and leaving releases the claim, with the outcome
    ``done``, or with the exception that passes through.

    Examples
    --------
    >>> import tempfile
    >>> from opticstream.model.ids import SliceId
    >>> from opticstream.state.facts import Facts
    >>> facts = Facts(Path(tempfile.mkdtemp()))
    >>> with facts.claim(SliceId(1)) as claim:
    ...     facts.claim(SliceId(1)) is None, claim.still_mine()
    (True, True)
    >>> facts.holder(SliceId(1)).state, claim.still_mine()
    ('released', False)
    """

    def __init__(
        self, claims: Claims, item: ItemId, work: str, *, generation: int, token: str, lease_s: float, path: Path
    ) -> None:
        self.item = item
        self.work = work
        self.generation = generation
        self.token = token
        self.lease_s = lease_s
        self._claims = claims
        self._path = path
        self._pid = os.getpid()
        self._lost = False
        self._released = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claim:
        if self._thread is None and not self._released:
            name = f"renew {self.work} of {self.item}"
            self._thread = threading.Thread(target=self._renew_until_stopped, name=name, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.release()
            else:
                self.release(f"failed: {type(error).__name__}: {error}"[:500], failed=True)
        except OSError as problem:  # the lease runs out by itself; do not hide the error from inside the block
            _log.warning("%s of %s could not be released: %s", self.work, self.item, problem)

    @property
    def lost(self) -> bool:
        """Whether the claim is known to be lost, from the last renewal; does not ask the file server."""
        return self._lost

    def still_mine(self) -> bool:
        """Return whether the work still belongs to this claim, by asking the file server.

        False after a release, in a forked child, and once another process has taken over (because this process was
        stopped or cut off from the file server for longer than its lease).
        """
        with contextlib.suppress(OSError):  # makes a network client refresh the folder; not essential on a full disk
            time_of_server_s(self._path.parent)
        return self._look()

    def _look(self) -> bool:
        if self._lost or self._released or os.getpid() != self._pid:
            return False
        next_generation = self._path.with_name(f"{self._path.name[:-4]}{self.generation + 1:04d}")
        try:
            mine = _json(self._first_line()).get("token") == self.token and not next_generation.exists()
        except FileNotFoundError:
            mine = False
        if not mine:
            self._note_lost()
        return mine

    def ensure_mine(self) -> None:
        """Do nothing if the work still belongs to this claim; call it just before results are published.

        Raises
        ------
        ClaimLost
            Another process has taken over. The results must be discarded.
        """
        if not self.still_mine():
            holder = self._claims.holder(self.item, self.work)
            raise ClaimLost(
                f"attempt {self.generation} at {self.work} of {self.item} may not publish: now {holder}; the lease of "
                f"{self.lease_s:g} s ran out while this process could not renew it"
            )

    def renew(self) -> bool:
        """Renew the lease now; False when the claim is lost. `with` does this every third of the lease.

        Needs no space on the disk, and does not wait for data that is being written.
        """
        if not self._look():
            return False
        with self._path.open("r+b", buffering=0) as file:
            line = file.readline()
            if _json(line).get("token") != self.token:
                self._note_lost()
                return False
            file.seek(len(line) - 1)
            file.write(b"\n")
        return True

    def release(self, outcome: str = "done", *, failed: bool = False) -> bool:
        """Release the work, so that no process has to wait for the lease to run out; False if it was lost before.

        `failed` says that the attempt ended with an error, which `outcome` describes.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread() and os.getpid() == self._pid:
            self._thread.join()
            self._thread = None
        if self._released or not self.still_mine():
            return False
        self._released = True
        released = {"released": time_to_text(self._claims._clock()), "outcome": outcome, "failed": failed}
        line = json.dumps(released, ensure_ascii=False)
        with self._path.open("ab", buffering=0) as file:
            file.write(line.encode(errors="backslashreplace") + b"\n")
        self._claims._journal.write("released", self.item, fact=self.work, why=outcome)
        return True

    def _first_line(self) -> bytes:
        with self._path.open("rb") as file:
            return file.readline()

    def _note_lost(self) -> None:
        if not self._lost:
            self._lost = True
            _log.warning("attempt %d at %s of %s was taken over", self.generation, self.work, self.item)
            self._claims._journal.write("lost", self.item, fact=self.work, detail={"attempt": self.generation})

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self.lease_s / RENEWALS_IN_LEASE):
            try:
                if not self.renew():
                    return
            except OSError as error:  # the share may come back; if not in time, another process takes over
                _log.warning("the lease on %s of %s could not be renewed: %s", self.work, self.item, error)


def _stamp(path: Path) -> tuple[int, int]:
    """Return the time and size of a file, asked of the file server by opening it."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        return status.st_mtime_ns, status.st_size


def _length_of_tail(attempts: Iterable[Holder], belongs: Callable[[Holder], bool]) -> int:
    """Return how many of the last attempts in a row satisfy a condition, ignoring running ones."""
    count = 0
    for attempt in attempts:
        if attempt.state != "alive":
            count = count + 1 if belongs(attempt) else 0
    return count


def _ended_with_error(released: Mapping[str, Any]) -> bool:
    """Return whether a released attempt ended with an error; for claims of earlier versions, from their text."""
    return bool(released.get("failed", str(released.get("outcome")).startswith("failed")))


def _json(line: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}

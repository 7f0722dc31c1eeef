"""Identify a process, so that another process can find out whether it is still alive.

A process id alone is not enough: ids are reused, and containers have their own. The boot id and the pid namespace show
whether two processes share a process table, and the start time shows whether an id still means the same process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Life = Literal["alive", "dead", "unknown"]


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """A process on a host. A field is None if the operating system does not provide it; then only leases decide."""

    host: str
    pid: int
    boot_id: str | None = None
    pid_namespace: str | None = None
    process_start: int | None = None

    @classmethod
    def current(cls) -> HostIdentity:
        """Return the identity of this process, even after a fork."""
        return _identity(os.getpid())

    @classmethod
    def of(cls, pid: int, /) -> HostIdentity:
        """Return the identity of another visible process, such as a child."""
        me = _identity(os.getpid())
        return cls(me.host, pid, me.boot_id, me.pid_namespace, _process_start(pid) if me.boot_id else None)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], /) -> HostIdentity:
        """Return the identity that `to_json` wrote."""
        return cls(
            host=str(data.get("host", "unknown")),
            pid=int(data.get("pid", 0)),
            boot_id=data.get("boot_id"),
            pid_namespace=data.get("pid_namespace"),
            process_start=data.get("process_start"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def life_of(self, other: HostIdentity, /) -> Life:
        """Return whether `other` is alive, as far as this process can see; unknown for another host or container.

        Examples
        --------
        >>> me = HostIdentity.current()
        >>> me.life_of(HostIdentity("elsewhere", me.pid, boot_id="another kernel"))
        'unknown'
        """
        if not (self.boot_id and self.pid_namespace and other.process_start is not None):
            return "unknown"
        if (self.boot_id, self.pid_namespace) != (other.boot_id, other.pid_namespace):
            return "unknown"
        found = _process_start(other.pid)
        if found is None:
            return "dead" if not process_exists(other.pid) else "unknown"
        return "alive" if found == other.process_start else "dead"

    def __str__(self) -> str:
        return f"{self.host} (process {self.pid})"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=4)
def _identity(pid: int) -> HostIdentity:
    host = socket.gethostname()
    try:
        # A /proc of another namespace would name other processes.
        trusted = Path("/proc/self").readlink().name == str(pid)
        namespace = str(Path("/proc/self/ns/pid").readlink()) if trusted else None
    except OSError:
        return HostIdentity(host, pid)
    boot_id = _read("/proc/sys/kernel/random/boot_id")
    return HostIdentity(host, pid, boot_id, namespace, _process_start(pid))


def _process_start(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot, -1 for a zombie, None if there is none."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    # The second field is the program's name in brackets, which may contain brackets and blanks.
    fields = text.rpartition(")")[2].split()
    return -1 if fields[0] in "ZX" else int(fields[19])


def process_exists(pid: int, /) -> bool:
    """Return whether this host has a process with an id, whoever it belongs to."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

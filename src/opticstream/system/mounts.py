"""Which kind of file system a folder lies on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_STAMPED_BY_CLIENTS = frozenset(
    {"lustre", "gpfs", "ceph", "beegfs", "beegfs_nodev", "pvfs2", "glusterfs", "9p", "virtiofs", "ocfs2", "gfs2"}
)
_OF_NETWORKS = _STAMPED_BY_CLIENTS | {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs"}


@dataclass(frozen=True)
class Mount:
    """A mounted file system: its kind as the operating system names it, and where it is mounted."""

    kind: str
    point: Path

    @property
    def is_of_network(self) -> bool:
        """Whether other hosts may see the same files."""
        return self.kind in _OF_NETWORKS or self.kind.startswith("fuse.")

    @property
    def is_stamped_by_hosts(self) -> bool:
        """Whether a file gets its time from the host that writes it, and not from one clock for all hosts."""
        return self.kind in _STAMPED_BY_CLIENTS or self.kind.startswith("fuse.")


def mount_of(folder: Path, /, *, mounts: Path = _MOUNTS) -> Mount | None:
    """Return the file system that a folder lies on, or will lie on when it is made; None where it is unknown.

    Parameters
    ----------
    folder : Path
        An absolute path.
    mounts : Path
        The operating system's list of mounts.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    path = os.path.realpath(folder)
    found: Mount | None = None
    for line in lines:  # a later one with the same place lies on top of an earlier one
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = _unescaped(fields[4])
        holds = path == point or path.startswith(point.rstrip("/") + "/")
        if holds and (found is None or len(point) >= len(str(found.point))):
            found = Mount(after.split(" ")[0], Path(point))
    return found


def is_stamped_by_hosts(folder: Path, /) -> bool:
    """Return whether files in a folder get their time from the host that writes them, not from one clock for all."""
    mount = mount_of(folder)
    return mount is not None and mount.is_stamped_by_hosts


def _unescaped(text: str) -> str:
    for escape, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(escape, character)
    return text

"""How much processor time and memory this process may use, inside a container or a service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def processor_limit(*, root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """Return how many processors' time this process may use; None where nothing limits it but their number."""
    found = []
    for folder in _groups(root, own):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            quota, period = map(float, (folder / "cpu.max").read_text(encoding="ascii").split())
        if quota and period:
            found.append(quota / period)
    return min(found, default=None)


def memory_limit(*, root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Return how many bytes of memory this process may use; None where nothing limits it but the host's own."""
    names = ("memory.max", "memory.limit_in_bytes")
    found = [_number(folder / name) for folder in _groups(root, own) for name in names]
    return min((int(number) for number in found if number is not None), default=None)


def _groups(root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in, and of those above them."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for line in lines:
        _number_of_tree, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for base in {root, *(root / name for name in controllers.split(",") if name)}:
            folder = base / path.lstrip("/")
            while True:
                yield folder
                if folder == base or base not in folder.parents:
                    break
                folder = folder.parent
    yield root  # what a container sees


def _number(path: Path) -> float | None:
    try:
        value = float(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None
    return value if 0 < value < 1 << 60 else None

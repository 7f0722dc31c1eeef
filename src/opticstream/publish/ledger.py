"""What each remote target holds of a project, so that a rerun sends nothing twice.

Each host appends to a file of its own, ``state/uploads/{target}.{host}.jsonl``, a line for each file or store that was
verified, or found to be lost; the last line about a key counts. A line that a crash has cut is skipped: the file is
then compared with the target again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opticstream.state.record import time_to_text
from opticstream.system.disk import sync_handle
from opticstream.system.host import HostIdentity

FOLDER = Path("state", "uploads")
_LOST = -1
"""Size in a line about what a target does not hold any more."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file, or a store of many files, that a target holds."""

    key: str
    """Its name at the target."""
    size: int
    """Bytes, of all files together."""
    sha256: str
    """Checksum of the local file; of a store, that of its manifest."""
    mark: str
    """The target's own digest of the bytes; of a store, a digest over those of its files."""
    place: str
    """Where the target puts its files."""
    verified: str
    """When size and digest were compared with the target's answer, as ISO 8601 text in UTC."""
    files: int = 1
    """Number of files."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], /) -> Asset:
        """Return the asset that `to_json` wrote."""
        return cls(
            str(data["key"]), int(data["size"]), str(data["sha256"]), str(data["mark"]), str(data["place"]),
            str(data["verified"]), int(data.get("files", 1)),
        )  # fmt: skip


class Ledger:
    """The assets of one target of a project.

    Examples
    --------
    >>> import tempfile
    >>> base = Path(tempfile.mkdtemp())
    >>> Ledger(base, "s3").add(Asset("a.nii", 3, "ab", "cd", "s3://b", "2026-01-02T03:04:05Z"))
    >>> Ledger(base, "s3").asset("a.nii", place="s3://b").size
    3
    >>> Ledger(base, "s3").asset("a.nii", place="s3://other") is None
    True
    """

    def __init__(self, base: Path, target: str, /) -> None:
        self._folder = base / FOLDER
        self._target = target
        self._known: dict[str, Asset] | None = None

    def asset(self, key: str, /, *, place: str) -> Asset | None:
        """Return what the target was last known to hold under a key; None if that was at another place."""
        found = self.assets().get(key)
        return found if found is not None and found.place == place else None

    def assets(self) -> Mapping[str, Asset]:
        """Return the last line about each key."""
        if self._known is None:
            last: dict[str, Asset] = {}
            for path in sorted(self._folder.glob(f"{self._target}.*.jsonl")):
                for asset in _assets_in(path):
                    known = last.get(asset.key)
                    if known is None or known.verified <= asset.verified:
                        last[asset.key] = asset
            self._known = {key: asset for key, asset in last.items() if asset.size != _LOST}
        return self._known

    def forget(self, key: str, /, *, place: str) -> None:
        """Note that the target does not hold what was verified under a key."""
        now = time_to_text(datetime.now(UTC))
        self._append(Asset(key, _LOST, "", "", place, now, 0))
        if self._known is not None:
            self._known.pop(key, None)

    def add(self, asset: Asset, /) -> None:
        """Append an asset; it is on the disk when this returns."""
        self._append(asset)
        if self._known is not None:
            self._known[asset.key] = asset

    def _append(self, asset: Asset) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._target}.{HostIdentity.current().host}.jsonl"
        line = json.dumps(asset.to_json(), ensure_ascii=False) + "\n"
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":  # cut by a crash
                line = "\n" + line
            os.write(handle, line.encode(errors="backslashreplace"))
            sync_handle(handle, path)
        finally:
            os.close(handle)


def _assets_in(path: Path) -> list[Asset]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(Asset.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError):
            continue
    return found

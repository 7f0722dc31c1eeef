"""What the process beside the rig sees of the acquisition, for hosts that do not see the raw folder.

``state/acquisition/{host}.json``, renewed every few seconds by `opticstream watch`; removed when that ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from opticstream.pipeline.project import Project
from opticstream.state.durable import replace_whole
from opticstream.system.host import HostIdentity

RENEWED_EVERY_S = 15.0
"""Time between two notes of a watcher, in seconds."""


@dataclass(frozen=True)
class Acquisition:
    """What one watcher sees.

    Attributes
    ----------
    host : str
        Where it runs.
    folder : str
        The raw folder that it watches.
    seen : float
        When it looked, in seconds since 1970.
    last_data : float
        When a file appeared or grew, in seconds since 1970.
    open_columns : tuple of str
        Columns of the mosaics in progress of which tiles are missing, as keys of batches.
    patience_s : float or None
        Time without data after which the rig stands still in the middle of a column, in seconds; None where no column
        has begun.
    """

    host: str
    folder: str
    seen: float
    last_data: float
    open_columns: tuple[str, ...]
    patience_s: float | None = None


def note_acquisition(
    project: Project,
    folder: Path,
    /,
    *,
    quiet_s: float,
    open_columns: Sequence[str],
    patience_s: float | None = None,
    now: float | None = None,
) -> None:
    """Write what this host sees of the acquisition.

    Parameters
    ----------
    project : Project
        The project.
    folder : Path
        The raw folder.
    quiet_s : float
        Time since a file appeared or grew, in seconds.
    open_columns : sequence of str
        Keys of the columns of which tiles are missing.
    patience_s : float, optional
        Time without data after which the rig stands still in the middle of a column, in seconds.
    now : float, optional
        The present time, in seconds since 1970.
    """
    now = time.time() if now is None else now
    host = HostIdentity.current().host
    seen = Acquisition(host, str(folder), now, now - quiet_s, tuple(open_columns), patience_s)
    replace_whole(_path(project, host), json.dumps(asdict(seen)).encode(errors="backslashreplace"), fsync=False)


def forget_acquisition(project: Project, /) -> None:
    """Remove what this host has written: its watcher ends because somebody ended it."""
    with contextlib.suppress(OSError):
        _path(project, HostIdentity.current().host).unlink(missing_ok=True)


def acquisitions(project: Project, /) -> list[Acquisition]:
    """Return what the watchers of a project see, by host."""
    found = []
    for path in sorted(_folder(project).glob("*.json")):
        try:
            known = json.loads(path.read_bytes())
            found.append(Acquisition(**{**known, "open_columns": tuple(known["open_columns"])}))
        except (OSError, ValueError, TypeError, KeyError):  # just removed, or of another version
            continue
    return found


def _folder(project: Project) -> Path:
    return project.paths.base / "state" / "acquisition"


def _path(project: Project, host: str) -> Path:
    return _folder(project) / f"{''.join(c if c.isalnum() or c in '-_.' else '-' for c in host)}.json"

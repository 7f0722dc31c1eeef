"""When the tiles of a mosaic passed each percentage, from the times of the flag files.

A finished mosaic is looked at again only when a flag of its tiles has changed; what was found is kept in
``state/milestone-times.json``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opticstream.model.ids import MosaicId
from opticstream.pipeline.progress import MILESTONES_PERCENT
from opticstream.pipeline.project import Project
from opticstream.state.durable import replace_whole

Times = dict[int, str]
"""Time (UTC, minutes) at which each percentage was passed."""

_UNSETTLED_NS = 3_000_000_000
"""Age that a folder must have so that its time differs from that after a later change."""


def milestone_times(project: Project, mosaics: Iterable[MosaicId], /) -> dict[MosaicId, Times]:
    """Return when the tiles of mosaics passed 25, 50, 75 and 100 %; those that they have not passed are left out.

    A tile counts from its first flag that says that it is processed, or parked as failed.
    """
    known, now, found = _known(project), dict[str, Any](), dict[MosaicId, Times]()
    for mosaic in mosaics:
        folder = project.paths.base / mosaic.folder / "state" / "tiles"
        try:
            changed_ns = folder.stat().st_mtime_ns
        except OSError:
            found[mosaic] = {}
            continue
        before = known.get(mosaic.key)
        if isinstance(before, list) and len(before) == 2 and before[0] == changed_ns:
            times = {int(percent): str(at) for percent, at in before[1].items()}
        else:
            times = _times(folder, len(project.layout.tiles(mosaic)))
        if time.time_ns() - changed_ns > _UNSETTLED_NS:
            now[mosaic.key] = [changed_ns, {str(percent): at for percent, at in times.items()}]
        found[mosaic] = times
    if now != known:
        with contextlib.suppress(OSError):  # found again by the next look
            replace_whole(_path(project), json.dumps(now).encode(), fsync=False)
    return found


def time_of_flag(path: Path, /) -> str:
    """Return when a flag was recorded (UTC, minutes); empty where it is not there."""
    try:
        return _text(path.stat().st_mtime)
    except OSError:
        return ""


def _times(folder: Path, total: int) -> Times:
    first: dict[str, float] = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            tile, _, fact = entry.name.partition(".")
            if fact in ("processed", "failed"):
                with contextlib.suppress(OSError):
                    at = entry.stat().st_mtime
                    first[tile] = min(first.get(tile, at), at)
    ordered = sorted(first.values())
    needed = {percent: math.ceil(percent * total / 100) for percent in MILESTONES_PERCENT}
    return {percent: _text(ordered[count - 1]) for percent, count in needed.items() if 0 < count <= len(ordered)}


def _text(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"


def _known(project: Project) -> dict[str, Any]:
    try:
        known = json.loads(_path(project).read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _path(project: Project) -> Path:
    return project.paths.base / "state" / "milestone-times.json"

"""Conditions of the surroundings that people are told of while they last: a rig that stands still, a disk that fills
up, uploads that fail.

A condition is reported once from its beginning to its end, however many processes look: the beginning is recorded in
``state/conditions/{name}``, and is part of the key of its milestone.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from opticstream.model.chain import chain
from opticstream.model.ids import SampleId
from opticstream.notify import Level, Milestone
from opticstream.pipeline.acquisition import acquisitions
from opticstream.pipeline.project import Project
from opticstream.state.durable import create_exclusively, replace_whole

_WATCHER_SILENT_S = 300.0
"""Time after which a watcher that has written nothing counts as gone, in seconds."""
_FORGOTTEN_AFTER_S = 7 * 86_400.0
"""Time after which a watcher that has gone is no longer reported, in seconds."""
_SAMPLED_EVERY_S = 60.0
_SAMPLED_FOR_S = 7200.0
_SHORTEST_SPAN_S = 600.0
"""Time over which free space must have been seen before its rate of change is believed, in seconds."""
_UPLOADS_SEEN_FOR = timedelta(hours=6)
_FULL_SOON_H = 1.0
"""Time until a disk is full below which that is a failure, in hours."""
_OVER = 1.25
"""How many times the limit must be free again before a disk no longer counts as nearly full."""


Looked = tuple[str, "Condition | None"]
"""Name of a condition that was looked for, and the condition where it lasts."""


@dataclass(frozen=True)
class Condition:
    """Something that lasts.

    Attributes
    ----------
    name : str
        Name within its project, a valid file name.
    title, text : str
        As in `Milestone`.
    level : {"warning", "failure"}
        How urgent it is. A condition that becomes worse is reported again.
    """

    name: str
    title: str
    text: str
    level: Level = "warning"


def conditions(project: Project, /, *, raw_folder: Path | None = None, now: float | None = None) -> list[Milestone]:
    """Return the conditions that last now, as milestones, and record which have begun or ended.

    Parameters
    ----------
    project : Project
        The project.
    raw_folder : Path, optional
        The raw folder, where this host sees it.
    now : float, optional
        The present time, in seconds since 1970.
    """
    now = time.time() if now is None else now
    looked = [
        *_standing_acquisition(project, now),
        *_filling_disks(project, raw_folder, now),
        *_failing_uploads(project, now),
    ]
    for name, condition in looked:
        if condition is None:
            _end(project, name)
    return [_milestone(project, one, _begin(project, one, now)) for _, one in looked if one is not None]


def _standing_acquisition(project: Project, now: float) -> Iterator[Looked]:
    for seen in acquisitions(project):
        silent_s, quiet_s = now - seen.seen, now - seen.last_data
        is_open = bool(seen.open_columns) and silent_s < _FORGOTTEN_AFTER_S
        is_silent = is_open and silent_s > max(_WATCHER_SILENT_S, 3 * project.deployment.poll_s)
        alarm_s, setting = project.deployment.acquisition_alarm_s, "OPTICSTREAM_ACQUISITION_ALARM_S"
        if seen.patience_s is not None and seen.patience_s < alarm_s:
            alarm_s, setting = seen.patience_s, "OPTICSTREAM_COLUMN_ALARM_S"
        is_quiet = is_open and not is_silent and quiet_s > alarm_s
        columns = ", ".join(seen.open_columns[:5]) + (", ..." if len(seen.open_columns) > 5 else "")
        silent = Condition(
            f"watcher-{seen.host}",
            "watcher silent",
            f"`opticstream watch` on {seen.host} has not looked at {seen.folder} since {_clock(seen.seen)}; "
            f"columns that are missing: {columns}",
            "failure",
        )
        standing = Condition(
            f"acquisition-{seen.host}",
            "acquisition stalled",
            f"acquisition stalled: nothing new in {seen.folder} since {_clock(seen.last_data)} "
            f"({_duration(quiet_s / 3600)}); columns that are missing: {columns} ({setting})",
            "failure",
        )
        yield silent.name, silent if is_silent else None
        if not is_silent:
            yield standing.name, standing if is_quiet else None


def _filling_disks(project: Project, raw_folder: Path | None, now: float) -> Iterator[Looked]:
    settings, seen = project.deployment, set[int]()
    folders = {"disk-project": project.paths.base, "disk-archive": project.paths.archive_root, "disk-raw": raw_folder}
    for name, folder in folders.items():
        try:
            if folder is None or (device := folder.stat().st_dev) in seen:
                continue
            usage = shutil.disk_usage(folder)
        except OSError:  # not there yet, or a share that is away, which others report
            continue
        seen.add(device)
        left_h = _hours_left(project, name, usage.free, now)
        margin = _OVER if _has_begun(project, name) else 1.0
        is_low = usage.free < settings.disk_alarm_share * usage.total * margin
        is_soon = left_h is not None and left_h < settings.disk_alarm_h * margin
        left = "" if left_h is None else f", enough for {_duration(left_h)} at the present rate"
        condition = Condition(
            name,
            "disk nearly full",
            f"disk of {folder} is nearly full: {usage.free / 1e9:.1f} of {usage.total / 1e9:.0f} GB free{left}",
            "failure" if left_h is not None and left_h < _FULL_SOON_H else "warning",
        )
        yield name, condition if is_low or is_soon else None


def _hours_left(project: Project, name: str, free: int, now: float) -> float | None:
    """Return the hours until a disk is full at the rate of the last two hours; None where it does not fill up.

    What is free is noted about once a minute.
    """
    path = _folder(project) / f"{name}.samples"
    try:
        samples = [(float(at), float(size)) for at, size in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        samples = []
    samples = [one for one in samples if 0 <= now - one[0] <= _SAMPLED_FOR_S]
    if not samples or now - samples[-1][0] >= _SAMPLED_EVERY_S:
        samples.append((now, float(free)))
        with contextlib.suppress(OSError):  # a full disk: what is free is known all the same
            replace_whole(path, json.dumps(samples).encode(), fsync=False)
    (first_s, first), span_s = samples[0], now - samples[0][0]
    if span_s < _SHORTEST_SPAN_S or first <= free:
        return None
    return free / ((first - free) / (now - first_s)) / 3600


def _failing_uploads(project: Project, now: float) -> Iterator[Looked]:
    """Yield whether uploads fail: an attempt has failed since the last one that has succeeded."""
    if not project.config.publish.targets:
        return
    uploaded = {step.done for step in chain().steps if step.uploads}
    stages = {step.name for step in chain().steps if step.uploads}
    failed: list[tuple[datetime, str]] = []
    since = datetime.fromtimestamp(now, UTC) - _UPLOADS_SEEN_FOR
    for entry in project.facts.journal.entries(since=since):
        if entry.event == "failed" and entry.detail.get("stage") in stages:
            failed.append((entry.time, entry.why or "no reason is known"))
        elif entry.event == "computed" and entry.fact in uploaded:
            failed.clear()
    if not failed:
        yield "uploads", None
        return
    (first, _), (_, why) = failed[0], failed[-1]
    text = f"uploads fail since {_clock(first.timestamp())}: {why}; they are tried again, and compute goes on"
    yield "uploads", Condition("uploads", "uploads fail", text)


def _end(project: Project, name: str) -> None:
    """Forget when a condition began that no longer lasts."""
    for ending in ("", "-failure"):
        with contextlib.suppress(OSError):
            _began_file(project, f"{name}{ending}").unlink(missing_ok=True)


def _has_begun(project: Project, name: str) -> bool:
    return _began_file(project, name).exists()


def _began_file(project: Project, name: str) -> Path:
    return _folder(project) / f"{name}.began"


def _begin(project: Project, condition: Condition, now: float) -> str:
    """Return when a condition began, as a part of a key, recorded by whichever process has seen it first."""
    level = "-failure" if condition.level == "failure" else ""
    began = f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S}"
    for name in dict.fromkeys((condition.name, f"{condition.name}{level}")):
        path = _began_file(project, name)
        with contextlib.suppress(OSError):  # a full disk, of all things, must be reported; perhaps more than once
            create_exclusively(path, began.encode())
            began = path.read_text(encoding="utf-8") or began
    return f"{began}{level}"


def _milestone(project: Project, condition: Condition, began: str) -> Milestone:
    return Milestone(
        key=f"{condition.name}-{began}",
        project=project.config.name,
        item=SampleId(),
        fact=condition.title,
        title=condition.title,
        text=condition.text,
        level=condition.level,
    )


def _folder(project: Project) -> Path:
    return project.paths.base / "state" / "conditions"


def _clock(time_s: float) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"


def _duration(hours: float) -> str:
    """Return a time in words.

    Examples
    --------
    >>> _duration(0.5), _duration(7.26), _duration(100)
    ('30 min', '7.3 h', '4 days')
    """
    if hours < 1:
        return f"{60 * hours:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"

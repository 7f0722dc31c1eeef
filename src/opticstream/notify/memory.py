"""Record what was sent to each target, and what could not be sent yet: one small file in the project per milestone.

``state/notified/{target}/{key}`` records that a milestone was sent, with its line in the log;
``state/untold/{target}/{key}`` that it could not be sent, and why. The folder of the target named ``log`` is
``state/notified`` itself, as in versions with no other target.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from opticstream.notify.delivery import LastSent
from opticstream.notify.milestone import Milestone
from opticstream.state.durable import create_exclusively, replace_whole

_LOG = "log"


def line_of(milestone: Milestone, /) -> str:
    """Return a milestone as one line of a log, with the time (UTC)."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {'FAILED ' if milestone.failure else ''}{milestone.text}"


class Memory:
    """Record of what was sent to the targets of a project.

    Parameters
    ----------
    base : Path
        Folder of the project.
    """

    def __init__(self, base: Path, /) -> None:
        self._told = base / "state" / "notified"
        self._untold = base / "state" / "untold"

    def told(self, target: str, /) -> frozenset[str]:
        """Return the keys of the milestones that were sent to a target."""
        return _names_in(self._told_folder(target))

    def untold(self, target: str, /) -> frozenset[str]:
        """Return the keys of the milestones that could not be sent to a target at the last attempt."""
        return _names_in(self._untold / target)

    def was_told(self, target: str, key: str, /) -> bool:
        """Return whether a milestone was sent to a target."""
        return (self._told_folder(target) / key).exists()

    def record_told(self, target: str, milestone: Milestone, /) -> None:
        """Record that a milestone was sent to a target."""
        create_exclusively(self._told_folder(target) / milestone.key, _bytes(line_of(milestone)))
        self.forget_untold(target, milestone.key)

    def record_untold(self, target: str, milestone: Milestone, why: str, /) -> None:
        """Record that a milestone could not be sent to a target."""
        replace_whole(self._untold / target / milestone.key, _bytes(why))

    def forget_untold(self, target: str, key: str, /) -> None:
        """Forget that a milestone could not be sent to a target."""
        (self._untold / target / key).unlink(missing_ok=True)

    def last_sent(self, target: str, /) -> LastSent:
        """Return when a target was last sent something."""
        try:
            return LastSent(**json.loads(self._last_sent_file(target).read_bytes()))
        except (OSError, ValueError, TypeError):  # never, or cut by a crash: a message more than wanted
            return LastSent()

    def record_last_sent(self, target: str, last: LastSent, /) -> None:
        """Record when a target was last sent something."""
        replace_whole(self._last_sent_file(target), json.dumps(asdict(last)).encode(), fsync=False)

    def _last_sent_file(self, target: str) -> Path:
        return self._told / f".{target}.last"

    def lock_file(self, target: str, /) -> Path:
        """Return the file to lock while sending to a target; its folder is created if needed."""
        self._told.mkdir(parents=True, exist_ok=True)
        return self._told / f".{target}.lock"

    def _told_folder(self, target: str) -> Path:
        return self._told if target == _LOG else self._told / target


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return frozenset()


def _bytes(line: str) -> bytes:
    return f"{line}\n".encode(errors="backslashreplace")

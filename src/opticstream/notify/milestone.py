"""A milestone, in the form that every target receives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from opticstream.config.notify_targets import Level
from opticstream.model.ids import ItemId


@dataclass(frozen=True)
class Link:
    """The address of further information."""

    title: str
    url: str


@dataclass(frozen=True)
class Milestone:
    """Something to report.

    Attributes
    ----------
    key : str
        Unique within its project, and a valid file name. Each key is sent to a target once.
    project : str
        Name of the project.
    item : ItemId or None
        What it is about; None where that is not known.
    fact : str
        What has happened to the item, e.g. ``stitched`` or ``failed``.
    title : str
        A few words, for a subject line.
    text : str
        One sentence that is complete without the title.
    level : {"info", "warning", "failure"}
        How urgent it is.
    pictures : tuple of Path
        Pictures to attach, as paths on this host. They may no longer exist when the target reads them.
    links : tuple of Link
        Addresses of further information.
    implied_by : tuple of str
        Keys of milestones after which this one is no news: 25 % of the tiles after 50 %.
    """

    key: str
    project: str
    item: ItemId | None
    fact: str
    title: str
    text: str
    level: Level = "info"
    pictures: tuple[Path, ...] = ()
    links: tuple[Link, ...] = ()
    implied_by: tuple[str, ...] = ()

    @property
    def idempotency_key(self) -> str:
        """Unique among the milestones of all projects; the same whenever it is sent."""
        return f"{self.project}/{self.key}"

    @property
    def failure(self) -> bool:
        """Whether something failed."""
        return self.level == "failure"

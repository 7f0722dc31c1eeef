"""What people are told, in the form that every target gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opticstream.model.ids import ItemId

Level = Literal["info", "warning", "failure"]
"""How urgent a milestone is: `failure` asks for action, `warning` for a look."""


@dataclass(frozen=True)
class Link:
    """An address where more can be seen."""

    title: str
    url: str


@dataclass(frozen=True)
class Milestone:
    """Something that people are told.

    Attributes
    ----------
    key : str
        Names it within its project, and is a valid file name. Each target is told one key once.
    project : str
        Name of the project.
    item : ItemId or None
        What it is about; None where that is not known.
    fact : str
        What has happened to the item, e.g. ``stitched`` or ``failed``.
    title : str
        A few words, for a subject line.
    text : str
        One sentence that tells everything, also without the title.
    level : {"info", "warning", "failure"}
        How urgent it is.
    pictures : tuple of Path
        Pictures to attach, as paths on this host. One may have gone when the target reads it.
    links : tuple of Link
        Where more can be seen.
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

    @property
    def idempotency_key(self) -> str:
        """Names it among the milestones of all projects; the same each time that it is told."""
        return f"{self.project}/{self.key}"

    @property
    def failure(self) -> bool:
        """Whether something failed."""
        return self.level == "failure"

"""Several milestones as one message, so that 200 failed tiles are one line and not 200 messages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import chain

from opticstream.model.ids import ItemId, TileId
from opticstream.notify.delivery import URGENCY
from opticstream.notify.milestone import Milestone

MOST_LINES = 20
"""Most lines of a collected message."""
MOST_NUMBERS = 12
"""Most items that a line names."""
MOST_PICTURES = 4
"""Most pictures of a message."""


def collected(milestones: Sequence[Milestone], /) -> Milestone:
    """Return one milestone that reports several of one project: the most urgent first, those of one kind in one line.

    Examples
    --------
    >>> failed = [
    ...     Milestone(f"t{n}", "brain", TileId(1, n), "failed", "", f"tile {n} of mosaic 1 failed: cut", "failure")
    ...     for n in range(1, 201)
    ... ]
    >>> print(collected(failed).text)
    200 tiles failed (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ... of mosaic 1), such as: tile 1 of mosaic 1 failed: cut
    """
    if len(milestones) == 1:
        return milestones[0]
    ordered = sorted(milestones, key=lambda one: -URGENCY[one.level])
    groups: dict[tuple[str, str, str, str], list[Milestone]] = {}
    for one in ordered:
        groups.setdefault(_kind_of(one), []).append(one)
    lines = list(chain.from_iterable(_lines_of(group) for group in groups.values()))
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"... and {len(lines) - MOST_LINES + 1} more; `opticstream status` has all"]
    keys = hashlib.sha256("\n".join(sorted(one.key for one in milestones)).encode()).hexdigest()[:16]
    pictures = dict.fromkeys(picture for one in ordered for picture in one.pictures)
    return Milestone(
        key=f"collected-{keys}",
        project=milestones[0].project,
        item=None,
        fact="collected",
        title=_title(milestones),
        text="\n".join(lines),
        level=ordered[0].level,
        pictures=tuple(pictures)[-MOST_PICTURES:],
        links=tuple(dict.fromkeys(link for one in ordered for link in one.links))[:MOST_LINES],
    )


def _kind_of(milestone: Milestone) -> tuple[str, str, str, str]:
    """Return what milestones have in common that stand in one line; numbers in their reasons may differ."""
    hierarchy = "" if milestone.item is None else milestone.item.hierarchy
    alike = re.sub(r"\d+(\.\d+)?", "#", milestone.text) if URGENCY[milestone.level] else milestone.key
    return milestone.level, hierarchy, milestone.fact, alike


def _lines_of(group: Sequence[Milestone]) -> list[str]:
    if len(group) < 3:
        return [one.text for one in group]
    first = group[0]
    hierarchy = "time" if first.item is None else first.item.hierarchy
    items = [one.item for one in group if one.item is not None]
    return [f"{len(group)} {hierarchy}s {first.fact}{_named(items)}, such as: {first.text}"]


def _named(items: Sequence[ItemId]) -> str:
    """Return the numbers of items in brackets, the first few of them; empty where there are none."""
    names = list(dict.fromkeys(str(item) for item in items))
    if not names:
        return ""
    more = ", ..." if len(names) > MOST_NUMBERS else ""
    mosaics = {item.mosaic for item in items if isinstance(item, TileId)}
    if len(mosaics) == 1 and all(isinstance(item, TileId) for item in items):
        numbers = [str(item.tile_id) for item in items if isinstance(item, TileId)]
        return f" ({', '.join(numbers[:MOST_NUMBERS])}{more} of {mosaics.pop()})"
    return f" ({', '.join(names[:MOST_NUMBERS])}{more})"


def _title(milestones: Sequence[Milestone]) -> str:
    counts = {level: sum(one.level == level for one in milestones) for level in ("failure", "warning", "info")}
    named = (
        (counts["failure"], f"{counts['failure']} failure{'s' * (counts['failure'] > 1)}"),
        (counts["warning"], f"{counts['warning']} to check"),
        (counts["info"], f"{counts['info']} milestone{'s' * (counts['info'] > 1)}"),
    )
    return ", ".join(text for count, text in named if count)

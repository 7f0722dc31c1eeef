"""What a result rests on: the settings of its stage, and the results before it. Both stand as hashes in its fact.

A result is out of date when either hash would be another one now. The settings behind a hash are kept in
``state/settings/``, so that people can be told which one has changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opticstream.config import parameters_hash
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.pipeline.parameters import (
    StageSettings,
    mosaic_settings,
    sample_settings,
    shared_part,
    slice_settings,
    tile_settings,
    told_today,
    volume_settings,
)
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import may_determine_template
from opticstream.pipeline.templates import determined_focus
from opticstream.state import FactsView, Grounds
from opticstream.state.durable import create_exclusively

ReadGrounds = Callable[[ItemId, str], Grounds | None]
_PUBLISHED_FROM = {"volume_uploaded": "volume_stitched"}
_UPLOADED_FROM = {"batch": "archived", "mosaic": "stitched", "slice": "registered"}


def settings_of(
    project: Project, item: ItemId, fact: str, /, *, facts: FactsView | None = None
) -> StageSettings | None:
    """Return the settings that a result, or the failure to reach it, rests on now; None where none matter."""
    config = project.config
    match item, fact:
        case ((BatchId() | TileId()), ("processed" | "failed")):
            return tile_settings(config, project.layout.illumination_index(item.mosaic))
        case MosaicId(), ("stitched" | "failed"):
            finds_focus = may_determine_template(project, item, facts or project.facts) or determined_focus(
                project, item
            )
            return mosaic_settings(config, project.layout.illumination_index(item), finds_focus=finds_focus)
        case MosaicId(), ("volume_stitched" | "volume_failed"):
            return volume_settings(config)
        case SliceId(), ("registered" | "axis_failed"):
            return slice_settings(config)
        case SliceId(), ("stacked" | "stack_failed"):
            return sample_settings(config)
    return None


def upstream_of(project: Project, item: ItemId, fact: str, /) -> list[tuple[ItemId, str]]:
    """Return the results that a result is made from, as (item, fact); those that do not stand are missing in it."""
    layout = project.layout
    match item, fact:
        case MosaicId(), "stitched":
            return [(batch, "processed") for batch in layout.batches(item)]
        case MosaicId(), "volume_stitched":
            return [(item, "stitched")]
        case SliceId(), ("registered" | "axis_failed"):
            return [(mosaic, "stitched") for mosaic in layout.mosaics(item)]
        case SliceId(), "stacked":
            return [(item, "registered"), (layout.mosaics(item)[0], "stitched")]
        case _, ("uploaded" | "volume_uploaded"):
            return [(item, _PUBLISHED_FROM.get(fact) or _UPLOADED_FROM[item.hierarchy])]
    return []


def inputs_hash(project: Project, item: ItemId, fact: str, /, *, read: ReadGrounds | None = None) -> str | None:
    """Return the hash of the results that a result is made from, as they stand now; None where it is made from none.

    Parameters
    ----------
    project : Project
        Where the facts stand.
    item, fact
        The result.
    read : callable, optional
        Returns the hashes in a fact's record; `Facts.grounds` by default.
    """
    sources = upstream_of(project, item, fact)
    if not sources:
        return None
    read = read or project.facts.grounds
    known: dict[str, list[str | None] | None] = {}
    for source, source_fact in sources:
        grounds = read(source, source_fact)
        shared = None if grounds is None else [shared_part(grounds.parameters_hash or ""), grounds.inputs_hash]
        known[f"{source.key}.{source_fact}"] = shared
    return parameters_hash(known)


def keep_settings(project: Project, settings: StageSettings, /) -> str:
    """Keep the settings behind a hash, so that changes can be named later, and return the hash."""
    path = _settings_path(project, settings.hash)
    if not path.exists():
        create_exclusively(path, (json.dumps(settings.flat(), indent=1, ensure_ascii=False) + "\n").encode())
    return settings.hash


def changed_settings(project: Project, recorded: str, now: StageSettings, /) -> tuple[str, ...]:
    """Return which settings differ from those of a recorded hash, as ``name: old -> new``; empty when unknown."""
    try:
        before: Mapping[str, Any] = json.loads(_settings_path(project, recorded).read_bytes())
    except (OSError, ValueError):
        return ()
    after = json.loads(json.dumps(now.flat()))
    names = sorted(before.keys() | after.keys())
    return tuple(_change(name, before, after) for name in names if before.get(name) != after.get(name))


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    told, old = told_today(name, before.get(name, "not set"))
    return f"{told}: {old!r} -> {told_today(name, after.get(name, 'not set'))[1]!r}"


def _settings_path(project: Project, hash_: str) -> Path:
    return project.paths.base / "state" / "settings" / f"{hash_}.json"

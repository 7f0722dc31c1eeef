"""What a result depends on: the settings of its stage, and the results before it. Both are hashes in its fact.

A result is out of date if either hash would be different now. The settings behind a hash are kept in
``state/settings/``, to report which one has changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from opticstream.config import parameters_hash
from opticstream.model.chain import chain, sources_of
from opticstream.model.ids import ItemId, TileId
from opticstream.pipeline.bindings import binding_of
from opticstream.pipeline.parameters import StageSettings, current_name_and_value, shared_part
from opticstream.pipeline.project import Project
from opticstream.state import FactsView, RecordedHashes
from opticstream.state.durable import create_exclusively

ReadHashes = Callable[[ItemId, str], RecordedHashes | None]


def settings_of(
    project: Project, item: ItemId, fact: str, /, *, facts: FactsView | None = None
) -> StageSettings | None:
    """Return the current settings that a result, or its failure, depends on; None if it depends on none."""
    step = chain().step_of(item, fact)
    settings = None if step is None else binding_of(step).settings
    if step is None or settings is None or (not isinstance(item, TileId) and fact not in (step.done, step.failed)):
        return None
    return settings(project, item, facts or project.facts)


def upstream_of(project: Project, item: ItemId, fact: str, /) -> list[tuple[ItemId, str]]:
    """Return the results that a result is made from, as (item, fact); without those that are not recorded."""
    step = None if isinstance(item, TileId) else chain().step_of(item, fact)
    return [] if step is None else sources_of(step, item, project.layout)


def inputs_hash(project: Project, item: ItemId, fact: str, /, *, read: ReadHashes | None = None) -> str | None:
    """Return the hash of the current results that a result is made from; None if it is made from none.

    Parameters
    ----------
    project : Project
        The project.
    item, fact
        The result.
    read : callable, optional
        Returns the hashes in a fact's record; `Facts.hashes` by default.
    """
    sources = upstream_of(project, item, fact)
    if not sources:
        return None
    read = read or project.facts.hashes
    known: dict[str, list[str | None] | None] = {}
    for source, source_fact in sources:
        recorded = read(source, source_fact)
        shared = None if recorded is None else [shared_part(recorded.parameters_hash or ""), recorded.inputs_hash]
        known[f"{source.key}.{source_fact}"] = shared
    return parameters_hash(known)


def keep_settings(project: Project, settings: StageSettings, /) -> str:
    """Save the settings behind a hash, so that changes can be named later, and return the hash."""
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
    told, old = current_name_and_value(name, before.get(name, "not set"))
    return f"{told}: {old!r} -> {current_name_and_value(name, after.get(name, 'not set'))[1]!r}"


def _settings_path(project: Project, hash_: str) -> Path:
    return project.paths.base / "state" / "settings" / f"{hash_}.json"

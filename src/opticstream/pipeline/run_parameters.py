"""Parameters of one run that differ from the registered ones; they belong to the items that the run found or resumed.

They are in the item's `ready` record, and in the records of its results. State flows and sweeps handle the items of
all runs at once: each event has the parameters of its own item, not those of the current run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from opticstream.model.events import Event
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId
from opticstream.pipeline.project import Project
from opticstream.state import FactRecord
from opticstream.state.raw_folders import position_in_record

E = TypeVar("E", bound=Event)
DETAIL = "parameters"
"""Key in the detail of a record; omitted if a run uses the registered parameters."""


def detail_of_parameters(parameters: Mapping[str, Any], /) -> dict[str, Any]:
    """Return the entry for the detail of a record made with these parameters."""
    return {DETAIL: dict(parameters)} if parameters else {}


def run_parameters(project: Project, item: ItemId, /) -> dict[str, Any]:
    """Return the parameters of the run that an item belongs to; those of the open project if none are recorded."""
    record = project.facts.read_whole(item, "ready")
    return dict(project.parameters) if record is None else _parameters(record)


def event_of(project: Project, kind: type[E], item: ItemId, /, **values: Any) -> E:
    """Return an event about an item with the parameters of the run that the item belongs to."""
    return project.event(kind, item, parameters=run_parameters(project, item), **values)


def parameters_of_results(project: Project, results: Iterable[tuple[ItemId, str]], /) -> dict[str, Any]:
    """Return the parameters that the latest of some results, as (item, fact), was made with.

    What depends on results of several runs uses the parameters of the last one, and without any result those of the
    open project.
    """
    records = [record for item, fact in results if (record := project.facts.read_whole(item, fact)) is not None]
    if not records:
        return dict(project.parameters)
    return _parameters(max(records, key=lambda record: record.time))


def take_over(project: Project, items: Iterable[ItemId], /) -> None:
    """Assign waiting items to the run that opened the project."""
    for item in items:
        record = project.facts.read_whole(item, "ready")
        if record is None or _parameters(record) == dict(project.parameters):
            continue
        detail = {key: value for key, value in record.detail.items() if key != DETAIL}
        if isinstance(item, BatchId):
            if "event" not in detail:
                continue
            detail["event"] = {**detail["event"], "parameters": dict(project.parameters)}
        else:
            detail |= detail_of_parameters(project.parameters)
        project.facts.replace(item, "ready", {"detail": detail}, why="taken up by a run with other parameters")


def waiting_in_folder(project: Project, events: Iterable[Event], folder: str, /) -> list[ItemId]:
    """Return the items of pending events whose raw tiles are in a folder."""
    return [item for event in events if _lies_in(project, (item := event.item), folder)]


def _lies_in(project: Project, item: ItemId, folder: str) -> bool:
    match item:
        case BatchId():
            record = project.facts.read_whole(item, "ready")
            found = None if record is None else _raw_folder(project, record)
            return found is not None and os.path.normpath(found) == os.path.normpath(folder)
        case MosaicId():
            return any(_lies_in(project, batch, folder) for batch in project.layout.batches(item))
        case SliceId():
            return any(_lies_in(project, mosaic, folder) for mosaic in project.layout.mosaics(item))
    return False


def _raw_folder(project: Project, record: FactRecord) -> Path | None:
    """Return the raw folder of a batch as this host sees it now."""
    event = record.detail.get("event") or {}
    if not isinstance(event, Mapping) or not isinstance(event.get("files"), Mapping):
        return None
    names = map(str, event["files"].values())
    position = position_in_record(record.detail)
    return project.facts.raw_folders.find(str(event.get("raw_folder", "")), names, position=position)


def _parameters(record: FactRecord) -> dict[str, Any]:
    announced = record.detail.get("event") or {}
    return dict(record.detail.get(DETAIL) or announced.get("parameters") or {})

"""Interpret incoming events, from this program and from others, and complete them.

Events may be incomplete. Numbers may be text, unknown fields are ignored, and what follows from the layout, the
registered parameters, the raw folder or the flag files is filled in. An event that contradicts them, or has no item,
is refused with one line.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PureWindowsPath
from typing import Any

from opticstream.config.path_map import path_here, said_of_path
from opticstream.io.names import FileNameGrammar
from opticstream.io.raw_folder import RawNames, raw_files_below
from opticstream.model.errors import EventError, FileNameError, InputError
from opticstream.model.events import (
    EVENT_OF_NAME,
    RESOURCE_ID,
    BatchReady,
    Event,
    SampleFailed,
    SampleUpdated,
    number_from,
)
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.model.tile_problem import TileProblem
from opticstream.pipeline.payloads import recorded_fields
from opticstream.pipeline.pending import ready_event
from opticstream.pipeline.project import Project
from opticstream.system.folders import folder_trouble

ANNOUNCED = "announced"
"""Label of an event's resource: when the pipeline itself made it. A copy that is sent later occurs later."""
_IDS = ("slice_id", "mosaic_id", "batch_id", "tile_id")
_COUNTS = ("total_batches", "grid_size_x", "grid_size_y", "mosaic_ids")
_UNSAID: Mapping[str, Any] = {"reason": "not said", "stage": "not said", "reasons": ()}
"""Values of missing fields that are only for people."""
_ID_IN_RESOURCE = re.compile(r"(slice|mosaic|batch|tile)[-_.]?0*(\d+)(?=$|[./_-])")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Received:
    """An event as received from the server.

    Attributes
    ----------
    name : str
        Name of the event.
    payload
        Its payload; should be an object with fields.
    labels : mapping of str to str
        Labels of its resource.
    id : str or None
        Id at the server; None for a run started by hand.
    occurred : datetime or None
        When it happened, by the clock of the sender; None for a run started by hand.
    """

    name: str
    payload: Any
    labels: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None
    occurred: datetime | None = None

    @property
    def is_automatic(self) -> bool:
        """Whether the pipeline itself announced it: not another program, and not a copy sent later."""
        announced = self.labels.get(ANNOUNCED)
        if announced is None or self.occurred is None:
            return False
        try:
            return abs((datetime.fromisoformat(announced) - self.occurred).total_seconds()) < 0.001
        except (ValueError, TypeError):
            return False

    @property
    def project_name(self) -> str:
        """Name of the project that it is about.

        Raises
        ------
        EventError
            It has no project name, or two.
        """
        payload = self.payload if isinstance(self.payload, Mapping) else {}
        name, label = payload.get("project_name"), self.labels.get("project")
        if name is not None and not isinstance(name, str | int):
            raise EventError(f"{self}: project_name is {name!r}, expected the name of a registered project")
        if name is not None and label and str(name) != label:
            raise EventError(f"{self}: project_name {name!r} contradicts the label project {label!r} of its resource")
        found = str(name) if name is not None else label
        if not found or not found.strip():
            raise EventError(
                f"{self}: project_name is missing; expected the name of a registered project, in the payload or as the "
                f"label 'project' of the resource"
            )
        return found

    def __str__(self) -> str:
        return f"{self.name} ({self.id})" if self.id else self.name


def kind_of_event(received: Received, /) -> type[Event]:
    """Return the class of an event.

    Raises
    ------
    EventError
        Its name is unknown, or its payload is not an object.
    """
    kind = EVENT_OF_NAME.get(received.name)
    if kind is None:
        raise EventError(f"unknown event {received.name!r}; expected one of {', '.join(sorted(EVENT_OF_NAME))}")
    if not isinstance(received.payload, Mapping):
        raise EventError(f"{received}: the payload is {received.payload!r}, expected an object with fields")
    return kind


def event_from_received(project: Project, received: Received, /) -> Event:
    """Return a received event, completed from the project.

    Parameters
    ----------
    project : Project
        The project that it is about.
    received : Received
        The received event.

    Raises
    ------
    EventError
        It cannot be understood; the message names the event, the field, the value and what was expected.
    """
    kind = kind_of_event(received)
    given = {str(name): value for name, value in received.payload.items() if value is not None}
    try:
        item = _item(project, kind, given, received.labels)
        derived = dict(project.labels(kind, item))
        _compare(given, derived, received)
        wanted = {name for name, about in kind.model_fields.items() if about.is_required()} - derived.keys()
        completed = {name: value for name, value in _UNSAID.items() if name in wanted}
        if issubclass(kind, SampleUpdated | SampleFailed):
            completed |= _sample_fields(project, given)
        completed |= {name: value for name, value in given.items() if name not in derived}
        if kind is BatchReady:
            assert isinstance(item, BatchId)
            completed |= _raw_files(project, item, given)
    except (ValueError, OSError) as error:
        text = str(error)
        raise EventError(text if text.startswith(str(received)) else f"{received}: {text}") from None
    fields = {name: value for name, value in completed.items() if name in kind.model_fields}
    if unknown := sorted(given.keys() - kind.model_fields.keys()):
        _log.info("%s: unknown fields are ignored: %s", received, ", ".join(unknown))
    recorded = recorded_fields(kind, item, project.facts, project.paths)
    return kind.from_payload({**recorded, **derived, **fields})


def item_of_received(project: Project, received: Received, /) -> ItemId:
    """Return the item of a received event, or the sample if it is unknown."""
    try:
        kind = kind_of_event(received)
        return _item(project, kind, dict(received.payload), received.labels)
    except ValueError:
        return SampleId()


def _item(project: Project, kind: type[Event], given: Mapping[str, Any], labels: Mapping[str, str]) -> ItemId:
    """Return the item of an event, from the payload, or else from the labels of its resource, or else from its id."""
    if kind.hierarchy == "sample":
        return SampleId()
    layout = project.layout
    numbers = {name: number for name in _IDS if (number := _number(name, given, labels)) is not None}
    if kind.hierarchy == "slice":
        if "slice_id" not in numbers and "mosaic_id" in numbers:
            return layout.slice_of(MosaicId(numbers["mosaic_id"]))
        return SliceId(_wanted(numbers, "slice_id"))
    if "mosaic_id" not in numbers and "slice_id" in numbers:
        index = _illumination_index(project, given)
        if index is not None:
            numbers["mosaic_id"] = layout.mosaic(SliceId(numbers["slice_id"]), index).mosaic_id
    mosaic = MosaicId(_wanted(numbers, "mosaic_id"))
    slice_id = layout.slice_of(mosaic)
    if numbers.get("slice_id", slice_id.slice_id) != slice_id.slice_id:
        raise ValueError(
            f"slice_id {numbers['slice_id']} contradicts mosaic_id {mosaic.mosaic_id}, which lies in {slice_id}"
        )
    grid = layout.illumination_of(mosaic)
    if kind.hierarchy == "mosaic":
        return mosaic
    if kind.hierarchy == "batch":
        batch = BatchId(mosaic.mosaic_id, _wanted(numbers, "batch_id"))
        if batch.batch_id > grid.columns:
            raise ValueError(f"batch_id: expected 1 to {grid.columns} for {mosaic} ({grid.name}), got {batch.batch_id}")
        return batch
    tile = TileId(mosaic.mosaic_id, _wanted(numbers, "tile_id"))
    if tile.tile_id > grid.tiles:
        raise ValueError(f"tile_id: expected 1 to {grid.tiles} for {mosaic} ({grid.name}), got {tile.tile_id}")
    return tile


def _number(name: str, given: Mapping[str, Any], labels: Mapping[str, str]) -> int | None:
    value: object = given.get(name)
    if value is None:
        value = labels.get(name)
    if value is None:
        hierarchy = name.removesuffix("_id")
        named = dict(_ID_IN_RESOURCE.findall(_after_project(labels)))
        value = named.get(hierarchy)
    if value is None:
        return None
    try:
        return number_from(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _after_project(labels: Mapping[str, str]) -> str:
    """Return the part of a resource's id that names the item; a project's name may contain anything."""
    id_ = next((value for label, value in labels.items() if label.endswith(RESOURCE_ID)), "")
    project = labels.get("project", "")
    return id_.rpartition(project)[2] if project and project in id_ else id_


def _wanted(numbers: Mapping[str, int], name: str) -> int:
    if name not in numbers:
        raise ValueError(f"{name} is missing; expected a whole number from 1 up, in the payload or as a label")
    return numbers[name]


def _illumination_index(project: Project, given: Mapping[str, Any]) -> int | None:
    names = [grid.name for grid in project.layout.illuminations]
    said = given.get("illumination")
    if said is None:
        return 0 if len(names) == 1 else None
    found = [index for index, name in enumerate(names) if name.casefold() == str(said).casefold()]
    if not found:
        raise ValueError(f"illumination: expected one of {', '.join(names)}, got {said!r}")
    return found[0]


def _compare(given: Mapping[str, Any], derived: Mapping[str, Any], received: Received) -> None:
    """Refuse an illumination that is not that of the mosaic; log counts that differ from the registered layout."""
    said, known = given.get("illumination"), derived.get("illumination")
    if said is not None and known is not None and str(said).casefold() != str(known).casefold():
        raise ValueError(f"illumination {said!r} contradicts mosaic_id {derived['mosaic_id']}, which is {known!r}")
    for name in _COUNTS:
        if name in given and name in derived and str(_plain(given[name])) != str(_plain(derived[name])):
            _log.warning("%s: %s %r is not used; registered is %r", received, name, given[name], derived[name])


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    try:
        return number_from(value)
    except ValueError:
        return value


def _sample_fields(project: Project, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the slices of the sample from its record."""
    record = project.facts.read_whole(SampleId(), "updated")
    slices = tuple(record.detail.get("slices", ())) if record else ()
    known: dict[str, Any] = {"slices": slices}
    said = given.get("slices")
    last = max([number_from(each) for each in said] if isinstance(said, list | tuple) else slices, default=None)
    return known if last is None else known | {"slice_id": last}


def _raw_files(project: Project, batch: BatchId, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the raw folder and the raw files of a batch: as given, or else as they are in the folder now.

    The folder is the given one, or else the one where this batch, or its neighbours, were found.
    """
    recorded = ready_event(project, batch)
    folder = _raw_folder(project, batch, given, recorded)
    found: dict[str, Any] = {"raw_folder": str(folder)}
    if given.get("files"):
        found["files"] = _given_files(project, batch, folder, given["files"])
        if given.get("spectra"):
            found["spectra"] = _given_files(project, batch, folder, given["spectra"], is_spectra=True)
        return found
    files, spectra, problems = _files_in(project, batch, folder)
    if not files and recorded is not None:
        return {name: getattr(recorded, name) for name in ("raw_folder", "files", "spectra", "problems")}
    if not files:
        raise ValueError(
            f"files: no file of {batch} follows scan.file_name = {project.config.scan.file_name!r} in {folder}; "
            f"expected its raw files there, or `files` and `raw_folder` in the payload"
        )
    return found | {"files": files, "spectra": spectra, "problems": problems}


def _raw_folder(project: Project, batch: BatchId, given: Mapping[str, Any], recorded: BatchReady | None) -> Path:
    said = given.get("raw_folder")
    if said is not None and not isinstance(said, str):
        raise ValueError(f"raw_folder: expected the path of a folder, got {said!r}")
    here = path_here(said, project.deployment.path_map) if said else None
    trouble = None if here is None else folder_trouble(here)
    if here is not None and trouble is None:
        return here
    known = [recorded] if recorded is not None else list(_neighbours(project, batch))
    folders = [Path(event.raw_folder) for event in known]
    configured = project.config.project.raw_path
    if here is not None:  # this host may see the folder under another name: where the batch was found before
        if here in folders or recorded is not None:
            return next((folder for folder in folders if folder_trouble(folder) is None), here)
        if configured is not None and folder_trouble(configured) is None:
            return configured
        got = said_of_path(str(said), here)
        raise ValueError(f"raw_folder: expected a folder that this host can see, got {got}: {trouble}")
    if not folders and configured is not None:
        return configured
    if not folders:
        raise ValueError(
            f"raw_folder is missing, and no batch of {project.config.name} was found before; expected the folder of "
            f"the raw files"
        )
    return folders[0]


def _neighbours(project: Project, batch: BatchId) -> Iterator[BatchReady]:
    """Yield the events of other batches, those of the same mosaic first, then of the latest mosaics."""
    others = [item for item in project.facts.snapshot().items("batch") if isinstance(item, BatchId)]
    for item in sorted(others, key=lambda other: (other.mosaic != batch.mosaic, -other.mosaic_id, other.batch_id)):
        event = ready_event(project, item)
        if event is not None:
            yield event
            return


def _given_files(
    project: Project, batch: BatchId, folder: Path, said: Any, *, is_spectra: bool = False
) -> dict[int, str]:
    """Return raw files by tile number from a mapping, or from a list of names that follow the grammar."""
    if isinstance(said, Mapping):
        pairs = [(number_from(number), str(name)) for number, name in said.items()]
    elif isinstance(said, list | tuple):
        grammar = _raw_names(project).grammars[is_spectra]
        pairs = [(_tile_of(grammar, str(name)), str(name)) for name in said]
    else:
        raise ValueError(f"files: expected the raw file of each tile number, got {said!r}")
    tiles = {tile.tile_id for tile in project.layout.tiles(batch)}
    if unexpected := sorted(number for number, _ in pairs if number not in tiles):
        raise ValueError(f"files: expected tiles {', '.join(map(str, sorted(tiles)))} of {batch}, got {unexpected}")
    return {number: _relative(folder, name) for number, name in pairs}


def _tile_of(grammar: FileNameGrammar, name: str) -> int:
    tile = grammar.tile_from_name(re.split(r"[\\/]", name)[-1])
    if tile is None:
        raise ValueError(f"files: expected a name that follows {grammar.template!r}, got {name!r}")
    return tile.tile_id


def _relative(folder: Path, name: str) -> str:
    """Return a raw file's name as this host reads it; Windows programs write backslashes and whole paths."""
    if (folder / name).exists() or "\\" not in name:
        return name
    windows = PureWindowsPath(name)
    candidates = [windows.as_posix(), *("/".join(windows.parts[start:]) for start in range(1, len(windows.parts)))]
    return next((each for each in candidates if (folder / each).exists()), candidates[0])


def _raw_names(project: Project) -> RawNames:
    scan = project.config.scan
    return RawNames(scan.file_name, scan.spectral_file_name, project.layout)


def _files_in(
    project: Project, batch: BatchId, folder: Path
) -> tuple[dict[int, str], dict[int, str], dict[int, TileProblem]]:
    """Return the raw files, spectra and problems of a batch as they are in a folder now; none if it is unavailable."""
    named: dict[bool, dict[int, list[str]]] = {False: {}, True: {}}
    raw_names = _raw_names(project)
    with contextlib.suppress(InputError):
        for name, _ in raw_files_below(folder):
            try:
                meant = raw_names.meaning(name)
            except FileNameError:
                continue
            if meant is not None and project.layout.batch_of(meant[0]) == batch:
                tile, is_spectra = meant
                named[is_spectra].setdefault(tile.tile_id, []).append(name)
    problems = {
        number: TileProblem.of_claimants(TileId(batch.mosaic_id, number), names, str(folder))
        for found in named.values()
        for number, names in sorted(found.items())
        if len(names) > 1
    }
    files, spectra = ({number: sorted(names)[0] for number, names in sorted(named[which].items())} for which in named)
    return files, spectra, problems

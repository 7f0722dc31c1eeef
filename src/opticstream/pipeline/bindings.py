"""Bindings of the steps of the chain: the settings of their results, whether they are wanted, and what they wait for.

A step without a binding depends on no settings, is always wanted once it is due, and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from opticstream.config.publish_targets import What
from opticstream.model.chain import Step
from opticstream.model.events import Event
from opticstream.model.ids import BatchId, ItemId, MosaicId, TileId
from opticstream.pipeline.host_memory import memory_of_mosaic, memory_of_slice, memory_of_tile, memory_of_volume
from opticstream.pipeline.parameters import (
    StageSettings,
    mosaic_settings,
    publish_settings,
    sample_settings,
    slice_settings,
    tile_settings,
    upload_settings,
    volume_settings,
)
from opticstream.pipeline.project import Project
from opticstream.pipeline.rules import may_determine_template, waits_for_focus, waits_for_template
from opticstream.pipeline.templates import determined_focus
from opticstream.state import FactsView

SettingsOf = Callable[[Project, ItemId, FactsView], StageSettings | None]
Memory = Callable[[Project, ItemId], int]
Waits = Callable[[Project, ItemId, FactsView], bool]
Work = Callable[[Project, Event], Iterable[Event]]


@dataclass(frozen=True)
class Binding:
    """What the pipeline adds to a step of the chain's table."""

    settings: SettingsOf | None = None
    """Returns the current settings that a result of the step depends on; None if there are none for this item."""
    wanted: Callable[[Project], bool] = lambda _project: True
    """Whether the project's settings ask for the step."""
    concerns: Callable[[Project, ItemId], bool] = lambda _project, _item: True
    """Whether the step can be done on an item at all, once it is due."""
    waits: Waits = lambda _project, _item, _facts: False
    """Whether the step has to wait for a result of another item, although it is due."""
    memory: Memory = lambda _project, _item: 0
    """Returns how many bytes of memory the step will take at most; 0 where that is no more than any program takes."""
    work: Work | None = None
    """Does the step for the event that starts it, if there is no flow for it."""


def _settings_of_tile(project: Project, item: ItemId, _facts: FactsView) -> StageSettings:
    assert isinstance(item, BatchId | TileId)
    return tile_settings(project.config, project.layout.illumination_index(item.mosaic))


def _settings_of_mosaic(project: Project, item: ItemId, facts: FactsView) -> StageSettings:
    assert isinstance(item, MosaicId)
    finds_focus = may_determine_template(project, item, facts) or determined_focus(project, item)
    return mosaic_settings(project.config, project.layout.illumination_index(item), finds_focus=finds_focus)


def _waits_for_template(project: Project, item: ItemId, facts: FactsView) -> bool:
    assert isinstance(item, MosaicId)
    return waits_for_template(project, item, facts)


def _waits_for_focus(project: Project, item: ItemId, facts: FactsView) -> bool:
    assert isinstance(item, MosaicId)
    return waits_for_focus(project, item, facts)


def _settings_of_publication(project: Project, item: ItemId, _facts: FactsView) -> StageSettings | None:
    """Copies of raw tiles were given their names when they were written."""
    return None if isinstance(item, BatchId) else publish_settings(project.config)


def _names_raw_files(project: Project, item: ItemId) -> bool:
    """Return whether it is on record where the raw tiles of a batch are."""
    record = project.facts.read_whole(item, "ready")
    return record is not None and isinstance(record.detail.get("event"), Mapping)


def _to_targets(what: What) -> Binding:
    """Return the binding of an upload: it depends on where the results go, and is wanted if they go anywhere."""
    return Binding(
        settings=lambda project, _item, _facts: upload_settings(project.config, what),
        wanted=lambda project: bool(project.config.publish.receiving(what)),
    )


BINDINGS: dict[str, Binding] = {
    "process batch": Binding(settings=_settings_of_tile, memory=memory_of_tile),
    "archive batch": Binding(
        wanted=lambda project: project.config.processing.archive.enabled,
        concerns=_names_raw_files,
        memory=memory_of_tile,
    ),
    "stitch mosaic": Binding(settings=_settings_of_mosaic, waits=_waits_for_template, memory=memory_of_mosaic),
    "stitch volume": Binding(
        settings=lambda project, _item, _facts: volume_settings(project.config),
        wanted=lambda project: project.config.stitches_volumes,
        waits=_waits_for_focus,
        memory=memory_of_volume,
    ),
    "register slice": Binding(
        settings=lambda project, _item, _facts: slice_settings(project.config), memory=memory_of_slice
    ),
    "update sample": Binding(
        settings=lambda project, _item, _facts: sample_settings(project.config), memory=memory_of_slice
    ),
    "publish": Binding(settings=_settings_of_publication),
    "publish volume": Binding(settings=_settings_of_publication),
    "upload": _to_targets("derivatives"),
    "upload volume": _to_targets("derivatives"),
    "publish sample": Binding(settings=_settings_of_publication),
    "upload sample": _to_targets("derivatives"),
    "upload raw tiles": _to_targets("raw"),
}
"""By the name of the step."""


def binding_of(step: Step, /) -> Binding:
    """Return the binding of a step."""
    return BINDINGS.get(step.name, Binding())


def due_items(project: Project, step: Step, facts: FactsView, items: Iterable[ItemId], /) -> Iterator[ItemId]:
    """Yield those items on which the step is due and has not ended."""
    binding = binding_of(step)
    if not binding.wanted(project):
        return
    for item in items:
        known = facts.facts_of(item)
        if step.after in known and known.isdisjoint(step.ends) and binding.concerns(project, item):
            yield item


def is_due(project: Project, step: Step, item: ItemId, /) -> bool:
    """Return whether a step is due on an item and has not ended."""
    return any(due_items(project, step, project.facts, [item]))

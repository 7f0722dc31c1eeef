"""An open project: its settings, folders and facts, as used by every rule and every run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from opticstream.config import DeploymentSettings, IlluminationSettings, ProjectConfig
from opticstream.config.path_map import is_of_another_kind_of_host
from opticstream.io.names import FileNameGrammar
from opticstream.io.paths import ProjectPaths
from opticstream.model.errors import ConfigurationError
from opticstream.model.events import (
    BatchEvent,
    Event,
    MosaicEvent,
    SliceEvent,
    TileEvent,
)
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.model.layout import AcquisitionLayout
from opticstream.pipeline.payloads import artifacts_of, recorded_fields
from opticstream.state import Facts
from opticstream.state.raw_folders import RawFolders
from opticstream.system.memory import MemoryBudget

E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class Project:
    """Settings, folders and facts of one project on this host."""

    config: ProjectConfig
    paths: ProjectPaths
    facts: Facts
    deployment: DeploymentSettings
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters that this run uses instead of the registered ones; `config` includes them, and events pass them on."""
    memory: MemoryBudget | None = None
    """Budget of memory that heavy steps of this host share; None where nothing else runs beside this process."""

    @classmethod
    def open(
        cls,
        config: ProjectConfig,
        *,
        deployment: DeploymentSettings | None = None,
        flow_run_id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        memory: MemoryBudget | None = None,
    ) -> Project:
        """Return the project of a configuration, creating its folder if need be.

        Raises
        ------
        ConfigurationError
            Its folder, or its archive, has the name of another kind of host, such as Windows.
        """
        settings = deployment or DeploymentSettings()
        _check_is_of_this_host(config)
        paths = ProjectPaths.of(config)
        paths.base.mkdir(parents=True, exist_ok=True)
        roots = {"archive": paths.archive_root}
        raw_folders = RawFolders(paths.base, settings.path_map, config.project.raw_path)
        facts = Facts(paths.base, flow_run_id=flow_run_id, roots=roots, raw_folders=raw_folders)
        return cls(config, paths, facts, settings, dict(parameters or {}), memory)

    @property
    def layout(self) -> AcquisitionLayout:
        return self.paths.layout

    @property
    def grammar(self) -> FileNameGrammar:
        return FileNameGrammar(self.config.scan.file_name, self.layout)

    def illumination(self, mosaic: MosaicId) -> IlluminationSettings:
        """Return the settings of a mosaic's illumination."""
        return self.config.scan.illuminations[self.layout.illumination_index(mosaic)]

    def event(self, kind: type[E], item: ItemId, /, **values: Any) -> E:
        """Return an event about an item, with the fields from layout and flag files, and this run's parameters."""
        recorded = recorded_fields(kind, item, self.facts, self.paths)
        return kind.model_validate({**self.labels(kind, item), **recorded, **values})

    def labels(self, kind: type[Event], item: ItemId, /) -> Mapping[str, Any]:
        """Return the fields of an event that follow from the project's layout alone."""
        labels: dict[str, Any] = {
            "project_name": self.config.name,
            "project_base_path": str(self.config.as_configured.base_path),
            "parameters": dict(self.parameters),
            "artifacts": artifacts_of(kind, self.config.name, item, self.paths),
        }
        if isinstance(item, SliceId) and issubclass(kind, SliceEvent):
            labels["slice_id"] = item.slice_id
            labels["mosaic_ids"] = tuple(m.mosaic_id for m in self.layout.mosaics(item))
        if isinstance(item, MosaicId | BatchId | TileId):
            mosaic = item if isinstance(item, MosaicId) else item.mosaic
            grid = self.layout.illumination_of(mosaic)
            labels |= {"slice_id": self.layout.slice_of(mosaic).slice_id, "mosaic_id": mosaic.mosaic_id}
            grids = {"total_batches": grid.columns, "grid_size_x": grid.columns, "grid_size_y": grid.rows}
            labels |= {"illumination": grid.name} | (grids if issubclass(kind, MosaicEvent | BatchEvent) else {})
            if issubclass(kind, BatchEvent) and isinstance(item, BatchId):
                labels["batch_id"] = item.batch_id
            if issubclass(kind, TileEvent) and isinstance(item, TileId):
                labels |= {"batch_id": self.layout.batch_of(item).batch_id, "tile_id": item.tile_id}
        return labels


def _check_is_of_this_host(config: ProjectConfig) -> None:
    named = {"project_base_path": config.base_path, "archive_path": config.project.archive_root}
    for name, path in named.items():
        if is_of_another_kind_of_host(path):
            raise ConfigurationError(
                f"project.{name} = {str(path)!r} of {config.name!r} is a path of another kind of host; say in "
                f"OPTICSTREAM_PATH_MAP where this host sees it"
            )

"""What the steps take of a host's memory, and settings that keep within what it gives.

Tiles and volumes are worked on in blocks that fit into a budget; maps of a whole mosaic and their registration are
held as they are, and their sizes follow from the layout. The factors are measured (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from opticstream.config import ProjectConfig
from opticstream.config.engines import matlab_for
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.pipeline.project import Project

_PROGRAM_BYTES = 350_000_000
"""What a process takes with its libraries loaded and its functions compiled."""
_STITCHING_BYTES = 80
"""Bytes per pixel of a mosaic's tiles while positions, focus and maps are found."""
_REGISTRATION_BYTES = 240
"""Bytes per pixel of a slice's mosaic while its illuminations are registered and the fibre axes solved."""


def memory_of_tile(project: Project, item: ItemId, /) -> int:
    """Return how much memory the tiles of a batch take at most, in bytes; they are processed one after the other."""
    assert isinstance(item, BatchId | TileId)
    if (matlab := matlab_for(project.config.processing.engine, "tile")) is not None:
        needed = _PROGRAM_BYTES + _bytes(matlab.memory_budget_gb)
        return needed if project.memory is None else min(needed, project.memory.budget)
    return _bytes(within_memory(project).processing.reconstruction.memory_budget_gb)


def memory_of_volume(project: Project, item: ItemId, /) -> int:
    """Return how much memory the volumes of a mosaic take at most, in bytes."""
    assert isinstance(item, MosaicId)
    return _bytes(within_memory(project).processing.volume.memory_budget_gb)


def memory_of_mosaic(project: Project, item: ItemId, /) -> int:
    """Return how much memory the maps of a mosaic take, in bytes."""
    assert isinstance(item, MosaicId)
    return _PROGRAM_BYTES + _STITCHING_BYTES * _pixels(project, item)


def memory_of_slice(project: Project, item: ItemId, /) -> int:
    """Return how much memory the registration of a slice takes, in bytes; the sample takes no more for a slice."""
    mosaics = project.layout.mosaics(item if isinstance(item, SliceId) else SliceId(1))
    needed = _PROGRAM_BYTES + _REGISTRATION_BYTES * max(_pixels(project, mosaic) for mosaic in mosaics)
    engine = project.config.processing.engine
    matlab = matlab_for(engine, "registration") or matlab_for(engine, "axis")
    if matlab is None or not isinstance(item, SliceId):
        return needed
    needed += _bytes(matlab.memory_budget_gb)
    return needed if project.memory is None else min(needed, project.memory.budget)


def within_memory(project: Project, /) -> ProjectConfig:
    """Return the settings of a project, with memory budgets that are no larger than that of this host."""
    if project.memory is None:
        return project.config
    most_gb = project.memory.budget / 1e9
    processing = project.config.processing
    kept = {
        name: part.model_copy(update={"memory_budget_gb": most_gb})
        for name, part in (("reconstruction", processing.reconstruction), ("volume", processing.volume))
        if part.memory_budget_gb > most_gb
    }
    if not kept:
        return project.config
    return project.config.model_copy(update={"processing": processing.model_copy(update=kept)})


def _pixels(project: Project, mosaic: MosaicId) -> int:
    """Return the number of pixels of a mosaic's tiles together."""
    width, height = project.config.scan.tile_shape(project.layout.illumination_index(mosaic))
    grid = project.layout.illumination_of(mosaic)
    return grid.columns * grid.rows * width * height


def _bytes(gigabytes: float) -> int:
    return int(gigabytes * 1e9)

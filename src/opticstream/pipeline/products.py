"""The files recorded with facts, by product: stitched maps and volumes of a mosaic, results of a slice."""

from __future__ import annotations

from pathlib import Path

from opticstream.model.ids import ItemId, MosaicId
from opticstream.pipeline.project import Project


def recorded_products(project: Project, item: ItemId, fact: str, /) -> dict[str, Path]:
    """Return the products that the record of a fact names; none if the fact is not recorded."""
    record = project.facts.read(item, fact)
    products = record.detail.get("products", {}) if record else {}
    return {name: project.paths.absolute(path) for name, path in products.items()}


def stitched_maps(project: Project, mosaic: MosaicId, /) -> dict[str, Path]:
    """Return the stitched maps of a mosaic by modality."""
    found = recorded_products(project, mosaic, "stitched")
    return {name: path for name, path in found.items() if path.name.endswith(".nii.gz")}


def stitched_volumes(project: Project, mosaic: MosaicId, /) -> dict[str, Path]:
    """Return the volumes of a mosaic that are stitched so far, by modality; nothing waits for them."""
    return recorded_products(project, mosaic, "volume_stitched")

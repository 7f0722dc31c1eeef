"""Fields of events besides ids: paths of the results, counts, and the keys of the artifacts that show them.

Everything is looked up in the flag files, so the sweep announces the same as the process that recorded the fact. Paths
are relative to the project, or to the archive as ``archive:...``, because hosts mount the folders in different places.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from opticstream.io.paths import ProjectPaths
from opticstream.model import events as catalogue
from opticstream.model.events import Event
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.state import FactRecord, Facts
from opticstream.state.slugs import artifact_key

QUALITY_PICTURES = ("qc_overlap", "qc_coordinates", "qc_focus", "qc_mask")
"""Quality pictures of a stitched mosaic, by the ends of their names."""


def mosaic_picture_key(project_name: str, mosaic: MosaicId, picture: str, /) -> str:
    """Return the key of the artifact that shows a quality picture of a mosaic."""
    return artifact_key(project_name, f"mosaic-{mosaic.mosaic_id}-{picture.replace('_', '-')}")


def slice_picture_key(project_name: str, slice_id: SliceId, picture: str, /) -> str:
    """Return the key of the artifact that shows a picture of a slice, by the name of the picture's file.

    Examples
    --------
    >>> slice_picture_key("i55", SliceId(3), "slice_003_axis")
    'i55--slice-3-slice-003-axis'
    """
    name = re.sub(r"[^a-z0-9]+", "-", picture.lower()).strip("-")
    return artifact_key(project_name, f"slice-{slice_id.slice_id}-{name}")


def mosaic_progress_key(project_name: str, mosaic: MosaicId, /) -> str:
    """Return the key of the artifact that shows the progress of a mosaic."""
    return artifact_key(project_name, f"mosaic-{mosaic.mosaic_id}-progress")


def project_progress_key(project_name: str, /) -> str:
    """Return the key of the artifact that shows the progress of a project."""
    return artifact_key(project_name, "progress")


def sample_key(project_name: str, /) -> str:
    """Return the key of the artifact that shows the sample."""
    return artifact_key(project_name, "sample")


def artifacts_of(kind: type[Event], project_name: str, item: ItemId, paths: ProjectPaths, /) -> dict[str, str]:
    """Return the keys of the artifacts that show an item, by what they show; a flow may be about to publish them."""
    keys = {"progress": project_progress_key(project_name)}
    if isinstance(item, MosaicId | BatchId | TileId):
        mosaic = item if isinstance(item, MosaicId) else item.mosaic
        keys["mosaic_progress"] = mosaic_progress_key(project_name, mosaic)
        if issubclass(kind, catalogue.MosaicStitched):
            names = {picture: paths.mosaic_product(mosaic, picture, ".jpg") for picture in QUALITY_PICTURES}
            shown = (picture for picture, path in names.items() if paths.readable(path).exists())
            keys |= {picture: mosaic_picture_key(project_name, mosaic, picture) for picture in shown}
    if isinstance(item, SampleId) and paths.sample_preview.exists():
        keys["sample"] = sample_key(project_name)
    return keys


def recorded_fields(kind: type[Event], item: ItemId, facts: Facts, paths: ProjectPaths, /) -> dict[str, Any]:
    """Return the fields of an event from the flag files: paths of results, templates, failed tiles."""
    fields: dict[str, Any] = {}
    known = _SOURCES.get(kind)
    if known is not None:
        fact, fields_of = known
        record = facts.read_whole(item, fact)
        if record is not None:
            fields |= fields_of(record)
    if isinstance(item, MosaicId) and "template" in kind.model_fields and not fields.get("template"):
        template = paths.tilemap(paths.layout.illumination_of(item).name)
        fields["template"] = paths.relative(template) if template.exists() else ""
    return fields


def _names(record: FactRecord) -> tuple[str, ...]:
    return tuple(file.path for file in record.outputs)


def _of_batch(record: FactRecord) -> Mapping[str, Any]:
    made = tuple(name for name in _names(record) if not name.startswith("archive:"))
    return {"outputs": made, "failed_tiles": tuple(record.detail.get("failed_tiles", ()))}


def _of_products(record: FactRecord) -> Mapping[str, Any]:
    fields: dict[str, Any] = {"outputs": dict(record.detail.get("products", {}))}
    template = record.detail.get("template")
    return fields | ({"template": str(template)} if template else {})


def _of_outputs(record: FactRecord) -> Mapping[str, Any]:
    return {"outputs": _names(record)}


def _of_sample(record: FactRecord) -> Mapping[str, Any]:
    """Return the fields of an update of the stacks; without slices if a person recorded it."""
    slices, missing = (tuple(record.detail.get(name, ())) for name in ("slices", "missing"))
    added = {"slice_id": record.detail.get("slice_id", slices[-1]), "slices": slices} if slices else {}
    return {**_of_outputs(record), **added, "missing": missing}


_SOURCES: Mapping[type[Event], tuple[str, Callable[[FactRecord], Mapping[str, Any]]]] = {
    catalogue.BatchArchived: ("archived", lambda record: {"files": _names(record)}),
    catalogue.BatchProcessed: ("processed", _of_batch),
    catalogue.BatchUploaded: ("uploaded", _of_outputs),
    catalogue.MosaicStitched: ("stitched", _of_products),
    catalogue.MosaicVolumeStitched: ("volume_stitched", _of_products),
    catalogue.MosaicUploaded: ("uploaded", _of_outputs),
    catalogue.MosaicVolumeUploaded: ("volume_uploaded", _of_outputs),
    catalogue.SliceRegistered: ("registered", _of_products),
    catalogue.SliceUploaded: ("uploaded", _of_outputs),
    catalogue.SampleUpdated: ("updated", _of_sample),
    catalogue.SampleUploaded: ("uploaded", _of_outputs),
    catalogue.SampleFailed: ("updated", lambda record: {"slice_id": _of_sample(record).get("slice_id", 1)}),
}
"""The fact whose record has the fields of each kind of event."""

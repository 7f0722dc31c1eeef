"""The picture of a project that people and hosts see in Prefect, made from the flag files.

Progress tables, quality pictures of mosaics and the preview of the sample as artifacts, and the shared project state in
Variables.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact

from opticstream.flows.picture_artifacts import as_markdown, publish_image
from opticstream.flows.prefect_state import OCT_STATE_SERVICE
from opticstream.io.atomic import write_text
from opticstream.model.errors import ServerError, StateError
from opticstream.model.events import MosaicStitched, SampleUpdated
from opticstream.model.ids import ItemId, MosaicId, SliceId
from opticstream.pipeline.progress import MosaicProgress, ProjectProgress, project_progress
from opticstream.pipeline.project import Project
from opticstream.pipeline.stuck import Stuck
from opticstream.state.mirror import update_oct_state
from opticstream.state.slugs import artifact_key


def publish_picture(project: Project, /) -> ProjectProgress:
    """Update the progress tables whose content has changed, and return the progress."""
    progress = project_progress(project)
    name = project.config.name
    cache = project.paths.base / "state" / "picture.json"
    known = _read(cache)
    tables: dict[str, tuple[list[dict[str, Any]], str]] = {
        _mosaic_key(name, mosaic): (_mosaic_table(mosaic), _mosaic_title(mosaic)) for mosaic in progress.mosaics
    }
    tables[artifact_key(name, "progress")] = (_project_table(progress), f"Progress of {project.config.name}")
    changed = set()
    for key, (table, title) in tables.items():
        digest = hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]
        if known.get(key) != digest:
            create_table_artifact(key=key, table=table, description=as_markdown(title))
            known[key] = digest
            changed.add(key)
    if changed:
        mosaics = [m.mosaic_id for m in progress.mosaics if _mosaic_key(name, m) in changed]
        if _share(project, [MosaicId(number) for number in mosaics], progress):
            write_text(cache, json.dumps(known, indent=1))
    return progress


def publish_stuck(project: Project, stuck: Sequence[Stuck], /) -> None:
    """Show what is stuck as a table, when that has changed; an empty one when nothing is any longer."""
    key = artifact_key(project.config.name, "stuck")
    cache = project.paths.base / "state" / "stuck.json"
    table = [one.as_dict() for one in stuck]
    digest = hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]
    known = _read(cache)
    if known.get(key) == digest or not (table or known):
        return
    create_table_artifact(
        key=key, table=table, description=as_markdown(f"What is stuck in {project.config.name}: {len(table)}")
    )
    write_text(cache, json.dumps({key: digest}))


def publish_sample_preview(project: Project, event: SampleUpdated, /) -> None:
    """Show the sample in three orthogonal views, as an artifact; nothing where there is no preview."""
    if not project.paths.sample_preview.exists():
        return
    missing = ", ".join(map(str, event.missing))
    publish_image(
        artifact_key(project.config.name, "sample"),
        project.paths.sample_preview,
        title=f"Sample {project.config.name}: {len(event.slices)} slices",
        text=f"Slice {event.slice_id} was added. "
        + (f"Missing: slices {missing}." if missing else "No slice is missing."),
    )


_QUALITY_PICTURES = {
    "qc_overlap": "neighbouring tiles in red and green: yellow where they fit",
    "qc_coordinates": "links green (clear), yellow (faint), red (dropped), grey (nothing to see); blue: residuals",
    "qc_focus": "surface in the overlaps before and after, and the focus map",
}


def publish_mosaic_quality(project: Project, event: MosaicStitched, /) -> list[str]:
    """Show the quality pictures of a mosaic that has just been stitched, as artifacts; return their keys."""
    record = project.facts.read(event.mosaic, "stitched")
    detail = record.detail if record else {}
    verdict = (detail.get("coordinates") or {}).get("sentence", f"positions of {event.template}")
    missing = ", ".join(map(str, detail.get("missing_tiles", ())))
    text = f"Positions: {verdict}. " + (f"Stitched around tiles {missing}." if missing else "No tile is missing.")
    keys = []
    for kind, what in _QUALITY_PICTURES.items():
        path = project.paths.stitched_folder(event.mosaic) / f"mosaic_{event.mosaic_id:03d}_{kind}.jpg"
        if path.exists():
            key = artifact_key(project.config.name, f"mosaic-{event.mosaic_id}-{kind.replace('_', '-')}")
            publish_image(key, path, title=f"Mosaic {event.mosaic_id}: {what}", text=text)
            keys.append(key)
    return keys


def _share(project: Project, mosaics: list[MosaicId], progress: ProjectProgress) -> bool:
    """Bring the shared project state up to date with the flag files; False if its lock could not be had."""
    items: list[ItemId] = [*mosaics, *(SliceId(s.slice_id) for s in progress.slices)]
    items += [batch for mosaic in mosaics for batch in project.layout.batches(mosaic)]
    try:
        update_oct_state(OCT_STATE_SERVICE, project.config.name, project.facts, project.layout, items)
    except (StateError, ServerError) as error:
        get_run_logger().warning("the shared project state is not up to date, the next look tries again: %s", error)
        return False
    return True


def _read(cache: Path) -> dict[str, str]:
    try:
        return dict(json.loads(cache.read_text()))
    except (OSError, ValueError):
        return {}  # a cache: without it every table is published once more


def _mosaic_key(project_name: str, mosaic: MosaicProgress) -> str:
    return artifact_key(project_name, f"mosaic-{mosaic.mosaic_id}-progress")


def _mosaic_title(mosaic: MosaicProgress) -> str:
    where = f"Mosaic {mosaic.mosaic_id} (slice {mosaic.slice_id}, {mosaic.illumination})"
    return f"{where}: {mosaic.percent:.0f} % of tiles, {mosaic.state}"


def _mosaic_table(mosaic: MosaicProgress) -> list[dict[str, Any]]:
    return [
        {
            "state": state,
            "batches": count,
            "of": mosaic.total_batches,
            "percent": round(100 * count / mosaic.total_batches),
        }
        for state, count in mosaic.batches.items()
    ]


def _project_table(progress: ProjectProgress) -> list[dict[str, Any]]:
    slices = {s.slice_id: s for s in progress.slices}
    return [
        {
            "slice": mosaic.slice_id,
            "slice state": slices[mosaic.slice_id].state,
            "mosaic": mosaic.mosaic_id,
            "illumination": mosaic.illumination,
            "tiles": f"{mosaic.tiles_processed + mosaic.tiles_failed}/{mosaic.total_tiles}",
            "failed": mosaic.tiles_failed,
            "state": mosaic.state,
            "volumes": mosaic.volume,
            "published": mosaic.uploaded,
        }
        for mosaic in progress.mosaics
    ]

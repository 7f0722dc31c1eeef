"""The picture of a project's progress that people see in Prefect: tables as artifacts, made from the flag files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from prefect.artifacts import create_table_artifact

from opticstream.io.atomic import write_text
from opticstream.pipeline.progress import MosaicProgress, ProjectProgress, project_progress
from opticstream.pipeline.project import Project
from opticstream.state.slugs import project_slug


def publish_picture(project: Project, /) -> ProjectProgress:
    """Update the progress tables whose content has changed, and return the progress."""
    progress = project_progress(project)
    slug = project_slug(project.config.name)
    cache = project.paths.base / "state" / "picture.json"
    known = _read(cache)
    tables: dict[str, tuple[list[dict[str, Any]], str]] = {
        f"{slug}-mosaic-{mosaic.mosaic_id}-progress": (_mosaic_table(mosaic), _mosaic_title(mosaic))
        for mosaic in progress.mosaics
    }
    tables[f"{slug}-progress"] = (_project_table(progress), f"Progress of {project.config.name}")
    changed = False
    for key, (table, title) in tables.items():
        digest = hashlib.sha256(json.dumps(table).encode()).hexdigest()[:16]
        if known.get(key) != digest:
            create_table_artifact(key=key, table=table, description=title)
            known[key] = digest
            changed = True
    if changed:
        write_text(cache, json.dumps(known, indent=1))
    return progress


def _read(cache: Path) -> dict[str, str]:
    try:
        return dict(json.loads(cache.read_text()))
    except (OSError, ValueError):
        return {}  # a cache: without it every table is published once more


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

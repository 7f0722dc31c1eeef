"""The picture of a project that people and hosts see in Prefect, made from the flag files.

Progress tables, quality pictures of mosaics and the preview of the sample as artifacts, and the shared project state in
Variables.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.exceptions import MissingContextError
from prefect.logging import get_logger

from opticstream.flows.picture_artifacts import as_markdown, contact_sheet, publish_image, publish_picture_bytes
from opticstream.flows.prefect_state import OCT_STATE_SERVICE, PrefectApi
from opticstream.model.errors import LockTimeout, ServerError, StateError
from opticstream.model.events import MosaicStitched, SampleUpdated, SliceRegistered
from opticstream.model.ids import BatchId, ItemId, MosaicId, SliceId, TileId
from opticstream.pipeline.milestone_times import Times, milestone_times, time_of_flag
from opticstream.pipeline.payloads import (
    QUALITY_PICTURES,
    mosaic_picture_key,
    mosaic_progress_key,
    project_progress_key,
    sample_key,
    slice_picture_key,
)
from opticstream.pipeline.progress import (
    MILESTONES_PERCENT,
    MosaicProgress,
    ProjectProgress,
    detail_of,
    project_progress,
)
from opticstream.pipeline.project import Project
from opticstream.pipeline.quality_flags import FlaggedResult, flagged_in_batch, flagged_results
from opticstream.pipeline.stuck import Stuck
from opticstream.state import FactsSnapshot
from opticstream.state.mirror import oct_state_is_current, rebuild_oct_state, update_oct_state
from opticstream.state.slugs import artifact_key

Table = list[dict[str, Any]]
Tables = dict[str, tuple[Table, str]]
"""Tables with their titles, by key."""
_MOST_LOOKS = 5
"""Looks of one run, while others publish at the same time."""
_PAGE = 200


def publish_picture(project: Project, /) -> ProjectProgress:
    """Bring progress tables and the shared project state up to date with the flag files, and return the progress.

    What differs is published. Another run may have published an older look meanwhile, so this one looks again until
    nothing differs any more.
    """
    for _ in range(_MOST_LOOKS):
        snapshot = project.facts.snapshot()
        progress = project_progress(project, snapshot)
        if not _publish_tables(project.config.name, progress_tables(project, progress, snapshot)):
            break
    _share(project)
    return progress


def picture_is_current(project: Project, /) -> bool:
    """Return whether shared state and progress tables say what the flag files say; changes nothing.

    For whoever waits until the looking flows have seen the last facts.

    Raises
    ------
    ServerError
        The server did not answer.
    """
    name = project.config.name
    try:
        is_shared = oct_state_is_current(OCT_STATE_SERVICE, name, project.facts, project.layout)
    except StateError:  # lost or damaged Variables: the next look rebuilds them
        return False
    snapshot = project.facts.snapshot()
    tables = progress_tables(project, project_progress(project, snapshot), snapshot)
    return is_shared and not _differing_tables(name, tables)


def publish_stuck(project: Project, stuck: Sequence[Stuck], /) -> None:
    """Show what is stuck as a table, when that has changed; an empty one when nothing is any longer."""
    key = artifact_key(project.config.name, "stuck")
    table = [one.as_dict() for one in stuck]
    title = as_markdown(f"What is stuck in {project.config.name}: {len(table)}")
    known = _shown_tables(project.config.name).get(key)
    if known != (table, title) and (table or known is not None):
        create_table_artifact(key=key, table=table, description=title)


def progress_tables(project: Project, progress: ProjectProgress, snapshot: FactsSnapshot, /) -> Tables:
    """Return the tables of a project, and of each of its mosaics, by the keys of their artifacts.

    They follow from the flag files alone.
    """
    name = progress.project_name
    times = milestone_times(project, [MosaicId(mosaic.mosaic_id) for mosaic in progress.mosaics])
    verdicts = _verdicts(project, snapshot)
    tables = {}
    for mosaic in progress.mosaics:
        item = MosaicId(mosaic.mosaic_id)
        table = _mosaic_table(project, mosaic, times[item], verdicts.get(item, "ok"))
        tables[mosaic_progress_key(name, item)] = (table, _mosaic_title(mosaic) + _published_at(project, mosaic))
    if tables:
        tables[project_progress_key(name)] = (_project_table(progress, verdicts), as_markdown(f"Progress of {name}"))
    return tables


def _verdicts(project: Project, snapshot: FactsSnapshot) -> dict[ItemId, str]:
    """Return what quality control says of each mosaic with its tiles, and of each slice, where it says something."""
    flagged: dict[ItemId, list[FlaggedResult]] = {}
    for one in flagged_results(project, snapshot, keep=True):
        item = one.item.mosaic if isinstance(one.item, TileId) else one.item
        flagged.setdefault(item, []).append(one)
    return {
        item: f"{'bad' if any(one.grade == 'bad' for one in found) else 'look'} ({len(found)})"
        for item, found in flagged.items()
    }


def _publish_tables(project_name: str, tables: Tables) -> bool:
    """Publish the tables that the server does not show yet, and return whether there were any.

    Compared with what the server shows, not with what was published from here: it may have been lost, and other hosts
    publish, too.
    """
    differing = _differing_tables(project_name, tables)
    for key, (table, title) in differing.items():
        create_table_artifact(key=key, table=[*table, _time_row(table)], description=title)
    return bool(differing)


def _differing_tables(project_name: str, tables: Tables) -> Tables:
    shown = _shown_tables(project_name)
    return {key: made for key, made in tables.items() if shown.get(key) != made}


def _shown_tables(project_name: str) -> dict[str, tuple[Table, str]]:
    """Return the tables of a project that the server shows, without the row that tells when they were made."""
    api, prefix = PrefectApi(), artifact_key(project_name, "")
    shown: dict[str, tuple[Table, str]] = {}
    for page in range(1_000_000):
        body = {
            "artifacts": {"key": {"like_": prefix}, "type": {"any_": ["table"]}},
            "limit": _PAGE,
            "offset": page * _PAGE,
        }
        found = api.call("POST", "/artifacts/latest/filter", body).json()
        for artifact in (one for one in found if one["key"].startswith(prefix)):
            with contextlib.suppress(ValueError, TypeError):
                table = json.loads(artifact["data"])
                rows = [row for row in table if _UPDATED not in row.values()]
                shown[artifact["key"]] = (rows, artifact["description"] or "")
        if len(found) < _PAGE:
            break
    return shown


_UPDATED = "updated"


def _time_row(table: Table) -> dict[str, Any]:
    """Return a last row that tells when a table was made."""
    first, second, *rest = table[0]
    return {first: _UPDATED, second: f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC", **dict.fromkeys(rest, "")}


def publish_sample_preview(project: Project, event: SampleUpdated, /) -> None:
    """Show the sample in three orthogonal views, as an artifact; nothing where there is no preview."""
    if not project.paths.sample_preview.exists():
        return
    missing = ", ".join(map(str, event.missing))
    publish_image(
        sample_key(project.config.name),
        project.paths.sample_preview,
        title=f"Sample {project.config.name}: {len(event.slices)} slices",
        text=f"Slice {event.slice_id} was added. "
        + (f"Missing: slices {missing}." if missing else "No slice is missing."),
    )


_WHAT_PICTURES_SHOW = (
    "neighbouring tiles in red and green: yellow where they fit",
    "links green (clear), yellow (faint), red (dropped), grey (nothing to see); blue: residuals",
    "surface in the overlaps before and after, and the focus map",
    "average intensity, with the edge of the tissue mask",
)


def publish_mosaic_quality(project: Project, event: MosaicStitched, /) -> list[str]:
    """Show the quality pictures of a mosaic that has just been stitched, as artifacts; return their keys."""
    record = project.facts.read(event.mosaic, "stitched")
    detail = record.detail if record else {}
    verdict = (detail.get("coordinates") or {}).get("sentence", f"positions of {event.template}")
    missing = ", ".join(map(str, detail.get("missing_tiles", ())))
    text = f"Positions: {verdict}. " + (f"Stitched around tiles {missing}." if missing else "No tile is missing.")
    keys = []
    for kind, what in zip(QUALITY_PICTURES, _WHAT_PICTURES_SHOW, strict=True):
        path = project.paths.readable(project.paths.mosaic_product(event.mosaic, kind, ".jpg"))
        if path.exists():
            key = mosaic_picture_key(project.config.name, event.mosaic, kind)
            publish_image(key, path, title=f"Mosaic {event.mosaic_id}: {what}", text=text)
            keys.append(key)
    return keys


def publish_slice_quality(project: Project, event: SliceRegistered, /) -> list[str]:
    """Show the pictures of a slice that has just been registered, as artifacts; return their keys.

    They are the overlays of the illuminations before and after the registration, and the fibre axes.
    """
    record = project.facts.read(event.slice, "registered")
    detail = record.detail if record else {}
    doubts = "; ".join(map(str, detail.get("doubts", ())))
    keys = []
    for name in detail.get("pictures", ()):
        path = project.paths.absolute(str(name))
        if path.exists():
            key = slice_picture_key(project.config.name, event.slice, path.stem)
            title = f"Slice {event.slice_id}: {path.stem}"
            publish_image(
                key, path, title=title, text=f"To check: {doubts}." if doubts else "Nothing is to be checked."
            )
            keys.append(key)
    return keys


def publish_tile_pictures(project: Project, batch: BatchId, /) -> str | None:
    """Show the tiles of a batch that has just been processed side by side, as an artifact; return its key.

    A mosaic has one artifact for its tiles, which shows the last column: a picture of each of thousands of tiles would
    fill the server's database.
    """
    tiles = project.layout.tiles(batch)
    pictures = {tile: project.paths.tile_product(tile, "qc").with_suffix(".jpg") for tile in tiles}
    sheet = contact_sheet([(f"tile {tile.tile_id}", path) for tile, path in pictures.items() if path.exists()])
    if sheet is None:
        return None
    flagged = [one for one in flagged_in_batch(project, batch) if one.reasons]
    text = "; ".join(f"{one.item} ({one.grade}): {', '.join(one.reasons)}" for one in flagged)
    key = mosaic_picture_key(project.config.name, batch.mosaic, "tiles")
    title = f"Mosaic {batch.mosaic_id}: tiles of column {batch.batch_id}"
    publish_picture_bytes(key, sheet, title=title, text=text or "Quality control flags no tile.")
    return key


def _logger() -> Any:
    """Return the logger of the current flow run, or of the process that feeds the project."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("opticstream")


def _share(project: Project) -> None:
    """Bring the shared project state up to date with the flag files."""
    name, facts, layout = project.config.name, project.facts, project.layout
    logger = _logger()
    try:
        try:
            if not oct_state_is_current(OCT_STATE_SERVICE, name, facts, layout):
                update_oct_state(OCT_STATE_SERVICE, name, facts, layout)
        except LockTimeout:
            raise
        except StateError as error:  # Variables are missing or damaged
            logger.warning("the shared project state is rebuilt from the flag files: %s", error)
            rebuild_oct_state(OCT_STATE_SERVICE, name, facts, layout)
    except (StateError, ServerError) as error:
        logger.warning("the shared project state is not up to date, the next look tries again: %s", error)


def _mosaic_title(mosaic: MosaicProgress) -> str:
    where = f"Mosaic {mosaic.mosaic_id} (slice {mosaic.slice_id}, {mosaic.illumination})"
    return as_markdown(f"{where}: {mosaic.percent:.0f} % of tiles, {mosaic.state}")


def _mosaic_table(project: Project, mosaic: MosaicProgress, times: Times, verdict: str) -> Table:
    item = MosaicId(mosaic.mosaic_id)
    counted = [
        {
            "state": state,
            "batches": count,
            "of": mosaic.total_batches,
            "percent": round(100 * count / mosaic.total_batches),
        }
        for state, count in mosaic.batches.items()
    ]
    done = mosaic.tiles_processed + mosaic.tiles_failed
    passed = max((percent for percent in MILESTONES_PERCENT if mosaic.percent >= percent), default=0)

    def since(fact: str) -> str:
        return time_of_flag(project.facts.path(item, fact))

    of_mosaic = {
        **{f"{percent} % of tiles": at for percent, at in times.items()},
        f"maps: {mosaic.state}": since("stitched") if mosaic.state == "stitched" else "",
        f"volumes: {mosaic.volume}": since("volume_stitched") if mosaic.volume == "stitched" else "",
        f"maps {'published' if mosaic.published else 'not published'}": since("published"),
        f"maps {'uploaded' if mosaic.uploaded else 'not uploaded'}": since("uploaded"),
        **{f"maps at {name}": place for name, place in _places(project, mosaic).items()},
        f"quality: {verdict}": "",
    }
    return [
        *counted,
        {"state": "tiles processed or parked", "batches": done, "of": mosaic.total_tiles, "percent": passed},
        *({"state": state, "batches": value, "of": "", "percent": ""} for state, value in of_mosaic.items()),
    ]


def _published_at(project: Project, mosaic: MosaicProgress) -> str:
    """Return Markdown with links to the pages of the archives that hold the maps of a mosaic."""
    pages = {target.target_name: target.page for target in project.config.publish.targets}
    links = [f"[{as_markdown(name)}]({pages[name]})" for name in _places(project, mosaic) if pages.get(name)]
    return f". Published: {', '.join(links)}" if links else ""


def _places(project: Project, mosaic: MosaicProgress) -> dict[str, str]:
    """Return where each remote target holds the maps of a mosaic."""
    if not mosaic.uploaded:
        return {}
    targets = detail_of(project, MosaicId(mosaic.mosaic_id), "uploaded").get("targets", {})
    return {
        str(name): str(held["place"]) for name, held in targets.items() if isinstance(held, dict) and "place" in held
    }


def _project_table(progress: ProjectProgress, verdicts: Mapping[ItemId, str]) -> Table:
    slices = {s.slice_id: s for s in progress.slices}
    return [
        {
            "slice": mosaic.slice_id,
            "slice state": slices[mosaic.slice_id].state,
            "in the sample": slices[mosaic.slice_id].stacked,
            "slice published": slices[mosaic.slice_id].published,
            "slice uploaded": slices[mosaic.slice_id].uploaded,
            "mosaic": mosaic.mosaic_id,
            "illumination": mosaic.illumination,
            "tiles": f"{mosaic.tiles_processed + mosaic.tiles_failed}/{mosaic.total_tiles}",
            "failed": mosaic.tiles_failed,
            "state": mosaic.state,
            "volumes": mosaic.volume,
            "published": mosaic.published,
            "uploaded": mosaic.uploaded,
            "quality": verdicts.get(MosaicId(mosaic.mosaic_id), "ok"),
            "slice quality": verdicts.get(SliceId(mosaic.slice_id), "ok"),
        }
        for mosaic in progress.mosaics
    ]

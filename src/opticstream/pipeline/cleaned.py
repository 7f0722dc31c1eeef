"""Batches whose tiles have lost their files to a clean-up: what has to be made again before they can be read."""

from __future__ import annotations

from pathlib import Path

from opticstream.model.errors import StateError
from opticstream.model.events import BatchReady
from opticstream.model.ids import BatchId, MosaicId
from opticstream.pipeline.project import Project

CLEANED = "cleaned"


def cleaned_batches(project: Project, mosaic: MosaicId, /) -> list[BatchId]:
    """Return the batches of a mosaic whose tiles' files were removed."""
    return [batch for batch in project.layout.batches(mosaic) if project.facts.has(batch, CLEANED)]


def check_tiles_are_there(project: Project, mosaic: MosaicId, /) -> None:
    """Return if the tiles of a mosaic have their files.

    Raises
    ------
    StateError
        They were removed by a clean-up; the message says what to do.
    """
    if batches := cleaned_batches(project, mosaic):
        raise StateError(
            f"{mosaic}: the files of {len(batches)} of its {len(project.layout.batches(mosaic))} batches were removed "
            "by a clean-up after their upload; `opticstream retry` makes them again from the raw tiles"
        )


def missing_raw_file(event: BatchReady | None, /) -> str | None:
    """Return the first raw file of a batch that no longer exists, or None; also None without an announcement."""
    if event is None:
        return None
    paths = (Path(event.raw_folder, name) for name in (*event.files.values(), *event.spectra.values()))
    return next((str(path) for path in paths if not path.exists()), None)

"""Batches whose raw files lie elsewhere than where they were found: on another host, or because they were moved.

The record of a batch keeps the folder as it was found, and where that lay from the project's folder. Rules and jobs get
announcements with the folder as this host sees it now.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from opticstream.config.path_map import position_from
from opticstream.io.raw_folder import RawNames, raw_files_below
from opticstream.model.errors import FileNameError, InputError
from opticstream.model.events import BatchReady
from opticstream.pipeline.project import Project
from opticstream.state.raw_folders import POSITION


def located(project: Project, event: BatchReady, /, *, position: str = "") -> BatchReady:
    """Return the announcement of a batch with its raw folder and files as this host sees them.

    Parameters
    ----------
    project : Project
        Whose batch.
    event : BatchReady
        Its announcement, as any host has made it.
    position : str
        Where the raw folder lay from the project's folder; empty where that is not known.
    """
    raw = project.facts.raw_folders
    names = [*event.files.values(), *event.spectra.values()]
    folder = raw.find(event.raw_folder, names, position=position)
    here = {
        "raw_folder": str(folder),
        "files": {number: raw.name_here(folder, name) for number, name in event.files.items()},
        "spectra": {number: raw.name_here(folder, name) for number, name in event.spectra.items()},
    }
    return event.model_copy(update=here)


def ready_content(project: Project, event: BatchReady, /, *, raw_folder: str | None = None) -> dict[str, Any]:
    """Return the content of a batch's `ready` record.

    Parameters
    ----------
    project : Project
        Whose batch.
    event : BatchReady
        Its announcement, with the raw folder as this host sees it.
    raw_folder : str, optional
        The folder as whoever has found it names it, if that is another name.
    """
    position = position_from(project.paths.base, Path(event.raw_folder))
    named = {"raw_folder": raw_folder} if raw_folder else {}
    return {"detail": {"event": event.payload() | named, POSITION: position}}


def remember_folder(project: Project, folder: Path, /) -> None:
    """Note that a project is fed from a folder, if that holds any of its raw files."""
    scan = project.config.scan
    names = RawNames(scan.file_name, scan.spectral_file_name, project.layout)

    def is_ours(name: str) -> bool:
        try:
            return names.meaning(name) is not None
        except FileNameError:
            return False

    with contextlib.suppress(InputError, OSError):  # whoever feeds the project tells of a folder that is away
        if any(is_ours(name) for name, _ in raw_files_below(folder)):
            project.facts.raw_folders.remember(folder)

"""Which files the dashboard may send: pictures among the outputs of the project and its archive, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from opticstream.io.paths import ProjectPaths
from opticstream.model.errors import InputError

PICTURES = frozenset({".jpg", ".jpeg", ".png"})
_FOLDERS = re.compile(r"(?:mosaic-\d{2,}/(?:processed|stitched)|registered|sample)/")
"""Folders of the project that hold pictures; flags, settings and raw tiles lie elsewhere."""
_ARCHIVE = "archive:"


def picture_path(paths: ProjectPaths, name: str, /) -> Path:
    """Return the file of a picture, with all links followed.

    Parameters
    ----------
    paths : ProjectPaths
        Folders of the project.
    name : str
        Name as in records: relative to the project, or to its archive as ``archive:...``.

    Raises
    ------
    InputError
        It is no picture, it does not exist, or it lies outside the outputs of the project and its archive.
    """
    inside = PurePosixPath(name.removeprefix(_ARCHIVE))
    plain = "\\" not in name and "\0" not in name and not inside.is_absolute()
    if not plain or any(part == ".." or part.startswith(".") for part in inside.parts):
        raise InputError(f"{name!r} is not the name of an output")
    if inside.suffix.lower() not in PICTURES:
        raise InputError(f"{name!r} is not a picture; expected {', '.join(sorted(PICTURES))}")
    in_archive = name.startswith(_ARCHIVE)
    if not in_archive and not _FOLDERS.match(inside.as_posix()):
        raise InputError(f"{name!r} lies in no folder of outputs")
    try:
        real = paths.absolute(name).resolve(strict=True)
        base, archive = paths.base.resolve(), paths.archive_root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{name!r} does not exist") from error
    of_project = real.is_relative_to(base) and _FOLDERS.match(real.relative_to(base).as_posix())
    if not of_project and not real.is_relative_to(archive):
        raise InputError(f"{name!r} is a link to a file outside the project's outputs")
    if real.suffix.lower() not in PICTURES or not real.is_file():
        raise InputError(f"{name!r} is not a picture")
    return real

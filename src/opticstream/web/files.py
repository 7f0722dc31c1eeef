"""Which files the dashboard may send: pictures and volumes among the outputs of the project and its archive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from opticstream.io.paths import ProjectPaths, strip_path
from opticstream.model.errors import InputError
from opticstream.pipeline.project import Project
from opticstream.web.tiles import TileLook

PICTURES = frozenset({".jpg", ".jpeg", ".png"})
STORE = ".ome.zarr"
_FOLDERS = re.compile(r"(?:mosaic-\d{2,}/(?:processed|looks|stitched|thumbnails)|registered|sample)/")
"""Folders of the project that hold pictures and volumes; flags, settings and raw tiles lie elsewhere."""
_IN_STORE = re.compile(
    r"""(?P<store>.+\.ome\.zarr)/
    (?:zarr\.json | \.zgroup | \.zattrs                            # of the image
    | \d{1,2}/(?: zarr\.json | \.zarray | (?:c/)?\d+(?:/\d+){2} )  # of a level, and its chunks
    )""",
    re.VERBOSE,
)
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
    inside = _plain(name)
    if inside.suffix.lower() not in PICTURES:
        raise InputError(f"{name!r} is not a picture; expected {', '.join(sorted(PICTURES))}")
    real = output_path(paths, name)
    if real.suffix.lower() not in PICTURES or not real.is_file():
        raise InputError(f"{name!r} is not a picture")
    return real


def strip_of_pipeline(project: Project, looks: Sequence[TileLook], modality: str, /) -> bytes | None:
    """Return the picture of a column that the pipeline made when the column was done.

    None where the column is not done, a tile was processed since, or an earlier version made no such picture.
    """
    if any(look.state in ("working", "waiting", "missing") for look in looks):
        return None
    path = strip_path(project.paths.base, project.layout.batch_of(looks[0].tile), modality)
    try:
        real = picture_path(project.paths, project.paths.relative(path))
        return real.read_bytes() if real.stat().st_mtime_ns >= max(look.stamp for look in looks) else None
    except (InputError, OSError):
        return None


def store_path(paths: ProjectPaths, name: str, /) -> Path:
    """Return a file of an OME-Zarr volume with the axes z, y, x, with all links followed.

    Parameters
    ----------
    paths : ProjectPaths
        Folders of the project.
    name : str
        Name of the volume as in records, and that of a file in it.

    Raises
    ------
    InputError
        It is no file of a volume, it does not exist, or it lies outside the outputs of the project and its archive.
    """
    found = _IN_STORE.fullmatch(name)
    if found is None:
        raise InputError(f"{name!r} is not a file of a volume")
    _plain(found["store"])
    store = output_path(paths, found["store"])
    try:
        real = (store / name[len(found["store"]) + 1 :]).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name!r} does not exist") from error
    if not store.name.endswith(STORE) or not real.is_relative_to(store) or not real.is_file():
        raise InputError(f"{name!r} is not a file of a volume")
    return real


def _plain(name: str) -> PurePosixPath:
    """Return the path in a name, which leads nowhere else and shows no hidden file."""
    inside = PurePosixPath(name.removeprefix(_ARCHIVE))
    plain = "\\" not in name and "\0" not in name and not inside.is_absolute()
    if not plain or any(part == ".." or part.startswith(".") for part in inside.parts):
        raise InputError(f"{name!r} is not the name of an output")
    return inside


def output_path(paths: ProjectPaths, name: str, /) -> Path:
    """Return where an output really lies: in a folder of outputs of the project, or in its archive.

    Raises
    ------
    InputError
        It does not exist, or lies elsewhere.
    """
    if not name.startswith(_ARCHIVE) and not _FOLDERS.match(PurePosixPath(name).as_posix()):
        raise InputError(f"{name!r} lies in no folder of outputs")
    try:
        real = paths.absolute(name).resolve(strict=True)
        base, archive = paths.base.resolve(), paths.archive_root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{name!r} does not exist") from error
    of_project = real.is_relative_to(base) and _FOLDERS.match(real.relative_to(base).as_posix())
    if not of_project and not real.is_relative_to(archive):
        raise InputError(f"{name!r} is a link to a file outside the project's outputs")
    return real

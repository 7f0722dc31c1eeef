"""Map facts to the paths of their flag files, and back.

``mosaic-01/state/batch-003.processed``, ``mosaic-01/state/tiles/tile-0012.failed``, ``state/mosaic-001.stitched``,
``state/slice-001.registered``, ``state/sample.updated``. Claims keep one file per attempt in ``claims/`` beside the
flags, and withdrawn flags go to ``withdrawn/``; names that begin with a dot are unfinished files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from opticstream.model.chain import chain
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.state.earlier_words import PUBLICATION_WORDS, in_current_words

STATE_FOLDER = "state"
TILES_FOLDER = "tiles"
CLAIMS_FOLDER = "claims"
WITHDRAWN_FOLDER = "withdrawn"
JOURNAL_FOLDER = "journal"

_MOSAIC_FOLDER = re.compile(r"mosaic-(\d{2,})")


def flag_folder(item: ItemId, /) -> Path:
    """Return the folder of an item's flags, relative to the project.

    Examples
    --------
    >>> flag_folder(TileId(2, 7)).as_posix()
    'mosaic-02/state/tiles'
    """
    match item:
        case BatchId():
            return Path(item.mosaic.folder, STATE_FOLDER)
        case TileId():
            return Path(item.mosaic.folder, STATE_FOLDER, TILES_FOLDER)
        case _:
            return Path(STATE_FOLDER)


def flag_stem(item: ItemId, /) -> str:
    """Return the name of an item's flags without the fact.

    Examples
    --------
    >>> flag_stem(BatchId(2, 7))
    'batch-007'
    """
    return item.key.rpartition("/")[2]


def flag_path(item: ItemId, fact: str, /) -> Path:
    """Return the path of a flag, relative to the project.

    Examples
    --------
    >>> flag_path(BatchId(1, 3), "processed").as_posix()
    'mosaic-01/state/batch-003.processed'
    """
    return flag_folder(item) / f"{flag_stem(item)}.{fact}"


def scan_flags(project_dir: Path, /, *, mosaics: Iterable[MosaicId] | None = None) -> Iterator[tuple[ItemId, str]]:
    """Yield (item, fact) for every flag of a project; each folder is listed once and no file is opened.

    Other names are skipped: people and programs may keep their own files there.

    Parameters
    ----------
    project_dir : Path
        The project; may not exist yet.
    mosaics : iterable of MosaicId, optional
        List the batches and tiles of these mosaics only. The flags of mosaics, slices and the sample are always
        included.
    """
    for item, fact, _ in _scan_entries(project_dir, mosaics):
        yield item, fact


class Stamp(NamedTuple):
    """Distinguishes a flag file from a later one with the same name, without opening it."""

    mtime_ns: int
    size: int


def stamp_flags(project_dir: Path, /) -> Iterator[tuple[ItemId, str, Stamp | None]]:
    """Yield (item, fact, stamp) for every flag of a project; no file is opened.

    Flags of tiles have no stamp: there are many, and only their existence matters. A flag that is withdrawn during
    the listing may be missing.
    """
    for item, fact, entry in _scan_entries(project_dir, None):
        if isinstance(item, TileId):
            yield item, fact, None
            continue
        try:
            status = entry.stat()
        except OSError:
            continue
        yield item, fact, Stamp(status.st_mtime_ns, status.st_size)


def _scan_entries(
    project_dir: Path, mosaics: Iterable[MosaicId] | None
) -> Iterator[tuple[ItemId, str, os.DirEntry[str]]]:
    yield from _in_current_words(_scan_root(project_dir / STATE_FOLDER))
    for mosaic in mosaics_of_project(project_dir) if mosaics is None else mosaics:
        folder = project_dir / mosaic.folder / STATE_FOLDER
        yield from _in_current_words(_scan_numbered(folder, "batch", BatchId, mosaic.mosaic_id))
        yield from _scan_numbered(folder / TILES_FOLDER, "tile", TileId, mosaic.mosaic_id)


def _in_current_words(
    entries: Iterable[tuple[ItemId, str, os.DirEntry[str]]],
) -> Iterator[tuple[ItemId, str, os.DirEntry[str]]]:
    """Yield the flags of one folder, with those of publication under the facts that they say now."""
    publication: dict[ItemId, dict[str, os.DirEntry[str]]] = {}
    for item, fact, entry in entries:
        if fact in PUBLICATION_WORDS:
            publication.setdefault(item, {})[fact] = entry
        else:
            yield item, fact, entry
    for item, flags in publication.items():
        for fact, name in in_current_words(flags).items():
            yield item, fact, flags[name]


def mosaics_of_project(project_dir: Path, /) -> list[MosaicId]:
    """Return the mosaics that have a folder in the project, in order."""
    matches = (_MOSAIC_FOLDER.fullmatch(entry.name) for entry in _entries(project_dir))
    mosaics = (MosaicId(int(m[1])) for m in matches if m and int(m[1]))
    return sorted(mosaic for mosaic in set(mosaics))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _scan_root(folder: Path) -> Iterator[tuple[ItemId, str, os.DirEntry[str]]]:
    for entry in _entries(folder):
        stem, dot, fact = entry.name.partition(".")
        hierarchy, _, number = stem.partition("-")
        if not dot or fact not in chain().known.get(hierarchy, ()):
            continue
        if stem == "sample":
            yield SampleId(), fact, entry
        elif hierarchy in ("slice", "mosaic") and number.isdecimal() and int(number):
            item = SliceId(int(number)) if hierarchy == "slice" else MosaicId(int(number))
            if item.key == stem:
                yield item, fact, entry


def _scan_numbered(
    folder: Path, hierarchy: str, make: type[BatchId] | type[TileId], mosaic_id: int
) -> Iterator[tuple[ItemId, str, os.DirEntry[str]]]:
    known = chain().known[hierarchy]
    prefix = f"{hierarchy}-"
    items: dict[str, ItemId] = {}
    for entry in _entries(folder):
        stem, dot, fact = entry.name.partition(".")
        if not dot or fact not in known or not stem.startswith(prefix):
            continue
        item = items.get(stem)
        if item is None:
            number = stem.removeprefix(prefix)
            if not number.isdecimal() or not int(number):
                continue
            item = make(mosaic_id, int(number))
            if flag_stem(item) != stem:  # a flag of batch 7 is named "batch-007", never "batch-7"
                continue
            items[stem] = item
        yield item, fact, entry

"""Map facts to the paths of their flag files, and back.

``mosaic-01/state/batch-003.processed``, ``mosaic-01/state/tiles/tile-0012.failed``, ``state/mosaic-001.stitched``,
``state/slice-001.registered``, ``state/sample.updated``. Claims keep one file per attempt in ``claims/`` beside the
flags, and withdrawn flags go to ``withdrawn/``; names that begin with a dot are unfinished files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from opticstream.model.chain import chain
from opticstream.model.ids import BatchId, ItemId, MosaicId, SampleId, SliceId, TileId
from opticstream.state.earlier_words import EARLIER, PUBLICATION_WORDS, in_current_words

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


Numbered = Mapping[int, frozenset[str]]
"""Facts of the batches, or of the tiles, of one mosaic, by their numbers."""


def flags_above(project_dir: Path, /) -> dict[ItemId, frozenset[str]]:
    """Return the facts of the mosaics, the slices and the sample, from one listing and without opening a file."""
    found: dict[ItemId, set[str]] = {}
    for item, fact, _ in _in_current_words(_scan_root(project_dir / STATE_FOLDER)):
        found.setdefault(item, set()).add(fact)
    return {item: frozenset(facts) for item, facts in found.items()}


def flags_of_batches(project_dir: Path, mosaic: MosaicId, /) -> dict[int, frozenset[str]]:
    """Return the facts of the batches of a mosaic by their numbers, from one listing and without opening a file."""
    found = _numbered(project_dir / mosaic.folder / STATE_FOLDER, "batch")
    return {number: facts if facts.isdisjoint(EARLIER) else _current(facts) for number, facts in found.items()}


def flags_of_tiles(project_dir: Path, mosaic: MosaicId, /) -> dict[int, frozenset[str]]:
    """Return the facts of the tiles of a mosaic by their numbers, from one listing and without opening a file."""
    return _numbered(project_dir / mosaic.folder / STATE_FOLDER / TILES_FOLDER, "tile")


def _numbered(folder: Path, hierarchy: str) -> dict[int, frozenset[str]]:
    known = chain().known[hierarchy]
    found: dict[int, frozenset[str]] = {}
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return found
    nothing: frozenset[str] = frozenset()
    for name in names:
        number, fact = _number_and_fact(name, hierarchy)
        if number and fact in known:
            found[number] = _with(found.get(number, nothing), fact)
    return found


_MAKERS: Mapping[str, type[BatchId] | type[TileId]] = {"batch": BatchId, "tile": TileId}


@lru_cache(maxsize=2**16)  # the flags of all mosaics have the same names
def _number_and_fact(name: str, hierarchy: str) -> tuple[int, str]:
    """Return the number of the batch or tile, and the fact, in the name of a flag; (0, "") for other names."""
    stem, dot, fact = name.partition(".")
    number = stem.removeprefix(f"{hierarchy}-")
    if not dot or number == stem or not number.isdecimal() or not int(number):
        return 0, ""
    # a flag of batch 7 is named "batch-007", never "batch-7"
    return (int(number), fact) if flag_stem(_MAKERS[hierarchy](1, int(number))) == stem else (0, "")


@lru_cache(maxsize=4096)
def _with(facts: frozenset[str], fact: str) -> frozenset[str]:
    return facts | {fact}


@lru_cache(maxsize=4096)
def _current(facts: frozenset[str]) -> frozenset[str]:
    """Return the facts of an item, from the facts in the names of its flag files."""
    return frozenset((facts - PUBLICATION_WORDS) | in_current_words(facts & PUBLICATION_WORDS).keys())


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
        yield from _in_current_words(_scan_numbered(folder, "batch", mosaic.mosaic_id))
        yield from _scan_numbered(folder / TILES_FOLDER, "tile", mosaic.mosaic_id)


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


def _scan_numbered(folder: Path, hierarchy: str, mosaic_id: int) -> Iterator[tuple[ItemId, str, os.DirEntry[str]]]:
    known = chain().known[hierarchy]
    items: dict[int, ItemId] = {}
    for entry in _entries(folder):
        number, fact = _number_and_fact(entry.name, hierarchy)
        if not number or fact not in known:
            continue
        item = items.get(number)
        if item is None:
            item = items[number] = _MAKERS[hierarchy](mosaic_id, number)
        yield item, fact, entry

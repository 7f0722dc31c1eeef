"""Where the raw folders that events and records name lie on this host.

Events and records name raw files relative to their raw folder, and the folder as the host that found it does. It may
have been moved since, or lie elsewhere on another host; so it is looked for wherever the project knows of.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from opticstream.config.path_map import PathMapping, is_absolute_path, path_here, position_from
from opticstream.state.durable import replace_whole

POSITION = "raw_from_project"
"""Key in the detail of a batch's `ready` record: where its raw folder lies from the project's folder, if beside it."""


class RawFolders:
    """Finds the raw folders of a project on this host.

    Parameters
    ----------
    base : Path
        Folder of the project.
    path_map : sequence of PathMapping
        Where this host sees folders that others name.
    configured : Path, optional
        Where the raw tiles lie now by the project's settings.
    """

    def __init__(self, base: Path, /, path_map: Sequence[PathMapping] = (), configured: Path | None = None) -> None:
        self._base = base
        self._path_map = path_map
        self._configured = configured

    def find(self, folder: str, files: Iterable[str] = (), *, position: str = "") -> Path:
        """Return where a raw folder lies on this host.

        That is the first of these that holds any of the files: its place in the project's folder, the folder as the
        path map has it, the one in the settings, its place beside the project's folder, and those that the project was
        fed from, the latest first. Where none does it is the first that exists, else the folder as the path map has it.

        Parameters
        ----------
        folder : str
            The folder as it was named by the host that found it.
        files : iterable of str
            Names of raw files, relative to it.
        position : str
            Where it lay from the project's folder; empty where that is not known.
        """
        mapped = path_here(folder, self._path_map)
        names = [name for name in files if not _is_absolute(name)]
        first: Path | None = None
        for candidate in self._candidates(mapped, position):
            if not candidate.is_dir():
                continue
            if not names or any((candidate / name).exists() for name in names):
                return candidate
            first = first or candidate
        return first or mapped

    def name_here(self, folder: Path, name: str, /) -> str:
        """Return the name of a raw file from its folder; an absolute one, as this host knows it."""
        if not _is_absolute(name):
            return name
        mapped = path_here(name, self._path_map)
        if mapped.exists():
            return str(mapped)
        parts = (PureWindowsPath(name) if "\\" in name else PurePosixPath(name)).parts
        places = [folder, *self._candidates(folder, "")]
        endings = ("/".join(parts[start:]) for start in range(1, len(parts)))
        found = (place / ending for ending in endings for place in places)
        return str(next((path for path in found if path.exists()), mapped))

    def remember(self, folder: Path, /) -> None:
        """Note that the project is fed from a folder, so that work that is done again finds its files there."""
        text = str(folder)
        path = self._memory / f"{hashlib.sha256(os.fsencode(text)).hexdigest()[:16]}.json"
        if next(iter(self.remembered()), None) != text:
            replace_whole(path, (json.dumps({"folder": text}) + "\n").encode())

    @property
    def _memory(self) -> Path:
        return self._base / "state" / "raw-folders"

    def remembered(self) -> Iterator[str]:
        """Yield the folders that the project was fed from, the latest first."""
        known = []
        for path in self._memory.glob("*.json"):
            try:
                known.append((path.stat().st_mtime_ns, str(json.loads(path.read_bytes())["folder"])))
            except (OSError, ValueError, TypeError, KeyError):
                continue  # a memory, which the next run or watch renews
        yield from (folder for _, folder in sorted(known, reverse=True))

    def _candidates(self, mapped: Path, position: str) -> Iterator[Path]:
        beside = [Path(os.path.normpath(self._base / position))] if position else []
        if position and not position.startswith(".."):
            yield from beside
        yield mapped
        if self._configured is not None:
            yield self._configured
        yield from beside
        for folder in self.remembered():
            yield path_here(folder, self._path_map)


def position_in_record(detail: Mapping[str, Any], /) -> str:
    """Return where the raw folder of a batch's `ready` record lay from the project's folder; empty where it is unknown.

    Records of earlier versions tell by the two folders that they name.
    """
    if POSITION in detail:
        return str(detail[POSITION])
    event = detail.get("event")
    if not isinstance(event, Mapping):
        return ""
    return position_from(str(event.get("project_base_path", "")), str(event.get("raw_folder", "")))


def _is_absolute(name: str) -> bool:
    return (name.startswith("/") or "\\" in name or ":" in name) and is_absolute_path(name)

"""Paths that differ between hosts: what a path that another host wrote is called on this one.

An acquisition host may be Windows, or mount a share elsewhere. Each host says in `OPTICSTREAM_PATH_MAP` where it sees
the folders that others name. Nothing here looks at the disk.
"""

from __future__ import annotations

import ntpath
import os
import posixpath
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator

from opticstream.config.base import Settings
from opticstream.config.lists import list_from_text

_LONG_UNC = re.compile(r"^\\\\\?\\UNC\\", re.IGNORECASE)
_LONG = re.compile(r"^\\\\\?\\(?=[A-Za-z]:)")


class PathMapping(Settings):
    """A folder of another host, and where this host sees it."""

    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from")
    r"""The folder as the other host names it: absolute, of Windows (`D:\acq`, `\\rig\data`) or not (`/data`)."""
    to: Path
    """The same folder as this host names it: absolute."""

    @field_validator("from_")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        is_server_alone = value.startswith("//") and len(_readings(value)) < 2
        if not _readings(value) or is_server_alone:
            raise ValueError(f"expected an absolute path such as D:\\acq, \\\\rig\\data or /data, got {value!r}")
        return value

    @field_validator("to")
    @classmethod
    def _is_of_this_host(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"expected an absolute path of this host such as /mnt/rig, got {str(value)!r}")
        return value


def _with_folders_of_their_own(mappings: tuple[PathMapping, ...]) -> tuple[PathMapping, ...]:
    for number, mapping in enumerate(mappings):
        known = _readings(mapping.from_)
        for other in mappings[:number]:
            if any(one == two for one in known for two in _readings(other.from_)):
                raise ValueError(f"two places have the same `from`: {other.from_} and {mapping.from_}; keep one")
    return mappings


def _from_text(value: Any) -> Any:
    expected = r"""a list in JSON or TOML, such as [{ from = '\\rig\data', to = "/mnt/rig" }]"""
    return list_from_text(value, expected=expected)


PathMap = Annotated[tuple[PathMapping, ...], BeforeValidator(_from_text), AfterValidator(_with_folders_of_their_own)]
"""The folders of other hosts that this host sees under other names."""


def path_here(path: str | PurePath, path_map: Sequence[PathMapping], /) -> Path:
    r"""Return where a path that another host wrote lies on this host; the path itself where no mapping names it.

    The mapping with the longest `from` counts. Folders are compared as a whole; those of Windows without case, and with
    either slash.

    Parameters
    ----------
    path : str or PurePath
        An absolute path of any host.
    path_map : sequence of PathMapping
        Where this host sees folders of others.

    Examples
    --------
    >>> named = {r"\\rig\data": "/mnt/rig", "D:/acq": "/mnt/acq"}
    >>> where = [PathMapping(from_=folder, to=Path(here)) for folder, here in named.items()]
    >>> path_here(r"\\RIG\Data\I80\raw", where).as_posix(), path_here("d:\\acq", where).as_posix()
    ('/mnt/rig/I80/raw', '/mnt/acq')
    >>> path_here(r"D:\acquired\I80", where).name, path_here("/data/I80", where).as_posix()
    ('D:\\acquired\\I80', '/data/I80')
    """
    text = str(path)
    found: tuple[int, Path] | None = None
    for mapping in path_map:
        for reading in _readings(text):
            rest = next((r for folder in _readings(mapping.from_) if (r := _rest(reading, folder)) is not None), None)
            if rest is not None and (found is None or len(rest.parts) < found[0]):
                found = len(rest.parts), mapping.to.joinpath(*rest.parts)
    return Path(path) if found is None else found[1]


def is_absolute_path(path: str | PurePath, /) -> bool:
    r"""Return whether a path begins at a root, on whatever kind of host.

    Examples
    --------
    >>> [is_absolute_path(path) for path in (r"D:\acq", "//rig/data/I80", "/data", "data", r"\data")]
    [True, True, True, False, False]
    """
    return bool(_readings(str(path)))


def is_of_another_kind_of_host(path: str | PurePath, /) -> bool:
    r"""Return whether a path can only be one of Windows, and this host is none, or the other way round.

    Examples
    --------
    >>> is_of_another_kind_of_host(r"D:\acq") != is_of_another_kind_of_host("/data/acq")
    True
    """
    readings = _readings(str(path))
    own = PureWindowsPath if os.name == "nt" else PurePosixPath
    return bool(readings) and not any(isinstance(reading, own) for reading in readings)


def position_from(base: str | PurePath, folder: str | PurePath, /) -> str:
    r"""Return where a folder lies from a project's folder, with forward slashes; empty unless it lies in or beside it.

    A project that is moved, or mounted elsewhere, together with its raw folder finds it there again.

    Examples
    --------
    >>> position_from("/data/I80/out", "/data/I80/raw/day 1"), position_from(r"D:\I80", r"d:\i80\raw")
    ('../raw/day 1', 'raw')
    >>> position_from("/data/I80/out", "/raw"), position_from("/data/I80/out", r"D:\raw")
    ('', '')
    """
    for one in _readings(str(base)):
        for other in _readings(str(folder)):
            if (rest := _rest(other, one)) is not None:
                return rest.as_posix()
            if (rest := _rest(other, one.parent)) is not None:
                return f"../{rest.as_posix()}"
    return ""


def said_of_path(path: str | PurePath, here: Path, /) -> str:
    """Return a path for an error: as it was given, and what the path map has made of it.

    Examples
    --------
    >>> said_of_path("/data/p", Path("/mnt/p"))
    "'/data/p', which is /mnt/p by OPTICSTREAM_PATH_MAP"
    >>> said_of_path("D:/p", Path("D:/p"))
    "'D:/p' (a Windows path), which OPTICSTREAM_PATH_MAP does not name"
    """
    windows = " (a Windows path)" if is_of_another_kind_of_host(path) and PureWindowsPath(path).drive else ""
    is_mapped = str(path) != str(here)
    mapped = f"is {here} by OPTICSTREAM_PATH_MAP" if is_mapped else "OPTICSTREAM_PATH_MAP does not name"
    return f"{str(path)!r}{windows}, which {mapped}"


@lru_cache(maxsize=512)
def _readings(text: str) -> tuple[PurePath, ...]:
    """Return what a text may mean as an absolute path, without `..`; ``//rig/data`` may be of Windows or not."""
    found: list[PurePath] = []
    plain = text.replace("/", "\\") if text.startswith("//") else text
    plain = _LONG.sub("", _LONG_UNC.sub(r"\\\\", plain))
    windows = PureWindowsPath(ntpath.normpath(f"{plain}\\" if re.fullmatch("[A-Za-z]:", plain) else plain))
    if windows.drive and windows.root:
        found.append(windows)
    if text.startswith("/"):
        found.append(PurePosixPath(posixpath.normpath("/" + text.lstrip("/"))))
    return tuple(found)


def _rest(path: PurePath, folder: PurePath) -> PurePath | None:
    """Return a path relative to a folder, None where it does not lie in it; paths of Windows ignore case."""
    if type(path) is not type(folder):
        return None
    try:
        return path.relative_to(folder)
    except ValueError:
        return None

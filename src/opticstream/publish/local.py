"""The local archive tree (`DANDISET/`): it holds the bytes of results, and the project links to them.

A result is first given a second name in the archive (a hard link; a copy on another file system), and then a relative
symbolic link takes the place of the first. A process that is killed in between leaves the result where it was, and
publishing it again goes on from there.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from opticstream.io.atomic import atomic_folder, atomic_path
from opticstream.model.errors import FileFormatError, MissingInputError, StateError
from opticstream.state.manifest import manifest_path, read_manifest
from opticstream.system.disk import copy_file, link_goal, link_or_copy, replace_by_link, symbolic_link


def publish_locally(source: Path, target: Path, /, *, sha256: str | None = None) -> Path:
    """Put a result (file or folder) into the archive tree under `target` and return it; `source` stays.

    Files on the same file system become hard links, which costs no space; otherwise they are copied. A target that
    already has the same bytes is not changed.

    Parameters
    ----------
    source, target : Path
        The result, and its name in the archive.
    sha256 : str, optional
        Checksum from the record of a file. What is copied is compared with it; the files of a store with its manifest.

    Raises
    ------
    MissingInputError
        `source` does not exist.
    StateError
        What was copied is not what was recorded.
    """
    if not source.exists():
        raise MissingInputError(f"{source}: does not exist and cannot be published")
    if _is_same(source, target):
        return target
    real = Path(os.path.realpath(source))
    if real.is_dir():
        with atomic_folder(target) as folder:
            _copy_store(real, folder, _manifest_of(source))
        return target
    if target.is_file() and filecmp.cmp(real, target, shallow=False):
        return target
    with atomic_path(target) as temporary:
        _link_or_copy(real, temporary, sha256)
    return target


def move_to_archive(path: Path, target: Path, /, *, sha256: str | None = None) -> Path:
    """Put a result into the archive tree as `publish_locally` does, and a relative link to it in the result's place.

    The result stays as it is where the file system has no symbolic links, or if it is made again at the same time.
    """
    was = _identity(path)
    publish_locally(path, target, sha256=sha256)
    if not (path.is_symlink() and _is_same(path, target)):
        replace_by_link(path, link_goal(path, target), if_still=lambda now: _identity(now) == was)
    return target


def publish_growing(source: Path, target: Path, still: Callable[[], None], /) -> Path:
    """Copy a file or store that grows in place into the archive tree under `target`, and return it.

    Chunks of a store are replaced whole, so they become hard links where that is possible; a chunk that the archive has
    already is not copied again. A single file is always copied.

    Parameters
    ----------
    source, target : Path
        The file or store, and its name in the archive.
    still : callable
        Called before the copy takes its name; raises ChangingStacksError if `source` may have changed meanwhile.

    Raises
    ------
    MissingInputError
        `source` does not exist.
    ChangingStacksError
        See `still`; the archive is as it was.
    """
    if not source.exists():
        raise MissingInputError(f"{source}: does not exist and cannot be published")
    if source.is_dir():
        with atomic_folder(target) as folder:
            copy_growing(source, target, folder)
            still()
        return target
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        still()
        return target
    with atomic_path(target) as temporary:
        copy_file(source, temporary)
        still()
    return target


def copy_growing(source: Path, earlier: Path, target: Path, /) -> None:
    """Give all files below a folder that grows in place names below `target`, with an earlier copy of it at hand."""
    for base, _, names in os.walk(source):
        inside = Path(base).relative_to(source)
        (target / inside).mkdir(parents=True, exist_ok=True)
        for name in names:
            if not name.endswith("__lock"):  # of a writer that was killed
                _link_or_keep(Path(base, name), earlier / inside / name, target / inside / name)


def _link_or_keep(source: Path, earlier: Path, target: Path) -> None:
    """Give a chunk the name `target`: as a link to it, to its earlier copy if it has not changed, or as a new copy."""
    status = source.stat()
    with contextlib.suppress(OSError):
        known = earlier.stat()
        if (known.st_size, known.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            os.link(earlier, target)
            return
    if link_or_copy(source, target) is not None:
        with contextlib.suppress(OSError):  # without it, the next publication copies the chunk again
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def link_into_mosaic(archive: Path, folder: Path, /) -> Path:
    """Make a symbolic link in a mosaic's `archived/` folder to an archive copy, and return the copy.

    The link is a convenience: if the file system has no symbolic links it is left out, and the log says so once.

    Raises
    ------
    MissingInputError
        The archive copy does not exist.
    """
    if not archive.exists():
        raise MissingInputError(f"{archive}: the archive copy does not exist")
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / archive.name
    if not (link.is_symlink() and _is_same(link, archive)):
        symbolic_link(link, link_goal(link, archive))
    return archive


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _manifest_of(store: Path) -> Mapping[str, str]:
    """Return the checksums of a store's files; none where its manifest is missing, or is no manifest."""
    try:
        return read_manifest(manifest_path(store))
    except (OSError, FileFormatError):
        return {}


def _copy_store(source: Path, target: Path, listed: Mapping[str, str]) -> None:
    for base, _, names in os.walk(source):
        inside = Path(base).relative_to(source)
        (target / inside).mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            _link_or_copy(Path(base, name), target / inside / name, listed.get((inside / name).as_posix()))


def _link_or_copy(source: Path, target: Path, sha256: str | None) -> None:
    """Give a file a second name, or copy it.

    Raises
    ------
    StateError
        The copy has another checksum than was recorded.
    """
    copied = link_or_copy(source, target)
    if None not in (copied, sha256) and copied != sha256:
        raise StateError(
            f"{source} has the SHA-256 {copied}, expected {sha256} as it was recorded, and is not published; "
            "`opticstream state reset` has it made again"
        )

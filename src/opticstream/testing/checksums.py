"""Checksums of whole folders, to say that two runs left the same bytes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path


def tree_checksums(folder: Path, /, *, without: str | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by relative path; folders named `without` are left out.

    Links are followed: results are links into the archive.
    """
    found = {}
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != without]
        for path in (Path(base, name) for name in names if name != without):
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(found.items()))


def while_at_work(checksums: Mapping[str, str], /) -> dict[str, str]:
    """Return the checksums of what a project keeps as it is: not its stacks, nor first looks at tiles that wait.

    Examples
    --------
    >>> while_at_work({f"mosaic-01/{name}": "1" for name in ("looks/a/a_qc.jpg", "processed/a_qc.jpg")})
    {'mosaic-01/processed/a_qc.jpg': '1'}
    """
    kept = without_stacks(checksums)
    return {name: one for name, one in kept.items() if "/looks/" not in name}


def without_stacks(checksums: Mapping[str, str], /) -> dict[str, str]:
    """Return the checksums of a project without the sample's stacks, published or not: they keep the room they needed.

    The same is true of their cubes and scenes, each in a folder of the sample.

    Examples
    --------
    >>> without_stacks({"sample/a.nii": "1", "DANDISET/derivative/sub-1/a.nii": "1", "DANDISET/b.nii": "2"})
    {'DANDISET/b.nii': '2'}
    >>> without_stacks({"sample/isotropic/a.ome.zarr/0": "1", "DANDISET/a.ome.zarr/0": "1", "DANDISET/b/0": "2"})
    {'DANDISET/b/0': '2'}
    """
    stacks = set()
    for first, *below in (name.split("/") for name in checksums):
        if first == "sample":
            stacks.add(below[0] if "." in below[0] else below[1])
    return {name: digest for name, digest in checksums.items() if stacks.isdisjoint(name.split("/"))}

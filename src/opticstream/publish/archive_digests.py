"""Digests by which DANDI and LINC know files and stores; they equal those of the `dandi` client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple

from opticstream.publish.target import LocalFile, ensure_is_the_file

_PART_SIZE = 64 * 2**20
_MOST_PARTS = 10_000
_READ_BYTES = 2**20
DEEPEST = 7
"""Folders of a store inside each other that the archives take."""


class Leaf(NamedTuple):
    """A file of a store: its path in it, its MD5 and its size in bytes."""

    name: str
    md5: str
    size: int


def archive_part_size(size: int, /) -> int:
    """Return the size of the parts of which a file of `size` bytes is uploaded, in bytes.

    Examples
    --------
    >>> archive_part_size(10**9) == 64 * 2**20, 10**12 // archive_part_size(10**12)
    (True, 10000)
    """
    return _PART_SIZE if -(-size // _PART_SIZE) < _MOST_PARTS else -(-size // _MOST_PARTS)


def etag_of_file(file: LocalFile, /) -> str:
    """Return the `dandi:dandi-etag` of a file: the MD5 of the MD5s of its parts, and how many there are.

    Raises
    ------
    InputError
        It is not the file that its record describes.
    """
    sha256, parts, size = hashlib.sha256(), [], 0
    with file.path.open("rb") as stream:
        while data := stream.read(min(left := archive_part_size(file.size), _READ_BYTES)):
            part = hashlib.md5(usedforsecurity=False)
            while data:
                sha256.update(data)
                part.update(data)
                size, left = size + len(data), left - len(data)
                data = stream.read(min(left, _READ_BYTES))
            parts.append(part.digest())
    ensure_is_the_file(file, size, sha256.hexdigest())
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def md5_of_file(file: LocalFile, /) -> str:
    """Return the MD5 of a file; raise InputError if it is not the file that its record describes."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with file.path.open("rb") as stream:
        while data := stream.read(_READ_BYTES):
            sha256.update(data)
            md5.update(data)
            size += len(data)
    ensure_is_the_file(file, size, sha256.hexdigest())
    return md5.hexdigest()


def zarr_checksum(leaves: Iterable[Leaf], /) -> str:
    """Return the `dandi:dandi-zarr-checksum` of a store: an MD5 over all folders, the number of files and their bytes.

    Examples
    --------
    >>> zarr_checksum([Leaf("zarr.json", "0" * 32, 2), Leaf("0/c/0", "1" * 32, 40)])
    '02c1a9183f8c5ebcd6c59ba0757c5c7a-2--42'
    """
    root = _Folder()
    for leaf in leaves:
        *folders, name = leaf.name.split("/")
        folder = root
        for one in folders:
            folder = folder.folders.setdefault(one, _Folder())
        folder.files[name] = (leaf.md5, leaf.size)
    return root.checksum()[0]


class _Folder:
    def __init__(self) -> None:
        self.folders: dict[str, _Folder] = {}
        self.files: dict[str, tuple[str, int]] = {}

    def checksum(self) -> tuple[str, int, int]:
        """Return checksum, number of files and their bytes."""
        below = {name: folder.checksum() for name, folder in sorted(self.folders.items())}
        number = len(self.files) + sum(files for _, files, _ in below.values())
        size = sum(size for _, size in self.files.values()) + sum(size for _, _, size in below.values())
        listing = {
            "directories": [{"digest": digest, "name": name, "size": sz} for name, (digest, _, sz) in below.items()],
            "files": [{"digest": md5, "name": name, "size": sz} for name, (md5, sz) in sorted(self.files.items())],
        }
        text = json.dumps(listing, separators=(",", ":")).encode()
        return f"{hashlib.md5(text, usedforsecurity=False).hexdigest()}-{number}--{size}", number, size


def depth_of(names: Iterable[str], /) -> int:
    """Return how many folders of a store are inside each other, from the paths of its files."""
    return max((name.count("/") for name in names), default=0)

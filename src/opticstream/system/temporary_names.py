"""Names of outputs that are still being written.

A temporary name identifies its writer: ``.{stem}.partial-{machine}-{process}-{start}-{token}{suffixes}``. The machine
is a hash of its boot and its process table; with the id and the start time of the process, any process on the same
machine can check whether the writer is alive. For other machines the age of the file decides, by the clock of its file
system.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from functools import lru_cache
from pathlib import Path

from opticstream.system.host import HostIdentity

TEMPORARY_MARK = ".partial-"
"""Part of every temporary name; readers ignore such files and folders."""
LONGEST_NAME = 143
"""Largest number of bytes in a name on every file system (eCryptfs; 255 on most others)."""

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_WRITER = re.compile(re.escape(TEMPORARY_MARK) + r"([0-9a-f]{8})-([0-9a-z]+)-([0-9a-z]+)-")


def is_temporary(path: Path, /) -> bool:
    """Return whether a name is that of an output still being written."""
    return TEMPORARY_MARK in path.name


def temporary_beside(path: Path, /) -> Path:
    """Return a fresh temporary name in the folder of `path`, with its suffixes: libraries choose formats by them.

    It is never too long for any file system: a long stem is cut.

    Examples
    --------
    >>> temporary_beside(Path("maps/mosaic_001_aip.nii.gz")).name.endswith(".nii.gz")
    True
    >>> len(temporary_beside(Path("x" * 250 + ".nii")).name)
    143
    """
    stem, dot, suffixes = path.name.partition(".")
    mark = f"{TEMPORARY_MARK}{_this_writer(os.getpid())}-{secrets.token_hex(4)}"
    room = LONGEST_NAME - 1 - len(mark)
    ending = _last_bytes(dot + suffixes, min(40, room))
    return path.with_name(f".{_first_bytes(stem, room - len(os.fsencode(ending)))}{mark}{ending}")


def shortened(name: str, kept_for_more: int = 0, /) -> str:
    """Return a name that leaves room for `kept_for_more` bytes; long names are cut and get a hash."""
    room = LONGEST_NAME - kept_for_more
    if len(os.fsencode(name)) <= room:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    return f"{_first_bytes(name, room - len(digest) - 1)}-{digest}"


def writer_is_dead(path: Path, /) -> bool:
    """Return whether the process of a temporary name ran on this machine and has ended; False if unknown."""
    found = _WRITER.search(path.name)
    if found is None:
        return False
    me = HostIdentity.current()
    if found[1] != _machine(me) or me.process_start is None:
        return False
    writer = HostIdentity(me.host, int(found[2], 36), me.boot_id, me.pid_namespace, int(found[3], 36))
    return me.life_of(writer) == "dead"


@lru_cache(maxsize=4)
def _this_writer(pid: int) -> str:
    me = HostIdentity.current()
    return f"{_machine(me)}-{_base36(pid)}-{_base36(max(0, me.process_start or 0))}"


def _machine(host: HostIdentity) -> str:
    """Return a hash of what two processes share if they can see each other."""
    seen = f"{host.boot_id or host.host}\0{host.pid_namespace}"
    return hashlib.sha256(seen.encode()).hexdigest()[:8]


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text or "0"


def _first_bytes(text: str, count: int) -> str:
    """Return as much of the start of a text as fits into `count` bytes of a file name."""
    while len(os.fsencode(text)) > count:
        text = text[:-1]
    return text


def _last_bytes(text: str, count: int) -> str:
    while len(os.fsencode(text)) > count:
        text = text[1:]
    return text

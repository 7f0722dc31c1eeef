"""Checksums of whole folders, to say that two runs left the same bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path


def tree_checksums(folder: Path, /, *, without: str | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by relative path; folders named `without` are left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and without not in path.relative_to(folder).parts
    }

"""Where on disk the store library is to find a Zarr array."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def file_store(path: Path, /) -> dict[str, Any]:
    """Return what tensorstore wants to be told of a folder; it takes no path with ``..`` in it.

    Examples
    --------
    >>> file_store(Path("/data/run/../volumes/v.ome.zarr/0"))
    {'driver': 'file', 'path': '/data/volumes/v.ome.zarr/0'}
    """
    return {"driver": "file", "path": os.path.realpath(path)}

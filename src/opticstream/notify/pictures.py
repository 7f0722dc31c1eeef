"""Pictures of milestones, small enough for a message."""

from __future__ import annotations

import io
from pathlib import Path

from opticstream.notify.milestone import Milestone

LONGEST_PX = 1600
"""Longest side of a picture in a message, in pixels."""


def small_pictures(milestone: Milestone, /) -> list[tuple[str, bytes]]:
    """Return the pictures of a milestone as names and JPEG bytes; those that cannot be read are left out."""
    found = ((path.stem, _small(path)) for path in milestone.pictures)
    return [(f"{stem}.jpg", data) for stem, data in found if data is not None]


def _small(path: Path) -> bytes | None:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit is for pictures of strangers; these are our own, however large
    try:
        with Image.open(path) as image:
            image.draft("RGB", (LONGEST_PX, LONGEST_PX))  # decodes a large JPEG at a fraction of its size
            picture = image.convert("RGB")
        picture.thumbnail((LONGEST_PX, LONGEST_PX))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=85)
    except (OSError, ValueError):  # withdrawn, or being written again
        return None
    return stream.getvalue()

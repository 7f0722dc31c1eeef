"""Pictures as the bytes of their files."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST_JPEG_PX = 65_500
"""Largest number of rows or columns that the JPEG library writes; the format allows 65,535."""
SMALL_PX = 160
"""Longer side of the small pictures of the dashboard."""
MOST_JPEG_PX = 89_000_000
"""Pixels beyond which Pillow, and programs built on it, warn of a decompression bomb."""


def reduction_step(shape: tuple[int, ...], /) -> int:
    """Return by how much a JPEG picture of `shape` (rows, columns, ...) is thinned so that programs can open it.

    Examples
    --------
    >>> reduction_step((40, 67_000, 3)), reduction_step((4000, 5000, 3))
    (2, 1)
    """
    rows, columns = shape[:2]
    step = max(1, -(-max(rows, columns) // LONGEST_JPEG_PX))
    while -(-rows // step) * -(-columns // step) > MOST_JPEG_PX:
        step += 1
    return step


def reduction_note(name: str, shape: tuple[int, ...], /) -> str:
    """Return a note on a JPEG picture that is thinned; empty if it is not.

    Examples
    --------
    >>> reduction_note("aip.jpg", (500, 700))
    ''
    >>> reduction_note("aip.jpg", (20_000, 70_000))
    'aip.jpg is reduced 4 times: 70000 x 20000 px are more than a JPEG can usefully hold'
    """
    step = reduction_step(shape)
    if step == 1:
        return ""
    return f"{name} is reduced {step} times: {shape[1]} x {shape[0]} px are more than a JPEG can usefully hold"


def encoded_picture(picture: NDArray[np.uint8], kind: str, /, **options: Any) -> bytes:
    """Return 8-bit pixels (rows, columns[, 3]) as the bytes of a file of Pillow's `kind`, e.g. ``JPEG``.

    A JPEG that would be too large is thinned by `reduction_step`. Pillow never writes files itself here: on a full
    disk it would leave truncated files without an error.
    """
    from PIL import Image

    step = reduction_step(picture.shape) if kind == "JPEG" else 1
    if step > 1:
        picture = np.ascontiguousarray(picture[::step, ::step])
    stream = BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()


def small_picture(picture: NDArray[np.uint8], /) -> bytes:
    """Return a small JPEG, of at most `SMALL_PX` rows and columns, of 8-bit pixels (rows, columns[, 3]).

    Examples
    --------
    >>> from PIL import Image
    >>> Image.open(BytesIO(small_picture(np.zeros((400, 640, 3), np.uint8)))).size
    (160, 100)
    """
    from PIL import Image

    image = Image.fromarray(picture).convert("RGB")
    image.thumbnail((SMALL_PX, SMALL_PX), reducing_gap=2.0)
    stream = BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def needs_bigtiff(data_bytes: int, /) -> bool:
    """Return whether a TIFF file must count its bytes in 64 bits; compression may save nothing.

    Examples
    --------
    >>> needs_bigtiff(5 * 2**30), needs_bigtiff(2**30)
    (True, False)
    """
    return data_bytes > 2**32 - 2**25

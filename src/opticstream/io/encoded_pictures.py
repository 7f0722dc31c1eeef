"""Pictures as the bytes of their files."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encoded_picture(picture: NDArray[np.uint8], kind: str, /, **options: Any) -> bytes:
    """Return 8-bit pixels (rows, columns[, 3]) as the bytes of a file of Pillow's `kind`, e.g. ``JPEG``.

    Pillow never writes files itself here: where the disk is full it would leave them cut off and say nothing.
    """
    from PIL import Image

    stream = BytesIO()
    Image.fromarray(picture).save(stream, kind, **options)
    return stream.getvalue()

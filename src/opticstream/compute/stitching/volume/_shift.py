"""How much deeper than its neighbours each A-line of a tile is read, from the focus map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shift_from_focus(focus_px: NDArray[np.floating], /) -> NDArray[np.int64]:
    """Return how many samples deeper each A-line is read, ``round(f) - round(min f)``; same shape.

    Examples
    --------
    >>> shift_from_focus(np.array([[3.6, 5.2]])).tolist()
    [[0, 1]]
    """
    if not np.isfinite(focus_px).all():
        raise ValueError("the focus map must be finite everywhere")
    rounded = np.floor(np.asarray(focus_px, np.float64) + 0.5).astype(np.int64)
    return rounded - int(rounded.min())

"""The rectangle of the sample's pixels that a stack holds; to the left and upwards it grows in steps.

Pixels of the sample are those of its first slice, and later slices may reach to negative ones. A file counts from its
own first pixel. So its low corner is in its metadata, and moves by whole steps only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Pair = tuple[int, int]
BlockReader = Callable[[slice, slice], NDArray[Any]]
"""Returns the block (x, y, depth[, c]) of a slice for ranges of x and y."""

MARGIN_PX = 64
"""Room for small steps of the tissue, left free at the low corner of stacks whose slices are aligned."""


@dataclass(frozen=True)
class Canvas:
    """Pixels from `low` to before `high`, along x and y."""

    low: Pair
    high: Pair

    @staticmethod
    def of(shape: Pair, low: Pair = (0, 0)) -> Canvas:
        """Return the canvas of a picture whose first pixel is `low`."""
        return Canvas(low, (low[0] + shape[0], low[1] + shape[1]))

    @staticmethod
    def start(margin_px: int) -> Canvas:
        """Return what a new stack begins with."""
        return Canvas((-margin_px, -margin_px), (0, 0))

    @property
    def size(self) -> Pair:
        return self.high[0] - self.low[0], self.high[1] - self.low[1]

    def united(self, other: Canvas, /) -> Canvas:
        """Return the smallest canvas that holds both."""
        return Canvas(
            (min(self.low[0], other.low[0]), min(self.low[1], other.low[1])),
            (max(self.high[0], other.high[0]), max(self.high[1], other.high[1])),
        )

    def grown(self, wanted: Canvas, /, *, step_px: Pair, margin_px: int = 0) -> Canvas:
        """Return this canvas, enlarged until it holds another one.

        Parameters
        ----------
        wanted : Canvas
            What it has to hold.
        step_px : (int, int)
            The low corner moves by multiples of these.
        margin_px : int
            The high corner lies at multiples of this; 0: it goes no further than wanted.

        Examples
        --------
        The result does not depend on the order in which parts are asked for:

        >>> start, left, right = Canvas((-64, -64), (0, 0)), Canvas((-70, 0), (90, 80)), Canvas((5, 0), (100, 80))
        >>> def both(one, two):
        ...     return start.grown(one, step_px=(256, 256)).grown(two, step_px=(256, 256))
        >>> both(left, right) == both(right, left) == Canvas((-320, -64), (100, 80))
        True
        """
        low = [a - s * max(0, -(-(a - w) // s)) for a, w, s in zip(self.low, wanted.low, step_px, strict=True)]
        up = max(margin_px, 1)
        high = [max(b, -(-w // up) * up) for b, w in zip(self.high, wanted.high, strict=True)]
        return Canvas((low[0], low[1]), (high[0], high[1]))
